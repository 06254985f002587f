"""Every layer of the MNIST networks, the last one too, repaired of the most edits: other corruptions, other seeds.

`python -m benchmarks.engine.corruptions` measures `benchmarks.engine.hidden.case` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.engine import hidden
from benchmarks.engine.against import Comparison

EDITS = 200
RESULTS = Path(__file__).parent / "results" / "corruptions.json"
#: Corruptions, and the seeds that draw edits and kept points.
SEEDS = {"rotation": (1, 2, 3), "impulse noise": (1, 2, 3), "fog": (1, 2, 3), "blur": (1,), "low contrast": (1,)}


def cases() -> Iterator[dict[str, Any]]:
    """Yield every layer, one seed after another."""
    for place in range(max(map(len, SEEDS.values()))):
        for (corruption, seeds), (net, depth) in product(SEEDS.items(), (("3x100", 3), ("9x100", 9))):
            for layer in range(1, depth + 1) if place < len(seeds) else ():
                one = {"net": net, "layer": f"fc{layer}", "norm": "drift", "edits": EDITS}
                yield one | {"corruption": corruption, "seed": seeds[place]}


if __name__ == "__main__":
    about = "200 misread digits, 10 000 clean digits kept; CPU seconds of fix"
    Comparison(Path(hidden.__file__), RESULTS, about, limit=(90, 90)).main(cases, hidden.case)
