"""What was set beforehand for editors, and what they reach: from the committed rows alone."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.rows import Group, groups
from nnrepair.results import markdown

#: Measures as rows have them -> how they are called, and how much one unit of them is in a table.
MEASURES = {
    "success_rate": ("edits hold", 100),
    "success_retain_rate": ("hold at the end", 100),
    "drawdown_points": ("drawdown", 1),
    "locality": ("decisions unchanged", 100),
    "generalization_rate": ("paraphrases", 100),
}
CLOSED_FORM = ("rome", "memit", "pmet", "alphaedit")


@dataclass(frozen=True)
class Gate:
    """Limits of the means over the seeds.

    Attributes:
        domain, model, mode, experiment: whose rows.
        least, most: measure -> limit, in the rows' units; a drawdown may be as much below 0 where `both` is set.
        both: whether drawdowns are limited in both directions.
    """

    domain: str
    model: str
    mode: str
    experiment: str
    least: dict[str, float]
    most: dict[str, float]
    both: bool = False

    def met(self, group: Group) -> bool:
        """Whether the rows stay within all limits."""
        above = all(group.mean(key) >= limit for key, limit in self.least.items())
        size = abs if self.both else float
        return above and all(size(group.mean(key)) <= limit for key, limit in self.most.items())

    def asked(self) -> str:
        """Return the limits in words."""
        least = [f"{MEASURES[key][0]} ≥ {MEASURES[key][1] * limit:g}" for key, limit in self.least.items()]
        sign = "±" if self.both else ""
        return ", ".join(least + [f"{MEASURES[key][0]} ≤ {sign}{limit:g}" for key, limit in self.most.items()])


def gates() -> list[Gate]:
    """Return those of one experiment each."""
    cora, cifar, one = ("cora", "gcn"), ("cifar", "resnet20"), "independent"
    found = [
        Gate(*cora, one, "ft", {"success_rate": 1}, {"drawdown_points": 5}),
        Gate(*cora, one, "ft+kl-10", {}, {"drawdown_points": 1.5}),
        Gate(*cora, "batch", "ft+kl-10", {"success_rate": 1}, {"drawdown_points": 1.5}),
        Gate(*cora, one, "egnn", {"success_rate": 0.98}, {"drawdown_points": 3}),
    ]
    exact = {"success_rate": 1, "locality": 0.99}
    found += [Gate(*cifar, one, name, exact, {"drawdown_points": 0.2}, both=True) for name in CLOSED_FORM]
    found += [Gate(*cora, one, name, {}, {"drawdown_points": 0.5}) for name in CLOSED_FORM]
    names = ("grace-conflicts", "serac")
    found += [Gate("mnist", "3x100", "successive", name, {"success_retain_rate": 1}, {}) for name in names]
    return [*found, Gate("language", "gpt2-200", "batch", "memit-100", {"success_rate": 0.95}, {})]


def open_to_all() -> list[Gate]:
    """Return those that any experiment of a mode may reach; they name none."""
    kept = {"success_retain_rate": 0.9}, {"drawdown_points": 5.0}
    single = {"success_rate": 0.99, "generalization_rate": 0.9, "locality": 0.95}
    return [Gate("cora", "gcn", "successive", "", *kept), Gate("language", "gpt2", "batch", "", single, {})]


def reached_by(gate: Gate) -> str:
    """Return which experiments of a mode stay within limits, and which do not."""
    mine = [g for g in groups(gate.domain) if (g.model, g.mode) == (gate.model, gate.mode) and g.finished]
    if gate.domain == "language":  # the limits are about single edits
        mine = [g for g in mine if g.finished[0]["edits"] == 1]
    names = {met: ", ".join(f"`{g.experiment}`" for g in mine if gate.met(g) is met) for met in (True, False)}
    where = f"{gate.domain}, `{gate.model}`, {gate.mode}"
    return f"* {where}: {gate.asked()}. Reached by {names[True] or 'none'}; not by {names[False] or 'any other'}."


def section() -> str:
    """Return the section of the page about all editors."""
    known = {
        (g.domain, g.model, g.mode, g.experiment): g for d in ("cora", "cifar", "mnist", "language") for g in groups(d)
    }
    rows, met, measured = [], 0, 0
    for gate in gates():
        group = known.get((gate.domain, gate.model, gate.mode, gate.experiment))
        if group is None or not group.finished:
            figures, word = "not measured", "–"
        else:
            figures = ", ".join(
                f"{MEASURES[key][1] * group.mean(key):.{1 if MEASURES[key][1] > 1 else 2}f}"
                for key in (*gate.least, *gate.most)
            )
            word = "yes" if gate.met(group) else "**no**"
            met, measured = met + gate.met(group), measured + 1
        seeds = 0 if group is None else len(group.finished)
        where = f"{gate.domain}, `{gate.model}`, {gate.mode}"
        rows.append([where, f"`{gate.experiment}`", gate.asked(), figures, seeds, word])
    head = ["where", "experiment", "asked (%, points)", "reached", "seeds", "met"]
    return f"""## What was set beforehand

Limits that were written down before the methods were: means over the seeds. Of those about one experiment
{met} of {measured} are met.

{markdown.table(head, rows)}

Others leave open which editor reaches them (%, points):

{chr(10).join(map(reached_by, open_to_all()))}"""
