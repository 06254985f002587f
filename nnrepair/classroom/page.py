"""The page of one student: what is shown when, and what each click does.

Every browser tab has a `Desk` of its own, with a lesson of its own. Work on networks runs in one thread for all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from nnrepair.classroom import view, words
from nnrepair.classroom.layout import Layout
from nnrepair.classroom.lesson import WAYS, Choice, Digit, Lesson, Repair
from nnrepair.classroom.proof import prove
from nnrepair.errors import NNRepairError
from nnrepair.extras import needed

with needed("classroom", "The classroom needs NiceGUI"):
    from nicegui import context, events, ui
    from nicegui.element import Element

T = TypeVar("T")

LOG = logging.getLogger(__name__)
#: One repair at a time: it takes well under a second, and two at once would be slower and share torch's settings.
WORKER = ThreadPoolExecutor(1, thread_name_prefix="classroom")
#: A student waits for at most so many things at a time.
MOST_WAITING = 4
BROKEN = "Something went wrong here. Your repairs are as they were; try again, or reload the page to start over."
#: Sends the number of the button that was clicked, and marks it.
_CLICKED = """(event) => {
  const button = event.target.closest("button[data-%(name)s]");
  if (!button) return;
  for (const each of event.currentTarget.querySelectorAll("button[data-%(name)s]"))
    each.setAttribute("aria-pressed", String(each === button));
  emit(Number(button.dataset.%(name)s));
}"""
_PLACE = "(event) => emit(Number(event.target.value))"


class Desk:
    """One student's page.

    Args:
        lesson: the student's.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.client = context.client
        self.page = Layout(lesson)
        self.waiting = 0
        self.digit: Digit | None = None
        self.strokes: Any = []
        self.changed: Digit | None = None
        self._connect()
        self._start_again()

    def _connect(self) -> None:
        """Say what each thing on the page does."""
        page = self.page
        page.picks.on("click", self._on_pick, js_handler=_CLICKED % {"name": "pick"})
        page.paper.on("strokes", self._on_strokes)
        page.clear.on_click(lambda: page.paper.run_method("clear"))
        page.drawn.on_click(self._on_drawn)
        page.guess.on_value_change(self._on_guess)
        page.reveal.on_click(self._reveal)
        page.repair.on_click(self._on_repair)
        page.result.on("click", self._on_changed, js_handler=_CLICKED % {"name": "other"})
        page.work_on.on_click(self._on_work_on)
        page.prove.on_click(self._on_prove)
        page.odds.on("change", self._on_odds, js_handler=_PLACE)
        page.others.on_value_change(self._on_compare)
        page.swap.on_click(self._on_swap)
        page.undo.on_click(lambda: self._back(self.lesson.undo))
        page.start_over.on_click(lambda: self._back(self.lesson.start_over))

    # What is shown when ------------------------------------------------------------------------------------------

    def _start_again(self) -> None:
        page = self.page
        for card in (page.guess_card, page.wish_card, page.result_card, page.path_card):
            card.set_visibility(False)
        page.intro.set_visibility(True)

    def _look(self, digit: Digit) -> None:
        """Show a digit and ask for a guess."""
        page = self.page
        self.digit = digit
        page.looked_at.set_content(view.looked_at(digit))
        page.reading.set_content("")
        page.guess.set_value(None)
        page.guess_card.set_visibility(True)
        page.guessing.set_visibility(True)
        page.wish_card.set_visibility(False)
        _scroll_to(page.guess_card)

    async def _reveal(self) -> None:
        """Show what the network reads, beside the guess."""
        page, digit = self.page, self.digit
        if digit is None:
            return
        found = await self._work(lambda: self.lesson.read(digit))
        if found is None or digit is not self.digit:
            return
        page.reading.set_content(view.reading(found, page.guess.value, digit.label))
        page.guessing.set_visibility(False)
        page.wish.set_value(None)
        page.wish_card.set_visibility(True)
        page.remember.set_visibility(bool(self.lesson.repairs))

    async def _show(self, repair: Repair) -> None:
        """Show what a repair did, and then what the slider's other places do."""
        page = self.page
        page.intro.set_visibility(False)
        page.result_card.set_visibility(True)
        page.beside.set_visibility(False)
        page.result.set_content(view.result(repair, self.lesson.material))
        page.more.set_visibility(repair.ok)
        page.path_card.set_visibility(bool(self.lesson.repairs))
        if self.lesson.repairs:
            page.path.set_content(view.path(self.lesson.repairs, self.lesson.material))
        if repair.digit is self.digit:
            found = repair.after if repair.ok else repair.before
            page.reading.set_content(view.reading(found, None, repair.digit.label))
        if repair.ok:
            await self._show_more(repair)

    async def _show_more(self, repair: Repair) -> None:
        page = self.page
        page.known.set_content(view.known(repair))
        page.prove.set_visibility(repair.result.certificate is not None)
        page.odds.props(f"value={repair.choice.odds}").update()  # also where the browser moved it and it goes back
        page.others.set_options({name: way.name for name, way in WAYS.items() if name != repair.choice.way}, value=None)
        page.sides.set_content("")
        page.swap.set_visibility(False)
        page.tradeoff.set_content("")
        repairs = await self._work(self.lesson.tradeoff)
        if repairs is not None and repair in self.lesson.repairs[-1:]:
            page.tradeoff.set_content(view.tradeoff(repairs, repair.choice.odds))

    # What each click does ----------------------------------------------------------------------------------------

    def _on_pick(self, event: events.GenericEventArguments) -> None:
        if isinstance(event.args, int) and event.args in range(len(self.lesson.picks)):
            self._look(self.lesson.picks[event.args])

    def _on_strokes(self, event: events.GenericEventArguments) -> None:
        self.strokes = event.args

    async def _on_drawn(self) -> None:
        strokes = self.strokes
        digit = await self._work(lambda: self.lesson.draw(strokes))
        if digit is not None:
            self._look(digit)

    async def _on_guess(self) -> None:
        if self.page.guess.value is not None:
            await self._reveal()

    async def _on_repair(self) -> None:
        digit, label = self.digit, self.page.wish.value
        if digit is None or label is None:
            self._say("First say what it should be read as: press one of the digits 0 to 9.")
            return
        choice = Choice(self.page.way.value, remember=self.page.remember.value)
        repair = await self._work(lambda: self.lesson.repair(digit, label, choice))
        if repair is not None:
            await self._show(repair)
            _scroll_to(self.page.result_card, "start")

    async def _on_odds(self, event: events.GenericEventArguments) -> None:
        place = event.args
        await self._otherwise(lambda last: replace(last, odds=place))

    async def _on_swap(self) -> None:
        way = self.page.others.value
        await self._otherwise(lambda last: replace(last, way=way))

    async def _otherwise(self, change: Callable[[Choice], Choice]) -> None:
        """Put the last repair, made otherwise, in its place, where that can be done."""

        def make() -> Repair:
            found = self.lesson.alternative(change(self.lesson.last.choice))
            if found.ok:
                self.lesson.use(found)
            return found

        found = await self._work(make)
        if found is None:
            return
        if not found.ok:
            self._say(words.outcome(found))
        await self._show(self.lesson.last)

    async def _on_compare(self) -> None:
        way = self.page.others.value
        if way is None or not self.lesson.repairs:
            return
        last = self.lesson.last
        other = await self._work(lambda: self.lesson.alternative(replace(last.choice, way=way)))
        if other is not None and last in self.lesson.repairs[-1:]:
            self.page.sides.set_content(view.sides([last, other]))
            self.page.swap.set_visibility(other.ok)
            if not other.ok:
                self._say(words.outcome(other))

    async def _on_prove(self) -> None:
        if not self.lesson.repairs:
            return
        last = self.lesson.last
        proof = await self._work(lambda: prove(last))
        if proof is not None and last in self.lesson.repairs[-1:]:
            self.page.known.set_content(view.known(last, proof))
            self.page.prove.set_visibility(False)

    def _on_changed(self, event: events.GenericEventArguments) -> None:
        last = self.lesson.repairs[-1:]
        found = [each for repair in last for each in repair.changed if each.other == event.args]
        if found:
            self.changed = self.lesson.other(found[0].other)
            self.page.detail.set_content(view.detail(self.changed, found[0].was, found[0].now))
            self.page.beside.set_visibility(True)

    def _on_work_on(self) -> None:
        if self.changed is not None:
            self._look(self.changed)

    async def _back(self, take: Callable[[], None]) -> None:
        """Take repairs back, and show what is left; read the digit at hand again."""

        def taken() -> bool:
            take()
            return True

        if not await self._work(taken):
            return
        if self.lesson.repairs:
            await self._show(self.lesson.last)
        else:
            self._start_again()
        if self.digit is not None:
            self.page.guess_card.set_visibility(True)
            await self._reveal()

    # How ---------------------------------------------------------------------------------------------------------

    async def _work(self, work: Callable[[], T]) -> T | None:
        """Return what `work` returns when its turn has come, or say what went wrong and return None."""
        if self.waiting >= MOST_WAITING:
            self._say("One moment: the network is still at work on what you asked before.")
            return None
        self.waiting += 1
        self.page.working.set_visibility(True)
        try:
            return await asyncio.get_running_loop().run_in_executor(WORKER, work)
        except NNRepairError as error:
            self._say(str(error))
        except Exception:
            LOG.exception("A student's request failed")
            self._say(BROKEN)
        finally:
            self.waiting -= 1
            self.page.working.set_visibility(self.waiting > 0)
        return None

    def _say(self, text: str) -> None:
        with self.client:
            ui.notify(text, type="warning", position="top", multi_line=True, timeout=8000, close_button="Close")


def _scroll_to(element: Element, edge: str = "nearest") -> None:
    ui.run_javascript(f'getHtmlElement({element.id}).scrollIntoView({{block: "{edge}"}})')
