"""Foggy MNIST digits that a clean digit network gets wrong."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.neighbours import beside
from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.base import Task, drawn
from nnrepair.domains.vision import Images, fog, mnist, mnist_fog, relu_mlp
from nnrepair.methods.episodes import Episode

#: Size of the locality set, and in how many other fogs each edited digit is put to see whether its repair generalises.
LOCALITY, FOGS = 2000, 4
#: Size of the second test set: foggy digits that are no edits.
FOGGY = 2000
#: Seed of the fogs of neighbours that methods are given, beyond that of the task.
BESIDE = 1000
#: Training digits that are put in fog for episodes.
TRAINED = 1000


def task(
    model: str, seed: int, edits: int, *, twins: bool = False, kept: int = LOCALITY, neighbours: str = "none"
) -> Task:
    """Edits: foggy test digits; kept: clean training digits; test sets: clean test digits, and other foggy ones.

    Args:
        model, seed, edits: which network, draw, and how many.
        twins: whether every second edit is a twin of the one before it that contradicts it, see `with_twins`.
        kept: size of the locality set.
        neighbours: "wanted" or "demanded" gives methods each edited digit in fogs of its own, which are not those of
            the edit scope.
    """
    if twins:
        posed = task(model, seed, edits // 2)
        scope = posed.edit_scope
        assert scope.of is not None
        return replace(
            posed,
            edits=with_twins(posed.edits, posed.model, seed),
            edit_scope=EditScope(scope.inputs, scope.criterion, of=2 * scope.of),
        )
    network, foggy, clean, train = relu_mlp(model), mnist_fog(), mnist("test"), mnist("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        wrong = network(foggy.inputs).argmax(1) != foggy.labels
    mine = drawn(wrong.nonzero()[:, 0], edits, generator, f"foggy digits that {model} gets wrong")
    stays = train[torch.randperm(len(train), generator=generator)[:kept]]
    rest = torch.randperm(len(foggy), generator=generator)
    rest = rest[~torch.isin(rest, mine)][:FOGGY]
    asked = Edits(foggy[mine].inputs, foggy[mine].labels)
    if neighbours != "none":
        asked = beside(asked, other_fogs(clean[mine], BESIDE + seed), neighbours)
    return Task(
        model=network,
        edits=asked,
        locality_set=LocalitySet(stays.inputs, stays.labels),
        test_set={"clean": (clean.inputs, clean.labels), "fog": (foggy[rest].inputs, foggy[rest].labels)},
        edit_scope=other_fogs(clean[mine], seed),
        training=lambda: training(network, train, seed),
    )


def with_twins(edits: Edits, network: nn.Module, seed: int) -> Edits:
    """Return edits (digits with labels), each followed by a twin that is asked for another label.

    Twins are of two kinds, in turn: the digit with noise of a hundredth of its length, which is near it at every layer;
    and the digit with noise of half its length that the first layer does not see, whose keys are the same at all layers
    behind it.
    """
    generator = torch.Generator().manual_seed(seed)
    x, labels = edits.inputs.double(), edits.criterion.labels
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = next(p for p in network.parameters() if p.ndim == 2).detach().double()
    noise[1::2] -= noise[1::2] @ weight.T @ torch.linalg.pinv(weight).T
    size = torch.where(torch.arange(len(x)) % 2 == 0, 0.01, 0.5)[:, None]
    twin = (x + size * x.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)).to(edits.inputs.dtype)
    with torch.no_grad():
        scores = network(twin).scatter(1, labels[:, None], -torch.inf)
    scores.scatter_(1, network(twin).argmax(1, keepdim=True), -torch.inf)  # a twin is no edit if it holds already
    other = torch.rand(scores.shape, generator=generator).masked_fill(scores.isinf(), -1.0).argmax(1)
    both = torch.stack([edits.inputs, twin], 1).flatten(0, 1)
    return Edits(both, torch.stack([labels, other], 1).flatten())


def training(network: nn.Module, train: Images, seed: int) -> Episode:
    """Edits: foggy training digits; scope: the same in other fogs; kept: clean training digits."""
    some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:TRAINED]]
    foggy = Images(in_fog(some, seed), some.labels)
    with torch.no_grad():
        wrong = network(foggy.inputs).argmax(1) != foggy.labels
        right = network(some.inputs).argmax(1) == some.labels
    kept = some[right]
    return Episode(
        Edits(foggy[wrong].inputs, foggy[wrong].labels),
        LocalitySet(kept.inputs, kept.labels),
        other_fogs(some[wrong], seed + 1),
    )


def other_fogs(clean: Images, seed: int) -> EditScope:
    """Return each digit in so many fogs."""
    many = Images(clean.inputs.repeat(FOGS, 1), clean.labels.repeat(FOGS))
    return EditScope(in_fog(many, seed), many.labels, of=torch.arange(len(clean)).repeat(FOGS))


def in_fog(clean: Images, seed: int) -> Tensor:
    """Return the digits (n, 784), each in its own fog."""
    return torch.from_numpy(fog(clean.inputs.reshape(-1, 28, 28).numpy(), seed)).float().flatten(1)
