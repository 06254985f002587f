"""A public name of what is `nnrepair.results.metrics`."""

from nnrepair.results.metrics import *  # noqa: F403
