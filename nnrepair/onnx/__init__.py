"""ONNX models in and out.

`load` gives an ordinary trainable `torch.nn.Module`, `save` writes one.

A loaded model keeps the file's structure: one named submodule per operation, `nn.Linear` and `nn.Conv2d` for layers
with weights. A weight called `layer1.conv.weight` in the file is the parameter `layer1.conv.weight` of the model.
`load` and `save` need the extra `nnrepair[onnx]`.

docs/onnx.md says what is read, and how a file without a batch, or with several inputs, is meant.
"""

from typing import TYPE_CHECKING, Any

from nnrepair.onnx.modules import Add, Concat, Constant, Div, Mean, Mul, OnnxGraph, Permute, Reshape, Step, Sub

if TYPE_CHECKING:
    from nnrepair.onnx.inplace.module import InPlace
    from nnrepair.onnx.inplace.opening import in_place
    from nnrepair.onnx.reader import load
    from nnrepair.onnx.writer import save
else:

    def __getattr__(name: str) -> Any:
        """Import what needs the onnx packages when it is used: what a model was loaded into works without them."""
        if name == "load":
            from nnrepair.onnx.reader import load

            return load
        if name == "save":
            from nnrepair.onnx.writer import save

            return save
        if name == "InPlace":
            from nnrepair.onnx.inplace.module import InPlace

            return InPlace
        if name == "in_place":
            from nnrepair.onnx.inplace.opening import in_place

            return in_place
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Add", "Concat", "Constant", "Div", "Mean", "Mul", "Permute", "Reshape", "Sub"]
__all__ += ["InPlace", "OnnxGraph", "Step", "in_place", "load", "save"]
