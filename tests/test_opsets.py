"""Usual networks in every operator set: read as onnxruntime runs them, and repaired in place."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torchvision")
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.readers import opsets

#: Operator sets in which networks are repaired, too.
TURNS = (7, 11, 18, 22)


@pytest.mark.parametrize("name", opsets.NETWORKS)
def test_networks_of_every_operator_set(name: str, tmp_path: Path) -> None:
    kind, path = opsets.NETWORKS[name], tmp_path / "network.onnx"
    x = opsets.points(kind.shape)
    for opset in (opset for opset in opsets.OPSETS if opset >= kind.since):
        proto = opsets.written(kind, opset)
        onnx.save(proto, path)
        assert opsets.difference(path, proto, x) <= kind.near, opset
        if opset in TURNS:
            assert opsets.repaired(path, x) == (opsets.EDITS, opsets.KEPT), opset
