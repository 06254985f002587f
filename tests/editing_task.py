"""A tiny domain for tests of the editing benchmark: points of a plane, and a network that gets the last ones wrong."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.base import Task, drawn
from nnrepair.methods.episodes import Episode


def task(model: str, seed: int, edits: int, kept: int = 20) -> Task:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(OrderedDict(hidden=nn.Linear(2, 16), relu=nn.ReLU(), last=nn.Linear(16, 2)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        x = torch.randn(60, 2, generator=generator)
        right = network(x).argmax(1)
    mine = drawn(torch.arange(50, 60), edits, generator, "points that the network gets wrong")
    return Task(
        model=network,
        edits=Edits(x[mine], 1 - right[mine]),
        locality_set=LocalitySet(x[:kept], right[:kept]),
        test_set={"first": (x[20:40], right[20:40]), "other": (x[40:50], right[40:50])},
        edit_scope=EditScope(x[mine] + 0.01, 1 - right[mine], of=torch.arange(edits)),
        training=lambda: Episode(
            Edits(x[:10] + 1.0, 1 - network(x[:10] + 1.0).argmax(1)),
            LocalitySet(x[10:20], right[10:20]),
            EditScope(x[:10] + 1.01, 1 - network(x[:10] + 1.0).argmax(1), of=torch.arange(10)),
        ),
    )
