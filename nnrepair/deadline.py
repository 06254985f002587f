"""When work has to end, and what is being done meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from nnrepair.errors import InvalidInput

T = TypeVar("T")

#: Seconds between two lines of progress.
INTERVAL = 0.2


def required_seconds(timeout: Any, name: str = "timeout") -> None:
    """Require a time limit that can be one.

    Args:
        timeout: what was given.
        name: what the limit is called where it was given.

    Raises:
        InvalidInput: it is neither a positive number nor None.
    """
    good = isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout > 0
    if timeout is not None and not good:
        raise InvalidInput(f"{name} must be a positive number of seconds or None, got {timeout!r}.")


class OutOfTime(Exception):
    """The deadline passed in the middle of something; nothing was found out."""


class Deadline:
    """A moment by which all work must have ended.

    Whatever may take long is cut into pieces of well under a second, and calls `check` before each.

    Args:
        seconds: from now; None for never.
        say: told now and then what is being done.
        clock: what seconds are counted by; None for the wall's. `time.thread_time` stands still where other work has
            the processor.

    Attributes:
        doing: what that is, for people.
    """

    def __init__(
        self,
        seconds: float | None = None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self.end, self.say, self.doing = math.inf if seconds is None else self._now() + seconds, say, ""
        self._said = -math.inf

    def left(self) -> float:
        """Return how many seconds are left; infinity where there is no limit."""
        return self.end - self._now()

    def _now(self) -> float:
        return time.monotonic() if self._clock is None else self._clock()

    def part(self, shares: int, doing: str) -> Deadline:
        """Return a deadline after one of so many equal shares of the time that is left; what is done begins so."""
        left = self.left()
        seconds = None if left == math.inf else max(left, 0.0) / shares
        return Deadline(seconds, lambda text: self.say(doing + text), self._clock)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left() <= 0

    def check(self, doing: str | None = None) -> None:
        """Raise OutOfTime if no time is left; say what is being done if that was not said for a while."""
        self.doing = self.doing if doing is None else doing
        now = time.monotonic()
        if now - self._said > INTERVAL:
            self._said = now
            self.say(self.doing)
        if self.end <= (now if self._clock is None else self._clock()):
            raise OutOfTime

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, with a look at the clock now and then; for those that take microseconds each."""
        for count, item in enumerate(items):
            if count % 256 == 0:
                self.check()
            yield item

    def share(self, part: float) -> Deadline:
        """Return an earlier deadline, after a part (0 to 1) of the time that is left."""
        left = self.left()
        earlier = Deadline(None if math.isinf(left) else part * left, self.say, self._clock)
        earlier.doing = self.doing
        return earlier


NEVER = Deadline()
