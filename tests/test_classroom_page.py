"""The classroom in a real browser: what a student does, on a phone and a laptop, in light and dark, alone and not.

Each page's requests are watched: none leaves this machine. With NNREPAIR_SCREENSHOTS=folder, pictures of the page in
every size and colour scheme are written there. docs/classroom.png is classroom-laptop-light.png of these, and
docs/classroom-phone.png is classroom-phone-dark.png.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from drawings import DIGITS

from nnrepair.classroom.material import material
from nnrepair.classroom.record import lesson_page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

#: The command, with room for four lessons, which end soon after their tabs, and drawings that break it.
SERVER = """
import sys
from functools import partial
from nnrepair import cli
from nnrepair.classroom import server
from nnrepair.classroom.lesson import Digit, Lesson

server.COME_BACK, server.Room = 0.5, partial(server.Room, most=4)
draw = Lesson.draw
Lesson.draw = lambda self, strokes: {7: lambda: 1 // 0, 8: lambda: Digit("no picture")}.get(
    len(strokes), lambda: draw(self, strokes)
)()
sys.exit(cli.main(["classroom", "--data", "digits", "--port", "0", "--no-browser"]))
"""
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
#: Returns the texts that a reader sees with less contrast than WCAG asks for (4.5, of large letters 3).
PALE = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((k) => top[3] * top[k] + (1 - top[3]) * under[k]);
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(rgba(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!text || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (element.closest("script, style, noscript")) continue;
    const style = getComputedStyle(element), under = behind(element);
    const ink = over(rgba(element.closest("svg") ? style.fill : style.color), under);
    const [high, low] = [light(ink), light(under)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

#: Whether no colour fades and nothing slides.
STILL = "() => document.getAnimations().every((each) => each.playState !== 'running')"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run the classroom as a program of its own, and give its address."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "NNREPAIR_DATA")}
    with subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", SERVER], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        said = ""
        for line in program.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        try:
            assert found is not None, said
            yield found.group()
        finally:
            program.send_signal(signal.SIGINT)
        assert program.wait(20) == 0  # that is how it ends


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record a lesson, without the proofs, which tests/test_classroom.py has."""
    file = tmp_path_factory.mktemp("recorded") / "lesson.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnrepair.classroom.record.prove", lambda repair: None)
        patch.setattr("nnrepair.classroom.record.SEQUENCE", 3)
        file.write_text(lesson_page(material("digits"), misread=1), encoding="utf-8")
    return file


@pytest.fixture
def tab(chromium: Any) -> Iterator[Open]:
    """Open tabs, each of a browser of its own, and see that they complain of nothing and ask for nothing elsewhere."""
    requests, complaints, contexts = list[str](), list[str](), list[Any]()

    def opened(address: str, size: str = "laptop", dark: bool = False) -> Any:
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # as long as the classroom waits for its checker
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.get_by_role("heading", name="Repair a network").or_(page.locator(".full")).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert requests and {urlsplit(url).hostname for url in requests if not url.startswith("data:")} <= {
        "127.0.0.1",
        None,
    }
    assert complaints == []


def picked(page: Any) -> tuple[int, int]:
    """Pick and read digits until one is misread; return what the network reads, and what the digit is."""
    for number in range(36):
        page.locator("[data-pick]").nth(number).click()
        page.get_by_role("button", name="Show me").click()
        said = page.locator(".says:has(+ .shares)").inner_text()
        if found := re.match(r"The network reads (\d)\. It is an? (\d)\.", said):
            return int(found[1]), int(found[2])
    raise AssertionError("no digit is misread")


def repaired(page: Any, label: int, way: str = "Smallest change") -> None:
    """Ask for a repair, and wait until the page shows all about it."""
    page.get_by_role("radio", name=way, exact=True).click()
    page.get_by_role("group", name="what it should be").get_by_role("button", name=str(label)).click()
    page.get_by_role("button", name="Repair the network").click()
    page.get_by_text(f"now reads this digit as {label}.").wait_for()
    page.locator(".tradeoff").wait_for()


def across(page: Any) -> int:
    """Return how wide a page is when nothing moves any more."""
    page.wait_for_function(STILL)
    found: int = page.evaluate("document.documentElement.scrollWidth")
    return found


def pale(page: Any) -> list[str]:
    """Return the texts of a page that are hard to read, once colours have stopped to fade."""
    page.wait_for_function(STILL)
    found: list[str] = page.evaluate(PALE)
    return found


def photographed(page: Any, file: Path, whole: bool) -> None:
    """Write a picture of the page in few colours, which makes it small."""
    from PIL import Image

    picture = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)


def drawn(page: Any, strokes: list[list[list[float]]]) -> None:
    page.locator("canvas").scroll_into_view_if_needed()
    box = page.locator("canvas").bounding_box()
    for stroke in strokes:
        for place, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if place == 0:
                page.mouse.down()
        page.mouse.up()


def test_a_student_repairs_looks_around_and_takes_it_back(tab: Open, address: str) -> None:
    page = tab(address)
    page.locator("[data-pick]").nth(0).click()
    page.get_by_role("group", name="your guess").wait_for()
    assert page.locator(".shares").count() == 0  # the guess comes before the answer
    page.get_by_role("group", name="your guess").get_by_role("button", name="3").click()
    page.get_by_text(re.compile("The network reads.*guessed")).wait_for()
    was, label = picked(page)
    repaired(page, label)
    assert f"{was} →" in " ".join(page.locator(".arrow").inner_text().split())

    count = int(re.findall(r"(\d+) of 1,000 other digits changed", page.locator("main").inner_text())[0])
    assert page.locator("[data-other]").count() == min(count, 44) > 0
    page.locator("[data-other]").first.click()
    page.get_by_text(re.compile(r"It is an? \d. Before the repair the network read \d, now it reads \d")).wait_for()

    page.get_by_role("button", name="Check the proof").click()
    page.locator(".box.proved").get_by_text("Proved by an independent program").wait_for()

    page.get_by_role("slider", name="break less or fix more").press("End")
    page.get_by_text("at least 1,000 times as likely").wait_for()
    page.locator(".tradeoff th.chosen", has_text="1,000").wait_for()

    page.get_by_role("button", name="More training").click()
    page.locator(".sides th", has_text="More training").wait_for()
    page.get_by_role("button", name="Take this way instead").click()
    page.locator(".steps li", has_text="More training").wait_for()
    assert page.get_by_text("Nothing is proved about this way").is_visible()

    was, label = picked(page)
    repaired(page, label)
    assert page.locator(".steps li").count() == 2 and page.get_by_text(re.compile("[01] of 1 still hold")).is_visible()
    page.get_by_role("button", name="Undo the last repair").click()
    page.get_by_text(re.compile(f"The network reads {was}.* It is an? {label}")).wait_for()
    assert page.locator(".steps li").count() == 1
    page.get_by_role("button", name="Start over").click()
    page.get_by_role("heading", name="What to do here").wait_for()
    assert not page.locator(".steps").is_visible()


def test_a_drawn_digit_is_read_and_what_is_wrong_is_said(tab: Open, address: str) -> None:
    page = tab(address)
    page.get_by_role("button", name="Draw one").click()
    page.get_by_role("button", name="Read this").click()
    page.get_by_text("draw a digit first").wait_for()
    assert pale(page) == []
    drawn(page, [[[0.1 * k, 0.2], [0.1 * k, 0.8]] for k in range(1, 8)])
    page.get_by_role("button", name="Read this").click()
    page.get_by_text("Something went wrong here").wait_for()
    page.get_by_role("alert").filter(has_text="Something went wrong").get_by_role("button", name="Close").click()
    page.get_by_text("Something went wrong here").wait_for(state="hidden")
    drawn(page, [[[0.2, 0.1], [0.8, 0.1]]])
    page.get_by_role("button", name="Read this").click()
    page.get_by_text("Something went wrong here").wait_for()
    page.get_by_role("button", name="Clear the paper").click()
    drawn(page, DIGITS[7])
    page.get_by_role("button", name="Read this").click()
    page.get_by_role("group", name="your guess").get_by_role("button", name="7").click()
    page.get_by_text("The network reads 7, as you guessed.").wait_for()
    page.get_by_role("button", name="Repair the network").click()
    page.get_by_text("First say what it should be read as").wait_for()
    page.get_by_role("group", name="what it should be").get_by_role("button", name="7").click()
    page.get_by_role("button", name="Repair the network").click()
    page.get_by_text("reads this as 7 already").wait_for()
    repaired(page, 1, "Smallest change, one layer deeper")


def test_only_this_machine_is_answered_and_browsers_are_told_to_load_nothing_else(address: str) -> None:
    with urlopen(address) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "//" not in policy
    with pytest.raises(HTTPError, match="400"):  # a page elsewhere that had its name point here
        urlopen(Request(address, headers={"Host": "elsewhere.example"}))


def test_students_do_not_see_each_other_and_no_more_come_in_than_fit(tab: Open, address: str) -> None:
    one, two = tab(address), tab(address)
    was, label = picked(one)
    assert picked(two) == (was, label)
    repaired(one, label)
    assert picked(two) == (was, label) and not two.locator(".steps").is_visible()
    more = [tab(address) for _ in range(3)]
    full = [page for page in more if page.get_by_text("The classroom is full: 4 lessons are open").is_visible()]
    assert len(full) == 1
    two.close()
    for _ in range(20):
        full[0].reload()
        full[0].get_by_role("heading", name="Repair a network").or_(full[0].locator(".full")).wait_for()
        if full[0].get_by_role("heading", name="Repair a network").is_visible():
            break
        full[0].wait_for_timeout(250)
    assert full[0].locator("[data-pick]").count() == 36


def test_everything_fits_and_can_be_read(tab: Open, address: str) -> None:
    page = tab(address)
    _, label = picked(page)
    repaired(page, label)
    page.locator("[data-other]").first.click()
    page.get_by_role("button", name="More training").click()
    page.locator(".sides").wait_for()
    for (name, (width, height)), scheme in product(SIZES.items(), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert pale(page) == []
        if folder := os.environ.get("NNREPAIR_SCREENSHOTS"):
            top = page.get_by_role("heading", name="Repair a network" if name == "laptop" else "What the repair did")
            top.evaluate("heading => heading.closest('section, main').scrollIntoView()")
            page.mouse.move(0, 0)
            for ending, whole in (("", False), ("-whole", True)):
                photographed(page, Path(folder) / f"classroom-{name}-{scheme}{ending}.png", whole)


@pytest.mark.parametrize(("size", "dark"), [("laptop", False), ("phone", True)])
def test_the_recorded_lesson_asks_before_it_tells(tab: Open, recorded: Path, size: str, dark: bool) -> None:
    page = tab(recorded.as_uri(), size, dark)
    first = page.locator(".digit").first
    assert not first.get_by_text("The network reads").is_visible() and not first.locator(".tradeoff:visible").count()
    first.get_by_role("button", name="9", exact=True).click()
    assert first.get_by_text("You guessed 9.").is_visible() and first.get_by_text("The network reads").is_visible()
    first.get_by_role("slider").press("End")
    assert first.get_by_text("at least 1,000 times as likely").is_visible()
    first.locator("[data-other]:visible").first.click()
    assert first.get_by_text(re.compile("Before the repair the network read")).is_visible()
    assert across(page) <= SIZES[size][0]
    assert pale(page) == []
    if folder := os.environ.get("NNREPAIR_SCREENSHOTS"):
        photographed(page, Path(folder) / f"lesson-{size}.png", whole=True)
