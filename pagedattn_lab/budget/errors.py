"""What a budget raises when what was asked for cannot be."""

from __future__ import annotations


class BudgetError(ValueError):
    """A model, a GPU or a setting does not go together with another: says by how much, and what to change."""
