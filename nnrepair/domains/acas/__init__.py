"""Collision avoidance: ACAS Xu."""

from nnrepair.domains.acas.data import (
    ADVISORIES,
    DOMAIN,
    INPUTS,
    LEAST,
    MOST,
    SCORE,
    UNITS,
    instances,
    locality_set,
    network,
    normalised,
    physical,
    property_file,
    states,
)

__all__ = ["ADVISORIES", "DOMAIN", "INPUTS", "LEAST", "MOST", "SCORE", "UNITS", "instances", "locality_set", "network"]
__all__ += ["normalised", "physical", "property_file", "states"]
