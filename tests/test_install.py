"""What importing loads, in which order one may import, what is missing without extras, and what nobody asked to print.

`tests/wheel/` tests the package as installed; here a subprocess stands for a fresh interpreter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nnrepair

HEAVY = ("torch", "numpy", "scipy", "highspy", "onnx", "onnxruntime", "onnxscript", "matplotlib", "torch_geometric")
COMMANDS = ("", "demo", "classroom", "fix", "prepare", "repair", "check", "certify", "patch", "patch show")
COMMANDS += ("patch apply", "methods")


def run(program: str, *options: str, code: int = 0) -> tuple[str, str]:
    """Run a program in a fresh interpreter, and return what it wrote on stdout and stderr."""
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


# Laziness ------------------------------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = f"""
import sys, nnrepair
assert nnrepair.InvalidInput.__mro__ and not hasattr(nnrepair, "Argmx") and "Argmax" in dir(nnrepair)
print(*({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY})))
"""
    assert run(program, "-W", "error") == ("\n", "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_loads_nothing_heavy(option: str) -> None:
    program = f"""
import sys
from nnrepair.cli import main
for command in {COMMANDS if option == "--help" else ("",)}:
    try:
        main([*command.split(), {option!r}])
    except SystemExit as stop:
        assert not stop.code
print("loaded:", *({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY})))
"""
    said, error = run(program, "-W", "error")
    assert said.endswith("\nloaded:\n") and error == ""


# Names ---------------------------------------------------------------------------------------------------------------


def test_the_three_lists_of_names_agree() -> None:
    tree = ast.parse(Path(nnrepair.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    told = {
        name.name: str(node.module).removeprefix("nnrepair.")
        for node in imports
        if node.module != "nnrepair"
        for name in node.names
    }
    modules = {name.name for node in imports if node.module == "nnrepair" for name in node.names}
    assert told == nnrepair._HOME_OF
    assert {*told, "methods"} == set(nnrepair.__all__) and "methods" in modules


def test_every_name_is_there() -> None:
    for name in nnrepair.__all__:
        assert getattr(nnrepair, name).__name__ in (name, "nnrepair.methods")
    for name in ("data", "domains", "metrics", "onnx", "penalties", "plot", "splitting", "verify"):
        assert getattr(nnrepair, name).__name__ == f"nnrepair.{name}"
    with pytest.raises(AttributeError, match="module 'nnrepair' has no attribute 'Argmx'"):
        nnrepair.Argmx  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Argmx'"):
        from nnrepair import Argmx  # noqa: F401


ORDERS = (
    "import nnrepair; nnrepair.fix",
    "from nnrepair import fix; assert fix is nnrepair.fix",
    "import nnrepair.fix",
    "import nnrepair.fix as fix; assert fix is nnrepair.fix",
    "from nnrepair.fix import fix, undisturbed; assert fix is nnrepair.fix",
    "import nnrepair.sequence",
    "import nnrepair.properties",
    "from nnrepair import repair_property",
    "import nnrepair.cli.demonstration",
    "import nnrepair.cli.fix",
    "import nnrepair.plot; nnrepair.plot.sequence",
    "import importlib; assert importlib.import_module('nnrepair.fix').undisturbed",
    "from nnrepair import *; assert fix is nnrepair.fix and methods.MinimalNorm",
    "nnrepair.fix; import importlib; importlib.reload(nnrepair)",
)


def test_fix_loads_what_it_needs_and_is_the_function_whatever_was_imported_before() -> None:
    program = f"""
import inspect, sys
import torch
from nnrepair import fix
print(*{{"scipy.optimize", "onnx", "onnxruntime", "matplotlib", "torch_geometric", "sklearn"}} & sys.modules.keys())
for order in {ORDERS}:
    for name in [name for name in sys.modules if name.split(".")[0] == "nnrepair"]:
        del sys.modules[name]
    names = {{}}
    exec("import nnrepair", names)
    exec(order, names)
    nnrepair = names["nnrepair"]
    assert inspect.isfunction(nnrepair.fix) and nnrepair.fix is sys.modules["nnrepair.fix"].fix, order
    print(order)
"""
    assert run(program, "-W", "error") == ("\n".join(["", *ORDERS, ""]), "")


# Extras --------------------------------------------------------------------------------------------------------------

_WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Without())

def refused(extra, door):
    import nnrepair
    try:
        door()
    except nnrepair.NNRepairError as error:
        assert "pip install 'nnrepair[" + extra + "]'" in str(error), str(error)
    else:
        raise AssertionError("it was not needed")
"""


def test_every_module_without_extras() -> None:
    missing = ("onnx", "onnxruntime", "onnxscript", "matplotlib", "torch_geometric", "torchvision", "sklearn")
    missing += ("nicegui",)
    program = f"""{_WITHOUT.format(missing=missing)}
import importlib, pkgutil
import nnrepair
for module in pkgutil.walk_packages(nnrepair.__path__, "nnrepair."):
    try:
        importlib.import_module(module.name)
    except nnrepair.MissingExtra:
        print(module.name)
        extra = {{"onnx": "onnx", "domains": "vision", "classroom": "classroom"}}[module.name.split(".")[1]]
        refused(extra, lambda: importlib.import_module(module.name))
refused("onnx", lambda: nnrepair.onnx.load)
refused("onnx", lambda: nnrepair.onnx.save)
refused("plot", nnrepair.plot.require_matplotlib)
refused("demo", lambda: nnrepair.cli.demonstration.run(nnrepair.cli.demonstration.Path("page.html")))
"""
    said, error = run(program)
    reading = [name for name in said.split() if name.startswith("nnrepair.onnx.")]
    assert reading and not any(name.startswith("nnrepair.onnx.modules") for name in reading)  # a loaded model works
    needing = [f"nnrepair.classroom.{name}" for name in ("layout", "page", "server")]
    needing += ["nnrepair.domains.images.folder", *reading]
    assert said.split() == needing and error == ""


def test_the_version_is_told() -> None:
    import nnrepair
    from nnrepair.extras import installed

    assert nnrepair.__version__ == installed() != ""


def test_what_is_half_installed_is_named_too() -> None:
    program = f"""{_WITHOUT.format(missing=("onnxscript", "onnxruntime"))}
import torch, tempfile
import nnrepair
nnrepair.onnx.load
refused("onnx", lambda: nnrepair.onnx.save(torch.nn.Linear(2, 2), torch.zeros(1, 2), "x.onnx"))
from nnrepair.verify.search.replay import Replay
replay = Replay(torch.nn.Linear(2, 2), (2,), torch.float32, None, nnrepair.data.Path("x.onnx"))
refused("onnx", lambda: replay.onnxruntime(torch.zeros(2)))
try:
    nnrepair.onnx.save
except ModuleNotFoundError as error:
    print(error.name)
"""
    pytest.importorskip("onnx")
    assert run(program) == ("onnxscript\n", "")


# Output --------------------------------------------------------------------------------------------------------------


def test_nothing_is_printed_that_nobody_asked_for(tmp_path: Path) -> None:
    """HiGHS's banner comes from C, so that only another process sees it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    program = f"""
import os
import numpy as np
import torch
import nnrepair
from nnrepair.cli import main
from nnrepair.methods import MinimalNorm
from nnrepair.verify import Box, Property, check, vnnlib

os.chdir({str(tmp_path)!r})
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
x = torch.randn(20, 4)
order = model(x).argsort(1, descending=True)
edits = x[:2], order[:2, 1]
assert nnrepair.fix(model, edits, x[5:], method=MinimalNorm("2", norm="l1")).outcome.ok
assert nnrepair.fix(model, edits, x[5:], mode="successive").success_rate == 1.0
wrong = Property.on(Box(x[0] - 1e-4, x[0] + 1e-4), nnrepair.Argmax(order[:1, 1]), outputs=3)
assert check(model, wrong).verdict == "violated"
assert nnrepair.repair_property(model, wrong).outcome.ok
nnrepair.onnx.save(model, x, "base.onnx")
nnrepair.data.Path("wrong.vnnlib").write_text(vnnlib.dumps(wrong))
np.savez("edits.npz", inputs=x[:2].numpy(), labels=order[:2, 1].numpy())
for line, code in (
    ("fix base.onnx --edits edits.npz --layer 2 --norm l1 --out fixed.onnx", 0),
    ("check base.onnx wrong.vnnlib", 1),
    ("repair base.onnx wrong.vnnlib --out repaired.onnx", 0),
):
    assert main([*line.split(), "--quiet"]) == code
"""
    assert run(program) == ("", "")
