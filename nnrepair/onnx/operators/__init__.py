"""Operators as torch modules.

One short function for each, which puts the file's weights inside. `HANDLERS` says which function reads which operator;
the files of this folder have it by kind. A new operator is one function and one row in the table of its file, and one
in benchmarks/readers/wide/.
"""

from nnrepair.onnx.operators import (
    activations,
    arithmetic,
    layers,
    normalisation,
    quantised,
    recurrent,
    reductions,
    shapes,
    windows,
)  # fmt: skip
from nnrepair.onnx.operators.building import Handler

#: The operators of each kind, and what reads them.
KINDS: dict[str, dict[str, Handler]] = {
    "Layers": layers.HANDLERS,
    "Recurrent layers": recurrent.HANDLERS,
    "Activations": activations.HANDLERS,
    "Normalisation": normalisation.HANDLERS,
    "Pooling and interpolation": windows.HANDLERS,
    "Arithmetic": arithmetic.HANDLERS,
    "Reductions": reductions.HANDLERS,
    "Shapes": shapes.HANDLERS,
    "Quantised": quantised.HANDLERS,
}
HANDLERS: dict[str, Handler] = {op: handler for kind in KINDS.values() for op, handler in kind.items()}

# Give their first input back when the model is in eval mode.
SAME = {"Identity", "Dropout"}
