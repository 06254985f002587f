"""Networks with random weights, of torch and torchvision, as torch.onnx.export writes them today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair import onnx
from nnrepair.domains import vision


class Recurrent(nn.Module):
    """Tokens to scores of the whole text, by an LSTM; or to scores of each token, by a GRU in both directions."""

    def __init__(self, tags: bool) -> None:
        super().__init__()
        self.tags, self.table = tags, nn.Embedding(50, 24)
        self.memory = (
            nn.GRU(24, 32, batch_first=True, bidirectional=True) if tags else nn.LSTM(24, 64, batch_first=True)
        )
        self.head = nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.memory(self.table(x))
        scores: Tensor = self.head(y if self.tags else y[:, -1])
        return scores


class Text(nn.Module):
    """Tokens to scores, by two layers of attention."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.table, self.encoder = nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.table(x)).mean(1))
        return scores


class UNet(nn.Module):
    """Images to a score for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.up, self.last = nn.ConvTranspose2d(24, 12, 2, stride=2), nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x).relu()
        y: Tensor = self.last(torch.cat([a, self.up(self.deep(a).relu()).relu()], 1))
        return y


def _torchvision(name: str, classes: int = 20) -> nn.Module:
    from torchvision import models

    made: nn.Module = getattr(models, name)(weights=None, num_classes=classes)
    return made


class Segmented(nn.Module):
    """The scores of a segmentation network, which returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import segmentation

        self.model = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)["out"]
        return scores


def _googlenet() -> nn.Module:
    from torchvision import models

    made: nn.Module = models.googlenet(weights=None, num_classes=20, aux_logits=False, init_weights=False)
    return made


def _vit_b_16() -> nn.Module:
    from torchvision import models

    model = models.vit_b_16(weights=None, image_size=96, num_classes=20)
    nn.init.normal_(model.heads[-1].weight, std=0.3)  # zeros, as they are made, decide nothing
    return model


def _vision_transformer() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=10)
    nn.init.normal_(model.heads[-1].weight, std=0.3)  # zeros, as they are made, decide nothing
    return model


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet18": (lambda: _torchvision("resnet18"), torch.rand(2, 3, 96, 96)),
    "mobilenet": (lambda: _torchvision("mobilenet_v3_small"), torch.rand(2, 3, 96, 96)),
    "squeezenet": (lambda: _torchvision("squeezenet1_1"), torch.rand(2, 3, 96, 96)),
    "efficientnet": (lambda: _torchvision("efficientnet_b0"), torch.rand(2, 3, 96, 96)),
    "googlenet": (_googlenet, torch.rand(2, 3, 96, 96)),
    "vit_b_16": (_vit_b_16, torch.rand(2, 3, 96, 96)),
    "lraspp": (Segmented, torch.rand(2, 3, 64, 64)),
    "vision_transformer": (_vision_transformer, torch.rand(2, 3, 32, 32)),
    "lstm": (lambda: Recurrent(False), torch.ones(2, 12, dtype=torch.int64)),
    "tagger": (lambda: Recurrent(True), torch.ones(2, 12, dtype=torch.int64)),
    "transformer": (Text, torch.ones(2, 12, dtype=torch.int64)),
    "unet": (UNet, torch.rand(2, 1, 32, 32)),
}


def export(name: str, path: Path) -> Path:
    """Write a network where it is not there, and return its file."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if name == "quantised":
        return _quantised(path)
    make, example = MODULES[name]
    onnx.save(make().eval(), example, path)
    return path


def _quantised(path: Path) -> Path:
    """Write a trained digits classifier with weights and activations of eight bits, as onnxruntime quantises it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    train, _ = vision.digits()
    inputs = train.inputs
    assert isinstance(inputs, Tensor)
    model = vision.train_classifier(vision.digits_cnn(), train)
    plain = path.with_name("plain.onnx")
    onnx.save(model, inputs[:2], plain)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.left = [{"input": part.numpy().astype(np.float32)} for part in inputs[:200].split(50)]

        def get_next(self) -> dict[str, object] | None:
            return self.left.pop() if self.left else None

    quantize_static(str(plain), str(path), Reader(), quant_format=QuantFormat.QDQ)
    return path
