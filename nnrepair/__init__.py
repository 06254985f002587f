"""Repair trained networks: the smallest change under which known mistakes are gone and the rest stays.

result = nnrepair.fix(model, edits, locality_set)
result.model, result.outcome, result.report, result.patch, result.certificate
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnrepair import data as data
    from nnrepair import domains as domains
    from nnrepair import methods
    from nnrepair import metrics as metrics
    from nnrepair import onnx as onnx
    from nnrepair import penalties as penalties
    from nnrepair import plot as plot
    from nnrepair import verify as verify
    from nnrepair.errors import (
        DataUnavailable,
        InvalidInput,
        MissingExtra,
        NNRepairError,
        PatchError,
        UnsupportedModel,
    )
    from nnrepair.failing import failing
    from nnrepair.fix import fix
    from nnrepair.locating import locate
    from nnrepair.properties import repair_property
    from nnrepair.results.effects import SideEffects
    from nnrepair.results.failed import RepairFailed
    from nnrepair.results.history import History, Step
    from nnrepair.results.outcome import Outcome
    from nnrepair.results.patch import Patch
    from nnrepair.results.result import RepairResult, Report
    from nnrepair.spec.criteria import (
        AllOf,
        AnyOf,
        Argmax,
        Argmin,
        Between,
        Criterion,
        Linear,
        Near,
        Threshold,
    )
    from nnrepair.spec.edits import Edits, EditScope, LocalitySet
    from nnrepair.spec.exemplars import Exemplars
    from nnrepair.spec.inputs import Inputs
    from nnrepair.spec.ranks import Above, TopK
    from nnrepair.spec.regions import Polygons, Segments
    from nnrepair.spec.scores import Scores
    from nnrepair.wrappers.decoupled import Decoupled

__all__ = [
    "Above",
    "AllOf",
    "AnyOf",
    "Argmax",
    "Argmin",
    "Between",
    "Criterion",
    "DataUnavailable",
    "Decoupled",
    "EditScope",
    "Edits",
    "Exemplars",
    "History",
    "Inputs",
    "InvalidInput",
    "Linear",
    "LocalitySet",
    "MissingExtra",
    "NNRepairError",
    "Near",
    "Outcome",
    "Patch",
    "PatchError",
    "Polygons",
    "RepairFailed",
    "RepairResult",
    "Report",
    "Scores",
    "Segments",
    "SideEffects",
    "Step",
    "Threshold",
    "TopK",
    "UnsupportedModel",
    "failing",
    "fix",
    "locate",
    "methods",
    "repair_property",
]

#: The module of each name. It is imported when the name is first used: what needs no torch does not wait for it.
_HOMES = {
    "spec.criteria": ("AllOf", "AnyOf", "Argmax", "Argmin", "Between", "Criterion", "Linear", "Near", "Threshold"),
    "spec.ranks": ("Above", "TopK"),
    "wrappers.decoupled": ("Decoupled",),
    "errors": (
        "DataUnavailable",
        "InvalidInput",
        "MissingExtra",
        "NNRepairError",
        "PatchError",
        "UnsupportedModel",
    ),
    "failing": ("failing",),
    "fix": ("fix",),
    "locating": ("locate",),
    "results.failed": ("RepairFailed",),
    "results.history": ("History", "Step"),
    "results.outcome": ("Outcome",),
    "results.patch": ("Patch",),
    "properties": ("repair_property",),
    "results.effects": ("SideEffects",),
    "results.result": ("RepairResult", "Report"),
    "spec.regions": ("Polygons", "Segments"),
    "spec.edits": ("EditScope", "Edits", "LocalitySet"),
    "spec.exemplars": ("Exemplars",),
    "spec.inputs": ("Inputs",),
    "spec.scores": ("Scores",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """The package as a module whose names, and modules, are imported when they are first used."""

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            value = importlib.import_module(f"{__name__}.extras").installed()
        elif name in _HOME_OF:
            value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            value = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=self)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, as Python does with every module that it imports: `fix` stays the function, though."""
        if _HOME_OF.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name, as of any other module: functions of scripts and notebooks take it with them."""
        return importlib.import_module, (self.__name__,)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
