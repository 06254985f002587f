"""Naming layers and choosing their parameters. A layer is a module that owns floating-point parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.jacobian.tangents import canonical
from nnrepair.spec.network import copied, plain

_SKIP = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def layers(model: nn.Module) -> dict[str, list[str]]:
    """Return the repairable layers in the model's own order: layer name -> names of its parameters.

    >>> layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    {'0': ['0.weight', '0.bias'], '2': ['2.weight', '2.bias']}
    """
    found: dict[str, list[str]] = {}
    for prefix, module in model.named_modules():
        own = [name for name, p in module.named_parameters(recurse=False) if p.dtype.is_floating_point]
        if own:
            names = [f"{prefix}.{name}" if prefix else name for name in own]
            found[prefix or names[0]] = names
    return found


def candidates(model: nn.Module) -> list[str]:
    """Return the layers worth trying one by one: trainable ones that carry a weight matrix, input to output."""
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    return [
        layer
        for layer, names in layers(model).items()
        if not isinstance(modules.get(layer), _SKIP)
        and any(n in parameters and parameters[n].ndim >= 2 and parameters[n].requires_grad for n in names)
    ]


def whole(model: nn.Module, layer: str) -> str:
    """Return the name of the outermost module with parameters of its own that a layer is part of, or its own.

    A graph convolution owns its bias, and its weight is in a module below, which may not run by itself.
    """
    modules = dict(model.named_modules())
    owners = [name for name in layers(model) if name in modules and layer.startswith(f"{name}.")]
    return min([*owners, layer], key=len)


def trainable(model: nn.Module, layer: str) -> list[str]:
    """Return the names of a layer's parameters that are not frozen."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [n for n in layers(model)[layer] if parameters[n].requires_grad]


def tunable(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the names of every trainable floating-point parameter for "all", and what `choose` does otherwise."""
    if wanted != "all":
        return choose(model, wanted)
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype.is_floating_point]
    if not names:
        raise InvalidInput("Every parameter is frozen (requires_grad=False): unfreeze those that may change.")
    return names


def choose(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the parameter names that a layer name, a parameter name, or several of them stand for.

    Raises:
        InvalidInput: a name that does not exist (near matches are listed), or parameters that are integer or frozen.
    """
    known, modules = layers(model), dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen: list[str] = []
    for name in [wanted] if isinstance(wanted, str) else list(wanted):
        name = _known(name, model)
        if name in known or (name and name in modules):
            # A graph convolution owns its bias, and its weight is in a module below: both are the layer.
            below = [p for layer, ps in known.items() if layer.startswith(name + ".") for p in ps]
            if name not in known and not below:
                raise InvalidInput(f"Layer {name!r} has no floating-point parameters. Layers: {', '.join(known)}.")
            chosen += known.get(name, []) + below
        elif name in parameters:
            chosen.append(name)
        else:
            hint = near_matches(name, [*known, *parameters])
            raise InvalidInput(f"Layer {name!r} not found.{hint} Layers: {', '.join(map(plain, known))}.")
    if not chosen:
        raise InvalidInput(f"No layer was chosen. Layers: {', '.join(known)}.")
    first = canonical(model)
    chosen = list(dict.fromkeys(first[name] for name in chosen if name in first))
    whole = [n for n in chosen if n in parameters and not parameters[n].dtype.is_floating_point]
    if whole:
        raise InvalidInput(f"Parameters {whole} are integers; only floating-point parameters can be repaired.")
    frozen = [n for n in chosen if n in parameters and not parameters[n].requires_grad]
    if frozen:
        raise InvalidInput(
            f"Parameters {frozen} are frozen (requires_grad=False). Unfreeze them or choose another layer."
        )
    return chosen


def modules(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the names of the layers that are meant, in the network's order; "auto" is the last with a weight.

    Raises:
        InvalidInput: there is none of such a name.
    """
    known = weighted(model)
    if wanted == "auto":
        if not known:
            raise InvalidInput("No trainable layer with a weight matrix was found; name one of the network's modules.")
        return known[-1:]
    names = {plain(name): name for name, _ in model.named_modules() if name}
    listed = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in listed:
        if plain(name) not in names:
            raise InvalidInput(f"Layer {name!r} not found.{near_matches(name, names)} Layers: {', '.join(known)}.")
    return [name for short, name in names.items() if short in {plain(name) for name in listed}]


def weighted(model: nn.Module) -> list[str]:
    """Return the modules that own, or are made of, a trainable weight matrix, input to output.

    One whose weights are those of a module before, as a language model's last map may be the words' vectors, is none.
    """
    modules = dict(model.named_modules())
    own = [name for name, _ in model.named_parameters()]  # of several names the first
    found = dict.fromkeys(whole(model, name) for name in candidates(model))
    return [name for name in found if name in modules and any(n.startswith(f"{name}.") for n in own)]


def _known(name: str, model: nn.Module) -> str:
    """Return a module's or parameter's name as the model has it, whatever wrappers were around or inside of it."""
    parameters = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    names = {plain(n): n for n in [*(n for n, _ in model.named_modules()), *parameters]}
    return next((names[n] for n in (plain(name), plain(name).removeprefix("module.")) if n in names), name)


def moved(model: nn.Module, change: dict[str, Tensor]) -> nn.Module:
    """Return a copy of the model with `change` (float64, by parameter name) added to its parameters."""
    twin = copied(model)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, delta in change.items():
            parameter, delta = parameters[name], delta.to(parameters[name].device)
            new = (parameter.double() + delta).to(parameter.dtype)
            parameter.copy_(torch.where(delta == 0, parameter, new))  # -0.0 + 0.0 would be another bit pattern
    return twin
