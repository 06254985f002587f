"""Networks as torchvision builds them, for benchmarks that must not depend on it; parameters have its names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al. 2016): few channels, then many by kernels of two sizes side by side."""

    def __init__(self, inp: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(inp, few, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(few, many, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(few, many, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: images (n, 3, 224, 224) to logits (n, 1000)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, kernel_size=3, stride=2), nn.ReLU(inplace=True), pool()),
            *(Fire(64, 16, 64), Fire(128, 16, 64), pool()),
            *(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
            *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


def _conv(inp: int, out: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inp, out, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """A residual block (He et al. 2016): two convolutions, or with `wide` > 1 three, the middle one of 3 x 3.

    Args:
        inp, planes: channels that come in, and of the inner convolutions.
        stride: of the block.
        wide: how many times `planes` come out.
    """

    def __init__(self, inp: int, planes: int, stride: int, wide: int) -> None:
        super().__init__()
        out = planes * wide
        sizes = [(inp, planes, 3, stride), (planes, planes, 3, 1)]
        if wide > 1:
            sizes = [(inp, planes, 1, 1), (planes, planes, 3, stride), (planes, out, 1, 1)]
        self.count = len(sizes)
        for k, size in enumerate(sizes, start=1):
            self.add_module(f"conv{k}", _conv(*size))
            self.add_module(f"bn{k}", nn.BatchNorm2d(size[1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inp != out:
            self.downsample = nn.Sequential(_conv(inp, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity, out = x, x
        for k in range(1, self.count + 1):
            out = self.get_submodule(f"bn{k}")(self.get_submodule(f"conv{k}")(out))
            out = out if k == self.count else self.relu(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return F.relu(out)


class ResNet(nn.Module):
    """A residual network for photographs: images (n, 3, height, width) to logits (n, classes)."""

    def __init__(self, depth: Sequence[int], wide: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        inp = 64
        for k, count in enumerate(depth):
            planes, blocks = 64 * 2**k, []
            for block in range(count):
                blocks.append(Block(inp, planes, 2 if k and not block else 1, wide))
                inp = planes * wide
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(inp, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for k in range(1, 5):
            x = self.get_submodule(f"layer{k}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(classes: int) -> ResNet:
    """Return a ResNet-18 with random weights in eval mode."""
    return ResNet((2, 2, 2, 2), 1, classes).eval()


def resnet50(classes: int) -> ResNet:
    """Return a ResNet-50 with random weights in eval mode."""
    return ResNet((3, 4, 6, 3), 4, classes).eval()
