"""Code cells as a notebook file holds them, for tests of what tells them apart."""

from __future__ import annotations

from typing import Any

FIGURE = "figure, axes = subplots()\naxes.plot(sizes)\naxes.set_title('a')\nshow(figure)"


def cell(name: str, source: str, *kinds: str) -> dict[str, Any]:
    """Make a code cell with one output that holds these kinds of data."""
    outputs = [{"data": dict.fromkeys(kinds, "")}] if kinds else []
    return {"id": name, "source": source.splitlines(keepends=True), "outputs": outputs}
