"""The chapters, and where the repository says that it lies."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

from nbformat import NotebookNode

REPO = Path(__file__).resolve().parents[2]
REPOSITORY_URL = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


CHAPTERS = sorted((REPO / "chapters").glob("*.ipynb"))


def markdown(cells: Iterable[NotebookNode]) -> str:
    """Return what the Markdown cells among these say."""
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
