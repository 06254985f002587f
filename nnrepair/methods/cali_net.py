"""A layer of units beside a layer, trained on all edits at once, while the network stays as it is.

After Dong et al., "Calibrating factual knowledge in pretrained language models" (CaliNet, Findings of EMNLP 2022),
which adds units to feed-forward layers and trains them on the edits alone. What differs: any layer may have them; their
values are zero at first, so that training begins at the network as it is; training ends when the edits hold; and, where
there is a locality set, its outputs are held where they are, unless `kl` is 0 as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.fine_tune.penalties import KL
from nnrepair.methods.t_patcher import started
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs
from nnrepair.wrappers.parallel import Parallel, Queries


@dataclass(frozen=True)
class CaliNet:
    """Train some units beside a layer on all edits at once; weights stay as they are.

    A network that has units at this layer keeps them, and they are trained further.

    Example:
        >>> CaliNet(kl=0.0).capabilities.only_edit_pair
        True

    Args:
        layer: the name of a module that runs once and has one row for each point; "auto" takes the last with a weight.
        units: how many.
        steps, lr: of Adam; no step is taken once all edits hold.
        kl: the weight of `penalties.KL`, where there is a locality set.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or layers that are not there.
    """

    layer: str = "auto"
    units: int = 64
    steps: int = 1000
    lr: float = 0.01
    kl: float = 10.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        options.one_layer(self)
        options.whole(self, "units")
        self._tuning(True)

    def _tuning(self, locality: bool) -> FineTune:
        penalties = (KL(self.kl),) if self.kl and locality else ()
        names = ("keys", "biases", "values")
        return FineTune(names, steps=self.steps, lr=self.lr, penalties=penalties, margin=self.margin)

    @property
    def capabilities(self) -> Capabilities:
        only_edits = self._tuning(True).capabilities.only_edit_pair
        return Capabilities("architectural", False, "wrapped", only_edits, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network with units beside a layer, see the class."""
        network = started(problem.model, self.layer, problem)
        network = network if len(network) else self._drawn(network, problem)
        for units in (network.keys, network.biases, network.values):
            units.requires_grad_(True)  # repaired networks come with units that are frozen
        proposal = self._tuning(problem.locality is not None).repair(replace(problem, model=network.eval()))
        if problem.locality is None and self.kl:
            proposal.notes.append("no locality set: nothing keeps other decisions as they are.")
        proposal.stats |= {"layer": plain(network.layer), "units": len(network)}
        proposal.advice = "more steps or units, another lr, a smaller kl, another layer, or another method"
        return proposal

    def _drawn(self, network: Parallel, problem: Problem) -> Parallel:
        """Return the network with units whose keys are drawn, and whose values are zero."""
        seen = outputs(Queries(network.base, network.layer), problem.edits.inputs)
        size = float(seen.double().square().sum(-1).mean().sqrt()) or 1.0
        generator = torch.Generator().manual_seed(problem.seed)
        keys = torch.randn(self.units, network.keys.shape[1], generator=generator, dtype=torch.float64) / size
        like = network.keys
        nothing = like.new_zeros(self.units), like.new_zeros(self.units, network.values.shape[1])
        return Parallel(network.base, network.layer, keys.to(like), *nothing)


register("calinet", CaliNet)
