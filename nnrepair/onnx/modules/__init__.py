"""Operations of loaded models.

What they are made of besides torch's own layers: plain torch, without the onnx packages.
"""

from nnrepair.onnx.modules.base import Constant, Item, Operation
from nnrepair.onnx.modules.elementwise import (
    Abs,
    Add,
    Cast,
    Clamp,
    Div,
    Function,
    HardSigmoid,
    HardSwish,
    IsInf,
    Max,
    Min,
    Mul,
    Neg,
    ScaledElu,
    Shrink,
    Slope,
    Sub,
    Sum,
    Swish,
    TanhGelu,
)  # fmt: skip
from nnrepair.onnx.modules.graph import Input, OnnxGraph, Step
from nnrepair.onnx.modules.indexing import Gather, GatherElements, GatherND, OneHot, Scatter, ScatterND, Select
from nnrepair.onnx.modules.layers import Embedding, GroupScale, Normalized, Product, RuntimeNorm, Transposed
from nnrepair.onnx.modules.quantised import Dequantize, DynamicQuantize, IntegerProduct, Quantize
from nnrepair.onnx.modules.recurrent import LinearBeforeReset, Recurrent
from nnrepair.onnx.modules.reductions import (
    Arg,
    Cumulate,
    Einsum,
    FlatSoftmax,
    LeftMatMul,
    LpNormalize,
    Mean,
    Reduce,
    RightMatMul,
    Standardize,
    TopK,
)  # fmt: skip
from nnrepair.onnx.modules.shapes import (
    Concat,
    DepthToSpace,
    Expand,
    Filled,
    FlattenAt,
    Pad,
    Permute,
    Range,
    Reshape,
    Sizes,
    Slice,
    SpaceToDepth,
    Squeeze,
    Tile,
    Triangle,
    Unsqueeze,
)  # fmt: skip
from nnrepair.onnx.modules.windows import (
    AveragePool,
    Crop,
    GlobalMaxPool,
    GridSample,
    LpPool,
    Resize,
    RuntimeConv,
    SamePad,
)  # fmt: skip

__all__ = [
    "Abs", "Add", "Arg", "AveragePool", "Cast", "Clamp", "Concat", "Constant", "Crop", "Cumulate",
    "DepthToSpace", "Dequantize", "Div", "DynamicQuantize", "Einsum", "Embedding", "Expand", "Filled",
    "FlatSoftmax", "FlattenAt", "Function", "Gather", "GatherElements", "GatherND", "GlobalMaxPool",
    "GridSample", "GroupScale", "HardSigmoid", "HardSwish", "Input", "IntegerProduct", "IsInf", "Item",
    "LeftMatMul", "LinearBeforeReset", "LpNormalize", "LpPool", "Max", "Mean", "Min", "Mul", "Neg",
    "Normalized", "OneHot", "OnnxGraph", "Operation", "Pad", "Permute", "Product", "Quantize", "Range",
    "Recurrent", "Reduce", "Reshape", "Resize", "RightMatMul", "RuntimeConv", "RuntimeNorm", "SamePad",
    "ScaledElu", "Scatter", "ScatterND", "Select", "Shrink", "Sizes", "Slice", "Slope", "SpaceToDepth",
    "Squeeze", "Standardize", "Step", "Sub", "Sum", "Swish", "TanhGelu", "Tile", "TopK", "Transposed",
    "Triangle", "Unsqueeze",
]  # fmt: skip
