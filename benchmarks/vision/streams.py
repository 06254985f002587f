"""All 50 000 training images of CIFAR-10 kept while ResNet-20 is repaired: memory, time and passes over the images.

The images lie in a file and are read when the network runs on them; nothing is cut or computed before.
`python -m benchmarks.vision.streams '{"layer": "linear", "edits": 50, "path": FILE}'` measures one repair.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import nnrepair
from benchmarks import measure
from benchmarks.vision import cifar
from nnrepair import Edits
from nnrepair.domains.images.cifar import cifar10_jpeg, resnet20
from nnrepair.files import read_arrays, write_arrays
from nnrepair.methods import MinimalNorm

RESULTS = Path(__file__).parent / "results" / "streams.json"
SHAPE = (3, 32, 32)
NUMBERS = 3 * 32 * 32
SEED, LIMIT = 0, 1800.0
CASES: list[dict[str, Any]] = [{"layer": "linear", "edits": 50}, {"layer": "layer3.2.conv1", "edits": 50}]
FORMAT = "nnrepair benchmark edits 1"


class OnDisk(Dataset[Any]):
    """Labelled images, one byte for each colour of a pixel, one image after another in a file.

    Attributes:
        read: how many were read so far.
    """

    def __init__(self, path: Path, labels: Tensor) -> None:
        self.path, self.labels, self.read = path, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        with self.path.open("rb") as file:
            file.seek(NUMBERS * k)
            pixels = torch.frombuffer(bytearray(file.read(NUMBERS)), dtype=torch.uint8)
        self.read += 1
        return pixels.reshape(SHAPE).float() / 255, self.labels[k]


def case(layer: str, edits: int, path: str) -> dict[str, Any]:
    """Repair JPEG copies of test images, and keep all training images."""
    given = read_arrays(Path(path).with_name("edits.npz"), FORMAT, "file of edits", lambda meta, arrays: arrays)
    x, y, labels = (torch.from_numpy(given[name]) for name in ("inputs", "labels", "kept labels"))
    model, items = resnet20(), OnDisk(Path(path), labels)
    chosen = MinimalNorm(layer=layer, norm="drift")
    nnrepair.fix(model, Edits(x[:1], y[:1]), (items[0][0][None], labels[:1]), method=chosen, throw=False)
    items.read = 0

    def work() -> dict[str, Any]:
        kept: Any = DataLoader(items, batch_size=256)
        result = nnrepair.fix(model, Edits(x[:edits], y[:edits]), kept, method=chosen, throw=False, seed=SEED)
        report = result.report
        told = {"kept": len(items), "passes": items.read / len(items), "success_rate": report.success_rate}
        return told | {"locality": report.locality, "status": result.outcome.status, "options": repr(chosen)}

    return measure.measured(work)


def write(path: Path) -> None:
    """Write the images to keep, and the edits and labels beside them."""
    train, test, at = cifar10_jpeg("train"), cifar10_jpeg("test"), cifar.copies()
    path.write_bytes(train.inputs.mul(255).round().byte().numpy().tobytes())
    most = max(one["edits"] for one in CASES)
    wrong = at["test mistakes"][torch.randperm(len(at["test mistakes"]), generator=torch.Generator().manual_seed(SEED))]
    arrays = {"inputs": test.inputs[wrong[:most]], "labels": test.labels[wrong[:most]], "kept labels": train.labels}
    write_arrays(path.with_name("edits.npz"), FORMAT, {}, {name: value.numpy() for name, value in arrays.items()})


def run() -> None:
    """Measure what is not measured yet, each case in a process of its own."""
    rows, commit = measure.load(RESULTS), measure.commit()
    done = [{key: row[key] for key in CASES[0]} for row in rows]
    todo = [each for each in CASES if each not in done]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images"
        if todo:
            write(path)
        for asked in tqdm(todo, desc="streams"):
            found = measure.in_fresh_process("benchmarks.vision.streams", asked | {"path": str(path)}, timeout=LIMIT)
            rows.append(asked | {"seed": SEED, "commit": commit} | found)
            measure.save(RESULTS, rows, "JPEG copies of test images as edits, all training images kept, read from disk")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(case(**json.loads(sys.argv[1]))))
