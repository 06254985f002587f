"""Memory and time of a repair that keeps 60 000 MNIST images: from memory, and read from disk a batch at a time.

`python -m benchmarks.mnist.streams '{"method": "minimal-norm", "images": "disk", "path": FILE}'` measures one repair,
with the images in FILE, as `write` makes it. Memory is the most that is held beyond what was held before the images
were there; time includes reading them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import nnrepair
from benchmarks import measure
from nnrepair.domains.vision import mnist, mnist_fog, relu_mlp
from nnrepair.methods import FineTune, Method, MinimalNorm
from nnrepair.methods.fine_tune.penalties import KL

RESULTS = Path(__file__).parent / "results" / "streams.json"
NUMBERS, EDITS, SEED = 784, 5, 0
METHODS: dict[str, Method] = {
    "minimal-norm": MinimalNorm(layer="fc3"),
    "ft+kl": FineTune(lr=0.001, steps=50, rehearsal=64, penalties=[KL(1.0)]),
}
IMAGES = ("memory", "disk")
LIMIT = 900.0


class OnDisk(Dataset[Any]):
    """Images (784,) of float32, one after another in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, path.stat().st_size // (4 * NUMBERS)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Tensor:
        with self.path.open("rb") as file:
            file.seek(4 * NUMBERS * k)
            return torch.frombuffer(bytearray(file.read(4 * NUMBERS)), dtype=torch.float32)


def case(method: str, images: str, path: str) -> dict[str, Any]:
    """Repair foggy digits and keep what a file of images holds."""
    model, items = relu_mlp("3x100"), OnDisk(Path(path))
    edits, chosen = torch.load(Path(path).with_name("edits.pt")), METHODS[method]
    nnrepair.fix(model, edits, items[0][None], method=chosen, throw=False)  # first-call costs

    def work() -> dict[str, Any]:
        kept: Any = DataLoader(items, batch_size=256)
        if images == "memory":
            kept = torch.empty(len(items), NUMBERS)
            for k in range(len(items)):
                kept[k] = items[k]
        result = nnrepair.fix(model, edits, kept, method=chosen, throw=False, seed=SEED)
        report = result.report
        told = {"kept": len(items), "edits": report.edits, "success_rate": report.success_rate}
        return told | {"locality": report.locality, "status": result.outcome.status}

    return measure.measured(work)


def write(path: Path) -> None:
    """Write the images to keep, and the edits beside them: foggy digits that the network gets wrong."""
    path.write_bytes(mnist("train").inputs.float().numpy().tobytes())
    fog, model = mnist_fog(), relu_mlp("3x100")
    with torch.no_grad():
        wrong = torch.nonzero(model(fog.inputs).argmax(1) != fog.labels).flatten()[:EDITS]
    torch.save((fog.inputs[wrong].clone(), fog.labels[wrong].clone()), path.with_name("edits.pt"))


def run_streams() -> None:
    """Measure each method on images in memory and on disk, each in a process of its own."""
    rows, commit = measure.load(RESULTS), measure.commit()
    done = {(row["method"], row["images"]) for row in rows}
    todo = [each for each in product(METHODS, IMAGES) if each not in done]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images"
        if todo:
            write(path)
        for method, images in tqdm(todo, desc="streams"):
            asked = {"method": method, "images": images}
            found = measure.in_fresh_process("benchmarks.mnist.streams", asked | {"path": str(path)}, timeout=LIMIT)
            rows.append(asked | {"options": repr(METHODS[method]), "seed": SEED, "commit": commit} | found)
            measure.save(RESULTS, rows, "foggy digits as edits, all training digits kept: in memory, and from disk")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(case(**json.loads(sys.argv[1]))))
