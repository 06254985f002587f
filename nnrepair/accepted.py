"""Which models a repair can start from: the others are refused by name, with what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnrepair.errors import InvalidInput, UnsupportedModel, first_line
from nnrepair.forward import call
from nnrepair.spec import AnyInputs

#: Floating dtypes that parameters may have.
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ANY_SIZE = (
    "Methods run it on batches of any size: let it accept them, or give inputs as an nnrepair.Inputs object whose "
    "call() fills a batch up."
)


def refuse_kinds(model: nn.Module) -> None:
    """Refuse models with parts that no method can change or run; all such parts are named.

    Raises:
        UnsupportedModel: TorchScript, quantised layers, or parameters that are sparse or of eight bits.
        InvalidInput: parameters without numbers.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    tensors = parameters | dict(model.named_buffers())
    unsupported = {
        "The model is compiled to TorchScript, whose weights cannot be repaired. Give the Python module that was "
        "scripted or traced, and script or trace result.model": [n for n, m in modules.items() if _is_script(m)],
        "The model has quantised layers, whose weights are integers. Repair the model before it is prepared for that, "
        "and quantise result.model": [n for n, m in modules.items() if _is_quantised(m)],
        "The model has sparse parameters. Make them dense: parameter.to_dense()": [
            n for n, p in parameters.items() if p.layout != torch.strided
        ],
        "The model has floating-point parameters of eight bits or fewer. Cast it to torch.bfloat16 or more": [
            n for n, p in parameters.items() if p.dtype.is_floating_point and p.dtype not in DTYPES
        ],
    }
    without_numbers = {
        "The model has lazy layers without weights. Run it once on some inputs first: model(inputs)": [
            n for n, t in tensors.items() if is_lazy(t)
        ],
        'The model is on the "meta" device and has no weights. Load them first (model.to_empty, ...)': [
            n for n, t in tensors.items() if t.is_meta
        ],
    }
    for kind, table in ((UnsupportedModel, unsupported), (InvalidInput, without_numbers)):
        for said, names in table.items():
            if names:
                shown = ", ".join(name or "the model itself" for name in names[:5])
                raise kind(f"{said}. Found in: {shown}{', ...' if len(names) > 5 else ''}.")


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_quantised(module: nn.Module) -> bool:
    """Whether a layer computes with integers, or imitates it while it is trained to."""
    home = type(module).__module__
    return home.startswith("torch.") and ("quantized" in home or "fake_quantize" in home)


@torch.no_grad()
def accepts(model: nn.Module, inputs: AnyInputs) -> bool:
    """Whether the model runs on all points at once."""
    try:
        call(model, inputs.clone() if isinstance(inputs, Tensor) else inputs)
    except UnsupportedModel:
        return False
    return True


def alone(model: nn.Module, one: AnyInputs) -> Tensor:
    """Return the output of a single point."""
    try:
        with torch.no_grad():
            return call(model, one)
    except UnsupportedModel as error:
        cause = error.__cause__ or error
        raise UnsupportedModel(
            f"The model accepts several points at once, but not one alone ({first_line(cause)}).{_batch_norms(model)} "
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
    for some, found in others:
        if found.shape != y[some].shape:
            raise UnsupportedModel(
                f"The model returns outputs of shape {tuple(y.shape)} for {len(y)} points, but {tuple(found.shape)} "
                f"for {len(some)}. The first axis must always be the points; where the model squeezes its outputs, "
                "name the axis, as in squeeze(1)."
            )
        if not torch.allclose(found, y[some], rtol=0, atol=1e-3 * scale):
            raise UnsupportedModel(
                f"A point's output depends on the other points of its batch.{_batch_norms(model)} Give inputs as an "
                "nnrepair.Inputs object with independent=False and a call() that runs the whole batch."
            )


def _batch_norms(model: nn.Module) -> str:
    """Name the layers that average over the batch in eval mode too."""
    kind = nn.modules.batchnorm._BatchNorm
    found = [n for n, m in model.named_modules() if isinstance(m, kind) and m.running_mean is None]
    return f" Batch normalisation without running statistics ({', '.join(found[:5])}) does that." if found else ""
