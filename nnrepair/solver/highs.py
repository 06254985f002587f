"""The linear-programming solver HiGHS, silent: its own constructor prints a banner on stdout."""

from __future__ import annotations

import highspy


class _Silent(highspy.Highs):
    """Says nothing before it can be told to say nothing: the constructor enables callbacks, and that prints."""

    def enableCallbacks(self) -> None:
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]


def solver(**options: str | float | bool) -> highspy.Highs:
    """Return a solver that prints nothing and computes on one thread, with HiGHS's options as given."""
    made = _Silent()  # type: ignore[no-untyped-call]
    for name, value in ({"output_flag": False, "threads": 1} | options).items():
        made.setOptionValue(name, value)
    return made
