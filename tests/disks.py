"""Disks that fill up, and places where no file can be written."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def fills_up(monkeypatch: pytest.MonkeyPatch, where: Path, after: int = 0, *, file: str = "") -> None:
    """Let there be no room below a folder once some files were written there, or for the files of some name alone."""
    written, left = Path.write_bytes, iter(range(after))

    def write(path: Path, content: bytes) -> int:
        if path.is_relative_to(where) and file in path.name and next(left, None) is None:
            written(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make an empty folder the one for temporary files, and return it."""
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


ODD = ["a folder", "a device", "a link to a device", "a pipe", "a circle", "below a file", "too long", "a zero byte"]


def odd(folder: Path, kind: str) -> Path:
    """Return a place where no file can be written."""
    path = folder / "odd"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind in ("a link to a device", "a circle"):
        path.symlink_to("/dev/full" if kind == "a link to a device" else path)
    elif kind == "below a file":
        path.touch()
        return path / "file"
    return {"a device": Path("/dev/full"), "too long": folder / ("x" * 256), "a zero byte": folder / "a\0b"}.get(
        kind, path
    )


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Mount a disk of 64 KiB at a new folder; the test is skipped where that is not permitted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a disk is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, left: int = 0) -> None:
    """Fill the disk of a folder but for so many bytes."""
    path = folder / "filling"
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    os.truncate(path, path.stat().st_size - left)
