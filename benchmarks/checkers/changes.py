"""One change to a file: of a network, of a repair certificate, of a property certificate.

Each takes a random generator and what it changes, in place, and returns False where it does not apply. What a change
makes of a network is for truth.py to find out. `MUST` and `PROOF_MUST` are changes after which files contradict each
other, or are none at all: to accept them would be wrong whatever is true.
"""

from __future__ import annotations

import copy
import hashlib
import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.defs
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.checkers.valid import Proof, Repair, proof

Rng = np.random.Generator
Change = Callable[[Rng, Any], Any]


def pick(rng: Rng, options: Any) -> Any:
    options = list(options)
    return options[int(rng.integers(len(options)))] if options else None


# Networks ------------------------------------------------------------------------------------------------------------

VALUES: dict[str, list[Any]] = {
    "axis": [0, 2, -1, 3],
    "broadcast": [1],
    "perm": [[0], [1, 0], [1, 0, 2], [2, 1, 0], [0, 2, 1], [0, 1, 2], [0, 1, 1]],
    "axes": [[0], [1], [2], [3], [0, 2], [1, 2, 3], [0, 2, 3], [-1], [-1, -2], []],
    "alpha": [0.5, -1.0],
    "beta": [0.0, 2.0],
    "transA": [1],
    "transB": [0, 1],
    "group": [2, 3, 0],
    "strides": [[2, 1], [1, 2], [2, 2], [3, 3], [0, 1]],
    "dilations": [[2, 1], [1, 2], [2, 2], [0, 0]],
    "kernel_shape": [[1, 1], [2, 1], [1, 2], [3, 3], [2, 2], [4, 4], [2]],
    "pads": [[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [2, 2, 2, 2], [1, 1]],
    "auto_pad": ["SAME_UPPER", "SAME_LOWER", "VALID"],
    "ceil_mode": [1],
    "count_include_pad": [0, 1],
    "storage_order": [1],
    "spatial": [0],
    "training_mode": [1],
    "epsilon": [0.5, 0.0, -0.5, 1e-3],
    "momentum": [0.1],
    "noop_with_empty_axes": [1],
    "keepdims": [0, 1],
    "allowzero": [1],
    "slope": [0.5],
}


def drop_attribute(rng: Rng, proto: ModelProto) -> Any:
    node = pick(rng, [n for n in proto.graph.node if n.attribute])
    if node is None:
        return False
    del node.attribute[int(rng.integers(len(node.attribute)))]


def set_attribute(rng: Rng, proto: ModelProto) -> Any:
    node = pick(rng, proto.graph.node)
    known = {name for v in (6, 7, 13, 20) for name in onnx.defs.get_schema(node.op_type, v).attributes}
    name = pick(rng, sorted(known & VALUES.keys()) if known & VALUES.keys() and rng.random() < 0.8 else sorted(VALUES))
    kept = [copy.deepcopy(a) for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, pick(rng, VALUES[name]) or [0])])


def nudge_attribute(rng: Rng, proto: ModelProto) -> Any:
    found = [a for n in proto.graph.node for a in n.attribute if a.ints or a.type in (1, 2)]
    a = pick(rng, found)
    if a is None:
        return False
    if a.ints:
        at = int(rng.integers(len(a.ints)))
        if rng.random() < 0.3:
            del a.ints[at]
        else:
            a.ints[at] += int(pick(rng, [-1, 1, 2]))
    elif a.type == 1:
        a.f = float(pick(rng, [a.f * 2, -a.f, 0.0, np.nan, a.f + 1e-3]))
    else:
        a.i = 1 - a.i if rng.random() < 0.7 else a.i + int(pick(rng, [-1, 1, 2]))


def attribute_of_another_type(rng: Rng, proto: ModelProto) -> Any:
    a = pick(rng, [a for n in proto.graph.node for a in n.attribute])
    if a is None:
        return False
    a.type = pick(rng, [1, 2, 3, 6, 7])


def another_operator(rng: Rng, proto: ModelProto) -> Any:
    node = pick(rng, proto.graph.node)
    near = {
        "Relu": ["Identity", "Sigmoid", "LeakyRelu", "Neg", "Abs", "Elu"],
        "Add": ["Sub", "Mul", "Max"],
        "Sub": ["Add", "Div"],
        "MaxPool": ["AveragePool", "LpPool"],
        "AveragePool": ["MaxPool"],
        "GlobalAveragePool": ["GlobalMaxPool"],
        "ReduceMean": ["ReduceSum", "ReduceMax"],
        "Flatten": ["Identity"],
        "Identity": ["Neg", "Relu", "Softmax"],
        "Transpose": ["Identity"],
    }
    node.op_type = pick(rng, near.get(node.op_type, ["Identity", "Relu", "MatMul", "Gemm", "Softmax"]))


def another_input(rng: Rng, proto: ModelProto) -> Any:
    node, graph = pick(rng, proto.graph.node), proto.graph
    names = [graph.input[0].name, *(t.name for t in graph.initializer), *(n.output[0] for n in graph.node), ""]
    node.input[int(rng.integers(len(node.input)))] = pick(rng, names)


def swap_inputs(rng: Rng, proto: ModelProto) -> Any:
    node = pick(rng, [n for n in proto.graph.node if len(n.input) > 1])
    a, b = rng.choice(len(node.input), 2, replace=False)
    node.input[a], node.input[b] = node.input[b], node.input[a]


def empty_inputs(rng: Rng, proto: ModelProto) -> Any:
    node = pick(rng, proto.graph.node)
    at = int(rng.integers(1, len(node.input) + 1))
    names = [*node.input]
    names.insert(at, "")
    if rng.random() < 0.5 and len(names) > at + 1:
        del names[at + 1]
    del node.input[:]
    node.input.extend(names)


def insert_node(rng: Rng, proto: ModelProto) -> Any:
    at = int(rng.integers(len(proto.graph.node)))
    node = proto.graph.node[at]
    op, options = pick(
        rng,
        [
            ("Transpose", {}),
            ("Transpose", {"perm": [1, 0]}),
            ("Relu", {}),
            ("Neg", {}),
            ("Softmax", {}),
            ("Flatten", {"axis": 0}),
            ("Flatten", {"axis": 2}),
            ("Dropout", {}),
            ("Identity", {}),
            ("Cast", {"to": 6}),
            ("Round", {}),
        ],
    )
    name = f"inserted{at}"
    new = helper.make_node(op, [node.input[0]], [name], **options)
    node.input[0] = name
    nodes = [copy.deepcopy(n) for n in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:at], new, *nodes[at:]])


def leave_out_node(rng: Rng, proto: ModelProto) -> Any:
    if len(proto.graph.node) < 2:
        return False
    at = int(rng.integers(len(proto.graph.node) - 1))
    gone = proto.graph.node[at]
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == gone.output[0]:
                node.input[i] = gone.input[0]
    del proto.graph.node[at]


def one_name_for_two(rng: Rng, proto: ModelProto) -> Any:
    nodes = proto.graph.node
    node = pick(rng, nodes[:-1])
    if node is None:
        return False
    others = [n.output[0] for n in nodes] + [t.name for t in proto.graph.initializer] + ["x"]
    node.output[0] = pick(rng, others)


def another_order(rng: Rng, proto: ModelProto) -> Any:
    order = rng.permutation(len(proto.graph.node))
    nodes = [copy.deepcopy(proto.graph.node[i]) for i in order]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def another_output(rng: Rng, proto: ModelProto) -> Any:
    names = [n.output[0] for n in proto.graph.node] + [t.name for t in proto.graph.initializer] + ["x"]
    proto.graph.output[0].name = pick(rng, names)


def another_opset(rng: Rng, proto: ModelProto) -> Any:
    how = int(rng.integers(4))
    if how < 2:
        proto.opset_import[0].version = int(rng.integers(1, 31))
    elif how == 2:
        proto.opset_import.add(domain=pick(rng, ["ai.onnx", ""]), version=int(rng.integers(1, 20)))
    else:
        domain = pick(rng, ["com.microsoft", "ai.onnx.ml", "mine"])
        proto.opset_import.add(domain=domain, version=1)
        pick(rng, proto.graph.node).domain = domain


def _constant(rng: Rng, proto: ModelProto) -> Any:
    return pick(rng, proto.graph.initializer)


def _store(tensor: Any, value: Any) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), tensor.name))


def another_constant(rng: Rng, proto: ModelProto) -> Any:
    tensor = _constant(rng, proto)
    value = numpy_helper.to_array(tensor).copy()
    stored = value.dtype
    if value.dtype.kind == "i":
        value[int(rng.integers(len(value)))] += int(pick(rng, [-2, -1, 1, 2]))
    else:
        how, at = int(rng.integers(6)), tuple(int(rng.integers(n)) for n in value.shape)
        noise = rng.normal(size=value.shape)
        value = [-value, value + noise, value * 3, np.roll(value, 1), np.zeros_like(value), value][how]
        if how == 5:
            value[at] = float(pick(rng, [np.nan, np.inf, 1e30, -5.0, 5.0]))
        value = value.astype(stored)
    _store(tensor, value)


def another_shape_of_a_constant(rng: Rng, proto: ModelProto) -> Any:
    tensor = _constant(rng, proto)
    value = numpy_helper.to_array(tensor)
    ways = [value.reshape(-1, 1), value.reshape(1, -1), value.ravel(), value.T, value[None], value[..., None]]
    ways += [np.concatenate([value, value]), value[:1], np.stack([value] * 3)]
    _store(tensor, np.ascontiguousarray(pick(rng, ways)))


def broadcast_as_before_opset_7(rng: Rng, proto: ModelProto) -> Any:
    proto.opset_import[0].version = 6
    for node in proto.graph.node:
        if node.op_type in ("Add", "Sub") and not node.attribute:
            node.attribute.extend([helper.make_attribute("broadcast", 1), helper.make_attribute("axis", 1)])


def another_type_of_a_constant(rng: Rng, proto: ModelProto) -> Any:
    tensor = _constant(rng, proto)
    value = numpy_helper.to_array(tensor)
    kinds = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, bool]
    _store(tensor, value.astype(pick(rng, [kind for kind in kinds if kind != value.dtype])))


def constant_twice(rng: Rng, proto: ModelProto) -> Any:
    tensor = copy.deepcopy(_constant(rng, proto))
    value = numpy_helper.to_array(tensor)
    other = numpy_helper.from_array((value + rng.normal(size=value.shape)).astype(value.dtype), tensor.name)
    if rng.random() < 0.5:
        proto.graph.initializer.append(other)
    else:
        nodes = [copy.deepcopy(n) for n in proto.graph.node]
        del proto.graph.node[:]
        proto.graph.node.extend([helper.make_node("Constant", [], [tensor.name], value=other), *nodes])


def constant_as_input(rng: Rng, proto: ModelProto) -> Any:
    tensor = copy.deepcopy(_constant(rng, proto))
    dims = [*tensor.dims] if rng.random() < 0.5 else [*tensor.dims, 1]
    proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, dims))
    if rng.random() < 0.3:
        kept = [copy.deepcopy(t) for t in proto.graph.initializer if t.name != tensor.name]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def another_input_declared(rng: Rng, proto: ModelProto) -> Any:
    value = pick(rng, [proto.graph.input[0], proto.graph.output[0]])
    tensor = value.type.tensor_type
    how, dims = int(rng.integers(6)), tensor.shape.dim
    if how == 0:
        tensor.elem_type = int(pick(rng, [6, 7, 10, 11, 16, 9, 2]))
    elif how == 1:
        dims[0].dim_value = int(pick(rng, [0, 2, 3, -1]))
    elif how == 2:
        pick(rng, dims).dim_value += int(pick(rng, [-1, 1, 3]))
    elif how == 3:
        dims.add(dim_value=1)
    elif how == 4 and len(dims) > 2:
        a, b = dims[-1].dim_value, dims[-2].dim_value
        dims[-1].dim_value, dims[-2].dim_value = b, a
    else:
        del dims[0]


def more_than_a_graph(rng: Rng, proto: ModelProto) -> Any:
    how, graph = int(rng.integers(7)), proto.graph
    if how == 0:
        body = [helper.make_node("Identity", ["a"], ["b"])]
        proto.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    elif how == 1:
        proto.training_info.add()
    elif how == 2:
        graph.quantization_annotation.add(tensor_name=graph.node[0].output[0])
    elif how == 3:
        tensor = _constant(rng, proto)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="base.onnx")
    elif how == 4:
        node = pick(rng, graph.node)
        info = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["n", 7, 7, 7])
        graph.value_info.append(info)
    elif how == 5:
        body = copy.deepcopy(graph)
        pick(rng, graph.node).attribute.append(helper.make_attribute("body", body))
    else:
        tensor = _constant(rng, proto)
        values = numpy_helper.from_array(np.float32([9.0]), tensor.name)
        places = numpy_helper.from_array(np.zeros((1, len(tensor.dims)), np.int64), "places")
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [*tensor.dims]))


def flip_bits(rng: Rng, proto: ModelProto) -> Any:
    data = bytearray(proto.SerializeToString())
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    try:
        changed = ModelProto.FromString(bytes(data))
    except Exception:  # no network any more: the fuzzer's subject
        return False
    proto.CopyFrom(changed)


NETWORK: list[Change] = [
    drop_attribute,
    set_attribute,
    nudge_attribute,
    attribute_of_another_type,
    another_operator,
    another_input,
    swap_inputs,
    empty_inputs,
    insert_node,
    leave_out_node,
    one_name_for_two,
    another_order,
    another_output,
    another_opset,
    another_constant,
    another_shape_of_a_constant,
    broadcast_as_before_opset_7,
    another_type_of_a_constant,
    constant_twice,
    constant_as_input,
    another_input_declared,
    more_than_a_graph,
    flip_bits,
]


# Repair certificates -------------------------------------------------------------------------------------------------


def other_points(rng: Rng, made: Repair) -> Any:
    points = made.arrays["points"]
    ways = [-points, points[::-1].copy(), rng.normal(size=points.shape), points * 3, points + 1]
    made.arrays["points"] = pick(rng, ways).astype(np.float32)


def other_points_of_edits(rng: Rng, made: Repair) -> Any:
    made.arrays["edit_point"] = rng.permutation(made.arrays["edit_point"])


def other_points_of_rows(rng: Rng, made: Repair) -> Any:
    made.arrays["row_point"] = rng.permutation(made.arrays["row_point"])


def other_labels(rng: Rng, made: Repair) -> Any:
    if "edit_label" not in made.arrays:
        made.arrays["edit_A"] = -made.arrays["edit_A"] if rng.random() < 0.5 else made.arrays["edit_A"][::-1].copy()
        return
    labels = made.arrays["edit_label"].copy()
    at = int(rng.integers(len(labels)))
    labels[at] = (labels[at] + int(rng.integers(1, 3))) % 3
    made.arrays["edit_label"] = labels


def larger_demands(rng: Rng, made: Repair) -> Any:
    if "edit_b" not in made.arrays:
        return False
    made.arrays["edit_b"] = made.arrays["edit_b"] + rng.uniform(0.1, 3, made.arrays["edit_b"].shape)


def other_rows(rng: Rng, made: Repair) -> Any:
    A = made.arrays["row_A"].copy()
    at = int(made.arrays["row_multiplier"].argmax())
    A[at] = pick(rng, [-A[at], A[at] * 2, A[at] + rng.normal(size=3), np.roll(A[at], 1)])
    made.arrays["row_A"] = A


def other_bounds_of_rows(rng: Rng, made: Repair) -> Any:
    b = made.arrays["row_b"].copy()
    b[int(made.arrays["row_multiplier"].argmax())] += float(rng.choice([-1, 1]) * rng.uniform(0.2, 2))
    made.arrays["row_b"] = b


def other_multipliers(rng: Rng, made: Repair) -> Any:
    u = made.arrays["row_multiplier"].copy()
    ways = [np.roll(u, 1), u * rng.uniform(0, 3, u.shape), u[::-1].copy(), np.ones_like(u), np.zeros_like(u)]
    made.arrays["row_multiplier"] = pick(rng, ways)


def a_larger_bound(rng: Rng, made: Repair) -> Any:
    made.meta["lower_bound"] = made.meta["lower_bound"] * float(rng.uniform(1.06, 3)) + 1e-3


def a_smaller_objective(rng: Rng, made: Repair) -> Any:
    made.meta["objective"] *= float(rng.uniform(0, 0.95))


def another_norm(rng: Rng, made: Repair) -> Any:
    others = [n for n in ("l1", "linf", "l2", "mean+max", "nuclear") if n != made.meta["norm"]]
    made.meta["norm"] = pick(rng, others)
    made.arrays.pop("metric", None)


def another_metric(rng: Rng, made: Repair) -> Any:
    if "metric" not in made.arrays:
        return False
    metric = made.arrays["metric"]
    made.arrays["metric"] = pick(rng, [metric * 0.5, metric * 3, np.eye(len(metric)), metric[::-1, ::-1].copy()])


def another_change(rng: Rng, made: Repair) -> Any:
    if made.meta["architecture"] == "same":
        return False
    d = made.arrays["delta_weight"]
    ways = [d * 0.5, -d, np.zeros_like(d), d + rng.normal(size=d.shape), np.roll(d, 1), d * 2]
    made.arrays["delta_weight"] = pick(rng, ways)


def the_smallest_instead_of_the_largest(rng: Rng, made: Repair) -> Any:
    if "edit_label" not in made.arrays:
        return False
    made.meta["lowest"] = not made.meta["lowest"]


def another_architecture(rng: Rng, made: Repair) -> Any:
    if made.repaired is None:
        return False
    made.meta["architecture"], made.repaired = "decoupled", None
    for name in ("delta_weight", "delta_bias"):
        made.arrays[name] = made.arrays[name] * 0.3


def the_base_as_repaired(rng: Rng, made: Repair) -> Any:
    if made.repaired is None:
        return False
    made.repaired = copy.deepcopy(made.base)
    for name in ("delta_weight", "delta_bias"):
        del made.arrays[name]


def another_layer(rng: Rng, made: Repair) -> Any:
    names = [t.name.removesuffix(".weight") for t in made.base.graph.initializer if t.name.endswith(".weight")]
    name = pick(rng, [name for name in names if f"{name}.weight" != made.meta["weight"]])
    if name is None:
        return False
    made.meta |= {"weight": f"{name}.weight", "bias": f"{name}.bias"}


def answers_for_each_point(rng: Rng, made: Repair) -> Any:
    """Add to the outputs of a batch, in the order of the edits, what makes each edit hold; nothing is repaired."""
    if made.repaired is None or "edit_label" not in made.arrays:
        return False
    sign = -9 if made.meta["lowest"] else 9
    answers = sign * np.eye(3, dtype=np.float32)[made.arrays["edit_label"]]
    made.repaired = copy.deepcopy(made.base)
    for proto in made.networks:
        proto.graph.initializer.append(numpy_helper.from_array(answers, "answers"))
        proto.graph.node.append(helper.make_node("Add", [proto.graph.node[-1].output[0], "answers"], ["answered"]))
        proto.graph.output[0].name = "answered"
    for name in [name for name in made.arrays if name.startswith("delta_")]:
        del made.arrays[name]
    for name in ("row_point", "row_A", "row_b", "row_multiplier"):
        made.arrays[name] = made.arrays[name][:0]
    made.meta["lower_bound"] = 0.0


REPAIR: list[Change] = [
    answers_for_each_point,
    other_points,
    other_points_of_edits,
    other_points_of_rows,
    other_labels,
    larger_demands,
    other_rows,
    other_bounds_of_rows,
    other_multipliers,
    a_larger_bound,
    a_smaller_objective,
    another_norm,
    another_metric,
    another_change,
    the_smallest_instead_of_the_largest,
    another_architecture,
    another_layer,
]


def negative_multiplier(rng: Rng, made: Repair) -> Any:
    u = made.arrays["row_multiplier"].copy()
    u[int(rng.integers(len(u)))] = -float(rng.uniform(1e-9, 3))
    made.arrays["row_multiplier"] = u


def not_a_number(rng: Rng, made: Repair) -> Any:
    name = pick(rng, [k for k, v in made.arrays.items() if v.dtype.kind == "f"])
    value = made.arrays[name].copy()
    value.ravel()[int(rng.integers(value.size))] = pick(rng, [np.nan, np.inf, -np.inf])
    made.arrays[name] = value


def not_in_the_range(rng: Rng, made: Repair) -> Any:
    name = pick(rng, [k for k, v in made.arrays.items() if v.dtype.kind == "i"])
    value = made.arrays[name].copy()
    value[int(rng.integers(len(value)))] = int(pick(rng, [-1, 3, 99, 2**40, -(2**40)]))
    made.arrays[name] = value


def array_missing(rng: Rng, made: Repair) -> Any:
    name = pick(rng, [k for k in made.arrays if not k.startswith("delta_")])
    del made.arrays[name]


def array_of_another_shape(rng: Rng, made: Repair) -> Any:
    name = pick(rng, sorted(made.arrays))
    a = made.arrays[name]
    twice = a[None] if name == "points" else np.concatenate([a, a])  # more points than are used are no fault
    made.arrays[name] = pick(rng, [a[:-1], twice, a[None], a[..., None], a.ravel()[:-1]])


def array_of_another_type(rng: Rng, made: Repair) -> Any:
    name = pick(rng, sorted(made.arrays))
    a = made.arrays[name]
    kinds = [np.complex128, "U5", object, bool] + ([np.int64] if a.dtype.kind == "f" else [np.float64])
    made.arrays[name] = a.astype(pick(rng, kinds))


def points_that_are_no_inputs(rng: Rng, made: Repair) -> Any:
    points = made.arrays["points"].astype(np.float64)
    narrow = made.base.graph.input[0].type.tensor_type.elem_type != TensorProto.DOUBLE
    turned = np.ascontiguousarray(points.swapaxes(-1, -2)) if points.ndim > 2 else points[:, None]
    unlike = turned if turned.shape != points.shape else points[..., None]
    made.arrays["points"] = pick(
        rng, [points.reshape(len(points), -1, 1), points[:, :0], unlike, points + 1e-12][: 3 + narrow]
    )


def metric_that_is_none(rng: Rng, made: Repair) -> Any:
    if "metric" not in made.arrays:
        return False
    metric = made.arrays["metric"].copy()
    values, vectors = np.linalg.eigh(metric)
    indefinite = vectors @ np.diag([-0.1, *values[1:]]) @ vectors.T
    metric[0, 1] += 0.1
    made.arrays["metric"] = pick(rng, [metric, (indefinite + indefinite.T) / 2, -made.arrays["metric"]])


def change_that_was_not_made(rng: Rng, made: Repair) -> Any:
    if made.repaired is None:
        return False
    name = pick(rng, ["delta_weight", "delta_bias"])
    value = made.arrays[name] * float(pick(rng, [0.9, 1.1, -1, 0]))
    if np.abs(value - made.arrays[name]).max() < 1e-3:
        return False
    made.arrays[name] = value


def another_weight_of_the_repaired(rng: Rng, made: Repair) -> Any:
    if made.repaired is None:
        return False
    names = (made.meta["weight"], made.meta["bias"])
    tensor = pick(rng, [t for t in made.repaired.graph.initializer if t.name not in names])
    value = numpy_helper.to_array(tensor).copy()
    at = tuple(int(rng.integers(n)) for n in value.shape)
    value[at] = np.nextafter(value[at], value.dtype.type(9)) if value.dtype.kind == "f" else value[at] + 1
    _store(tensor, value)


def meta_of_another_kind(rng: Rng, made: Repair) -> Any:
    name = pick(
        rng, ["lower_bound", "objective", "margin", "norm", "architecture", "format", "weight", "bias", "lowest"]
    )
    odd: list[Any] = [-1.0, float("nan"), float("inf"), "1.0", [1.0], {"a": 1}, None, "l3", 10**400, "\ud800", True]
    value = pick(rng, odd)
    if (name, value) in (("bias", None), ("lowest", True)) or (name in ("weight", "bias") and value == made.meta[name]):
        return False
    made.meta[name] = value


def meta_missing(rng: Rng, made: Repair) -> Any:
    name = pick(rng, ["lower_bound", "objective", "margin", "norm", "architecture", "format", "weight"])
    del made.meta[name]


def spoil_archive(rng: Rng, made: Any) -> Any:
    """Spoil the archive: cut it, flip its bits, or have it announce what it does not hold."""
    how, seed = int(rng.integers(4)), int(rng.integers(2**31))

    def spoiled(data: bytes) -> bytes:
        dice = np.random.default_rng(seed)
        if how == 0:
            return data[: int(dice.integers(1, len(data) - 1))]
        if how == 1:
            return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {m.filename: archive.read(m) for m in archive.infolist()}
        name = str(dice.choice([n for n in parts if n != "meta.npy"]))
        if how == 2:
            at = parts[name].index(b"'shape': (") + 10
            parts[name] = parts[name][:at] + b"9" + parts[name][at:].replace(b" \n", b"\n", 1)
        else:
            parts[name] = parts[name][:-1]
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, content)
        return out.getvalue()

    made.archive = spoiled


def archive_spoiled(rng: Rng, made: Repair) -> Any:
    spoil_archive(rng, made)


MUST: list[Change] = [
    negative_multiplier,
    not_a_number,
    not_in_the_range,
    array_missing,
    array_of_another_shape,
    array_of_another_type,
    points_that_are_no_inputs,
    metric_that_is_none,
    change_that_was_not_made,
    another_weight_of_the_repaired,
    meta_of_another_kind,
    meta_missing,
    archive_spoiled,
    the_base_as_repaired,
]


# Property certificates -----------------------------------------------------------------------------------------------


def another_threshold(rng: Rng, made: Proof) -> Any:
    rows = pick(rng, made.unsafe)
    a, b = rows[0]
    rows[0] = (a, b - float(rng.uniform(0.3, 4)))


def another_row(rng: Rng, made: Proof) -> Any:
    rows = pick(rng, made.unsafe)
    a, b = rows[0]
    rows[0] = (pick(rng, [[-v for v in a], [3 * v for v in a], [*a[1:], a[0]]]), b)


def a_larger_box(rng: Rng, made: Proof) -> Any:
    for i in range(len(made.lower)):
        made.lower[i] -= float(rng.uniform(0, 3))
        made.upper[i] += float(rng.uniform(0, 3))


def another_box(rng: Rng, made: Proof) -> Any:
    shift = float(pick(rng, [-3, -1, 1, 3]))
    made.lower, made.upper = [v + shift for v in made.lower], [v + shift for v in made.upper]


def one_more_unsafe_set(rng: Rng, made: Proof) -> Any:
    made.unsafe.append([(rng.normal(size=3).tolist(), float(rng.uniform(-3, 0)))])
    made.dim, made.cut = np.append(made.dim, np.int16(-1)), made.cut


def the_safe_set(rng: Rng, made: Proof) -> Any:
    rows = pick(rng, made.unsafe)
    rows[:] = [([-v for v in a], -b) for a, b in rows]


def a_row_left_out(rng: Rng, made: Proof) -> Any:
    rows = pick(rng, [rows for rows in made.unsafe if len(rows) > 1])
    if rows is None:
        return False
    del rows[int(rng.integers(len(rows)))]


def hidden_by_cuts(rng: Rng, made: Proof) -> Any:
    """Ask for more than is true, and cut beside the box, so that all of it is on one side."""
    if len(made.cut) == 0:
        return False
    another_threshold(rng, made)
    made.cut = rng.choice([-1e300, -10.0, 10.0, 1e300], len(made.cut))


def other_cuts(rng: Rng, made: Proof) -> Any:
    """Ask for more than is true, in parts that nobody has proved."""
    another_threshold(rng, made)
    made.cut = rng.uniform(-2, 2, len(made.cut))
    inner = made.dim >= 0
    made.dim = np.where(inner, rng.integers(0, len(made.lower), len(inner)), made.dim).astype(np.int16)


def the_network_of_another(rng: Rng, made: Proof) -> Any:
    """Take a network of the same shape, about which nothing was proved; the hashes are right."""
    made.network = proof(rng, made.kind).network


def the_property_of_another(rng: Rng, made: Proof) -> Any:
    """Take a property that another network has; the hashes are right."""
    other = proof(rng, made.kind)
    made.lower, made.upper, made.unsafe = other.lower, other.upper, other.unsafe
    made.dim, made.cut = other.dim, other.cut


PROPERTY: list[Change] = [
    another_threshold,
    another_row,
    a_larger_box,
    another_box,
    one_more_unsafe_set,
    the_safe_set,
    a_row_left_out,
    hidden_by_cuts,
    other_cuts,
    the_network_of_another,
    the_property_of_another,
]


def _digests(made: Proof) -> dict[str, str]:
    files = {"network": made.network.SerializeToString(), "property": made.property().encode()}
    return {f"{name}_sha256": hashlib.sha256(data).hexdigest() for name, data in files.items()}


def certificate_of_other_files(rng: Rng, made: Proof) -> Any:
    """Keep the files, and take a certificate that is right for others."""
    other = proof(rng, made.kind)
    digests = _digests(other)
    name = pick(rng, [("network_sha256",), ("property_sha256",), ("network_sha256", "property_sha256")])
    made.meta |= {key: digests[key] for key in name}
    made.dim, made.cut = other.dim, other.cut


def files_exchanged(rng: Rng, made: Proof) -> Any:
    digests = _digests(made)
    made.meta |= {"network_sha256": digests["property_sha256"], "property_sha256": digests["network_sha256"]}


def a_weight_after_the_proof(rng: Rng, made: Proof) -> Any:
    """Change the last bit of a weight, and keep the hash."""
    made.meta["network_sha256"] = _digests(made)["network_sha256"]
    tensor = pick(rng, [t for t in made.network.graph.initializer if t.data_type != TensorProto.INT64])
    value = numpy_helper.to_array(tensor).copy()
    at = tuple(int(rng.integers(n)) for n in value.shape)
    value[at] = np.nextafter(value[at], value.dtype.type(9))
    _store(tensor, value)


def a_text_after_the_proof(rng: Rng, made: Proof) -> Any:
    """Change the text of the property, to one of the same meaning even, and keep the hash."""
    made.meta["property_sha256"] = _digests(made)["property_sha256"]
    ways: list[Callable[[str], str]] = [
        lambda text: text + "\n",
        lambda text: "; a comment\n" + text,
        lambda text: text.replace("(<= ", "(<  ", 1),
        lambda text: text.replace("\n", "\r\n"),
    ]
    made.text = pick(rng, ways)


def another_hash(rng: Rng, made: Proof) -> Any:
    name = pick(rng, ["network_sha256", "property_sha256"])
    made.meta[name] = pick(rng, ["0" * 64, None, "", 0])


def another_count(rng: Rng, made: Proof) -> Any:
    name = pick(rng, ["trees", "nodes", "format"])
    made.meta[name] = pick(rng, [0, -1, 99, None, "nnrepair-property-2"])


def node_missing(rng: Rng, made: Proof) -> Any:
    made.dim = np.delete(made.dim, int(pick(rng, np.flatnonzero(made.dim < 0))))


def node_more(rng: Rng, made: Proof) -> Any:
    made.dim = np.insert(made.dim, int(rng.integers(len(made.dim) + 1)), np.int16(-1))


def input_that_is_not_there(rng: Rng, made: Proof) -> Any:
    if not (made.dim >= 0).any():
        return False
    made.dim = made.dim.copy()
    made.dim[int(pick(rng, np.flatnonzero(made.dim >= 0)))] = int(pick(rng, [len(made.lower), 99, -2, 32767]))


def cut_that_is_none(rng: Rng, made: Proof) -> Any:
    cut = made.cut.copy()
    how = int(rng.integers(4))
    if how == 0 and len(cut):
        cut[0] = pick(rng, [np.nan, np.inf, -np.inf])
        made.cut = cut
    else:
        made.cut = [cut[:-1] if len(cut) else np.zeros(1), np.append(cut, 0.0), cut[None], cut.astype(np.float32)][how]


def nodes_of_another_type(rng: Rng, made: Proof) -> Any:
    made.dim = made.dim.astype(pick(rng, [np.int64, np.uint16, np.float64, object, np.int8]))


def property_spoiled(rng: Rng, made: Proof) -> Any:
    ways: list[Callable[[str], str]] = [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("(declare-const Y_2 Real)", ""),
        lambda text: text.replace("(assert (>= X_0", "(assert (>= X_9", 1),
        lambda text: text.replace("Y_0", "Z_0"),
        lambda text: text.replace("(* ", "(** ", 1),
        lambda text: text + "(assert (<= Y_0 Y_9))",
        lambda text: text.replace("Real", "Int", 1),
        lambda text: text + ")",
        lambda text: "",
    ]
    made.text = pick(rng, ways)


def proof_archive_spoiled(rng: Rng, made: Proof) -> Any:
    spoil_archive(rng, made)


PROOF_MUST: list[Change] = [
    another_hash,
    certificate_of_other_files,
    files_exchanged,
    a_weight_after_the_proof,
    a_text_after_the_proof,
    another_count,
    node_missing,
    node_more,
    input_that_is_not_there,
    cut_that_is_none,
    nodes_of_another_type,
    property_spoiled,
    proof_archive_spoiled,
]


# What changes nothing ------------------------------------------------------------------------------------------------


def a_smaller_bound(rng: Rng, made: Repair) -> Any:
    made.meta["lower_bound"] *= float(rng.uniform(0, 1))


def a_larger_objective(rng: Rng, made: Repair) -> Any:
    made.meta["objective"] *= float(rng.uniform(1, 3))


def all_multipliers_scaled(rng: Rng, made: Repair) -> Any:
    made.arrays["row_multiplier"] = made.arrays["row_multiplier"] * float(rng.uniform(0.1, 9))


def remarks(rng: Rng, made: Any) -> Any:
    for proto in made.networks:
        proto.doc_string, proto.producer_name, proto.graph.name = "text", "text", "text"
        for i, node in enumerate(proto.graph.node):
            node.name, node.doc_string = f"node {i}", "text"
        proto.opset_import.add(domain="unused", version=2)


def other_names_of_values(rng: Rng, made: Any) -> Any:
    for proto in made.networks:
        for node in proto.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name[0] == "v" and name[1:].isdigit():
                        names[i] = f"value/{name}"
        proto.graph.output[0].name = f"value/{proto.graph.output[0].name}"


def defaults_written_out(rng: Rng, made: Any) -> Any:
    written = {"Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0}, "Flatten": {"axis": 1}, "Conv": {"group": 1}}
    written |= {"Transpose": {}, "BatchNormalization": {"momentum": 0.3}}
    for proto in made.networks:
        for node in proto.graph.node:
            there = {a.name for a in node.attribute}
            for name, value in written.get(node.op_type, {}).items():
                if name not in there:
                    node.attribute.append(helper.make_attribute(name, value))


HARMLESS: list[Change] = [remarks, other_names_of_values, defaults_written_out]
HARMLESS_REPAIR: list[Change] = [a_smaller_bound, a_larger_objective, all_multipliers_scaled]
