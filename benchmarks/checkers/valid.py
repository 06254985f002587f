"""Small networks of every kind, with repair and property certificates that are right: what forgeries start from.

Gradients come from the checker itself; that the certificates are right is confirmed by truth.py, which knows nothing of
it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper
from scipy.optimize import linprog, nnls

VERIFICATION = Path(__file__).resolve().parents[2] / "verification"
sys.path.insert(0, str(VERIFICATION))
import check  # noqa: E402
import minimality  # noqa: E402

Array = np.ndarray
NORMS = ("l1", "linf", "l2", "mean+max", "drift", "nuclear")
MARGIN = 0.02


@dataclass
class Repair:
    """A repair certificate with its files, as they would be written."""

    kind: str
    base: ModelProto
    repaired: ModelProto | None
    meta: dict[str, Any]
    arrays: dict[str, Array]
    #: Changes of the archive's bytes, of which the arrays know nothing.
    archive: Callable[[bytes], bytes] = field(default=lambda data: data)

    def copy(self) -> Repair:
        return copy.deepcopy(self)

    @property
    def networks(self) -> list[ModelProto]:
        return [self.base] if self.repaired is None else [self.base, self.repaired]

    def write(self, folder: Path) -> list[str]:
        """Write the files and give the arguments of the checker."""
        meta = np.frombuffer(json.dumps(self.meta).encode(), np.uint8)
        np.savez(folder / "cert.npz", meta=meta, **self.arrays)
        (folder / "cert.npz").write_bytes(self.archive((folder / "cert.npz").read_bytes()))
        arguments = [str(folder / "cert.npz")]
        for name, proto in zip(("base.onnx", "repaired.onnx"), self.networks, strict=False):
            (folder / name).write_bytes(proto.SerializeToString())
            arguments += ["--repaired"] * (name[0] == "r") + [str(folder / name)]
        return arguments


class Builder:
    """A graph, node by node; what has a default is left out or written out, at random."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], opset: int) -> None:
        self.rng, self.shape, self.opset = rng, shape, opset
        self.dtype: Any = np.float32
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan = math.prod(shape[1:]) or 1
        return self.constant(name, (self.rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        defaults = {k: v for k, v in attributes.items() if k.startswith("_")}
        given = {k: v for k, v in attributes.items() if not k.startswith("_")}
        given |= {k[1:]: v for k, v in defaults.items() if self.rng.random() < 0.5}
        self.nodes.append(helper.make_node(op, inputs, [f"v{len(self.nodes)}"], **given))
        return f"v{len(self.nodes) - 1}"

    def linear(self, name: str, x: str, inputs: int, outputs: int, form: str) -> str:
        """Add a layer as Gemm or MatMul, with or without a bias."""
        turned = form == "transposed"
        w = self.weight(f"{name}.weight", *((outputs, inputs) if turned else (inputs, outputs)))
        b = self.weight(f"{name}.bias", outputs)
        if form == "matmul":
            return self.add("Add", self.add("MatMul", x, w), b)
        return self.add("Gemm", x, w, b, **({"transB": 1} if turned else {"_transB": 0}), _alpha=1.0, _beta=1.0)

    def model(self, outputs: int) -> ModelProto:
        batch = "n" if self.rng.random() < 0.7 else 1
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        source = helper.make_tensor_value_info("x", kind, [batch, *self.shape])
        sink = helper.make_tensor_value_info(self.nodes[-1].output[0], kind, [batch, outputs])
        stored = {k: v.astype(self.dtype) if v.dtype.kind == "f" else v for k, v in self.constants.items()}
        tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
        graph = helper.make_graph(self.nodes, "net", [source], [sink], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def _mlp(rng: np.random.Generator) -> tuple[Builder, str]:
    form = str(rng.choice(["plain", "transposed", "matmul"]))
    b = Builder(rng, (4,), int(rng.choice([7, 9, 11, 13, 17, 21])))
    h = b.add("Relu", b.linear("fc1", "x", 4, 5, form))
    b.linear("fc2", h, 5, 3, form)
    return b, str(rng.choice(["fc1", "fc2"]))


def _image(rng: np.random.Generator, opset: int) -> Builder:
    return Builder(rng, (1, 5, 5), opset)


def _pools(rng: np.random.Generator) -> tuple[Builder, str]:
    b = _image(rng, int(rng.choice([12, 13, 19, 22])))
    conv = b.add("Conv", "x", b.weight("conv.weight", 2, 1, 2, 2), b.weight("conv.bias", 2), _strides=[1, 1], _group=1)
    h = b.add("MaxPool", b.add("Relu", conv), kernel_shape=[2, 2], _ceil_mode=0, _strides=[1, 1], _dilations=[1, 1])
    h = b.add("AveragePool", h, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 0, 1], _count_include_pad=0)
    b.linear("fc", b.add("Flatten", h, _axis=1), 8, 3, str(rng.choice(["plain", "transposed"])))
    return b, str(rng.choice(["conv", "fc"]))


def _affine(rng: np.random.Generator) -> tuple[Builder, str]:
    b = _image(rng, int(rng.choice([11, 13, 18])))
    pads = {"pads": [1, 0, 1, 0]}
    conv = b.add("Conv", "x", b.weight("conv.weight", 2, 1, 3, 2), b.weight("conv.bias", 2), **pads, _dilations=[1, 1])
    h = b.add("AveragePool", conv, kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1)
    shape = b.constant("to", np.array([int(rng.choice([0, -1])), 8]))
    b.linear("fc", b.add("Reshape", h, shape), 8, 3, "plain")
    return b, "conv"


def _norm(rng: np.random.Generator) -> tuple[Builder, str]:
    opset = int(rng.choice([13, 17, 18, 20]))
    b = _image(rng, opset)
    conv = b.add("Conv", "x", b.weight("conv.weight", 3, 1, 3, 3), b.weight("conv.bias", 3), pads=[1] * 4)
    parts = [b.weight(f"bn.{k}", 3) for k in ("scale", "shift", "mean")]
    parts.append(b.constant("bn.var", rng.uniform(0.1, 2, 3).astype(np.float32)))
    h = b.add("Relu", b.add("BatchNormalization", conv, *parts, _epsilon=1e-5, _momentum=0.9))
    if opset < 18:
        h = b.add("ReduceMean", h, axes=[2, 3], keepdims=0)
    else:
        h = b.add("ReduceMean", h, b.constant("axes", np.array([2, 3])), keepdims=0, _noop_with_empty_axes=0)
    b.linear("fc", h, 3, 3, str(rng.choice(["plain", "matmul"])))
    return b, str(rng.choice(["conv", "fc"]))


def _turned(rng: np.random.Generator) -> tuple[Builder, str]:
    size = int(rng.choice([2, 3]))
    b, perm = Builder(rng, (size, 2), int(rng.choice([9, 13, 20]))), [[0, 2, 1], [0, 1, 2]][int(rng.integers(2))]
    rows, inputs = (2, size) if perm[1] == 2 else (size, 2)
    h = b.add("MatMul", b.add("Transpose", "x", perm=perm), b.weight("rows.weight", inputs, 2))
    h = b.add("Relu", b.add("Add", h, b.weight("rows.bias", 2)))
    h = b.add("Reshape", h, b.constant("to", np.array([-1, 2 * rows])))
    b.linear("fc", b.add("Identity", h), 2 * rows, 3, "transposed")
    return b, str(rng.choice(["rows", "fc"]))


def _mirrored(rng: np.random.Generator) -> tuple[Builder, str]:
    """A shape that is the same from behind, with a batch of one."""
    b = Builder(rng, (2, 2, 1), int(rng.choice([8, 13, 21])))
    h = b.add("Flatten", b.add("Transpose", "x", perm=[0, 1, 2, 3]), _axis=1)
    h = b.add("Relu", b.linear("fc1", h, 4, 4, "matmul"))
    b.linear("fc2", h, 4, 3, "plain")
    return b, str(rng.choice(["fc1", "fc2"]))


def _one_channel(rng: np.random.Generator) -> tuple[Builder, str]:
    """Averages that are the same over the image and over everything, with a batch of one."""
    opset = int(rng.choice([11, 13, 18, 20]))
    b = Builder(rng, (1, 4, 4), opset)
    h = b.add("Conv", "x", b.weight("conv.weight", 1, 1, 2, 2), b.weight("conv.bias", 1))
    axes = [b.constant("axes", np.array([2, 3]))] if opset >= 18 else []
    h = b.add("ReduceMean", b.add("Relu", h), *axes, **({} if axes else {"axes": [2, 3]}), _keepdims=1)
    h = b.add("Relu", b.linear("fc1", b.add("Flatten", h), 1, 3, "transposed"))
    b.linear("fc2", h, 3, 3, "plain")
    return b, str(rng.choice(["fc1", "fc2"]))


def _residual(rng: np.random.Generator) -> tuple[Builder, str]:
    b = _image(rng, int(rng.choice([11, 14, 18])))
    first = b.add("Conv", "x", b.weight("first.weight", 2, 1, 3, 3), b.weight("first.bias", 2), pads=[1] * 4)
    first = b.add("Relu", first)
    second = b.add("Conv", first, b.weight("second.weight", 2, 2, 3, 3), b.weight("second.bias", 2), pads=[1] * 4)
    h = b.add("Sub", b.add("Relu", b.add("Add", first, second)), b.weight("plane", 2, 5, 1))
    b.linear("fc", b.add("Flatten", b.add("GlobalAveragePool", h), _axis=1), 2, 3, "plain")
    return b, str(rng.choice(["second", "fc"]))


def _chain(rng: np.random.Generator) -> tuple[Builder, str]:
    b = Builder(rng, (2, 2), int(rng.choice([7, 10, 13, 14, 19, 21])))
    h = b.add("Reshape", "x", b.constant("to", np.array([int(rng.choice([0, -1])), 4])))
    h = b.add("Identity", b.add("Relu", b.linear("fc1", h, 4, 4, "transposed")))
    h = b.add("Add", b.weight("step", 1, 4), h)
    h = b.add("Relu", b.linear("fc2", h, 4, 3, "matmul"))
    b.linear("fc3", h, 3, 3, "plain")
    return b, str(rng.choice(["fc2", "fc3"]))


def _shifted(rng: np.random.Generator) -> tuple[Builder, str]:
    b = Builder(rng, (1, 1, 4), int(rng.choice([8, 13])))
    h = b.add("Flatten", b.add("Sub", "x", b.weight("mean", 1, 1, 1, 4)), _axis=1)
    h = b.add("Relu", b.linear("fc1", h, 4, 4, "matmul"))
    b.linear("fc2", h, 4, 3, "matmul")
    return b, "fc2"


def _summed(rng: np.random.Generator) -> tuple[Builder, str]:
    """Values that are added to later ones, the largest of windows, and averages of four."""
    b = Builder(rng, (1, 4, 4), int(rng.choice([11, 14, 18])))
    first = b.add("Conv", "x", b.weight("first.weight", 2, 1, 3, 3), b.weight("first.bias", 2), pads=[1] * 4)
    h = b.add("Conv", b.add("Relu", first), b.weight("conv.weight", 2, 2, 1, 1), b.weight("conv.bias", 2))
    h = b.add("MaxPool", b.add("Relu", b.add("Add", h, first)), kernel_shape=[2, 2], strides=[2, 2])
    b.linear("fc", b.add("Flatten", b.add("GlobalAveragePool", h), _axis=1), 2, 3, "plain")
    return b, "fc"


KINDS: dict[str, Callable[[np.random.Generator], tuple[Builder, str]]] = {
    "mlp": _mlp,
    "pools": _pools,
    "affine tail": _affine,
    "batch norm": _norm,
    "transpose": _turned,
    "mirrored": _mirrored,
    "one channel": _one_channel,
    "residual": _residual,
    "chain": _chain,
    "shifted": _shifted,
    "summed": _summed,
}


# The smallest change -------------------------------------------------------------------------------------------------


def size_of(norm: str, d: Array, metric: Array | None) -> float:
    """Give the norm of a matrix, in plain float64."""
    if norm == "drift":
        return float(np.sqrt(np.trace(d @ metric @ d.T)))
    if norm == "nuclear":
        return float(np.linalg.norm(d, "nuc"))
    a = np.abs(d)
    return float({"l1": a.sum(), "linf": a.max(), "l2": np.sqrt((a**2).sum()), "mean+max": a.mean() + a.max()}[norm])


def dual_size(norm: str, z: Array, metric: Array | None) -> float:
    """Give the dual norm of a matrix, in plain float64."""
    if norm == "drift":
        return float(np.sqrt(np.trace(z @ np.linalg.solve(metric, z.T))))
    if norm == "nuclear":
        return float(np.linalg.norm(z, 2))
    a = np.sort(np.abs(z).ravel())[::-1]
    largest = (a.cumsum() / (1 + np.arange(1, a.size + 1) / a.size)).max()
    return float({"l1": a[0], "linf": a.sum(), "l2": np.sqrt((a**2).sum()), "mean+max": largest}[norm])


def smallest(norm: str, g: Array, h: Array, metric: Array | None) -> tuple[Array, Array] | None:
    """Give d with g d >= h (rows r, matrices) and multipliers; for "nuclear" some d, not the smallest."""
    rows, m, n = g.reshape(len(g), -1), len(g), g[0].size
    if norm in ("l1", "linf", "mean+max"):  # d = p - q, p + q <= t for the largest t
        one = {"l1": (1.0, 0.0), "linf": (0.0, 1.0), "mean+max": (1 / n, 1.0)}[norm]
        cost = np.concatenate([np.full(2 * n, one[0]), [one[1]]])
        most = np.hstack([np.eye(n), np.eye(n), -np.ones((n, 1))])
        some = np.vstack([np.hstack([-rows, rows, np.zeros((m, 1))]), most])
        found = linprog(cost, some, np.concatenate([-h, np.zeros(n)]))
        if found.status != 0:
            return None
        return (found.x[:n] - found.x[n : 2 * n]).reshape(g.shape[1:]), np.maximum(-found.ineqlin.marginals[:m], 0)
    root = np.linalg.inv(np.linalg.cholesky(metric)).T if norm == "drift" else np.eye(g.shape[-1])
    white = (g @ root).reshape(m, -1)
    # Least distance programming: nonnegative least squares of [white^T; h^T] u = (0, 1).
    scale = np.abs(h).max()
    u, rest = nnls(np.vstack([white.T, h / scale]), np.append(np.zeros(n), 1.0), maxiter=1000)
    last = 1 - h @ u / scale
    if rest < 1e-6 or last < 1e-9:
        return None
    d = (white.T @ u).reshape(g.shape[1:]) / last * scale
    return d @ root.T, u


def repair(rng: np.random.Generator, kind: str, norm: str, edits: str) -> Repair:
    """Give a valid certificate; `edits` is "labels", "lowest" or "conditions"."""
    while True:
        builder, layer = KINDS[kind](rng)
        if rng.random() < 0.2 and all(node.op_type != "Conv" for node in builder.nodes):
            builder.dtype = np.float64  # onnxruntime has no such convolutions
        made = _solved(rng, kind, builder, layer, norm, edits)
        if made is not None:
            return made


def _solved(rng: np.random.Generator, kind: str, builder: Builder, layer: str, norm: str, edits: str) -> Repair | None:
    proto, count = builder.model(3), 3
    network = minimality.Network(proto.SerializeToString())
    names = [f"{layer}.weight", f"{layer}.bias"]
    found = minimality.Layer(network, *names)
    architecture = "same" if found.affine else "decoupled"
    x = rng.normal(size=(count, *builder.shape)).astype(np.float32)
    values, pullbacks = network.run(x.astype(float))
    y = values[network.output].mid
    sign = -1.0 if edits == "lowest" else 1.0
    labels = (sign * y).argsort(1)[:, -2]
    point = np.repeat(np.arange(count), 2)
    rows = sign * np.concatenate([np.eye(3)[label] - np.delete(np.eye(3), label, 0) for label in labels])
    gradients = []
    for i in range(2):  # as many backward passes as a point has rows
        p, inputs = found.slopes(values, pullbacks, rows[i::2])
        gradients.append(np.einsum("npo,npi->noi", p.mid, inputs.mid))
    g = np.stack(gradients, 1).reshape(2 * count, *found.shape)
    bounds = np.full(len(rows), MARGIN)
    h = bounds - (rows * y[point]).sum(1)
    root = rng.normal(size=(found.shape[1],) * 2)
    metric = root @ root.T + 0.1 * np.eye(len(root)) if norm == "drift" else None
    metric = None if metric is None else (metric + metric.T) / 2
    solution = smallest(norm, g, h, metric)
    if solution is None:
        return None
    d, u = solution
    z = np.einsum("r,rij->ij", u, g)
    dual = dual_size(norm, z, metric)
    if not dual > 1e-6 or not size_of(norm, d, metric) < 100:
        return None
    arrays: dict[str, Array] = {
        "points": x,
        "row_point": point,
        "row_A": rows,
        "row_b": bounds,
        "row_multiplier": u,
        "edit_point": np.arange(count),
        "delta_weight": d[:, :-1].reshape(found.torch_shapes[0]),
        "delta_bias": d[:, -1].copy(),
    }
    arrays |= {} if metric is None else {"metric": metric}
    if edits == "conditions":
        arrays |= {"edit_A": rows.reshape(count, 2, 3), "edit_b": bounds.reshape(count, 2) - MARGIN / 2}
    else:
        arrays |= {"edit_label": labels}
    meta = {
        "format": "nnrepair-minimality-1",
        "weight": names[0],
        "bias": names[1],
        "norm": norm,
        "architecture": architecture,
        "lower_bound": float(h @ u / dual),
        "objective": size_of(norm, d, metric) * (1 + 1e-7),
        "margin": MARGIN / 4,
        "lowest": edits == "lowest",
    }
    repaired = None
    if architecture == "same":
        repaired = copy.deepcopy(proto)
        change = arrays["delta_weight"]
        for tensor in repaired.graph.initializer:
            if tensor.name in names:
                old = numpy_helper.to_array(tensor)
                new = arrays["delta_bias"] if tensor.name == names[1] else change
                new = new.T if new.shape != old.shape or (new.ndim == 2 and not turned(proto, names[0])) else new
                tensor.CopyFrom(numpy_helper.from_array((old + new).astype(old.dtype), tensor.name))
    return Repair(kind, proto, repaired, meta, arrays)


def turned(proto: ModelProto, weight: str) -> bool:
    """Tell whether a layer stores its weight as (outputs, inputs)."""
    (node,) = (n for n in proto.graph.node if weight in n.input)
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


# Properties ----------------------------------------------------------------------------------------------------------


@dataclass
class Proof:
    """A property certificate with its files; `write` makes its hashes right unless they are given."""

    kind: str
    network: ModelProto
    lower: list[float]
    upper: list[float]
    #: Each unsafe set: rows (a, b) with a . y + b <= 0.
    unsafe: list[list[tuple[list[float], float]]]
    dim: Array
    cut: Array
    meta: dict[str, Any]
    text: Callable[[str], str] = field(default=lambda text: text)
    archive: Callable[[bytes], bytes] = field(default=lambda data: data)

    def copy(self) -> Proof:
        return copy.deepcopy(self)

    @property
    def networks(self) -> list[ModelProto]:
        return [self.network]

    def property(self) -> str:
        lines = [f"(declare-const X_{i} Real)" for i in range(len(self.lower))]
        lines += [f"(declare-const Y_{i} Real)" for i in range(len(self.unsafe[0][0][0]))]
        for i, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            lines += [f"(assert (>= X_{i} {low!r}))", f"(assert (<= X_{i} {high!r}))"]
        sets = []
        for rows in self.unsafe:
            terms = [" ".join(f"(* {a!r} Y_{i})" for i, a in enumerate(row)) for row, _ in rows]
            parts = [f"(<= (+ {term}) {-b!r})" for term, (_, b) in zip(terms, rows, strict=True)]
            sets.append(f"(and {' '.join(parts)})")
        return self.text("\n".join([*lines, f"(assert (or {' '.join(sets)}))", ""]))

    def write(self, folder: Path) -> list[str]:
        """Write the files and give the arguments of the checker."""
        paths = [folder / name for name in ("cert.npz", "base.onnx", "property.vnnlib")]
        paths[1].write_bytes(self.network.SerializeToString())
        paths[2].write_text(self.property())
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths[1:]]
        meta = {"format": "nnrepair-property-1", "trees": len(self.unsafe), "nodes": len(self.dim)}
        meta |= {"network_sha256": digests[0], "property_sha256": digests[1], **self.meta}
        np.savez(paths[0], meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), dim=self.dim, cut=self.cut)
        paths[0].write_bytes(self.archive(paths[0].read_bytes()))
        return [str(path) for path in paths]


def tree(rng: np.random.Generator, lower: Array, upper: Array, depth: int) -> tuple[list[int], list[float]]:
    """Halve a box at random edges: a whole tree in preorder."""
    if depth == 0:
        return [-1], []
    axis, high, low = int(rng.integers(len(lower))), upper.copy(), lower.copy()
    middle = float((lower[axis] + upper[axis]) / 2)
    high[axis] = low[axis] = middle
    halves = [tree(rng, a, b, depth - 1) for a, b in ((lower, high), (low, upper))]
    return [axis, *halves[0][0], *halves[1][0]], [middle, *halves[0][1], *halves[1][1]]


def proof(rng: np.random.Generator, kind: str) -> Proof:
    """Give a property that holds by some margin, and a certificate."""
    builder, _ = KINDS[kind](rng)
    if all(node.op_type != "Conv" for node in builder.nodes):  # onnxruntime has convolutions of float32 alone
        builder.dtype = rng.choice([np.float16, np.float32, np.float64], p=[0.2, 0.6, 0.2])
    network, size = builder.model(3), math.prod(builder.shape)
    lower = rng.uniform(-1, 0, size)
    few = size <= 4  # random points tell little of the least value over wide boxes of many inputs
    upper = lower + rng.uniform(0.2, 1, size) * (1 if few else 0.1)
    layers = check.read_network(network.SerializeToString())
    h = rng.uniform(lower, upper, (3000, size))
    for layer in layers:
        h = h @ layer.weight.T + layer.bias
        h[:, : layer.bent] = np.maximum(h[:, : layer.bent], 0)
    sets, dims, cuts = [], list[int](), list[float]()
    for _ in range(int(rng.integers(1, 3))):
        a = np.round(rng.normal(size=3), 3)
        far = float((h @ a).min()) - 0.05 - (0.1 if few else 1.0) * float(np.ptp(h @ a))
        rows = [(a.tolist(), -far)]
        if rng.random() < 0.3:  # one more that does not count
            b = np.round(rng.normal(size=3), 3)
            rows.insert(int(rng.integers(2)), (b.tolist(), -float((h @ b).max())))
        sets.append(rows)
        dim, cut = tree(rng, lower, upper, int(rng.integers(0, 4)))
        dims, cuts = dims + dim, cuts + cut
    return Proof(
        kind, network, lower.tolist(), upper.tolist(), sets, np.array(dims, np.int16), np.array(cuts, float), {}
    )
