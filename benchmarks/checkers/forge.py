"""Forged certificates: the checkers of `verification/` must refuse every one.

    python -m benchmarks.checkers.forge [--count 20000] [--seed 0] [--path FILE]
    python -m benchmarks.checkers.forge --pairs [--count 10000]

Of repairs and properties; with --pairs, of what two networks have in common. It goes on where it ended, from FILE.

A valid certificate with its files is changed in one place (changes.py). Where onnxruntime shows a claim of the changed
certificate to be clearly false (truth.py), or where the change makes the files contradict each other, it is a forgery,
and must be refused: exit code 1 or 2. Where neither is so it is no forgery, and is counted apart. Valid certificates,
unchanged or with harmless changes, must be accepted, or refusals would mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.checkers import changes, pair_changes, pairs, truth
from benchmarks.checkers.pairs import Pair, compare, pair
from benchmarks.checkers.valid import KINDS, NORMS, VERIFICATION, Proof, Repair, check, minimality, proof, repair
from nnrepair.files import write_atomically

FOLDER = Path(__file__).parent / "results"
RESULTS = {False: FOLDER / "forge.json", True: FOLDER / "forge-pairs.json"}  # about pairs of networks or not
COUNT, SEED = 20_000, 20261128
EDITS = ("labels", "lowest", "conditions")
PROVED = ("mlp", "chain", "shifted", "pools", "mirrored", "summed")  # networks that check.py reads
EACH = 6  # changes of each kind that a valid certificate gets
PROGRAMS = 300  # forgeries that are also checked by the program, for its exit code

SAVED = 60.0  # seconds from one time that results are written to the next

Made = Repair | Proof | Pair
KINK, NOT_RUN = "a kink is near", "onnxruntime does not run it"  # not decided


def verdict(made: Made, folder: Path) -> str:
    """Give "accepted", "rejected", "unreadable", or what else a checker raised."""
    arguments = made.write(folder)
    try:
        with np.errstate(all="ignore"):
            if isinstance(made, Proof):
                check.check(*arguments)
            elif isinstance(made, Pair):
                compare.check(*arguments)
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
    program = VERIFICATION / {Proof: "check.py", Pair: "compare.py", Repair: "minimality.py"}[type(made)]
    done = subprocess.run([sys.executable, program, *made.write(folder)], capture_output=True, text=True, check=False)
    if "Traceback" in done.stderr + done.stdout:
        return -1
    return done.returncode


def false(made: Made, rng: np.random.Generator) -> str:
    """Say what onnxruntime shows to be false, or why it shows nothing."""
    try:
        return pairs.false(made, rng) if isinstance(made, Pair) else truth.false(made, rng)
    except truth.Kink:
        return KINK
    except Exception:  # files that onnx and onnxruntime do not take, or outputs that fit nothing, raise many kinds
        return NOT_RUN


def of_networks(change: changes.Change, rng: np.random.Generator, made: Made) -> str | None:
    """Change one network, or both in the same way; say which."""
    one, two = ("before", "after") if isinstance(made, Pair) else ("base", "repaired")
    which = changes.pick(rng, ["both", "both", one, two]) if len(made.networks) == 2 else "network"
    seed = int(rng.integers(2**31))
    chosen = {one: made.networks[:1], two: made.networks[1:]}.get(which, made.networks)
    before = [proto.SerializeToString() for proto in chosen]
    for proto in chosen:
        if change(np.random.default_rng(seed), proto) is False:
            return None
    return which if before != [proto.SerializeToString() for proto in chosen] else None


def valid(rng: np.random.Generator, index: int, of_pairs: bool = False) -> Made:
    """Make a certificate that is valid, as far as onnxruntime can tell.

    Every other one is of a repair, the others of a property; or of shares, and of an agreement.
    """
    kinds, norms, turn = list(KINDS), list(NORMS), index // 2
    kind, norm = kinds[turn % len(kinds)], norms[turn // len(kinds) % len(norms)]
    while True:
        if of_pairs:
            two = list(pairs.NETWORKS)
            made: Made = pair(rng, ("shares", "agreement")[index % 2], two[turn % len(two)])
        elif index % 2:
            made = proof(rng, PROVED[turn % len(PROVED)])
        else:
            made = repair(rng, kind, norm, str(rng.choice(EDITS)))
        if false(made, rng) != KINK:
            return made


def forged(rng: np.random.Generator, start: Made) -> Iterator[tuple[str, Made, bool]]:
    """Give changed certificates: the kind of change, and whether it must be refused whatever is true."""
    about = start.about if isinstance(start, Pair) else "proof" if isinstance(start, Proof) else "repair"
    each = EACH // 2 if isinstance(start, Pair) else EACH  # both programs read networks by the same modules
    for change in changes.NETWORK * each:
        made = start.copy()
        if (which := of_networks(change, rng, made)) is not None:
            yield f"{about}, {which}: {change.__name__}", made, False
    may, must = {
        "proof": (changes.PROPERTY, changes.PROOF_MUST),
        "repair": (changes.REPAIR, changes.MUST),
        "shares": (pair_changes.SHARES, pair_changes.SHARES_MUST),
        "agreement": (pair_changes.AGREEMENT, pair_changes.AGREEMENT_MUST),
    }[about]
    for change in [*may, *must] * (EACH // 2):
        made = start.copy()
        if change(rng, made) is not False:
            yield f"{about}, certificate: {change.__name__}", made, change in must


def harmless(rng: np.random.Generator, start: Made) -> Iterator[tuple[str, Made]]:
    """Give the certificate as it is, and with changes that leave its claims true and its files sound."""
    yield "unchanged", start
    extra = {Repair: changes.HARMLESS_REPAIR, Pair: pair_changes.HARMLESS, Proof: []}[type(start)]
    for change in (*changes.HARMLESS, *extra):
        made = start.copy()
        change(rng, made)
        yield change.__name__, made


class Campaign:
    """Counts, and everything that went wrong.

    Args:
        seed: of all that is random.
        of_pairs: whether certificates are about two networks.
        found: the summary of a campaign that ended, or was ended, to go on with.
    """

    def __init__(self, seed: int, of_pairs: bool = False, found: dict[str, Any] | None = None) -> None:
        self.seed, self.of_pairs, found = seed, of_pairs, found or {}
        self.next, self.forgeries = found.get("next", 0), found.get("forgeries", 0)
        self.programs, self.reasons = Counter[str](found.get("programs", {})), Counter[str](found.get("why_false", {}))
        self.kinds, self.controls = (
            defaultdict[str, Counter[str]](Counter, {k: Counter(v) for k, v in found.get(name, {}).items()})
            for name in ("kinds", "valid")
        )
        self.wrong: list[str] = found.get("wrong", [])

    def run(self, count: int, folder: Path, programs: int = 0, save: Callable[[], None] = lambda: None) -> None:
        """Make and check so many forgeries, or more until all of one certificate are; save results now and then."""
        every, saved = max(1, count // programs) if programs else 0, time.monotonic()
        while self.forgeries < count:
            rng = np.random.default_rng([self.seed, self.next])
            start = valid(rng, self.next, self.of_pairs)
            self.control(rng, start, self.next, folder)
            for kind, made, must in forged(rng, start):
                self.one(f"{self.next}, {kind}", kind, made, must, rng, folder, every)
            self.next += 1
            if time.monotonic() - saved > SAVED:
                save()
                saved = time.monotonic()

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
            "next": self.next,
            "forgeries": self.forgeries,
            "verdicts": dict(refused),
            "wrong": self.wrong,
            "why_false": dict(self.reasons.most_common()),
            "programs": dict(self.programs),
            "valid": {name: dict(c) for name, c in self.controls.items()},
            "kinds": {name: dict(c.most_common()) for name, c in sorted(self.kinds.items())},
        }


def unchanged(commit: str) -> bool:
    """Tell whether the checkers, and what forges certificates, are those of a commit."""
    forging = [f"benchmarks/checkers/{name}.py" for name in ("changes", "pair_changes", "pairs", "truth", "valid")]
    command = ["git", "diff", "--quiet", commit, "--", ":(glob)verification/*.py", *forging]
    return subprocess.run(command, cwd=VERIFICATION.parent, capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkers.forge", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--programs", type=int, default=PROGRAMS)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--path", type=Path)
    given = parser.parse_args()
    path = given.path or RESULTS[given.pairs]
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("seed") != given.seed or "next" not in before or not unchanged(before["commit"]):
        before = {}
    campaign, started, of = Campaign(given.seed, given.pairs, before), time.process_time(), measure.commit()

    def save() -> None:
        about = {"about": "forged certificates; all must be refused", **measure.machine()}
        about["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime")}
        spent = before.get("cpu_seconds", 0.0) + time.process_time() - started
        about |= {"commit": of, "cpu_seconds": round(spent, 1)}
        write_atomically(path, (json.dumps(about | campaign.summary(), indent=1) + "\n").encode())

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # three small files for every forgery
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        campaign.run(given.count, Path(folder), given.programs, save)
    save()
    print(json.dumps({k: v for k, v in campaign.summary().items() if k not in ("kinds",)}, indent=1))
    sys.exit(bool(campaign.wrong))


if __name__ == "__main__":
    main()
