"""Templates of pages, which escape all that is put into them. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnrepair.extras import needed

#: Where the templates and the style sheet lie that all pages share.
SHARED = Path(__file__).parent


def template(name: str, *folders: Path, **filters: Any) -> Any:
    """Return the template of a page, which may include files of its folders, and those that all pages share.

    Args:
        name: of its file.
        folders: where it and what it includes lie; the first that has a file counts.
        filters: by name, what its text may call.
    """
    with needed("plot", "Reports need Jinja"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    environment = Environment(
        loader=FileSystemLoader((*folders, SHARED)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def style(*sheets: Path) -> str:
    """Return the style sheet that all pages share, and others after it."""
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in (SHARED / "page.css", *sheets))


def accepted(verdict: str | None) -> list[str]:
    """Return the lines of what an independent checker printed when it accepted a certificate, for `proved.html`."""
    return [line for line in (verdict or "").splitlines() if line.strip() and line.strip() != "ACCEPTED"]
