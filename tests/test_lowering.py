"""What the checker reads is the function that the module computes, or it says what it cannot read."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import mlp, randn, seeded
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.onnx import modules as ops
from nnrepair.verify.reading.affine import (
    Affine,
    Convolution,
    Dense,
    Diagonal,
    Pick,
    Place,
)
from nnrepair.verify.reading.lowering import lower

Shape = tuple[int, ...]


class Lambda(nn.Module):
    """A module whose forward is the given function of itself and x."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def settled(model: nn.Module, shape: Shape) -> nn.Module:
    """Give batch norms statistics and weights that are not the trivial ones."""

    def train() -> nn.Module:
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.affine:
                nn.init.normal_(m.weight, 1.0, 0.5)
                nn.init.normal_(m.bias)
        with torch.no_grad():
            for _ in range(3):
                model.train()(torch.randn(16, *shape) * 2 + 1)
        return model.eval()

    return seeded(train)


def points(shape: Shape, n: int = 9) -> Tensor:
    return 2 * randn(n, *shape, seed=7, dtype=torch.float64)


def assert_same(model: nn.Module, shape: Shape, tolerance: float = 1e-9) -> None:
    """Compare a double-precision model with its graph; no call and no lowering may change the model."""
    x = points(shape)
    before, training = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    graph = lower(model, shape)
    assert [m.training for m in model.modules()] == training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        wanted = model(x.clone()).flatten(1)
        given = graph(x.flatten(1))
    assert (graph.inputs, graph.outputs) == (math.prod(shape), wanted.shape[1])
    torch.testing.assert_close(given, wanted, rtol=tolerance, atol=tolerance)
    for node in graph.nodes:
        if node.affine is not None:
            assert_consistent(node.affine, graph.nodes[node.sources[0]].size)
            assert node.affine.bias.dtype == torch.float64 and len(node.affine.bias) == node.size


def assert_consistent(map: Affine, inputs: int) -> None:
    """Check a map's four ways of being applied against its matrix."""
    matrix = map.apply(torch.eye(inputs, dtype=torch.float64)).T
    outputs = len(map.bias)
    assert matrix.shape == (outputs, inputs)
    x, A = randn(2, 3, inputs, dtype=torch.float64), randn(4, outputs, seed=1, dtype=torch.float64)
    torch.testing.assert_close(map.apply(x), x @ matrix.T)
    torch.testing.assert_close(map.magnitude(x), x @ matrix.abs().T)
    torch.testing.assert_close(map.back(A), A @ matrix)
    index = torch.arange(0, outputs, 2)
    torch.testing.assert_close(map.rows(index), matrix[index])
    for n in (0, 1):
        assert map.apply(x[0, :n]).shape == map.magnitude(x[0, :n]).shape == (n, outputs)
        assert map.back(A[:n]).shape == (n, inputs)
    moved = map.to(torch.device("cpu"))
    torch.testing.assert_close(moved.apply(x), map.apply(x), rtol=0, atol=0)
    assert (moved.terms, moved.inexact) == (map.terms, map.inexact) and torch.equal(moved.bias, map.bias)
    assert map.terms >= max((matrix != 0).sum(0).max(), (matrix != 0).sum(1).max())


def conv(*sizes: Any, **settings: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(*sizes, **settings))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "linear alone": (lambda: nn.Linear(4, 3), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear on rows": (lambda: nn.Linear(4, 3), (2, 4)),
    "linear on rows of rows": (lambda: nn.Linear(4, 3, bias=False), (2, 3, 4)),
    "convolution": (lambda: conv(2, 3, 3), (2, 5, 6)),
    "convolution, stride that leaves a rest": (lambda: conv(2, 3, 3, stride=2), (2, 6, 8)),
    "convolution, stride 3": (lambda: conv(1, 2, 2, stride=3), (1, 7, 6)),
    "convolution, padding": (lambda: conv(2, 3, 3, padding=1, bias=False), (2, 4, 5)),
    "convolution, padding wider than the image": (lambda: conv(1, 2, 4, padding=3), (1, 2, 2)),
    "convolution, dilation": (lambda: conv(2, 2, 2, dilation=2), (2, 5, 4)),
    "convolution, groups": (lambda: conv(4, 6, 3, groups=2, padding=1), (4, 4, 4)),
    "convolution, depthwise": (lambda: conv(3, 6, 3, groups=3), (3, 4, 4)),
    "convolution, everything": (
        lambda: conv(4, 8, (2, 3), stride=(3, 2), padding=(2, 1), dilation=(1, 2), groups=4),
        (4, 8, 9),
    ),
    "convolution, same": (lambda: conv(2, 3, (3, 1), padding="same"), (2, 5, 4)),
    "convolution, same, groups and dilation": (lambda: conv(2, 4, 3, padding="same", groups=2, dilation=2), (2, 5, 4)),
    "convolution, valid": (lambda: conv(2, 3, 3, padding="valid"), (2, 5, 4)),
    "convolution in one dimension": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), (2, 9)),
    "convolution in one dimension, circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm on sequences": (lambda: nn.BatchNorm1d(3), (3, 5)),
    "batch norm on images": (lambda: nn.BatchNorm2d(3, eps=0.1), (3, 2, 4)),
    "batch norm without weights": (lambda: nn.BatchNorm2d(3, affine=False), (3, 2, 4)),
    "relu": (lambda: nn.ReLU(), (4,)),
    "relu, in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), (4,)),
    "relu6": (lambda: nn.Sequential(nn.Linear(4, 40), nn.ReLU6()), (4,)),
    "hardtanh": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Hardtanh(-0.3, 1.7)), (4,)),
    "hardtanh, far ends": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Hardtanh(-1e30, 1e35)), (4,)),
    "hardtanh, one side": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Hardtanh(-math.inf, 0.1)), (4,)),
    "leaky relu": (lambda: nn.Sequential(nn.Linear(4, 9), nn.LeakyReLU(0.1)), (4,)),
    "leaky relu, slope above 1": (lambda: nn.LeakyReLU(1.5), (4,)),
    "leaky relu, negative slope": (lambda: nn.LeakyReLU(-0.5), (4,)),
    "max pool": (lambda: nn.MaxPool2d(2), (2, 4, 6)),
    "max pool, rest": (lambda: nn.MaxPool2d(2), (1, 5, 3)),
    "max pool, overlap": (lambda: nn.MaxPool2d(2, stride=1), (2, 3, 4)),
    "max pool, odd": (lambda: nn.MaxPool2d(3), (1, 6, 6)),
    "max pool, padding": (lambda: nn.MaxPool2d(3, stride=2, padding=1), (2, 5, 6)),
    "max pool, flat window": (lambda: nn.MaxPool2d((1, 5), stride=(2, 1), padding=(0, 2)), (1, 3, 6)),
    "max pool, dilation": (lambda: nn.MaxPool2d(2, stride=1, dilation=2, padding=1), (1, 4, 5)),
    "average pool": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (2, 5, 6)),
    "average pool without the padding": (lambda: nn.AvgPool2d(3, padding=1, count_include_pad=False), (2, 5, 6)),
    "average pool, ceil": (lambda: nn.AvgPool2d(2, ceil_mode=True), (2, 5, 3)),
    "average pool of sequences": (lambda: nn.AvgPool1d(3), (2, 7)),
    "adaptive average pool": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 7)),
    "adaptive average pool to 1": (lambda: nn.AdaptiveAvgPool2d(1), (3, 3, 3)),
    "adaptive average pool of sequences": (lambda: nn.AdaptiveAvgPool1d(2), (3, 5)),
    "padding with a constant": (lambda: nn.ConstantPad2d((1, 0, 2, 1), 0.75), (2, 2, 3)),
    "flatten": (lambda: nn.Flatten(), (2, 3)),
    "flatten the end": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(12, 2)), (2, 3, 4)),
    "flatten the middle": (lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(4, 2)), (2, 3, 4)),
    "identity": (lambda: nn.Identity(), (3,)),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 2)).eval(), (3,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.ReLU()), nn.Linear(3, 2)), (3,)),
    "deep": (lambda: mlp(3, 5, 5, 5, 2), (3,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    make, shape = LAYERS[name]
    model = seeded(make)
    if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()):
        settled(model, shape)
    assert_same(model.double(), shape)


def fc() -> nn.Linear:
    return nn.Linear(4, 4)


ROW, COLUMN, SCALAR = (torch.tensor(v, dtype=torch.float64) for v in ([0.1, -2.0, 3.0, 0.7], [[0.5], [-2.0]], [0.3]))
FUNCTIONS: dict[str, tuple[Callable[[Lambda, Tensor], Any], Shape]] = {
    "relu": (lambda m, x: torch.relu(m.fc(x)), (4,)),
    "functional relu": (lambda m, x: F.relu(m.fc(x)), (4,)),
    "functional relu in place": (lambda m, x: F.relu(m.fc(x), inplace=True) + F.relu(m.fc(x), True), (4,)),
    "relu method": (lambda m, x: m.fc(x).relu(), (4,)),
    "functional leaky relu": (lambda m, x: F.leaky_relu(m.fc(x), 0.3) + F.leaky_relu(x), (4,)),
    "functional linear": (lambda m, x: F.linear(x, m.fc.weight, m.fc.bias) + F.linear(x, m.fc.weight), (4,)),
    "functional max pool": (lambda m, x: F.max_pool2d(F.max_pool2d(x, 2), 3, stride=1, padding=1), (2, 6, 6)),
    "functional average pool": (lambda m, x: F.avg_pool2d(x, 2, padding=1) + 1, (2, 4, 6)),
    "functional adaptive pool": (lambda m, x: F.adaptive_avg_pool2d(x, (1, 2)), (2, 4, 6)),
    "functional dropout": (lambda m, x: F.dropout(m.fc(x), training=m.training), (4,)),
    "constant number": (lambda m, x: (m.fc(x) + 0.1) * 0.3 - 1 / 3, (4,)),
    "number first": (lambda m, x: 0.1 + 0.3 * (0.7 - m.fc(x)), (4,)),
    "division by a number": (lambda m, x: torch.div(m.fc(x), 3) / 0.7, (4,)),
    "constant row": (lambda m, x: torch.mul(m.row, torch.sub(m.row, torch.add(x, m.row))), (4,)),
    "division by a row": (lambda m, x: (x - m.row) / m.row, (4,)),
    "row with a batch of one": (lambda m, x: x * m.batched, (4,)),
    "row on the left": (lambda m, x: (m.row - x) + (m.row + x) * 0.5 - m.row * x, (4,)),
    "constant column on a matrix": (lambda m, x: x * m.column - m.row, (2, 4)),
    "constant of size 1": (lambda m, x: m.scalar - x, (2, 4)),
    "constants among themselves": (lambda m, x: x * (1 / m.row.abs()) + torch.exp(m.row) * m.scalar, (4,)),
    "residual": (lambda m, x: m.fc(F.relu(x + m.fc(x))) - x, (4,)),
    "twice the same value": (lambda m, x: x + x, (4,)),
    "a value minus itself": (lambda m, x: m.fc(x) - x + (x - x), (4,)),
    "twice the same relu": (lambda m, x: (lambda h: h + h - F.relu(h))(F.relu(m.fc(x))), (4,)),
    "reused layer": (lambda m, x: m.fc(F.relu(m.fc(F.relu(m.fc(x))))), (4,)),
    "sum in place": (lambda m, x: _in_place_sum(m, x), (4,)),
    "view with size": (lambda m, x: x.view(x.size(0), -1), (2, 4)),
    "view with shape": (lambda m, x: x.view(x.shape[0], 4, 2), (2, 4)),
    "view with -1": (lambda m, x: x.view(-1, 8), (2, 4)),
    "reshape as a tuple": (lambda m, x: torch.reshape(x, (-1, 8)).reshape((x.size(0), 2, 2, 2)), (2, 4)),
    "sizes from the end": (lambda m, x: x.reshape(x.size(0), x.size(-1), x.shape[-2]), (2, 4)),
    "sizes by name": (lambda m, x: x.view(x.size(dim=0), x.size()[1] * x.size(2)), (2, 4)),
    "flatten function": (lambda m, x: torch.flatten(x, 1), (2, 4)),
    "flatten method": (lambda m, x: x.flatten(start_dim=1), (2, 4)),
    "flatten method, the end": (lambda m, x: m.fc(x.flatten(-2)), (2, 2, 2)),
    "permute": (lambda m, x: m.fc(x.permute(0, 2, 1)), (4, 2)),
    "permute as a tuple": (lambda m, x: torch.permute(x, (0, 3, 1, 2)), (2, 3, 4)),
    "cat": (lambda m, x: torch.cat([x, m.fc(x), x], 1), (4,)),
    "cat along the last": (lambda m, x: torch.cat((x, F.relu(x), m.fc(x)), dim=-1), (2, 3, 4)),
    "cat in the middle": (lambda m, x: torch.cat([x, x * 2], dim=2), (2, 3, 4)),
    "cat with another size": (lambda m, x: torch.cat([m.fc(x.flatten(1)), x.flatten(1)], 1), (2, 2)),
    "slices": (lambda m, x: m.fc(x[:, 1:, ::2]) + x[:, :2, -4:], (3, 8)),
    "one entry": (lambda m, x: x[:, 1] - x[..., 0, :], (3, 4)),
    "padding with zeros": (lambda m, x: F.pad(x, (1, 2, 0, 3)), (1, 3, 4)),
    "padding that crops": (lambda m, x: F.pad(x, (-1, 2)), (3, 4)),
    "a value that is never used": (lambda m, x: (lambda lost: m.fc(x))(torch.relu(m.fc(x))), (4,)),
    "output is the input": (lambda m, x: x, (4,)),
    "output is a relu": (lambda m, x: F.relu(x), (4,)),
}


def _in_place_sum(m: Lambda, x: Tensor) -> Tensor:
    h = m.fc(x)
    h += x
    h *= 2.0
    h -= m.row
    h /= 0.5
    return F.relu(h, inplace=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    call, shape = FUNCTIONS[name]
    model = seeded(lambda: Lambda(call, fc=fc(), row=ROW, batched=ROW[None], column=COLUMN, scalar=SCALAR))
    assert_same(model.double().eval(), shape)


class BasicBlock(nn.Module):
    """As torchvision writes it: in-place ReLUs, `out += identity`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, 2, 1, bias=False), nn.BatchNorm2d(3)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(3, 3), BasicBlock(3, 4, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def test_residual_network() -> None:
    model = settled(seeded(ResNet), (1, 12, 12))
    assert_same(model.double(), (1, 12, 12))


def test_arguments_with_defaults_keep_them() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = fc()

        def forward(self, x: Tensor, offset: float = 0.25, mask: Tensor | None = None) -> Tensor:
            y = self.fc(x + offset)
            return y if mask is None else y * mask

    assert_same(seeded(Shifted).double(), (4,))


def test_numbers_in_the_code_have_the_precision_of_the_weights() -> None:
    model = Lambda(lambda m, x: F.leaky_relu(m.fc(x) * 0.1, 0.3) / 0.7 + 1e-3, fc=fc())
    tenth, slope = float(torch.tensor(0.1)), float(torch.tensor(0.3))
    for dtype, exact in ((torch.float32, (tenth, slope)), (torch.float64, (0.1, 0.3))):
        graph = lower(model.to(dtype), (4,))
        factors = {float(n.affine.factor[0]) for n in graph.nodes if isinstance(n.affine, Diagonal)}
        assert exact[0] in factors and -exact[1] in factors


def test_matrices_are_exact_next_to_large_biases() -> None:
    """A map must not be what is left after its bias was added and subtracted again."""
    for layer, shape in ((nn.Conv2d(1, 2, 3, padding="same"), (1, 4, 4)), (nn.Conv1d(1, 2, 3), (1, 6))):
        layer = layer.double()
        with torch.no_grad():
            assert layer.bias is not None
            layer.weight.copy_(randn(*layer.weight.shape, dtype=torch.float64) * 1e-17)
            layer.bias.fill_(1e5)
        map = next(n.affine for n in lower(layer, shape).nodes if isinstance(n.affine, Convolution))
        assert map.inexact == 0 and set(map.weight.flatten().tolist()) == set(layer.weight.flatten().tolist())
        assert set(map.bias.tolist()) == {1e5}


def test_inexact_maps_say_so() -> None:
    model = settled(nn.Sequential(nn.BatchNorm2d(2), nn.AvgPool2d(3)), (2, 3, 3)).double()
    maps = [node.affine for node in lower(model, (2, 3, 3)).nodes if node.affine is not None]
    assert [map.inexact > 0 for map in maps] == [False, True, True]
    exact = [lower(seeded(make).double().eval(), shape) for make, shape in (LAYERS["convolution"], LAYERS["deep"])]
    assert not any(node.affine.inexact for graph in exact for node in graph.nodes if node.affine is not None)


# Maps by themselves --------------------------------------------------------------------------------------------------


def test_maps_agree_with_their_matrices() -> None:
    assert_consistent(Dense(randn(3, 5)), 5)
    assert_consistent(Dense(randn(1, 5), randn(1), inexact=1e-10), 5)
    assert_consistent(Diagonal(randn(4), randn(4)), 4)
    assert_consistent(Pick(torch.tensor([2, 0, 2, 2]), 4), 4)
    assert_consistent(Place(torch.tensor([3, 1]), 5), 2)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_agree_with_their_matrices(stride: int, padding: int, dilation: int) -> None:
    for size, groups in itertools.product((5, 6, 7, 8), (1, 2)):
        layer = nn.Conv2d(2, 4, (2, 3), stride, padding, dilation, groups).double()
        map = Convolution(layer, (2, size, size + 1))
        assert_consistent(map, 2 * size * (size + 1))
        x = randn(3, 2, size, size + 1, dtype=torch.float64)
        torch.testing.assert_close(map.apply(x.flatten(1)) + map.bias, layer(x).detach().flatten(1))


# What cannot be read -------------------------------------------------------------------------------------------------


def test_everything_that_cannot_be_read_is_listed_at_once() -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    model.add_module("bend", Lambda(lambda m, x: torch.lgamma(x)))
    model.add_module("block", nn.Sequential(nn.Linear(4, 4), Lambda(lambda m, x: torch.digamma(x)), nn.ReLU()))
    model.add_module("norm", nn.BatchNorm1d(4))
    model.add_module("last", nn.Softmin(-1))
    with pytest.raises(UnsupportedModel) as info:
        lower(model.eval(), (4,))
    text = str(info.value)
    listed = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert [line.split(":")[0] for line in listed] == ["lgamma 'lgamma'", "digamma 'digamma'", "Softmin 'last'"]


def test_everything_in_an_onnx_graph_is_listed_at_once() -> None:
    steps = [
        ops.Step("a", ("x",), "1"),
        ops.Step("b", ("1",), "2"),
        ops.Step("c", ("2", "1"), "3"),
        ops.Step("d", ("3",), "y"),
    ]
    model = ops.OnnxGraph(steps, "x", "y", (4,))
    for name, module in (("a", ops.Function("Asin")), ("b", fc()), ("c", ops.Mul()), ("d", nn.Softmin(-1))):
        model.add_module(name, module)
    with pytest.raises(UnsupportedModel) as info:
        lower(model, (4,))
    assert "Function 'a'" in str(info.value) and "Softmin 'd'" in str(info.value)


def changed(m: Lambda, x: Tensor) -> Tensor:
    h = m.fc(x)
    return F.relu(h, inplace=True) + h


def changed_by_sum(m: Lambda, x: Tensor) -> Tensor:
    before = h = m.fc(x)
    h += x
    return h + before


def changed_by_layer(m: Lambda, x: Tensor) -> Tensor:
    h = m.fc(x)
    m.relu(h)
    return h


def changed_through_view(m: Lambda, x: Tensor) -> Tensor:
    h = m.fc(x)
    turned = h.permute(0, 2, 1)
    turned += 1
    return m.fc(h)


def changed_through_slice(m: Lambda, x: Tensor) -> Tensor:
    h = m.fc(x)
    part = h[:, :2]
    part *= 2
    return m.fc(h)


def branching(m: Lambda, x: Tensor) -> Tensor:
    return m.fc(x) if x.sum() > 0 else x


def weight_changed(m: Lambda, x: Tensor) -> Tensor:
    bias = m.fc.bias
    bias += 1
    return x + bias


def buffer_changed(m: Lambda, x: Tensor) -> Tensor:
    row = m.row
    row += 1
    return x + row


REFUSED: dict[str, tuple[Callable[[Lambda, Tensor], Any], Shape, str]] = {
    "power of a value": (lambda m, x: 2 ** m.fc(x), (4,), "pow 'pow_1'"),
    "a third": (lambda m, x: x ** (1 / 3), (4,), "its exponent is .0.333.*, expected a whole number"),
    "division by zero": (lambda m, x: m.fc(x) / 0.0, (4,), "'truediv': it divides by zero"),
    "branch": (branching, (4,), "torch.fx cannot trace it: .*control flow"),
    "gamma": (lambda m, x: torch.lgamma(m.fc(x)), (4,), "lgamma 'lgamma': this function is not supported"),
    "method": (lambda m, x: m.fc(x).erfinv(), (4,), "erfinv 'erfinv': this function is not supported"),
    "rounded division": (lambda m, x: torch.div(x, 2.0, rounding_mode="floor"), (4,), "it rounds a quotient"),
    "batch flattened": (lambda m, x: x.flatten(), (2, 2), "start_dim=1"),
    "batch flattened by view": (lambda m, x: x.view(-1, 2), (2, 2), "does not keep the batch first"),
    "batch moved by view": (lambda m, x: x.view(4, x.size(0)), (4,), "it moves the batch"),
    "batch fixed by view": (lambda m, x: x.view(2, -1), (4,), "it moves the batch"),
    "batch moved": (lambda m, x: x.permute(1, 0), (4,), "it moves the batch"),
    "batch joined": (lambda m, x: torch.cat([x, x]), (4,), "it does not return one tensor"),
    "sum over the batch": (lambda m, x: m.fc(x.sum(0)), (2, 3), "it takes 4 inputs|moves the batch"),
    "part of the batch": (lambda m, x: x[0], (4,), "it takes a part of the batch"),
    "slice of the batch": (lambda m, x: x[1:, :2], (4,), "it takes a part of the batch"),
    "changed through a slice": (changed_through_slice, (4,), "changed in place"),
    "attribute": (lambda m, x: x.T, (4,), "the attribute T of a tensor is not supported"),
    "constant that does not fit": (lambda m, x: x + m.row, (3,), "not in this form: .*broadcast"),
    "random": (lambda m, x: F.dropout(m.fc(x)), (4,), "dropout 'dropout': it is random in training mode"),
    "pool with indices": (
        lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], (1, 4, 4), "max_pool2d_with_indices",
    ),
    "changed in place": (changed, (4,), "'add' reads a value that an operation before it has changed in place"),
    "changed in place by a layer": (changed_by_layer, (4,), "changed in place"),
    "changed in place through a view": (changed_through_view, (2, 4), "changed in place"),
    "changed by a sum": (changed_by_sum, (4,), "changed in place"),
    "input changed in place": (lambda m, x: F.relu(x, inplace=True) + x, (4,), "changed in place"),
    "two outputs": (lambda m, x: (x, x), (4,), "it does not return one tensor"),
    "a constant": (lambda m, x: m.row, (4,), "it does not return one tensor"),
    "a layer of constants": (lambda m, x: x + m.fc(m.row), (4,), "it works on constants alone"),
    "a weight changed in place": (weight_changed, (4,), "it changes a weight in place"),
    "a weight changed by a method": (lambda m, x: x + m.fc.bias.add_(1), (4,), "it changes a weight in place"),
    "a buffer changed": (buffer_changed, (4,), "it changes 'row' when it runs"),
    "constants that do not fit": (lambda m, x: x + (m.fc.bias @ m.fc.bias[:3]), (4,), "not in this form"),
    "the whole shape as a value": (lambda m, x: torch.relu(x.shape), (4,), "not in this form"),
    "division by the largest": (lambda m, x: x / torch.tensor(1e308, dtype=torch.float64), (4,), "too few digits"),
    "an error of its own": (lambda m, x: m.nothing, (4,), "torch.fx cannot trace it: .*nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, shape, words = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=words):
        lower(Lambda(call, fc=fc(), row=ROW, relu=nn.ReLU(inplace=True)).eval(), shape)


def test_an_error_without_words_is_told_by_its_kind() -> None:
    def fail(m: Lambda, x: Tensor) -> Tensor:
        raise NotImplementedError

    with pytest.raises(UnsupportedModel, match="NotImplementedError"):
        lower(Lambda(fail), (4,))


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.BatchNorm1d(4), (4,), "call model.eval"),
        (nn.Dropout(), (4,), "call model.eval"),
        (nn.BatchNorm1d(4, track_running_stats=False).eval(), (4,), "call model.eval"),
        (nn.Linear(3, 2), (4,), r"it takes 3 inputs, given \(4,\)"),
        (nn.Conv2d(1, 2, 3), (2, 4, 4), "images of 1 channels"),
        (nn.Conv2d(1, 2, 3), (16,), "expected one or two axes"),
        (nn.Conv3d(1, 2, 3), (1, 4, 4, 4), "conv3d is not supported"),
        (nn.Conv2d(1, 2, 5), (1, 4, 4), "not in this form"),
        (nn.MaxPool2d(2), (4, 4), "it needs images of 2 axes"),
        (nn.AvgPool1d(2), (1, 4, 4), "it needs images of 1 axes"),
        (nn.MaxPool2d(2, return_indices=True), (1, 4, 4), "return_indices are not supported"),
        (nn.Flatten(0), (4,), "start_dim=1"),
        (nn.GELU(approximate="sigmoid"), (4,), "approximate='sigmoid', expected 'none' or 'tanh'"),
        (nn.Softplus(threshold=10), (4,), "expected beta > 0 and threshold >= 20"),
        (nn.CELU(-1.0), (4,), "expected alpha > 0"),
        (nn.LSTM(4, 2), (3, 4), "it does not return one tensor"),
        (nn.BatchNorm1d(3).eval(), (4,), "not in this form"),
    ],
)
def test_refused_layers(layer: nn.Module, shape: Shape, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        lower(nn.Sequential(layer), shape)


def test_matrices_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnrepair.verify.reading.windows.MATRIX_LIMIT", 100)
    monkeypatch.setattr("nnrepair.verify.reading.tensors.arithmetic.MOST", 100)
    for layer, shape, words in (
        (nn.AvgPool2d(1), (1, 4, 4), "matrix"),
        (nn.Softmax(-1), (4, 10), "400 differences"),
        (nn.MaxPool2d(3, stride=1, padding=1), (1, 4, 4), "windows have 144 numbers, expected at most 100"),
    ):
        with pytest.raises(UnsupportedModel, match=words):
            lower(layer, shape)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_must_be_finite(value: float) -> None:
    model = nn.Sequential(fc(), nn.BatchNorm1d(4)).eval()
    with torch.no_grad():
        model[0].weight[0, 0] = model[1].running_mean[2] = value
    with pytest.raises(InvalidInput, match=r"in '0.weight', '1.running_mean'"):
        lower(model, (4,))


def test_negative_variance_is_refused() -> None:
    norm = nn.BatchNorm1d(4).eval()
    assert norm.running_var is not None
    norm.running_var[1] = -1
    with pytest.raises(UnsupportedModel, match="running variance is negative"):
        lower(norm, (4,))


# ONNX ----------------------------------------------------------------------------------------------------------------


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.ReLU6(),
        nn.Linear(5, 3),
    )


def joined() -> nn.Module:
    def call(m: Lambda, x: Tensor) -> Tensor:
        h = m.conv(x)
        both = torch.cat([F.relu(h) + h, h - 0.5], 1)
        turned = 0.3 - x.permute(0, 2, 3, 1).reshape(x.size(0), -1) * 1.7
        return m.fc(m.pool(both).flatten(1) / 3.0) + m.wide(turned)

    return Lambda(
        call, conv=nn.Conv2d(1, 2, 3), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(4, 3), wide=nn.Linear(64, 3)
    )


@pytest.mark.parametrize("make", [cnn, joined])
def test_a_module_and_its_onnx_file_are_one_function(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    import nnrepair.onnx as nonnx

    shape = (1, 8, 8)
    model = settled(seeded(make), shape)
    nonnx.save(model, torch.zeros(1, *shape), tmp_path / "model.onnx")
    loaded = nonnx.load(tmp_path / "model.onnx")
    x = points(shape).float().double()
    with torch.no_grad():
        y = lower(model, shape)(x.flatten(1))
        torch.testing.assert_close(lower(loaded, shape)(x.flatten(1)), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.double()(x), y, rtol=1e-6, atol=1e-6)
        inside = nn.Sequential(nn.Flatten(), nn.Identity(), loaded, nn.ReLU())  # a loaded model as a part of another
        torch.testing.assert_close(lower(inside, shape)(x.flatten(1)), y.relu(), rtol=1e-5, atol=1e-5)
    assert_same(loaded.double(), shape)


def test_operators_of_onnx_graphs() -> None:
    """Global average pooling, transposition, joins, and arithmetic with constants on either side."""
    steps = [
        ops.Step("turn", ("x",), "t"),
        ops.Step("c", (), "k"),
        ops.Step("sub", ("k", "t"), "1"),
        ops.Step("mul", ("1", "k"), "2"),
        ops.Step("div", ("2", "k"), "3"),
        ops.Step("add", ("k", "3"), "4"),
        ops.Step("both", ("4", "t", "t"), "5"),
        ops.Step("mean", ("5",), "6"),
        ops.Step("flat", ("6",), "y"),
    ]
    model = ops.OnnxGraph(steps, "x", "y", (3, 2, 4))
    parts: dict[str, nn.Module] = {
        "turn": ops.Permute((0, 2, 3, 1)), "c": ops.Constant(randn(1, 2, 1, 3) + 3), "sub": ops.Sub(),
        "mul": ops.Mul(), "div": ops.Div(), "add": ops.Add(), "both": ops.Concat(1),
        "mean": ops.Mean((2, 3), True), "flat": ops.Reshape((0, -1)),
    }  # fmt: skip
    for name, part in parts.items():
        model.add_module(name, part)
    assert_same(model.double(), (3, 2, 4))


def onnx_graph(shape: Sequence[int | None], **parts: nn.Module) -> ops.OnnxGraph:
    """Run modules one after the other; a constant begins anew."""
    steps, last = [], "x"
    for name, part in parts.items():
        steps.append(ops.Step(name, () if isinstance(part, ops.Constant) else (last,), name))
        last = name
    model = ops.OnnxGraph(steps, "x", last, shape)
    for name, part in parts.items():
        model.add_module(name, part)
    return model.eval()


def test_numbers_of_onnx_files_are_taken_as_they_are() -> None:
    """There is no parameter to tell that the file is in double precision."""
    graph = lower(onnx_graph((3,), cut=nn.Hardtanh(0.1, 0.7), slope=nn.LeakyReLU(0.3)), (3,))
    given = graph(torch.tensor([[-5.0, 0.5, 5.0]], dtype=torch.float64))
    torch.testing.assert_close(given, torch.tensor([[0.1, 0.5, 0.7]], dtype=torch.float64), rtol=1e-15, atol=0)


def test_layers_on_constants_of_an_onnx_graph_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="ReLU 'r': it works on constants alone"):
        lower(onnx_graph((4,), c=ops.Constant(ROW), r=nn.ReLU()), (4,))


def test_points_must_fit_an_onnx_graph() -> None:
    assert lower(onnx_graph((1, 2, 2), r=nn.ReLU()), (4,)).inputs == 4
    with pytest.raises(UnsupportedModel, match=r"makes \(1, 2, 2\) of \(5,\)"):
        lower(onnx_graph((1, 2, 2), r=nn.ReLU()), (5,))
    with pytest.raises(UnsupportedModel, match=r"makes \(4,\) of \(5,\)"):
        lower(onnx_graph((4,), r=nn.ReLU()), (5,))
    assert lower(onnx_graph((3, None), r=nn.ReLU()), (3, 5)).inputs == 15
    for shape in ((15,), (4, 5)):
        with pytest.raises(UnsupportedModel, match=r"it takes points of shape \(3, None\)"):
            lower(onnx_graph((3, None), r=nn.ReLU()), shape)


def test_infinite_padding_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="it pads with -inf"):
        lower(nn.Sequential(nn.ConstantPad2d(1, -math.inf), nn.MaxPool2d(2)), (1, 3, 3))


def test_lowering_leaves_weights_alone_that_a_model_changes() -> None:
    for call in (weight_changed, buffer_changed):
        model = Lambda(call, fc=fc(), row=ROW.clone())
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UnsupportedModel):
            lower(model, (4,))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_may_have_any_strides() -> None:
    layer = nn.Linear(1, 4, bias=False)
    layer.weight = nn.Parameter(randn(1, 4).T)
    assert_same(layer.double(), (3, 2, 1))
