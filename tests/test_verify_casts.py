"""Casts in files: roundings to shorter types are part of what is proved, whole numbers stay whole or are refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnrepair import onnx as nonnx
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.verify import Box, Case, Halfspace, Property, check
from nnrepair.verify.reading.activations.cast import Narrowed
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.intervals import outputs_over

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
KIND = onnx.TensorProto
SHORT = {torch.float16: np.float16, torch.float32: np.float32}


def file(path: Path, nodes: list[Any], kind: int, out: int, shape: tuple[Any, ...] = ("n", 1)) -> Path:
    ends = [
        onnx.helper.make_tensor_value_info("x", kind, shape),
        onnx.helper.make_tensor_value_info("y", out, None),
    ]
    graph = onnx.helper.make_graph(nodes, "casts", ends[:1], ends[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    made.graph.output[0].type.tensor_type.shape.SetInParent()
    path.write_bytes(made.SerializeToString())
    return path


def cast(read: str, written: str, to: int) -> Any:
    return onnx.helper.make_node("Cast", [read], [written], to=to)


def above(low: float, high: float, bound: float) -> Property:
    """Say that the output is above a bound for inputs within low..high."""
    row = Halfspace((Fraction(1),), Fraction(bound))
    return Property([Case(Box([low], [high]), ((row,),))], 1)


@pytest.mark.parametrize(("wide", "short"), [(KIND.FLOAT, KIND.FLOAT16), (KIND.DOUBLE, KIND.FLOAT)])
def test_a_rounding_to_a_shorter_type_is_part_of_the_network(wide: int, short: int, tmp_path: Path) -> None:
    path = file(tmp_path / "m.onnx", [cast("x", "h", short), cast("h", "y", wide)], wide, wide)
    numbers = onnx.helper.tensor_dtype_to_np_dtype(wide)
    gap = float(np.finfo(onnx.helper.tensor_dtype_to_np_dtype(short)).eps)  # from 1 to the next number
    low, bound = 1 + 0.4 * gap, 1 + 0.3 * gap  # what lies between is rounded to 1, which is below the bound
    (y,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": np.array([[low]], numbers)})
    assert y == 1 < bound < low
    found = check(path, above(low, 1 + 0.45 * gap, bound), timeout=10)
    assert found.verdict == "unknown" and found.certificate is None
    assert check(path, above(low, 1 + 0.45 * gap, 1 - 0.2 * gap), timeout=10).verdict == "holds"
    assert check(path, above(0, 2, 0.5), timeout=10).verdict == "violated"


def test_verdicts_say_where_a_run_may_jump(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Floor", ["x"], ["y"])]
    found = check(file(tmp_path / "m.onnx", nodes, KIND.FLOAT, KIND.FLOAT), above(1.5, 1.9, 0.5), timeout=10)
    assert found.verdict == "holds" and "crosses a jump (Floor)" in found.reason


def test_a_cast_to_a_longer_type_changes_nothing(tmp_path: Path) -> None:
    path = file(tmp_path / "m.onnx", [cast("x", "h", KIND.DOUBLE), cast("h", "y", KIND.FLOAT)], KIND.FLOAT, KIND.FLOAT)
    assert check(path, above(0.5, 2, 0.499), timeout=10).verdict == "holds"


@pytest.mark.parametrize("kind", SHORT)
def test_intervals_and_lines_contain_what_numbers_are_rounded_to(kind: torch.dtype) -> None:
    rng, most = np.random.default_rng(0), torch.finfo(kind).max
    z = rng.normal(size=4000) * 2.0 ** rng.integers(-40 if kind == torch.float16 else -160, 15, 4000)
    z = np.concatenate([z, [0.0, most, -most, 2048.5, 2049.0]])
    rounded = z.astype(SHORT[kind]).astype(np.float64)
    narrowed, x = Narrowed(kind), torch.from_numpy(z)
    for off in (0.0, 1e-3):
        ends = torch.stack([x * (1 - off), x * (1 + off)]).clamp(-most, most)
        low, high = ends.amin(0), ends.amax(0)
        least, most_ = narrowed.enclose(low, high)
        for value in (rounded, z):
            assert (least.numpy() <= value).all() and (value <= most_.numpy()).all()
        lines = narrowed.relax(low, high)
        assert lines.base is not None
        for value in (rounded, z):
            assert (lines.floor.numpy() * z + lines.base.numpy() <= value).all()
            assert (value <= lines.slope.numpy() * z + lines.shift.numpy()).all()
    least, most_ = narrowed.enclose(torch.tensor([0.0]).double(), torch.tensor([2.0 * most]).double())
    assert not bool(torch.isfinite(torch.cat([least, most_])).any())


def test_whole_numbers_that_a_short_type_has_stay_as_they_are() -> None:
    narrowed, x = Narrowed(torch.float16, whole=True), torch.tensor([-2048.0, 7.0, 2048.0, 2049.0]).double()
    low, high = narrowed.enclose(x, x)
    assert ((high - low)[:3] < 1e-10).all() and low[3] <= 2048 and high[3] >= 2050


def test_inputs_of_whole_numbers_are_refused_by_name(tmp_path: Path) -> None:
    path = file(tmp_path / "m.onnx", [cast("x", "y", KIND.FLOAT)], KIND.INT32, KIND.FLOAT)
    with pytest.raises(InvalidInput, match=r"The input 'x' has numbers of type int32; .*fixed=\{'x': VALUE\}"):
        check(path, above(0, 1, -1))


def test_whole_numbers_are_read_as_whole_ones(tmp_path: Path) -> None:
    halves = [onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    model = nonnx.load(file(tmp_path / "m.onnx", halves, KIND.INT32, KIND.INT32, ("n", 2)))
    assert model(torch.tensor([[0, 1]], dtype=torch.int32)).tolist() == [0]
    with pytest.raises(UnsupportedModel, match="it rounds a quotient"):
        lower(model, (2,))
    summed = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    model = nonnx.load(file(tmp_path / "m.onnx", summed, KIND.UINT8, KIND.UINT8))
    with pytest.raises(UnsupportedModel, match=r"uint8, of which large ones become others"):
        lower(model, (1,))
    model = nonnx.load(file(tmp_path / "m.onnx", summed, KIND.INT64, KIND.INT64))
    low, high = outputs_over(lower(model, (1,)), *[torch.tensor([[3.0]]).double()] * 2)
    assert low[0, 0] <= 6 <= high[0, 0] and high[0, 0] - low[0, 0] < 1e-9
