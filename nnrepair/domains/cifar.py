"""A public name of what is `nnrepair.domains.images.cifar`."""

from nnrepair.domains.images.cifar import *  # noqa: F403
