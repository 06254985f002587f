"""What the site has beside the pages of this folder: the README, other pages of the root, and the notebooks.

mkdocs calls these functions (mkdocs.yml, hooks).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
import nbformat
from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
#: Pages of the root, and their names on the site.
OUTSIDE = {"README.md": "index.md"} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}

#: Where the theme would load the script for search from.
SHIM = "https://unpkg.com/iframe-worker/shim"


def on_config(config: Any) -> Any:
    """List the notebooks, and the page about the classroom where there is one."""
    for part in config.nav:
        if "Notebooks" in part:
            part["Notebooks"] = [f"notebooks/{path.stem}.md" for path in _notebooks()]
        if "Start" in part and (ROOT / "docs" / "classroom.md").is_file():
            part["Start"].insert(2, {"Classroom": "classroom.md"})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is not in this folder as it is to be shown."""
    for name, shown in OUTSIDE.items():
        files.append(File.generated(config, shown, content=(ROOT / name).read_text().replace("](docs/", "](")))
    for path in _notebooks():
        exporter = MarkdownExporter()
        notebook = nbformat.read(path, as_version=4)
        body, resources = exporter.from_notebook_node(notebook, {"unique_key": path.stem})
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_tables(body)))
        for picture, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{picture}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to pages of the root and to notebooks find them on the site; leave out what a script would draw."""
    markdown = re.sub(r"(?ms)^The same as a picture.*?^```mermaid.*?^```$", "", markdown)
    markdown = re.sub(r"\]\(\.\./(SECURITY|CONTRIBUTING|CHANGELOG)\.md", r"](\1.md", markdown)
    markdown = re.sub(r"\]\(((?:[\w/]*/)?\d\d_\w+)\.ipynb", r"](\1.md", markdown)
    return markdown.replace("](notebooks)", f"](notebooks/{_notebooks()[0].stem}.md)")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take the script with which search works in pages opened from disk from here, and not from a network."""
    return output.replace(SHIM, get_relative_url("assets/iframe-worker.js", page.url))


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """Do so in what is no page too."""
    return output_content.replace(SHIM, "assets/iframe-worker.js")


class Examples(griffe.Extension):
    """Show examples of docstrings as code: they begin with >>> and end at a blank line."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            example = r"(?m)^( *)>>> .*\n(?:\1\S.*\n|\1 +\S.*\n)*"
            text = f"{obj.docstring.value}\n"
            obj.docstring.value = re.sub(example, r"\1```pycon\n\g<0>\1```\n", text).rstrip()


def _notebooks() -> list[Path]:
    return sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def _tables(body: str) -> str:
    """Put what a cell returned as HTML on lines of its own, without indentation that would make it code."""
    return re.sub(r"(?ms)^<(div|table).*?^</\1>", lambda found: re.sub(r"(?m)^\s+", "", found[0]), body)
