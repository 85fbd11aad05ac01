"""The error of a budget that cannot be made, or does not fit."""

from __future__ import annotations


class BudgetError(ValueError):
    """A model, a machine or a setting that gives no budget. The message says by how much, and what to change."""
