"""Exercises of chapter 08: three kernels, one that reads once for a group, one that merges, one that quantises."""

from __future__ import annotations

from pagedattn_lab.exercises.ch08_grouped import one_read_decode
from pagedattn_lab.exercises.ch08_merge import merge_splits
from pagedattn_lab.exercises.ch08_write import quantised_write

__all__ = ["merge_splits", "one_read_decode", "quantised_write"]
