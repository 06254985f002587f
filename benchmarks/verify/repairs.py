"""The 47 repairs of ACAS Xu made anew: what they cost today, and whether every property is proved and rechecked.

    python -m benchmarks.verify.repairs         resumes where it was stopped

A unit is a network with all that is violated there; what holds is kept. Patches are not kept and locality is not
measured: that is what `verification/acas/repair.py` does, by the same calls.
File: benchmarks/verify/results/repairs.json.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks import measure
from nnrepair.domains import acas
from nnrepair.verify import check

RESULTS = Path(__file__).parent / "results"
LIMIT = 116.0  # seconds for each check


def run() -> None:
    """Repair every network on which anything is violated, and have its certificates judged."""
    sys.path.insert(0, str(measure.ROOT / "verification" / "acas"))
    repair, units = importlib.import_module("repair"), importlib.import_module("units")
    path = RESULTS / "repairs.json"
    rows = measure.load(path)
    done = {row["unit"] for row in rows}
    check(acas.network(1, 1), acas.property_file(1), timeout=LIMIT)  # so that start-up is not counted
    for unit in tqdm([unit for unit in units.units() if unit.chosen is None], desc="repairs"):
        if unit.name in done:
            continue
        before = {n: check(unit.network, acas.property_file(n), timeout=LIMIT) for n in unit.numbers}
        wanted = repair.to_repair(unit, before)
        if not wanted:
            continue
        started = time.process_time()
        result = repair.repaired(unit.network, wanted, [n for n in unit.numbers if before[n].holds])
        seconds = time.process_time() - started
        with tempfile.TemporaryDirectory() as folder:
            patch = result.patch.save(Path(folder) / units.PATCH)
            network = repair.materialised(unit.network, patch, Path(folder) / unit.network.name)
            found = repair.proofs(result, network, unit.numbers)
            said = {n: repair.proved(n, found[n], network, Path(folder)) for n in unit.numbers}
        rows.append(
            {
                "unit": unit.name,
                "repaired": wanted,
                "outcome": str(result.outcome),
                "proved": [n for n in unit.numbers if said[n]["proved"]],
                "lost": [n for n in unit.numbers if before[n].holds and not said[n]["proved"]],
                "l1": result.report.weight_change.l1,
                "weights": result.report.weight_change.nonzeros,
                "cpu_seconds": round(seconds, 3),
            }
        )
        measure.save(path, rows, f"repairs of ACAS Xu, one process, float64, limit {LIMIT:g} s a check, seed 0")


if __name__ == "__main__":
    run()
