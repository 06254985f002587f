from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from networks import mistakes, mlp, randn
from patches import bits, changed
from torch import nn

import nnrepair
from nnrepair import Patch, PatchError
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import MinimalNorm


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


# Models of every kind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [0x7FC00001, 0x7F800001, 0xFFC12345])
def test_every_bit_of_what_is_no_number_survives(tmp_path: Path, payload: int) -> None:
    base = mlp(3, 4, 2)
    repaired = copy.deepcopy(base)
    value = torch.tensor([payload], dtype=torch.int64).to(torch.int32).view(torch.float32)
    with torch.no_grad():
        repaired[2].bias[:1] = value
    patch = Patch.load(Patch.between(base, repaired).save(tmp_path / "fix"))
    assert bits(patch.apply(base))["2.bias"][:4] == payload.to_bytes(4, "little")
    assert bits(patch.revert(repaired)) == bits(base)


def tied() -> nn.Sequential:
    model = mlp(3, 3, 3)
    model[2].weight = model[0].weight
    return model


def test_a_tie_that_a_repair_broke_cannot_be_kept() -> None:
    repaired = copy.deepcopy(tied())
    repaired[2].weight = nn.Parameter(repaired[0].weight.detach() + 1)
    with pytest.raises(PatchError, match="share their memory"):
        Patch.between(tied(), repaired).apply(tied())


class Counted(nn.Module):
    """A layer whose state holds more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = nn.Linear(2, 2), 0

    def get_extra_state(self) -> dict[str, object]:
        return {"seen": self.seen, "means": [torch.full((2,), float(self.seen))], "object": object()}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_state_beside_tensors_stays_that_of_the_model_given(tmp_path: Path) -> None:
    base = Counted()
    repaired = copy.deepcopy(base)
    with torch.no_grad():
        repaired.inner.bias += 1
    repaired.seen = 7  # as if it had run in the meantime
    patch = Patch.load(Patch.between(base, repaired).save(tmp_path / "fix"))
    applied = patch.apply(base)
    assert set(patch.new) == {"inner.bias"} and applied.seen == 0
    assert torch.equal(applied.inner.bias, repaired.inner.bias)
    other = copy.deepcopy(base)
    other.seen = 1
    with pytest.raises(PatchError, match="was made for"):
        patch.apply(other)


def test_buffers_without_a_dense_form(tmp_path: Path) -> None:
    def network(weight: float) -> nn.Module:
        model = mlp(3, 2)
        model.register_buffer("adjacency", (weight * torch.eye(3)).to_sparse())
        model.register_buffer("wide", torch.ones(1).expand(5))
        model.register_buffer("mirrored", torch.tensor([1 + 2j]).conj())
        return model

    base = network(1.0)
    repaired = copy.deepcopy(base)
    with torch.no_grad():
        repaired[0].bias += 1
    patch = Patch.load(Patch.between(base, repaired).save(tmp_path / "fix"))
    assert set(patch.new) == {"0.bias"}
    assert fingerprint(patch.apply(base)) == fingerprint(repaired) == patch.repaired
    assert fingerprint(network(2.0)) != fingerprint(network(1.0))
    wide = copy.deepcopy(base)
    wide.wide = torch.arange(5.0)
    with pytest.raises(PatchError, match="wide cannot be written"):  # five numbers have no room there
        Patch.between(base, wide).apply(base)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantize.*are deprecated:UserWarning")
def test_quantised_layers_count(tmp_path: Path) -> None:
    def network(seed: int) -> nn.Module:
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            pytest.skip("this torch has no quantised layers")
        model = nn.Sequential(mlp(4, 4, seed=seed), nn.Conv1d(1, 1, 1))
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        base = network(0)
    repaired = copy.deepcopy(base)
    with torch.no_grad():
        repaired[1].bias += 1
    patch = Patch.load(Patch.between(base, repaired).save(tmp_path / "fix"))
    assert torch.equal(patch.apply(base)[1].bias, repaired[1].bias)
    other = network(1)
    other[1] = copy.deepcopy(base[1])
    assert fingerprint(other) != fingerprint(base)


def test_models_without_numbers_and_models_that_cannot_be_copied() -> None:
    base = mlp(3, 4, 2)
    patch = Patch.between(base, changed(base, "0.bias"))
    with pytest.raises(PatchError, match="meta device"):
        patch.apply(copy.deepcopy(base).to("meta"))
    with pytest.raises(PatchError, match="cannot be read"):
        patch.apply(nn.Sequential(nn.LazyLinear(3)))

    class Shared(nn.Sequential):
        def __deepcopy__(self, memo: object) -> nn.Module:
            return self

    same = Shared(*base)
    before = bits(same)
    with pytest.raises(PatchError, match="shares"):
        patch.apply(same)
    assert bits(same) == before

    class Unique(nn.Sequential):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError("there is only one of me")

    with pytest.raises(PatchError, match="only one of me"):
        patch.apply(Unique(*base))


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_a_patch_fits_the_same_network_in_and_out_of_a_wrapper(tmp_path: Path) -> None:
    base = mlp(3, 4, 2)
    repaired = changed(base, "0.weight")
    inner, outer = Patch.between(base, repaired), Patch.between(Wrapper(base), Wrapper(repaired))
    for patch in (inner, Patch.load(outer.save(tmp_path / "fix"))):
        assert bits(patch.apply(base)) == bits(repaired) == bits(patch.revert(repaired)) | bits(repaired)
        assert bits(patch.apply(Wrapper(base))) == bits(Wrapper(repaired))
        assert bits(patch.revert(Wrapper(repaired))) == bits(Wrapper(base))
    twice = Wrapper(Wrapper(base))
    assert bits(inner.apply(twice)) == bits(Wrapper(Wrapper(repaired)))
    assert bits(outer.apply(twice)) == bits(Wrapper(Wrapper(repaired)))
    for other in (Wrapper(changed(base, "2.bias")), nn.ModuleDict({"model": base, "more": nn.Linear(1, 1)})):
        with pytest.raises(PatchError, match="was made for"):
            inner.apply(other)
        with pytest.raises(PatchError, match="was made for"):
            outer.apply(other)


def test_models_of_two_kinds_have_no_patch() -> None:
    for other in (mlp(3, 4, 2).double(), mlp(3, 4, 2).to(torch.bfloat16)):
        with pytest.raises(PatchError, match="float32 of shape"):
            Patch.between(mlp(3, 4, 2), other)
