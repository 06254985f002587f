"""Which nodes of a graph are needed, which of them no function reads, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnrepair.extras import needed
from nnrepair.onnx.constants import FOLDERS
from nnrepair.onnx.node import operator
from nnrepair.onnx.operators import HANDLERS, SAME

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx

#: Operators that are read by the importer itself.
OWN = {"If", "Shape", "Size"}
#: How many lines of a refusal list operators and nodes.
LISTED = 12


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a file."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def required(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Return the nodes that a value needs, in order."""
    wanted, nodes = {output}, []
    for node in reversed(graph.node):
        if wanted & {*node.output}:
            nodes.append(node)
            wanted |= read_by(node)
    return nodes[::-1]


def read_by(node: onnx.NodeProto) -> set[str]:
    """Return all values that a node reads, also inside the graphs that it holds."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    found = {name for name in node.input if name}
    for graph in inner:
        for each in graph.node:
            found |= read_by(each)
        found |= {value.name for value in graph.output}
    return found


def unsupported(graph: onnx.GraphProto, output: str) -> dict[str, list[str]]:
    """Return the names of the nodes that an output needs whose operators are not supported, by operator."""
    found: dict[str, list[str]] = {}
    for node in required(graph, output):
        op = operator(node)
        if op not in HANDLERS.keys() | SAME | FOLDERS.keys() | OWN:
            found.setdefault(op, []).append(repr(node.name or next(iter(node.output), "")))
    return found


def listed(problems: Mapping[str, Sequence[str]]) -> str:
    """Say what cannot be read: one line for each operator, with how many nodes and the first of them."""
    lines = []
    for op, nodes in sorted(problems.items()):
        more = f" (and {len(nodes) - 1} more of this operator)" if len(nodes) > 1 else ""
        lines.append(f"{op} {nodes[0]}{more}")
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} other operators"]
    return "\n  ".join(lines)


def stored(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Return the dense constants of a graph."""
    return [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
