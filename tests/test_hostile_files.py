"""Hostile editors, progress and patches: refused in plain words, in bounded memory; nothing they name is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_patch_damage import HOSTILE

import nnrepair
from nnrepair import NNRepairError, Patch
from nnrepair.methods import Editor, MinimalNorm
from nnrepair.spec.state import packed_tensors
from nnrepair.training import Checkpoint
from nnrepair.training.checkpoint import FORMAT as CHECKPOINT


def resumed(path: Path) -> object:
    model = torch.nn.Linear(2, 2)
    return nnrepair.fix(model, (torch.ones(1, 2), [0]), method=MinimalNorm(""), mode="successive", resume=path)


READERS: dict[str, Callable[[Path], object]] = {
    "patch": Patch.load,
    "editor": Editor.load,
    "training": lambda path: Checkpoint(path, {}).load({}),
    "sequence": resumed,
}
FORMS = {"patch": "nnrepair-patch-1", "editor": "nnrepair-editor-1", "training": CHECKPOINT}
NAMES = {"patch": ("base", "repaired", "about"), "editor": ("method", "network", "about"), "training": ("key", "state")}
#: What the texts of a file with a right checksum may be instead of what they should.
TEXTS = ["", "[]", "5", "null", '"../../etc/passwd"', '{"tensor": "../0"}', '{"items": 5}', '{"items": [[[], 1]]}']
TEXTS += ['{"a": 1, "b": 2}', "{}", "NaN", '{"float": "x"}', '{"list": {"tensor": "0"}}', "[" * 10**5, "9" * 10**5]
TEXTS += ['{"list": [' * 5000 + "]}" * 5000]


@pytest.mark.parametrize("kind", READERS)
def test_what_a_file_says_of_its_sizes_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    for content in HOSTILE.values():
        refused(kind, path, content)


@pytest.mark.parametrize("kind", FORMS)
def test_texts_with_a_right_checksum_are_refused(kind: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / "hostile.safetensors", {"0": torch.tensor([torch.nan]), "../../x": torch.zeros(0)}
    for text in TEXTS:
        refused(kind, path, packed_tensors(FORMS[kind], tensors, dict.fromkeys(NAMES[kind], text), "file"))


def refused(kind: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(NNRepairError, match=r"hostile\.safetensors") as error:
        READERS[kind](path)
    assert str(error.value).isprintable() and len(str(error.value)) < 2000
    assert [each.name for each in path.parent.iterdir()] == [path.name] and path.read_bytes() == content


LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_hostile_files
from nnrepair import NNRepairError
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28,) * 2)
for kind, read in test_hostile_files.READERS.items():
    for what, content in test_hostile_files.HOSTILE.items():
        Path(sys.argv[3]).write_bytes(content)
        try:
            print("read", kind, what, read(Path(sys.argv[3])))
        except NNRepairError as error:
            if isinstance(error.__cause__, MemoryError):
                print("memory", kind, what)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process in this way")
def test_what_a_file_says_of_its_sizes_takes_no_memory(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command: list[Any] = [sys.executable, "-W", "ignore", "-c", LIMITED, here, here.parent, tmp_path / "a.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.stdout, done.stderr[-500:]) == ("done\n", "")
