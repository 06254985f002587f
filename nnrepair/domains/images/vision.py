"""Images: MNIST, foggy MNIST and scikit-learn's bundled digits, with small classifiers to repair."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.domains import files as data
from nnrepair.domains.files import Resource
from nnrepair.errors import DataUnavailable, InvalidInput, near_matches
from nnrepair.progress import progress_bar
from nnrepair.provenance import digest
from nnrepair.spec.network import copied
from nnrepair.training import Batches, Checkpoint, Descent, Training

Split = Literal["train", "test"]

_MNIST = Resource("mnist/mnist.npz")
_MNIST_FOG = Resource("mnist/mnist_fog_test.npz")
_RELU_MLPS = {"3x100": Resource("mnist/mnist_relu_3x100.npz"), "9x100": Resource("mnist/mnist_relu_9x100.npz")}
_FOG_SEED = 20240601

# torchvision's mirror of the four official files. It publishes md5 sums; the stronger sha256 sums below are those of
# the same files as several independent downloaders pin them.
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_IDX = {
    name: Resource(f"mnist/{name}", _MIRROR + name, sha256=sha256, md5=md5)
    for name, sha256, md5 in [
        (
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "d53e105ee54ea40749a09fcb1ecd2432",
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ]
}


@dataclass(frozen=True, eq=False)
class Images:
    """Hold labelled images: `inputs` float32 (n, ...) and `labels` int64 (n,).

    >>> images = Images(torch.zeros(5, 1, 8, 8), torch.arange(5))
    >>> len(images[2:4])
    2
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.inputs.dtype != torch.float32 or self.labels.dtype != torch.int64:
            raise InvalidInput(
                f"Images need float32 inputs and int64 labels, given {self.inputs.dtype} and {self.labels.dtype}. "
                "Convert them with .float() and .long()."
            )
        if self.labels.ndim != 1 or self.inputs.ndim < 2 or len(self.inputs) != len(self.labels):
            raise InvalidInput(
                f"Images need inputs (n, ...) and labels (n,), given {tuple(self.inputs.shape)} and "
                f"{tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Images:
        """Return the chosen images: a slice, an index tensor or a boolean mask (n,)."""
        return Images(self.inputs[index], self.labels[index])


def mnist(split: Split = "test", *, flat: bool = True) -> Images:
    """Load MNIST with pixels in [0, 1]: inputs (n, 784), or (n, 1, 28, 28) with `flat=False`.

    Reads `mnist/mnist.npz` where it exists, otherwise the official idx files, which it downloads once (11 MB).

    >>> mnist("test").inputs.shape  # doctest: +SKIP
    torch.Size([10000, 784])
    """
    pixels, labels = _mnist_pixels(split)
    return _as_images(pixels, labels, flat)


def mnist_fog(*, flat: bool = True) -> Images:
    """Load the 10,000 MNIST test images in fog: inputs (n, 784) in [0, 1], or (n, 1, 28, 28) with `flat=False`.

    Reads `mnist/mnist_fog_test.npz` where it exists, otherwise makes the same images with `fog` (about 20 seconds).
    These are not the published MNIST-C images: the fog follows their recipe with other random numbers.

    >>> mnist_fog()[:100].inputs.shape  # doctest: +SKIP
    torch.Size([100, 784])
    """
    if data.find(_MNIST_FOG.path) is not None:
        with _npz(_MNIST_FOG) as file:
            return _as_images(file["x"], file["y"], flat)
    pixels, labels = _mnist_pixels("test")
    return _as_images(np.round(fog(pixels / 255, _FOG_SEED) * 255), labels, flat)


def fog(images: npt.ArrayLike, generator: np.random.Generator | int) -> npt.NDArray[np.float64]:
    """Put each image of (n, height, width) with pixels in [0, 1] into its own fog, and return the same shape.

    The recipe is MNIST-C's fog of severity 5 (Mu & Gilmer, 2019): with p a plasma fractal scaled to [0, 1] and m the
    brightest pixel, an image x becomes `clip((x + 3 p) m / (m + 3), 0, 1)`. Images of up to 256 x 256 pixels fit.

    Args:
        images: Pixels in [0, 1].
        generator: Source of randomness, or a seed for a new one.

    >>> fog(np.zeros((2, 28, 28)), 0).shape
    (2, 28, 28)
    """
    strength, batch = 3.0, 64
    x = np.asarray(images, dtype=np.float64)
    if x.ndim != 3 or max(x.shape[1:]) > _MAP:
        raise InvalidInput(f"fog needs images (n, height, width) of at most {_MAP} x {_MAP} pixels, given {x.shape}.")
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise InvalidInput(f"fog needs pixels in [0, 1], given [{x.min():g}, {x.max():g}]. Divide by 255 first?")
    rng = np.random.default_rng(generator)
    foggy = np.empty_like(x)
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        plasma = _plasma(len(part), rng)[:, : x.shape[1], : x.shape[2]]
        brightest = part.max(axis=(1, 2), keepdims=True)
        foggy[start : start + batch] = np.clip((part + strength * plasma) * brightest / (brightest + strength), 0, 1)
    return foggy


def digits(*, test_fraction: float = 0.25, seed: int = 0) -> tuple[Images, Images]:
    """Split scikit-learn's 1,797 bundled handwritten digits into train and test: inputs (n, 1, 8, 8) in [0, 1].

    The split keeps the share of each class and is the same for the same seed. Nothing is downloaded.

    >>> train, test = digits()
    >>> train.inputs.shape, len(test)
    (torch.Size([1347, 1, 8, 8]), 450)
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise DataUnavailable(
            "The digits come with scikit-learn, which is not installed: pip install 'nnrepair[demo]'."
        ) from error
    if not 0 < test_fraction < 1:
        raise InvalidInput(f"test_fraction must lie between 0 and 1, given {test_fraction}.")
    bunch = load_digits()
    inputs = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    parts = train_test_split(np.arange(len(labels)), test_size=test_fraction, random_state=seed, stratify=bunch.target)
    train, test = (torch.from_numpy(np.sort(part)) for part in parts)
    return Images(inputs[train], labels[train]), Images(inputs[test], labels[test])


def relu_mlp(name_or_path: str | Path) -> nn.Sequential:
    """Load a fully connected ReLU network with layers fc1, relu1, fc2, ... by name or from an npz file.

    Args:
        name_or_path: "3x100" or "9x100" (MNIST classifiers, inputs (n, 784) in [0, 1]), or a path to an npz file with
            weights `W0`, `W1`, ... of shape (out, in) and biases `b0`, `b1`, ...

    >>> list(dict(relu_mlp("3x100").named_children()))  # doctest: +SKIP
    ['fc1', 'relu1', 'fc2', 'relu2', 'fc3']
    """
    path = Path(name_or_path)
    if str(name_or_path) in _RELU_MLPS:
        path = data.locate(_RELU_MLPS[str(name_or_path)])
    elif not path.is_file():
        raise InvalidInput(
            f"{str(name_or_path)!r} is neither a known network nor a file.{near_matches(path.name, _RELU_MLPS)} "
            f"Known networks: {', '.join(_RELU_MLPS)}."
        )
    with data.open_npz(path) as file:
        arrays = {key: file[key] for key in file.files if key[0] in "Wb"}
    depth = sum(key.startswith("W") for key in arrays)
    missing = [key for k in range(max(depth, 1)) for key in (f"W{k}", f"b{k}") if key not in arrays]
    if missing:
        raise InvalidInput(f"{path} lacks {', '.join(missing)}; it has {', '.join(arrays) or 'no layers'}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(depth):
        layers[f"fc{k + 1}"] = _linear(arrays[f"W{k}"], arrays[f"b{k}"], f"{path}, layer {k}")
        if k < depth - 1:
            layers[f"relu{k + 1}"] = nn.ReLU()
    return nn.Sequential(layers).eval()


def digits_cnn(*, seed: int = 0) -> nn.Sequential:
    """Build an untrained CNN of 11,034 parameters for the 8 x 8 digits: (n, 1, 8, 8) to logits (n, 10).

    Layers: conv1, relu1, conv2, relu2, flatten, fc1, relu3, fc2.

    >>> digits_cnn()(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 16, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(16, 16, 3, stride=2, padding=1),
                relu2=nn.ReLU(),
                flatten=nn.Flatten(),
                fc1=nn.Linear(256, 32),
                relu3=nn.ReLU(),
                fc2=nn.Linear(32, 10),
            )
        )


def train_classifier(
    model: nn.Module,
    images: Images,
    *,
    epochs: int = 15,
    lr: float = 2e-3,
    batch_size: int = 64,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
) -> nn.Module:
    """Train a copy of a classifier with Adam on the cross-entropy, and return it in eval mode.

    The model given and the global random state stay as they were; the same seed gives the same result on the CPU.

    Args:
        model: Maps inputs (n, ...) to logits (n, classes).
        images: The training set; batches move to the model's device.
        epochs: Passes over the training set.
        lr: Adam's step size.
        batch_size: Images per step.
        weight_decay: Adam's L2 penalty.
        seed: Decides the order of the images, and the dropout masks if there are any (on the CPU).
        progress: Show a progress bar on stderr.
        resume: A file (.safetensors) in which progress is stored; the same call goes on from there.

    Raises:
        InvalidInput: What cannot be trained, or `resume` is the progress of another training.

    Warns when the loss becomes infinite or no number; the network is then that of the step before.

    >>> train, test = digits()
    >>> model = train_classifier(digits_cnn(), train, epochs=1)
    >>> model(test.inputs).shape
    torch.Size([450, 10])
    """
    if epochs < 1 or batch_size < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidInput(f"epochs, batch_size and lr must be positive, given {epochs}, {batch_size} and {lr}.")
    if len(images) == 0:
        raise InvalidInput("The training set is empty.")
    model = copied(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidInput("The model has no trainable parameters: set requires_grad_(True) on some.")
    checkpoint = None
    if resume is not None:
        values = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay, "seed": seed}
        key = {"model": digest(model), "images": digest(images)} | {name: repr(each) for name, each in values.items()}
        checkpoint = Checkpoint(Path(resume), key)
    step = Descent(torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay))
    order = torch.Generator().manual_seed(seed)
    batches = Batches(len(images), batch_size, order)
    device, dtype = parameters[0].device, parameters[0].dtype

    def loss() -> Tensor:
        batch = images[batches.next()]
        return nn.functional.cross_entropy(model(batch.inputs.to(device, dtype)), batch.labels.to(device))

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), progress_bar("train", progress) as report:
        torch.default_generator.manual_seed(seed)
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        Training(
            loss,
            step,
            epochs * batches.a_pass,
            model=model,
            state={**step.state, "order": order, "batches": batches, "dropout": torch.default_generator},
            checkpoint=checkpoint,
            report=report,
        ).run().warn()
    model.zero_grad()
    return model.eval()


_MAP = 256  # side of the plasma map; images take its corner


def _plasma(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw diamond-square fractals (count, 256, 256) on a torus, each scaled to [0, 1].

    The noise on a square of side s is uniform in [-a^2, a^2], where a starts at 100 and falls by 1.4 whenever s halves.
    One image's numbers lie side by side in the random stream, so the result does not depend on how images are batched.
    """
    decay = 1.4
    uniform = rng.random((count, _MAP * _MAP - 1))
    used = 0

    def noise(side: int) -> npt.NDArray[np.float64]:
        nonlocal used
        block = uniform[:, used : used + side * side].reshape(count, side, side)
        used += side * side
        return amplitude * (-amplitude + (amplitude - -amplitude) * block)

    grid = np.zeros((count, _MAP, _MAP))
    step, amplitude = _MAP, 100.0
    while step > 1:
        half, side = step // 2, _MAP // step
        corners = grid[:, ::step, ::step]
        along = corners + np.roll(corners, -1, axis=1)
        grid[:, half::step, half::step] = (along + np.roll(along, -1, axis=2)) / 4 + noise(side)
        centres = grid[:, half::step, half::step]
        across = corners + np.roll(corners, -1, axis=2)
        grid[:, ::step, half::step] = (across + centres + np.roll(centres, 1, axis=1)) / 4 + noise(side)
        grid[:, half::step, ::step] = (along + centres + np.roll(centres, 1, axis=2)) / 4 + noise(side)
        step, amplitude = half, amplitude / decay
    grid -= grid.min(axis=(1, 2), keepdims=True)
    grid /= grid.max(axis=(1, 2), keepdims=True)
    return grid


def _mnist_pixels(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise InvalidInput(f"MNIST has no split {split!r}.{near_matches(str(split), prefixes)} Splits: train, test.")
    if data.find(_MNIST.path) is not None:
        with _npz(_MNIST) as file:
            return file[f"x_{split}"], file[f"y_{split}"]
    prefix = prefixes[split]
    images = data.locate(_MNIST_IDX[f"{prefix}-images-idx3-ubyte.gz"])
    labels = data.locate(_MNIST_IDX[f"{prefix}-labels-idx1-ubyte.gz"])
    return _read_idx(images), _read_idx(labels)


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped idx file of bytes: two zeros, type 8, the rank, big-endian sizes, then the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
        values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank)
        if (zeros, kind) != (0, 8) or values.size != math.prod(shape):
            raise ValueError(f"{values.size} values of type {kind} for shape {shape}")
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise InvalidInput(f"{path} is not a whole gzipped idx file of bytes ({error}). Fetch it again.") from error
    return values.reshape(shape)


def _npz(resource: Resource) -> np.lib.npyio.NpzFile:
    return data.open_npz(data.locate(resource))


def _as_images(pixels: npt.NDArray[np.number], labels: npt.NDArray[np.integer], flat: bool) -> Images:
    inputs = torch.from_numpy(pixels.astype(np.float32)).div(255)
    inputs = inputs.flatten(1) if flat else inputs.unsqueeze(1)
    return Images(inputs, torch.from_numpy(labels.astype(np.int64)))


def _linear(weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating], where: str) -> nn.Linear:
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise InvalidInput(
            f"{where}: weight {weight.shape} and bias {bias.shape} do not fit; expected (out, in), (out,)."
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # meta: draws no random numbers
    layer.weight = nn.Parameter(torch.from_numpy(np.array(weight)))
    layer.bias = nn.Parameter(torch.from_numpy(np.array(bias)))
    return layer
