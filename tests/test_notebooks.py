"""The notebooks of docs/notebooks run from beginning to end, in an empty folder, and are committed as they ran."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
#: What they need beside the packages of the extra [demo].
PACKAGES = {"05_graphs": "torch_geometric"}
DATA = {
    "03_prove_it": ("acasxu/onnx/ACASXU_run2a_2_1_batch_2000.onnx", "acasxu/vnnlib/prop_2.vnnlib"),
    "05_graphs": ("graphs/cora_safe.npz",),
}


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, data_dir: Callable[..., Path]) -> None:
    for package in ("nbclient", "ipykernel", "matplotlib", "onnxruntime", "sklearn", PACKAGES.get(path.stem, "torch")):
        pytest.importorskip(package)
    if path.stem in DATA:
        data_dir(*DATA[path.stem])
    run = runpy.run_path(str(ROOT / "docs" / "notebooks" / "run.py"))["run"]
    made = run(path, tmp_path)  # raises at the first cell that fails
    assert [len(cell.get("outputs", ())) > 0 for cell in made.cells] == [bool(c.get("outputs")) for c in cells(path)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran(path: Path) -> None:
    assert path.stat().st_size < 200_000
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert "/tmp/" not in path.read_text() and str(ROOT) not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_questions(path: Path) -> None:
    text = "".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown")
    assert text.count("**Question") >= 5
