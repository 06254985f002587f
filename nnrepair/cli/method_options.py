"""The options of methods on the command line: what their dataclasses declare, and nothing else."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nnrepair.errors import InvalidInput
from nnrepair.methods.base import REGISTRY, entry, kind_of

#: Where the parser keeps what was given for an option, by its flag.
_PLACE = "option "


@dataclass(frozen=True)
class Option:
    """A field of a method that can be given on the command line.

    Attributes:
        field: its name.
        flag: as typed, without dashes; `metadata={"flag": ...}` of the field says another than its name.
        read: makes a value of what was typed.
        several: whether it takes several values.
        default: where it is not given.
        about: what it is, from the docstring of the class.
    """

    field: str
    flag: str
    read: Callable[[str], Any]
    several: bool
    default: Any
    about: str


def options_of(make: Callable[[], Any]) -> list[Option]:
    """Return the options of a registered method; fields that hold objects, such as penalties, have none.

    >>> from nnrepair.methods import FineTune
    >>> [option.flag for option in options_of(FineTune)][:3]
    ['layer', 'steps', 'lr']
    """
    kind = kind_of(make)
    if not dataclasses.is_dataclass(kind):
        return []
    hints, method = get_type_hints(kind), make()
    told = {name: about for base in reversed(kind.__mro__) for name, about in _told(base).items()}
    found = []
    for field in dataclasses.fields(kind):
        read = _reader(hints[field.name])
        if read is not None and field.init:
            flag = field.metadata.get("flag", field.name.replace("_", "-"))
            several = any(get_origin(part) is Sequence for part in _parts(hints[field.name]))
            about = told.get(field.name, "")
            found.append(Option(field.name, flag, read, several, getattr(method, field.name), about))
    return found


def add(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options of the method called `name`; those of others too, so that a message can say whose they are."""
    mine = options_of(REGISTRY[name]) if name in REGISTRY else []
    for option in mine:
        _add(parser, option)
    flags = {option.flag for option in mine}
    for make in REGISTRY.values():
        for option in options_of(make):
            if option.flag not in flags:
                flags.add(option.flag)
                _add(parser, dataclasses.replace(option, read=str, about=argparse.SUPPRESS))


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    how: dict[str, Any] = {"dest": _PLACE + option.flag, "type": option.read, "help": option.about.replace("%", "%%")}
    how["metavar"] = option.flag.upper()
    if option.several:
        how |= {"nargs": "+", "action": "extend"}
    try:
        parser.add_argument(f"--{option.flag}", **how)
    except argparse.ArgumentError:  # the command has an option of this name
        parser.add_argument(f"--method-{option.flag}", **how)


def chosen(arguments: argparse.Namespace) -> Any:
    """Return the method that was named, with the options that were given.

    Raises:
        InvalidInput: an unknown name, or options that the method does not have.
    """
    name: str = arguments.method
    method, options = entry(name)(), {option.flag: option for option in options_of(entry(name))}
    given = options_given(arguments)
    unknown = [f"--{flag}" for flag in given if flag not in options]
    if unknown:
        known = ", ".join(f"--{flag}" for flag in options) or "none"
        raise InvalidInput(f"Method {name!r} has no option {', '.join(unknown)}. Its options: {known}.")
    values = {options[flag].field: value for flag, value in given.items()}
    return dataclasses.replace(method, **values) if values else method


def options_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given for options of methods, by flag; one of several values as itself."""
    given = {name.removeprefix(_PLACE): v for name, v in vars(arguments).items() if name.startswith(_PLACE)}
    return {
        flag: value[0] if isinstance(value, list) and len(value) == 1 else value
        for flag, value in given.items()
        if value is not None
    }


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _reader(hint: Any) -> Callable[[str], Any] | None:
    """Return what reads a value of a type from the command line; None where nothing can be typed for it."""
    parts = _parts(hint)
    if bool in parts:
        return _yes_or_no
    if float in parts or int in parts:
        return float if float in parts else int
    texts = [part for part in parts if part is str or get_origin(part) is Literal or part == Sequence[str]]
    return str if texts else None


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"expected yes or no, got {text!r}")
    return text == "yes"


def _told(kind: type) -> dict[str, str]:
    """Return the first sentence about each argument, from a Google-style docstring."""
    _, _, section = (inspect.getdoc(kind) or "").partition("\nArgs:\n")
    section = re.split(r"\n\n?(?=\S)", section)[0]
    found = dict[str, str]()
    for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.*?)(?=^    \w+(?:, \w+)*: |\Z)", section, re.M | re.S):
        sentence = re.split(r"(?<=[a-z)\"])[.;](?:\s|$)", " ".join(text.split()))[0]
        found |= dict.fromkeys(names.split(", "), sentence)
    return found
