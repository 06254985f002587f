"""A public name of what is `nnrepair.domains.acas.plot`."""

from nnrepair.domains.acas.plot import *  # noqa: F403
