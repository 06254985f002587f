"""Foggy MNIST digits that a clean digit network gets wrong."""

from __future__ import annotations

import torch

from benchmarks.editing import Task, drawn
from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.images.vision import fog, mnist, mnist_fog, relu_mlp

#: Size of the locality set, and in how many other fogs each edited digit is put to see whether its repair generalises.
LOCALITY, FOGS = 2000, 4
#: Size of the second test set: foggy digits that are no edits.
FOGGY = 2000


def task(model: str, seed: int, edits: int) -> Task:
    """Edits: foggy test digits; kept: clean training digits; test sets: clean test digits, and other foggy ones."""
    network, foggy, clean, train = relu_mlp(model), mnist_fog(), mnist("test"), mnist("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        wrong = network(foggy.inputs).argmax(1) != foggy.labels
    mine = drawn(wrong.nonzero()[:, 0], edits, generator, f"foggy digits that {model} gets wrong")
    kept = train[torch.randperm(len(train), generator=generator)[:LOCALITY]]
    digits = clean[mine].inputs.reshape(-1, 28, 28).repeat(FOGS, 1, 1).numpy()
    other = torch.from_numpy(fog(digits, seed)).float().flatten(1)
    rest = torch.randperm(len(foggy), generator=generator)
    rest = rest[~torch.isin(rest, mine)][:FOGGY]
    return Task(
        model=network,
        edits=Edits(foggy[mine].inputs, foggy[mine].labels),
        locality_set=LocalitySet(kept.inputs, kept.labels),
        test_set={"clean": (clean.inputs, clean.labels), "fog": (foggy[rest].inputs, foggy[rest].labels)},
        edit_scope=EditScope(other, foggy[mine].labels.repeat(FOGS), of=torch.arange(edits).repeat(FOGS)),
    )
