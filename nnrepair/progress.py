"""A progress line for long work: one changing sentence and the time, on stderr, only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(title: str, show: bool, counts: bool = True) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line of text and the time; it does nothing unless `show`.

    Args:
        title: of the line.
        show: whether there is a line.
        counts: whether to show how often the function was called.
    """
    if not show:
        yield lambda text: None
        return
    form = "{desc}: {elapsed}" + ", round {n_fmt}" * counts + "{postfix}"
    with tqdm(desc=title, leave=False, bar_format=form) as bar:

        def report(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield report
