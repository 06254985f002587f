"""Fresh exports of torch, by both exporters, read back and compared with onnxruntime.

`python -m benchmarks.readers.exports` measures what is missing in results/exports.json; weights are random.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.readers.truth import session
from nnrepair import onnx as loader
from nnrepair.errors import NNRepairError, first_line

PATH = Path(__file__).parent / "results" / "exports.json"
Inputs = tuple[Tensor, ...]


class Sequences(nn.Module):
    """A recurrent layer over embedded tokens, and a linear layer on its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 8), kind(8, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(self.embedding(ids))[0][:, -1])
        return y


class Encoder(nn.Module):
    """Two layers of a transformer over tokens, and their average."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.embedding, self.encoder = nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(self.embedding(ids)).mean(1))
        return y


class UNet(nn.Module):
    """Down, up by a transposed convolution, and beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(x))
        y: Tensor = self.head(torch.cat([x, self.up(torch.relu(self.low(x)))], 1))
        return y


class Upsampled(nn.Module):
    """A segmentation head whose output is resized to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.body(x))
        y = torch.cat([y, nn.functional.interpolate(self.pool(y), y.shape[-2:], mode="bilinear")], 1)
        return nn.functional.interpolate(self.head(y), x.shape[-2:], mode="bilinear", align_corners=False)


class Scores(nn.Module):
    """The scores of a segmentation network, which returns a dictionary."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.model = make(weights=None, weights_backbone=None, num_classes=6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)["out"]
        return scores


class Bag(nn.Module):
    """Words, weighed by a mask and averaged: two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = (self.embedding(ids) * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        y: Tensor = self.head(self.norm(x))
        return y


def images(size: int) -> Callable[[torch.Generator], Inputs]:
    return lambda g: (torch.rand(3, 3, size, size, generator=g),)


def tokens(g: torch.Generator) -> Inputs:
    return (torch.randint(0, 20, (3, 7), generator=g),)


def masked(g: torch.Generator) -> Inputs:
    return (*tokens(g), (torch.rand(3, 7, generator=g) > 0.3).float())


def _transformer(model: Any) -> nn.Module:
    """Return a vision transformer that decides something: its head is made of zeros."""
    nn.init.normal_(model.heads[-1].weight, std=0.3)
    made: nn.Module = model
    return made


vision: Any = torchvision.models
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Inputs]]] = {
    "resnet18": (lambda: vision.resnet18(num_classes=10), images(64)),
    "mobilenet_v3_small": (lambda: vision.mobilenet_v3_small(num_classes=10), images(64)),
    "squeezenet1_1": (lambda: vision.squeezenet1_1(num_classes=10), images(64)),
    "shufflenet_v2_x0_5": (lambda: vision.shufflenet_v2_x0_5(num_classes=10), images(64)),
    "efficientnet_b0": (lambda: vision.efficientnet_b0(num_classes=10), images(64)),
    "densenet121": (lambda: vision.densenet121(num_classes=10), images(64)),
    "googlenet": (lambda: vision.googlenet(num_classes=10, aux_logits=False, init_weights=False), images(64)),
    "vit": (lambda: _transformer(vision.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)), images(32)),
    "vit_b_16": (lambda: _transformer(vision.vit_b_16(num_classes=10, image_size=64)), images(64)),
    "lraspp_mobilenet_v3_large": (lambda: Scores(vision.segmentation.lraspp_mobilenet_v3_large), images(64)),
    "swin_t": (lambda: vision.swin_t(num_classes=10), images(64)),
    "convnext_tiny": (lambda: vision.convnext_tiny(num_classes=10), images(64)),
    "LSTM": (lambda: Sequences(nn.LSTM), tokens),
    "GRU": (lambda: Sequences(nn.GRU), tokens),
    "TransformerEncoder": (Encoder, tokens),
    "UNet": (UNet, images(32)),
    "resized": (Upsampled, images(32)),
    "bag of words": (Bag, masked),
}


def exported(model: nn.Module, inputs: Inputs, dynamo: bool, opset: int | None = None) -> bytes:
    """Return the file that an exporter writes, with a free batch, in the operator set that it chooses or is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            program = torch.onnx.export(
                model,
                inputs,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                dynamo=True,
                verbose=False,
                opset_version=opset,
            )
            assert program is not None
            made: bytes = program.model_proto.SerializeToString()
            return made
        buffer, names = io.BytesIO(), [f"input{k}" for k in range(len(inputs))]
        torch.onnx.export(
            model,
            inputs,
            buffer,
            dynamo=False,
            input_names=names,
            dynamic_axes={n: {0: "batch"} for n in names},
            opset_version=opset,
        )
        return buffer.getvalue()


def row(name: str, dynamo: bool) -> dict[str, Any]:
    """Export a model, read it back, and compare."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model, source = make().eval(), torch.Generator().manual_seed(1)
    found: dict[str, Any] = {"model": name, "exporter": "dynamo" if dynamo else "script"}
    try:
        data = exported(model, draw(source), dynamo)
    except Exception as error:  # the exporters raise many kinds
        return found | {"outcome": "not exported", "reason": f"{type(error).__name__}: {first_line(error)}"[:200]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        start = time.process_time()
        try:
            read = loader.load(path)
        except NNRepairError as error:
            return found | {"outcome": "refused", "reason": str(error).replace(str(path), "")[:300]}
        found["seconds"] = time.process_time() - start
    import onnx

    proto = onnx.ModelProto.FromString(data)
    inputs = draw(source)
    names = [value.name for value in proto.graph.input]
    (wanted, *_) = session(proto).run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    with torch.no_grad():
        made = read(*inputs).numpy()
    same = made.shape == wanted.shape
    found["difference"] = float(np.abs(made - wanted).max() / np.abs(wanted).max()) if same else None
    found["parameters"] = sum(p.numel() for p in read.parameters())
    found["of"] = sum(p.numel() for p in model.parameters())
    found["outcome"] = "equal" if same and found["difference"] < 1e-4 else "different"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers.exports", description=__doc__)
    parser.add_argument("--path", type=Path, default=PATH)
    parser.add_argument("--show", nargs=2, metavar=("MODEL", "EXPORTER"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.show:
        print(json.dumps(row(arguments.show[0], arguments.show[1] == "dynamo"), indent=1))
        return
    rows = measure.load(arguments.path)
    done = {(each["model"], each["exporter"]) for each in rows}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=measure.ROOT, capture_output=True, text=True)
    for name in MODELS:
        for dynamo in (True, False):
            if (name, "dynamo" if dynamo else "script") not in done:
                rows.append(
                    row(name, dynamo)
                    | {"seed": 0, "commit": commit.stdout.strip(), "torchvision": version("torchvision")}
                )
                measure.save(arguments.path, rows, "fresh exports of torch, read back")
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
