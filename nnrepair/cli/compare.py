"""`nnrepair compare`: what stays the same between two networks, over a region's volume; or whether they agree."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnrepair.cli.options import Outputs, require_places
from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.verify import Comparison, Equivalence, compare, equivalent
from nnrepair.verify.comparing.regions import boxes_of

EXIT_CODES = {"holds": 0, "violated": 1, "unknown": 2}


def run(arguments: argparse.Namespace) -> int:
    """Compare two networks, and return the exit code."""
    if not arguments.timeout > 0:
        raise InvalidInput(f"--timeout is {arguments.timeout:g}; expected seconds, more than 0.")
    before, after, region = arguments.before, arguments.after, arguments.region
    asked = [path for path in (arguments.certificate, arguments.report, arguments.page) if path is not None]
    require_places([before, after, region, *arguments.outside], asked)
    if arguments.page is not None and arguments.page.suffix != ".html":
        raise InvalidInput(f"--page {arguments.page.name}: a page about a comparison is written as .html.")
    if arguments.tolerance is not None or arguments.margin is not None:
        return _agree(arguments)
    found = compare(
        before,
        after,
        region,
        decision="argmin" if arguments.lowest else "argmax",
        outside=[box for path in arguments.outside for box in boxes_of(path)],
        timeout=arguments.timeout,
        certificate=arguments.certificate is not None,
        progress=not arguments.quiet and sys.stderr.isatty(),
    )
    outputs = Outputs(str(found))
    _certificate(arguments, found, outputs)
    if arguments.report is not None:
        text = json.dumps(_report(found), indent=2) + "\n"
        outputs.write(arguments.report, "report", lambda path: write_atomically(path, text.encode()))
    if arguments.page is not None:
        outputs.write(arguments.page, "page", lambda path: found.save_page(path, **_told(arguments, found)))
    return outputs.tell(1 if found.changed else 0, arguments.quiet)


def _told(arguments: argparse.Namespace, found: Comparison) -> dict[str, Any]:
    """Return what a page says of the files."""
    outside = f", outside of {', '.join(path.name for path in arguments.outside)}" if arguments.outside else ""
    about = f"{arguments.before} and {arguments.after} over {arguments.region}{outside}."
    told: dict[str, Any] = {"title": f"What stayed the same in {arguments.after.name}", "about": about}
    if arguments.certificate is None:
        return told | {"unchecked": "No certificate was asked for: --certificate FILE writes one."}
    return told | ({} if found.certificate is None else {"commands": [_check(arguments, arguments.certificate)]})


def _check(arguments: argparse.Namespace, proof: Path) -> str:
    """Return the command that checks a certificate."""
    command = ["nnrepair", "certify", str(proof), str(arguments.before), "--repaired", str(arguments.after)]
    return shlex.join(command)


def _agree(arguments: argparse.Namespace) -> int:
    """Say whether two networks agree on every point of a region, and return the exit code."""
    if arguments.outside or arguments.report is not None or arguments.page is not None:
        raise InvalidInput(
            "--outside, --report and --page are about shares of a volume; leave out --tolerance and --margin."
        )
    found = equivalent(
        arguments.before,
        arguments.after,
        arguments.region,
        tolerance=arguments.tolerance,
        decision="argmin" if arguments.lowest else "argmax",
        margin=arguments.margin or 0,
        timeout=arguments.timeout,
        certificate=arguments.certificate is not None,
        progress=not arguments.quiet and sys.stderr.isatty(),
    )
    outputs = Outputs(str(found))
    _certificate(arguments, found, outputs)
    return outputs.tell(EXIT_CODES[found.verdict], arguments.quiet)


def _certificate(arguments: argparse.Namespace, found: Comparison | Equivalence, outputs: Outputs) -> None:
    """Write the certificate, if it was asked for."""
    if arguments.certificate is not None and found.certificate is not None:
        proof = outputs.write(arguments.certificate, "certificate, not yet checked", found.certificate.save)
        if proof is not None:
            outputs.lines.append(f"check it: {_check(arguments, proof)}")
    elif arguments.certificate is not None:
        outputs.lines.append(f"not written: {arguments.certificate}")
        if arguments.quiet:  # a file that was asked for is missing: --quiet does not hide that
            print(outputs.lines[-1], file=sys.stderr)


def _report(found: Comparison) -> dict[str, object]:
    """Return what there is to say as plain JSON; shares are exact fractions, as text."""
    return {
        "identical": str(found.identical),
        "same": str(found.same),
        "changed": str(found.changed),
        "volume": str(found.volume),
        "boxes": found.boxes,
        "cpu_seconds": found.cpu_seconds,
        "history": [asdict(moment) for moment in found.history],
        "witnesses": [
            {"input": w.input.tolist(), "before": w.before.tolist(), "after": w.after.tolist(), "replayed": w.replayed}
            for w in found.witnesses
        ],
    }
