"""A public name of what is `nnrepair.domains.images.vision`."""

from nnrepair.domains.images.vision import *  # noqa: F403
