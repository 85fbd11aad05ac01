"""Counting, as every module does it: checked counts, division that rounds up, and the units of memory."""

from __future__ import annotations

import re
from fractions import Fraction

GIB = 2**30
"""Bytes in a GiB."""

UNITS = {"": GIB} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kmgt", 1)
    for kind, base in (("ib", 1024), ("b", 1000))
}
"""Bytes per unit of :func:`num_bytes`: GiB and its like count in powers of 1024, GB and its like in powers of 1000."""

UNITS_HELP = "a GiB is 1024^3 bytes, a GB 1000^3; a plain number means GiB"
"""Which unit is which, in a few words."""


def num_bytes(text: str) -> int:
    """Read a number of bytes with its unit; without one it means GiB.

    Raises:
        ValueError: no size above 0, or a unit that may mean two things, which is named.

    Example:
        >>> num_bytes("12"), num_bytes("12GB"), num_bytes("500 MiB")
        (12884901888, 12000000000, 524288000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([a-z]*)", text.strip(), flags=re.ASCII | re.IGNORECASE)
    number, unit = match.groups() if match else ("0", "")
    if re.fullmatch("[kmgt]i?", unit, flags=re.IGNORECASE):
        letter = unit[0].upper()
        raise ValueError(
            f"{text!r} leaves open which unit is meant: write {number}{letter}iB or {number}{letter}B; {UNITS_HELP}"
        )
    if re.fullmatch("[KMGT]i?b", unit):
        raise ValueError(f"{text!r} may be bits: write {number}{unit[:-1]}B for bytes; {UNITS_HELP}")
    size = int(Fraction(number) * UNITS.get(unit.lower(), 0))
    if not size:
        raise ValueError(f"{text!r} is not a size above 0: write 12GiB, 500MiB, 12GB or 500MB; {UNITS_HELP}")
    return size


def count(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> count(1, "block"), count(1_024, "token")
        ('1 block', '1,024 tokens')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
