"""Templates of pages, which escape all that is put into them. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnrepair.extras import needed


def template(name: str, *folders: Path, **filters: Any) -> Any:
    """Return the template of a page, which may include files of its folders.

    Args:
        name: of its file.
        folders: where it and what it includes lie; the first that has a file counts.
        filters: by name, what its text may call.
    """
    with needed("plot", "Reports need Jinja"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
