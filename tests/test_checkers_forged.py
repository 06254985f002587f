"""The independent checkers refuse forged certificates and spoiled files: small runs of the campaigns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from benchmarks.checkers import changes, forge, fuzz, table

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("of_pairs", [False, True])
def test_forged_certificates_are_refused(of_pairs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "EACH", 2)
    campaign = forge.Campaign(seed=1, of_pairs=of_pairs)
    campaign.run(80 if of_pairs else 200, tmp_path)
    found = campaign.summary()
    assert not found["wrong"], found["wrong"]
    assert found["forgeries"] == sum(found["verdicts"].values()) >= 80
    assert found["verdicts"].keys() == {"rejected", "unreadable"}
    assert all(verdicts.keys() == {"accepted"} for verdicts in found["valid"].values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_campaign_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "EACH", 2)
    monkeypatch.setattr(changes, "NETWORK", changes.NETWORK[:2])
    whole, first = forge.Campaign(seed=3), forge.Campaign(seed=3)
    whole.run(100, tmp_path)
    first.run(1, tmp_path)
    assert 0 < first.forgeries < whole.forgeries
    second = forge.Campaign(3, False, json.loads(json.dumps(first.summary())))
    second.run(100, tmp_path)
    assert second.summary() == whole.summary()


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
    forged = table.totals(json.loads((ROOT / "benchmarks" / "checkers" / "results" / "forge-pairs.json").read_text()))
    assert forged["shares"] >= 2_500 and forged["agreement"] >= 2_500


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [("forge", "forgeries", 20_000), ("forge-pairs", "forgeries", 6_000), ("fuzz", "files", 20_000)],
)
def test_the_committed_campaigns_found_nothing(name: str, count: str, least: int) -> None:
    log = json.loads((ROOT / "benchmarks" / "checkers" / "results" / f"{name}.json").read_text())
    assert log["wrong"] == [] and log[count] >= least
    assert len(log["commit"]) == 40
