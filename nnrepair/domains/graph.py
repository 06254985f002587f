"""A public name of what is `nnrepair.domains.graphs.graph`."""

from nnrepair.domains.graphs.graph import *  # noqa: F403
