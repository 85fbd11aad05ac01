"""Counting, as every module does it: checked counts, division that rounds up, and the unit of memory."""

from __future__ import annotations

GIB = 2**30
"""Bytes in a GiB."""


def at_least_one(name: str, value: int) -> int:
    """Return a whole number of at least 1, or say what is wrong with it.

    Raises:
        ValueError: it is not a whole number, or below 1.

    Example:
        >>> at_least_one("num_layers", 32)
        32
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 1")
    return value


def cdiv(a: int, b: int) -> int:
    """Divide and round up: how many blocks of ``b`` tokens hold ``a`` of them. The name is vLLM's and Triton's.

    Python's ``//`` rounds down, so we divide the negative and take the sign back. No float is involved: the result is
    exact for numbers of any size.

    Raises:
        ZeroDivisionError: ``b`` is 0.

    Example:
        >>> [cdiv(num_tokens, 16) for num_tokens in (0, 1, 16, 17)]
        [0, 1, 1, 2]
    """
    return -(-a // b)
