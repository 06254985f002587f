"""Repair trained networks: the smallest change under which known mistakes are gone and the rest stays.

result = nnrepair.fix(model, edits, locality_set)
result.model, result.outcome, result.report, result.patch, result.certificate
"""

from nnrepair import methods
from nnrepair.criteria import AllOf, AnyOf, Argmax, Argmin, Criterion, Linear, Near, Threshold
from nnrepair.decoupled import Decoupled
from nnrepair.errors import (
    DataUnavailable,
    InvalidInput,
    NNRepairError,
    PatchError,
    RepairFailed,
    UnsupportedModel,
)
from nnrepair.fix import fix
from nnrepair.history import History, Step
from nnrepair.outcome import Outcome
from nnrepair.patch import Patch
from nnrepair.properties import repair_property
from nnrepair.result import Kept, RepairResult, Report
from nnrepair.shapes import Polygons, Segments
from nnrepair.spec import Edits, EditScope, Inputs, LocalitySet

__all__ = [
    "AllOf",
    "AnyOf",
    "Argmax",
    "Argmin",
    "Criterion",
    "DataUnavailable",
    "Decoupled",
    "EditScope",
    "Edits",
    "History",
    "Inputs",
    "InvalidInput",
    "Kept",
    "Linear",
    "LocalitySet",
    "NNRepairError",
    "Near",
    "Outcome",
    "Patch",
    "PatchError",
    "Polygons",
    "RepairFailed",
    "RepairResult",
    "Report",
    "Segments",
    "Step",
    "Threshold",
    "UnsupportedModel",
    "fix",
    "methods",
    "repair_property",
]
