"""Public names of what is in `nnrepair.domains.images`: data, fog, networks and training."""

from nnrepair.domains.images.data import Images, digits, mnist, mnist_fog, mnist_is_here
from nnrepair.domains.images.fog import fog
from nnrepair.domains.images.networks import digits_cnn, relu_mlp
from nnrepair.domains.images.training import train_classifier

__all__ = [
    "Images",
    "digits",
    "digits_cnn",
    "fog",
    "mnist",
    "mnist_fog",
    "mnist_is_here",
    "relu_mlp",
    "train_classifier",
]
