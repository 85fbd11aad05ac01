"""The cells that compare a guess run twice under nbval: in their place, and once more at the end of their chapter."""

from __future__ import annotations

from itertools import groupby

import pytest
from nbval.plugin import IPyNbCell


def with_comparisons_again(items: list[pytest.Item]) -> list[pytest.Item]:
    """Have the comparisons with a reader's guess run again after the last cell of their chapter, as after "Run All"."""
    found: list[pytest.Item] = []
    for parent, group in groupby(items, lambda item: item.parent):
        found += (cells := list(group))
        for cell in cells:
            if isinstance(cell, IPyNbCell) and "reconcile(guess_" in cell.cell.source:
                like = {"cell_num": cell.cell_num, "cell": cell.cell, "options": cell.options}
                found.append(IPyNbCell.from_parent(parent, name=f"{cell.name} again", **like))
    return found
