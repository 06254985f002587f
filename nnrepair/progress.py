"""A progress line for long work: one changing sentence and the time, on stderr, only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(title: str, show: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line of text beside a counter; it does nothing unless `show`."""
    if not show:
        yield lambda text: None
        return
    with tqdm(desc=title, unit=" rounds", leave=False) as bar:

        def report(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield report
