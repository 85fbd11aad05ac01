"""Whole numbers: rounding up, and saying what is wrong with one."""

from __future__ import annotations


def cdiv(a: int, b: int) -> int:
    """Divide and round up: how many blocks of ``b`` tokens it takes to hold ``a`` of them.

    Example:
        >>> cdiv(32, 16), cdiv(33, 16), cdiv(0, 16)
        (2, 3, 0)
    """
    return -(a // -b)
