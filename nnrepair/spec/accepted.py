"""What a model must do with its points: run on any number of them, each for itself. Others are refused by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnrepair.errors import UnsupportedModel, first_line
from nnrepair.spec.edits import AnyInputs
from nnrepair.spec.running import call

#: By how much a point's outputs may differ from those among other points, relative to the largest output.
DEPENDENCE = 1e-3
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


def refuse_dependence(model: nn.Module, y: Tensor, others: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuse a model that returns other outputs for some of its points than for all of them.

    Args:
        model: for what the message says.
        y: (n, ...) the outputs of all points.
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
            raise UnsupportedModel(
                f"A point's output depends on the other points of its batch.{_batch_norms(model)} Give inputs as an "
                "nnrepair.Inputs object with independent=False and a call() that runs the whole batch."
            )


def _batch_norms(model: nn.Module) -> str:
    """Name the layers that average over the batch in eval mode too."""
    kind = nn.modules.batchnorm._BatchNorm
    found = [n for n, m in model.named_modules() if isinstance(m, kind) and m.running_mean is None]
    return f" Batch normalisation without running statistics ({', '.join(found[:5])}) does that." if found else ""
