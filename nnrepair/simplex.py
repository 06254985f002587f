"""HiGHS, which solves the linear programs: one thread, no presolve, and silent."""

from __future__ import annotations

from typing import Any

import highspy


def solver(**options: float) -> Any:
    """Return a HiGHS solver with `options` on top of the common ones."""
    # highspy.Highs prints a banner before it can be told not to; the class below it has all that is used here.
    made: Any = highspy.Highs.__mro__[1]()
    for option, value in {"output_flag": False, "threads": 1, "presolve": "off", **options}.items():
        made.setOptionValue(option, value)
    return made
