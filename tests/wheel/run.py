"""Build the wheel, install it beside its core dependencies alone, and run core_alone.py there, outside the checkout.

    python tests/wheel/run.py

The environment holds links to distributions that are installed here: pytest, what the wheel requires without extras,
and what these require in turn. Nothing is downloaded for it, as torch alone is gigabytes. It is removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path, PurePath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def closure(wanted: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed distributions that these requirements ask for, and theirs, by name."""
    found: dict[str, Distribution] = {}
    todo, seen = [(Requirement(line), frozenset[str]()) for line in wanted], set()
    while todo:
        requirement, extras = todo.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in (*extras, "")):
            continue
        name, asked = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, asked) not in seen:
            seen.add((name, asked))
            found[name] = distribution(name)
            todo += [(Requirement(line), asked) for line in found[name].requires or ()]
    return found


def link(wanted: dict[str, Distribution], packages: Path) -> None:
    """Link all files of the distributions into the folder `packages`, and none of others."""
    theirs = {_top(file) for d in distributions() if canonicalize_name(d.name) not in wanted for file in d.files or ()}
    for each in wanted.values():
        for file in each.files or ():
            if file.parts[0] in ("..", "__pycache__"):
                continue
            place = PurePath(*file.parts[: 2 if _top(file) in theirs else 1])  # a folder that others share is our own
            (packages / place).parent.mkdir(exist_ok=True)
            if not (packages / place).exists():
                (packages / place).symlink_to(Path(str(each.locate_file(place))).resolve())


def _files(folder: Path) -> set[str]:
    """Return the files of a package, templates included, by their paths inside it."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path}


def _top(file: PurePath) -> str:
    return file.parts[0]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="nnrepair-wheel-") as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "env", symlinks=True)
        (packages,) = folder.glob("env/lib/python*/site-packages")
        python = folder / "env" / "bin" / "python"
        there = [*pip, "--python", python]
        subprocess.run([*there, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
        required = Distribution.at(next(packages.glob("nnrepair-*.dist-info"))).requires or []
        link(closure([*required, "pytest"]), packages)
        subprocess.run([*there, "check"], check=True)  # nothing that is required is missing
        checkers = {path.name for path in (packages / "nnrepair" / "_checkers").iterdir()}
        if missing := {path.name for path in (ROOT / "verification").glob("*.py")} - checkers:
            raise SystemExit(f"The wheel lacks {', '.join(sorted(missing))} of the independent checkers.")
        if missing := _files(ROOT / "nnrepair") - _files(packages / "nnrepair"):
            raise SystemExit(f"The wheel lacks {', '.join(sorted(missing))}.")

        outside = folder / "outside"
        outside.mkdir()
        shutil.copy(Path(__file__).with_name("core_alone.py"), outside)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NNREPAIR"))}
        test = [python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "core_alone.py"]
        return subprocess.run(test, cwd=outside, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
