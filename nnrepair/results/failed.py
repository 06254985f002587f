"""The exception for a repair after which some edits do not hold; it has the full result."""

from __future__ import annotations

from nnrepair.errors import NNRepairError
from nnrepair.results.history import History
from nnrepair.results.result import RepairResult


class RepairFailed(NNRepairError):
    """Not every edit holds after the repair. The full result is in `.result`; `throw=False` returns it instead."""

    def __init__(self, result: RepairResult | History) -> None:
        super().__init__(
            f"{result.outcome}\nThe full result is in this exception's .result; throw=False returns it instead."
        )
        self.result = result
