"""Attack, program, check: repair the last layer until every property is proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nnrepair.jacobian.head import rows_of
from nnrepair.properties.head import Head
from nnrepair.properties.hunt import hunt, spread
from nnrepair.properties.leaves import Leaves
from nnrepair.properties.task import Task
from nnrepair.solver.program import Contradiction, Program
from nnrepair.spec.criteria import Criterion
from nnrepair.verify.check import WIDE, checked
from nnrepair.verify.result import CheckResult
from nnrepair.verify.search.jobs import Jobs, Options

#: Parts are proved with this share of the margin to spare: the network's own precision may round the weights.
SPARE = 0.1
#: The first penalty for missing a point of the locality set: that of a change of the weights so many times as large as
#: the one that would bring it back alone.
PRICE = 1e4
#: Rounds of attack, program and check; programs between two looks at the parts; how often parts may be halved.
ROUNDS, CUTS, LEVELS = 40, 80, 10
#: A property's margin is doubled, at most so often, where its proof was cut short with this share done.
THICKER, NEARLY = 2, 0.5
#: A smaller change than the first that was proved is kept if its proofs are so many times shorter than they may be
#: otherwise; so often it is halved.
SHORTER, HALVINGS = 2, 6
#: New rows at once, for the locality set and for parts.
MOST_LOCAL, MOST_PARTS = 150, 500
#: What the rows of a property's parts are called, after its name.
PARTS = " on its parts"


@dataclass
class LocalityStates:
    """The locality set as the last layer sees it.

    Attributes:
        keys: (points, width).
        outputs: (points, outputs) of the head as it is.
        criterion: without alternatives.
        need: (points, conditions), the slack to keep.
    """

    keys: Tensor
    outputs: Tensor
    criterion: Criterion
    need: Tensor

    def __post_init__(self) -> None:
        self.used = torch.zeros_like(self.need, dtype=torch.bool)

    def share(self, change: Tensor) -> float:
        """Return the share of the points that hold after a change."""
        return float(self.criterion.holds(self.outputs + self.keys @ change.T).double().mean())

    def missed(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return points, conditions and rows on the outputs of the worst conditions not in use, or None."""
        missed = self.need - self.criterion.slack(self.outputs + self.keys @ change.T)
        worst, condition = missed.masked_fill(self.used, -torch.inf).max(1)
        point = (worst > 1e-9).nonzero()[:, 0]
        if not len(point):
            return None
        point = point[worst[point].argsort(descending=True)[:MOST_LOCAL]]
        condition = condition[point]
        self.used[point, condition] = True
        return point, condition, self.criterion.rows(point, condition, self.outputs[:1]).flatten(1)


@dataclass
class HeadRepair:
    """The smallest change of the last weights under which every property is proved.

    Attributes:
        head: the network.
        tasks: properties to repair and to keep.
        locality: the states of the locality set, or None.
        options, timeout: of each check.
        generator: of random starts.
        say: told how far it is.
        enough: give up when points alone cost more of the locality set than leaves this share.
        thicker: how often a margin may be doubled where that makes a proof shorter.
        price: the penalty for missing a point of the locality set, see `PRICE`; the lower, the smaller the change.
        cost: (outputs, width), of changing each weight; None is 1.
    """

    head: Head
    tasks: Sequence[Task]
    locality: LocalityStates | None
    options: Options
    timeout: float | None
    generator: torch.Generator
    say: Callable[[str], None]
    enough: float = 0.0
    thicker: int = THICKER
    price: float = PRICE
    cost: Tensor | None = None
    change: Tensor = field(init=False)
    thin: Tensor = field(init=False)  # what points alone asked for
    proofs: dict[str, CheckResult] = field(init=False, default_factory=dict)
    leaves: dict[str, Leaves] = field(init=False, default_factory=dict)
    stats: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.change = torch.zeros_like(self.head.weight)
        thinnest = min(task.margin for task in self.tasks)
        self.unit = min(max(thinnest, 1e-12), float(self.head.weight.abs().max()) or 1.0)
        self.program = self._program()
        self.levels: dict[str, int] = {}
        self.doubled: dict[str, int] = {}
        self.stats = {"rounds": 0, "points": 0, "programs": 0, "parts": 0}
        self.points = {task.name: list[tuple[Tensor, Tensor]]() for task in self.tasks}

    def _program(self) -> Program:
        """Return a program without rows."""
        cost = None if self.cost is None else self.cost.flatten().numpy()
        return Program(self.change.numel(), self.unit, cost)

    def run(self) -> bool:
        """Change the last weights; return whether all properties are proved, see `proofs`.

        Raises:
            Contradiction: no change satisfies the properties at the points found.
            Lossy: that costs too much of the locality set. Unproved: however finely the boxes were divided.
        """
        for _ in range(ROUNDS):
            self.stats["rounds"] += 1
            try:
                if not (self._attacked() or self._broken()):
                    self._shrink()
                    return True
            except Contradiction as reason:
                self._without_parts(reason)
        return False

    # Rows ------------------------------------------------------------------------------------------------------------

    def _attacked(self) -> bool:
        """Look for points that violate properties to repair, or come near; make them rows, and solve."""
        found = 0
        graph = self.head.changed(self.change)
        for task in self.tasks:
            if task.role == "repair" and task.name not in self.leaves:
                reach = task.margin / 2 if self.stats["programs"] else 0.0
                x, job = hunt(graph, task.jobs, self.generator, reach)
                found += self._add_points(task, x, job)
        if found:
            self.say(f"{found} counterexamples")
            self._solve()
        return found > 0

    def _add_points(self, task: Task, x: Tensor, job: Tensor) -> int:
        """Require a property at points (n, inputs), each about one job, through the halfspace nearest to holding."""
        if not len(x):
            return 0
        keys = self.head.keys(x)
        depth = task.jobs.depth(keys @ (self.head.weight + self.change).T, job)
        chosen = spread(keys, depth, self.generator)
        self.points[task.name].append((keys[chosen], job[chosen]))
        self._require(task, keys[chosen], job[chosen])
        self.stats["points"] += len(chosen)
        return len(chosen)

    def _require(self, task: Task, keys: Tensor, job: Tensor) -> None:
        """Make rows of points, given by their keys."""
        value = torch.einsum("nmo,ow,nw->nm", task.jobs.rows[job], self.head.weight, keys) - task.jobs.offset[job]
        slack, row = task.jobs.best(value, job)
        margin = torch.full_like(slack, task.margin)
        if task.role == "keep":  # no more than half of what it had
            margin = torch.where(slack > 0, torch.minimum(margin, slack / 2), margin)
        r = task.jobs.rows[job, row]
        self.program.add(task.name, rows_of(r, keys).numpy(), (margin - slack).numpy())

    def _solve(self) -> None:
        """Find the smallest change for the rows there are, and the rows of the locality set that it breaks."""
        while True:
            self.stats["programs"] += 1
            self.change = torch.from_numpy(self.program.solve()).reshape(self.change.shape)
            broken = None if self.locality is None else self.locality.missed(self.change)
            if broken is None or self.locality is None:
                break
            point, condition, r = broken
            keys = self.locality.keys[point]
            before = self.locality.criterion.slack(self.locality.outputs)[point, condition]
            need = self.locality.need[point, condition] - before
            price = self.price / max(float(keys.abs().mean()), 1e-12)
            self.program.add("locality set", rows_of(r, keys).numpy(), need.numpy(), price)
        if self.locality is not None and not self.leaves and self.locality.share(self.change) < self.enough:
            raise Lossy

    # Proofs ----------------------------------------------------------------------------------------------------------

    def _broken(self) -> bool:
        """Check every property; where one is not proved, make rows of it and return True."""
        self.proofs = {}
        model = self.head.moved(self.change)
        for task in self.tasks:
            if task.name in self.leaves and self._cut(task):
                return True
            result = self._checked(task, model, self.options)
            self.say(f"{task.name}: {result.verdict}")
            self.proofs[task.name] = result
            if result.counterexample is not None:
                found = torch.tensor([float(v) for v in result.counterexample.exact_input], dtype=torch.float64)
                self._add_points(task, *self._near(task, found))
                self._solve()
                return True
            if not result.holds:
                wide = task.jobs.lower.shape[1] > WIDE  # then inputs are not split, and there are no parts to prove
                nearly = task.role == "repair" and task.name not in self.leaves and (wide or result.proved >= NEARLY)
                if nearly and self.doubled.get(task.name, 0) < self.thicker:
                    self._thicken(task)
                elif wide:
                    raise Unproved(task.name)
                else:
                    self._divide(task)
                return True
        return False

    def _near(self, task: Task, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a counterexample, and others in its neighbourhood."""
        jobs, width = task.jobs, (task.jobs.upper - task.jobs.lower) / 20
        inside = ((x >= jobs.lower) & (x <= jobs.upper)).all(1)
        depth = jobs.depth(self.head.changed(self.change)(x.expand(len(inside), -1)), torch.arange(len(inside)))
        job = depth.masked_fill(~inside, -torch.inf).argmax()
        low, high = torch.maximum(jobs.lower, x - width)[job], torch.minimum(jobs.upper, x + width)[job]
        local = Jobs(low[None], high[None], jobs.rows[job][None], jobs.offset[job][None], jobs.real[job][None])
        points, _ = hunt(self.head.changed(self.change), local, self.generator)
        points = torch.cat([x[None], points])
        return points, job.expand(len(points))

    def _thicken(self, task: Task) -> None:
        """Ask points for twice the margin: a somewhat larger change, with a proof that needs fewer boxes."""
        self.doubled[task.name] = self.doubled.get(task.name, 0) + 1
        task.margin *= 2
        self.say(f"{task.name}: margin {task.margin:.3g}")
        self.program = self._program()  # rows of parts come back where they are missed
        for each in self.tasks:
            for keys, job in self.points[each.name]:
                self._require(each, keys, job)
        if self.locality is not None:
            self.locality.used.zero_()
        self._solve()

    def _divide(self, task: Task) -> None:
        """Make the parts of a property's boxes rows, as many parts as its proof by linear bounds needs."""
        if not self.leaves:
            self.thin = self.change
        if task.name not in self.leaves:
            self.leaves[task.name] = Leaves(self.head, task.jobs, self.change)
        else:
            self._finer(task)
        while not self._settled(task):
            self._finer(task)

    def _checked(self, task: Task, model: nn.Module, options: Options) -> CheckResult:
        return checked(model, task.given, task.told(self.say), self.timeout, options=options)

    def _shrink(self) -> None:
        """Go back towards the change that points alone asked for, by halves, as long as every proof is short enough."""
        short = replace(self.options, most=max(1, (self.options.most or 0) // SHORTER))
        for _ in range(HALVINGS if self.leaves else 0):
            wide, proofs = self.change, self.proofs
            self.change = (self.thin + wide) / 2
            model = self.head.moved(self.change)
            self.proofs = {}
            likeliest_to_fail_first = sorted(self.tasks, key=lambda task: task.name not in self.leaves)
            for task in likeliest_to_fail_first:
                result = self._checked(task, model, short)
                self.proofs[task.name] = result
                if not result.holds:
                    self.change, self.proofs = wide, proofs
                    return
            self.say("half the change is proved too")

    def _finer(self, task: Task) -> None:
        leaves = self.leaves[task.name]
        self.levels[task.name] = self.levels.get(task.name, 0) + 1
        if self.levels[task.name] > LEVELS:
            raise Unproved(task.name)
        value, _ = leaves.bound(self.change)
        worst = value.argsort()[: max(64, len(leaves) // 3)]
        leaves.split(worst, self.change)
        leaves.choose(self.change)
        self.stats["parts"] = max(self.stats["parts"], len(leaves))

    def _settled(self, task: Task) -> bool:
        """Solve until every part is proved; False when that takes too many programs, or parts are too coarse for it."""
        try:
            for _ in range(CUTS):
                if not self._cut(task):
                    return True
        except Contradiction as reason:
            self._without_parts(reason)
        return False

    def _without_parts(self, reason: Contradiction) -> None:
        """Forget the rows of parts, and solve; what contradicts itself without them is a contradiction."""
        if not any(tag.endswith(PARTS) for tag in reason.tags):
            raise reason
        self.program = self.program.without(PARTS)
        if self.locality is not None:
            self.locality.used.zero_()
        self._solve()

    def _cut(self, task: Task) -> bool:
        """Make the parts that are not proved rows and solve; return whether there were any."""
        leaves, spare = self.leaves[task.name], SPARE * task.margin
        value, keys = leaves.bound(self.change)
        unproved = (value < spare).nonzero()[:, 0]
        if not len(unproved):
            return False
        unproved = unproved[value[unproved].argsort()[:MOST_PARTS]]
        self.program.add(task.name + PARTS, *leaves.rows(unproved, keys[unproved], 2 * spare))
        self.say(f"{task.name}: {len(unproved)} of {len(leaves)} parts open")
        self._solve()
        return True


class Unproved(Exception):
    """A property could not be proved, however finely its boxes were divided."""


class Lossy(Exception):
    """The last layer cannot repair the points without losing more of the locality set than is allowed."""
