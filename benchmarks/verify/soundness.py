"""The property checker against exact answers on thousands of small, nasty networks.

`python -m benchmarks.verify.soundness` runs what is missing in results/soundness.json; `--case 17` shows one case.
Half of the cases of cases.py reach the checker as a module and a Property, half as an ONNX file and a VNN-LIB file; of
the latter the certificates are checked by verification/check.py.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks import measure
from benchmarks.verify.cases import KINDS, SEED, Trial, module_at, reference, trial
from nnrepair.verify.property import Box, Conjunction, Property

RESULTS = Path(__file__).parent / "results"
CASES, BLOCK = 2500, 100
#: The checker's two searches; each gets every case.
SPLITS = ("inputs", "relus")
#: Seconds that the checker gets for one case.
LIMIT = 1.0


# ------------------------------------------------------------------------------------------------------------- files


def onnx_bytes(model: nn.Module, shape: Sequence[int]) -> bytes:
    """Write the models of cases.py node by node: torch's exporter takes seconds for each."""
    dtype = next(model.parameters()).dtype
    kind = TensorProto.FLOAT if dtype == torch.float32 else TensorProto.DOUBLE
    nodes: list[Any] = []
    weights: list[Any] = []
    names = (f"v{k}" for k in itertools.count())

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name := next(names)], **attributes))
        return name

    def stored(tensor: Any) -> list[str]:
        if tensor is None:
            return []
        weights.append(numpy_helper.from_array(tensor.detach().numpy(), name := next(names)))
        return [name]

    def emit(m: Any, x: str) -> str:
        if isinstance(m, nn.Sequential):
            return functools.reduce(lambda value, part: emit(part, value), m, x)
        if isinstance(m, reference.Residual):
            return add("Add", x, emit(m.inner, x))
        if isinstance(m, nn.Linear):
            return add("Gemm", x, *stored(m.weight), *stored(m.bias), transB=1)
        if isinstance(m, nn.Conv2d):
            options = {"kernel_shape": m.kernel_size, "strides": m.stride, "pads": [*m.padding, *m.padding]}
            return add("Conv", x, *stored(m.weight), *stored(m.bias), group=m.groups, **options)
        if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d)):
            op = "MaxPool" if isinstance(m, nn.MaxPool2d) else "AveragePool"
            return add(op, x, kernel_shape=[m.kernel_size] * 2, strides=[m.stride] * 2)
        return add({nn.ReLU: "Relu", nn.Flatten: "Flatten"}[type(m)], x)

    output = emit(model, "x")
    outputs = model(torch.zeros(1, *shape, dtype=dtype)).shape[1]
    ends = [helper.make_tensor_value_info("x", kind, [1, *shape])]
    ends.append(helper.make_tensor_value_info(output, kind, [1, outputs]))
    graph = helper.make_graph(nodes, "trial", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return data


# --------------------------------------------------------------------------------------------------------- judgement


def judged(trial: Trial, result: Any) -> str:
    """Return what is wrong with an answer, or nothing."""
    if result.verdict == "violated":
        if result.counterexample is None:
            return "violated without a counterexample"
        x = result.counterexample.exact_input
        if len(x) != trial.network.inputs:
            return f"the counterexample has {len(x)} inputs"
        if not reference.violates(trial.network, trial.property, x):
            return f"the counterexample {[float(v) for v in x]} is none in exact arithmetic"
        if trial.answer.verdict == "holds":
            return "the reference contradicts itself"
    if result.verdict == "holds" and trial.answer.verdict == "violated":
        return f"holds, but {[float(v) for v in trial.answer.witness]} is a counterexample"
    if result.verdict not in ("holds", "violated", "unknown"):
        return f"verdict {result.verdict!r}"
    return ""


def answered(trial: Trial, split: Any, by_file: bool, folder: Path) -> dict[str, str]:
    """Run the checker: its verdict and reason, what is wrong with it, and what became of the certificate."""
    from nnrepair.verify import Options, check, vnnlib

    options = Options(split=split)
    if not by_file:
        result = check(trial.model, trial.property, timeout=LIMIT, options=options)
        return {"verdict": result.verdict, "reason": result.reason, "problem": judged(trial, result)}
    network, text = folder / "network.onnx", folder / "property.vnnlib"
    network.write_bytes(onnx_bytes(trial.model, trial.property.cases[0].box.shape))
    text.write_text(vnnlib.dumps(trial.property))
    if grouped(vnnlib.load(text)) != grouped(trial.property):
        return {"verdict": "error", "reason": "the property does not survive its file", "problem": ""}
    result = check(network, text, timeout=LIMIT, options=options)
    answer = {"verdict": result.verdict, "reason": result.reason, "problem": judged(trial, result)}
    if result.verdict == "holds" and split == "inputs":
        answer["certificate"] = certified(network, text, result, folder / "proof.npz")
    return answer


def grouped(prop: Property) -> dict[Box, set[Conjunction]]:
    """Return the unsafe conjunctions by box: a file does not tell two cases on one box from one."""
    ways: dict[Box, set[Conjunction]] = {}
    for case in prop.cases:
        ways.setdefault(case.box, set()).update(case.unsafe)
    return ways


def certified(network: Path, text: Path, result: Any, path: Path) -> str:
    """Have the independent checker read a certificate."""
    if result.certificate is None:
        return "none"
    result.certificate.save(path)
    independent: Any = module_at("certificate_checker", measure.ROOT / "verification" / "check.py")
    try:
        independent.check(str(path), str(network), str(text))
    except independent.Rejected as refusal:
        return f"rejected: {refusal}"
    except Exception as refusal:  # the network is none that it reads
        return f"unreadable: {refusal}"
    return "accepted"


def run_case(index: int, seed: int, split: str, folder: Path) -> dict[str, Any]:
    """Make and judge one case; a crash is an answer too."""
    start = time.perf_counter()
    case = trial(index, seed)
    made = time.perf_counter()
    row = {"case": index, "kind": case.kind, "true": case.answer.verdict, "nearness": case.answer.nearness}
    try:
        row |= answered(case, split, index // len(KINDS) % 2 == 1, folder)
    except Exception as error:  # a crash must not end the campaign
        reason = "".join(traceback.format_exception_only(error)).strip()
        row |= {"verdict": "error", "reason": reason, "problem": ""}
    return row | {"reference_seconds": made - start, "checker_seconds": time.perf_counter() - made}


def block(first: int, count: int, seed: int, split: str) -> dict[str, Any]:
    """Run a block of cases and return its counts, by kind, truth and verdict, and everything that is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [run_case(index, seed, split, Path(folder)) for index in range(first, first + count)]
    unknown = [r for r in rows if r["verdict"] == "unknown"]
    counts = Counter(f"{r['kind']}: {r['true']} ({r['nearness']}) -> {r['verdict']}" for r in rows)
    return {
        "seed": seed,
        "split": split,
        "first": first,
        "cases": count,
        "counts": dict(sorted(counts.items())),
        "certificates": dict(Counter(r["certificate"].split(":")[0] for r in rows if "certificate" in r)),
        "disagreements": [r for r in rows if r["problem"]],
        "errors": [f"{r['case']}: {r['reason']}" for r in rows if r["verdict"] == "error"],
        "refused_proofs": [
            f"{r['case']}: {r['certificate']}" for r in rows if r.get("certificate", "accepted") != "accepted"
        ],
        "clear_but_unknown": [f"{r['case']}: {r['reason']}" for r in unknown if r["nearness"] == "clear"],
        "reference_seconds": sum(r["reference_seconds"] for r in rows),
        "checker_seconds": sum(r["checker_seconds"] for r in rows),
        "slowest_seconds": max(r["checker_seconds"] for r in rows),
    }


def run(cases: int, seed: int, path: Path) -> list[dict[str, Any]]:
    """Run the blocks that the result file lacks."""
    rows = measure.load(path)
    done = {(r["seed"], r["split"], r["first"]) for r in rows}
    for first, split in itertools.product(range(0, cases, BLOCK), SPLITS):
        if (seed, split, first) in done:
            continue
        answer = measure.measured(functools.partial(block, first, min(BLOCK, cases - first), seed, split))
        rows.append(answer)
        measure.save(path, rows, "small random networks: nnrepair.verify.check against exact answers")
        print(
            first, split, f"{answer['wall_seconds']:.0f} s", len(answer["disagreements"]), "disagreements", flush=True
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return the counts of some blocks as a table, and all that is wrong."""
    total: Counter[str] = Counter()
    certificates: Counter[str] = Counter()
    for row in rows:
        total.update(row["counts"])
        certificates.update(row["certificates"])
    kinds = sorted({key.split(":")[0] for key in total})
    outcomes = sorted({key.split(": ")[1] for key in total})
    table: dict[tuple[str, str], int] = Counter()
    for key, count in total.items():
        kind, outcome = key.split(": ")
        table[kind, outcome] += count
        table["all", outcome] += count
    columns = ["all", *kinds]
    lines = [f"{'true (how clearly) -> answered':34}" + " ".join(f"{kind[:4]:>4}" for kind in columns)]
    lines += [f"{o:34}" + " ".join(f"{table[kind, o] or '.':>4}" for kind in columns) for o in outcomes]
    lines.append(f"{total.total()} cases; certificates: {dict(certificates)}")
    for name in ("disagreements", "errors", "refused_proofs", "clear_but_unknown"):
        found = [str(each) for row in rows for each in row[name]]
        lines += [f"{len(found)} {name}", *found]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify.soundness", description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--case", type=int, help="show and run this one case, writing no result")
    parser.add_argument("--path", type=Path, default=RESULTS / "soundness.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case is None:
        rows = run(arguments.cases, arguments.seed, arguments.path)
        for split in SPLITS:
            print(f"Splitting {split}", summary([row for row in rows if row["split"] == split]), sep="\n")
        return
    case = trial(arguments.case, arguments.seed)
    print(case.model, {n: p.tolist() for n, p in case.model.named_parameters()}, sep="\n")
    for c in case.property.cases:
        print("box", [str(v) for v in c.box.lower], [str(v) for v in c.box.upper])
        for unsafe in c.unsafe:
            print("unsafe", [([str(v) for v in r.coefficients], str(r.bound), r.strict) for r in unsafe])
    with tempfile.TemporaryDirectory() as folder:
        for split in SPLITS:
            print(run_case(arguments.case, arguments.seed, split, Path(folder)))


if __name__ == "__main__":
    main()
