"""Patch files that are damaged, forged or hostile: refused, or exactly the recorded network."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from networks import mlp
from patches import bits, changed
from torch import nn

from nnrepair import Patch, PatchError
from nnrepair.fingerprint import fingerprint


def made(base: nn.Module, content: bytes, path: Path) -> dict[str, bytes] | None:
    """Return the network that a file's patch makes, None where it is refused."""
    path.write_bytes(content)
    try:
        patch = Patch.load(path)
        assert str(patch).isprintable() or "\n" in str(patch)
        return bits(patch.apply(base))
    except PatchError:
        return None


def example() -> tuple[nn.Module, nn.Module, Patch]:
    base = nn.Sequential(mlp(3, 4, 2), nn.BatchNorm1d(2))
    repaired = changed(base, "0.0.weight", "0.2.bias", "1.num_batches_tracked")
    return base, repaired, Patch.between(base, repaired, {"method": "by hand", "held": [True, False], "l1": 2.5})


def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    base, repaired, patch = example()
    content, draw = patch.save(tmp_path / "fix").read_bytes(), random.Random(0)
    right, refused = bits(repaired), 0
    for place in draw.sample(range(8 * len(content)), 500):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        found = made(base, bytes(flipped), tmp_path / "flipped")
        assert found in (None, right), place
        refused += found is None
    assert refused > 450


def test_what_is_cut_short_or_shifted_is_refused(tmp_path: Path) -> None:
    base, _, patch = example()
    content, draw = patch.save(tmp_path / "fix").read_bytes(), random.Random(1)
    for place in draw.sample(range(len(content)), 200):
        assert made(base, content[:place], tmp_path / "cut") is None
        assert made(base, content[:place] + content[place + 1 :], tmp_path / "cut") is None
        assert made(base, content[:place] + b" " + content[place:], tmp_path / "cut") is None
        block = bytes(min(64, len(content) - place))
        if content[place : place + len(block)] != block:
            assert made(base, content[:place] + block + content[place + len(block) :], tmp_path / "cut") is None
    assert made(base, content + bytes(8), tmp_path / "cut") is None


def test_patches_without_a_checksum_are_compared_with_their_fingerprints(tmp_path: Path) -> None:
    """As earlier versions wrote them, and as a stranger may."""
    base, repaired, patch = example()
    tensors = {f"new.{n}": t for n, t in patch.new.items()} | {f"old.{n}": t for n, t in patch.old.items()}
    about = {"format": "nnrepair-patch-1", "base": patch.base, "repaired": patch.repaired, "about": "{}"}
    assert made(base, safetensors.torch.save(tensors, about), tmp_path / "fix") == bits(repaired)
    tensors["new.0.0.weight"] = tensors["new.0.0.weight"].nextafter(torch.tensor(9.0))
    assert made(base, safetensors.torch.save(tensors, about), tmp_path / "fix") is None


FORGED = {
    "other values": lambda t: {"2.bias": t["2.bias"] + 1},
    "one bit": lambda t: {"2.bias": t["2.bias"].view(torch.int32).bitwise_xor(1).view(torch.float32)},
    "minus zero": lambda t: {"2.bias": torch.tensor([-0.0, 0.0])},
    "not a number": lambda t: {"2.bias": torch.full((2,), torch.nan)},
    "one number for all": lambda t: {"2.bias": torch.ones(1)},
    "a single number": lambda t: {"2.bias": torch.tensor(1.0)},
    "transposed": lambda t: {"0.weight": t["0.weight"].T},
    "flat": lambda t: {"0.weight": t["0.weight"].flatten()},
    "no numbers": lambda t: {"2.bias": torch.zeros(0)},
    "integers": lambda t: {"2.bias": torch.tensor([1, 0])},
    "more precise": lambda t: {"2.bias": t["2.bias"].double()},
    "complex": lambda t: {"2.bias": t["2.bias"].to(torch.complex64)},
    "truth values": lambda t: {"2.bias": torch.tensor([True, False])},
    "sparse": lambda t: {"2.bias": t["2.bias"].to_sparse()},
    "without numbers": lambda t: {"2.bias": t["2.bias"].to("meta")},
    "an unknown name": lambda t: {"3.bias": t["2.bias"]},
    "no name": lambda t: {"": t["2.bias"]},
    "a module's name": lambda t: {"2": t["2.bias"]},
    "an attribute": lambda t: {"2.forward": t["2.bias"]},
    "a longer name": lambda t: {"2.bias.data": t["2.bias"]},
    "nothing": lambda t: {},
    "one too many": lambda t: {"2.bias": t["2.bias"], "0.bias": torch.ones(4)},
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_patch_is_refused(tmp_path: Path, what: str) -> None:
    """Even with a checksum of its own: it does not make the network that it names."""
    base = mlp(3, 4, 2)
    with torch.no_grad():
        base[2].bias.zero_()
    true = Patch.between(base, changed(base, "2.bias"))
    forged = FORGED[what]({n: t.detach().clone() for n, t in changed(base, "2.bias").state_dict().items()})
    before = bits(base)
    with pytest.raises(PatchError):
        Patch(forged, {n: t.clone() for n, t in forged.items()}, true.base, true.repaired).apply(base)
    with pytest.raises(PatchError):
        patch = Patch(forged, {n: t.clone() for n, t in forged.items()}, true.repaired, true.base)
        patch.revert(changed(base, "2.bias"))
    assert bits(base) == before
    if what not in ("sparse", "without numbers"):  # which no file holds
        patch = Patch(forged, {n: t.clone() for n, t in forged.items()}, true.base, true.repaired)
        with pytest.raises(PatchError):
            Patch.load(patch.save(tmp_path / "forged")).apply(base)


def test_old_values_of_another_kind_than_the_new_ones_are_refused() -> None:
    base = mlp(3, 4, 2)
    true = Patch.between(base, changed(base, "2.bias"))
    for old in (torch.ones(1), torch.ones(2).double(), torch.tensor([1, 2])):
        with pytest.raises(PatchError, match=r"2\.bias.*float32 of shape \(2,\)"):
            Patch(true.new, {"2.bias": old}, true.base, true.repaired)
    with pytest.raises(PatchError, match="no tensors"):
        Patch({"2.bias": 5}, true.old, true.base, true.repaired)  # type: ignore[dict-item]
    with pytest.raises(PatchError, match="lacks old or new"):
        Patch(true.new, {}, true.base, true.repaired)
    for print_ in ("", "0" * 63, "G" * 64, "A" * 64, 5, None, "0" * 64 + "\n"):
        with pytest.raises(PatchError, match="64 hexadecimal"):
            Patch(true.new, true.old, print_, true.repaired)  # type: ignore[arg-type]
        with pytest.raises(PatchError, match="64 hexadecimal"):
            Patch(true.new, true.old, true.base, print_)  # type: ignore[arg-type]


def raw(header: dict[str, object] | bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**other: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | other


def told(**other: object) -> dict[str, object]:
    """Return the header of a patch that changes nothing."""
    return {
        "__metadata__": {"format": "nnrepair-patch-1", "base": "0" * 64, "repaired": "0" * 64, "about": "{}"} | other
    }


def about(text: str) -> bytes:
    return raw(told(about=text))


HOSTILE = {
    "a header of 10 GB": (10 << 30).to_bytes(8, "little") + b"{}",
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header deep in itself": raw(b'{"__metadata__":' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}"),
    "lists deep in themselves": raw(b"[" * 10**5 + b"]" * 10**5),
    "metadata that are no text": raw(told(about=5)),
    "metadata that are a list": raw({"__metadata__": ["format", "nnrepair-patch-1"]}),
    "no base": raw({"__metadata__": {"format": "nnrepair-patch-1", "repaired": "0" * 64, "about": "{}"}}),
    "no about": raw({"__metadata__": {"format": "nnrepair-patch-1", "base": "0" * 64, "repaired": "0" * 64}}),
    "a fingerprint that is none": raw(told(base="\x1b[2J")),
    "a checksum that is none": raw(told(sha256="\x1b[2J")),
    "about: no JSON": about("\x1b[2J"),
    "about: a list": about("[]"),
    "about: a number": about("5"),
    "about: nothing": about(""),
    "about: null": about("null"),
    "about: NaN": about('{"l1": NaN}'),
    "about: infinity": about('{"l1": -Infinity}'),
    "about: deep in itself": about('{"a":' * 10**5 + "1" + "}" * 10**5),
    "about: lists deep in themselves": about("[" * 10**5 + "]" * 10**5),
    "about: a number too long": about('{"a": ' + "9" * 10**5 + "}"),
    "twice new": raw(b'{"new.a":' + json.dumps(entry()).encode() + b',"new.a":' + json.dumps(entry()).encode() + b"}"),
    "tensors that are neither": raw(told() | {"a": entry()}, bytes(4)),
    "a gap": raw(told() | {"new.a": entry(data_offsets=[4, 8])}, bytes(8)),
    "one over the other": raw(told() | {"new.a": entry(), "old.a": entry()}, bytes(4)),
    "bytes that are nobody's": raw(told() | {"new.a": entry()}, bytes(8)),
    "offsets that are none": raw(told() | {"new.a": entry(data_offsets=[4, 0])}, bytes(4)),
    "a shape too large": raw(told() | {"new.a": entry(shape=[2**40, 2**40])}, bytes(4)),
    "a shape below zero": raw(told() | {"new.a": entry(shape=[-1])}, bytes(4)),
    "an unknown dtype": raw(told() | {"new.a": entry(dtype="F99")}, bytes(4)),
    "two shapes": raw(
        told() | {"new.a": entry(), "old.a": entry(shape=[1, 1], data_offsets=[4, 8])}, b"\0\0\x80\x3f" + bytes(4)
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_plain_text(tmp_path: Path, what: str) -> None:
    path = tmp_path / "fix"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(PatchError, match="fix") as refused:
        Patch.load(path)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a circle", "a name too long"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fix"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a circle":
        path.symlink_to(path)
    else:
        path = tmp_path / ("x" * 300)
    with pytest.raises((PatchError, FileNotFoundError)):
        Patch.load(path)


def test_text_from_strangers_is_only_text(tmp_path: Path) -> None:
    """Names and notes of a file may hold commands to a terminal, characters that it cannot show, or too much."""
    evil = "\x1b[2J\x07\r\u202e\ud800\x9b31m"
    tensors = {f"{part}.w{evil[:-5]}": torch.zeros(2, 0) for part in ("new", "old")}
    about = {evil: evil, "deep": {evil: evil, "list": [evil]}, "note": ["x" * 10**5], "number": 1e999}
    metadata = {"format": "nnrepair-patch-1", "base": "0" * 64, "repaired": "0" * 64}
    metadata["about"] = json.dumps({k: v for k, v in about.items() if k != "number"})
    tensors = {name.replace("\ud800", ""): value for name, value in tensors.items()}
    path = tmp_path / "fix"
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    patch = Patch.load(path)
    lines = str(patch).split("\n")
    assert all(line.isprintable() and len(line) < 3000 for line in lines)
    assert "no numbers" in lines[1] and "\\x1b[2J" in lines[1]
    str(patch).encode("ascii")
    with pytest.raises(PatchError) as refused:
        Patch({"w\x1b": torch.ones(1)}, {"w\x1b": torch.ones(1)}, fingerprint(mlp(2, 2)), "0" * 64).apply(mlp(2, 2))
    assert str(refused.value).isprintable()


def test_what_a_patch_tells_may_be_anything(tmp_path: Path) -> None:
    base = mlp(3, 4, 2)
    about = {"nan": float("nan"), "worst": float("inf"), "path": tmp_path, 5: (1, None), "long": 10**5000}
    path = tmp_path / "fix"
    with pytest.raises(PatchError, match="cannot be stored"):
        Patch.between(base, changed(base, "0.bias"), about).save(path)
    assert "long: (too deep or too long to be shown)" in str(Patch.between(base, base, about))
    del about["long"]
    patch = Patch.load(Patch.between(base, changed(base, "0.bias"), about).save(path))
    assert patch.about == {"nan": None, "worst": None, "path": str(tmp_path), "5": [1, None]}
    deep: list[object] = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(PatchError, match="cannot be stored"):
        Patch.between(base, base, {"deep": deep}).save(path)
    assert "too deep" in str(Patch.between(base, base, {"deep": deep}))
    while deep:  # Python itself cannot free such a thing at once
        deep = deep[0]  # type: ignore[assignment]


def test_numbers_count_as_changed_when_their_bits_do() -> None:
    base = mlp(3, 4, 2)
    with torch.no_grad():
        base[2].bias.copy_(torch.tensor([0.0, torch.nan]))
    repaired = copy.deepcopy(base)
    with torch.no_grad():
        repaired[2].bias.copy_(torch.tensor([-0.0, torch.nan]))
    assert "2.bias (2,): 1 of 2 numbers change, l1 nan" in str(Patch.between(base, repaired))
