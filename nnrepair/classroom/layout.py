"""What lies where on the page of one student; what each thing does is in page.py, what it says in view.py."""

from __future__ import annotations

from nnrepair.classroom import view
from nnrepair.classroom.lesson import MOST_REPAIRS, ODDS, WAYS, Choice, Lesson
from nnrepair.extras import needed

with needed("classroom", "The classroom needs NiceGUI"):
    from nicegui import ui
    from nicegui.element import Element

DIGITS = {digit: str(digit) for digit in range(10)}
LOOK = "no-caps unelevated color=choice text-color=unset toggle-color=chosen toggle-text-color=set"


class Paper(Element, component="paper.js"):
    """What a student draws on."""


class Layout:
    """The cards of the page, from the first step to the last, and what is in them.

    Args:
        lesson: whose page it is.
    """

    def __init__(self, lesson: Lesson) -> None:
        with ui.element("div").classes("room"):
            with ui.element("header"):
                ui.html("Repair a network", tag="h1", sanitize=False)
                ui.label(lesson.material.told).classes("lead")
            self.working = ui.linear_progress(show_value=False, color=None).classes("working")
            self.working.props('indeterminate aria-label="the network is at work"')
            with ui.element("div").classes("columns"):
                with ui.element("div"):
                    self._build_choice(lesson)
                    self._build_guess()
                    self._build_wish(lesson)
                    self._build_path()
                with ui.element("div"):
                    self._build_result(lesson)
        self.working.set_visibility(False)

    def _build_choice(self, lesson: Lesson) -> None:
        with _card("1", "Choose a digit"):
            source = ui.toggle({"pick": "Pick one", "draw": "Draw one"}, value="pick").props(LOOK)
            with ui.element("div").bind_visibility_from(source, "value", value="pick"):
                self.picks = ui.html(view.picks(lesson), sanitize=False)
            with ui.element("div").bind_visibility_from(source, "value", value="draw"):
                self.paper = Paper()
                with ui.element("div").classes("row-of-buttons"):
                    self.drawn = _button("Read this")
                    self.clear = _button("Clear the paper", quiet=True)

    def _build_guess(self) -> None:
        self.guess_card = _card("2", "Guess what the network reads")
        with self.guess_card, ui.element("div").classes("look"):
            self.looked_at = ui.html(sanitize=False)
            with ui.element("div").classes("guess") as self.guessing:
                ui.label("What will it read?")
                self.guess = _digits("your guess")
                self.reveal = _button("Show me", quiet=True)
            self.reading = ui.html(sanitize=False)

    def _build_wish(self, lesson: Lesson) -> None:
        self.wish_card = _card("3", "Correct it")
        with self.wish_card:
            ui.label("What should it be read as?")
            self.wish = _digits("what it should be")
            self.way = ui.radio({name: way.name for name, way in WAYS.items()}, value=Choice().way)
            self.way.props('aria-label="way to repair"')
            kept = len(lesson.material.kept)
            ui.label().classes("fine").bind_text_from(self.way, "value", lambda name: WAYS[name].told.format(kept=kept))
            self.remember = ui.checkbox("Ask for earlier repairs again", value=True)
            self.repair = _button("Repair the network")

    def _build_result(self, lesson: Lesson) -> None:
        with _card("", "What to do here") as self.intro:
            ui.html(view.intro(lesson.material), sanitize=False)
        with _card("4", "What the repair did") as self.result_card:
            self.result = ui.html(sanitize=False)
            with ui.element("div").classes("beside") as self.beside:
                self.detail = ui.html(sanitize=False)
                self.work_on = _button("Work on this digit", quiet=True)
            with ui.element("div") as self.more:
                self.known = ui.html(sanitize=False)
                self.prove = _button("Check the proof", quiet=True)
                ui.html("Fix more, or break less?", tag="h3", sanitize=False)
                with ui.element("label").classes("slide"):
                    ui.label("break less").classes("fine")
                    self.odds = ui.element("input").props(
                        f'type=range min=0 max={len(ODDS) - 1} step=1 aria-label="break less or fix more"'
                    )
                    ui.label("fix more").classes("fine")
                self.tradeoff = ui.html(sanitize=False)
                ui.html("Two ways side by side", tag="h3", sanitize=False)
                self.others = ui.toggle({}).props(LOOK).classes("ways")
                self.sides = ui.html(sanitize=False)
                self.swap = _button("Take this way instead", quiet=True)

    def _build_path(self) -> None:
        with _card("5", "Your repairs, one after another").classes("path") as self.path_card:
            self.path = ui.html(sanitize=False)
            with ui.element("div").classes("row-of-buttons"):
                self.undo = _button("Undo the last repair", quiet=True)
                self.start_over = _button("Start over", quiet=True)
            ui.label(f"A lesson holds {MOST_REPAIRS} repairs. They are gone when the page is reloaded.").classes("fine")


def _card(number: str, title: str) -> Element:
    card = ui.element("section").classes("step")
    with card:
        mark = f'<span class="badge">{number}</span> ' if number else ""
        ui.html(f"{mark}{title}", tag="h2", sanitize=False)
    return card


def _button(text: str, *, quiet: bool = False) -> ui.button:
    look = "outline" if quiet else "unelevated"
    return ui.button(text, color=None).props(f"no-caps {look}").classes("quiet" if quiet else "main")


def _digits(about: str) -> ui.toggle:
    return ui.toggle(DIGITS).props(f'{LOOK} role="group" aria-label="{about}"').classes("digits")
