"""Networks that recipes make: found by name, read, written with a record of their training, trained by one command."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nnrepair.errors import DataUnavailable, InvalidInput, NNRepairError, PatchError, near_matches
from nnrepair.files import write_atomically
from nnrepair.provenance import versions
from nnrepair.spec.state import read_tensors, reading, write_tensors
from nnrepair.training import Record

R = TypeVar("R")
KIND = "trained network"


def named(name: str, recipes: Mapping[str, R], kind: str = "network") -> R:
    """Return a recipe by its name, `kind` being the word for what it makes.

    Raises:
        InvalidInput: there is none of that name.
    """
    if name not in recipes:
        known = f"{kind.split()[-1].capitalize()}s: {', '.join(recipes)}"
        raise InvalidInput(f"There is no {kind} {name!r}.{near_matches(name, recipes)} {known}.")
    return recipes[name]


def load(
    model: nn.Module, folder: Path, name: str, format: str, command: str, tied: Mapping[str, Tensor] | None = None
) -> None:
    """Give a network the weights that `store` wrote.

    Args:
        model: of the recipe; changed.
        folder, name: where its file lies.
        format: what the file says that it is.
        command: what trains such networks.
        tied: what the file leaves out.

    Raises:
        InvalidInput: the file is damaged.
        DataUnavailable: there is none; train it first.
    """
    path = Path(folder) / f"{name}.safetensors"
    try:
        with reading(path, KIND):
            _, tensors, _ = read_tensors(path, KIND, {format: ("name",)})
            model.load_state_dict(tensors | dict(tied or {}))
    except FileNotFoundError as error:
        raise DataUnavailable(f"{error} Train it: {command} {name}") from error
    except PatchError as error:
        raise InvalidInput(f"{error} Train it anew: {command} {name}") from error


def store(
    model: nn.Module,
    folder: Path,
    name: str,
    format: str,
    *,
    made: Any,
    record: Record,
    code: str,
    figures: Mapping[str, Any],
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write a network, and the record of its training beside it; return the record.

    Args:
        model: as it was trained.
        folder, name: where both go.
        format: what the file says that it is.
        made: the recipe, a dataclass.
        record: how the training went.
        code: what `provenance.source` says of the files that decide about it.
        figures: what was measured.
        without: names of tensors that are other ones, too.
    """
    told = {
        "name": name,
        "recipe": asdict(made),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(record.cpu_seconds, 1),
        "losses": record.losses,
        **figures,
        "versions": versions(["torch", "numpy"]),
        "source": code,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }
    state = {key: value for key, value in model.state_dict().items() if key not in without}
    write_tensors(folder / f"{name}.safetensors", format, state, {"name": name}, KIND)
    write_atomically(folder / f"{name}.json", (json.dumps(told, indent=1) + "\n").encode())
    return told


def main(
    command: str,
    about: str | None,
    recipes: Mapping[str, Any],
    folder: Path,
    train: Callable[[str, Path], dict[str, Any]],
    said: Callable[[dict[str, Any]], str],
) -> None:
    """Read a command line, train, and print what was measured.

    Args:
        command, about: how it is called, and what it does.
        recipes, folder: the networks, and where they are read.
        train: trains one by its name, writes it to a folder and returns its record.
        said: what to print of a record.
    """
    parser = argparse.ArgumentParser(prog=command, description=about)
    parser.add_argument("name", choices=sorted(recipes))
    parser.add_argument("--folder", type=Path, default=folder, help="where to write it (default: where it is read)")
    given = parser.parse_args()
    try:
        told = train(given.name, given.folder)
    except NNRepairError as error:
        parser.exit(3, f"{error}\n")
    print(f"{given.name}: {told['cpu_seconds']:.0f} CPU s; {said(told)}")
