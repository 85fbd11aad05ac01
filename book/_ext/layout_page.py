"""Fill ``book/layout.md`` with one line a module, its docstring's first sentence, so that it cannot lag behind."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pagedattn_lab

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "book/layout"
PACKAGE = Path(pagedattn_lab.__file__).parent
LISTS = re.compile(r"(?:^%modules .*\n)+", flags=re.MULTILINE)


def summary(module: str) -> str:
    """Give the first sentence of a module's docstring, with the chapters that it names."""
    path = PACKAGE.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return " ".join(re.sub(r":\w+:`~?([^`]*)`", r"`\1`", first).split()).replace("``", "`")


def table(match: re.Match[str]) -> str:
    """Turn a list of modules into a table."""
    rows = ["| module | what it holds |", "|---|---|"]
    rows += [f"| `{module}` | {summary(module)} |" for module in match[0].replace("%modules", "").split()]
    return "\n".join(rows) + "\n"


def add_modules(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the lists on the page."""
    if docname == PAGE:
        source[0] = LISTS.sub(table, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", add_modules)
    app.connect("env-get-outdated", lambda *_: [PAGE])  # what it shows comes from files that Sphinx does not watch
    return {"parallel_read_safe": True}
