"""A public name of what is `nnrepair.methods.fine_tune.penalties`."""

from nnrepair.methods.fine_tune.penalties import *  # noqa: F403
