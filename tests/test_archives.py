"""Archives that the package is given: sizes are compared before anything is unpacked, and nothing is unpickled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import archives as made
import numpy as np
import pytest
import torch

from nnrepair import InvalidInput, archives
from nnrepair.cli.options import read_points
from nnrepair.domains import files as data
from nnrepair.files import read_arrays, write_arrays
from nnrepair.results.certificate import Certificate
from nnrepair.verify.certificate import PropertyCertificate

GOOD = {"inputs": np.arange(6.0).reshape(2, 3), "labels": np.array([0, 1])}
META = np.frombuffer(b'{"format": "pair-1"}', np.uint8)
HOSTILE = [*made.hostile(GOOD | {"meta": META}, "inputs")]


@pytest.mark.parametrize(("what", "make"), HOSTILE, ids=[what for what, _ in HOSTILE])
def test_hostile_archives(tmp_path: Path, what: str, make: Any) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(make())
    if what != "an array too few":  # without inputs, the others are a model's arguments by name
        with pytest.raises(InvalidInput, match="--edits: .*damaged.* Expected an .npz file"):
            read_points(path, "--edits", labelled=True)
    with pytest.raises(InvalidInput, match="is not a pair, or it is damaged"):
        read_arrays(path, "pair-1", "pair", lambda meta, arrays: arrays["inputs"])


def test_labels_alone_are_no_points(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=GOOD["labels"])
    with pytest.raises(InvalidInput, match="--edits: .*lacks inputs; it has labels. Expected an .npz file"):
        read_points(tmp_path / "a.npz", "--edits", labelled=True)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(made.twice(GOOD, "labels"))
    with pytest.raises(InvalidInput, match="it holds two arrays of one name"):
        read_points(path, "--edits", labelled=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_good_archives(tmp_path: Path, save: Any, order: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, **{name: np.asarray(array, order=order) for name, array in GOOD.items()}, note=np.array(["a", "bc"]))
    inputs, labels = read_points(path, "--edits", labelled=True)
    torch.testing.assert_close(inputs, torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    assert labels.tolist() == [0, 1]
    inputs += 1  # they may be written to
    with data.open_npz(path) as file:
        assert file.files == ["inputs", "labels", "note"] and file["note"].tolist() == ["a", "bc"]
    np.savez(path, inputs=np.zeros((0, 3)), labels=np.zeros(0, np.uint16), scalar=np.float32(2))
    inputs, labels = read_points(path, "--edits", labelled=True)
    assert inputs.shape == (0, 3) and labels.dtype == torch.int64


def test_the_limit_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_arrays(tmp_path / "a.npz", "pair-1", {}, {"x": np.zeros(100_000)})
    size = path.stat().st_size
    assert read_arrays(path, "pair-1", "pair", lambda meta, arrays: arrays["x"].shape) == (100_000,)
    monkeypatch.setattr(archives, "MAX_GROWTH", 100_000)
    message = (
        rf"it unpacks to 800\d+ bytes; at most 100000 more than its own {size} are read. Split it, or write it with"
    )
    with pytest.raises(InvalidInput, match=message):
        read_arrays(path, "pair-1", "pair", lambda meta, arrays: arrays)
    with pytest.raises(InvalidInput, match=message):
        data.open_npz(path)
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        data.open_npz(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("meta", "dim", "cut"),
    [
        ({"trees": "1"}, np.zeros(1, np.int16), np.zeros(1)),
        ({"versions": []}, np.zeros(1, np.int16), np.zeros(1)),
        ({"network_sha256": None}, np.zeros(1, np.int16), np.zeros(1)),
        ({}, np.zeros(1), np.zeros(1)),
        ({}, np.zeros((1, 1), np.int16), np.zeros(1)),
        ({}, np.zeros(1, np.int16), np.zeros(1, np.float32)),
    ],
)
def test_certificates_of_another_kind(tmp_path: Path, meta: dict[str, Any], dim: Any, cut: Any) -> None:
    about = {"trees": 1, "network_sha256": "a", "property_sha256": "b", "versions": {}}
    write_arrays(tmp_path / "c.npz", "nnrepair-property-1", about | meta, {"dim": dim, "cut": cut})
    with pytest.raises(InvalidInput, match="not a property certificate, or it is damaged: .* is of another kind"):
        PropertyCertificate.load(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", 5), ("bias", False), ("norm", None), ("architecture", {}), ("lowest", 1), ("margin", True)]
    + [(name, value) for name in ("lower_bound", "objective") for value in ("1", {}, None, np.nan, np.inf, 10**400)],
)
def test_certificates_of_repairs_whose_claims_are_of_another_kind(tmp_path: Path, name: str, value: Any) -> None:
    meta = {"weight": "fc.weight", "bias": None, "norm": "l1", "architecture": "same", "lower_bound": 1.0}
    meta |= {"objective": 2, "margin": 0, "lowest": False}
    path = write_arrays(tmp_path / "c.npz", "nnrepair-minimality-1", meta, {})
    assert "l1 norm below 1" in Certificate.load(path).claim
    write_arrays(path, "nnrepair-minimality-1", meta | {name: value}, {})
    with pytest.raises(InvalidInput, match="damaged"):
        Certificate.load(path)


MEMORY = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_archives
from nnrepair import InvalidInput
from nnrepair.cli.options import read_points
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29,) * 2)
for what, make in test_archives.HOSTILE:
    Path(sys.argv[3]).write_bytes(make())
    try:
        found = read_points(Path(sys.argv[3]), "--edits", labelled=True)
        if what != "an array too few":  # its others are a model's arguments by name
            print("read", what, found)
    except InvalidInput as error:
        if isinstance(error.__cause__, MemoryError):
            print("memory", what)
print("done")
"""


def test_memory(tmp_path: Path) -> None:
    """What an archive says of its size takes no memory."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", MEMORY, str(here), str(here.parent), str(tmp_path / "a.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr[-500:]) == ("done\n", "")
