"""Small networks of usual kinds, in every operator set: read, and repaired in place, as onnxruntime runs them.

`NETWORKS` are written by hand, as exporters wrote them in that operator set; `python -m benchmarks.readers.opsets` adds
what torch's two exporters write, and measures what is missing in results/opsets.json.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import nnrepair
from benchmarks import measure
from benchmarks.readers.exports import exported
from benchmarks.readers.truth import session
from nnrepair import onnx as loader
from nnrepair.errors import NNRepairError, first_line
from nnrepair.methods import MinimalNorm, OnGrid

RESULTS = Path(__file__).parent / "results" / "opsets.json"
OPSETS = range(7, 23)
#: The first that torch's newer exporter writes.
DYNAMO = 18
#: What onnxruntime and the reader may differ by, relative to the largest output.
NEAR, NEAR_HALF = 1e-5, 5e-3
EDITS, KEPT = 2, 12
#: What is asked of scores that are stored in float16: their neighbours are this far apart.
HALF_MARGIN = 0.02


class Drawn:
    """A graph while it is written, in the forms that operators have in an operator set."""

    def __init__(self, opset: int) -> None:
        self.opset, self.rng = opset, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[TensorProto] = []

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def store(self, array: Any) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, kind: Any = np.float32) -> str:
        return self.store((self.rng.normal(size=shape) / max(1, np.sqrt(shape[-1]))).astype(kind))

    def given(self, since: int, op: str, x: str, more: Any, name: str, **attributes: Any) -> str:
        """Add a node whose integers are an input since an operator set, and an attribute before."""
        if self.opset < since:
            return self(op, x, **{name: more}, **attributes)
        return self(op, x, self.store(np.array(more, np.int64)), **attributes)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self("Gemm", x, self.weight(outputs, inputs), self.weight(outputs), transB=1)

    def norm(self, x: str, channels: int) -> str:
        parts = [self.rng.normal(size=channels) for _ in range(3)] + [self.rng.random(channels) + 0.5]
        return self("BatchNormalization", x, *(self.store(part.astype(np.float32)) for part in parts))

    def dropout(self, x: str) -> str:
        return self("Dropout", x, ratio=0.5) if self.opset < 12 else self("Dropout", x, self.store(np.float32(0.5)))

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self("Clip", x, min=low, max=high)
        return self("Clip", x, self.store(np.float32(low)), self.store(np.float32(high)))

    def doubled(self, x: str) -> str:
        """Resize an image to twice its size."""
        scales = np.array([1, 1, 2, 2], np.float32)
        if self.opset < 9:
            return self("Upsample", x, scales=scales.tolist(), mode="nearest")
        if self.opset < 11:
            return self("Upsample" if self.opset == 9 else "Resize", x, self.store(scales), mode="linear")
        return (
            self("Resize", x, "", self.store(scales), mode="linear")
            if self.opset >= 13
            else self("Resize", x, self.store(np.zeros(0, np.float32)), self.store(scales), mode="linear")
        )


Network = Callable[[Drawn, str], str]


def mlp(d: Drawn, x: str) -> str:
    h = d.clip(d.norm(d.linear(x, 6, 16), 16), 0.0, 6.0)
    return d.linear(d("LeakyRelu", d.dropout(h), alpha=0.1), 16, 4)


def cnn(d: Drawn, x: str) -> str:
    h = d("Conv", x, d.weight(8, 2, 3, 3), d.weight(8), kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    h = d("MaxPool", d("Relu", d.norm(h, 8)), kernel_shape=[2, 2], strides=[2, 2])
    h = d.given(11, "Pad", h, [0, 0, 1, 1, 0, 0, 1, 1], "pads")
    h = d("Relu", d("Conv", h, d.weight(8, 4, 3, 3), group=2))
    h = d("AveragePool", h, kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)
    return d.linear(d("Flatten", d("GlobalAveragePool", h)), 8, 4)


def recurrent(kind: str, gates: int) -> Network:
    def network(d: Drawn, x: str) -> str:
        steps = d("Transpose", x, perm=[1, 0, 2])
        weights = d.weight(2, gates * 5, 6), d.weight(2, gates * 5, 5), d.weight(2, 2 * gates * 5)
        y = d(kind, steps, *weights, hidden_size=5, direction="bidirectional")
        if d.opset < 10:
            last = d("Slice", y, starts=[-1], ends=[2**31 - 1], axes=[0])
        else:
            last = d("Slice", y, *(d.store(np.array([k], np.int64)) for k in (-1, 2**31 - 1, 0)))
        last = d.given(13, "Squeeze", last, [0], "axes")
        rows = d("Reshape", d("Transpose", last, perm=[1, 0, 2]), d.store(np.array([0, 10], np.int64)))
        return d.linear(rows, 10, 4)

    return network


def attention(d: Drawn, x: str) -> str:
    q, k, v = (d("Add", d("MatMul", x, d.weight(6, 8)), d.weight(8)) for _ in range(3))
    q, v = (d("Transpose", d("Reshape", t, d.store(np.array([0, 4, 2, 4]))), perm=[0, 2, 1, 3]) for t in (q, v))
    k = d("Transpose", d("Reshape", k, d.store(np.array([0, 4, 2, 4]))), perm=[0, 2, 3, 1])
    share = d("Softmax", d("Div", d("MatMul", q, k), d.store(np.float32(2))), axis=3)
    h = d("Reshape", d("Transpose", d("MatMul", share, v), perm=[0, 2, 1, 3]), d.store(np.array([0, 4, 8])))
    scale, shift = d.weight(8), d.weight(8)
    if d.opset >= 17:
        h = d("LayerNormalization", h, scale, shift, axis=-1)
    else:
        h = d("Sub", h, d("ReduceMean", h, axes=[-1 if d.opset >= 11 else 2]))
        square = d("ReduceMean", d("Pow", h, d.store(np.float32(2))), axes=[-1 if d.opset >= 11 else 2])
        h = d("Div", h, d("Sqrt", d("Add", square, d.store(np.float32(1e-5)))))
        h = d("Add", d("Mul", h, scale), shift)
    h = d("Mul", h, d("Sigmoid", h)) if d.opset < 20 else d("Gelu", h)
    return d.linear(d.given(18, "ReduceMean", h, [1], "axes", keepdims=0), 8, 4)


def resized(d: Drawn, x: str) -> str:
    h = d("Relu", d("Conv", x, d.weight(4, 2, 3, 3), pads=[1] * 4, strides=[2, 2]))
    y = d("ConvTranspose", h, d.weight(4, 4, 2, 2), strides=[2, 2])
    h = d("Relu", d("Concat", y, d.doubled(h), axis=1))
    return d.linear(d("Flatten", h), 8 * 36, 4)


def half(d: Drawn, x: str) -> str:
    h = d("Cast", d("Relu", d.linear(x, 6, 16)), to=TensorProto.FLOAT16)
    y = d("Add", d("MatMul", h, d.weight(16, 4, kind=np.float16)), d.weight(4, kind=np.float16))
    return d("Cast", y, to=TensorProto.FLOAT)


def quantised(d: Drawn, x: str) -> str:
    scale, zero = d.store(np.float32(0.05)), d.store(np.uint8(0))
    h = d("DequantizeLinear", d("QuantizeLinear", d("Relu", d.linear(x, 6, 32)), scale, zero), scale, zero)
    table = d.store(d.rng.integers(-90, 90, (32, 4)).astype(np.int8))
    weight = d("DequantizeLinear", table, d.store(np.float32(0.01)), d.store(np.int8(0)))
    return d("Add", d("MatMul", h, weight), d.weight(4))


@dataclass(frozen=True)
class Kind:
    """A network, the shape of one point, the first operator set that can say it, and how near outputs are."""

    network: Network
    shape: tuple[int, ...]
    since: int = 7
    near: float = NEAR


NETWORKS: dict[str, Kind] = {
    "MLP": Kind(mlp, (6,)),
    "CNN": Kind(cnn, (2, 6, 6)),
    "LSTM": Kind(recurrent("LSTM", 4), (4, 6)),
    "GRU": Kind(recurrent("GRU", 3), (4, 6)),
    "attention": Kind(attention, (4, 6)),
    "resized": Kind(resized, (2, 6, 6)),
    "float16 head": Kind(half, (6,), near=NEAR_HALF),
    "8-bit head": Kind(quantised, (6,), since=10),
}


def written(kind: Kind, opset: int) -> onnx.ModelProto:
    """Return a network in an operator set."""
    d = Drawn(opset)
    y = kind.network(d, "x")
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", *kind.shape)),
        helper.make_tensor_value_info(y, TensorProto.FLOAT, ("n", 4)),
    ]
    graph = helper.make_graph(d.nodes, "network", ends[:1], ends[1:], d.stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(proto)
    return proto


def run(proto: onnx.ModelProto, x: Tensor) -> Tensor:
    """Return what onnxruntime computes."""
    name = proto.graph.input[0].name
    return torch.from_numpy(session(proto).run(None, {name: x.numpy()})[0])


def difference(path: Path, proto: onnx.ModelProto, x: Tensor) -> float:
    """Return how far the file as a module is from onnxruntime, relative to the largest output."""
    wanted = run(proto, x)
    with torch.no_grad():
        made = loader.load(path)(x)
    return float((made - wanted).abs().max() / wanted.abs().max()) if made.shape == wanted.shape else float("inf")


def repaired(path: Path, x: Tensor) -> tuple[int, int]:
    """Ask for the second best answer to some points in place; return how many hold, and how many others stayed."""
    model = loader.in_place(path)
    with torch.no_grad():
        labels = model(x[:EDITS]).topk(2, 1).indices[:, 1]
    method: Any = MinimalNorm(layer=model.layer, margin=HALF_MARGIN)
    before = run(onnx.load(path), x[EDITS:]).argmax(1)
    result = nnrepair.fix(
        model, (x[:EDITS], labels), x[EDITS:], method=OnGrid(method) if model.grids else method, throw=False
    )
    with tempfile.TemporaryDirectory() as folder:
        after = onnx.load(result.model.save(Path(folder) / "repaired.onnx"))
    hold, stay = run(after, x[:EDITS]).argmax(1) == labels, run(after, x[EDITS:]).argmax(1) == before
    return int(hold.sum()), int(stay.sum())


def points(shape: tuple[int, ...], kind: torch.dtype = torch.float32) -> Tensor:
    """Return (EDITS + KEPT, *shape) points; whole numbers are tokens."""
    draw = torch.Generator().manual_seed(1)
    if not kind.is_floating_point:
        return torch.randint(0, 20, (EDITS + KEPT, *shape), generator=draw)
    return torch.randn(EDITS + KEPT, *shape, generator=draw)


# What torch writes --------------------------------------------------------------------------------------------------


class Last(nn.Module):
    """A recurrent layer in both directions, and a linear layer on its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(6, 5, batch_first=True, bidirectional=True), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x)[0][:, -1])
        return y


class Attending(nn.Module):
    """One layer of a transformer, and the average over its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, activation="gelu")
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x).mean(1))
        return y


class Short(nn.Module):
    """A linear layer in float16 behind one in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 4).half()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.body(x)).half()).float()
        return y


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU6(), nn.Dropout(), nn.Linear(16, 4))


def _cnn() -> nn.Module:
    body = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2, groups=2)
    return nn.Sequential(*body, nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def _resized() -> nn.Module:
    body = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(*body, nn.ConvTranspose2d(4, 4, 2, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(576, 4))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (_mlp, (6,)),
    "CNN": (_cnn, (2, 6, 6)),
    "LSTM": (lambda: Last(nn.LSTM), (4, 6)),
    "GRU": (lambda: Last(nn.GRU), (4, 6)),
    "attention": (Attending, (4, 8)),
    "resized": (_resized, (2, 6, 6)),
    "float16 head": (Short, (6,)),
}


def row(writer: str, name: str, opset: int) -> dict[str, Any]:
    """Write a network, read it, and repair it in place."""
    if writer == "hand":
        shape, near = NETWORKS[name].shape, NETWORKS[name].near
        proto = written(NETWORKS[name], opset)
    else:
        torch.manual_seed(0)
        make, shape = MODULES[name]
        near = NEAR_HALF if name == "float16 head" else NEAR
        try:
            proto = onnx.ModelProto.FromString(exported(make().eval(), (points(shape)[:3],), writer == "dynamo", opset))
        except Exception as error:  # the exporters raise many kinds
            return {"outcome": "not exported", "why": f"{type(error).__name__}: {first_line(error)}"[:200]}
    found: dict[str, Any] = {"opset": next(o.version for o in proto.opset_import if o.domain == "")}
    x = points(shape)
    try:
        run(proto, x)
    except Exception as error:  # onnxruntime raises many kinds
        return found | {"outcome": "not run by onnxruntime", "why": first_line(error)[:200]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            found["difference"] = difference(path, proto, x)
            found["hold"], found["stay"] = repaired(path, x)
        except NNRepairError as error:
            return found | {"outcome": "refused", "why": str(error).replace(folder, "")[:200]}
    right = found["difference"] <= near and (found["hold"], found["stay"]) == (EDITS, KEPT)
    return found | {"outcome": "right" if right else "wrong"}


def cases() -> list[tuple[str, str, int]]:
    """Return everything that is measured: who writes, which network, in which operator set."""
    by_hand = [("hand", name, opset) for name, kind in NETWORKS.items() for opset in OPSETS if opset >= kind.since]
    script = [("script", name, opset) for name in MODULES for opset in OPSETS]
    return by_hand + script + [("dynamo", name, opset) for name in MODULES for opset in OPSETS if opset >= DYNAMO]


def main() -> None:
    torch.set_num_threads(1)
    rows = measure.load(RESULTS)
    done = {(each["writer"], each["name"], each["asked"]) for each in rows}
    for writer, name, opset in cases():
        if (writer, name, opset) not in done:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = row(writer, name, opset)
            about = {
                "writer": writer,
                "name": name,
                "asked": opset,
                "edits": EDITS,
                "kept": KEPT,
                "seed": 0,
                "commit": measure.commit(),
            }
            rows.append(about | made)
            measure.save(RESULTS, rows, "small networks in every operator set, read and repaired in place")
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
