"""Repair until properties are proved.

A violated property in, a network out for which it is proved over its whole region.
"""

from nnrepair.properties.repair import repair_property

__all__ = ["repair_property"]
