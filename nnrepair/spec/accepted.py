"""Check that a model runs on any number of points and that no point's output depends on the others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel, first_line
from nnrepair.rounding import first
from nnrepair.spec.inputs import AnyInputs, described, independent, some_of, words
from nnrepair.spec.noise import noise
from nnrepair.spec.running import call, outputs

#: By how much a point's outputs may differ from those among other points, relative to the largest output.
DEPENDENCE = 1e-3
#: Points on which the model is tried first.
FEW = 4
#: Inputs other than tensors are copied for their first pass where they hold no more numbers than this.
COPIED = 100_000_000
WRITES = (
    "The model writes into its inputs, so running it changes your data. Some operation works in place (such as "
    "nn.ReLU(inplace=True) as the first layer): let it make a new tensor."
)
#: By how much two passes may differ on a GPU, relative to the largest output.
ROUNDINGS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: Items of a data set that are read twice.
READ_TWICE = 16
ANY_SIZE = (
    "Methods run it on batches of any size: let it accept them, or give inputs as an nnrepair.Inputs object whose "
    "call() fills a batch up."
)


@torch.no_grad()
def accepts(model: nn.Module, inputs: AnyInputs) -> bool:
    """Whether the model runs on all points at once."""
    try:
        call(model, inputs.clone() if isinstance(inputs, Tensor) else inputs)
    except UnsupportedModel:
        return False
    return True


@torch.no_grad()
def some(model: nn.Module, points: AnyInputs) -> Tensor:
    """Return the outputs of some of the points that the model has run on before."""
    try:
        return call(model, points)
    except UnsupportedModel as error:
        cause, count = error.__cause__ or error, "one alone" if len(points) == 1 else f"{len(points)} of them"
        raise UnsupportedModel(
            f"The model accepts several points at once, but not {count} ({first_line(cause)}).{_batch_norms(model)} "
            f"{ANY_SIZE}"
        ) from error.__cause__


def refuse_dependence(model: nn.Module, inputs: AnyInputs, y: Tensor, others: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuse a model that returns other outputs for some of its points than for all of them.

    Args:
        model: in eval mode.
        inputs: all points.
        y: (n, ...) their outputs.
        others: indices of some points, and what the model returned for these alone.
    """
    scale = float(y.abs().max()) or 1.0
    tolerance = scale * max(DEPENDENCE, 4 * torch.finfo(y.dtype).eps)
    for some, found in others:
        if found.shape != y[some].shape:
            raise UnsupportedModel(
                f"The model returns outputs of shape {tuple(y.shape)} for {len(y)} points, but {tuple(found.shape)} "
                f"for {len(some)}. The first axis must always be the points; where the model squeezes its outputs, "
                "name the axis, as in squeeze(1)."
            )
        if not torch.allclose(found, y[some], rtol=0, atol=tolerance):
            far = (found - y[some]).abs()
            if bool((far <= noise(model, partial(call, inputs=inputs[some]))).all()):
                raise UnsupportedModel(
                    f"The model's outputs are lost in rounding: those of one point differ by {float(far.max()):.2g} "
                    "between batches, and by as much where weights move in their last digits. Nothing could be "
                    "confirmed of it; repair it in float64 (model.double()), or without digits that cancel."
                )
            raise UnsupportedModel(
                f"A point's output depends on the other points of its batch.{_batch_norms(model)} Give inputs as an "
                "nnrepair.Inputs object with independent=False and a call() that runs the whole batch."
            )


def _batch_norms(model: nn.Module) -> str:
    """Name the layers that average over the batch in eval mode too."""
    kind = nn.modules.batchnorm._BatchNorm
    found = [n for n, m in model.named_modules() if isinstance(m, kind) and m.running_mean is None]
    return f" Batch normalisation without running statistics ({', '.join(found[:5])}) does that." if found else ""


def first_look(model: nn.Module, inputs: AnyInputs, what: str, known: bool = False) -> Tensor:
    """Return the outputs of all points, after checks that need a look at a few of them.

    Args:
        model: in eval mode.
        inputs: the points.
        what: how messages call them.
        known: whether the model has run on points like these before: it is then run on these once, and not tried out.
    """
    y = outputs(model, inputs) if known else _first_run(model, inputs, what)
    if known:
        _refuse_outputs(y, len(inputs), what)
        return y
    _refuse_random(inputs, what)
    _refuse_outputs(y, len(inputs), what)
    few = torch.arange(len(inputs)).flip(0)[: max(1, min(FEW, len(inputs) // 2))]  # fewer points, in another order
    again, twice = some(model, inputs[few]), some(model, inputs[few])
    # Sums over edges on a GPU add up in another order every time: no randomness, and no more than rounding.
    if not (torch.equal(again, twice) or (again.is_cuda and differ_by_rounding(again, twice))):
        raise UnsupportedModel(
            "Two forward passes in eval mode differ: the model is random (dropout applied by hand, sampling, noise). "
            "A repair could not be confirmed; make it deterministic in eval mode."
        )
    if independent(inputs):
        refuse_dependence(model, inputs, y, [(few, again), (few[:1], some(model, inputs[few[:1]]))])
    return y


def _refuse_random(inputs: AnyInputs, what: str) -> None:
    """Refuse points that change when they are read again."""
    if isinstance(inputs, Tensor):
        return
    some = some_of(inputs, torch.arange(min(READ_TWICE, len(inputs))))
    once, again = some.loaded(), some.loaded()
    if once is again:
        return
    a, b = (read if isinstance(read, Tensor) else read.same() for read in (once, again))
    if a is not None and b is not None and not np.array_equal(words(a), words(b)):
        raise InvalidInput(
            f"The items of {what}'s data set differ when they are read again: it is random (augmentation, sampling). "
            "What is kept could not be confirmed; read it without random transforms."
        )


def _first_run(model: nn.Module, inputs: AnyInputs, what: str) -> Tensor:
    """Return the outputs of all points; an exception of the model is reported as an error about the points."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _unwritten(model, inputs)
    except UnsupportedModel as error:
        if error.__cause__ is None:
            raise
        cause = error.__cause__
    if len(inputs) > FEW and accepts(model, inputs):
        raise UnsupportedModel(
            f"The model accepts {len(inputs)} points at once, but not {FEW} of them ({first_line(cause)}). {ANY_SIZE}"
        ) from cause
    advice = (
        " Of a model with several arguments give a tuple of tensors, with keywords a dictionary; otherwise an "
        "nnrepair.Inputs object whose call() runs it."
        if isinstance(cause, TypeError)
        else ""
    )
    raise InvalidInput(
        f"The model does not accept {what} ({described(inputs)}): {first_line(cause).rstrip('.')}.{advice}"
    ) from cause


def _refuse_outputs(y: Tensor, count: int, what: str) -> None:
    """Refuse outputs that are no finite scores, one row for each of `count` points."""
    if not y.dtype.is_floating_point or y.layout != torch.strided:
        kind = str(y.dtype if y.layout == torch.strided else y.layout).removeprefix("torch.")
        raise UnsupportedModel(
            f"The model returns {kind} outputs. A repair needs scores, dense floating-point numbers: no decisions, "
            "counts or complex numbers."
        )
    if y.ndim == 0 or len(y) != count or y.numel() == 0:
        raise InvalidInput(
            f"The model returns outputs of shape {tuple(y.shape)} for {count} points; the first axis must be the "
            "points. Give inputs with one point per row."
        )
    if not torch.isfinite(y).all():
        bad = torch.nonzero(~torch.isfinite(y.flatten(1)).all(1)).flatten().tolist() if y.ndim > 1 else []
        raise InvalidInput(f"The model's outputs on {what} are not finite, at indices {first(bad)}.")


@torch.no_grad()
def _unwritten(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """Return the outputs (n, ...), having refused a model that changes its user's tensors.

    Of tensors, some points are tried first; other inputs (graphs) run as a copy, unless they are large: then a write is
    seen once it has happened.
    """
    if isinstance(inputs, Tensor):
        few = inputs[:FEW].clone()
        if len(inputs):
            call(model, few)
        _refuse_written([(few, inputs[:FEW])])
        return outputs(model, inputs)
    parts = inputs.tensors()
    if sum(value.numel() for value in parts) > COPIED:
        counts = [(value, value._version) for value in parts if not value.is_inference()]
        y = outputs(model, inputs)
        if any(value._version != count for value, count in counts):
            raise UnsupportedModel(f"{WRITES} It has just done so: load your data again.")
        return y
    copied = inputs.copied()
    y = outputs(model, copied)
    _refuse_written(list(zip(copied.tensors(), parts, strict=True)))
    return y


def _refuse_written(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for now, before in pairs:
        same = before.layout != torch.strided or ((now == before) | ((now != now) & (before != before))).all()  # NaN
        if not same:
            raise UnsupportedModel(WRITES)


def differ_by_rounding(a: Tensor, b: Tensor) -> bool:
    """Whether outputs differ by no more than some roundings, relative to the largest of them."""
    return torch.allclose(a, b, rtol=0, atol=ROUNDINGS.get(a.dtype, 0.0) * float(a.abs().max()))
