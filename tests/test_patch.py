from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from networks import mistakes, mlp, randn
from torch import nn

import nnrepair
from nnrepair import Patch, PatchError
from nnrepair.methods import MinimalNorm
from nnrepair.patch import fingerprint


def changed(model: nn.Module, *names: str) -> nn.Module:
    """Return a copy with other numbers in the named tensors."""
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for name in names:
        state[name].flatten()[0] += 1
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    return twin


def bits(model: nn.Module) -> dict[str, bytes]:
    raw = {n: t.contiguous().flatten().view(torch.uint8) for n, t in model.state_dict().items()}
    return {n: t.numpy().tobytes() for n, t in raw.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_save_load_apply_revert_is_identity(tmp_path: Path, dtype: torch.dtype) -> None:
    base = nn.Sequential(mlp(3, 4, 2), nn.BatchNorm1d(2)).to(dtype)
    repaired = changed(base, "0.0.weight", "0.2.bias")
    about = {"method": "by hand", "numbers": [1, 2.5], "nested": {"a": None}}
    patch = Patch.load(Patch.between(base, repaired, about).save(tmp_path / "fix.safetensors"))
    assert patch.about == about
    assert set(patch.new) == {"0.0.weight", "0.2.bias"}
    assert bits(patch.apply(base)) == bits(repaired)
    assert bits(patch.revert(repaired)) == bits(base)
    assert bits(patch.revert(patch.apply(base))) == bits(base)
    assert fingerprint(patch.apply(base)) == patch.repaired != patch.base == fingerprint(base)


def test_the_same_patch_is_the_same_bytes(tmp_path: Path) -> None:
    base = mlp(3, 4, 2)
    patch = Patch.between(base, changed(base, "0.weight", "2.bias"), {"é": "ü"})
    assert len({patch.save(tmp_path / f"{k}.safetensors").read_bytes() for k in range(8)}) == 1
    assert Patch.load(tmp_path / "0.safetensors").about == {"é": "ü"}


def test_only_what_changed_is_stored(tmp_path: Path) -> None:
    base = mlp(200, 200, 3)
    path = Patch.between(base, changed(base, "2.bias")).save(tmp_path / "small")
    assert path.stat().st_size < 2000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_repairs_of_half_precision_models(dtype: torch.dtype, tmp_path: Path) -> None:
    model = mlp(4, 8, 3).to(dtype)
    x = randn(3, 4, dtype=dtype)
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=MinimalNorm("2", margin=0.2))
    assert result.outcome.ok
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.patch is not None
    patch = Patch.load(result.patch.save(tmp_path / "half"))
    assert bits(patch.apply(model)) == bits(result.model)


def test_apply_leaves_its_model_and_keeps_modes_and_flags() -> None:
    base = mlp(3, 4, 2)
    base[0].weight.requires_grad_(False)
    base[1].eval()
    before = bits(base)
    applied = Patch.between(base, changed(base, "0.weight")).apply(base)
    assert bits(base) == before
    assert not applied[0].weight.requires_grad
    assert applied[2].weight.requires_grad
    assert [m.training for m in applied.modules()] == [m.training for m in base.modules()]


def test_a_wrong_base_is_refused() -> None:
    base = mlp(3, 4, 2)
    repaired = changed(base, "0.weight")
    patch = Patch.between(base, repaired)
    for other in (repaired, changed(base, "2.bias"), mlp(3, 5, 2), mlp(3, 4, 2).double()):
        with pytest.raises(
            PatchError, match=rf"was made for .*{patch.base[:12]}.*the given one has {fingerprint(other)[:12]}"
        ):
            patch.apply(other)
    with pytest.raises(PatchError, match="This patch produced a model with fingerprint"):
        patch.revert(base)


def test_other_architectures_have_no_patch() -> None:
    with pytest.raises(PatchError, match="do not have the same parameters"):
        Patch.between(mlp(3, 4, 2), mlp(3, 4, 4, 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b[:5],
        lambda b: b"",
        lambda b: b"not a patch, but a text that goes on for a while",
        lambda b: safetensors.torch.save({"a": torch.ones(2)}),
        lambda b: safetensors.torch.save({"a": torch.ones(2)}, {"format": "another"}),
        lambda b: safetensors.torch.save(
            {"new.a": torch.ones(2)}, {"format": "nnrepair-patch-1", "base": "", "repaired": "", "about": "{}"}
        ),
        lambda b: safetensors.torch.save({}, {"format": "nnrepair-patch-1"}),
        lambda b: safetensors.torch.save({}, {"format": "nnrepair-patch-1", "base": "", "repaired": "", "about": "{"}),
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, damage: object) -> None:
    base = mlp(3, 4, 2)
    path = Patch.between(base, changed(base, "0.weight")).save(tmp_path / "fix")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(PatchError, match="fix"):
        Patch.load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No patch at .*nothing"):
        Patch.load(tmp_path / "nothing")
    with pytest.raises(PatchError, match=tmp_path.name):
        Patch.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = mlp(3, 4, 2)
    path = Patch.between(base, changed(base, "0.weight")).save(tmp_path / "fix")
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Patch.between(base, changed(base, "2.weight")).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["fix"]


def test_the_sign_of_zero_survives() -> None:
    base = mlp(3, 4, 2)
    with torch.no_grad():
        base[2].bias.fill_(-0.0)
    repaired = changed(base, "0.weight")
    with torch.no_grad():
        repaired[2].bias.fill_(0.0)
    patch = Patch.between(base, repaired)
    assert bits(patch.apply(base)) == bits(repaired)
    assert bits(patch.revert(patch.apply(base))) == bits(base)


def test_nan_buffers_do_not_count_as_changed() -> None:
    base = mlp(3, 4, 2)
    base.register_buffer("seen", torch.tensor([torch.nan, 1.0]))
    assert set(Patch.between(base, changed(base, "0.weight")).new) == {"0.weight"}


def test_shared_weights(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = mlp(3, 3, 3)
        model[2].weight = model[0].weight
        return model

    base, repaired = tied(), tied()
    with torch.no_grad():
        repaired[0].weight[0, 0] += 1
    patch = Patch.load(Patch.between(base, repaired).save(tmp_path / "fix"))
    applied = patch.apply(base)
    assert bits(applied) == bits(repaired)
    assert applied[0].weight is applied[2].weight


def test_nothing_changes() -> None:
    base = mlp(3, 4, 2)
    patch = Patch.between(base, base)
    assert "nothing changes" in str(patch)
    assert bits(patch.apply(base)) == bits(base)


def test_as_text() -> None:
    base = mlp(3, 4, 2)
    text = str(Patch.between(base, changed(base, "0.weight"), {"method": "by hand", "size": {"l1": 2.5, "rows": [1]}}))
    assert f"patch for model {fingerprint(base)[:12]}..." in text
    assert "0.weight (4, 3): 1 of 12 numbers change, l1 1, l2 1, max 1" in text
    assert "method: by hand" in text
    assert "l1: 2.5" in text
    assert "bias" not in text


def test_a_repairs_patch_says_what_was_done() -> None:
    model = mlp(4, 8, 3)
    x = randn(3, 4)
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=MinimalNorm("2", "l1"))
    assert result.patch is not None
    assert "MinimalNorm(layer='2', norm='l1'" in str(result.patch)
    assert result.patch.about["success_rate"] == 1.0
    assert "torch" in result.patch.about["versions"]
    assert "2.weight" in str(result.patch)


def test_a_repair_of_a_model_with_negative_zeros_reverts(tmp_path: Path) -> None:
    model = mlp(4, 8, 3)
    with torch.no_grad():
        model[2].bias.fill_(-0.0)
    x = randn(1, 4)
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=MinimalNorm("2", "l1"))
    assert result.patch is not None
    applied = result.patch.apply(model)
    assert bits(applied) == bits(result.model)
    assert bits(result.patch.revert(applied)) == bits(model)
