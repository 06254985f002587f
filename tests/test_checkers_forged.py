"""The independent checkers refuse forged certificates and spoiled files: small runs of the campaigns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from benchmarks.checkers import forge, fuzz, table

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_forged_certificates_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "EACH", 2)
    campaign = forge.Campaign(seed=1)
    campaign.run(200, tmp_path)
    found = campaign.summary()
    assert not found["wrong"], found["wrong"]
    assert found["forgeries"] == sum(found["verdicts"].values()) == 200
    assert found["verdicts"].keys() == {"rejected", "unreadable"}
    assert all(verdicts.keys() == {"accepted"} for verdicts in found["valid"].values())


def test_a_forgery_by_the_command_line(tmp_path: Path) -> None:
    made = forge.valid(np.random.default_rng(0), 0)
    assert forge.exit_code(made, tmp_path) == 0
    made.meta["lower_bound"] *= 1.1
    assert forge.exit_code(made, tmp_path) == 1
    made.networks[0].opset_import[0].version = 6
    assert forge.exit_code(made, tmp_path) == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_spoiled_files_are_refused_or_true(tmp_path: Path) -> None:
    found = fuzz.run(200, 1, tmp_path)
    assert not found["wrong"], found["wrong"]
    verdicts = {verdict for counts in found["verdicts"].values() for verdict in counts}
    assert verdicts <= {"accepted", "rejected", "unreadable"} and "unreadable" in verdicts


def test_the_committed_texts_have_one_meaning() -> None:
    rows = json.loads((ROOT / "benchmarks" / "checkers" / "results" / "vnnlib.json").read_text())["rows"]
    assert sum(row["texts"] for row in rows) >= 60_000 and not any(row["wrong"] for row in rows)


def test_the_committed_forgeries_are_about_both() -> None:
    forged = table.totals(json.loads((ROOT / "benchmarks" / "checkers" / "results" / "forge.json").read_text()))
    assert forged["property"] >= 5_000 and forged["repair"] >= 5_000


@pytest.mark.parametrize(("name", "count"), [("forge", "forgeries"), ("fuzz", "files")])
def test_the_committed_campaigns_found_nothing(name: str, count: str) -> None:
    log = json.loads((ROOT / "benchmarks" / "checkers" / "results" / f"{name}.json").read_text())
    assert log["wrong"] == [] and log[count] >= 20_000
    assert len(log["commit"]) == 40
