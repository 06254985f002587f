"""Write docs/results-properties.md and the checker's lines in docs/results.md from the committed result files alone."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nnrepair.files import write_atomically
from nnrepair.results import markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
HARDEST = {("3_3", "2"), ("4_2", "2")}
Row = dict[str, Any]


def _file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return loaded


def _rows(name: str) -> list[Row]:
    rows: list[Row] = _file(name)["rows"]
    return rows


def _total(rows: Iterable[Row], key: str) -> float:
    return float(sum(row.get(key, 0) for row in rows))


def _wrong(rows: Iterable[Row]) -> int:
    return sum(row["verdict"] not in (row["expected"], "unknown") for row in rows)


def acas() -> dict[str, Any]:
    """Return the totals over the 186 instances."""
    rows = _rows("acas.json")
    proved = [row for row in rows if row["verdict"] == "holds"]
    rest = [row for row in rows if (row["network"], row["property"]) not in HARDEST]
    return {
        "rows": rows,
        "proved": proved,
        "solved": sum(row["verdict"] == row["expected"] for row in rows),
        "wrong": _wrong(rows),
        "cpu": _total(rows, "cpu_seconds"),
        "rest": _total(rest, "cpu_seconds"),
        "median": statistics.median(row["cpu_seconds"] for row in rows),
        "slowest": max(rows, key=lambda row: row["wall_seconds"]),
        "accepted": sum(row.get("recheck") == "accepted" for row in proved),
        "recheck": _total(proved, "recheck_cpu_seconds"),
        "proved_cpu": _total(proved, "cpu_seconds"),
        "bytes": _total(proved, "certificate_bytes"),
    }


def by_property() -> str:
    """One row for each of the ten properties."""
    rows = _rows("acas.json")
    out = []
    for number in sorted({row["property"] for row in rows}, key=int):
        mine = [row for row in rows if row["property"] == number]
        verdicts = Counter(row["verdict"] for row in mine)
        proved = [row for row in mine if row["verdict"] == "holds"]
        out.append(
            [
                f"phi_{number}",
                *(verdicts[v] for v in ("holds", "violated", "unknown")),
                _wrong(mine),
                f"{_total(mine, 'cpu_seconds'):.2f}",
                f"{max(row['cpu_seconds'] for row in mine):.2f}",
                f"{_total(mine, 'boxes'):.0f}",
                f"{_total(proved, 'recheck_cpu_seconds'):.2f}",
                f"{sum(row.get('recheck') == 'accepted' for row in proved)} of {len(proved)}",
                f"{_total(proved, 'certificate_bytes') / 1024:.0f}",
            ]
        )
    head = "property|holds|violated|unknown|wrong|CPU s|slowest CPU s|boxes|recheck CPU s|accepted|certificates KiB"
    return markdown.table(head.split("|"), out)


def slowest(count: int = 15) -> str:
    """The instances that took longest."""
    rows = sorted(_rows("acas.json"), key=lambda row: -row["cpu_seconds"])[:count]
    shown: Callable[[Row], list[object]] = lambda row: [  # noqa: E731
        f"N_{{{row['network'].replace('_', ',')}}} phi_{row['property']}",
        row["verdict"],
        f"{row['cpu_seconds']:.2f}",
        row["boxes"],
        row.get("nodes", "–"),
        row.get("certificate_bytes", "–"),
        f"{row['recheck_cpu_seconds']:.2f}" if "recheck_cpu_seconds" in row else "–",
    ]
    head = ["instance", "verdict", "CPU s", "boxes", "nodes", "certificate bytes", "recheck CPU s"]
    return markdown.table(head, map(shown, rows))


def plain() -> dict[str, Any]:
    """Return how the checker compares with plain search on the easier half."""
    rows = _rows("acas-plain.json")
    both = [r for r in rows if r["plain_verdict"] == r["verdict"]]
    proved = [r for r in both if r["verdict"] == "holds"]
    return {
        "rows": rows,
        "unsolved": len(rows) - len(both),
        "boxes": _total(rows, "plain_boxes") / max(_total(rows, "boxes"), 1),
        "cpu": _total(rows, "plain_cpu_seconds") / _total(rows, "cpu_seconds"),
        "proved": len(proved),
        "proved_boxes": _total(proved, "plain_boxes") / max(_total(proved, "boxes"), 1),
        "proved_cpu": _total(proved, "plain_cpu_seconds") / _total(proved, "cpu_seconds"),
    }


def without() -> str:
    """The two hardest with and without optimised slopes."""
    rows = _rows("acas-without.json")
    return markdown.table(
        ["instance", "improvement steps", "verdict", "boxes", "CPU s"],
        [
            [
                f"N_{{{row['network'].replace('_', ',')}}} phi_{row['property']}",
                row["steps"],
                row["verdict"],
                row["boxes"],
                f"{row['cpu_seconds']:.1f}",
            ]
            for row in rows
        ],
    )


def images(file: str = "images.json") -> str:
    """One row for each network and radius."""
    rows = [row for row in _rows(file) if row["correct"]]
    out = []
    for name, radius in dict.fromkeys((row["network"], row["radius"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["radius"]) == (name, radius)]
        verdicts = Counter(row["verdict"] for row in mine)
        out.append(
            [
                name,
                f"{radius:.4g}",
                len(mine),
                *(verdicts[v] for v in ("holds", "violated", "unknown")),
                sum(row["plain_proved"] for row in mine),
                sum(row["plain_proved"] or row["verdict"] == "violated" for row in mine),
                f"{statistics.median(row['cpu_seconds'] for row in mine):.2f}",
            ]
        )
    head = "network|radius|images|holds|violated|unknown|plain CROWN proves|plain and attack solve|median CPU s"
    return markdown.table(head.split("|"), out)


def marabou() -> str:
    """Marabou's answers beside the checker's on the same images."""
    ours = {(row["network"], row["radius"], row["image"]): row for row in _rows("images-hundred.json")}
    rows = _rows("images-marabou.json")
    out = []
    for name, radius in dict.fromkeys((row["network"], row["radius"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["radius"]) == (name, radius)]
        beside = [ours[name, radius, row["image"]] for row in mine]
        both = {frozenset((a["verdict"], b["verdict"])) for a, b in zip(mine, beside, strict=True)}
        out.append([name, f"{radius:.4g}", len(mine)])
        for some in (beside, mine):
            counts = Counter(row["verdict"] for row in some)
            out[-1] += [" / ".join(str(counts[v]) for v in ("holds", "violated", "unknown"))]
            out[-1] += [f"{statistics.median(row['cpu_seconds'] for row in some):.2f}"]
        out[-1].append("none" if frozenset(("holds", "violated")) not in both else "yes")
    head = ["network", "radius", "images", "checker: holds / violated / unknown", "median CPU s"]
    return markdown.table([*head, "Marabou: the same", "median CPU s", "conflicts"], out)


def soundness() -> str:
    """Counts of the campaign against exact answers."""
    rows = _rows("soundness.json")
    out = []
    for split in sorted({row["split"] for row in rows}):
        mine = [row for row in rows if row["split"] == split]
        counts: Counter[tuple[str, str, str]] = Counter()
        for row in mine:
            for key, count in row["counts"].items():
                true, answered = key.split(": ")[1].split(" -> ")
                verdict, near = true.split(" (")
                counts[verdict, near.rstrip(")"), answered] += count
        certificates: Counter[str] = Counter()
        for row in mine:
            certificates.update(row["certificates"])
        for verdict in ("holds", "violated"):
            for near in ("clear", "narrow", "tie"):
                answers = {a: n for (v, x, a), n in counts.items() if (v, x) == (verdict, near)}
                if answers:
                    out.append([split, verdict, near, *(answers.get(a, 0) for a in ("holds", "violated", "unknown"))])
    return markdown.table(["split", "exact answer", "how clearly", "holds", "violated", "unknown"], out)


def layers() -> str:
    """Counts of the campaign against 40 digits, by kind of layer."""
    counts: Counter[str] = Counter()
    for row in _rows("layers.json"):
        counts.update(row["counts"])
    kinds = {name: n for name, n in counts.items() if not name.startswith("verdict ") and name != "informative"}
    wrong = sum(len(row["wrong"]) for row in _rows("layers.json"))
    verdicts = ", ".join(f"{counts[f'verdict {v}']} {v}" for v in ("holds", "violated", "unknown"))
    return (
        f"{sum(kinds.values())} boxes of {sum(row.get('networks', 36) for row in _rows('layers.json'))} networks, "
        f"{counts['informative']} with finite linear bounds; **{wrong} wrong**. Verdicts: {verdicts}. By what is "
        f"between the matrices: {', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items()))}."
    )


def heldout() -> dict[str, Any]:
    """Return the verdicts of both sides on the random properties."""
    ours, other = ({row["property"]: row for row in _rows(f"heldout-{who}.json")} for who in ("checker", "plain"))
    both = sorted(ours.keys() & other.keys())
    pairs = Counter((ours[k]["verdict"], other[k]["verdict"]) for k in both)
    return {
        "count": len(both),
        "contradictions": pairs["holds", "violated"] + pairs["violated", "holds"],
        "ours": Counter(ours[k]["verdict"] for k in both),
        "plain": Counter(other[k]["verdict"] for k in both),
        "alone": pairs["holds", "unknown"],
        "cpu": _total((ours[k] for k in both), "cpu_seconds"),
        "plain_cpu": _total((other[k] for k in both), "cpu_seconds"),
        "limits": sorted({other[k]["limit"] for k in both}),
        "limit": sorted({ours[k]["limit"] for k in both}),
    }


def deadlines() -> str:
    """Return in one sentence whether time limits were kept."""
    rows = _rows("deadlines.json")
    late = sum(row["late"] for row in rows)
    clocks = " and ".join(sorted({"CPU" if row["clock"] == "cpu" else "wall" for row in rows}))
    limits = ", ".join(f"{v:g}" for v in sorted({row["limit"] for row in rows}))
    over = max(row["cpu_seconds" if row["clock"] == "cpu" else "wall_seconds"] - row["limit"] for row in rows)
    return (
        f"{len(rows)} random networks and properties with limits of {limits} s of {clocks} time: {late} late\n"
        f"(more than 20 % and one second over), the worst {over:+.2f} s."
    )


def competition() -> dict[str, Any]:
    """Return the verdicts on instances of VNN-COMP beside the published ones, by benchmark and one by one."""
    rows = _rows("vnncomp.json")
    counted, unsolved = [], []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        mine = [row for row in rows if row["benchmark"] == name]
        solved = [row for row in mine if row["verdict"] in ("holds", "violated")]
        said = Counter(row["verdict"] for row in mine)
        times = [f"{statistics.median(row['cpu_seconds'] for row in solved):.2f}"] if solved else ["–"]
        counted.append([name, len(mine), *(said[v] for v in ("holds", "violated", "unknown", "error")), *times])
    for row in rows:
        if row["verdict"] not in ("holds", "violated"):
            published = f"{row['published']}, {row['tools_agreeing']} tool{'s' * (row['tools_agreeing'] > 1)}"
            reason = " ".join(row["reason"].split())
            unsolved.append([row["benchmark"], row["property"], published, f"{row['cpu_seconds']:.0f}", reason])
    said = Counter(row["verdict"] for row in rows)
    return {
        "rows": rows,
        "said": said,
        "wrong": sum(row["verdict"] in ("holds", "violated") and row["verdict"] != row["published"] for row in rows),
        "limit": "/".join(f"{v:g}" for v in sorted({row["limit"] for row in rows})),
        "clock": "/".join(sorted({"CPU" if row["clock"] == "cpu" else "wall" for row in rows})),
        "cpu": _total(rows, "cpu_seconds"),
        "over": max(max(0.0, row["cpu_seconds"] - row["limit"]) for row in rows),
        "replayed": sum("onnxruntime" in row["replayed"] for row in rows),
        "counted": markdown.table(
            ["benchmark", "instances", "holds", "violated", "unknown", "refused", "median CPU s of solved"], counted
        ),
        "unsolved": markdown.table(["benchmark", "property", "published", "CPU s", "why not here"], unsolved),
    }


def repairs() -> str:
    """Return what the repairs of ACAS Xu cost, made anew."""
    rows = _rows("repairs.json")
    asked, proved = sum(len(row["repaired"]) for row in rows), 0
    for row in rows:
        proved += len(set(row["repaired"]) & set(row["proved"]))
    lost, slowest = sum(len(row["lost"]) for row in rows), max(rows, key=lambda row: row["cpu_seconds"])
    return (
        f"{asked} violated instances on {len(rows)} networks, those of a network together; what holds there is kept: "
        f"{proved} repaired with a certificate that `verification/check.py` accepted, {lost} properties lost, "
        f"**{_total(rows, 'cpu_seconds'):.0f} CPU s** for the repairs with their own checks and proofs, median "
        f"{statistics.median(row['cpu_seconds'] for row in rows):.1f}, most {slowest['cpu_seconds']:.1f} "
        f"({slowest['unit']})."
    )


def told() -> list[str]:
    """Return the checker's lines for docs/results.md."""
    a, v = acas(), competition()
    return [
        f"- All {len(a['rows'])} ACAS Xu instances of VNN-COMP checked over their whole regions: {a['solved']} solved, "
        f"{a['wrong']} wrong, {a['cpu']:.0f} CPU s in all, median {a['median']:.2f} s; {a['accepted']} of "
        f"{len(a['proved'])} proofs accepted by the independent checker ([results](results-properties.md)).",
        f"- {len(v['rows'])} instances of {len({row['benchmark'] for row in v['rows']})} other benchmarks of VNN-COMP: "
        f"{v['said']['holds'] + v['said']['violated']} solved within {v['limit']} s of {v['clock']} time each, "
        f"{v['wrong']} answered otherwise than published, {v['said']['unknown']} unknown, "
        f"{v['said']['error']} refused.",
    ]


def write() -> None:
    """Write docs/results-properties.md."""
    write_atomically(ROOT / "docs" / "results-properties.md", page().encode())


def page() -> str:
    """Return docs/results-properties.md."""
    file, a, p, h, v = _file("acas.json"), acas(), plain(), heldout(), competition()
    about = ", ".join(f"{k} {v}" for k, v in file["versions"].items())
    campaign = _rows("soundness.json")
    cases, disagreements = sum(r["cases"] for r in campaign), sum(len(r["disagreements"]) for r in campaign)
    certificates: Counter[str] = Counter()
    for row in campaign:
        certificates.update(row["certificates"])
    return f"""# Checking properties: results

Generated by `python -m benchmarks table` from `benchmarks/verify/results/*.json`. Measured on {file["machine"]},
Python {file["python"]}, {about}, one thread. CPU seconds on this machine drift by up to
a factor of two: trust ratios.

## The 186 ACAS Xu instances of VNN-COMP

One process, one after the other, float64 with every rounding error bounded, limit 116 s each; start-up is not counted.
{a["solved"]} of {len(a["rows"])} solved, {a["wrong"]} wrong (against the agreement of the competition's tools),
**{a["cpu"]:.1f} CPU s** in all, {a["rest"]:.1f} without the two hardest (N_{{3,3}} and N_{{4,2}} with phi_2), median
{a["median"]:.3f}, slowest {a["slowest"]["wall_seconds"]:.1f} s of wall time. {a["accepted"]} of {len(a["proved"])}
proofs were accepted by `verification/check.py`, in {a["recheck"]:.1f} CPU s for what took {a["proved_cpu"]:.1f} to
find; the certificates have {a["bytes"] / 1024:.0f} KiB together. Every counterexample was replayed by the network,
onnxruntime and rational arithmetic.

{by_property()}

The slowest:

{slowest()}

### What optimised slopes gain

On the two hardest, failing boxes have few unstable ReLUs, and the linear program over all single-neuron relaxations
would prove nearly all of them at once. A few steps that optimise the lower slopes for the one row that is being proved
come close to it, at the price of a few backward passes:

{without()}

### Against plain search

The easier half ({len(p["rows"])} instances by the checker's CPU time), each beside a plain search: CROWN bounds,
longest edge (in units of the property's box), no clipping, no attack but box centres
(`benchmarks/verify/exhaustive.py`), limit 20 s. Plain search left {
        p["unsolved"]
    } of them unsolved within its limit; counting what it used until then, it took
**{p["boxes"]:.0f} times the boxes and {p["cpu"]:.1f} times the CPU time**. On the {p["proved"]} that both prove:
{p["proved_boxes"]:.1f} times the boxes, {p["proved_cpu"]:.1f} times the CPU time; most of these need a handful of
boxes, where the checker's time is that of its attack.

### Repairs made anew

`benchmarks/verify/repairs.py` repairs again what is [repaired and measured elsewhere](acas-xu.md), for the time alone:
{repairs()}

## Other benchmarks of VNN-COMP

{len(v["rows"])} instances of {len({row["benchmark"] for row in v["rows"]})} benchmarks, drawn beforehand, at most
{v["limit"]} s of {v["clock"]} time each, one at a time (`benchmarks/verify/vnncomp.py`, which runs
`nnrepair check --suite`): {v["said"]["holds"]} hold, {v["said"]["violated"]} are violated, {v["said"]["unknown"]} stay
unknown, {v["said"]["error"]} refused; **{v["wrong"]} answered otherwise** than most of the competition's tools.
onnxruntime finds {v["replayed"]} of the {v["said"]["violated"]} counterexamples unsafe, too. {v["cpu"]:.0f} CPU s in
all; limits were exceeded by {v["over"]:.2f} s at most.

{v["counted"]}

What is not solved:

{v["unsolved"]}

## Held out: random properties

{h["count"]} random properties on the 45 networks (boxes and output conditions drawn at random, thresholds near the
sampled extreme), against plain search with an attack; limits {"/".join(f"{v:g}" for v in h["limit"])} s and
{"/".join(f"{v:g}" for v in h["limits"])} s of wall time. **{h["contradictions"]} contradictions.**

{
        markdown.table(
            ["", "holds", "violated", "unknown", "CPU s"],
            [
                ["checker", *(h["ours"][v] for v in ("holds", "violated", "unknown")), f"{h['cpu']:.0f}"],
                ["plain", *(h["plain"][v] for v in ("holds", "violated", "unknown")), f"{h['plain_cpu']:.0f}"],
            ],
        )
    }

{h["alone"]} of the checker's "holds" are not confirmed by the plain search, which ended unknown on them.

## Soundness campaign

{cases} runs on small random networks (ties, degenerate boxes, zero, huge and tiny weights, kinks at corners,
conjunctions and disjunctions, convolutions, pooling, residuals) against exact answers in rational arithmetic:
**{disagreements} disagreements.** "Narrow": the verdict would flip if a bound moved by a millionth. Certificates:
{", ".join(f"{n} {name}" for name, n in sorted(certificates.items()))}; the independent checker reads fully connected
chains only, and "refused" proofs are sound verdicts that it could not follow to the end.

{soundness()}

## Every layer and activation

Small random networks with smooth activations, jumps, products, softmax, normalisation and so on, on boxes of all sizes:
bounds by intervals and by lines against exact values of 40 digits, at corners and random points; for every network also
a verdict on a threshold near the least value, by either search (`benchmarks/verify/layers.py`).

{layers()}

## Time limits

{deadlines()}

## Images

All pixels may change by the radius; splits of ReLUs, 5 s of wall time for each image. The convolutional networks are
small (two strided convolutions, two linear layers) and trained by the benchmark itself, the CIFAR one on 4000 images
only. "Plain CROWN" is one bound without splits and without optimised slopes.

{images()}

The fully connected networks with units tried before each split, 5 s of CPU time for each image, as wall time says
little on a busy machine; as far as that was run (`python -m benchmarks.verify.images hundred` goes on):

{images("images-hundred.json")}

Marabou 2.0 (Wu et al., CAV 2024) on the first of these images, 5 s of wall time each, on the same machine beside other
work (`benchmarks/verify/marabou.py`); as its wheel has it, with its own LP solver and default options, one query for an
image:

{marabou()}

Beyond these radii most answers are `unknown`. Proofs that split ReLUs have no certificate.
"""
