"""verification/acas: a sweep that survives kills, networks that can be rebuilt, an audit that sees what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

FOLDER = Path(__file__).parents[1] / "verification" / "acas"
sys.path.insert(0, str(FOLDER))  # as python does when it runs the programs

import audit  # noqa: E402
import materialise  # noqa: E402
import measures  # noqa: E402
import page  # noqa: E402
import repair  # noqa: E402
import units  # noqa: E402

from nnrepair import onnx  # noqa: E402
from nnrepair.domains import acas  # noqa: E402
from nnrepair.errors import InvalidInput, NNRepairError  # noqa: E402
from nnrepair.fingerprint import fingerprint  # noqa: E402
from nnrepair.results.patch import Patch  # noqa: E402

SMALL = ["--networks", "5_3,2_3"]
NEEDED = ("acasxu/acasxu_instances.csv", "acasxu/onnx", "acasxu/vnnlib")


@pytest.fixture
def acas_data(data_dir: Callable[..., Path]) -> Path:
    return data_dir(*NEEDED)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, repaired without a break."""
    folder = os.environ.get("NNREPAIR_DATA")
    missing = [name for name in NEEDED if folder is None or not (Path(folder) / name).exists()]
    if missing:
        pytest.skip(f"NNREPAIR_DATA lacks {', '.join(missing)}")
    out = tmp_path_factory.mktemp("acas") / "results"
    assert repair.main([*SMALL, "--states", "20000", "--out", str(out)]) == 0
    return out


def contents(out: Path) -> dict[str, Any]:
    """Return all files, rows without what they cost."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        rows = path.name == units.ROWS
        found[str(path.relative_to(out))] = (
            [{k: v for k, v in row.items() if k != "cost"} for row in units.read_rows(path.parent)]
            if rows
            else path.read_bytes()
        )
    return found


# What is committed ---------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_rows_say() -> None:
    assert page.README.read_text() == page.page()


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--network", "9_9"], "There is no network N_{9,9}: expected a in 1..5 and b in 1..9"),
        (["--network", "29"], "'29' is no network: expected two numbers such as 2_9"),
        (["--networks", "5_3,nine"], "'nine' is no network"),
        (["--network", "2_9", "--property", "99"], "There is no property phi_99"),
        (["--network", "2_9", "--property", "eight"], "'eight' is no property"),
        (["--network", "2_9", "--property", "5"], "phi_5 is not checked on N_{2,9}; there it is phi_1, phi_2, phi_3"),
        (["--network", "5_3", "--property", "1"], "phi_1 on N_{5,3}: holds, so there is nothing to repair; what is"),
        (["--network", "1_1", "--property", "4"], "nothing is violated there"),
    ],
)
def test_arguments_that_are_wrong(acas_data: Path, tmp_path: Path, capsys: Any, given: list[str], said: str) -> None:
    assert repair.main([*given, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("given", [[], ["--all", "--network", "5_3"], ["--all", "--property", "2"]])
def test_arguments_that_do_not_fit_together(given: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        repair.main(given)
    assert "--network" in capsys.readouterr().err


@pytest.mark.data
def test_the_sets_are_those_of_the_literature(acas_data: Path) -> None:
    assert len(units.units()) == 46 and units.units()[-1].name == "N_1_9_phi_7"
    instances = [
        {"unit": each.name, "network": f"{each.a}_{each.b}", "property": number}
        for each in units.units()
        for number in (each.chosen or each.numbers)
    ]
    assert sum(map(units.is_full, instances)) == 186
    specified = [row for row in instances if units.is_specified(row)]
    assert len(specified) == 38  # and on N_{3,3} and N_{4,2} phi_2 holds
    assert [row["unit"] for row in specified if row["network"][0] == "1"] == ["N_1_9_phi_7"]


# Sweeps --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.data
def test_rows_say_what_was_proved_and_measured(swept: Path, capsys: Any) -> None:
    rows = units.read_rows(swept / "N_2_3")
    assert [row["property"] for row in rows] == [1, 2, 3, 4] and all(row["proved"] for row in rows)
    assert [row["role"] for row in rows] == ["keep", "repair", "keep", "keep"]
    row = rows[1]
    assert (row["before"], row["after"], row["recheck"]) == ("violated", "holds", "accepted")
    assert row["violations"]["found"] >= row["violations"]["held_out"] == row["violations"]["safe"] > 100
    assert 0.99 < row["agreement"]["same"] / row["agreement"]["compared"] <= 1
    assert row["agreement"]["states"] == 20000 > row["agreement"]["compared"] > 19900
    assert row["change"]["weights"] > 0 and row["drawdown"] == {"held": 3, "lost": []}
    text = page.page(swept)
    assert "| [N_{2,3}](pictures/acas-2_3.png) phi_2 | full, specified |" in text and "| specified | 2 of 36 |" in text

    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*")}
    assert repair.main([*SMALL, "--states", "20000", "--out", str(swept)]) == 0  # nothing is left to do
    assert "2 of 2 are there already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in swept.rglob("*")}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_sweep_that_was_killed_ends_with_the_same_files(swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    shutil.copytree(swept, out)
    (out / "N_5_3" / units.PATCH).write_bytes(b"cut short")  # as a full disk may leave it
    words = [str(FOLDER / "repair.py"), *SMALL, "--states", "20000", "--out", str(out)]
    paths = [str(FOLDER.parents[1]), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (out / ".part-N_5_3" / units.PATCH).exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (out / "N_5_3" / units.PATCH).read_bytes() == b"cut short" and (out / ".part-N_5_3").exists()
    assert repair.main([*words[1:], "--jobs", "2"]) == 0
    assert contents(out) == contents(swept)


@pytest.fixture
def copied(acas_data: Path, tmp_path: Path) -> Path:
    """A folder with one of the committed results."""
    shutil.copytree(units.RESULTS / "N_5_3", tmp_path / "N_5_3")
    assert repair.is_done(units.unit("5_3"), tmp_path, repair.STATES)
    return tmp_path


NO_ROWS = [b"", b"[]\n", b"5\n", b"null\n", b'"N_5_3"\n', b"\xff\xfe", b"NaN\n", b"[" * 10**5 + b"]" * 10**5]


def with_rows(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edited(folder, change)


@pytest.mark.data
@pytest.mark.parametrize(
    "damage",
    [
        *(with_rows(lambda row, key=key: row.pop(key)) for key in sorted(units.KEYS)),
        with_rows(lambda row: row.update(files=5)),
        with_rows(lambda row: row.update(files=["phi_1.npz"])),
        with_rows(lambda row: row.update(property="1")),
        with_rows(lambda row: row.update(unit="N_1_1")),
        with_rows(lambda row: row.update(patch_sha256=5)),
        *(lambda folder, text=text: (folder / units.ROWS).write_bytes(text) for text in NO_ROWS),
        lambda folder: (folder / units.ROWS).unlink(),
        lambda folder: ((folder / units.ROWS).unlink(), (folder / units.ROWS).mkdir()),
        lambda folder: (folder / units.ROWS).write_bytes((folder / units.ROWS).read_bytes()[:-9]),
        lambda folder: (folder / "phi_1.npz").write_bytes(b"nothing"),
        lambda folder: (folder / units.PATCH).unlink(),
    ],
)
def test_damaged_results_are_made_again(copied: Path, damage: Callable[[Path], Any]) -> None:
    damage(copied / "N_5_3")
    assert not repair.is_done(units.unit("5_3"), copied, repair.STATES)


@pytest.mark.data
def test_results_stand_until_new_ones_do(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run is killed between the two names that a folder gets."""
    before, real = contents(copied), os.replace
    for kept in range(3):
        new = copied / ".part-N_5_3"
        shutil.copytree(copied / "N_5_3", new)
        (new / "new").touch()
        left = iter(range(kept))

        def killed(a: Path, b: Path, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(a, b)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", killed)
            if kept < 2:
                with pytest.raises(KeyboardInterrupt):
                    repair._put(new, copied / "N_5_3")
            else:
                repair._put(new, copied / "N_5_3")
        shutil.rmtree(new, ignore_errors=True)
        assert repair.is_done(units.unit("5_3"), copied, repair.STATES)
        assert (contents(copied) == before) == (kept < 2)
    assert os.listdir(copied) == ["N_5_3"]


@pytest.mark.data
def test_another_network_replaces_no_certified_one(copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    out.write_bytes(b"what was there")
    edited(copied / "N_5_3", lambda row: row.update(network_sha256="0" * 64))
    with pytest.raises(InvalidInput, match="not the one that was certified"):
        materialise.rebuilt(units.unit("5_3"), copied / "N_5_3", out)
    assert out.read_bytes() == b"what was there" and sorted(os.listdir(tmp_path)) == ["N_5_3", "net.onnx"]


# Networks and audits -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.data
def test_networks_are_rebuilt_byte_for_byte_and_the_checker_accepts_them(swept: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        given = ["--results", str(swept), "--out", str(tmp_path / folder), *SMALL]
        assert materialise.main([*given, "--set", "specified"] if folder == "two" else given) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["ACASXU_run2a_2_3_batch_2000.onnx", "ACASXU_run2a_5_3_batch_2000.onnx"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    program = FOLDER.parent / "check.py"
    files = [swept / "N_2_3" / "phi_2.npz", tmp_path / "one" / names[0], acas.property_file(2)]
    done = subprocess.run([sys.executable, program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("Accepted"), done
    files[1] = acas.network(2, 3)
    assert subprocess.run([sys.executable, program, *files], capture_output=True, check=False).returncode == 1


@pytest.mark.slow
@pytest.mark.data
def test_the_audit_accepts_what_was_made(swept: Path, tmp_path: Path, capsys: Any) -> None:
    given = ["--results", str(swept), *SMALL]
    assert audit.main([*given, "--readme", str(tmp_path / "page.md")]) == 0
    said = capsys.readouterr().out
    assert "everything is as recorded" in said and "8 certificates accepted" in said
    assert (tmp_path / "page.md").read_text() == page.page(swept)
    assert audit.main(["--quick", "--results", str(swept), "--networks", "5_3,1_1"]) == 1
    assert "MISMATCH N_1_1" in capsys.readouterr().out


def tampered_patch(folder: Path, forge: bool) -> None:
    """Move one weight; with `forge` the table says so, too."""
    patch = Patch.load(folder / units.PATCH)
    name = next(iter(patch.new))
    moved = patch.new[name].clone()
    moved.view(-1)[0] += 1e-3
    forged = dataclasses.replace(patch, new=patch.new | {name: moved})
    if forge:  # the patch itself, too
        model = onnx.load(acas.network(5, 3))
        model.load_state_dict(model.state_dict() | forged.new)
        forged = dataclasses.replace(forged, repaired=fingerprint(model))
    forged.save(folder / units.PATCH)
    if forge:
        materialise.materialised(acas.network(5, 3), folder / units.PATCH, folder / "x.onnx")
        digests = {
            "patch_sha256": units.sha256(folder / units.PATCH),
            "network_sha256": units.sha256(folder / "x.onnx"),
        }
        (folder / "x.onnx").unlink()
        edited(folder, lambda row: row.update(digests))


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rows = units.read_rows(folder)
    for row in rows:
        change(row)
    (folder / units.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda folder: tampered_patch(folder, forge=False), "patch.safetensors is missing or not the file"),
        (lambda folder: tampered_patch(folder, forge=True), "network_sha256 is"),
        (lambda folder: (folder / units.PATCH).unlink(), "patch.safetensors is missing"),
        (lambda folder: (folder / "phi_1.npz").write_bytes(b"nothing"), "certificate cannot be read"),
        (lambda folder: (folder / "other.npz").write_bytes(b""), "other.npz is not among the files"),
        (lambda folder: edited(folder, lambda row: row.pop("files")), "KeyError"),
        (lambda folder: edited(folder, lambda row: row.get("change", {}).update(weights=0)), "the patch changes"),
        (lambda folder: edited(folder, lambda row: row.get("violations", {}).update(held_out=9)), "stored points"),
        (lambda folder: (folder / units.ROWS).write_text("{}"), "cannot be read"),
    ],
)
def test_the_audit_sees_what_was_tampered_with(
    swept: Path, tmp_path: Path, capsys: Any, tamper: Callable[[Path], Any], said: str
) -> None:
    shutil.copytree(swept / "N_5_3", tmp_path / "N_5_3")
    given = ["--quick", "--results", str(tmp_path), "--networks", "5_3"]
    assert audit.main(given) == 0
    tamper(tmp_path / "N_5_3")
    capsys.readouterr()
    assert audit.main(given) == 1
    assert f"MISMATCH N_5_3 phi_{said}" in (out := capsys.readouterr().out) or said in out
    if "patch" in said and "changes" not in said:
        with pytest.raises((NNRepairError, OSError)):
            materialise.rebuilt(units.unit("5_3"), tmp_path / "N_5_3", tmp_path / "net.onnx")


# Measures ------------------------------------------------------------------------------------------------------------


def test_rounding_never_leaves_a_box() -> None:
    lower, upper = torch.tensor([[0.1, -0.3]], dtype=torch.float64), torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    for x in (lower, upper):
        near = measures.inward(x, lower, upper).double()
        assert bool(((near >= lower) & (near <= upper)).all()) and float((near - x).abs().max()) < 1e-7


@pytest.mark.data
def test_measures_count_what_changed(acas_data: Path) -> None:
    region = measures.Region(2)
    old = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    new = torch.tensor([0.5, 0.4, 2.0, 3.0, 4.0], dtype=torch.float64)
    found = measures.whole_domain(lambda x: old.expand(len(x), 5), lambda x: new.expand(len(x), 5), [region], 1000)
    kept = found["agreement"]
    assert kept["same"] == 0 and 990 < kept["compared"] <= 1000 and kept["over"] == "outside the boxes of phi_2"
    assert found["regret"] == {"changed": kept["compared"], "mean": 1.0, "max": 1.0}
    assert measures.Region(7).is_whole and not region.is_whole
    x = region.drawn(1000, 1, torch.Generator().manual_seed(0))
    assert bool(region.within(x).all()) and not np.isnan(x.numpy()).any()
    local = measures.nearby(lambda x: old.expand(len(x), 5), lambda x: old.expand(len(x), 5), region, [region])
    assert local["region"]["same"] == local["region"]["compared"] == measures.LOCAL
    assert 0 < local["neighbourhood"]["same"] == local["neighbourhood"]["compared"] < measures.LOCAL
    around = region.drawn(1000, 3, torch.Generator().manual_seed(0)).double()
    low, high = torch.tensor(acas.DOMAIN, dtype=torch.float64).T
    assert bool(((around >= low) & (around <= high)).all()) and bool(region.within(around).any())
    whole = measures.Region(7)
    assert (
        measures.nearby(lambda x: new.expand(len(x), 5), lambda x: old.expand(len(x), 5), whole, [whole])[
            "neighbourhood"
        ]
        is None
    )
