"""`nnrepair check`: does a network satisfy a VNN-LIB property, or each property of a list?"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib

from nnrepair.cli.model_file import ModelFile
from nnrepair.cli.options import Outputs, require_device, require_places
from nnrepair.errors import InvalidInput, first_line
from nnrepair.extras import needed
from nnrepair.files import write_atomically
from nnrepair.verify import CheckResult, check
from nnrepair.verify.suite import vnncomp
from nnrepair.verify.suite.suite import run_suite

EXIT_CODES = {"holds": 0, "violated": 1, "unknown": 2, "error": 3}
_SINGLE = ("certificate", "vnncomp")
_SUITE = ("out", "jobs", "dask", "resume", "certificates", "expect")


def run(arguments: argparse.Namespace) -> int:
    """Check one property or a suite, and return the exit code."""
    is_suite = arguments.suite is not None
    wrong = [f"--{name}" for name in (_SINGLE if is_suite else _SUITE) if getattr(arguments, name) is not None]
    if is_suite and (arguments.model is not None or wrong):
        raise InvalidInput(
            f"--suite takes models and properties from the CSV file; leave out {' and '.join(wrong) or 'the others'}."
            + " Proofs of a suite go to --certificates DIR." * ("--certificate" in wrong)
        )
    if not is_suite and (arguments.property is None or wrong):
        raise InvalidInput(
            f"{' and '.join(wrong)} {'belong' if wrong[1:] else 'belongs'} to --suite."
            if wrong
            else "Expected a model and a property (nnrepair check MODEL.onnx PROPERTY.vnnlib), or --suite CSV."
        )
    if arguments.dask is not None and arguments.jobs is not None:
        raise InvalidInput("--dask uses all workers of the cluster; leave out --jobs.")
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise InvalidInput(f"--timeout is {arguments.timeout:g}; expected seconds, more than 0.")
    require_device(arguments.device)
    return _suite(arguments) if is_suite else _single(arguments)


def _single(arguments: argparse.Namespace) -> int:
    model, property_ = arguments.model, arguments.property
    require_places([model, property_], [p for p in (arguments.certificate, arguments.vnncomp) if p is not None])
    if model.suffix == ".pt2" and arguments.certificate is not None:
        raise InvalidInput(
            f"{model}: a certificate is about the bytes of an ONNX file. Write one with nnrepair.onnx.save and check "
            "that, or leave out --certificate."
        )
    with _as_onnx(model) as network:
        result = check(
            network,
            property_,
            timeout=arguments.timeout,
            device=arguments.device,
            certificate=arguments.certificate is not None,
            progress=not arguments.quiet and sys.stderr.isatty(),
            seed=arguments.seed,
        )
    outputs = Outputs(str(result))
    if model.suffix == ".pt2":
        outputs.lines.append(f"{model} was checked as exported to ONNX")
    if arguments.certificate is not None:
        _write_certificate(arguments, result, outputs)
    if arguments.vnncomp is not None:
        timed_out = arguments.timeout is not None and result.wall_seconds >= arguments.timeout
        word = vnncomp.word(result.verdict, timed_out=timed_out)
        found = result.counterexample
        text = vnncomp.result_text(word, None if found is None else (found.exact_input, found.output))
        outputs.write(arguments.vnncomp, "result for VNN-COMP", lambda path: write_atomically(path, text.encode()))
    return outputs.tell(EXIT_CODES[result.verdict], arguments.quiet)


@contextmanager
def _as_onnx(path: Path) -> Iterator[Path]:
    """Yield the ONNX file of a model: itself, or what a .pt2 exports to."""
    if path.suffixes[-1:] == [".onnx"] or path.suffixes[-2:] == [".onnx", ".gz"]:
        yield path
        return
    file = ModelFile.load(path)
    file.refuse_fixed_batch()
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / f"{path.stem}.onnx"
        file.write(file.model, network)
        yield network


def _write_certificate(arguments: argparse.Namespace, result: CheckResult, outputs: Outputs) -> None:
    path = arguments.certificate
    if result.certificate is not None:
        proof = outputs.write(path, "certificate, not yet checked", result.certificate.save)
        if proof is not None:
            command = ["nnrepair", "certify", str(proof), str(arguments.model), str(arguments.property)]
            outputs.lines.append(f"check it: {shlex.join(command)}")
        return
    why = {
        "holds": result.reason or "this proof cannot be written as a certificate",
        "violated": "the property is violated, and the counterexample shows it",
        "unknown": "nothing was proved",
    }
    outputs.lines.append(f"not written: {path}, because {why[result.verdict]}")
    if arguments.quiet:  # a file that was asked for is missing: --quiet does not hide that
        print(outputs.lines[-1], file=sys.stderr)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Let the workers of a dask cluster do what joblib does inside; None: this machine."""
    if address is None:
        yield
        return
    with needed("dask", "--dask needs dask's scheduler"):
        from distributed import Client
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"--dask {address}: no scheduler answers there ({first_line(error)}). Expected what `dask scheduler` says "
            "when it starts, such as tcp://10.0.0.1:8786."
        ) from error
    with client, joblib.parallel_config(backend="dask"):
        yield


def _suite(arguments: argparse.Namespace) -> int:
    out = arguments.out or Path(f"{arguments.suite.stem}-results")
    try:
        with _cluster(arguments.dask):
            result = run_suite(
                arguments.suite,
                out,
                jobs=None if arguments.dask is not None else arguments.jobs or 2,
                timeout=arguments.timeout,
                resume=bool(arguments.resume),
                certificates=arguments.certificates,
                expect=arguments.expect,
                progress=not arguments.quiet,
                device=arguments.device,
                seed=arguments.seed,
            )
    except KeyboardInterrupt:
        print(f"nnrepair: interrupted; {out} keeps what is done; the same with --resume goes on.", file=sys.stderr)
        return EXIT_CODES["error"]
    if result.status == "error" and arguments.quiet:
        print(result, file=sys.stderr)
    if not arguments.quiet:
        print(result)
        if not result.unstored:
            print(f"wrote {out / 'page.html'}, {out / 'results.csv'}, {out / 'summary.json'} and {out / 'instances'}")
    return EXIT_CODES[result.status]
