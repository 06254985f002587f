"""The benchmark of generality beside locality: its cases, and what docs make of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import figures
from benchmarks.editing import method_of
from benchmarks.experiments import save
from benchmarks.generality import run, table
from benchmarks.neighbours import beside
from nnrepair import Edits, EditScope, InvalidInput


def test_cases_are_apart_and_their_methods_exist() -> None:
    cases = [json.dumps(case) for case in run.cases()]
    assert len(set(cases)) == len(cases)
    for network in run.NETWORKS.values():
        for setting in run.settings(network):
            method = method_of(setting.method, setting.options)
            assert method.capabilities.neighbours or setting.neighbours != "wanted"
            assert setting.series in figures.SERIES


def test_neighbours_are_wanted_or_demanded() -> None:
    edits, near = Edits(torch.zeros(2, 3), [0, 1]), EditScope(torch.ones(3, 3), [1, 1, 0], of=[1, 1, 0])
    wanted, demanded = beside(edits, near, "wanted"), beside(edits, near, "demanded")
    assert wanted.neighbours is near and len(wanted) == 2 and wanted.of is None
    assert demanded.neighbours is None and len(demanded) == 2
    assert demanded.of is not None and demanded.of.tolist() == [0, 1, 1, 1, 0]
    assert demanded.criterion.labels.tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(InvalidInput, match="given 'asked'"):
        beside(edits, near, "asked")


def test_docs_are_made_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for case in run.cases():
        if case["seed"] < 2 and case["network"] != "9x100":
            shares = {"success_rate": 1.0, "generalization_rate": 0.5 + case["seed"] / 10, "locality": 0.9}
            tests = {"fog": {"points": 1, "drawdown_points": -30.0, "locality": 0.5}}
            rows.append(
                case | shares | {"drawdown_points": 0.25, "cpu_seconds": 1.0, "commit": "0" * 40, "tests": tests}
            )
    monkeypatch.setattr(table, "RESULTS", tmp_path / "rows.json")
    save(tmp_path / "rows.json", rows)
    section = table.section()
    assert "### MNIST, 3x100" in section and "9x100\n" not in section
    told = "| minimal norm, first layer | as it is | 100.0 ± 0.0 | 55.0 ± 7.1 | 30.0 ± 0.0 | 0.25 ± 0.00 | 90.0 ± 0.0 |"
    assert told in section
    assert "| minimal norm, last layer | neighbours wanted | 55, 0.25 | – | 55, 0.25 |" in table.choice()
    figures.generality(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
