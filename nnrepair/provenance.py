"""What decides a result: versions, source code and values, so that only what was made of the same is used again."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from inspect import getclosurevars
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.extras import installed
from nnrepair.fingerprint import digest_of_state
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.regions import Regions


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of some packages."""
    return {"python": platform.python_version()} | {package: installed(package) for package in packages}


@cache
def source(*parts: str) -> str:
    """Return the sha256 of this package's source code, or of some of its files and folders.

    Args:
        parts: such as "domains/images"; all by default.

    Raises:
        InvalidInput: there is no Python file at one of them.
    """
    folder, digest = Path(__file__).parent, hashlib.sha256()
    found = {part: _files(folder / part) for part in parts or (".",)}
    for part, paths in found.items():
        if not paths:
            raise InvalidInput(f"The package has no source code at {part!r}.")
    for path in sorted({path for paths in found.values() for path in paths}):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _files(place: Path) -> list[Path]:
    return list(place.rglob("*.py")) if place.is_dir() else [place] * place.exists()


def digest(value: Any) -> str:
    """Return the sha256 of a value of any kind: two that differ where it matters have two.

    Tensors and arrays count with every bit, dataclasses, criteria, points and regions with all that is in them, modules
    with their state, functions written in Python with their code and the values that it uses. Of other objects only the
    class and what they print count.
    """
    return digest_of_state({"": _contents(value)})


def _contents(value: Any) -> Any:
    """Return a value as nested lists and dictionaries of tensors and plain values."""
    if isinstance(value, Tensor | bool | int | float | str | torch.dtype) or value is None:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, list | tuple):
        return [_contents(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return {repr(key): _contents(each) for key, each in value.items()}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return [kind, dict(value.state_dict())]
    if isinstance(value, Criterion | Regions | Edits | EditScope | LocalitySet):
        return [kind, {name: _contents(each) for name, each in vars(value).items()}]
    if is_dataclass(value):
        return [kind, {field.name: _contents(getattr(value, field.name)) for field in fields(value)}]
    if isinstance(value, partial):
        return [kind, *map(_contents, (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return [kind, _contents(value.__self__), _contents(value.__func__)]
    if isinstance(value, FunctionType):
        return [kind, *_code(value.__code__), _contents(value.__defaults__), _contents(_used(value))]
    text = repr(value)
    return [kind, "" if " at 0x" in text else text]  # an address differs from run to run


def _code(code: CodeType) -> list[Any]:
    """Return what a function does, wherever it is written."""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _used(function: FunctionType) -> dict[str, Any]:
    """Return the values from outside that a function uses: of other functions only the names, of modules nothing."""
    outside = getclosurevars(function)
    found = {**outside.globals, **outside.nonlocals}
    plain = {name: value for name, value in found.items() if not isinstance(value, FunctionType | ModuleType)}
    return plain | {name: value.__name__ for name, value in found.items() if isinstance(value, FunctionType)}
