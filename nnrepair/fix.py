"""`fix`: copy the model, let a method propose a change, and measure what it proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from nnrepair import sequence
from nnrepair.judge import judge, propose, watch
from nnrepair.methods.base import Method, named
from nnrepair.methods.trainable import Editor
from nnrepair.network import private_copy
from nnrepair.request import Request
from nnrepair.results.failed import RepairFailed
from nnrepair.results.history import History
from nnrepair.results.result import RepairResult
from nnrepair.spec.edits import Edits
from nnrepair.spec.network import unwrapped
from nnrepair.spec.problem import check_model
from nnrepair.spec.running import required_seed, undisturbed
from nnrepair.spec.scores import Output, Scores, scored


@overload
def fix(
    model: nn.Module,
    edits: Any,
    locality_set: Any = None,
    *,
    output: Output | None = None,
    method: str | Method = "auto",
    mode: Literal["batch"] = "batch",
    edit_scope: Any = None,
    test_set: Any = None,
    throw: bool = True,
    progress: bool = False,
    seed: int | None = None,
) -> RepairResult: ...


@overload
def fix(
    model: nn.Module,
    edits: Any,
    locality_set: Any = None,
    *,
    output: Output | None = None,
    method: str | Method = "auto",
    mode: Literal["independent", "successive"],
    batch_size: int = 1,
    rehearsal: bool | int | None = None,
    resume: str | Path | None = None,
    edit_scope: Any = None,
    test_set: Any = None,
    throw: bool = True,
    progress: bool = False,
    seed: int | None = None,
) -> History: ...


def fix(
    model: nn.Module,
    edits: Any,
    locality_set: Any = None,
    *,
    output: Output | None = None,
    method: str | Method = "auto",
    mode: Literal["batch", "independent", "successive"] = "batch",
    batch_size: int = 1,
    rehearsal: bool | int | None = None,
    resume: str | Path | None = None,
    edit_scope: Any = None,
    test_set: Any = None,
    throw: bool = True,
    progress: bool = False,
    seed: int | None = None,
) -> RepairResult | History:
    """Return a new network in which the edits hold, the locality set stays, and the change is small.

    Example:
        >>> import nnrepair
        >>> result = nnrepair.fix(model, (mistakes, labels), locality_set=kept)  # doctest: +SKIP
        >>> result.report.success_rate  # doctest: +SKIP
        1.0
        >>> history = nnrepair.fix(model, edits, kept, mode="successive", resume="run.safetensors")  # doctest: +SKIP
        >>> history.success_retain_rate  # doctest: +SKIP
        1.0

    Args:
        model: any module; it is left untouched, bit for bit, with its mode, dtype, device and gradients. Of what
            torch.compile or nn.DataParallel returned, the network inside is repaired and returned: wrap it again.
        edits: `Edits(inputs, labels)`, `Edits(inputs, criterion)`, a pair (inputs, labels), or a `TensorDataset`.
            Inputs may be `Segments` or `Polygons`: each label or condition is then about every point of its region.
            `Edits(..., neighbours=...)` names points that a repair should reach too, without having to.
        locality_set: points that must stay: inputs, a pair (inputs, labels), or a `LocalitySet`. With labels, points
            that the model gets wrong are free and drawdown is measured. `Segments` or `Polygons` with labels are kept
            at every point of them.
        output: which part of what the model returns are the scores: a name, a place in a tuple, or a function that
            makes one tensor (points, ...) of it. By default the tensor that it returns, or "logits", or the only part
            that can be scores; where several can, an error names them.
        method: "auto", another name from `nnrepair methods`, or a `Method` such as `MinimalNorm(layer="fc2")`.
        mode: "batch" repairs all edits at once and returns a `RepairResult`. "independent" repairs each from the
            original network, to measure a method; "successive" repairs each from the last network, as mistakes come in;
            both return a `History`. What is to stay is what the original network says, at every step.
        batch_size: edits per step, for the latter two.
        rehearsal: for mode="successive", whether every step is also asked for the past edits; a number takes at most
            that many of them, drawn anew for each step; None leaves it to the method (most take all). Without
            rehearsal earlier edits are soon forgotten.
        resume: a file (.safetensors) in which the latter two store their progress, atomically; a call with the same
            network, arguments and versions goes on from there. Where a disk fills up, the run goes on without.
        edit_scope: points that the edits should generalise to; measured, never trained on. (Those that a method may
            work towards are `Edits(..., neighbours=...)`.)
        test_set: points that the method never sees, on which drawdown and unchanged decisions are measured: inputs, a
            pair (inputs, labels), or a dictionary of several, by name.
        throw: raise `RepairFailed` (with the full result) when not every edit holds; False returns the result.
        progress: show a progress bar on stderr.
        seed: for methods that draw random numbers; the global random state is never touched.

    Raises:
        InvalidInput: model, edits, locality set, method or mode cannot be used, or `resume` is the progress of another
            run or cannot be written; the message says what to do.
        PatchError: `resume` is damaged.
        UnsupportedModel: the model is random in eval mode, or its points influence each other.
        RepairFailed: not every edit holds, and `throw` is set.
    """
    chosen = named(method)
    seed = None if seed is None else required_seed(seed)
    edits = Edits.coerce(edits)
    rehearsal = chosen.capabilities.rehearsal if rehearsal is None else rehearsal
    sequence.check(chosen, mode, len(edits), batch_size, rehearsal, resume)

    request = Request(edits, locality_set, edit_scope, chosen, seed, progress and mode == "batch")
    result: RepairResult | History
    with undisturbed(seed):
        check_model(model)
        model = unwrapped(model)
        if isinstance(chosen, Editor):
            chosen.refuse_another(model)
        private = scored(private_copy(model), edits.inputs, output)
        if isinstance(private, Scores):
            model = private.of(model)
        posed = request.pose(private)
        watched = watch(posed.problem, test_set)
        if mode == "batch":
            before = posed.held()
            proposal, seconds = propose(posed, chosen, before)
            result = judge(model, posed, proposal, before, seconds, chosen, watched)
        else:
            result = sequence.Sequence(
                original=model,
                private=private,
                request=request,
                whole=posed,
                watched=watched,
                seeded=lambda: undisturbed(seed),
                mode=mode,
                batch_size=batch_size,
                rehearsal=rehearsal,
                resume=None if resume is None else Path(resume),
                progress=progress,
            ).run()
    if throw and not result.outcome.ok:
        raise RepairFailed(result)
    return result
