"""Units of work: one ACAS Xu network and the properties repaired on it together.

The *full* set has one unit for each of the 45 networks, with everything that is violated there. Katz et al. 2017 state
properties for some networks only: of what is violated, phi_2 for N_{x>=2,y}, phi_7 for N_{1,9} and phi_8 for N_{2,9};
phi_3 and phi_4 exclude N_{1,7} to N_{1,9} by design. The *specified* set are these, with the same units but for
N_{1,9}, where phi_7 is repaired alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnrepair.domains import acas
from nnrepair.errors import InvalidInput

RESULTS = Path(__file__).parent / "results"
FORMAT = "nnrepair-acas-repair-1"
ROWS, PATCH = "rows.jsonl", "patch.safetensors"
Row = dict[str, Any]
#: What every row has; rows of repaired properties have their measures besides.
KEYS = {"format", "seeds", "states", "unit", "network", "property", "role", "base_sha256", "property_sha256"}
KEYS |= {"before", "after", "boxes", "proved", "recheck", "files", "nodes", "certificate_bytes", "outcome", "drawdown"}
KEYS |= {"network_sha256", "patch_sha256", "versions", "cost"}


@dataclass(frozen=True)
class Unit:
    """A network N_{a,b} and the numbers of the properties to repair; None is whatever is violated."""

    a: int
    b: int
    chosen: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name of its folder among the results."""
        return f"N_{self.a}_{self.b}" + ("" if self.chosen is None else "_phi_" + "_".join(map(str, self.chosen)))

    @property
    def network(self) -> Path:
        """The public file."""
        return acas.network(self.a, self.b)

    @property
    def numbers(self) -> list[int]:
        """The properties that VNN-COMP checks on this network."""
        return [number for pair, number in acas.instances() if pair == (self.a, self.b)]


def unit(network: str, chosen: str | None = None) -> Unit:
    """Read a unit from what was typed: "2_9" and perhaps "2,8".

    Raises:
        InvalidInput: there is no such network, or the property is not checked on it.
    """
    parts = network.removeprefix("N_").split("_")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InvalidInput(f"{network!r} is no network: expected two numbers such as 2_9 for N_{{2,9}}.")
    found = Unit(int(parts[0]), int(parts[1]))
    acas.network(found.a, found.b)  # says what there is
    if chosen is None:
        return found
    for text in chosen.split(","):
        if not text.strip().isdecimal():
            raise InvalidInput(f"{text!r} is no property: expected a number such as 2 for phi_2.")
        acas.property_file(int(text))
        if int(text) not in found.numbers:
            there = ", ".join(f"phi_{number}" for number in found.numbers)
            raise InvalidInput(f"phi_{int(text)} is not checked on N_{{{found.a},{found.b}}}; there it is {there}.")
    return Unit(found.a, found.b, tuple(sorted({int(text) for text in chosen.split(",")})))


def units(networks: str | None = None) -> list[Unit]:
    """Return all units of both sets, or those of some networks ("5_3,2_3")."""
    pairs = list(dict.fromkeys(pair for pair, _ in acas.instances()))
    if networks is not None:
        pairs = [(one.a, one.b) for one in (unit(text.strip()) for text in networks.split(","))]
    alone = [Unit(1, 9, (7,))] if (1, 9) in pairs else []
    return [Unit(a, b) for a, b in pairs] + alone


def is_specified(row: Row) -> bool:
    """Tell whether a row belongs to the specified set."""
    number: int = row["property"]
    if row["network"] == "1_9":
        return bool(row["unit"] == "N_1_9_phi_7") and number == 7
    return is_full(row) and (number == 8 or (number == 2 and not row["network"].startswith("1")))


def is_full(row: Row) -> bool:
    """Tell whether a row belongs to the full set: one network for each pair, everything violated repaired."""
    return bool(row["unit"] == f"N_{row['network']}")


def read_rows(folder: Path) -> list[Row]:
    """Return what is known about one unit.

    Raises:
        InvalidInput: the file is missing, damaged, or of another format.
    """
    try:
        rows = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
        if rows and all(isinstance(row, dict) and row["format"] == FORMAT for row in rows):
            return rows
        raise ValueError("another format")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InvalidInput(f"{folder / ROWS} cannot be read: {error}") from error


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Return a parser for what all three programs understand."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", metavar="A_B,...", help="only these, e.g. 5_3,2_3")
    return parser


def listed(numbers: Sequence[int]) -> str:
    """Return "phi_2, phi_8"."""
    return ", ".join(f"phi_{number}" for number in numbers)
