"""Code cells and their outputs as a notebook file holds them."""

from __future__ import annotations

from typing import Any

from IPython.core.formatters import DisplayFormatter
from nbformat import NotebookNode
from nbformat.v4 import new_output

FIGURE = "figure, axes = subplots()\naxes.plot(sizes)\naxes.set_title('a')\nshow(figure)"


def cell(name: str, source: str, *kinds: str) -> dict[str, Any]:
    """Make a code cell with one output that holds these kinds of data."""
    outputs = [{"data": dict.fromkeys(kinds, "")}] if kinds else []
    return {"id": name, "source": source.splitlines(keepends=True), "outputs": outputs}


def result(source: str, names: dict[str, Any]) -> NotebookNode:
    """Execute a cell's source here, and return the output that a kernel would store."""
    lines = source.strip().splitlines()
    last = next(number for number in reversed(range(len(lines))) if not lines[number].startswith((" ", ")")))
    exec("\n".join(lines[:last]), names)
    data, metadata = DisplayFormatter().format(eval("\n".join(lines[last:]), names))
    return new_output("execute_result", data, metadata=metadata, execution_count=1)
