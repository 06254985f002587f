"""The classroom without a browser: drawings, a student's repairs, who sees what, what is said, the recorded lesson."""

from __future__ import annotations

import re
import socket
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawings import DIGITS
from pages import Page

from nnrepair import cli
from nnrepair.classroom import record, view, words
from nnrepair.classroom.drawing import MOST_POINTS, MOST_STROKES, Paper
from nnrepair.classroom.lesson import MOST_REPAIRS, ODDS, WAYS, Choice, Digit, Lesson, Repair
from nnrepair.classroom.material import COPIES, OTHERS, PICKS, Material, copies, material
from nnrepair.classroom.proof import prove
from nnrepair.classroom.sessions import Room
from nnrepair.domains.vision import mnist_is_here
from nnrepair.errors import InvalidInput
from nnrepair.spec.running import outputs


@pytest.fixture(scope="module")
def given() -> Material:
    return material("digits")


@pytest.fixture
def lesson(given: Material) -> Lesson:
    return Lesson(given)


def misread(lesson: Lesson) -> list[tuple[Digit, int]]:
    """Return digits to pick that the network misreads, with their labels."""
    found = [(digit, digit.label) for digit in lesson.picks if lesson.read(digit).decision != digit.label]
    return [(digit, label) for digit, label in found if label is not None]


# What a class works with ---------------------------------------------------------------------------------------------


def test_no_digit_plays_two_parts(given: Material) -> None:
    parts = [given.kept.inputs, given.others.inputs, given.picks.inputs]
    rows = [[picture.numpy().tobytes() for picture in part] for part in parts]
    assert [len(part) for part in parts[1:]] == [OTHERS, PICKS]
    assert len(set(rows[0]) | set(rows[1]) | set(rows[2])) == sum(len(set(part)) for part in rows)


def test_half_of_the_picks_are_misread_and_all_that_is_kept_is_right(given: Material, lesson: Lesson) -> None:
    assert 2 * len(misread(lesson)) == PICKS
    assert bool((outputs(given.model, given.kept.inputs).argmax(1) == given.kept.labels).all())
    assert f"gets {int((given.decisions == given.others.labels).sum())} right" in given.told


def test_the_same_seed_gives_the_same_class(given: Material) -> None:
    again = material("digits")
    assert torch.equal(given.picks.inputs, again.picks.inputs)
    assert torch.equal(outputs(given.model, given.others.inputs), outputs(again.model, again.others.inputs))


def test_mnist_where_it_is_here(data_dir: Callable[..., Path]) -> None:
    data_dir("mnist/mnist.npz")
    given = material()
    lesson = Lesson(given)
    (digit, label), *_ = misread(lesson)
    repair = lesson.repair(digit, label)
    assert given.name == "mnist" and repair.ok and repair.counted == OTHERS
    drawn = [lesson.read(lesson.draw(strokes)).decision for strokes in DIGITS.values()]
    assert sum(read == digit for digit, read in enumerate(drawn)) >= 8


def test_mnist_is_here_only_where_nothing_has_to_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path))
    assert not mnist_is_here()
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert not mnist_is_here()
        (tmp_path / f"mnist/{name}-ubyte.gz").touch()
    assert mnist_is_here()


def test_unknown_digits_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'digits' and 'mnist'; given 'letters'"):
        material("letters")  # type: ignore[arg-type]


def test_copies_are_like_the_digit_and_the_same_each_time(given: Material) -> None:
    image = given.picks.inputs[:1]
    made = copies(image)
    assert made.shape == (COPIES, *image.shape[1:]) and torch.equal(made, copies(image))
    assert not any(torch.equal(each, image[0]) for each in made)
    assert float((made - image).abs().mean()) < float((given.picks.inputs[1:2] - image).abs().mean())


# Drawings ------------------------------------------------------------------------------------------------------------


def test_drawn_digits_are_read(lesson: Lesson) -> None:
    read = [lesson.read(lesson.draw(strokes)).decision for strokes in DIGITS.values()]
    assert sum(digit == found for digit, found in enumerate(read)) >= 8


def test_a_drawing_is_as_dark_as_the_data(given: Material) -> None:
    drawn = torch.cat([given.paper.draw(strokes) for strokes in DIGITS.values()])
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert float(drawn.mean()) == pytest.approx(float(given.kept.inputs.mean()), rel=0.15)


@pytest.mark.parametrize("paper", [Paper(8, 8.0, 0.65), Paper(28, 20.0, 1.3)])
def test_place_and_size_of_a_drawing_do_not_matter(paper: Paper) -> None:
    small = [[[0.6 + 0.3 * x, 0.1 + 0.3 * y] for x, y in stroke] for stroke in DIGITS[4]]
    assert torch.allclose(paper.draw(small), paper.draw(DIGITS[4]), atol=0.05)


def test_a_dot_is_a_dot() -> None:
    picture = Paper(28, 20.0, 1.3).draw([[[0.5, 0.5]]])
    assert 0 < float(picture.sum()) < 10
    assert float(picture[0, 0, 12:16, 12:16].sum()) == pytest.approx(float(picture.sum()))


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([], "draw a digit first"),
        ([[]], "draw a digit first"),
        (None, "not a drawing"),
        ("strokes", "not a drawing"),
        ({"0": [[0, 0]]}, "not a drawing"),
        ([["a", "b"]], "not a drawing"),
        ([[[0.1, 0.2, 0.3]]], "not a drawing"),
        ([[[0.1, float("nan")]]], "not a drawing"),
        ([[[0.1, None]]], "not a drawing"),
        ([[[0.1, 0.2]]] * (MOST_STROKES + 1), "more than one digit"),
        ([[[0.1, 0.2]] * (MOST_POINTS + 1)], "more than one digit"),
    ],
)
def test_what_is_no_drawing_is_refused(lesson: Lesson, strokes: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        lesson.draw(strokes)


def test_points_outside_of_the_paper_are_moved_to_its_edge() -> None:
    paper = Paper(8, 8.0, 0.65)
    assert torch.equal(paper.draw([[[-5.0, 0.5], [1e300, 0.5]]]), paper.draw([[[0, 0.5], [1, 0.5]]]))


# One student's repairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_repair_does_what_was_asked_and_counts_what_it_changed(given: Material, lesson: Lesson, way: str) -> None:
    digit, label = misread(lesson)[0]
    repair = lesson.repair(digit, label, Choice(way))
    model = repair.result.model
    now = outputs(model, given.others.inputs).argmax(1)
    assert repair.ok and repair.after.decision == lesson.read(digit).decision == label != repair.before.decision
    assert {each.other for each in repair.changed} == set((now != given.decisions).nonzero()[:, 0].tolist())
    assert repair.right == pytest.approx(float((now == given.others.labels).double().mean()))
    assert repair.same == pytest.approx(1 - len(repair.changed) / OTHERS)
    assert repair.copies[1] == int((outputs(model, copies(digit.image)).argmax(1) == label).sum())
    assert sum(map(repair.count, ("broken", "mended", "still wrong"))) == len(repair.changed)
    shares = torch.tensor(repair.after.shares)
    assert float(shares.sum()) == pytest.approx(1)
    others = float(shares[torch.arange(10) != label].max())
    assert float(shares[label]) >= ODDS[repair.choice.odds] * others * (1 - 1e-4)
    if WAYS[way].exact:
        assert repair.result.certificate is not None


def test_undo_brings_back_every_bit(given: Material, lesson: Lesson) -> None:
    (one, two, *_) = misread(lesson)
    lesson.repair(*one)
    first = outputs(lesson.model, given.others.inputs)
    lesson.repair(*two)
    lesson.undo()
    assert torch.equal(outputs(lesson.model, given.others.inputs), first) and len(lesson.repairs) == 1
    lesson.undo()
    assert lesson.model is given.model
    with pytest.raises(InvalidInput, match="no repair yet"):
        lesson.undo()


def test_starting_over_forgets_all(given: Material, lesson: Lesson) -> None:
    for digit, label in misread(lesson)[:2]:
        lesson.repair(digit, label)
    lesson.start_over()
    assert lesson.repairs == [] and lesson.model is given.model
    with pytest.raises(InvalidInput, match="no repair yet"):
        lesson.tradeoff()


def sequence(lesson: Lesson, choice: Choice) -> list[Repair]:
    for digit, label in misread(lesson)[:8]:
        if lesson.read(digit).decision != label:
            lesson.repair(digit, label, choice)
    repairs = lesson.repairs.copy()
    lesson.start_over()
    return repairs


def test_training_forgets_what_it_is_not_asked_for_again(lesson: Lesson) -> None:
    kept = sequence(lesson, Choice("last"))
    lost = sequence(lesson, Choice("training", remember=False))
    assert all(kept[-1].earlier) and len(kept[-1].earlier) == len(kept) - 1 >= 5
    assert not all(lost[-1].earlier)
    assert kept[-1].same > lost[-1].same
    assert statistics.median(each.result.report.seconds for each in kept + lost) < 2


def test_the_slider_moves_the_trade_off(lesson: Lesson) -> None:
    follow, changed = [0] * len(ODDS), [0] * len(ODDS)
    for digit, label in misread(lesson)[:4]:
        lesson.repair(digit, label)
        for place, repair in enumerate(lesson.tradeoff()):
            assert repair.ok and repair.choice.odds == place
            follow[place] += repair.copies[1]
            changed[place] += len(repair.changed)
        lesson.undo()
    assert follow == sorted(follow) and follow[0] < follow[-1]
    assert changed[0] < changed[2] < changed[-1]


def test_an_alternative_takes_the_place_of_the_last_repair(lesson: Lesson) -> None:
    (one, two, *_) = misread(lesson)
    first, second = lesson.repair(*one), lesson.repair(*two)
    other = lesson.alternative(replace(second.choice, way="training"))
    assert lesson.repairs == [first, second] and lesson.alternative(other.choice) is other
    lesson.use(other)
    assert lesson.repairs == [first, other] and lesson.model is other.result.model
    assert other.origin is first.result.model
    for stranger in (first, replace(other)):
        with pytest.raises(InvalidInput, match="cannot take the place"):
            lesson.use(stranger)


def test_another_digit_that_broke_can_be_repaired_too_and_counts_no_more(lesson: Lesson) -> None:
    digit, label = misread(lesson)[0]
    broken = next(each for each in lesson.repair(digit, label).changed if each.effect == "broken")
    repair = lesson.repair(lesson.other(broken.other), broken.label)
    assert repair.ok and repair.counted == OTHERS - 1
    assert broken.other not in {each.other for each in repair.changed}
    assert "Of 999 other digits" in dict(words.findings(repair))["Locality"]
    with pytest.raises(InvalidInput, match="0 to 999; given 1000"):
        lesson.other(OTHERS)


def test_what_cannot_be_asked_is_said(lesson: Lesson) -> None:
    digit, label = misread(lesson)[0]
    with pytest.raises(InvalidInput, match="nothing to repair"):
        lesson.repair(digit, lesson.read(digit).decision)
    with pytest.raises(InvalidInput, match="one of 0 to 9; given 11"):
        lesson.repair(digit, 11)
    with pytest.raises(InvalidInput, match="no way 'magic'"):
        Choice("magic")
    with pytest.raises(InvalidInput, match="places 0 to 4; given 5"):
        Choice(odds=5)
    with pytest.raises(InvalidInput, match="no repair yet"):
        lesson.alternative(Choice())
    lesson.repair(digit, label)
    with pytest.raises(InvalidInput, match=f"to be read as {label}: it cannot be both"):
        lesson.repair(Digit(digit.image.clone()), (label + 1) % 10)
    assert len(lesson.repairs) == 1


def test_a_repair_that_cannot_be_is_told_and_not_kept(given: Material, lesson: Lesson) -> None:
    """A digit that the network learned from, and that a repair is to keep, is asked to be another one."""
    learned = given.kept[:1]
    digit = Digit(learned.inputs)
    before = lesson.read(digit)
    repair = lesson.repair(digit, (before.decision + 3) % 10)
    assert not repair.ok and lesson.repairs == [] and lesson.read(digit) == before
    assert words.outcome(repair).startswith("This cannot be done") and "Nothing was changed" in words.outcome(repair)
    assert "data-other" not in view.result(repair, given)


def test_a_lesson_is_bounded(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnrepair.classroom.lesson.MOST_REPAIRS", 1)
    (one, two, *_) = misread(lesson)
    lesson.repair(*one)
    with pytest.raises(InvalidInput, match="holds 1 repairs"):
        lesson.repair(*two)
    assert MOST_REPAIRS <= 20


# Who sees what -------------------------------------------------------------------------------------------------------


def test_two_students_do_not_see_each_others_repairs(given: Material) -> None:
    room = Room(given, most=2)
    mine, yours = room.enter(), room.enter()
    state = outputs(given.model, given.others.inputs)
    digit, label = misread(mine)[0]
    mine.repair(digit, label)
    assert yours.repairs == [] and yours.read(digit).decision != label
    assert torch.equal(outputs(yours.model, given.others.inputs), state)


def test_a_full_room_says_so_and_has_room_again_when_one_leaves(given: Material) -> None:
    room = Room(given, most=2)
    first, _ = room.enter(), room.enter()
    with pytest.raises(InvalidInput, match="full: 2 lessons are open"):
        room.enter()
    room.leave(first)
    room.leave(first)
    assert len(room) == 1 and room.enter() is not first


# What is said --------------------------------------------------------------------------------------------------------


def test_what_is_said_is_what_was_counted(lesson: Lesson) -> None:
    digit, label = misread(lesson)[0]
    repair = lesson.repair(digit, label)
    found = dict(words.findings(repair))
    assert list(found) == ["Success", "Generalization", "Locality"]
    assert found["Success"] == f"The digit is read as {label}, at least 3 times as likely as any other."
    assert (
        f"{repair.copies[1]} are read as {label}. Before the repair {repair.copies[0]} were."
        in (found["Generalization"])
    )
    figures = [int(figure.replace(",", "")) for figure in re.findall(r"[\d,]*\d", found["Locality"])]
    assert figures == [OTHERS, OTHERS - len(repair.changed), *map(repair.count, ("broken", "mended", "still wrong"))]
    second = lesson.repair(*misread(lesson)[0])
    assert dict(words.findings(second))["Earlier repairs"] == "1 of 1 still hold."


@pytest.mark.parametrize(
    ("guess", "label", "said"),
    [
        (None, None, "The network reads 3."),
        (3, 3, "The network reads 3, as you guessed. It is right."),
        (4, 8, "The network reads 3; you guessed 4. It is an 8."),
    ],
)
def test_a_guess_is_answered(lesson: Lesson, guess: int | None, label: int | None, said: str) -> None:
    reading = replace(lesson.read(lesson.picks[0]), decision=3)
    assert words.guessed(reading, guess, label) == said


def test_proved_is_only_what_the_checker_accepted(lesson: Lesson) -> None:
    digit, label = misread(lesson)[0]
    repair = lesson.repair(digit, label)
    assert words.proved(repair, None)[0] == "claimed" and "not proved" in words.proved(repair, None)[1]
    proof = prove(repair)
    assert proof.accepted and words.proved(repair, proof)[0] == "proved"
    assert (
        f"make the digit as clearly right, and keep {len(lesson.material.kept)} that" in words.proved(repair, proof)[1]
    )
    assert 'class="box proved"' in view.known(repair, proof) and 'class="box proved"' not in view.known(repair)
    forged = replace(repair, result=lesson.alternative(replace(repair.choice, odds=4)).result)
    forged = replace(forged, result=replace(forged.result, certificate=repair.result.certificate))
    refused = prove(forged)
    assert not refused.accepted and words.proved(forged, refused)[0] == "claimed"
    trained = lesson.alternative(Choice("training"))
    assert words.proved(trained, None)[0] == "nothing" and not prove(trained).accepted


def test_the_curve_begins_with_what_was_and_ends_with_what_is(lesson: Lesson) -> None:
    for digit, label in misread(lesson)[:3]:
        if lesson.read(digit).decision != label:
            last = lesson.repair(digit, label)
    page = Page(view.path(lesson.repairs, lesson.material))
    lines = [dict(attributes) for tag, attributes in page.tags if tag == "polyline"]
    assert [line["class"] for line in lines] == ["held", "same", "right"]
    assert all(len((line["points"] or "").split()) == len(lesson.repairs) + 1 for line in lines)
    assert f"other digits read as at the start {100 * last.same:.1f} %" in " ".join(page.text.split())


# The recorded lesson and the command ---------------------------------------------------------------------------------


def test_the_recorded_lesson_is_one_file_that_asks_before_it_tells(given: Material) -> None:
    html = record.lesson_page(given, misread=1)
    page = Page(html.replace("<!DOCTYPE html>", ""))
    assert "://" not in html and "url(" not in html and len(html.encode()) < 400_000
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    answers = [attributes for tag, attributes in page.tags if "answer" in (attributes.get("class") or "").split()]
    assert len(answers) == 1 + record.RIGHT + 1 and all("hidden" in attributes for attributes in answers)
    places = [attributes for tag, attributes in page.tags if attributes.get("class") == "place"]
    assert ["hidden" in attributes for attributes in places] == [place != Choice().odds for place in range(len(ODDS))]
    assert "Proved by an independent program" in page.text and "{{" not in html
    with pytest.raises(InvalidInput, match="Choose another seed"):
        record.lesson_page(given, misread=PICKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--static", "lesson.txt"], "the page is written as .html"),
        (["--static", "/dev/null/lesson.html"], "lesson.html"),
        (["--port", "70000"], "Cannot listen on 127.0.0.1, port 70000"),
        (["--host", "no such host"], "Cannot listen on no such host"),
    ],
)
def test_a_command_that_cannot_be_is_refused(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    given: Material,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nnrepair.cli.classroom.material", lambda name, seed: given)
    assert cli.main(["classroom", "--no-browser", *options]) == cli.ERROR
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(
    capsys: pytest.CaptureFixture[str], given: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnrepair.cli.classroom.material", lambda name, seed: given)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["classroom", "--no-browser", "--port", str(port)]) == cli.ERROR
    assert f"port {port}" in (said := capsys.readouterr().err) and "Choose another --port" in said


def test_what_is_not_installed_is_named(capsys: pytest.CaptureFixture[str], no_matplotlib: None) -> None:
    assert cli.main(["classroom"]) == cli.ERROR
    assert "pip install 'nnrepair[classroom]'" in capsys.readouterr().err
