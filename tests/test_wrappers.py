"""Networks that carry edits beside their weights: one table, all wrappers. A new wrapper is a new row."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, LocalitySet, Patch, PatchError
from nnrepair.fingerprint import digest_of_state, fingerprint
from nnrepair.methods import (
    EGNN,
    GRACE,
    REASSURE,
    SERAC,
    Capabilities,
    CNPConditioning,
    EditableTraining,
    Editor,
    Method,
    MinimalNorm,
    Proposal,
    RandomLabels,
    TPatcher,
    Trainable,
)
from nnrepair.results.changes import weight_change
from nnrepair.spec.state import write_tensors
from nnrepair.wrappers import (
    Codebook,
    Conditioned,
    Decoupled,
    EditingBlock,
    Inserted,
    OwnMLP,
    Parallel,
    Regional,
    Scoped,
    Stitched,
    Wrapper,
)
from nnrepair.wrappers.base import FORMAT
from nnrepair.wrappers.conditioned import Reader


def stitched(base: nn.Module, seed: int) -> Wrapper:
    made = Stitched(copy.deepcopy(base), OwnMLP(4, 3, hidden=5, depth=3, scale=0.5, seed=seed).to(dtype_of(base)))
    with torch.no_grad():
        for k, parameter in enumerate(made.mlp.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=seed + k).to(parameter)
    return made.eval()


def decoupled(base: nn.Module, seed: int) -> Wrapper:
    like = dtype_of(base)
    return Decoupled(base, {"0.weight": randn(8, 4, seed=seed).to(like), "2.bias": torch.ones(3, dtype=like)}).eval()


def codebook(base: nn.Module, seed: int) -> Wrapper:
    k, like = 2 + seed, dtype_of(base)  # another number of entries each time
    keys, values = randn(k, 4, seed=seed).to(like), randn(k, 8, seed=seed + 1).to(like)
    return Codebook(copy.deepcopy(base), "0", keys, values, torch.full((k,), 0.5, dtype=like)).eval()


def conditioned(base: nn.Module, seed: int) -> Wrapper:
    k, like = 2 + seed, dtype_of(base)
    reader = Reader(12, 6, 4).to(like)
    with torch.no_grad():
        for n, parameter in enumerate(reader.parameters()):
            parameter.copy_(0.5 * randn(parameter.numel(), seed=n).reshape(parameter.shape))
    keys, values = randn(k, 4, seed=seed).to(like), randn(k, 8, seed=seed + 1).to(like)
    return Conditioned(copy.deepcopy(base), ["0"], values, keys, reader).eval()


def inserted(base: nn.Module, seed: int) -> Wrapper:
    block = EditingBlock(8, 5 + seed, torch.Generator().manual_seed(seed)).to(dtype_of(base))
    with torch.no_grad():
        block.outer.weight.copy_(0.1 * randn(8, 5 + seed, seed=seed))
    return Inserted(copy.deepcopy(base), "2", block).eval()


def parallel(base: nn.Module, seed: int) -> Wrapper:
    k, like = 2 + seed, dtype_of(base)
    keys, biases, values = randn(k, 4, seed=seed), randn(k, seed=seed + 1), randn(k, 8, seed=seed + 2)
    return Parallel(copy.deepcopy(base), "0", keys.to(like), biases.to(like), values.to(like)).eval()


def scoped(base: nn.Module, seed: int) -> Wrapper:
    k, like = 2 + seed, dtype_of(base)
    parts = randn(5, 4, seed=seed), torch.tensor(0.5), randn(k, 5, seed=seed + 1), randn(k, 3, seed=seed + 2)
    return Scoped(copy.deepcopy(base), "0", *(part.to(like) for part in parts)).eval()


def regional(base: nn.Module, seed: int) -> Wrapper:
    k, like = 2 + seed, dtype_of(base)
    return Regional(copy.deepcopy(base), randn(k, 8, seed=seed).to(like), randn(k, 3, seed=seed + 1).to(like)).eval()


def dtype_of(base: nn.Module) -> torch.dtype:
    return next(base.parameters()).dtype


MAKE: dict[str, Callable[[nn.Module, int], Wrapper]] = {
    "Stitched": stitched,
    "Decoupled": decoupled,
    "Codebook": codebook,
    "Inserted": inserted,
    "Conditioned": conditioned,
    "Parallel": parallel,
    "Scoped": scoped,
    "Regional": regional,
}


def prepared(method: Trainable, steps: int = 3) -> Editor:
    """Return an editor for the network of `posed` below."""
    model, x = mlp(4, 8, 3), randn(30, 4, seed=8)
    with torch.no_grad():
        return method.prepare(model, RandomLabels(x, model(x).argmax(1), edits=1, locality=10), steps=steps)


METHODS: dict[str, Callable[[], Method]] = {
    "Stitched": lambda: EGNN(lr=0.01, kl=0, rehearsal=0),
    "Decoupled": lambda: MinimalNorm("0", architecture="decoupled"),
    "Codebook": GRACE,
    "Inserted": lambda: prepared(EditableTraining("2", residual=6, start=0.1)),
    "Conditioned": lambda: prepared(CNPConditioning(layers="0"), steps=300),
    "Parallel": TPatcher,
    "Scoped": lambda: prepared(SERAC("0")),
    "Regional": REASSURE,
}
every = pytest.mark.parametrize("kind", MAKE)


def bits(model: nn.Module) -> str:
    """Return what tells networks apart, buffers outside the state included."""
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return digest_of_state(dict(held))


def test_every_wrapper_has_a_row() -> None:
    """Those of a domain have tests there."""
    modules = {name: kind.__module__ for name, kind in Wrapper.kinds.items()}
    package = {
        name for name, at in modules.items() if at.startswith("nnrepair.") and not at.startswith("nnrepair.domains.")
    }
    assert package == set(MAKE) == set(METHODS)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_save_and_load_is_identity(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, x = mlp(4, 8, 3).to(dtype), randn(20, 4).to(dtype)
    made = MAKE[kind](base, 1)
    before = bits(base)
    again = Wrapper.load(made.save(tmp_path / "beside.safetensors"), base)
    assert type(again) is type(made) and bits(again) == bits(made) and bits(base) == before
    assert again.settings == made.settings and not again.training and not again.base.training
    assert digest_of_state(again.change) == digest_of_state(made.change)
    if dtype != torch.bfloat16:
        assert torch.equal(again(x), made(x))
    assert not {p.data_ptr() for p in again.parameters()} & {p.data_ptr() for p in base.parameters()}


@every
def test_the_base_stays_in_eval_mode_and_what_is_added_has_a_size(kind: str) -> None:
    made = MAKE[kind](mlp(4, 8, 3), 1).train()
    assert made.training and not any(module.training for module in made.base.modules())
    added = made.added
    assert added.numbers == sum(t.numel() for t in added.tensors.values()) > 0 and added.bytes == 4 * added.numbers
    assert not any(name.startswith("base.") for name in added.tensors)
    assert str(added) == f"{kind}: {added.numbers} numbers, {added.bytes} bytes"
    with torch.no_grad():
        next(iter(added.tensors.values())).add_(1)  # of its own
    assert made.added.same(MAKE[kind](mlp(4, 8, 3), 1).added) and not made.added.same(added)


@every
def test_another_network_and_unknown_classes_are_refused(kind: str, tmp_path: Path) -> None:
    base = mlp(4, 8, 3)
    made = MAKE[kind](base, 1)
    path = made.save(tmp_path / "beside.safetensors")
    with pytest.raises(PatchError, match="belongs to a network with fingerprint"):
        Wrapper.load(path, mlp(4, 8, 3, seed=9))
    kinds = dict(Wrapper.kinds)
    try:
        del Wrapper.kinds[kind]
        with pytest.raises(PatchError, match=f"{kind}' of a wrapper is not known here.* Import the module"):
            Wrapper.load(path, base)
    finally:
        Wrapper.kinds.clear()
        Wrapper.kinds.update(kinds)
    with pytest.raises(FileNotFoundError, match="No wrapper at"):
        Wrapper.load(tmp_path / "nothing", base)
    with pytest.raises(PatchError, match="is a folder"):
        Wrapper.load(tmp_path, base)


@every
@pytest.mark.parametrize("what", ["wrapper", "patch"])
def test_damaged_files_are_refused_or_harmless(kind: str, what: str, tmp_path: Path) -> None:
    base = mlp(4, 8, 3)
    made = MAKE[kind](base, 1)
    path = tmp_path / "file"
    (made if what == "wrapper" else Patch.between(base, made, {"method": "by hand"})).save(path)
    content, draw, right = path.read_bytes(), random.Random(0), bits(made)
    for place in draw.sample(range(8 * len(content)), 100):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            found = Wrapper.load(path, base) if what == "wrapper" else Patch.load(path).apply(base)
        except PatchError:
            continue
        assert bits(found) == right, place
    for place in draw.sample(range(len(content)), 20):
        path.write_bytes(content[:place])
        with pytest.raises(PatchError):
            Wrapper.load(path, base) if what == "wrapper" else Patch.load(path)


def resized(t: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return t | {name: torch.zeros(1_000_000_000_000, 0)}


#: What a stranger may write, with the right checksum.
FORGED: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], tuple[Any, dict[str, Tensor]]]] = {
    "no tensors": lambda s, t: (s, {}),
    "one tensor less": lambda s, t: (s, dict(list(t.items())[1:])),
    "one more": lambda s, t: (s, t | {"more": torch.zeros(1)}),
    "the base's weights": lambda s, t: (s, t | {"base.0.weight": torch.zeros(8, 4)}),
    "another dtype": lambda s, t: (s, {name: tensor.double() for name, tensor in t.items()}),
    "huge and empty": lambda s, t: (s, resized(t, next(iter(t)))),
    "all huge and empty": lambda s, t: (s, {name: torch.zeros(1_000_000_000_000, 0) for name in t}),
    "flat": lambda s, t: (s, {name: tensor.flatten() for name, tensor in t.items()}),
    "integers": lambda s, t: (s, {name: torch.ones_like(tensor, dtype=torch.int64) for name, tensor in t.items()}),
    "no settings": lambda s, t: ({"layer": "", "names": [], "channels": 1}, t),
    "a list of settings": lambda s, t: ([], t),
    "names of nothing": lambda s, t: ({"layer": "forward", "names": ["training"], "channels": {}}, t),
    "numbers for names": lambda s, t: ({"layer": 3, "names": [3, None], "channels": "yes"}, t),
    "more settings": lambda s, t: (s | {"more": 1}, t),
}


@every
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_forged_files_are_refused_or_exact(kind: str, forged: Any, tmp_path: Path) -> None:
    base = mlp(4, 8, 3)
    made = MAKE[kind](base, 1)
    settings, tensors = forged(made.settings, dict(made.tensors))
    texts = {"kind": kind, "base": fingerprint(base), "whole": fingerprint(made), "settings": json.dumps(settings)}
    path = write_tensors(tmp_path / "forged", FORMAT, {n: t.contiguous() for n, t in tensors.items()}, texts, "wrapper")
    with pytest.raises(PatchError):
        Wrapper.load(path, base)


@pytest.mark.parametrize("kind", ["Module", "Wrapper", "os.system", "\x1b[2J", ""])
def test_strange_classes_are_refused(kind: str, tmp_path: Path) -> None:
    base = mlp(4, 8, 3)
    texts = {"kind": kind, "base": fingerprint(base), "whole": fingerprint(base), "settings": "{}"}
    path = write_tensors(tmp_path / "forged", FORMAT, {"a": torch.ones(1)}, texts, "wrapper")
    with pytest.raises(PatchError, match="not known here") as caught:
        Wrapper.load(path, base)
    assert str(caught.value).isprintable()


# Patches -------------------------------------------------------------------------------------------------------------


@every
def test_a_patch_puts_a_wrapper_on_and_takes_it_off(kind: str, tmp_path: Path) -> None:
    base = mlp(4, 8, 3)
    made = MAKE[kind](base, 1)
    saved = Patch.between(base, made, {"method": "by hand"}).save(tmp_path / "fix.safetensors")
    patch = Patch.load(saved)
    assert patch.about == {"method": "by hand"} and not patch.new
    applied = patch.apply(base)
    assert type(applied) is type(made) and bits(applied) == bits(made)
    back = patch.revert(applied)
    assert type(back) is type(base) and bits(back) == bits(base)
    assert all(p.requires_grad for p in back.parameters())
    assert f"puts on {made.added}" in str(patch) and "method: by hand" in str(patch)
    assert patch.save(tmp_path / "again").read_bytes() == saved.read_bytes()
    for other in (mlp(4, 8, 3, seed=4), made, nn.Sequential(base)):
        with pytest.raises(PatchError, match="was made for a model with fingerprint"):
            patch.apply(other)
    with pytest.raises(PatchError, match="produced a model with fingerprint"):
        patch.revert(base)


@every
@pytest.mark.parametrize("other", MAKE)
def test_a_patch_leads_from_one_wrapper_to_another(kind: str, other: str, tmp_path: Path) -> None:
    base = mlp(4, 8, 3)
    first, last = MAKE[kind](base, 1), MAKE[other](base, 2)
    with torch.no_grad():
        last.base[2].bias.add_(1)  # and what is inside may change too
    patch = Patch.load(Patch.between(first, last).save(tmp_path / "fix"))
    assert fingerprint(patch.apply(first)) == fingerprint(last)
    assert fingerprint(patch.revert(last)) == fingerprint(first)
    outer = Stitched(MAKE[kind](base, 1), OwnMLP(4, 3)).eval()
    nested = Patch.load(Patch.between(base, outer).save(tmp_path / "nested"))
    assert [layer.kind for layer in nested.added] == [kind, "Stitched"]
    assert fingerprint(nested.apply(base)) == fingerprint(outer)
    assert bits(nested.revert(outer)) == bits(base)


def test_other_settings_are_another_network() -> None:
    base = mlp(4, 4, 4, 4)
    change = {"0.weight": torch.ones(4, 4)}
    first, other = Decoupled(base, change), Decoupled(base, {"2.weight": torch.ones(4, 4)})
    assert fingerprint(first) == fingerprint(other)  # a state holds tensors alone
    assert "settings" not in str(weight_change(first, first).differences)
    assert not weight_change(first, other).is_patch
    patch = Patch.between(first, other)
    assert patch.apply(first).settings["names"] == ["2.weight"]
    with pytest.raises(PatchError, match="was made for"):
        patch.apply(other)


# Through fix ---------------------------------------------------------------------------------------------------------


def posed() -> tuple[nn.Module, Edits, LocalitySet]:
    model, x = mlp(4, 8, 3), randn(3, 4, seed=5)
    with torch.no_grad():
        return model, Edits(x, model(x).argsort(1)[:, 1]), LocalitySet(randn(30, 4, seed=6))


@every
def test_a_repair_has_a_patch_and_a_size(kind: str, tmp_path: Path) -> None:
    model, edits, kept = posed()
    result = nnrepair.fix(model, edits, kept, method=METHODS[kind]())
    assert result.patch is not None and result.outcome.ok
    change = result.report.weight_change
    carried = torch.cat([t.double().flatten() for t in result.model.change.values()])
    assert change.l2 == pytest.approx(float(carried.norm())) and change.nonzeros == int((carried != 0).sum()) > 0
    assert change.carried == str(result.model.added) and change.carried in str(result)
    patch = Patch.load(result.patch.save(tmp_path / "fix"))
    assert bits(patch.apply(model)) == bits(result.model) and bits(patch.revert(result.model)) == bits(model)


@pytest.mark.parametrize("kind", ["Stitched", "Codebook", "Inserted", "Conditioned", "Parallel", "Scoped"])
@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_a_sequence_goes_on_where_it_was(kind: str, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, edits, kept = posed()
    file, method = tmp_path / "run.safetensors", METHODS[kind]()
    monkeypatch.setattr(nnrepair.sequence, "SAVE_EVERY", 0.0)
    whole = nnrepair.fix(model, edits, kept, method=method, mode=mode)
    calls, real = [0], type(method).repair

    def stops(self: Any, problem: Any) -> Proposal:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(self, problem)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(method), "repair", stops)
        nnrepair.fix(model, edits, kept, method=method, mode=mode, resume=file)
    again = nnrepair.fix(model, edits, kept, method=method, mode=mode, resume=file)
    steps = [[step.as_dict() | {"seconds": 0} for step in history.steps] for history in (whole, again)]
    assert steps[0] == steps[1]
    if mode == "successive":
        assert bits(again.model) == bits(whole.model) and again.weight_change == whole.weight_change
        assert again.patch is not None and bits(again.patch.apply(model)) == bits(again.model)


@dataclass(frozen=True)
class Puts:
    """A method that returns whatever is made of the network."""

    make: Callable[[nn.Module], nn.Module]
    capabilities = Capabilities("test", False, "wrapped", True, True, True)

    def repair(self, problem: Any) -> Proposal:
        return Proposal(self.make(copy.deepcopy(problem.model)))


def changed_inside(model: nn.Module) -> nn.Module:
    made = MAKE["Codebook"](model, 1)
    with torch.no_grad():
        made.base[2].bias.add_(1)
    return made


def test_a_wrapper_of_a_changed_network_has_no_one_size() -> None:
    model, edits, _ = posed()
    result = nnrepair.fix(model, edits, method=Puts(changed_inside), throw=False)
    change = result.report.weight_change
    assert change.l2 is None and result.patch is None and change.parameters.nonzeros == 3
    assert "not one number" in str(result) and "there is no patch" in str(result)
    with pytest.raises(nnrepair.PatchError, match=r"fix\.safetensors was not written: this repair has no patch"):
        result.save_patch("fix.safetensors")


def test_a_grown_codebook_is_measured_whole() -> None:
    model, edits, _ = posed()
    first = nnrepair.fix(model, edits[:1], method=GRACE())
    last = nnrepair.fix(first.model, edits, method=GRACE())
    assert len(last.model) == 3 and last.patch is not None
    assert last.report.weight_change.l2 == pytest.approx(
        float(torch.cat([t.double().flatten() for t in last.model.change.values()]).norm())
    )
    assert bits(last.patch.apply(first.model)) == bits(last.model)
    assert bits(last.patch.revert(last.model)) == bits(first.model)


def test_a_method_says_what_it_returns() -> None:
    with pytest.raises(nnrepair.InvalidInput, match="returns must be one of same, decoupled, wrapped, got True"):
        Capabilities("test", False, True, True, True, True)  # type: ignore[arg-type]
    assert [METHODS[kind]().capabilities.returns for kind in MAKE] == [
        "wrapped",
        "decoupled",
        *["wrapped"] * (len(MAKE) - 2),
    ]


def test_wrappers_around_each_other_are_measured_together() -> None:
    model = mlp(4, 8, 3)
    inner = MAKE["Codebook"](model, 1)
    outer = Stitched(copy.deepcopy(inner), OwnMLP(4, 3)).eval()
    with torch.no_grad():
        outer.mlp.layers[1].bias.add_(1)
    change = weight_change(model, outer)
    carried = torch.cat([t.double().flatten() for wrapper in (inner, outer) for t in wrapper.change.values()])
    assert change.l2 == pytest.approx(float(carried.norm())) and "codebook" in change.of and "MLP" in change.of
    assert change.carried.startswith(f"2 wrappers: {inner.added.numbers + outer.added.numbers} numbers")
    assert weight_change(inner, outer).carried.startswith("Stitched: ")
