"""Repair methods: one file each, one row each in the table of tests."""

from nnrepair.methods.base import REGISTRY, Capabilities, Method, Proposal, named, register
from nnrepair.methods.fine_tune import FineTune
from nnrepair.methods.minimal_norm import MinimalNorm

__all__ = ["REGISTRY", "Capabilities", "FineTune", "Method", "MinimalNorm", "Proposal", "named", "register"]
