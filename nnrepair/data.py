"""A public name of what is `nnrepair.domains.files`."""

from nnrepair.domains.files import *  # noqa: F403
