"""verification/check.py as a program: 0 accepted, 1 rejected, 2 unreadable, and one line, whatever it is given."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from test_check_certificate import PROGRAM, checker, mlp, text, write

Array = Any
WEIGHTS = [[[1.0, -1.0], [-1.0, 1.0], [0.5, 0.5]], [[1.0, 1.0, 0.1]]]
BIASES = [[0.0, 0.0, -0.1], [0.5]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A certificate with some splits, its network and its property."""
    folder = tmp_path_factory.mktemp("files")
    net = mlp(folder / "net.onnx", WEIGHTS, BIASES)
    prop = folder / "prop.vnnlib"
    prop.write_text(text([-1.0, -1.0], [1.0, 1.0], "(or (<= Y_0 0.4) (>= Y_0 3))", 1))
    dim, cut = [0, 1, -1, -1, -1, 1, -1, -1], [0.0, 0.25, 0.5]
    return write(folder / "cert.npz", net, prop, dim, cut, trees=2), net, prop


class Program:
    """The program, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.patch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str]:
        self.patch.setattr(sys, "argv", ["check.py", *map(str, arguments)])
        code = checker.main()
        said = self.capsys.readouterr()
        assert said.err == "" and said.out.count("\n") == 1 and len(said.out) < 6000
        assert said.out.startswith(("Accepted: ", "Rejected: ", "Cannot be read: ")[code])
        return code, said.out


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


# The command line ----------------------------------------------------------------------------------------------------


def test_it_accepts(program: Program, files: tuple[Path, Path, Path]) -> None:
    assert program(*files) == (
        0,
        "Accepted: proved for all 2 pairs of box and unsafe set, for the real-valued function of the stored constants "
        "(8 nodes, 0 halved further).\n",
    )


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b"], ["a", "b", "c", "d"], ["--certificate", "a", "b"]])
def test_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        checker.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: check.py [-h] certificate network property")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        checker.main()
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert (
        "Check a proof that a property holds" in said and "Exit 0: accepted. 1: rejected, with the reason. 2:" in said
    )


def test_as_a_process(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), *map(str, files)]
    with open("/dev/full", "wb") as full:
        closed = subprocess.run([*command[:-1], "none\udcff"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (closed.returncode, closed.stderr) == (2, b"")
    bare = subprocess.run([sys.executable, "-S", *command[1:]], capture_output=True, text=True, check=False)
    assert bare.returncode == 2 and bare.stdout.startswith("Cannot be read: No module named ")
    for options in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONOPTIMIZE": "2"}):
        odd = tmp_path / "é\udcff.npz"
        odd.write_bytes(files[0].read_bytes()[:-9])
        done = subprocess.run(
            [*command[:2], str(odd), *command[3:]], capture_output=True, env={"PATH": ""} | options, check=False
        )
        assert (done.returncode, done.stderr) == (2, b"") and done.stdout.startswith(b"Cannot be read: ")


def test_files_that_are_none(program: Program, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for place in range(3):
        for name in (tmp_path / "none", tmp_path, Path("/dev/zero"), Path("x" * 5000), Path("")):
            given = [*files]
            given[place] = name
            assert program(*given)[0] == 2


# Certificates --------------------------------------------------------------------------------------------------------


def arrays(path: Path) -> dict[str, Array]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("name", ["meta", "dim", "cut"])
def test_hostile_archives(program: Program, files: tuple[Path, Path, Path], tmp_path: Path, name: str) -> None:
    cert, net, prop = files
    path = tmp_path / "c.npz"
    for what, make in archives.hostile(arrays(cert), name):
        path.write_bytes(make())
        assert program(path, net, prop)[0] == 2, what
    path.write_bytes(archives.twice(arrays(cert), name))
    assert program(path, net, prop)[0] == 2


@pytest.mark.parametrize(
    ("code", "said", "changes"),
    [
        (1, "trees is 1 in the certificate, but should be 2", {"trees": 1}),
        (1, "trees is '2' in", {"trees": "2"}),
        (1, "trees is -2 in", {"trees": -2}),
        (1, "trees is 1000000000000000000 in", {"trees": 10**18}),
        (1, "trees is nan in", {"trees": float("nan")}),
        (1, "trees is None in", {"trees": None}),
        (1, "nodes is [[[[", {"nodes": [[[[[8]]]]] * 1000}),
        (1, "format is 'nnrepair-property-2' in", {"format": "nnrepair-property-2"}),
        (1, "network_sha256 is 'é", {"network_sha256": "é" * 1000}),
    ],
)
def test_meta_data(
    program: Program, files: tuple[Path, Path, Path], tmp_path: Path, code: int, said: str, changes: dict[str, Any]
) -> None:
    cert, net, prop = files
    found = arrays(cert)
    meta = json.dumps(json.loads(found["meta"].tobytes()) | changes, ensure_ascii=False)
    np.savez(tmp_path / "c.npz", **found | {"meta": np.frombuffer(meta.encode(), np.uint8)})
    got, line = program(tmp_path / "c.npz", net, prop)
    assert got == code and said in line


@pytest.mark.parametrize(
    "meta",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"2",
            b'"format"',
            b"null",
            b"\xff\xfe{}",
            b"[" * 1_000_000,
            b'{"a":' * 200_000,
            b"9" * 5000,
        ),
        *(
            b'{"trees": ' + b"9" * 5000 + b"}",
            b'{"trees": 2, "trees": 2}',
            b"{}" + b" " * 2**21,
            b'{"a": {"b": 1, "b": 2}}',
        ),
    ],
    ids=lambda meta: meta[:12],
)
def test_meta_data_that_cannot_be_read(
    program: Program, files: tuple[Path, Path, Path], tmp_path: Path, meta: bytes
) -> None:
    cert, net, prop = files
    np.savez(tmp_path / "c.npz", **arrays(cert) | {"meta": np.frombuffer(meta, np.uint8)})
    assert program(tmp_path / "c.npz", net, prop)[0] == 2


@pytest.mark.parametrize("what", ["dim", "cut"])
def test_arrays_of_other_kinds(program: Program, files: tuple[Path, Path, Path], tmp_path: Path, what: str) -> None:
    cert, net, prop = files
    found = arrays(cert)
    for kind in ("i1", "i4", "u2", "f2", "f8" if what == "dim" else "f4"):
        np.savez(tmp_path / "c.npz", **found | {what: found[what].astype(kind)})
        assert program(tmp_path / "c.npz", net, prop)[0] == 1
    for kind in (">i2" if what == "dim" else ">f8", "c16", "U4", "?", "M8[s]", [("a", "i2")]):
        np.savez(tmp_path / "c.npz", **found | {what: np.zeros(found[what].shape, kind)})
        assert program(tmp_path / "c.npz", net, prop)[0] == 2
    for shape in ((1, -1), (-1, 1), (1, -1, 1)):
        np.savez(tmp_path / "c.npz", **found | {what: found[what].reshape(shape)})
        assert program(tmp_path / "c.npz", net, prop)[0] == 1
    np.savez(tmp_path / "c.npz", **found | {what: found[what][0]})
    assert program(tmp_path / "c.npz", net, prop)[0] == 1


def test_trees_of_every_shape(program: Program, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """No shape makes it run on, and only covers by what is proved are accepted."""
    _, net, prop = files
    rng = np.random.default_rng(0)
    start = time.process_time()
    deep = 20_000
    for dim, code in [
        ([], 1),
        ([-1], 1),
        ([-1, -1, -1], 1),
        ([0, -1, -1, 0, -1], 1),
        ([0, 0, 0, 0], 1),
        ([2, -1, -1, -1], 1),
        ([-2, -1], 1),
        ([-32768, -1], 1),
        ([32767, -1, -1, -1], 1),
        ([0, -1] * deep + [-1, -1], 0),  # a comb
        ([0] * deep + [-1] * (deep + 1) + [-1], 0),
        (np.zeros(2**22 + 2), 2),
    ]:
        inner = int((np.array(dim) >= 0).sum())
        for cut in (np.zeros(inner), rng.uniform(-2, 2, inner), np.full(inner, 1e308), np.full(inner, -5e-324)):
            cert = write(tmp_path / "c.npz", net, prop, dim, cut, trees=2)
            assert program(cert, net, prop)[0] == code
        for wrong in (np.nan, np.inf):
            cert = write(tmp_path / "c.npz", net, prop, dim, np.full(inner, wrong), trees=2)
            assert program(cert, net, prop)[0] == (code or int(inner > 0))
    assert time.process_time() - start < 300  # some seconds


def test_boxes_that_wait_have_a_limit(
    program: Program, files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, net, prop = files
    prop = tmp_path / "p.vnnlib"
    prop.write_text(text([-1.0, -1.0], [1.0, 1.0], "(<= Y_0 0.51)", 1))  # violated, so that every box stays open
    dim = [0] * 300 + [-1] * 301
    cert = write(tmp_path / "c.npz", net, prop, dim, np.linspace(0.9, -0.9, 300))
    monkeypatch.setattr(checker, "WAITING", 10_000)
    code, said = program(cert, net, prop)
    assert code == 1 and "of its boxes wait, more than 10000 bytes" in said


# Properties and networks ---------------------------------------------------------------------------------------------


def test_properties_that_cannot_be_read(program: Program, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    cert, net, prop = files
    good = prop.read_bytes()
    path = tmp_path / "p.vnnlib"
    for content in (
        *(b"", good[:-1], good + b")", good + b"\xff", b"\x1f\x8b" + good, good.replace(b"0.4", b"1e999999999")),
        *(good + b"(assert (or (<= Y_0 0) (<= Y_0 0)))" * 19, b"(" * 10**6, good.replace(b"\n", b"\x0b")),
        *(good.replace(b"X_0", b"X_999999999"), good.replace(b"Y_0", b"Y_1"), good.decode().encode("utf-16")),
    ):
        path.write_bytes(content)
        assert program(cert, net, path)[0] == 2
    for content in (good + b"\n", b"\xef\xbb\xbf" + good, good.replace(b"\n", b"\r")):  # the same, but other bytes
        path.write_bytes(content)
        code, said = program(cert, net, path)
        assert code == 1 and "property_sha256 is" in said
        assert program(write(tmp_path / "c.npz", net, path, [-1, -1], [], trees=2), net, path)[0] in (0, 1)


def test_gzipped_properties(
    program: Program, files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is what counts, and the hash is that of the file; within the limits once unpacked."""
    _, net, prop = files
    path, good = tmp_path / "p.vnnlib.gz", prop.read_bytes()
    half = len(good) // 2
    for content in (gzip.compress(good), gzip.compress(good[:half]) + gzip.compress(good[half:])):
        path.write_bytes(content)
        cert = write(tmp_path / "c.npz", net, path, [-1, -1], [], trees=2)
        assert program(cert, net, path)[0] == 0
        assert program(cert, net, prop)[0] == 1
    for content in (gzip.compress(good)[:-9], gzip.compress(good)[:-8] + bytes(8), gzip.compress(gzip.compress(good))):
        path.write_bytes(content)
        assert program(write(tmp_path / "c.npz", net, path, [-1, -1], [], trees=2), net, path)[0] == 2
    path.write_bytes(gzip.compress(good.replace(b"0.4", b"0.51")))
    assert program(write(tmp_path / "c.npz", net, path, [-1, -1], [], trees=2), net, path)[0] == 1
    monkeypatch.setattr(checker, "MAX_BYTES", len(good))
    path.write_bytes(gzip.compress(good + b" "))
    code, said = program(write(tmp_path / "c.npz", net, path, [-1, -1], [], trees=2), net, path)
    assert code == 2 and f"unpacks to more than {len(good)} bytes" in said


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(3))
def test_damaged_files(program: Program, files: tuple[Path, Path, Path], tmp_path: Path, place: int) -> None:
    """Bits turned over, pieces cut out, doubled or moved: never accepted, but for a certificate with another cover."""
    rng = random.Random(place)
    path, good = tmp_path / "damaged", files[place].read_bytes()
    for _ in range(200):
        data, at = bytearray(good), rng.randrange(len(good))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.choice((1, 2, 8, len(good)))]
            case 2:
                data[at:at] = data[at : at + rng.choice((1, 8, 64))]
            case _:
                data[at : at + 4] = rng.randbytes(4)
        path.write_bytes(data)
        given = [*files]
        given[place] = path
        code, _ = program(*given)
        assert code in ((0, 1, 2) if place == 0 or data == good else (1, 2))


def test_edited_certificates(program: Program, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Nodes and cuts changed at random, all else kept: accepted only where the property holds, which it does here."""
    cert, net, prop = files
    found = arrays(cert)
    false = tmp_path / "false.vnnlib"
    false.write_text(text([-1.0, -1.0], [1.0, 1.0], "(or (<= Y_0 0.51) (>= Y_0 3))", 1))
    rng, codes = random.Random(1), set()
    for _ in range(150):
        dim, cut = found["dim"].tolist(), found["cut"].tolist()
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(dim))
            match rng.randrange(4):
                case 0:
                    dim[at] = rng.choice((-1, 0, 1, 2, -2))
                case 1:
                    dim[at:at] = [rng.choice((-1, 0, 1))]
                case 2:
                    del dim[at]
                case _:
                    cut[rng.randrange(len(cut))] = rng.choice((0.0, -1.0, 1e-300, 5.0, rng.uniform(-1, 1)))
        cut = (cut + [0.0] * 9)[: sum(d >= 0 for d in dim)]
        codes.add(program(write(tmp_path / "c.npz", net, prop, dim, cut, trees=2), net, prop)[0])
        assert program(write(tmp_path / "c.npz", net, false, dim, cut, trees=2), net, false)[0] == 1
    assert codes == {0, 1}


MEMORY = """
import contextlib, io, resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import archives, test_check_program as test
cert, net, prop = map(Path, sys.argv[3:6])
found, path = test.arrays(cert), Path(sys.argv[6])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
for name in ("meta", "dim", "cut"):
    for what, make in archives.hostile(found, name):
        path.write_bytes(make())
        sys.argv = ["check.py", str(path), str(net), str(prop)]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = test.checker.main()
        if code != 2 or "Memory" in said.getvalue():
            print(code, what, said.getvalue())
"""


def test_memory(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """What an archive says of its size takes no memory."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", MEMORY, here, here.parent, *files, tmp_path / "c.npz"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr[-500:], done.returncode) == ("", "", 0)
