"""docs/glossary.md: every link to a term finds it, and what says "In code" exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nnrepair

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs/glossary.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors() -> set[str]:
    """Return the terms as GitHub's links write them."""
    terms = re.findall(r"^## (.*)$", GLOSSARY.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", term.lower()).replace(" ", "-") for term in terms}


def links() -> dict[str, set[str]]:
    """Return the terms that each page links to."""
    found = {page.name: set(re.findall(r"glossary\.md#([\w-]+)\)", page.read_text())) for page in PAGES}
    return {page: terms for page, terms in found.items() if terms}


@pytest.mark.parametrize("page", links())
def test_links_find_their_term(page: str) -> None:
    assert links()[page] <= anchors()


def test_terms_are_linked_where_they_are_used_first() -> None:
    assert set.union(*links().values()) >= {"edit", "edit-scope", "locality-set", "drawdown", "certificate"}
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text()


def test_what_is_said_to_be_in_the_code_is_there() -> None:
    names = re.findall(r"In\s+code:\s+`(\w+)`", GLOSSARY.read_text())
    assert len(names) == 3 and all(hasattr(nnrepair, name) for name in names)
