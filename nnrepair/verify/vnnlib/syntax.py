"""Words and parentheses of a VNN-LIB text, and where each stands in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput
from nnrepair.verify.vnnlib import limits

#: After a comment comes a line feed or carriage return; whatever else may look like the end of a line is refused.
TOKEN = re.compile(
    r"""[()] | ;[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]* | "[^"]*"? | \|[^|]*\|? | [!#-'*-:<-{}~]+ | [^\t\n\r ]""",
    re.VERBOSE,
)
_LINE_END = re.compile(r"\r\n?|\n")


@dataclass(slots=True)
class Part:
    """A word (`text`), or a parenthesis around `parts` (`text` is empty), and where it stands in the file."""

    text: str
    start: int
    end: int
    parts: list[Part]


_NONE: list[Part] = []  # shared by all words


def line_after(before: str) -> int:
    """Return the number of the line that comes after a text."""
    return len(_LINE_END.findall(before)) + 1


class Source:
    """A text, and what errors call it."""

    def __init__(self, text: str, name: str, deadline: Deadline) -> None:
        self.text, self.name, self.deadline = text, name, deadline

    def line(self, part: Part) -> int:
        return line_after(self.text[: part.start])

    def fail(self, part: Part, why: str) -> NoReturn:
        shown = " ".join(self.text[part.start : min(part.end, part.start + 200)].split())
        shown = shown if shown.isprintable() else ascii(shown)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise InvalidInput(f"{self.name}, line {self.line(part)}: {why}" + (f" In: {shown}" if shown else ""))

    def commands(self) -> list[Part]:
        """Return the parentheses of the file."""
        top = Part("", 0, len(self.text), [])
        open_ = [top]
        for count, match in enumerate(self.deadline.each(TOKEN.finditer(self.text)), 1):
            word = match[0]
            if count > limits.MAX_WORDS:
                self.fail(
                    Part(word, *match.span(), _NONE), f"more than {limits.MAX_WORDS} words and parentheses. Split it."
                )
            if word[0] == ";":
                continue
            part = Part("", match.start(), 0, []) if word == "(" else Part(word, *match.span(), _NONE)
            if word == ")":
                if len(open_) == 1:
                    self.fail(part, "this parenthesis closes nothing.")
                open_.pop().end = part.end
                continue
            if not "!" <= word[0] <= "~":
                known = "tab, line feed, carriage return and space"
                self.fail(part, f"the character U+{ord(word):04X} is none of VNN-LIB, whose white space is {known}.")
            if len(open_) == 1 and word != "(":
                self.fail(part, "expected a command in parentheses, such as (assert ...).")
            open_[-1].parts.append(part)
            if word == "(":
                open_.append(part)
                if len(open_) > limits.MAX_DEPTH:
                    self.fail(part, f"parentheses are nested more than {limits.MAX_DEPTH} deep.")
        if len(open_) > 1:
            open_[1].end = len(self.text)
            self.fail(open_[1], "the file ends before this parenthesis is closed; is it truncated?")
        if not top.parts:
            self.fail(top, "there is no command; expected a property in VNN-LIB 1.0.")
        return top.parts
