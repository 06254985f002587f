"""A public name of what is `nnrepair.domains.graphs.data`."""

from nnrepair.domains.graphs.data import *  # noqa: F403
