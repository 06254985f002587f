from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nnrepair import InvalidInput
from nnrepair.files import read_arrays, write_arrays, write_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    assert write_atomically(path, b"one") == path
    write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = write_atomically(tmp_path / "a.bin", b"old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_arrays_come_back_with_their_meta_data(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "new" / "a.npz", "pair-1", {"name": "é"}, {"x": np.arange(3)})
    meta, arrays = read_arrays(path, "pair-1", "pair", lambda meta, arrays: (meta, arrays))
    assert meta == {"name": "é"} and list(arrays) == ["x"] and arrays["x"].tolist() == [0, 1, 2]
    with pytest.raises(InvalidInput, match=r"a\.npz is not a pair, or it is damaged: another format"):
        read_arrays(path, "pair-2", "pair", lambda meta, arrays: meta)
    with pytest.raises(InvalidInput, match=r"a\.npz is not a pair, or it is damaged: 'size'"):
        read_arrays(path, "pair-1", "pair", lambda meta, arrays: meta["size"])
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz", "pair-1", "pair", lambda meta, arrays: meta)


@pytest.mark.parametrize("pickled", [False, True])
def test_arrays_from_foreign_files_are_refused(tmp_path: Path, pickled: bool) -> None:
    path = tmp_path / "a.npz"
    if pickled:
        np.savez(path, meta=np.frombuffer(b'{"format": "pair-1"}', np.uint8), x=np.array([None]))
    else:
        path.write_bytes(write_arrays(path, "pair-1", {}, {"x": np.arange(3)}).read_bytes()[:-20])
    with pytest.raises(InvalidInput, match="damaged"):
        read_arrays(path, "pair-1", "pair", lambda meta, arrays: arrays)
