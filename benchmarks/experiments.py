"""Experiments of the editing benchmark: `benchmarks/<domain>/experiments/*.toml`, run and stored row by row.

A file holds only what differs from the domain's `defaults.toml`: `method`, `options` (its arguments), `models`,
`modes`, `seeds`, `edits`, `task` (further arguments of the domain's task), `training` (of methods that are trained
first, see `benchmarks.editing.one`). Its name names the experiment. A file that has been measured is not edited any
more: give the changed experiment a new name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import measure
from benchmarks.editing import MODES, Domain, Row, method_of, one, unedited
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.files import write_atomically

#: Seconds after which a row is given up ("not finished"); machines that do other work too take several times as long.
LIMIT = 3600.0
#: Where trial runs are stored; git ignores it.
TRIALS = measure.ROOT / "build" / "trials"
#: What rows tell only where an experiment has it.
OPTIONAL = ("task", "training")
_KINDS: dict[str, Any] = {
    "method": str,
    "options": dict,
    "models": list,
    "modes": list,
    "seeds": list,
    "edits": int,
    "task": dict,
    "training": dict,
}


@dataclass(frozen=True)
class Experiment:
    """One method with its options, on some models, modes and seeds of a domain."""

    name: str
    domain: Domain
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    models: Sequence[str] = ()
    modes: Sequence[str] = tuple(MODES)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    edits: int = 50
    task: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def cases(self) -> Iterator[Row]:
        """Yield what tells one row from another."""
        for model, mode, seed in product(self.models, self.modes, self.seeds):
            yield {"model": model, "mode": mode, "seed": seed}

    @property
    def asked(self) -> Row:
        """What all rows share."""
        told = {"domain": self.domain.name, "experiment": self.name, "method": self.method}
        told |= {"options": self.options, "edits": self.edits}
        return told | {key: getattr(self, key) for key in OPTIONAL if getattr(self, key)}


def read(path: Path, domain: Domain) -> Experiment:
    """Read an experiment, with the domain's defaults for what it leaves out.

    Raises:
        InvalidInput: unknown keys, methods, options, penalties or modes (near matches are listed).
    """
    defaults, given = _table(domain.folder / "defaults.toml"), _table(path)
    by_method: dict[str, Any] = defaults.pop("options", {})
    if "method" not in given:
        raise InvalidInput(f"{path.name}: an experiment needs its method.")
    try:
        plain = method_of(given["method"], {})
        known = by_method.get(type(plain).__name__, {})
        experiment = Experiment(path.stem, domain, **defaults | given | {"options": known | given.get("options", {})})
        method_of(experiment.method, experiment.options)
        for mode in experiment.modes:
            if mode not in MODES:
                raise InvalidInput(f"Unknown mode {mode!r}.{near_matches(mode, MODES)} Modes: {', '.join(MODES)}.")
    except (InvalidInput, TypeError) as error:
        raise InvalidInput(f"{path.name}: {error}") from error
    return experiment


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path.name} is no TOML file: {error}.") from error
    for key, value in table.items():
        if key not in _KINDS:
            hint = near_matches(key, _KINDS)
            raise InvalidInput(f"{path.name}: unknown key {key!r}.{hint} Keys: {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            raise InvalidInput(f"{path.name}: {key} must be a {_KINDS[key].__name__}, given {value!r}.")
    return table


def read_all(domain: Domain) -> list[Experiment]:
    """Read all experiments of a domain, by name."""
    return [read(path, domain) for path in sorted((domain.folder / "experiments").glob("*.toml"))]


def run(
    domain: Domain,
    methods: Sequence[str] = (),
    modes: Sequence[str] = (),
    models: Sequence[str] = (),
    *,
    again: bool = False,
    trial: bool = False,
    jobs: int = 1,
) -> None:
    """Measure what is not measured yet, each row in a process of its own, and store it after every row.

    Args:
        domain: whose experiments.
        methods: only those of these methods or names; none: all.
        modes: only these; none: all. `models`: likewise.
        again: measure rows once more that failed.
        trial: 5 edits and 2 seeds, stored in build/trials.
        jobs: processes at a time.
    """
    experiments = read_all(domain)
    for name in methods:
        known = {e.method for e in experiments} | {e.name for e in experiments}
        if name not in known:
            hint = near_matches(name, known)
            raise InvalidInput(f"{domain.name} has no experiment {name!r}.{hint} Known: {', '.join(sorted(known))}.")
    folder = domain.folder / "results"
    if trial:
        experiments = [replace(e, edits=5, seeds=list(e.seeds)[:2]) for e in experiments]
        folder = TRIALS / domain.name
    for experiment in experiments:
        if not methods or experiment.method in methods or experiment.name in methods:
            _run(experiment, folder / f"{experiment.name}.json", modes, models, again, jobs)


def measure_tasks(domain: Domain) -> None:
    """Measure every task of a domain before any edit, once for each network, seed and number of edits."""
    path = domain.folder / "results" / "tasks.json"
    rows = measure.load(path)
    keys = ("model", "seed", "edits")
    done, todo = {tuple(row[key] for key in keys) for row in rows}, []
    for experiment in read_all(domain):
        for model, seed in product(experiment.models, experiment.seeds):
            if (model, seed, experiment.edits) not in done:
                done.add((model, seed, experiment.edits))
                asked = {"model": model, "seed": seed, "edits": experiment.edits}
                todo.append(asked | {"domain": domain, "task": experiment.task})
    preload = ["benchmarks.editing", domain.module]
    for case, found in measure.each_in_its_process(unedited, todo, LIMIT, preload):
        rows.append({key: case[key] for key in keys} | found)
        save(path, rows)


def _run(
    experiment: Experiment, path: Path, modes: Sequence[str], models: Sequence[str], again: bool, jobs: int
) -> None:
    rows = measure.load(path)
    for row in rows:
        if any(row.get(key) != experiment.asked.get(key) for key in {*experiment.asked, *OPTIONAL}):
            raise InvalidInput(
                f"{experiment.name}.toml was changed after its rows were measured. Give the changed experiment a new "
                f"name, or delete {path}."
            )
    stored = {_key(row): row for row in rows}
    todo = [case for case in experiment.cases() if not modes or case["mode"] in modes]
    todo = [case for case in todo if not models or case["model"] in models]
    todo = [case for case in todo if _key(case) not in stored or (again and failed(stored[_key(case)]))]
    if not todo:
        return
    order = [_key(case) for case in experiment.cases()]
    shared = {key: getattr(experiment, key) for key in ("method", "options", "edits", "domain", *OPTIONAL)}
    preload = ["benchmarks.editing", experiment.domain.module, *measure.LAZY]
    commit = measure.commit()
    answers = measure.each_in_its_process(partial(one, **shared), todo, LIMIT, preload, jobs)
    with closing(answers):
        for case, found in tqdm(answers, total=len(todo), desc=f"{experiment.domain.name} {experiment.name}"):
            stored[_key(case)] = experiment.asked | case | found | {"commit": commit}
            save(path, sorted(stored.values(), key=lambda row: _place(order, row)))


def _key(row: Row) -> tuple[Any, ...]:
    return row["model"], row["mode"], row["seed"]


def _place(order: list[tuple[Any, ...]], row: Row) -> int:
    return order.index(_key(row)) if _key(row) in order else len(order)


def failed(row: Row) -> bool:
    """Whether a row has no figures, only a status that says why."""
    return "success_rate" not in row


def save(path: Path, rows: list[Row]) -> None:
    """Write a result file atomically, one line per row."""
    rows = [_rounded(row) for row in rows]
    head = json.dumps(measure.made_with(path, rows), indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomically(path, f'{head},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


def _rounded(row: Row) -> Row:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
