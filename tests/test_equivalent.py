"""Two networks agree: bounds of twins against samples, verdicts, witnesses, certificates and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnrepair import onnx
from nnrepair.cli import main
from nnrepair.deadline import NEVER
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.results import checkers
from nnrepair.verify import Box, Case, Equivalence, EquivalenceCertificate, Halfspace, Property, equivalent, vnnlib
from nnrepair.verify.comparing.agreement import apart, elsewhere
from nnrepair.verify.comparing.twins import Twins
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.rational import inside
from tests.test_compare import network

SQUARE = Box([-1, -1], [1, 1])


def moved(model: nn.Sequential, size: float, seed: int = 0) -> nn.Sequential:
    """Return a copy with all weights a little different."""
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p += size * torch.randn(p.shape, generator=generator)
    return other


def drawn(lower: Tensor, upper: Tensor, count: int = 2000) -> Tensor:
    """Return random points of boxes, (boxes, count, inputs)."""
    generator = torch.Generator().manual_seed(1)
    at = torch.rand(len(lower), count, lower.shape[1], generator=generator, dtype=torch.float64)
    return lower[:, None] + at * (upper - lower)[:, None]


def furthest(before: nn.Module, after: nn.Module) -> float:
    """Return by how much outputs differ at random points of the square, at most."""
    x = drawn(torch.tensor([[-1.0, -1]]).double(), torch.tensor([[1.0, 1]]).double(), 50_000)[0]
    with torch.no_grad():
        return float((copy.deepcopy(after).double()(x) - copy.deepcopy(before).double()(x)).abs().max())


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.05, 2.0])
@pytest.mark.parametrize("sizes", [(2, 9, 3), (3, 12, 12, 12, 4)])
def test_bounds_of_twins_contain_samples(sizes: tuple[int, ...], size: float) -> None:
    """Of rows of either network, of differences, and of both with any coefficients; on large boxes and small ones."""
    before = network(sizes, 3)
    after = moved(before, size)
    d, m = sizes[0], sizes[-1]
    graphs = [lower(model.eval(), (d,)) for model in (before, after)]
    root = -torch.ones(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    middle = 1.6 * torch.rand(40, d, generator=generator, dtype=torch.float64) - 0.8
    radius = torch.logspace(-3, 0, 40, dtype=torch.float64)[:, None]
    low, high = (middle - radius).clamp(min=-1), (middle + radius).clamp(max=1)
    twins = Twins(graphs[0], graphs[1], *root, NEVER)
    (a, b), (c, e) = twins.root
    known = (a.expand(40, -1), b.expand(40, -1)), (c.expand(40, -1), e.expand(40, -1))
    bounds = twins.over(low, high, known)
    eye, rows = torch.eye(m).double(), torch.randn(6, 2 * m, generator=generator, dtype=torch.float64)
    A = torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1), rows])
    box = torch.arange(40).repeat_interleave(len(A))
    found = bounds.rows(A.repeat(40, 1), box)
    x = drawn(low, high)
    with torch.no_grad():
        y = torch.cat([copy.deepcopy(model).double()(x) for model in (before, after)], 2)
    value = torch.einsum("bpo,ro->brp", y, A)
    linear = torch.einsum("bri,bpi->brp", found.A.reshape(40, len(A), d), x) + found.c.reshape(40, len(A), 1)
    assert (linear <= value + 1e-11).all()
    if size == 1e-4:  # and they are close: a bound of a difference hangs on how far twins are apart
        gap = (value.amin(2) - found.minimum(low[box], high[box]).reshape(40, -1))[:20, : 2 * m]
        assert float(gap.max()) < 0.02


def test_verdicts_are_those_of_samples() -> None:
    before = network((2, 16, 16, 3), 1)
    for size in (1e-3, 0.1):
        after = moved(before, size)
        far = furthest(before, after)
        found = equivalent(before, after, SQUARE, tolerance=1.02 * far, timeout=20)
        assert found.holds, found
        assert found.proved == 1
        found = equivalent(before, after, [SQUARE], tolerance=0.9 * far, timeout=20)
        assert found.verdict == "violated"
        assert found.witness is not None
        assert found.witness.replayed == ("network", "exact")
        assert np.abs(found.witness.before - found.witness.after).max() > 0.9 * far
        assert SQUARE.contains(found.witness.input)


def test_networks_whose_units_are_all_off() -> None:
    """Nothing is left of them to bound, but what their last biases say."""
    first, second = (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(2))
    with torch.no_grad():
        for net in (first, second):
            net[0].bias.fill_(-10)
        second[2].bias.copy_(first[2].bias + 0.25)
    box = Box([-1, -1], [1, 1])
    assert equivalent(first, second, box, tolerance=0.375).verdict == "holds"
    assert equivalent(first, second, box, tolerance=0.125).verdict == "violated"


def test_a_decision_is_the_same_where_it_is_made_by_a_margin() -> None:
    before = network((2, 16, 16, 3), 1)
    after = moved(before, 1e-3)
    far = furthest(before, after)
    found = equivalent(before, after, SQUARE, margin=3 * far, timeout=20)
    assert found.holds, found
    for decision in ("argmax", "argmin"):
        other = moved(before, 0.3)
        found = equivalent(before, other, SQUARE, decision=decision, margin=0.01, timeout=20)  # type: ignore[arg-type]
        assert found.witness is not None
        one, two = (getattr(np, decision)(y) for y in (found.witness.before, found.witness.after))
        assert one != two
        y = found.witness.before if decision == "argmax" else -found.witness.before
        assert np.sort(y)[-1] - np.sort(y)[-2] >= 0.01
    small = Box.around([0.9, -0.9], 0.01)  # no border runs through it
    assert equivalent(before, after, small, timeout=20).holds


def test_where_decisions_differ_is_what_the_words_say() -> None:
    """Ties go to the first output; every pair of decisions that differ is in an unsafe set, and no other."""
    rng = np.random.default_rng(0)
    for decision in ("argmax", "argmin"):
        for margin in (Fraction(0), Fraction(1)):
            sets = elsewhere(3, decision, margin)
            for y in rng.integers(0, 3, (300, 6)):
                sign = 1 if decision == "argmax" else -1
                one, two = int((sign * y[:3]).argmax()), int((sign * y[3:]).argmax())
                lead = np.sort(sign * y[:3])[-1] - np.sort(sign * y[:3])[-2]
                ties = margin and lead >= margin  # then one output alone wins
                expected = one != two and (not margin or bool(ties))
                exact = [(Fraction(int(v)), Fraction(int(v))) for v in y]
                assert any(inside(way, exact) for way in sets) == expected
    assert len(apart(3, Fraction(1))) == 6


def test_the_time_limit_ends_it() -> None:
    before = network((8, 60, 60, 5), 2)
    found = equivalent(before, moved(before, 0.05), Box([-3] * 8, [3] * 8), tolerance=9.0, timeout=1.5)
    assert found.verdict == "unknown"
    assert found.wall_seconds < 4
    assert "time limit" in found.reason
    assert 0 <= found.proved < 1


def test_it_leaves_the_networks_alone_and_is_reproducible() -> None:
    before = network((2, 8, 3), 1).train()
    state = copy.deepcopy(before.state_dict())
    one, two = (equivalent(before, moved(before, 0.01), SQUARE, tolerance=0.5) for _ in range(2))
    assert (one.verdict, one.boxes) == (two.verdict, two.boxes)
    assert before.training
    assert all((state[name] == value).all() for name, value in before.state_dict().items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tolerance": 0}, "more than 0"),
        ({"tolerance": -1}, "at least 0"),
        ({"tolerance": float("nan")}, "finite number"),
        ({"tolerance": "much"}, "finite number"),
        ({"tolerance": 1, "margin": 1}, "without tolerance"),
        ({"decision": "softmax"}, "'argmax' or 'argmin'"),
        ({"margin": -1}, "margin must be"),
        ({"tolerance": 1, "timeout": 0}, "timeout must be"),
        ({"tolerance": 1, "region": Box([0], [1])}, "one input of shape"),
        ({"tolerance": 1, "region": "nothing.vnnlib"}, "nothing.vnnlib"),
        ({"tolerance": 1, "region": []}, "region must be"),
        ({"tolerance": 1, "region": 5}, "region must be .* got int 5"),
        ({"tolerance": 1, "seed": "x"}, "seed must be a whole number from 0 .* got 'x'"),
        ({"tolerance": 1, "seed": True}, "seed must be"),
        ({"tolerance": 1, "seed": 2**70}, "seed must be"),
        ({"tolerance": 1, "seed": 1.5}, "seed must be"),
    ],
)
def test_wrong_questions_are_refused(given: dict[str, Any], said: str) -> None:
    before = network((2, 8, 3), 1)
    region = given.pop("region", SQUARE)
    with pytest.raises((InvalidInput, FileNotFoundError), match=said):
        equivalent(before, before, region, **given)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    before, after = network((2, 8, 3), 1), network((2, 8, 3), 1)
    for one in (np.int64(1), np.float32(1), torch.tensor(1.0), torch.tensor(1)):
        found = equivalent(before, after, SQUARE, tolerance=one, seed=np.int64(3))
        assert found.verdict == "holds" and found.certificate is not None
        assert (found.certificate.tolerance, type(found.certificate.tolerance)) == (1, Fraction)


def test_networks_that_are_no_twins_are_refused() -> None:
    before = network((2, 8, 3), 1)
    with pytest.raises(UnsupportedModel, match="same layers"):
        equivalent(before, network((2, 9, 3), 1), SQUARE, tolerance=1)
    with pytest.raises(UnsupportedModel, match="something else"):
        equivalent(before, nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), SQUARE, tolerance=1)
    with pytest.raises(InvalidInput, match="one output"):
        equivalent(network((2, 8, 1), 1), network((2, 8, 1), 2), SQUARE)


def test_convolutions_and_fixed_inputs() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    after = moved(before, 1e-3)
    image = torch.rand(1, 6, 6)
    low, high = image.clone(), image.clone()
    low[0, 2:4, 2:4], high[0, 2:4, 2:4] = 0, 1
    assert equivalent(before, after, Box(low, high), tolerance=0.05, timeout=20).holds


# Certificates --------------------------------------------------------------------------------------------------------


def checker(name: str) -> ModuleType:
    """Return a module of the independent program."""
    folder = str(Path(checkers.__file__).parents[2] / "verification")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Equivalence, float]:
    """Return two files, what is found about them, and how far they are apart."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("equivalent")
    before = network((2, 16, 16, 3), 4)
    after = moved(before, 0.02)
    files = [folder / name for name in ("f.onnx", "g.onnx")]
    for path, model in zip(files, (before, after), strict=True):
        onnx.save(model, torch.zeros(2, 2), path)
    far = furthest(before, after)
    boxes = [Box([-1, -1], [0, 1]), Box([0, Fraction(-1, 3)], [1, 1]), Box([0.5, -1], [0.5, 1])]
    return files[0], files[1], equivalent(files[0], files[1], boxes, tolerance=1.01 * far, timeout=20), far


def judged(certificate: EquivalenceCertificate, case: Any, path: Path) -> tuple[int, str]:
    program = checker("compare")
    try:
        return checkers.ACCEPTED, program.check(str(certificate.save(path)), *map(str, case[:2]))
    except program.Rejected as error:
        return checkers.REJECTED, str(error)
    except ValueError as error:
        return checkers.UNREADABLE, str(error)


def test_a_proof_is_accepted_and_a_larger_claim_is_not(
    case: tuple[Path, Path, Equivalence, float], tmp_path: Path
) -> None:
    proof = case[2].certificate
    assert proof is not None
    assert len(proof.dim) > 10
    code, said = judged(proof, case, tmp_path / "c.npz")
    assert code == 0, said
    assert "no output differs by more than" in said
    assert EquivalenceCertificate.load(tmp_path / "c.npz") == proof
    done = checkers.run("comparison", tmp_path / "c.npz", *case[:2])
    assert (done.returncode, done.stdout.strip()) == (0, said)

    wrong: dict[str, dict[str, Any]] = {
        "not proved": {"tolerance": Fraction(0.95 * case[3])},  # there are points where that is false
        "neither a tolerance": {"decision": "argmax"},
        "below 0": {"tolerance": Fraction(-1)},
        "has a margin": {"margin": Fraction(1)},
        "no volume": {"boxes": (*proof.boxes[:2], Box([0, 0, 0], [1, 1, 1]))},
        "nodes|trees": {"dim": proof.dim[:-1]},
        "before_sha256": {"before_sha256": proof.after_sha256},
    }
    for why, change in wrong.items():
        code, said = judged(dataclasses.replace(proof, **change), case, tmp_path / "w.npz")
        assert code == checkers.REJECTED, (why, said)
        assert any(part in said for part in why.split("|")), (why, said)
    larger = (Box([-1, -1], [0.1, 1]), *proof.boxes[1:])  # proved too, perhaps, but of what it says
    code, said = judged(dataclasses.replace(proof, boxes=larger), case, tmp_path / "w.npz")
    assert code == 0, said
    flips = dataclasses.replace(proof, tolerance=None, decision="argmax")
    code, said = judged(flips, case, tmp_path / "w.npz")
    assert code == checkers.REJECTED
    assert "not proved" in said


def test_on_the_command_line(
    case: tuple[Path, Path, Equivalence, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    region, proof, far = tmp_path / "region.vnnlib", tmp_path / "c.npz", case[3]
    region.write_text(vnnlib.dumps(Property([Case(SQUARE, ((Halfspace((1, 0, 0), 0),),))], 3)))
    given = ["compare", *map(str, case[:2]), str(region)]
    assert main([*given, "--tolerance", f"{1.05 * far}", "--certificate", str(proof)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("holds")
    assert main(["certify", str(proof), str(case[0]), "--repaired", str(case[1])]) == 0
    assert "no output differs by more" in capsys.readouterr().out
    assert main([*given, "--tolerance", f"{0.5 * far}"]) == 1
    assert "replayed by: network, onnxruntime, exact" in capsys.readouterr().out
    assert main([*given, "--margin", f"{4 * far}"]) == 0
    assert main([*given, "--tolerance", "little"]) == 3
    assert "tolerance must be a finite number" in capsys.readouterr().err
    assert main([*given, "--tolerance", "1", "--report", str(tmp_path / "r.json")]) == 3
    assert "--report" in capsys.readouterr().err


def test_proofs_of_decisions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    before = network((2, 10, 3), 1)
    after = moved(before, 1e-3)
    files = [tmp_path / "f.onnx", tmp_path / "g.onnx"]
    for path, model in zip(files, (before, after), strict=True):
        onnx.save(model, torch.zeros(2, 2), path)
    for decision in ("argmax", "argmin"):
        found = equivalent(*files, SQUARE, decision=decision, margin="1/20", timeout=20)  # type: ignore[arg-type]
        assert found.certificate is not None, found
        code, said = judged(found.certificate, files, tmp_path / "c.npz")
        assert code == 0, said
        assert f"the {decision} is the same wherever it wins before by at least 0.05" in said


def test_the_program_bounds_twins_as_it_says() -> None:
    """Its bounds of rows contain samples, on boxes of many sizes; its sets are those of the package."""
    program, reading, twins = checker("check"), checker("reading"), checker("twins")
    before = network((3, 12, 12, 4), 7)
    for size in (1e-4, 0.3):
        pair = [before, moved(before, size)]
        layers = []
        for model in pair:
            maps = [layer for layer in model if isinstance(layer, nn.Linear)]
            numbers = [(v.weight.detach().double().numpy(), v.bias.detach().double().numpy()) for v in maps]
            layers.append([reading.Layer(w, b, relu=k < len(maps) - 1) for k, (w, b) in enumerate(numbers)])
        ends = (Fraction(-1),) * 3, (Fraction(1),) * 3
        for unsafe in (twins.far(4, Fraction(1)), twins.others(4, 1, Fraction(1, 2))):
            bounder = twins.Twins(*layers, *ends, unsafe)
            rng = np.random.default_rng(0)
            middle, radius = rng.uniform(-0.8, 0.8, (30, 3)), np.logspace(-3, 0, 30)[:, None]
            low, high = np.maximum(middle - radius, -1), np.minimum(middle + radius, 1)
            lows, highs = (np.repeat(end, 30, 0) for end in bounder.root[2:])
            steps, on = bounder.relax(low, high, lows, highs)
            m = len(bounder.rows.bias)
            A = np.tile(bounder.rows.weight[:, on], (30, 1))
            c = np.tile(bounder.rows.bias, 30)
            least = bounder.backward(A, c, np.repeat(np.arange(30), m), steps, low, high)[1].reshape(30, m)
            x = drawn(torch.from_numpy(low), torch.from_numpy(high))
            with torch.no_grad():
                y = torch.cat([copy.deepcopy(model).double()(x) for model in pair], 2).numpy()
            value = np.einsum("bpo,ro->brp", y, bounder.rows.weight) + bounder.rows.bias[:, None]
            assert (least <= value.min(2)).all()
        assert program.U == 2.0**-53
    for ours, theirs in (
        (apart(3, Fraction(1, 7)), twins.far(3, Fraction(1, 7))),
        (elsewhere(3, "argmin", Fraction(0)), twins.others(3, -1, Fraction(0))),
        (elsewhere(3, "argmax", Fraction(2)), twins.others(3, 1, Fraction(2))),
    ):
        mine = [{(row.coefficients, -row.bound, row.strict) for row in way} for way in ours]
        assert mine == [set(way) for way in theirs]
