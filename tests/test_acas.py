import hashlib

import pytest

from nnrepair.domains import acas
from nnrepair.errors import DataUnavailable, InvalidInput


@pytest.mark.parametrize("pair", [(0, 1), (6, 1), (1, 0), (1, 10)])
def test_networks_that_do_not_exist(pair):
    with pytest.raises(InvalidInput, match="expected a in 1..5 and b in 1..9"):
        acas.network(*pair)


def test_properties_that_do_not_exist():
    with pytest.raises(InvalidInput, match="expected 1..10"):
        acas.property_file(11)


def test_every_file_has_a_source_and_a_pinned_hash():
    hashes = acas._hashes()
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
    for path, digest in acas._hashes().items():
        assert hashlib.sha256(acas._file(path).read_bytes()).hexdigest() == digest


@pytest.mark.data
def test_instances_are_those_of_the_competition(data_dir):
    data_dir("acasxu/acasxu_instances.csv")
    pairs = acas.instances()
    assert len(pairs) == len(set(pairs)) == 186
    assert pairs[0] == ((1, 1), 1)
    assert {number for _, number in pairs} == set(range(1, 11))
