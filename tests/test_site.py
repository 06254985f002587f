"""The documentation as a site: it builds without a warning, has every page, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import nnrepair

ROOT = Path(__file__).parents[1]


def test_the_site(tmp_path: Path) -> None:
    """Broken links, pages outside of the navigation and bad references are warnings, and so errors."""
    for package in ("mkdocs", "material", "mkdocstrings", "nbconvert"):
        if find_spec(package) is None:
            pytest.skip("the site is built with the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
    every_page_is_there(tmp_path)
    nothing_is_loaded_from_elsewhere(tmp_path)
    the_reference_has_every_public_name(tmp_path)


def every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "SECURITY", "CONTRIBUTING", "CHANGELOG"}
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    assert len(notebooks) >= 6
    for name in pages | notebooks:
        assert (site / f"{name}.html").stat().st_size > 5000
    index = (site / "index.html").read_text()
    assert all(f'href="{name}.html"' in index for name in pages - {"index"} | notebooks)


def nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, page


def the_reference_has_every_public_name(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    headings = set(re.findall(r"doc-symbol-heading[^>]*></code>\s+(nnrepair[\w.]*)\s", text))
    assert {f"nnrepair.{name}" for name in nnrepair.__all__} - headings == {"nnrepair.methods"}
    assert "&gt;&gt;&gt; " in text and "<blockquote>" not in text  # examples are code
