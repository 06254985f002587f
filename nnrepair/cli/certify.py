"""`nnrepair certify`: have a certificate checked by the independent program that knows its kind."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnrepair.cli.waiting import waiting
from nnrepair.errors import InvalidInput
from nnrepair.results import checkers

_FILES = ("certificate", "network", "property", "repaired")


def run(arguments: argparse.Namespace) -> int:
    """Run the checker on the files, print what it says, and return its exit code."""
    try:
        kind = checkers.kind_of(arguments.certificate)
        files = _files(arguments, kind)
    except InvalidInput as error:
        print(f"nnrepair: error: {error}", file=sys.stderr)
        return checkers.UNREADABLE
    with waiting(f"checking {arguments.certificate}"):
        done = checkers.run(kind, arguments.certificate, *files)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


def _files(arguments: argparse.Namespace, kind: checkers.Kind) -> list[str | Path]:
    """Return what the checker of this kind is given besides the certificate."""
    proof, network, property_, repaired = (getattr(arguments, name) for name in _FILES)
    if kind == "property" and (property_ is None or repaired is not None):
        raise InvalidInput(f"{proof} is about a property. Expected: nnrepair certify {proof} NETWORK PROPERTY")
    if kind == "minimality" and property_ is not None:
        raise InvalidInput(f"{proof} is about a repair. Expected: nnrepair certify {proof} BASE --repaired REPAIRED")
    if kind == "comparison" and (property_ is not None or repaired is None):
        raise InvalidInput(f"{proof} is about two networks. Expected: nnrepair certify {proof} BEFORE --repaired AFTER")
    for path in (network, property_, repaired):
        if path is not None and not path.is_file():
            raise InvalidInput(f"There is no file {str(path)!r}.")
    if kind == "property":
        return [network, property_]
    if kind == "comparison":
        return [network, repaired]
    return [network] if repaired is None else [network, "--repaired", repaired]
