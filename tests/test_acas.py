import hashlib
import math

import pytest
import torch

from nnrepair.domains import acas
from nnrepair.domains.acas import data
from nnrepair.errors import DataUnavailable, InvalidInput
from nnrepair.verify import vnnlib


@pytest.mark.parametrize("pair", [(0, 1), (6, 1), (1, 0), (1, 10)])
def test_networks_that_do_not_exist(pair):
    with pytest.raises(InvalidInput, match="expected a in 1..5 and b in 1..9"):
        acas.network(*pair)


def test_properties_that_do_not_exist():
    with pytest.raises(InvalidInput, match="expected 1..10"):
        acas.property_file(11)


def test_every_file_has_a_source_and_a_pinned_hash():
    hashes = data._hashes()
    assert len(hashes) == 45 + 10 + 1
    assert all(len(digest) == 64 for digest in hashes.values())


def test_offline_says_what_would_help(monkeypatch, tmp_path):
    monkeypatch.delenv("NNREPAIR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(DataUnavailable, match="NNREPAIR_DATA"):
        acas.network(1, 1)


@pytest.mark.data
def test_the_files_are_those_whose_hashes_are_pinned(data_dir):
    data_dir("acasxu/acasxu_instances.csv")
    for path, digest in data._hashes().items():
        assert hashlib.sha256(data._file(path).read_bytes()).hexdigest() == digest


@pytest.mark.data
def test_instances_are_those_of_the_competition(data_dir):
    data_dir("acasxu/acasxu_instances.csv")
    pairs = acas.instances()
    assert len(pairs) == len(set(pairs)) == 186
    assert pairs[0] == ((1, 1), 1)
    assert {number for _, number in pairs} == set(range(1, 11))


def test_normalised_and_physical_are_inverse():
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (acas.LEAST, acas.MOST))
    drawn = low + torch.rand(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * (high - low)
    assert torch.allclose(acas.physical(acas.normalised(*drawn.T)), drawn, rtol=1e-12, atol=1e-9)


def test_the_ends_are_those_of_the_domain():
    ends = torch.tensor(acas.DOMAIN, dtype=torch.float64).T
    assert torch.allclose(acas.normalised(*acas.LEAST), ends[0], atol=1e-7)
    assert torch.allclose(acas.normalised(*acas.MOST), ends[1], atol=1e-7)


def test_units_broadcast():
    x = acas.normalised(torch.zeros(3, 1), [0.0, 1.0], 0, 100, 0)
    assert x.shape == (3, 2, 5) and x.dtype == torch.float64


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((-1, 0, 0, 100, 0), "rho must be from 0 to 60760, got -1"),
        ((0, 3.2, 0, 100, 0), "theta must be from"),
        ((0, 0, float("nan"), 100, 0), "psi must be from"),
        ((0, 0, 0, [50, 100], 0), "v_own must be from 100 to 1200, got 50 to 100"),
        (([0, 0], [0, 0, 0], 0, 100, 0), "shapes that fit"),
        (("far", 0, 0, 100, 0), "must be numbers"),
    ],
)
def test_states_out_of_range(state, message):
    with pytest.raises(InvalidInput, match=message):
        acas.normalised(*state)


@pytest.mark.parametrize("x", [[0.0] * 4, 5.0, "state", []])
def test_what_is_no_state(x):
    with pytest.raises(InvalidInput, match="5"):
        acas.physical(x)


@pytest.mark.data
def test_units_are_those_of_the_property_files(data_dir):
    data_dir("acasxu/vnnlib/prop_3.vnnlib")
    low, high = vnnlib.load(acas.property_file(3)).cases[0].box.outer  # "Unscaled Input 0: (1500, 1800)", and so on
    assert acas.physical(low).tolist() == pytest.approx([1500, -0.06, 3.1, 980, 960], rel=1e-5)
    assert acas.physical(high).tolist() == pytest.approx([1800, 0.06, math.pi, 1200, 1200], rel=1e-5)
