"""Memory and time of a repair that keeps 60 000 MNIST images: from memory, and read from disk a batch at a time.

Every row is a process of its own. Memory is the most that it held beyond what it held before the images were there.

    python benchmarks/streams.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import nnrepair
from nnrepair.domains.vision import mnist, mnist_fog, relu_mlp
from nnrepair.methods import FineTune, MinimalNorm
from nnrepair.methods.fine_tune.penalties import KL

NUMBERS, EDITS = 784, 5
#: The last layer of the network 3x100.
LAST = "fc3"
METHODS = {
    "minimal-norm": MinimalNorm(layer=LAST),
    "ft+kl": FineTune(lr=0.001, steps=50, rehearsal=64, penalties=[KL(1.0)]),
}


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


def held() -> float:
    """Return the most memory that this process has held so far, in MB."""
    # Not getrusage, which begins with what the parent process held.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def one(path: Path, how: str, method: str) -> str:
    """Repair foggy digits and return a row of the table."""
    model, items = relu_mlp("3x100"), OnDisk(path)
    edits = torch.load(path.with_name("edits.pt"))
    nnrepair.fix(model, edits, items[0][None], method=METHODS[method], throw=False)  # what is imported counts as before
    before, started = held(), time.process_time()
    kept: Any = DataLoader(items, batch_size=256)
    if how == "memory":
        kept = torch.empty(len(items), NUMBERS)
        for k in range(len(items)):
            kept[k] = items[k]
    result = nnrepair.fix(model, edits, kept, method=METHODS[method], throw=False)
    report = result.report
    row = [method, how, f"{held() - before:.0f}", f"{time.process_time() - started:.0f}", f"{report.locality:.6f}"]
    return f"| {' | '.join(row)} | {sum(report.held_after)} of {report.edits} |"


def write(path: Path) -> None:
    """Write the images to keep, and the edits beside them: foggy digits that the network gets wrong."""
    path.write_bytes(mnist("train").inputs.float().numpy().tobytes())
    fog, model = mnist_fog(), relu_mlp("3x100")
    with torch.no_grad():
        wrong = torch.nonzero(model(fog.inputs).argmax(1) != fog.labels).flatten()[:EDITS]
    torch.save((fog.inputs[wrong].clone(), fog.labels[wrong].clone()), path.with_name("edits.pt"))


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
        write(path)
        for method in METHODS:
            for how in ("memory", "disk"):
                subprocess.run([sys.executable, __file__, str(path), how, method], check=True)


if __name__ == "__main__":
    main()
