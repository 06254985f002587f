"""Where in a network an edit would best be made: every layer is tried, and what that does elsewhere is measured.

A layer is tried by fine-tuning it alone, just far enough that the edits hold (`FineTune(interpolate="auto")`); the one
under which least changes on the locality set comes first. Beside it stands which of its neurons the wrong answers rest
on (`jacobian.neurons`). Hase et al., "Does localization inform editing?" (NeurIPS 2023) found that where a fact is
stored by attribution says little of where it is best edited: so the order here is that of the trials alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.jacobian.layers import choose, modules, weighted
from nnrepair.jacobian.neurons import Neurons, neurons
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.network import private_copy
from nnrepair.results import markdown
from nnrepair.rounding import percent
from nnrepair.spec.kinds import Classes
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem, pose
from nnrepair.spec.running import outputs, required_seed, undisturbed

#: How layers are tried.
TRIAL = FineTune(steps=200, lr=0.01, interpolate="auto")


@dataclass(frozen=True, eq=False)
class Place:
    """What was found of one layer.

    Attributes:
        layer: its name.
        parameters: how many numbers it has.
        holding: how many edits hold where this layer alone was tuned.
        unchanged: the share of the kept points of the locality set that still hold then.
        drift: by how much outputs moved on the locality set then, mean divergence in nats (of numbers, half of the
            squared distance).
        neurons: what the present answers to the edits rest on; None where outputs are no scores of classes.
    """

    layer: str
    parameters: int
    holding: int
    unchanged: float
    drift: float
    neurons: Neurons | None


@dataclass(frozen=True, eq=False)
class Located:
    """The layers of a network, the best place for some edits first.

    Attributes:
        places: one for each layer that was tried.
        edits, kept: how many edits there are, and points to keep.
    """

    places: list[Place]
    edits: int
    kept: int

    @property
    def best(self) -> str:
        """The name of the layer that comes first."""
        return self.places[0].layer

    def __str__(self) -> str:
        rows = []
        for place in self.places:
            row = [plain(place.layer), str(place.parameters), f"{place.holding} of {self.edits}"]
            row += [percent(place.unchanged), f"{place.drift:.2g}"]
            rows.append([*row, "" if place.neurons is None else str(place.neurons)])
        head = ["layer", "numbers", "edits that hold", "unchanged", "drift", "what the answers rest on now"]
        about = f"Each layer tuned alone until the edits hold; {self.kept} points to keep. Best: {plain(self.best)}"
        return f"{markdown.table(head, rows)}\n{about}"


def locate(
    model: nn.Module,
    edits: Any,
    locality_set: Any,
    *,
    layers: Sequence[str] | None = None,
    trial: FineTune = TRIAL,
    seed: int | None = None,
) -> Located:
    """Find the layer in which some edits would best be made, by trying each.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> found = locate(model, (x[:1], model(x[:1]).argmin(1)), x[1:])
        >>> sorted(place.layer for place in found.places)
        ['0', '2']

    Args:
        model: stays as it is.
        edits, locality_set, seed: as for `fix`.
        layers: names of those to try; None takes every one with a weight matrix.
        trial: how each is tried; its `layers` are replaced.

    Raises:
        InvalidInput: edits, locality set or layers cannot be used.
        UnsupportedModel: the model fails on the points, or no layer can be tuned.
    """
    seed = None if seed is None else required_seed(seed)
    with undisturbed(seed):
        network = private_copy(model)
        problem = pose(network, edits, locality_set, seed=seed)
        if problem.locality is None or not len(problem.locality):
            raise InvalidInput("locate compares what edits change elsewhere: give a locality set, points to keep.")
        names = weighted(network) if layers is None else modules(network, layers)
        found, failures = list[Place](), list[str]()
        for name in names:
            try:
                found.append(_tried(problem, name, trial))
            except NNRepairError as error:
                failures.append(str(error))
        if not found:
            raise InvalidInput(f"No layer could be tried. {failures[0] if failures else 'The network has none.'}")
    found.sort(key=lambda place: (-place.holding, -round(place.unchanged, 6), place.drift))
    return Located(found, len(problem.edits), len(problem.locality))


def _tried(problem: Problem, name: str, trial: FineTune) -> Place:
    """Return what tuning a layer alone does."""
    parameters = choose(problem.model, name)
    proposal = replace(trial, layers=tuple(parameters)).repair(problem)
    assert problem.locality is not None
    y = outputs(proposal.model, problem.locality.inputs)
    held, before = problem.locality.holds, problem.before.double()
    still = problem.locality.criterion.holds(y.double())[held]
    holding = problem.edits.criterion.holds(outputs(proposal.model, problem.edits.inputs).double())
    size = sum(p.numel() for n, p in problem.model.named_parameters() if n in set(parameters))
    drift = float(problem.kind.divergence(before, y.double()).mean())
    unchanged = float(still.double().mean()) if len(still) else 1.0
    return Place(name, size, int(holding.sum()), unchanged, drift, _resting(problem, name))


def _resting(problem: Problem, name: str) -> Neurons | None:
    """Return the neurons that the present answers to the edits rest on, where there are such."""
    y: Tensor = problem.answers
    if not isinstance(problem.kind, Classes) or problem.kind.lowest_wins or y.ndim != 2:
        return None
    try:
        return neurons(problem.model, problem.edits.inputs, y.argmax(1), name)
    except NNRepairError:  # a layer of which it cannot be said
        return None
