"""One change to a certificate about two networks; see changes.py.

After a change of `SHARES_MUST` or `AGREEMENT_MUST` files contradict each other, are none, or claim by construction what
is false, where samples cannot tell: by less than a rounding error.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.checkers.changes import Change, Rng, cut_that_is_none, pick, spoil_archive
from benchmarks.checkers.pairs import GRID, Pair, constants, pair, store

# Claims, regions and networks ----------------------------------------------------------------------------------------


def a_larger_claim(rng: Rng, made: Pair) -> Any:
    name = pick(rng, ["identical", "same", "changed"])
    made.meta[name] = min(GRID, int(made.meta[name] + GRID * rng.uniform(0.02, 0.5)))


def the_whole_region(rng: Rng, made: Pair) -> Any:
    made.meta |= {name: int(rng.choice([0, GRID])) for name in ("identical", "same", "changed")}


def a_smaller_grid(rng: Rng, made: Pair) -> Any:
    made.meta["grid"] = int(GRID * rng.uniform(0.5, 0.95))


def claims_exchanged(rng: Rng, made: Pair) -> Any:
    a, b = rng.choice(["identical", "same", "changed"], 2, replace=False)
    made.meta[a], made.meta[b] = made.meta[b], made.meta[a]


def the_other_decision(rng: Rng, made: Pair) -> Any:
    if made.meta["decision"] is None:
        return False
    made.meta["decision"] = "argmin" if made.meta["decision"] == "argmax" else "argmax"


def other_volumes_taken(rng: Rng, made: Pair) -> Any:
    """Claim more, and say of another set of parts that it covers the region."""
    a_larger_claim(rng, made)
    taken = made.arrays["taken"]
    made.arrays["taken"] = pick(rng, [rng.permutation(taken), taken[::-1].copy(), (taken << 1 | taken >> 2) & 7])


def volumes_taken_elsewhere(rng: Rng, made: Pair) -> Any:
    """Claim a little more, and take each volume at other nodes, so that many parts are asked for one volume alone."""
    name = pick(rng, ["identical", "same", "changed"])
    made.meta[name] = min(GRID, int(made.meta[name] + GRID * rng.uniform(0.02, 0.1)))
    bits, stack = list[int](), list[int]()
    for d in made.arrays["dim"].tolist():
        left = stack.pop() if stack else 7
        here = left if d < 0 else sum(2**q for q in range(3) if left >> q & 1 and rng.random() < 0.4)
        bits.append(here)
        stack += [left & ~here] * 2 * (d >= 0)
    made.arrays["taken"] = np.array(bits, np.uint8)


def a_part_left_out(rng: Rng, made: Pair) -> Any:
    """Claim more, and cut so that nearly nothing is left of most parts."""
    cut = made.arrays["cut"]
    if not len(cut):
        return False
    _ask_for_more(rng, made)
    low, high = (
        np.array([[float(Fraction(v)) for v in end] for end in side]) for side in zip(*made.boxes, strict=True)
    )
    dims = made.arrays["dim"][made.arrays["dim"] >= 0]
    made.arrays["cut"] = np.nextafter(low.min(0), high.max(0))[dims]


def other_cuts(rng: Rng, made: Pair) -> Any:
    _ask_for_more(rng, made)
    made.arrays["cut"] = rng.uniform(-2, 2, len(made.arrays["cut"]))


def other_inputs_cut(rng: Rng, made: Pair) -> Any:
    _ask_for_more(rng, made)
    dim = made.arrays["dim"]
    made.arrays["dim"] = np.where(dim >= 0, rng.integers(0, len(made.boxes[0][0]), len(dim)), dim).astype(np.int16)


def _ask_for_more(rng: Rng, made: Pair) -> None:
    (a_larger_claim if made.about == "shares" else a_smaller_tolerance)(rng, made)


def a_smaller_tolerance(rng: Rng, made: Pair) -> Any:
    name = "margin" if made.meta["tolerance"] is None else "tolerance"
    made.meta[name] = str(Fraction(made.meta[name]) * Fraction(float(rng.uniform(0, 0.8))))


def no_margin(rng: Rng, made: Pair) -> Any:
    if made.meta["decision"] is None:
        return False
    made.meta["margin"] = "0"


def a_decision_instead(rng: Rng, made: Pair) -> Any:
    if made.meta["decision"] is not None:
        return False
    made.meta |= {"decision": pick(rng, ["argmin", "argmax"]), "tolerance": None}


def a_larger_region(rng: Rng, made: Pair) -> Any:
    by = float(rng.uniform(0.5, 3))
    made.boxes = [[[str(Fraction(v) - Fraction(by)) for v in made.boxes[0][0]], made.boxes[0][1]]]
    _one_tree(made)


def another_region(rng: Rng, made: Pair) -> Any:
    by = Fraction(float(pick(rng, [-2.5, -1, 1, 2.5])))
    made.boxes = [[[str(Fraction(v) + by) for v in end] for end in box] for box in made.boxes]
    made.arrays["cut"] = made.arrays["cut"] + float(by)


def one_more_box(rng: Rng, made: Pair) -> Any:
    """Add a box and a tree of one leaf, about which nothing was proved."""
    made.boxes = [*made.boxes, [[str(Fraction(v) + 3) for v in end] for end in made.boxes[0]]]
    _more_nodes(made, [-1], [7])


def a_box_far_away(rng: Rng, made: Pair) -> Any:
    """Take a box whose volume is small beside it, of which all is easily said, and a claim for most of all boxes."""
    if made.about == "agreement":
        return False
    made.boxes = [[[str(Fraction(v) - 50) for v in end] for end in made.boxes[0]], *made.boxes]
    made.arrays["dim"] = np.append(np.int16(-1), made.arrays["dim"])
    made.arrays["taken"] = np.append(np.uint8(7), made.arrays["taken"])
    a_larger_claim(rng, made)


def networks_exchanged(rng: Rng, made: Pair) -> Any:
    made.before, made.after = made.after, made.before


def another_network_after(rng: Rng, made: Pair) -> Any:
    """Take a network of the same shape after, about which nothing was proved."""
    other = pair(rng, made.about, made.kind)
    for tensor, value in zip(constants(made.after), constants(other.after), strict=True):
        if tensor.name in _last(made.after) or made.about == "agreement":
            new, old = numpy_helper.to_array(value), numpy_helper.to_array(tensor)
            store(tensor, new if new.shape == old.shape else new.T)


def the_networks_of_another(rng: Rng, made: Pair) -> Any:
    other = pair(rng, made.about, made.kind)
    made.before, made.after = other.before, other.after


def the_certificate_of_another(rng: Rng, made: Pair) -> Any:
    other = pair(rng, made.about, made.kind)
    made.boxes, made.arrays, made.meta = other.boxes, other.arrays, other.meta


def another_change(rng: Rng, made: Pair) -> Any:
    """Change the last layer after it again: by more, in another column, at one weight, or the other way round."""
    tensor = pick(rng, [t for t in constants(made.after) if t.name in _last(made.after)])
    (base,) = (t for t in made.before.graph.initializer if t.name == tensor.name)
    value, old = (numpy_helper.to_array(t).astype(float) for t in (tensor, base))
    at = tuple(int(rng.integers(n)) for n in value.shape)
    one = value.copy()
    one[at] += float(rng.choice([-2, 2, 0.5, -0.5]))
    store(tensor, pick(rng, [old + 3 * (value - old), old - (value - old), old + np.roll(value - old, 1), one, -value]))


def outputs_in_another_order(rng: Rng, made: Pair) -> Any:
    for tensor in constants(made.after):
        if tensor.name in _last(made.after):
            value = numpy_helper.to_array(tensor)
            axis = next(axis for axis in range(value.ndim) if value.shape[axis] == 3)
            store(tensor, np.roll(value, 1, axis))


def units_in_another_order(rng: Rng, made: Pair) -> Any:
    """Order the rows of a hidden layer after in another way, and not those that they feed."""
    hidden = [t for t in constants(made.after) if t.name not in _last(made.after)]
    tensor = pick(rng, hidden)
    value = numpy_helper.to_array(tensor)
    store(tensor, np.roll(value, 1, int(rng.integers(value.ndim))))


def a_hidden_weight(rng: Rng, made: Pair) -> Any:
    """Change a hidden layer of one network, or of both."""
    name = pick(rng, [t.name for t in constants(made.after) if t.name not in _last(made.after)])
    noise, both = int(rng.integers(2**31)), rng.random() < 0.5
    for proto in made.networks if both else made.networks[1:]:
        (tensor,) = (t for t in proto.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).astype(float)
        store(tensor, value + np.random.default_rng(noise).normal(size=value.shape))


def _last(proto: ModelProto) -> list[str]:
    """Return the names of the last layer's constants."""
    return [t.name for t in constants(proto)][-2:]


def _one_tree(made: Pair) -> None:
    """Keep the first of the trees."""
    count = next(k for k in range(1, len(made.arrays["dim"]) + 1) if (made.arrays["dim"][:k] < 0).sum() * 2 == k + 1)
    cuts = int((made.arrays["dim"][:count] >= 0).sum())
    made.arrays = {name: value[: cuts if name == "cut" else count] for name, value in made.arrays.items()}


def _more_nodes(made: Pair, dim: list[int], taken: list[int]) -> None:
    made.arrays["dim"] = np.append(made.arrays["dim"], np.array(dim, np.int16))
    if made.about == "shares":
        made.arrays["taken"] = np.append(made.arrays["taken"], np.array(taken, np.uint8))


BOTH: list[Change] = [
    the_other_decision,
    a_part_left_out,
    other_cuts,
    other_inputs_cut,
    a_larger_region,
    another_region,
    one_more_box,
    networks_exchanged,
    another_network_after,
    the_networks_of_another,
    the_certificate_of_another,
    another_change,
    outputs_in_another_order,
    units_in_another_order,
    a_hidden_weight,
]
SHARES: list[Change] = [
    *BOTH,
    a_larger_claim,
    the_whole_region,
    a_smaller_grid,
    claims_exchanged,
    other_volumes_taken,
    volumes_taken_elsewhere,
    a_box_far_away,
]
AGREEMENT: list[Change] = [*BOTH, a_smaller_tolerance, no_margin, a_decision_instead]

# What must be refused ------------------------------------------------------------------------------------------------


def another_hash(rng: Rng, made: Pair) -> Any:
    digests = made.digests()
    name, other = rng.permutation([*digests]).tolist()
    made.meta[name] = pick(rng, ["0" * 64, None, "", 0, digests[other], digests[name].upper(), [digests[name]]])


def hashes_exchanged(rng: Rng, made: Pair) -> Any:
    digests = made.digests()
    made.meta |= dict(zip(digests, [*digests.values()][::-1], strict=True))


def a_weight_after_the_proof(rng: Rng, made: Pair) -> Any:
    """Change the last bit of a weight, and keep the hash."""
    made.meta |= made.digests()
    tensor = pick(rng, [t for proto in made.networks for t in constants(proto)])
    value = numpy_helper.to_array(tensor).copy()
    at = tuple(int(rng.integers(n)) for n in value.shape)
    value[at] = np.nextafter(value[at], value.dtype.type(9))
    store(tensor, value)


def a_claim_that_is_none(rng: Rng, made: Pair) -> Any:
    if made.about == "shares":
        name = pick(rng, ["identical", "same", "changed", "grid"])
        odd: list[Any] = [-1, 0.5, 1.0, "1", None, [1], True, 10**13, float("nan"), float("inf"), {}]
        made.meta[name] = pick(rng, odd + [0] * (name == "grid") + [2 * GRID] * (name != "grid"))
        return
    name = pick(rng, ["margin", "margin" if made.meta["tolerance"] is None else "tolerance"])
    odd = [
        "-1",
        "-1/3",
        1,
        0.5,
        [],
        {},
        True,
        "nan",
        "inf",
        "1e3",
        "1.5",
        " 1",
        "1 ",
        "1/0",
        "1/-2",
        "\u0661",
        "",
        "+1",
    ]
    made.meta[name] = pick(rng, [*odd, "1" + "0" * 1000] + [None] * (name == "margin"))


def another_kind_of_claim(rng: Rng, made: Pair) -> Any:
    if made.about == "shares":
        made.meta["decision"] = pick(rng, ["max", "ARGMAX", None, 1, ["argmax"], "argmax ", ""])
    else:
        odd: list[dict[str, Any]] = [{"decision": "max", "tolerance": None}, {"decision": 1, "tolerance": None}]
        odd += [{"decision": None, "tolerance": None}, {"decision": "argmax", "tolerance": "1"}]
        odd += [{"decision": None, "tolerance": "9", "margin": "1"}]
        made.meta |= pick(rng, odd)


def another_format(rng: Rng, made: Pair) -> Any:
    names = ["nnrepair-comparison-2", "nnrepair-comparison-1", "nnrepair-comparison-equivalence-1"]
    names += ["nnrepair-property-1", None, 1]
    del names[1 if made.about == "shares" else 2]
    made.meta["format"] = pick(rng, names)


def boxes_that_are_none(rng: Rng, made: Pair) -> Any:
    (low, high), *_ = boxes = made.boxes
    odd: list[Any] = [None, [], {}, "1", [[]], [[low]], [[low, high, high]], [{"lower": low, "upper": high}]]
    odd += [[[high, low]], [[low[:-1], high[:-1]]], [[[*low, "0"], [*high, "1"]]], [[low, high[:-1]]]]
    odd += [[[[float(Fraction(v)) for v in low], high]], [[low, ["nan", *high[1:]]]], [[low, ["1/0", *high[1:]]]]]
    odd += [[[low, ["inf", *high[1:]]]], [[low, [None, *high[1:]]]], [[low, ["1e1", *high[1:]]]], [*boxes, [low]]]
    odd += [[[low, ["9" * 400, *high[1:]]]]]  # it is larger than all floats
    if made.about == "shares":
        odd += [[[low, low]], [[low, [low[0], *high[1:]]]], [*boxes, boxes[0]], [*boxes, _inner(low, high)]]
    made.boxes = pick(rng, odd)
    if made.about == "agreement":
        made.meta |= {"trees": made.arrays["dim"].size - 2 * len(made.arrays["cut"])}


def _inner(low: list[str], high: list[str]) -> list[list[str]]:
    ends = [(Fraction(a), Fraction(b)) for a, b in zip(low, high, strict=True)]
    return [[str(a + (b - a) / 4) for a, b in ends], [str(b) for a, b in ends]]


def node_missing(rng: Rng, made: Pair) -> Any:
    at = int(pick(rng, np.flatnonzero(made.arrays["dim"] < 0)))
    made.arrays |= {name: np.delete(value, at) for name, value in made.arrays.items() if name != "cut"}


def node_more(rng: Rng, made: Pair) -> Any:
    at = int(rng.integers(len(made.arrays["dim"]) + 1))
    made.arrays["dim"] = np.insert(made.arrays["dim"], at, np.int16(-1))
    if made.about == "shares":
        made.arrays["taken"] = np.insert(made.arrays["taken"], at, np.uint8(7))


def input_that_is_not_there(rng: Rng, made: Pair) -> Any:
    inner = np.flatnonzero(made.arrays["dim"] >= 0)
    if not len(inner):
        return False
    made.arrays["dim"] = made.arrays["dim"].copy()
    made.arrays["dim"][int(pick(rng, inner))] = int(pick(rng, [len(made.boxes[0][0]), 99, -2, 32767, -32768]))


def a_cut_that_is_none(rng: Rng, made: Pair) -> Any:
    holder = type("Tree", (), {"cut": made.arrays["cut"]})()
    cut_that_is_none(rng, holder)
    made.arrays["cut"] = holder.cut


def a_cut_outside(rng: Rng, made: Pair) -> Any:
    if made.about == "agreement" or not len(made.arrays["cut"]):  # a proof of agreement may cut where it likes
        return False
    cut = made.arrays["cut"].copy()
    edge = float(Fraction(pick(rng, made.boxes[0])[int(made.arrays["dim"][made.arrays["dim"] >= 0][0])]))
    cut[0] = pick(rng, [edge, -1e300, 1e300, 60.0])
    made.arrays["cut"] = cut


def nodes_of_another_type(rng: Rng, made: Pair) -> Any:
    name = pick(rng, sorted(made.arrays))
    kinds = {np.int64, np.uint16, np.float64, object, np.int8, np.uint8, np.float32, ">i2", np.complex64, bool}
    array = made.arrays[name]
    made.arrays[name] = array.astype(pick(rng, sorted({str(np.dtype(kind)) for kind in kinds} - {str(array.dtype)})))


def array_missing(rng: Rng, made: Pair) -> Any:
    del made.arrays[pick(rng, sorted(made.arrays))]


def array_of_another_shape(rng: Rng, made: Pair) -> Any:
    name = pick(rng, sorted(made.arrays))
    a = made.arrays[name]
    made.arrays[name] = pick(rng, [a[None], a[..., None], np.concatenate([a, a, a[:1], np.ones(1, a.dtype)])])


def a_volume_left_open(rng: Rng, made: Pair) -> Any:
    if made.about == "agreement":
        return False
    bit, taken = int(pick(rng, [1, 2, 4, 7])), made.arrays["taken"].copy()
    if rng.random() < 0.5:
        taken &= 255 - bit
    else:  # in the last leaf, or where the way to it has it
        way, ways = list[int](), list[list[int]]()
        for k, d in enumerate(made.arrays["dim"].tolist()):
            way = [*(ways.pop() if ways else []), k]
            ways += [way] * 2 * (d >= 0)
        taken[way] &= 255 - bit
    made.arrays["taken"] = taken


def archive_spoiled(rng: Rng, made: Pair) -> Any:
    spoil_archive(rng, made)


def archive_with_two_of_a_name(rng: Rng, made: Pair) -> Any:
    """Add a second member of a name, or of a name that is read as the same; or a second value in the meta data."""
    how, meta = int(rng.integers(3)), json.dumps({"format": "a", "boxes": []})[:-1]

    def spoiled(data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [(m.filename, archive.read(m)) for m in archive.infolist()]
        if how == 2:
            array = np.lib.format.read_array(io.BytesIO(dict(parts)["meta.npy"]))
            both = io.BytesIO()
            np.save(both, np.frombuffer(meta.encode() + b", " + array.tobytes()[1:], np.uint8))
            parts = [(name, both.getvalue() if name == "meta.npy" else raw) for name, raw in parts]
        else:
            parts.append((parts[-1][0].removesuffix(".npy") if how else parts[-1][0], parts[-1][1]))
        with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it knows that this is odd
            for name, raw in parts:
                archive.writestr(name, raw)
        return out.getvalue()

    made.archive = spoiled


# False by less than a rounding error: networks are made for it, of one input in [0, 1 / 4].


def _small(made: Pair, before: list[tuple[Any, Any]], after: list[tuple[Any, Any]]) -> None:
    made.before, made.after = (_network(layers) for layers in (before, after))
    size = len(np.array(before[0][0])[0])
    made.boxes = [[["0"] * size, ["1/4"] * size]]
    made.arrays = {"dim": np.array([-1], np.int16), "cut": np.zeros(0)}
    if made.about == "shares":
        made.arrays["taken"] = np.array([7], np.uint8)


def _network(layers: list[tuple[Any, Any]]) -> ModelProto:
    nodes, stored, x = list[Any](), list[Any](), "x"
    for k, (weight, bias) in enumerate(layers):
        stored += [
            numpy_helper.from_array(np.array(v, float), f"fc{k}.{name}")
            for name, v in (("weight", weight), ("bias", bias))
        ]
        nodes.append(helper.make_node("Gemm", [x, f"fc{k}.weight", f"fc{k}.bias"], [f"z{k}"], transB=1))
        x = f"z{k}"
        if k < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [x], [f"h{k}"]))
            x = f"h{k}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", count])
        for name, count in (("x", len(layers[0][0][0])), (x, len(layers[-1][1])))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def a_change_too_small_for_a_float(rng: Rng, made: Pair) -> Any:
    """Break a tie by products that are less than every float; claim that nothing changed."""
    tiny, scale = [(5e-324, 1.0), (1e-200, 1e-200), (1e-310, 1e-20)][int(rng.integers(3))]
    better = 1 if rng.random() < 0.5 else -1
    hidden = ([[scale]], [0.0])
    last = [([[0.0], [0.0]], [0.0, 0.0]), ([[0.0], [better * tiny]], [0.0, 0.0])]
    _small(made, [hidden, last[0]], [hidden, last[1]])
    made.meta["decision"] = "argmax" if better > 0 else "argmin"
    made.meta |= {"identical": 0, "same": GRID, "changed": 0} if made.about == "shares" else {}
    made.meta |= {"tolerance": None, "margin": "0"} if made.about == "agreement" else {}


def the_other_of_two_equal(rng: Rng, made: Pair) -> Any:
    """Claim one decision where the first of two equal outputs was decided for, and no longer is, or only now is."""
    bias = float(rng.choice([1.0, 1e-12, 2.0**-1000]))
    ways = [([0.0, 0.0], [0.0, bias]), ([0.0, bias], [bias, bias])]
    before, after = ways[int(rng.integers(2))]
    weight = [[0.5], [0.5]]
    hidden = ([[1.0]], [0.0])
    _small(made, [hidden, (weight, before)], [hidden, (weight, after)])
    made.meta["decision"] = "argmax"
    made.meta |= {"identical": 0, "same": GRID, "changed": 0} if made.about == "shares" else {}
    made.meta |= {"tolerance": None, "margin": "0"} if made.about == "agreement" else {}


def by_a_little_more(rng: Rng, made: Pair) -> Any:
    """Claim nearly what is true, which is known exactly: more by a 2^60th."""
    little = Fraction(1, 2**60)
    hidden, moved = ([[1.0]], [0.0]), float(rng.choice([0.5, 1.0, 0.125]))
    if made.about == "agreement" and rng.random() < 0.5:  # outputs move by what is claimed, and a little more
        _small(made, [hidden, ([[1.0]], [0.0])], [hidden, ([[1.0]], [moved])])
        made.meta |= {"tolerance": str(Fraction(moved) * (1 - little)), "decision": None, "margin": "0"}
    elif made.about == "agreement":  # 0 wins by 1 everywhere before, and does not after
        _small(made, [hidden, ([[0.0], [0.0]], [moved, 0.0])], [hidden, ([[0.0], [0.0]], [0.0, moved])])
        made.meta |= {"tolerance": None, "decision": "argmax", "margin": str(Fraction(moved) * (1 - little))}
    else:  # outputs are the same on the lower half, other where x > 1/8, and 1 wins there
        half = ([[1.0]], [-0.125])
        _small(made, [half, ([[0.0], [0.0]], [0.0, 0.0])], [half, ([[0.0], [1.0]], [0.0, 0.0])])
        made.meta |= {"decision": "argmax", "grid": 10**12, "identical": 0, "same": 0, "changed": 0}
        made.meta[pick(rng, ["identical", "same", "changed"])] = 10**12 // 2 + 1


BOTH_MUST: list[Change] = [
    another_hash,
    hashes_exchanged,
    a_weight_after_the_proof,
    a_claim_that_is_none,
    another_kind_of_claim,
    another_format,
    boxes_that_are_none,
    node_missing,
    node_more,
    input_that_is_not_there,
    a_cut_that_is_none,
    nodes_of_another_type,
    array_missing,
    array_of_another_shape,
    archive_spoiled,
    archive_with_two_of_a_name,
    a_change_too_small_for_a_float,
    the_other_of_two_equal,
    by_a_little_more,
]
SHARES_MUST: list[Change] = [*BOTH_MUST, a_cut_outside, a_volume_left_open]
AGREEMENT_MUST: list[Change] = BOTH_MUST

# What changes nothing ------------------------------------------------------------------------------------------------


def smaller_claims(rng: Rng, made: Pair) -> Any:
    if made.about == "shares":
        made.meta |= {name: int(made.meta[name] * rng.uniform(0, 1)) for name in ("identical", "same", "changed")}
    else:
        name = "margin" if made.meta["tolerance"] is None else "tolerance"
        made.meta[name] = str(Fraction(made.meta[name]) * 2)


HARMLESS: list[Change] = [smaller_claims]
