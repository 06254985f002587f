"""Small classifiers of images: trained fully connected ones from files, and an untrained CNN."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.errors import InvalidInput, near_matches

_RELU_MLPS = {"3x100": Resource("mnist/mnist_relu_3x100.npz"), "9x100": Resource("mnist/mnist_relu_9x100.npz")}


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
        path = files.locate(_RELU_MLPS[str(name_or_path)])
    elif not path.is_file():
        raise InvalidInput(
            f"{str(name_or_path)!r} is neither a known network nor a file.{near_matches(path.name, _RELU_MLPS)} "
            f"Known networks: {', '.join(_RELU_MLPS)}."
        )
    with files.open_npz(path) as file:
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


def _linear(weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating], where: str) -> nn.Linear:
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise InvalidInput(
            f"{where}: weight {weight.shape} and bias {bias.shape} do not fit; expected (out, in), (out,)."
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # meta: draws no random numbers
    layer.weight = nn.Parameter(torch.from_numpy(np.array(weight)))
    layer.bias = nn.Parameter(torch.from_numpy(np.array(bias)))
    return layer
