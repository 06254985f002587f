"""Networks cut where repairs begin: what comes before is computed once, and stored in build/.

The rest of a network is a network of its own, whose layers have the names that they have in the whole.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import ROOT
from nnrepair.domains.files import find
from nnrepair.domains.images.cifar import ResNet
from nnrepair.errors import InvalidInput, PatchError
from nnrepair.provenance import source
from nnrepair.spec.state import read_tensors, reading, write_tensors

BUILD = ROOT / "build"
FORMAT = "nnrepair-features-1"
#: The parts of the package that decide features.
SOURCE = ("domains/files.py", *(f"domains/images/{name}.py" for name in ("cifar", "data", "samples", "squeezenet")))
#: Images that run together.
BATCH = 100


class Mean(nn.Module):
    """The mean over all places of an image: (n, channels, h, w) to (n, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        return x.mean(dim=(2, 3))


def cut_resnet(network: ResNet, first: str) -> tuple[Callable[[Tensor], Tensor], nn.Sequential]:
    """Return what comes before a stage or block of a ResNet, and the rest of it as a network.

    Args:
        network: it is not changed; the rest has its layers.
        first: "layer3", or "layer3.2" for the last block of it.
    """
    stage, _, block = first.partition(".")
    if stage != "layer3" or not (block == "" or (block.isdigit() and int(block) < len(network.layer3))):
        raise InvalidInput(f"A ResNet is cut before layer3 or one of its blocks, given {first!r}.")
    at = int(block or 0)
    head, tail = network.layer3[:at], OrderedDict((str(k), network.layer3[k]) for k in range(at, len(network.layer3)))

    def before(x: Tensor) -> Tensor:
        x = torch.relu(network.bn1(network.conv1((x - network.mean) / network.std)))
        seen: Tensor = head(network.layer2(network.layer1(x)))
        return seen

    rest = nn.Sequential(OrderedDict(layer3=nn.Sequential(tail), mean=Mean(), linear=network.linear))
    return before, rest.eval()


def cut_squeezenet(network: nn.Module, first: str = "classifier") -> tuple[nn.Module, nn.Sequential]:
    """Return what comes before the last layer of SqueezeNet, or before its last fire module, and the rest of it.

    Args:
        network: it is not changed; both have its layers.
        first: "classifier", or "features.12".
    """
    if first not in ("classifier", "features.12"):
        raise InvalidInput(f"SqueezeNet is cut before classifier or features.12, given {first!r}.")
    features, classifier = network.get_submodule("features"), network.get_submodule("classifier")
    assert isinstance(features, nn.Sequential)
    at = len(features) if first == "classifier" else int(first.removeprefix("features."))
    tail = OrderedDict((str(k), features[k]) for k in range(at, len(features)))
    rest = OrderedDict(features=nn.Sequential(tail)) if tail else OrderedDict()
    return features[:at], nn.Sequential(OrderedDict(**rest, classifier=classifier, flat=nn.Flatten())).eval()


@torch.no_grad()
def seen(before: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what comes out for images (n, ...), a batch at a time."""
    return torch.cat([before(part) for part in images.split(BATCH)])


def stored(name: str, files: Sequence[str], code: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from build/, or computed and stored there.

    Args:
        name: of the file.
        files: of the data folder, on which they depend.
        code: the module that computes them; they are computed again when it changes.
        compute: computes them.
    """
    path, made_from = BUILD / f"{name}.safetensors", _made_from(files, code)
    with suppress(FileNotFoundError, PatchError), reading(path, "file of features"):
        _, tensors, texts = read_tensors(path, "file of features", {FORMAT: ("made from",)})
        if texts["made from"] == made_from:
            return tensors
    tensors = compute()
    with suppress(OSError):  # then the next one computes them again
        BUILD.mkdir(exist_ok=True)
        write_tensors(path, FORMAT, tensors, {"made from": made_from}, "file of features")
    return tensors


def _made_from(files: Sequence[str], code: Path) -> str:
    """Return the hash of all that decides features: code, data, weights, and what computes."""
    digest = hashlib.sha256(code.read_bytes())
    digest.update(f"{source(*SOURCE)} {torch.__version__}".encode())
    for file in files:
        path = find(file)
        digest.update(b"missing" if path is None else path.read_bytes())
    return digest.hexdigest()
