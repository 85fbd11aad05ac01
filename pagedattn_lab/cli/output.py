"""How commands say things: counts with their nouns, memory with its unit, and JSON that is JSON on every terminal."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pagedattn_lab.arithmetic import count


def memory(num_bytes: int) -> str:
    """Write a number of bytes in the largest binary unit of which there is at least one, to four digits.

    Example:
        >>> memory(1_000), memory(1_000_000), memory(2_211_840), memory(12 * 2**30), memory(12 * 10**9)
        ('1,000 bytes', '976.6 KiB', '2.109 MiB', '12 GiB', '11.18 GiB')
    """
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 2**exponent:
            return f"{float(f'{num_bytes / 2**exponent:.4g}'):,.10g} {unit}"
    return count(num_bytes, "byte")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ask for the one of the known words that looks most like this one; empty if none does.

    Example:
        >>> did_you_mean("dcotor", ["doctor", "waste"]), did_you_mean("fly", ["doctor", "waste"])
        (': did you mean doctor?', '')
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""


def print_json(report: Mapping[str, Any]) -> None:
    """Print a report as JSON in ASCII, which arrives as it is on a standard output of any encoding.

    Raises:
        ValueError: a number that JSON does not have.
    """
    print(json.dumps(report, indent=1, allow_nan=False))
