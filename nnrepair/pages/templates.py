"""Templates of pages, which escape all that is put into them. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnrepair.errors import InvalidInput
from nnrepair.extras import needed

#: How lines begin that checkers print where they do not accept.
REFUSED = ("reject", "cannot be read", "not accepted")
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
    """Return the lines of what an independent checker printed when it accepted a certificate, for `proved.html`.

    Raises:
        InvalidInput: that is no text, or what a checker printed when it did not accept it.
    """
    if verdict is not None and not isinstance(verdict, str):
        raise InvalidInput(f"verdict must be what the independent checker printed, got {type(verdict).__name__}.")
    refused = [line for line in (verdict or "").splitlines() if line.strip().lower().startswith(REFUSED)]
    if refused:
        raise InvalidInput(
            "verdict= is what the independent checker printed when it accepted the certificate, got "
            f"{refused[0]!r:.80}. Leave it out, and say so with unchecked=."
        )
    return [line for line in (verdict or "").splitlines() if line.strip() and line.strip() != "ACCEPTED"]
