"""SqueezeNet 1.1, trained on ImageNet: a small network as people ship it, with a convolution as its last layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.errors import InvalidInput
from nnrepair.extras import needed

_WEIGHTS = Resource(
    "imagenet/squeezenet1_1_caffe_torchvision.npz",
    sha256="03e818c24ed19e6a8159a22cf500fa04f46cd7148524a9969a57f66a52d309ac",
)


def squeezenet() -> nn.Module:
    """Load SqueezeNet 1.1 (Iandola et al., 2016) in eval mode: (n, 3, 224, 224) to logits (n, 1000), none below 0.

    The network is torchvision's `squeezenet1_1`. The weights are not torchvision's: they are those of its authors
    (DeepScale/SqueezeNet, BSD), rounded to half precision by OpenVINO, with their order and scale of colours folded
    into the first layer, so that torchvision's normalisation applies (`nnrepair.domains.images.samples`).

    >>> squeezenet().classifier[1]  # doctest: +SKIP
    Conv2d(512, 1000, kernel_size=(1, 1), stride=(1, 1))

    Raises:
        DataUnavailable: `imagenet/squeezenet1_1_caffe_torchvision.npz` is not here.
        InvalidInput: it holds other weights.
        MissingExtra: torchvision is not installed.
    """
    with needed("vision", "SqueezeNet is torchvision's"):
        from torchvision.models import squeezenet1_1
    path = files.locate(_WEIGHTS)
    with torch.random.fork_rng(devices=[]):  # the first weights are random, and then replaced
        model: nn.Module = squeezenet1_1(weights=None)
    own = model.state_dict()
    with files.open_npz(path) as file:
        if set(file.files) != set(own):
            other = sorted(set(file.files) ^ set(own))
            raise InvalidInput(f"{path} is not of this network: {', '.join(other[:5])} are in one of them alone.")
        weights = {name: torch.from_numpy(np.asarray(file[name])) for name in own}
    misfit = [name for name, value in weights.items() if value.shape != own[name].shape]
    if misfit:
        raise InvalidInput(f"{path} has other shapes for {', '.join(misfit[:5])}: it is not of this network.")
    model.load_state_dict(weights)
    return model.eval()
