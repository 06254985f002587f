"""Forged certificates: the checkers of `verification/` must refuse every one.

    python -m benchmarks.checkers.forge [--count 20000] [--seed 0] [--path FILE]

A valid certificate with its files is changed in one place (changes.py). Where onnxruntime shows a claim of the changed
certificate to be clearly false (truth.py), or where the change makes the files contradict each other, it is a forgery,
and must be refused: exit code 1 or 2. Where neither is so it is no forgery, and is counted apart. Valid certificates,
unchanged or with harmless changes, must be accepted, or refusals would mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.checkers import changes, truth
from benchmarks.checkers.valid import KINDS, NORMS, VERIFICATION, Proof, Repair, check, minimality, proof, repair
from nnrepair.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "forge.json"
COUNT, SEED = 20_000, 20261128
EDITS = ("labels", "lowest", "conditions")
PROVED = ("mlp", "chain", "shifted", "pools", "mirrored", "summed")  # networks that check.py reads
EACH = 6  # changes of each kind that a valid certificate gets
PROGRAMS = 300  # forgeries that are also checked by the program, for its exit code

Made = Repair | Proof
KINK, NOT_RUN = "a kink is near", "onnxruntime does not run it"  # not decided


def verdict(made: Made, folder: Path) -> str:
    """Give "accepted", "rejected", "unreadable", or what else a checker raised."""
    arguments = made.write(folder)
    try:
        with np.errstate(all="ignore"):
            if isinstance(made, Proof):
                check.check(*arguments)
            else:
                paths = [Path(a) for a in arguments if a != "--repaired"]
                minimality.check(paths[0], paths[1], paths[2] if len(paths) > 2 else None)
    except (check.Rejected, minimality.Rejected, np.linalg.LinAlgError):
        return "rejected"
    except minimality.Unreadable:
        return "unreadable"
    except Exception as error:  # refused by the program too, but not for a reason that it knows
        return f"unreadable, {type(error).__name__}"
    return "accepted"


def exit_code(made: Made, folder: Path) -> int:
    """Run the checker as a program."""
    program = VERIFICATION / ("check.py" if isinstance(made, Proof) else "minimality.py")
    done = subprocess.run([sys.executable, program, *made.write(folder)], capture_output=True, text=True, check=False)
    if "Traceback" in done.stderr + done.stdout:
        return -1
    return done.returncode


def false(made: Made, rng: np.random.Generator) -> str:
    """Say what onnxruntime shows to be false, or why it shows nothing."""
    try:
        return truth.false(made, rng)
    except truth.Kink:
        return KINK
    except Exception:  # files that onnx and onnxruntime do not take, or outputs that fit nothing, raise many kinds
        return NOT_RUN


def of_networks(change: changes.Change, rng: np.random.Generator, made: Made) -> str | None:
    """Change one network, or both in the same way; say which."""
    which = changes.pick(rng, ["both", "both", "base", "repaired"]) if len(made.networks) == 2 else "network"
    seed = int(rng.integers(2**31))
    chosen = {"base": made.networks[:1], "repaired": made.networks[1:]}.get(which, made.networks)
    before = [proto.SerializeToString() for proto in chosen]
    for proto in chosen:
        if change(np.random.default_rng(seed), proto) is False:
            return None
    return which if before != [proto.SerializeToString() for proto in chosen] else None


def valid(rng: np.random.Generator, index: int) -> Made:
    """Make a certificate that is valid, as far as onnxruntime can tell: of a repair, every other time of a property."""
    kinds, norms, turn = list(KINDS), list(NORMS), index // 2
    kind, norm = kinds[turn % len(kinds)], norms[turn // len(kinds) % len(norms)]
    while True:
        if index % 2:
            made: Made = proof(rng, PROVED[turn % len(PROVED)])
        else:
            made = repair(rng, kind, norm, str(rng.choice(EDITS)))
        if false(made, rng) != KINK:
            return made


def forged(rng: np.random.Generator, start: Made) -> Iterator[tuple[str, Made, bool]]:
    """Give changed certificates: the kind of change, and whether it must be refused whatever is true."""
    about = "proof" if isinstance(start, Proof) else "repair"
    for change in changes.NETWORK * EACH:
        made = start.copy()
        if (which := of_networks(change, rng, made)) is not None:
            yield f"{about}, {which}: {change.__name__}", made, False
    may, must = (changes.PROPERTY, changes.PROOF_MUST) if about == "proof" else (changes.REPAIR, changes.MUST)
    for change in [*may, *must] * (EACH // 2):
        made = start.copy()
        if change(rng, made) is not False:
            yield f"{about}, certificate: {change.__name__}", made, change in must


def harmless(rng: np.random.Generator, start: Made) -> Iterator[tuple[str, Made]]:
    """Give the certificate as it is, and with changes that leave its claims true and its files sound."""
    yield "unchanged", start
    extra = changes.HARMLESS_REPAIR if isinstance(start, Repair) else []
    for change in (*changes.HARMLESS, *extra):
        made = start.copy()
        change(rng, made)
        yield change.__name__, made


class Campaign:
    """Counts, and everything that went wrong."""

    def __init__(self, seed: int) -> None:
        self.seed, self.forgeries, self.programs = seed, 0, Counter[str]()
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.reasons, self.controls = Counter[str](), defaultdict[str, Counter[str]](Counter)
        self.wrong: list[str] = []

    def run(self, count: int, folder: Path, programs: int = 0) -> None:
        """Make and check so many forgeries."""
        every = max(1, count // programs) if programs else 0
        for index in itertools.count():
            rng = np.random.default_rng([self.seed, index])
            start = valid(rng, index)
            self.control(rng, start, index, folder)
            for kind, made, must in forged(rng, start):
                self.one(f"{index}, {kind}", kind, made, must, rng, folder, every)
                if self.forgeries >= count:
                    return

    def control(self, rng: np.random.Generator, start: Made, index: int, folder: Path) -> None:
        for name, made in harmless(rng, start):
            said, doubt = verdict(made, folder), false(made, rng)
            self.controls[name][said] += 1
            if said != "accepted" or doubt:
                self.wrong.append(f"{index}, {name}: {said}, although it is valid; {doubt}")

    def one(
        self, where: str, kind: str, made: Made, must: bool, rng: np.random.Generator, folder: Path, every: int
    ) -> None:
        reason = "inconsistent" if must else false(copy.deepcopy(made), rng)
        said = verdict(made, folder)
        if reason in ("", KINK, NOT_RUN):
            self.kinds[kind][f"no forgery ({reason or 'not shown to be false'}), {said.split(',')[0]}"] += 1
            if reason == NOT_RUN and said == "accepted":
                self.wrong.append(f"{where}: accepted, but {NOT_RUN}")
            return
        self.forgeries += 1
        self.kinds[kind][said] += 1
        self.reasons[reason] += 1
        if said == "accepted":
            self.wrong.append(f"{where}: accepted, although {reason}")
        if every and self.forgeries % every == 0:
            code = exit_code(made, folder)
            self.programs[f"exit code {code}"] += 1
            if code not in (1, 2):
                self.wrong.append(f"{where}: exit code {code}")

    def summary(self) -> dict[str, Any]:
        refused = Counter(said.split(",")[0] for c in self.kinds.values() for said in c.elements() if said[:2] != "no")
        return {
            "seed": self.seed,
            "forgeries": self.forgeries,
            "verdicts": dict(refused),
            "wrong": self.wrong,
            "why_false": dict(self.reasons.most_common()),
            "programs": dict(self.programs),
            "valid": {name: dict(c) for name, c in self.controls.items()},
            "kinds": {name: dict(c.most_common()) for name, c in sorted(self.kinds.items())},
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkers.forge", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--programs", type=int, default=PROGRAMS)
    parser.add_argument("--path", type=Path, default=RESULTS)
    given = parser.parse_args()
    campaign, started, of = Campaign(given.seed), time.process_time(), measure.commit()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # three small files for every forgery
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        campaign.run(given.count, Path(folder), given.programs)
    about = {"about": "forged certificates; all must be refused", **measure.machine()}
    about["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime")}
    about |= {"commit": of, "cpu_seconds": round(time.process_time() - started, 1)}
    found = campaign.summary()
    write_atomically(given.path, (json.dumps(about | found, indent=1) + "\n").encode())
    print(json.dumps({k: v for k, v in found.items() if k not in ("kinds",)}, indent=1))
    sys.exit(bool(campaign.wrong))


if __name__ == "__main__":
    main()
