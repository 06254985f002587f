"""One table, models of torchvision as they are: random weights, small images. A new family is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from patches import bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nnrepair
from nnrepair import InvalidInput, Patch
from nnrepair.methods import EditableTraining, FineTune, Method, MinimalNorm, RandomLabels

models = pytest.importorskip("torchvision.models", reason="torchvision comes with the extra [vision]")


@dataclass(frozen=True)
class Row:
    """A model, and two of its layers: the last, in which outputs are affine, and one inside.

    Attributes:
        make: the model, with ten outputs.
        last, inside: names of layers.
        side: of the images, in pixels.
    """

    make: Callable[[], Any]
    last: str
    inside: str
    side: int = 32


def convnext() -> nn.Module:
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(16, 32, 1), block(32, None, 1)], num_classes=10)


def vgg() -> nn.Module:
    net = models.VGG(models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True), num_classes=10)
    net.classifier = nn.Sequential(nn.Linear(16 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    return net


TABLE = {
    "resnet": Row(lambda: models.resnet18(num_classes=10), "fc", "layer3.0.conv1"),
    "squeezenet": Row(lambda: models.squeezenet1_1(num_classes=10), "classifier.1", "features.9.squeeze"),
    "mobilenet": Row(lambda: models.mobilenet_v2(num_classes=10, width_mult=0.35), "classifier.1", "features.9.conv.2"),
    "mobilenet v3": Row(lambda: models.mobilenet_v3_small(num_classes=10), "classifier.3", "features.7.block.1.0"),
    "vit": Row(
        lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10),
        "heads.head",
        "encoder.layers.encoder_layer_0.self_attention.out_proj",
    ),
    "swin": Row(
        lambda: models.SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=10),
        "head",
        "features.1.0.mlp.0",
    ),
    "convnext": Row(convnext, "classifier.2", "features.2.1"),
    "densenet": Row(lambda: models.DenseNet(8, (2, 2), 16, num_classes=10), "classifier", "features.transition1.conv"),
    "shufflenet": Row(lambda: models.shufflenet_v2_x0_5(num_classes=10), "fc", "stage3.3.branch2.5"),
    "mnasnet": Row(lambda: models.mnasnet0_5(num_classes=10), "classifier.1", "layers.10.1.layers.6"),
    "regnet": Row(lambda: models.regnet_y_400mf(num_classes=10), "fc", "trunk_output.block3.block3-1.f.c.0"),
    "vgg": Row(vgg, "classifier.3", "features.4"),
}
LARGE = {
    "googlenet": Row(lambda: models.googlenet(num_classes=10, init_weights=False), "fc", "inception4c.branch4.1.conv"),
    "efficientnet": Row(lambda: models.efficientnet_b0(num_classes=10), "classifier.1", "features.5.0.block.1.0"),
}
CASES = [*TABLE, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def images(row: Row, count: int = 16) -> Tensor:
    return torch.rand(count, 3, row.side, row.side, generator=torch.Generator().manual_seed(1))


def ready(row: Row) -> Any:
    """Return the model as if it had been trained: batch normalisation knows its inputs, no layer is zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = row.make()
        nn.init.normal_(model.get_submodule(row.last).weight, std=0.3)  # transformers begin with zeros
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images(row))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def asked(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two images, and for each the class that comes second."""
    with torch.no_grad():
        return x[:2], model(x[:2]).argsort(1)[:, -2]


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_repaired_and_stays_as_it_was(name: str) -> None:
    row = (TABLE | LARGE)[name]
    model, x = ready(row), images(row)
    (few, labels), kept = asked(model, x), x[2:]
    with torch.no_grad():
        said = model(kept).argmax(1)
    model.train()  # a repair is made in eval mode, and leaves the mode
    before = bits(model)
    methods: list[Method] = [MinimalNorm(layer=row.last), MinimalNorm(layer=row.inside), FineTune(lr=1e-3)]
    for method in methods:
        stream = DataLoader(TensorDataset(kept, said), batch_size=5)
        result = nnrepair.fix(model, (few, labels), stream, method=method, seed=0)
        assert bits(model) == before and model.training and result.model.training
        repaired = result.model.eval()
        with torch.no_grad():
            assert torch.equal(repaired(few).argmax(1), labels)
            if isinstance(method, MinimalNorm):
                assert torch.equal(repaired(kept).argmax(1), said)
                changed = [name for name, value in bits(result.model).items() if value != before[name]]
                assert changed and {name.rpartition(".")[0] for name in changed} == {method.layer}


def test_layers_are_sought_in_a_residual_network() -> None:
    row = Row(lambda: models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), "fc", "conv1")
    model, x = ready(row), images(row, 8)
    result = nnrepair.fix(model, asked(model, x), x[2:], method=MinimalNorm(time_limit=20.0))
    assert result.outcome.ok


def test_a_patch_fits_the_model_of_another_process(tmp_path: Any) -> None:
    row = TABLE["densenet"]
    model, x = ready(row), images(row)
    few, labels = asked(model, x)
    result = nnrepair.fix(model, (few, labels), x[2:], method=MinimalNorm(layer=row.inside))
    result.patch.save(tmp_path / "p.safetensors")
    patched = Patch.load(tmp_path / "p.safetensors").apply(ready(row))
    assert bits(patched) == bits(result.model)


# Editors that are trained first ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [EditableTraining("layer4.0"), EditableTraining("fc", residual=8)])
def test_activations_in_place_under_second_order_gradients(method: EditableTraining) -> None:
    row = Row(lambda: models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), "fc", "conv1")
    model, x = ready(row), images(row, 24)
    assert any(getattr(part, "inplace", False) for part in model.modules())
    with torch.no_grad():
        labels = model(x).argmax(1)
    model.train()
    before = bits(model)
    editor = method.prepare(model, RandomLabels(x, labels, edits=1, locality=8), steps=2)
    assert editor.steps == 2 and bits(model) == before and model.training
    result = nnrepair.fix(model, asked(ready(row), x), x[2:], method=editor, throw=False)
    assert bits(model) == before and result.report.edits == 2
    other = ready(row)
    with torch.no_grad():
        other.fc.weight[0, 0] += 1
    with pytest.raises(InvalidInput, match="another network|other weights|prepared for"):
        nnrepair.fix(other, asked(other, x), x[2:], method=editor)


# What is no classifier ------------------------------------------------------------------------------------------------


def test_of_segmentation_the_scores_are_found() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    with pytest.raises(InvalidInput, match=r"one score per class.*returns \(1, 3, 32, 32\)"):
        nnrepair.fix(model, (torch.zeros(1, 3, 32, 32), [1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: (x[:, :1], [1, 2]), "does not accept the edits"),
        (lambda x: ((x * 255).byte(), [1, 2]), "does not accept the edits"),
        (lambda x: (x, [1, 10]), "10"),
        (lambda x: (x.permute(0, 2, 3, 1), [1, 2]), "does not accept the edits"),
    ],
    ids=["one channel", "bytes", "another class", "channels last"],
)
def test_images_that_do_not_fit_are_refused(given: Callable[[Tensor], Any], message: str) -> None:
    row = TABLE["densenet"]
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(ready(row), given(images(row, 2)))
