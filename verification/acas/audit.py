"""Check everything that is claimed about the repaired ACAS Xu networks again, from the files alone.

    python verification/acas/audit.py [--quick] [--results DIR] [--networks 5_3,2_3]

For every network: the hashes of all files; the network rebuilt from its patch, and its size of change; every
certificate, by verification/check.py; every stored counterexample, and all measures, by onnxruntime. Then README.md is
written from the rows. Exit 1 if anything differs. --quick leaves out measures on random states and long certificates.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measures
import numpy as np
import onnx
import onnxruntime
import torch
from materialise import rebuilt
from measures import Region, Run
from page import README, page
from repair import recheck
from tqdm import tqdm
from units import PATCH, RESULTS, Row, Unit, arguments, read_rows, sha256, units

from nnrepair.domains import acas
from nnrepair.errors import NNRepairError
from nnrepair.files import write_atomically
from nnrepair.results.patch import Patch

#: What --quick leaves out: certificates with more nodes.
LONG = 2000
#: Advisories may tip where two scores are within rounding: so many of a million.
TIES = 20


def runner(path: Path) -> Run:
    """Return a network as a function of many states, computed by onnxruntime."""
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_param = "states"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: torch.Tensor) -> torch.Tensor:
        parts = [session.run(None, {name: part.reshape(-1, 1, 1, 5).numpy()})[0] for part in torch.split(x, 2**16)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float64))

    return run


class Audit:
    """Counts of what was checked, and what is wrong.

    Args:
        results: the folder.
        quick: whether to leave out what takes long.
    """

    def __init__(self, results: Path, quick: bool) -> None:
        self.results, self.quick = results, quick
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def expect(self, right: bool, what: str, problem: str) -> None:
        """Count one thing that was checked."""
        self.counts[what] += 1
        if not right:
            self.wrong.append(problem)

    def unit(self, unit: Unit, scratch: Path) -> None:
        """Check one network."""
        folder = self.results / unit.name
        try:
            rows = read_rows(folder)
            self.files(unit, folder, rows)
            network = rebuilt(unit, folder, scratch / f"{unit.name}.onnx")
        except (NNRepairError, OSError, KeyError) as error:
            self.wrong.append(f"{unit.name}: {type(error).__name__}: {error}")
            return
        self.counts["networks"] += 1
        for row in rows:
            self.certificate(unit, folder, row, network)
        repairs = [row for row in rows if row["role"] == "repair"]
        if repairs:
            self.change(unit, folder, repairs)
            self.behaviour(unit, folder, repairs, network)

    def files(self, unit: Unit, folder: Path, rows: list[Row]) -> None:
        """Compare every hash, and that there is a row for each property."""
        self.expect(
            [row["property"] for row in rows] == unit.numbers, "tables", f"{unit.name}: not a row for each property"
        )
        known = {"rows.jsonl", PATCH}
        for row in rows:
            where = f"{unit.name} phi_{row['property']}"
            pairs = [(unit.network, row["base_sha256"]), (acas.property_file(row["property"]), row["property_sha256"])]
            pairs += [(folder / name, digest) for name, digest in row["files"].items()]
            pairs += [(folder / PATCH, row["patch_sha256"])] if row["patch_sha256"] else []
            for path, digest in pairs:
                fine = path.is_file() and sha256(path) == digest
                self.expect(fine, "hashes", f"{where}: {path.name} is missing or not the file that was recorded")
            known |= set(row["files"])
        for path in sorted(folder.iterdir()):
            self.expect(path.name in known, "names", f"{unit.name}: {path.name} is not among the files recorded")

    def certificate(self, unit: Unit, folder: Path, row: Row, network: Path) -> None:
        """Let the independent program judge a certificate."""
        where = f"{unit.name} phi_{row['property']}"
        if not row["proved"]:
            self.counts["instances without proof"] += 1
            return
        if self.quick and row["nodes"] > LONG:
            self.counts["certificates left out"] += 1
            return
        try:
            said = recheck(folder / f"phi_{row['property']}.npz", network, row["property"])
        except Exception as error:  # whatever a damaged file leads to
            said = f"cannot be read: {type(error).__name__}: {error}"
        self.expect(said == "accepted", "certificates accepted", f"{where}: certificate {said}")

    def change(self, unit: Unit, folder: Path, repairs: list[Row]) -> None:
        """Compute the size of change from the patch."""
        patch = Patch.load(folder / PATCH)
        parts = [(patch.new[name].double() - patch.old[name].double()).flatten() for name in patch.new]
        change = torch.cat(parts) if parts else torch.zeros(1)
        found = {
            "weights": int((change != 0).sum()),
            "l1": float(change.abs().sum()),
            "linf": float(change.abs().max()),
        }
        for row in repairs:
            fine = all(abs(row["change"][key] - value) <= 1e-6 * abs(value) for key, value in found.items())
            self.expect(fine, "sizes of change", f"{unit.name}: the patch changes {found}, recorded {row['change']}")

    def behaviour(self, unit: Unit, folder: Path, repairs: list[Row], network: Path) -> None:
        """Run both networks on the stored counterexamples and, unless quick, measure everything again."""
        before, after = runner(unit.network), runner(network)
        regions = [Region(row["property"]) for row in repairs]
        for row, region in zip(repairs, regions, strict=True):
            where, points = f"{unit.name} phi_{region.number}", row["violations"]
            x = torch.from_numpy(np.load(folder / f"phi_{region.number}-violations.npy", allow_pickle=False))
            bad = int((~region.unsafe(x, before(x))).sum()) + abs(len(x) - points["held_out"])
            self.expect(not bad, "tables", f"{where}: {bad} of the stored points do not violate the original")
            safe = int((~region.unsafe(x, after(x))).sum())
            self.expect(safe == points["safe"], "tables", f"{where}: {safe} points are safe, recorded {points['safe']}")
            self.counts["held-out violations"] += len(x)
            self.counts["held-out violations now safe"] += safe
            if row["proved"]:
                self.expect(safe == len(x), "tables", f"{where}: proved, but {len(x) - safe} points are violated")
        if self.quick:
            return
        whole = measures.whole_domain(before, after, regions, repairs[0]["states"])
        for row, region in zip(repairs, regions, strict=True):
            found = whole | measures.nearby(before, after, region, regions)
            for key in ("agreement", "regret", "region", "neighbourhood"):
                fine = near(found[key], row[key])
                problem = f"{unit.name} phi_{region.number}: {key} is {found[key]}, recorded {row[key]}"
                self.expect(fine, "measures", problem)

    def proofs(self) -> Iterator[str]:
        """Say how much of it there is."""
        for name in sorted(self.counts):
            yield f"{self.counts[name]:>8} {name}"


def near(found: Any, recorded: Any) -> bool:
    """Tell whether two measures are the same but for advisories that rounding tips."""
    if not isinstance(found, dict) or not isinstance(recorded, dict):
        return found is None and recorded is None
    if found.keys() != recorded.keys():
        return False
    for key, value in found.items():
        if isinstance(value, int):
            if abs(value - recorded[key]) > TIES:
                return False
        elif isinstance(value, float) and isinstance(recorded[key], float):
            if abs(value - recorded[key]) > 1e-5 + 0.05 * abs(value):
                return False
        elif value != recorded[key] and not isinstance(value, float | None):
            return False
    return True


def main(given: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="without random states and long certificates")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, help="where to write the page (default: README.md)")
    args = parser.parse_args(given)
    audit = Audit(args.results, args.quick)
    try:
        chosen = units(args.networks)
        with tempfile.TemporaryDirectory() as scratch:
            for unit in tqdm(chosen, desc="audit", unit=" networks"):
                audit.unit(unit, Path(scratch))
        target = args.readme or (README if args.results == RESULTS else None)
        if target is not None:
            write_atomically(target, page(args.results).encode())
            print(f"wrote {target.name}")
    except (NNRepairError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(audit.proofs()))
    for problem in audit.wrong:
        print(f"MISMATCH {problem}")
    print(f"{len(audit.wrong)} mismatches" if audit.wrong else "everything is as recorded")
    return 1 if audit.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
