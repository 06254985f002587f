"""A public name of what is `nnrepair.domains.graphs.cached`."""

from nnrepair.domains.graphs.cached import *  # noqa: F403
