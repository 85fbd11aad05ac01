"""How commands say things: counts with their nouns, and JSON that is JSON on every terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def count(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> count(1, "block"), count(1_024, "token")
        ('1 block', '1,024 tokens')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_json(report: Mapping[str, Any]) -> None:
    """Print a report as JSON in ASCII, which arrives as it is on a standard output of any encoding.

    Raises:
        ValueError: a number that JSON does not have.
    """
    print(json.dumps(report, indent=1, allow_nan=False))
