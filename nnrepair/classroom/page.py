"""The page of one student: what is shown when, and what each click does. What is said there is in view.py.

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
from nnrepair.classroom.lesson import MOST_REPAIRS, ODDS, WAYS, Choice, Digit, Lesson, Repair
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
LOOK = "no-caps unelevated color=choice text-color=unset toggle-color=chosen toggle-text-color=set"
#: A student waits for at most so many things at a time.
MOST_WAITING = 4
DIGITS = {digit: str(digit) for digit in range(10)}
BROKEN = "Something went wrong here. Your repairs are as they were; try again, or reload the page to start over."
#: Sends the number of the button that was clicked, and marks it.
_CLICKED = """(event) => {
  const button = event.target.closest("button[data-%(name)s]");
  if (!button) return;
  for (const each of event.currentTarget.querySelectorAll("button[data-%(name)s]"))
    each.setAttribute("aria-pressed", String(each === button));
  emit(Number(button.dataset.%(name)s));
}"""


class Paper(Element, component="paper.js"):
    """What a student draws on."""


class Desk:
    """One student's page.

    Args:
        lesson: the student's.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.client = context.client
        self.waiting = 0
        self.digit: Digit | None = None
        self.strokes: Any = []
        self.changed: Digit | None = None
        self._build()
        self._start_again()

    # What is there -----------------------------------------------------------------------------------------------

    def _build(self) -> None:
        material = self.lesson.material
        with ui.element("div").classes("room"):
            with ui.element("header"):
                ui.html("Repair a network", tag="h1", sanitize=False)
                ui.label(material.told).classes("lead")
            self.working = ui.linear_progress(show_value=False, color=None).props(
                'indeterminate aria-label="the network is at work"'
            )
            self.working.classes("working").set_visibility(False)
            with ui.element("div").classes("columns"):
                with ui.element("div"):
                    self._build_choice()
                    self._build_guess()
                    self._build_wish()
                    self._build_path()
                with ui.element("div"):
                    self._build_result()

    def _build_choice(self) -> None:
        with _card("1", "Choose a digit"):
            self.source = ui.toggle({"pick": "Pick one", "draw": "Draw one"}, value="pick").props(LOOK)
            with ui.element("div").bind_visibility_from(self.source, "value", value="pick"):
                picks = ui.html(view.picks(self.lesson), sanitize=False)
                picks.on("click", self._on_pick, js_handler=_CLICKED % {"name": "pick"})
            with ui.element("div").classes("draw").bind_visibility_from(self.source, "value", value="draw"):
                self.paper = Paper().on("strokes", self._on_strokes)
                with ui.element("div").classes("row-of-buttons"):
                    _button("Read this", self._on_drawn)
                    _button("Clear the paper", self._on_clear, quiet=True)

    def _build_guess(self) -> None:
        self.guess_card = _card("2", "Guess what the network reads")
        with self.guess_card, ui.element("div").classes("look"):
            self.looked_at = ui.html(sanitize=False)
            with ui.element("div").classes("guess") as self.guessing:
                ui.label("What will it read?")
                self.guess = _digits("your guess", self._on_guess)
                _button("Show me", self._on_reveal, quiet=True)
            self.reading = ui.html(sanitize=False)

    def _build_wish(self) -> None:
        self.wish_card = _card("3", "Correct it")
        with self.wish_card:
            ui.label("What should it be read as?")
            self.wish = _digits("what it should be")
            self.way = ui.radio({name: way.name for name, way in WAYS.items()}, value="last").props(
                'aria-label="way to repair"'
            )
            ui.label().classes("fine").bind_text_from(self.way, "value", lambda name: WAYS[name].told)
            self.remember = ui.checkbox("Ask for earlier repairs again", value=True)
            _button("Repair the network", self._on_repair)

    def _build_result(self) -> None:
        with _card("", "What to do here") as self.intro:
            ui.html(view.intro(), sanitize=False)
        with _card("4", "What the repair did") as self.result_card:
            self.result = ui.html(sanitize=False)
            self.result.on("click", self._on_changed, js_handler=_CLICKED % {"name": "other"})
            with ui.element("div").classes("beside") as self.beside:
                self.detail = ui.html(sanitize=False)
                _button("Work on this digit", self._on_work_on, quiet=True)
            with ui.element("div") as self.more:
                self.known = ui.html(sanitize=False)
                self.prove = _button("Check the proof", self._on_prove, quiet=True)
                ui.html("Fix more, or break less?", tag="h3", sanitize=False)
                with ui.element("div").classes("slide"):
                    ui.label("break less").classes("fine")
                    self.odds = ui.element("input").props(
                        f'type=range min=0 max={len(ODDS) - 1} step=1 aria-label="break less or fix more"'
                    )
                    ui.label("fix more").classes("fine")
                self.odds.on("change", self._on_odds, js_handler="(event) => emit(Number(event.target.value))")
                self.tradeoff = ui.html(sanitize=False)
                ui.html("Two ways side by side", tag="h3", sanitize=False)
                self.others = ui.toggle({}).props(LOOK).classes("ways")
                self.others.on_value_change(self._on_compare)
                self.sides = ui.html(sanitize=False)
                self.swap = _button("Take this way instead", self._on_swap, quiet=True)

    def _build_path(self) -> None:
        with _card("5", "Your repairs, one after another").classes("path") as self.path_card:
            self.path = ui.html(sanitize=False)
            with ui.element("div").classes("row-of-buttons"):
                _button("Undo the last repair", self._on_undo, quiet=True)
                _button("Start over", self._on_start_over, quiet=True)
            ui.label(f"A lesson holds {MOST_REPAIRS} repairs. They are gone when the page is reloaded.").classes("fine")

    # What is shown when ------------------------------------------------------------------------------------------

    def _start_again(self) -> None:
        for card in (self.guess_card, self.wish_card, self.result_card, self.path_card):
            card.set_visibility(False)
        self.intro.set_visibility(True)

    def _look(self, digit: Digit) -> None:
        """Show a digit and ask for a guess."""
        self.digit = digit
        self.looked_at.set_content(view.looked_at(digit))
        self.reading.set_content("")
        self.guess.set_value(None)
        self.guess_card.set_visibility(True)
        self.guessing.set_visibility(True)
        self.wish_card.set_visibility(False)
        _scroll_to(self.guess_card)

    async def _reveal(self) -> None:
        """Show what the network reads, beside the guess."""
        digit = self.digit
        if digit is None:
            return
        found = await self._work(lambda: self.lesson.read(digit))
        if found is None or digit is not self.digit:
            return
        self.reading.set_content(view.reading(found, self.guess.value, digit.label))
        self.guessing.set_visibility(False)
        self.wish.set_value(None)
        self.wish_card.set_visibility(True)
        self.remember.set_visibility(bool(self.lesson.repairs))

    async def _show(self, repair: Repair) -> None:
        """Show what a repair did, and then what the slider's other places do."""
        self.intro.set_visibility(False)
        self.result_card.set_visibility(True)
        self.beside.set_visibility(False)
        self.result.set_content(view.result(repair, self.lesson.material))
        self.more.set_visibility(repair.ok)
        self._show_path()
        if repair.digit is self.digit:
            found = repair.after if repair.ok else repair.before
            self.reading.set_content(view.reading(found, None, repair.digit.label))
        if not repair.ok:
            return
        self.known.set_content(view.known(repair))
        self.prove.set_visibility(repair.result.certificate is not None)
        self.odds.props(f"value={repair.choice.odds}").update()  # also where the browser moved it and it goes back
        self.tradeoff.set_content("")
        self._show_others(repair)
        repairs = await self._work(self.lesson.tradeoff)
        if repairs is not None and repair in self.lesson.repairs[-1:]:
            self.tradeoff.set_content(view.tradeoff(repairs, repair.choice.odds))

    def _show_others(self, repair: Repair) -> None:
        self.others.set_options({name: way.name for name, way in WAYS.items() if name != repair.choice.way}, value=None)
        self.sides.set_content("")
        self.swap.set_visibility(False)

    def _show_path(self) -> None:
        repairs = self.lesson.repairs
        self.path_card.set_visibility(bool(repairs))
        if repairs:
            self.path.set_content(view.path(repairs, self.lesson.material))

    # What each click does ----------------------------------------------------------------------------------------

    def _on_pick(self, event: events.GenericEventArguments) -> None:
        if isinstance(event.args, int) and event.args in range(len(self.lesson.picks)):
            self._look(self.lesson.picks[event.args])

    def _on_strokes(self, event: events.GenericEventArguments) -> None:
        self.strokes = event.args

    def _on_clear(self) -> None:
        self.paper.run_method("clear")

    async def _on_drawn(self) -> None:
        strokes = self.strokes
        digit = await self._work(lambda: self.lesson.draw(strokes))
        if digit is not None:
            self._look(digit)

    async def _on_guess(self) -> None:
        if self.guess.value is not None:
            await self._reveal()

    async def _on_reveal(self) -> None:
        await self._reveal()

    async def _on_repair(self) -> None:
        digit, label = self.digit, self.wish.value
        if digit is None or label is None:
            self._say("First say what it should be read as: press one of the digits 0 to 9.")
            return
        choice = Choice(self.way.value, remember=self.remember.value)
        repair = await self._work(lambda: self.lesson.repair(digit, label, choice))
        if repair is not None:
            await self._show(repair)
            _scroll_to(self.result_card, "start")

    async def _on_odds(self, event: events.GenericEventArguments) -> None:
        place = event.args
        await self._otherwise(lambda last: replace(last, odds=place))

    async def _on_swap(self) -> None:
        way = self.others.value
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
        way = self.others.value
        if way is None or not self.lesson.repairs:
            return
        last = self.lesson.repairs[-1]
        other = await self._work(lambda: self.lesson.alternative(replace(last.choice, way=way)))
        if other is not None:
            self.sides.set_content(view.sides([last, other]))
            self.swap.set_visibility(other.ok)
            if not other.ok:
                self._say(words.outcome(other))

    async def _on_prove(self) -> None:
        if not self.lesson.repairs:
            return
        last = self.lesson.repairs[-1]
        proof = await self._work(lambda: prove(last))
        if proof is not None and last in self.lesson.repairs[-1:]:
            self.known.set_content(view.known(last, proof))
            self.prove.set_visibility(False)

    def _on_changed(self, event: events.GenericEventArguments) -> None:
        last = self.lesson.repairs[-1:]
        found = [each for repair in last for each in repair.changed if each.other == event.args]
        if found:
            self.changed = self.lesson.other(found[0].other)
            self.detail.set_content(view.detail(self.changed, found[0].was, found[0].now))
            self.beside.set_visibility(True)

    def _on_work_on(self) -> None:
        if self.changed is not None:
            self._look(self.changed)

    async def _on_undo(self) -> None:
        await self._back(self.lesson.undo)

    async def _on_start_over(self) -> None:
        await self._back(self.lesson.start_over)

    async def _back(self, take: Callable[[], None]) -> None:
        """Take repairs back, and show what is left."""

        def taken() -> bool:
            take()
            return True

        if await self._work(taken):
            await self._show_last()

    async def _show_last(self) -> None:
        """Show the last repair that is left, and read the digit at hand again."""
        if self.lesson.repairs:
            await self._show(self.lesson.repairs[-1])
        else:
            self._start_again()
        if self.digit is not None:
            self.guess_card.set_visibility(True)
            await self._reveal()

    # How ---------------------------------------------------------------------------------------------------------

    async def _work(self, work: Callable[[], T]) -> T | None:
        """Return what `work` returns when its turn has come, or say what went wrong and return None."""
        if self.waiting >= MOST_WAITING:
            self._say("One moment: the network is still at work on what you asked before.")
            return None
        self.waiting += 1
        self.working.set_visibility(True)
        try:
            return await asyncio.get_running_loop().run_in_executor(WORKER, work)
        except NNRepairError as error:
            self._say(str(error))
        except Exception:
            LOG.exception("A student's request failed")
            self._say(BROKEN)
        finally:
            self.waiting -= 1
            self.working.set_visibility(self.waiting > 0)
        return None

    def _say(self, text: str) -> None:
        with self.client:
            ui.notify(text, type="warning", position="top", multi_line=True, timeout=8000, close_button="Close")


def _card(number: str, title: str) -> Element:
    card = ui.element("section").classes("step")
    with card:
        mark = f'<span class="badge">{number}</span> ' if number else ""
        ui.html(f"{mark}{title}", tag="h2", sanitize=False)
    return card


def _button(text: str, press: Callable[[], Any], *, quiet: bool = False) -> ui.button:
    look = "outline" if quiet else "unelevated"
    return ui.button(text, on_click=press, color=None).props(f"no-caps {look}").classes("quiet" if quiet else "main")


def _digits(about: str, choose: Callable[[], Any] | None = None) -> ui.toggle:
    made = ui.toggle(DIGITS).props(f'{LOOK} role="group" aria-label="{about}"').classes("digits")
    return made if choose is None else made.on_value_change(choose)


def _scroll_to(element: Element, edge: str = "nearest") -> None:
    ui.run_javascript(f'getHtmlElement({element.id}).scrollIntoView({{block: "{edge}", behavior: "smooth"}})')
