"""Repair the ACAS Xu networks of VNN-COMP, prove every property of the results, and measure what else they do.

    python verification/acas/repair.py --network 2_9 --property 8      one repair, or several properties jointly: 2,8
    python verification/acas/repair.py --all --jobs 2                  45 networks with all that is violated there, and
                                                                       N_{1,9} with phi_7 alone; goes on where it was

OUT/N_2_9 holds patch.safetensors, a certificate for each property (phi_8.npz), the counterexamples that the repair was
not told of (phi_8-violations.npy), and rows.jsonl. A folder appears when all of it is there, so a kill loses at most
the networks in work; delete a folder to have it made again. The certificates are about the file that materialise.py
rebuilds.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import platform
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import measures
import numpy as np
import torch
from materialise import materialised
from measures import Region, Run
from tqdm import tqdm
from units import (
    FORMAT,
    KEYS,
    PATCH,
    RESULTS,
    ROWS,
    Row,
    Unit,
    arguments,
    is_full,
    listed,
    read_rows,
    sha256,
    unit,
    units,
)

from nnrepair import onnx, repair_property
from nnrepair.domains import acas
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.files import write_atomically
from nnrepair.processes import Failure, in_processes
from nnrepair.results.result import Proof, RepairResult
from nnrepair.verify import CheckResult, Options, check
from nnrepair.verify.reading.lowering import lower

#: Seconds for a check; a repair has no limit of time.
LIMIT = 116.0
STATES = 1_000_000
SEED = 0


def checker() -> ModuleType:
    """Return verification/check.py, the independent program, as a module; nothing installs it."""
    folder = str(Path(__file__).resolve().parents[1])
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("check")


def recheck(certificate: Path, network: Path, number: int) -> str:
    """Return "accepted", or why the independent program does not accept a certificate."""
    program = checker()
    try:
        program.check(str(certificate), str(network), str(acas.property_file(number)))
    except program.Rejected as reason:
        return f"rejected: {reason}"
    return "accepted"


def runner(model: torch.nn.Module) -> Run:
    """Return a network as a function of many states."""

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(part.reshape(-1, 1, 1, 5)).double() for part in torch.split(x, 2**16)])

    return run


# One unit ------------------------------------------------------------------------------------------------------------


def asked(states: int) -> dict[str, Any]:
    """Return what rows must have been made with to be kept."""
    return {"format": FORMAT, "seeds": {"repair": SEED, "measures": measures.SEED}, "states": states}


def is_done(unit: Unit, out: Path, states: int) -> bool:
    """Tell whether a folder is about this unit and these files, and complete.

    Versions are not compared: what is proved was accepted by the independent program, whatever made it.
    """
    folder, old = out / unit.name, _aside(out / unit.name)
    if old.exists() and not folder.exists():  # of a run that was killed between the two names
        os.replace(old, folder)
    try:
        rows = read_rows(folder)
        return (
            [row["property"] for row in rows] == unit.numbers
            and all(row.keys() >= KEYS and row["unit"] == unit.name for row in rows)
            and all(row[key] == value for row in rows for key, value in asked(states).items())
            and all(row["base_sha256"] == sha256(unit.network) for row in rows)
            and all(row["property_sha256"] == sha256(acas.property_file(row["property"])) for row in rows)
            and all(sha256(folder / name) == digest for row in rows for name, digest in row["files"].items())
            and all(row["patch_sha256"] == sha256(folder / PATCH) for row in rows if row["patch_sha256"])
        )
    except (InvalidInput, OSError, KeyError, TypeError, AttributeError, ValueError):
        return False


def _aside(folder: Path) -> Path:
    """Return the name that a folder has while a new one takes its place."""
    return folder.with_name(f".old-{folder.name}")


def _put(new: Path, folder: Path) -> None:
    """Give a new folder the name of an old one, which stands until then."""
    old = _aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def solve(unit: Unit, out: Path, states: int = STATES) -> list[Row]:
    """Repair, certify and measure one unit; its folder appears at the end; return its rows."""
    part = out / f".part-{unit.name}"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _solve(unit, part, states)
        write_atomically(part / ROWS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(threads)
    _put(part, out / unit.name)
    return rows


def _solve(unit: Unit, folder: Path, states: int) -> list[Row]:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget earlier peaks of memory
    started, base = time.process_time(), unit.network
    before = {n: check(base, acas.property_file(n), timeout=LIMIT) for n in unit.numbers}
    wanted = to_repair(unit, before)
    keep = [n for n in unit.numbers if before[n].holds]
    checked, result = time.process_time(), None
    if wanted:
        result = repaired(base, wanted, keep)
        assert result.patch is not None
        result.patch.save(folder / PATCH)
    seconds = time.process_time() - checked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    network = materialised(base, folder / PATCH if wanted else None, folder / base.name)
    after = dict(before) if result is None else proofs(result, network, unit.numbers)
    rows, rechecked = [], time.process_time()
    for number in unit.numbers:
        role = "repair" if number in wanted else "keep" if number in keep else "left"
        about = {"unit": unit.name, "network": f"{unit.a}_{unit.b}", "property": number, "role": role}
        hashes = {"base_sha256": sha256(base), "property_sha256": sha256(acas.property_file(number))}
        row = asked(states) | about | {"before": before[number].verdict} | hashes
        rows.append(row | proved(number, after[number], network, folder))
    rechecked = time.process_time() - rechecked
    if result is not None:
        _measure(rows, result, base, folder, states)
    common = {
        "outcome": "nothing to do" if result is None else str(result.outcome),
        "drawdown": {
            "held": len(keep),
            "lost": [row["property"] for row in rows if row["role"] == "keep" and not row["proved"]],
        },
        "network_sha256": sha256(network),
        "patch_sha256": sha256(folder / PATCH) if wanted else None,
        "versions": versions(),
        "cost": {
            "repair_cpu_seconds": round(seconds, 3),
            "check_cpu_seconds": round(checked - started, 3),
            "recheck_cpu_seconds": round(rechecked, 3),
            "cpu_seconds": round(time.process_time() - started, 3),
            "peak_mib": round(peak, 1),
            "machine": machine(),
        },
    }
    network.unlink()
    return [row | common for row in rows]


def to_repair(unit: Unit, before: dict[int, CheckResult]) -> list[int]:
    """Return the properties to repair: those chosen, or all that are violated.

    Raises:
        InvalidInput: one that was chosen is not violated.
    """
    violated = [number for number, result in before.items() if result.verdict == "violated"]
    fine = [number for number in unit.chosen or () if number not in violated]
    if fine:
        there = f"what is violated there: {listed(violated)}" if violated else "nothing is violated there"
        where = f"N_{{{unit.a},{unit.b}}}"
        raise InvalidInput(
            f"{listed(fine)} on {where}: {before[fine[0]].verdict}, so there is nothing to repair; {there}."
        )
    return violated if unit.chosen is None else list(unit.chosen)


def repaired(base: Path, wanted: Sequence[int], keep: Sequence[int]) -> RepairResult:
    """Repair some properties of a network jointly; keep those that hold, and what it advises on random states."""
    return repair_property(
        base,
        [acas.property_file(number) for number in wanted],
        keep=[acas.property_file(number) for number in keep],
        locality_set=acas.locality_set(onnx.load(base)),
        throw=False,
        seed=SEED,
    )


def proofs(result: RepairResult, network: Path, numbers: Sequence[int]) -> dict[int, CheckResult]:
    """Return what the repair proved, and check what it left open on the file."""
    known: dict[str, Proof] = {proof.name: proof for proof in result.proofs if proof.result.holds}
    found = {}
    for number in numbers:
        file = acas.property_file(number)
        proof = known.get(file.name.split(".")[0])
        found[number] = proof.result if proof is not None else check(network, file, timeout=LIMIT)
    return found


def proved(number: int, result: CheckResult, network: Path, folder: Path) -> Row:
    """Write the certificate of one property for the network's file, and let the independent program judge it."""
    row: Row = {"after": result.verdict, "boxes": result.boxes, "proved": False, "recheck": None, "files": {}}
    if result.certificate is None:
        return row | {"nodes": None, "certificate_bytes": None}
    file = result.certificate.for_network(network).save(folder / f"phi_{number}.npz")
    said = recheck(file, network, number)
    if said != "accepted":  # where slopes were improved, parts may be too large for others: a finer tree, without that
        again = check(network, acas.property_file(number), timeout=LIMIT, options=Options(steps=0))
        if again.certificate is not None:
            again.certificate.save(file)
            said, result = recheck(file, network, number), again
            row |= {"after": again.verdict, "boxes": again.boxes}
    assert result.certificate is not None
    row |= {"proved": result.holds and said == "accepted", "recheck": said, "files": {file.name: sha256(file)}}
    return row | {"nodes": len(result.certificate.dim), "certificate_bytes": file.stat().st_size}


def _measure(rows: list[Row], result: RepairResult, base: Path, folder: Path, states: int) -> None:
    """Add to the rows of repaired properties what was measured."""
    model = onnx.load(base)
    before, after = runner(model), runner(result.model.eval())
    graph = lower(model, (1, 1, 5))
    mine = [row for row in rows if row["role"] == "repair"]
    regions = [Region(row["property"]) for row in mine]
    change = result.report.weight_change
    assert result.patch is not None
    common: Row = measures.whole_domain(before, after, regions, states) | {
        "change": {
            "layers": list(dict.fromkeys(name.rpartition(".")[0] for name in result.patch.new)),
            "weights": change.nonzeros,
            "l1": change.l1,
            "linf": change.linf,
        },
    }
    for row, region in zip(mine, regions, strict=True):
        x, found = measures.violations(graph, before, region)
        buffer = io.BytesIO()
        np.save(buffer, x.numpy(), allow_pickle=False)
        file = write_atomically(folder / f"phi_{region.number}-violations.npy", buffer.getvalue())
        row["files"][file.name] = sha256(file)
        safe = int((~region.unsafe(x, after(x))).sum())
        row["violations"] = {"found": found, "held_out": len(x), "safe": safe}
        row["margin"] = result.stats.get("margins", {}).get(acas.property_file(region.number).name.split(".")[0])
        row |= common | measures.nearby(before, after, region, regions)


def versions() -> dict[str, str]:
    """Return what was used."""
    found = {"python": platform.python_version()}
    for package in ("nnrepair", "torch", "numpy", "scipy", "highspy", "onnx", "onnxruntime"):
        with suppress(PackageNotFoundError):  # nnrepair itself may run from a source tree
            found[package] = version(package)
    return found


def machine() -> str:
    """Return processor, cores and system."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


# Many units ----------------------------------------------------------------------------------------------------------


def attempt(unit: Unit, out: Path, states: int) -> str:
    """Solve a unit; return what went wrong, if anything: one unit is no reason to lose the others."""
    try:
        solve(unit, out, states)
    except (NNRepairError, OSError) as error:
        return f"{unit.name}: {error}"
    except Exception:  # ours to mend
        return f"{unit.name}: {traceback.format_exc()}"
    return ""


def sweep(wanted_units: Sequence[Unit], out: Path, jobs: int | None, states: int = STATES) -> list[str]:
    """Solve all units that are not there yet, each in a process that may die alone; return what went wrong."""
    rest = [unit for unit in wanted_units if not is_done(unit, out, states)]
    if len(rest) < len(wanted_units):
        print(f"{len(wanted_units) - len(rest)} of {len(wanted_units)} are there already")
    problems = {}
    with closing(in_processes(partial(attempt, out=out, states=states), rest, jobs)) as answers:
        for each, answer in tqdm(answers, desc="repair", total=len(rest), unit=" networks"):
            problems[each.name] = f"{each.name}: {answer}" if isinstance(answer, Failure) else answer
    return [problems[each.name] for each in rest if problems[each.name]]


def summary(rows: Sequence[Row]) -> str:
    """Return a line for each property of a unit."""
    lines = [f"{rows[0]['unit']}: {rows[0]['outcome']}"]
    for row in rows:
        certificate = "certificate accepted" if row["proved"] else row["recheck"] or "no certificate"
        lines.append(f"  phi_{row['property']} ({row['role']}): {row['before']} -> {row['after']}, {certificate}")
    repairs = [row for row in rows if row["role"] == "repair"]
    if repairs:
        kept = repairs[0]["agreement"]
        lines.append(f"  {kept['same']} of {kept['compared']} advisories unchanged {kept['over']}")
    return "\n".join([*lines, f"  {rows[0]['cost']['repair_cpu_seconds']:.1f} CPU s for the repair"])


def main(given: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--network", metavar="A_B", help="one network, e.g. 2_9")
    parser.add_argument("--property", metavar="N,...", help="with --network: repair these instead of all violated ones")
    parser.add_argument("--all", action="store_true", help="all networks, without those that are there already")
    parser.add_argument("--jobs", type=int, help="networks at a time; without it what joblib's backend says (one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for results (default: %(default)s)")
    parser.add_argument("--states", type=int, default=STATES, help="random states to compare advisories on")
    args = parser.parse_args(given)
    if sum([args.network is not None, args.networks is not None, args.all]) != 1:
        parser.error("give one of --network A_B, --networks A_B,... or --all")
    if args.property is not None and args.network is None:
        parser.error("--property needs --network: it chooses among the properties of one network")
    if args.states < 1:
        parser.error(f"--states must be at least 1, got {args.states}")
    try:
        if args.network is not None:
            print(summary(solve(unit(args.network, args.property), args.out, args.states)))
            return 0
        wanted_units = units(args.networks)
        problems = sweep(wanted_units, args.out, args.jobs, args.states)
    except (NNRepairError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    rows = [
        row for each in wanted_units if is_done(each, args.out, args.states) for row in read_rows(args.out / each.name)
    ]
    full = [row for row in rows if is_full(row)]
    repairs = [row for row in full if row["role"] == "repair"]
    print(
        f"{sum(row['proved'] for row in repairs)} of {len(repairs)} violated instances repaired and proved; "
        f"{sum(row['proved'] for row in full)} of {len(full)} instances hold with an accepted certificate"
    )
    print("\n".join(problems), file=sys.stderr, end="\n" * bool(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
