"""A public name of what is `nnrepair.regions.splitting`."""

from nnrepair.regions.splitting import *  # noqa: F403
