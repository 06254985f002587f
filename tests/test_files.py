from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import ODD, elsewhere, fills_up, odd
from torch import nn

from nnrepair import InvalidInput, Patch
from nnrepair.files import (
    plain,
    read_arrays,
    replacing,
    require_writable,
    write_arrays,
    write_atomically,
    write_or_rescue,
)
from nnrepair.results.certificate import Certificate
from nnrepair.verify.certificate import PropertyCertificate


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


# Where files are written ---------------------------------------------------------------------------------------------


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_atomically(tmp_path / "link", b"one")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_bytes() == b"one"
    write_atomically(tmp_path / "link", b"two")
    assert os.listdir(tmp_path / "there") == ["file"] and (tmp_path / "there" / "file").read_bytes() == b"two"


def test_long_names_are_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        assert write_atomically(tmp_path / name, b"one").read_bytes() == b"one"


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = odd(tmp_path, kind)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InvalidInput, match=r"give the name of a file|Give another name|Give another place"):
        require_writable(path)
    with pytest.raises((InvalidInput, OSError)):
        write_atomically(path, b"content")
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_asking_whether_something_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a.bin", b"old")
    for place in (path, tmp_path / "b.bin", tmp_path / "new" / "folder" / "c.bin"):
        require_writable(place)
    assert os.listdir(tmp_path) == ["a.bin"] and path.read_bytes() == b"old"


def test_a_disk_that_is_full_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidInput, match="No space left on device.*Free space"):
        require_writable(tmp_path / "a.bin")
    assert os.listdir(tmp_path) == []

    def locked(*arguments: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", locked)
    with pytest.raises(InvalidInput, match=r"Read-only file system\). Give another place"):
        require_writable(tmp_path / "a.bin")


def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "a.npz", b"old")
    fills_up(monkeypatch, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_arrays(path, "pair-1", {}, {"x": np.arange(3)})
    with pytest.raises(ZeroDivisionError), replacing(path, ".npz") as part:
        assert part.suffix == ".npz" and part.parent == tmp_path
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a.npz"] and path.read_bytes() == b"old"


def save_patch(path: Path) -> None:
    base, repaired = nn.Linear(2, 2), nn.Linear(2, 2)
    Patch.between(base, repaired).save(path)


def save_certificate(path: Path) -> None:
    Certificate("fc.weight", None, "l1", "same", 1.0, 1.0, 0.0, False, {"x": np.zeros(3)}).save(path)


def save_proof(path: Path) -> None:
    PropertyCertificate(1, np.array([-1], np.int16), np.zeros(0), "0" * 64, "0" * 64, {}).save(path)


def save_network(path: Path) -> None:
    pytest.importorskip("onnxscript")
    from nnrepair import onnx

    onnx.save(nn.Linear(2, 2), torch.zeros(1, 2), path)


@pytest.mark.parametrize("save", [save_patch, save_certificate, save_proof, save_network])
def test_all_that_is_saved_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], None]
) -> None:
    path = write_atomically(tmp_path / "file.onnx", b"old")
    with monkeypatch.context() as patched:
        fills_up(patched, tmp_path)
        with pytest.raises(OSError, match="No space left"):
            save(path)
    assert os.listdir(tmp_path) == ["file.onnx"] and path.read_bytes() == b"old"
    with pytest.raises(InvalidInput, match="device"):
        save(Path("/dev/full"))
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    save(path)
    assert os.listdir(tmp_path) == ["file.onnx"] and path.read_bytes() != b"old"


class TestRescue:
    def test_nothing_is_told_where_nothing_fails(self, tmp_path: Path) -> None:
        assert write_or_rescue(tmp_path / "a", lambda path: path.write_bytes(b"one")) is None
        assert (tmp_path / "a").read_bytes() == b"one"

    def test_what_has_no_room_is_saved_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        temporary, out = elsewhere(monkeypatch, tmp_path / "elsewhere"), tmp_path / "out"
        fills_up(monkeypatch, out)
        failed = write_or_rescue(out / "a.bin", lambda path: write_atomically(path, b"one"))
        assert failed is not None and failed.instead is not None and failed.instead.read_bytes() == b"one"
        assert failed.instead.is_relative_to(temporary) and failed.instead.name == "a.bin"
        told = f"{out / 'a.bin'} could not be written (No space left on device); it was saved as {failed.instead}"
        assert told in str(failed) and os.listdir(out) == []

    def test_where_there_is_no_room_at_all_nothing_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
        fills_up(monkeypatch, tmp_path)
        failed = write_or_rescue(tmp_path / "a.bin", lambda path: write_atomically(path, b"one"))
        assert failed is not None and failed.instead is None and "neither could a copy" in str(failed)
        assert os.listdir(temporary) == [] and os.listdir(tmp_path) == ["elsewhere"]

    def test_other_errors_are_not_hidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
        with pytest.raises(ZeroDivisionError):
            write_or_rescue(tmp_path / "a", lambda path: 1 // 0)
        with pytest.raises(InvalidInput, match="not ready"):
            write_or_rescue(tmp_path / "a", self.not_ready)
        assert os.listdir(temporary) == []

    @staticmethod
    def not_ready(path: Path) -> None:
        raise InvalidInput("not ready")


def test_plain_values() -> None:
    given = {"a": (1, 2.5, True, None), 3: [float("inf"), float("-inf"), float("nan")], "path": Path("x")}
    assert plain(given) == {"a": [1, 2.5, True, None], "3": [None, None, None], "path": "x"}
