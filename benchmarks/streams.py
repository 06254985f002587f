"""Memory and time of a repair that keeps 60 000 MNIST images: from memory, and read from disk a batch at a time.

Every row is a process of its own. Memory is the most that it held beyond what it held before the images were there.

    python benchmarks/streams.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import nnrepair
from nnrepair.domains.images.vision import mnist
from nnrepair.methods import FineTune, MinimalNorm
from nnrepair.methods.fine_tune.penalties import KL

SHAPE, SIZE = (1, 28, 28), 28 * 28 * 4
METHODS = {
    "minimal-norm": MinimalNorm(layer="3"),
    "ft+kl": FineTune(lr=0.001, steps=50, rehearsal=64, penalties=[KL(1.0)]),
}


class OnDisk(Dataset[Any]):
    """Images (1, 28, 28) of float32, one after another in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, path.stat().st_size // SIZE

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Tensor:
        with self.path.open("rb") as file:
            file.seek(k * SIZE)
            return torch.frombuffer(bytearray(file.read(SIZE)), dtype=torch.float32).reshape(SHAPE)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def held() -> float:
    """Return the most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(path: Path, how: str, method: str) -> str:
    """Repair five images and return a row of the table."""
    model, items = network(), OnDisk(path)
    edits = torch.stack([items[k] for k in range(0, 50, 10)]) + 0.05
    with torch.no_grad():
        labels = model(edits).topk(2, 1).indices[:, 1]
    nnrepair.fix(
        model, (edits, labels), edits[:1] + 0.1, method=METHODS[method], throw=False
    )  # imports count as before
    before, started = held(), time.process_time()
    kept: Any = DataLoader(items, batch_size=256)
    if how == "memory":
        kept = torch.empty(len(items), *SHAPE)
        for k in range(len(items)):
            kept[k] = items[k]
    result = nnrepair.fix(model, (edits, labels), kept, method=METHODS[method], throw=False)
    report = result.report
    row = [method, how, f"{held() - before:.0f}", f"{time.process_time() - started:.0f}", f"{report.locality:.6f}"]
    return f"| {' | '.join(row)} | {sum(report.held_after)} of {report.edits} |"


def main() -> None:
    """Print the table, or one row of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="*", help="for the processes: file, how and method")
    arguments = parser.parse_args()
    if arguments.row:
        path, how, method = arguments.row
        print(one(Path(path), how, method))
        return
    print("| method | images | MB more | CPU seconds | locality | edits hold |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images"
        images = mnist("train", flat=False).inputs
        path.write_bytes(images.reshape(len(images), *SHAPE).float().numpy().tobytes())
        for method in METHODS:
            for how in ("memory", "disk"):
                subprocess.run([sys.executable, __file__, str(path), how, method], check=True)


if __name__ == "__main__":
    main()
