"""Feed-forward ONNX models in and out: `load` gives an ordinary trainable `torch.nn.Module`, `save` writes one.

A loaded model keeps the file's structure: one named submodule per operation, `nn.Linear` and `nn.Conv2d` for layers
with weights. A weight called `layer1.conv.weight` in the file is the parameter `layer1.conv.weight` of the model.
Needs the extra `nnrepair[onnx]`.

Operators that can be read (opset 7 and later):
    Layers: Gemm, MatMul, Conv, BatchNormalization.
    Activations: Relu, LeakyRelu, Elu, Sigmoid, Tanh, Softplus, Clip, Softmax, LogSoftmax.
    Pooling: MaxPool, AveragePool, GlobalAveragePool, ReduceMean.
    Shape: Flatten, Reshape, Transpose, Concat.
    Arithmetic: Add, Sub, Mul, Div.
    Without effect: Identity, Dropout.
    On constants and sizes only: Cast, Constant, Gather, Neg, Shape, Slice, Sqrt, Squeeze, Unsqueeze.
"""

try:
    from nnrepair.onnx.reader import load
    from nnrepair.onnx.writer import save
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("nnrepair.onnx needs the onnx packages: pip install 'nnrepair[onnx]'.") from error

from nnrepair.onnx.modules import Add, Concat, Constant, Div, Mean, Mul, OnnxGraph, Permute, Reshape, Step, Sub

__all__ = ["Add", "Concat", "Constant", "Div", "Mean", "Mul", "Permute", "Reshape", "Sub"]
__all__ += ["OnnxGraph", "Step", "load", "save"]
