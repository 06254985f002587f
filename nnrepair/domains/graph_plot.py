"""A public name of what is `nnrepair.domains.graphs.plot`."""

from nnrepair.domains.graphs.plot import *  # noqa: F403
