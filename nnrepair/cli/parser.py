"""The commands of `nnrepair`, their options and help. torch is imported only when a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnrepair.extras import installed

#: The exit code of every command where an input cannot be used or an output not be written.
ERROR = 3


#: Commands that take the options of a method beside their own.
WITH_METHOD = ("fix", "prepare")


def command_line(method_options: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.ArgumentParser:
    """Return the parser. What it reads has `command`, the module of this package that runs it.

    Args:
        method_options: adds the options of methods to those of a command: they are read from the methods, which takes
            torch, and so only when such a command runs.
    """
    made = argparse.ArgumentParser(
        prog="nnrepair",
        description="Repair a trained network's known mistakes with the smallest change; prove or measure the rest.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"nnrepair {installed()}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    _demo(_added(commands, "demo", "repair a real digits classifier, prove it, and write a page about it"))
    _classroom(_added(commands, "classroom", "repair digits in a web page of this machine, for a class"))
    fix = _added(commands, "fix", "repair a model file", FIX_FILES + EXIT_CODES)
    _fix(fix)
    prepare = _added(commands, "prepare", "train an editor for a model file", PREPARE_EPILOG)
    _prepare(prepare)
    if method_options is not None:
        method_options(fix)
        method_options(prepare)
    _locate(_added(commands, "locate", "find the layer in which edits would best be made", LOCATE_EPILOG))
    _repair(_added(commands, "repair", "repair a model so that properties hold on whole regions", REPAIR_EPILOG))
    _check(_added(commands, "check", "prove or refute a property of a model on whole regions", CHECK_EPILOG))
    _compare(_added(commands, "compare", "bound what stays the same between two models", COMPARE_EPILOG))
    _check_edits(_added(commands, "check-edits", "count the edits that hold in a model file", CHECK_EDITS_EPILOG))
    _certify(_added(commands, "certify", "have a proof checked by an independent program", CERTIFY_EPILOG))
    _patch(_added(commands, "patch", "show, apply or revert a patch"))
    _added(commands, "methods", "list the methods and what each needs and keeps")
    return made


def _added(commands: Any, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.set_defaults(command=name)
    return made


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("nnrepair-demo.html"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the training; default: %(default)s")


def _classroom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=("digits", "mnist"), help="default: mnist where it is on this machine")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; default: this machine alone")
    parser.add_argument("--port", type=int, default=8080, help="0 takes one that is free; default: %(default)s")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--static", type=Path, metavar="HTML", help="write one recorded lesson as a file, and end")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the training; default: %(default)s")


def _fix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model that makes mistakes: .onnx or .pt2")
    parser.add_argument("--edits", type=Path, required=True, metavar="NPZ", help="the mistakes, with the right labels")
    parser.add_argument("--neighbours", type=Path, metavar="NPZ", help="points to reach too, without having to")
    parser.add_argument("--locality", type=Path, metavar="NPZ", help="points whose decisions must stay")
    parser.add_argument("--scope", type=Path, metavar="NPZ", help="points that should follow; only measured")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the repaired model: .onnx or .pt2")
    parser.add_argument("--method", default="auto", help="its name, or an editor's file; default: %(default)s")
    parser.add_argument("--patch", type=Path, metavar="FILE", help="write the change alone (.safetensors)")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="write the proof of minimality (.npz)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was measured (.json)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page about the repair, for people (.html)")
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="which output is judged: a name (of an .onnx file also an inner value), or its place in a tuple",
    )
    parser.add_argument("--in-place", action="store_true", help="cut an .onnx file in front of --layer (see below)")
    _fixed(parser)
    parser.add_argument("--keep-zeros", action="store_true", help="weights that are zero stay zero")
    parser.add_argument("--test", type=Path, metavar="NPZ", help="points never shown to the method; only measured")
    parser.add_argument(
        "--mode",
        choices=("batch", "successive"),
        default="batch",
        help="all edits at once, or one after another, each from the last network; default: %(default)s",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="edits per step (successive); default: %(default)s")
    parser.add_argument("--no-rehearsal", action="store_true", help="do not ask every step for past edits (successive)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="store progress, and go on from it (successive)")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="for methods that draw random numbers")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model that is to be edited: .onnx or .pt2")
    parser.add_argument("--data", type=Path, required=True, metavar="NPZ", help="labelled points to make exercises of")
    parser.add_argument("--method", required=True, help="one that is trained first, see `nnrepair methods`")
    parser.add_argument("--steps", type=int, default=300, help="of the training; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the editor (.safetensors)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="store progress, and go on from it")
    parser.add_argument("--seconds", type=float, help="when to stop, with what was learned until then")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _locate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model that makes mistakes: .onnx or .pt2")
    parser.add_argument("--edits", type=Path, required=True, metavar="NPZ", help="the mistakes, with the right labels")
    parser.add_argument("--locality", type=Path, required=True, metavar="NPZ", help="points whose decisions must stay")
    parser.add_argument("--layer", nargs="+", metavar="NAME", help="try these alone; default: all with a weight matrix")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice; default: %(default)s")


def _repair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model that violates properties: .onnx")
    parser.add_argument("properties", type=Path, nargs="+", metavar="PROPERTY", help="what is to hold: .vnnlib")
    parser.add_argument(
        "--keep", type=Path, nargs="+", action="extend", default=[], metavar="PROPERTY", help="holds now and is to stay"
    )
    parser.add_argument("--locality", type=Path, metavar="NPZ", help="points whose decisions are to stay")
    parser.add_argument("--lowest", action="store_true", help="the smallest output decides (as in ACAS Xu)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the repaired model: .onnx")
    parser.add_argument("--patch", type=Path, metavar="FILE", help="write the change alone (.safetensors)")
    parser.add_argument("--certificates", type=Path, metavar="DIR", help="write the proofs about the repaired model")
    parser.add_argument("--layer", default="auto", help="last, all or auto; default: %(default)s")
    parser.add_argument("--margin", type=float, help="by how much counterexamples must hold, in output units")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="of each check")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="the model: .onnx or .pt2")
    parser.add_argument("property", type=Path, nargs="?", metavar="PROPERTY", help="what must hold: .vnnlib")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="when to give up; a suite has its own")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the search for counterexamples; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    single = parser.add_argument_group("one property")
    single.add_argument("--certificate", type=Path, metavar="FILE", help="write the proof (.npz)")
    single.add_argument("--vnncomp", type=Path, metavar="FILE", help="write the result as VNN-COMP wants it")
    suite = parser.add_argument_group("a list of instances")
    suite.add_argument("--suite", type=Path, metavar="CSV", help="check every instance of a VNN-COMP instances.csv")
    suite.add_argument("--out", type=Path, metavar="DIR", help="for the results; default: <name of CSV>-results")
    suite.add_argument("--jobs", type=int, metavar="N", help="how many at a time, one thread each; default: 2")
    suite.add_argument("--dask", metavar="ADDRESS", help="of the scheduler of a dask cluster whose workers do the work")
    suite.add_argument("--resume", action="store_true", default=None, help="keep the verdicts in --out, redo errors")
    suite.add_argument("--certificates", type=Path, metavar="DIR", help="write the proofs")
    suite.add_argument("--expect", type=Path, metavar="CSV", help="compare: columns network,property,verdict")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="BEFORE", help="one model: .onnx")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the other one: .onnx")
    parser.add_argument("region", type=Path, metavar="REGION", help="whose boxes to compare them on: .vnnlib")
    parser.add_argument(
        "--outside", type=Path, nargs="+", action="extend", default=[], metavar="REGION", help="leave these boxes out"
    )
    parser.add_argument("--lowest", action="store_true", help="the smallest output decides (as in ACAS Xu)")
    everywhere = parser.add_argument_group("a verdict about every point (models with the same layers)")
    everywhere.add_argument("--tolerance", metavar="NUMBER", help="whether no output differs by more than this")
    everywhere.add_argument(
        "--margin", metavar="NUMBER", help="whether the decision is the same wherever it is made by this margin before"
    )
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="write the proof (.npz)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the shares, and how they grew (.json)")
    parser.add_argument("--page", "--html", type=Path, metavar="FILE", help="write a page about it, for people (.html)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _check_edits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model: .onnx (any operators) or .pt2")
    parser.add_argument("edits", type=Path, nargs="+", metavar="NPZ", help="inputs, with the labels that must hold")
    parser.add_argument("--at-least", type=float, default=1.0, metavar="SHARE", help="of each file; default: 1, all")
    parser.add_argument("--threshold", type=float, help="where yes begins, for answers that are probabilities")
    parser.add_argument("--output", metavar="NAME", help="which output (or inner value) of an .onnx file is looked at")
    _fixed(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _fixed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fixed",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a constant in place of an input of an .onnx file, such as one that decides which branch runs",
    )


def _certify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("certificate", type=Path, metavar="CERTIFICATE", help="the proof: .npz")
    parser.add_argument("network", type=Path, metavar="NETWORK", help="what it is about, or was before a repair: .onnx")
    parser.add_argument("property", type=Path, nargs="?", metavar="PROPERTY", help="what is proved to hold: .vnnlib")
    parser.add_argument(
        "--repaired", type=Path, metavar="REPAIRED", help="the repaired network, of a repair or a comparison"
    )


def _patch(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", dest="verb")
    show = _added(verbs, "show", "print what a patch changes, and why")
    apply = _added(verbs, "apply", "write the repaired model")
    revert = _added(verbs, "revert", "write the original model, bit for bit")
    for verb in (show, apply, revert):
        verb.set_defaults(command="patch")
        verb.add_argument("patch", type=Path, metavar="PATCH", help="as nnrepair fix --patch writes it: .safetensors")
    show.add_argument("--numbers", type=int, default=0, metavar="N", help="and the N largest changes of each tensor")
    for verb, which in ((apply, "the model that was repaired"), (revert, "the repaired model")):
        verb.add_argument("model", type=Path, metavar="MODEL", help=f"{which}: .onnx or .pt2")
        verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="the model to write: .onnx or .pt2")


# What is said at the end of the help -------------------------------------------------------------------------------

EXIT_CODES = """\
exit codes:
  0  every edit holds (or held before)
  1  not every edit holds; the report is written, the model is not
  2  the command line is wrong
  3  an input cannot be used, or an output not be written; stderr says which and why, and where the result is

nnrepair check, compare, repair and certify have exit codes of their own: see nnrepair check --help.
"""
LOCATE_EPILOG = """\
Each layer is tuned alone, just far enough that the edits hold; the one under which least changes elsewhere comes first.

exit codes:
  0  all edits hold where the best layer was tuned
  1  they do not, in any layer
  3  an input cannot be used; stderr says which and why
"""
FIX_FILES = """\
files:
  MODEL    .onnx, or .pt2 as torch.export.save writes it. Reading a .pt2 can run code that its author put there, so open
           only those you trust; reading .onnx runs none.
  --edits, --neighbours, --scope
                       .npz with the arrays inputs (n, ...) and labels: classes (n,); 0 and 1 (n,) for the sign of a
                       single output; or 0 and 1 (n, outputs), one yes-or-no answer per output (-1: either)
  --locality, --test   the same; without labels every decision is kept
  A model with several inputs takes an array for each, by its name, in place of inputs.

  An .onnx file that cannot be read as a whole (or --output, --in-place) is repaired in place: onnxruntime runs what
  comes before the layer, of any operators, and the file written is the same but for that layer's numbers.

options of the method:
  --layer, --norm, --margin, --steps, --lr and more: `nnrepair methods` lists those of each method. An editor that
  `nnrepair prepare` wrote is given by its file: --method editor.safetensors

"""
PREPARE_EPILOG = """\
files:
  MODEL   .onnx, or .pt2 as torch.export.save writes it (open only those you trust)
  --data  .npz with the arrays inputs (n, ...) and labels, as for nnrepair fix --edits. Of these points some at a time
          are to get other labels, drawn at random, while others are to keep theirs
  --out   goes to nnrepair fix --method; it fits this very model

options of the method:
  `nnrepair methods` lists them; where an option above has the same name, it is called --method-NAME

exit codes:
  0  the editor was written
  1  it was written, but training broke off: stderr says at which step
  2  the command line is wrong
  3  an input cannot be used, or an output not be written; stderr says which and why, and where the result is
"""
REPAIR_EPILOG = """\
files:
  MODEL       .onnx; its last operation must be a linear layer
  PROPERTY    .vnnlib; all of them are repaired jointly
  --locality  .npz with the array inputs (n, ...), and labels (n,) if only points with these are to be kept: classes, or
              0 and 1 (the sign) for a model with a single output

exit codes:
  0  every property holds on the model written (or held before: then it is a copy)
  1  not proved, or no such change exists; nothing was written
  2  the command line is wrong
  3  an input cannot be used, or an output not be written; stderr says which and why, and where the result is
"""
CHECK_EPILOG = """\
files:
  MODEL      .onnx or .onnx.gz, or .pt2 as torch.export.save writes it (open only those you trust; checked as exported
             to ONNX)
  PROPERTY   .vnnlib or .vnnlib.gz
  --suite    a CSV file with the rows onnx,vnnlib,timeout; the files are looked for in its folder, and in onnx/ and
             vnnlib/ there. Each result is written to --out when it is there, so a run that was killed goes on with
             --resume.

exit codes (of a suite, the worst):
  0  the property holds
  1  it is violated; the counterexample was run through the model
  2  unknown
  3  an input, an option or the command line is wrong, an output cannot be written (stderr says where it is instead),
     or a verdict is not the expected one
"""
COMPARE_EPILOG = """\
files:
  BEFORE, AFTER  .onnx, with equally many inputs and outputs
  REGION         .vnnlib or .vnnlib.gz; its boxes are meant, what it says of outputs is not

Shares of the region's volume are printed, at least so much: where all outputs are the same, where the decision is (the
output that wins), where it is another one, and what is left. They are proved once `nnrepair certify` accepts the
certificate. More time says more.

With --tolerance or --margin there is a verdict about every point instead: holds, violated (with a point), or unknown.

exit codes:
  0  no decision surely changes; the models agree
  1  some do; they do not
  2  it is unknown whether they agree, or the command line is wrong
  3  an input cannot be used, or an output not be written; stderr says which and why, and where the result is
"""
CHECK_EDITS_EPILOG = """\
files:
  MODEL   .onnx, which onnxruntime runs, or .pt2 as torch.export.save writes it (open only those you trust)
  NPZ     as for nnrepair fix --edits

exit codes:
  0  of every file, the share that was asked for holds
  1  of some file it does not
  2  the command line is wrong
  3  an input cannot be used; stderr says which and why
"""
CERTIFY_EPILOG = """\
files:
  CERTIFICATE  .npz, of a repair (nnrepair fix --certificate), of a property (nnrepair check --certificate, nnrepair
               repair --certificates) or of what two networks share (nnrepair compare --certificate); the file itself
               says which
  NETWORK      .onnx: the network before the repair (or BEFORE of a comparison), or the one that the property is about
  PROPERTY     .vnnlib or .vnnlib.gz

The program shares no code with this package and runs in a process of its own. It needs numpy and onnx: pip install
'nnrepair[onnx]'.

exit codes:
  0  accepted: what is printed is proved
  1  rejected
  2  a file cannot be read, or holds more than the program knows; or the command line is wrong
  3  the program could not be run; one line on stderr says why
"""
