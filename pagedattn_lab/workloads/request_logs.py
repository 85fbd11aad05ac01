"""Logs of requests that real services published, read from a file (chapters 02 and 06)."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable
from datetime import datetime
from os import PathLike
from typing import Any

from pagedattn_lab.workloads.arrivals import TraceRequest

MOST_REPORTED = 20
"""How many malformed lines an error lists."""

MOST_MILLISECONDS = 2**53
"""Up to here a float tells one millisecond from the next."""


class MalformedTraceError(ValueError):
    """A trace with rows that cannot be read. Its message names their lines."""


def load_trace(path: str | PathLike[str]) -> list[TraceRequest]:
    """Read a trace in either format, which its first character tells: ``{`` begins a line of JSON.

    Raises:
        MalformedTraceError, OSError: as for :func:`load_azure_csv`.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(4096).lstrip()
    return load_mooncake_jsonl(path) if start.startswith("{") else load_azure_csv(path)


def load_azure_csv(path: str | PathLike[str]) -> list[TraceRequest]:
    """Read a trace with the columns of the Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        MalformedTraceError: a column is missing, there is no request, or rows cannot be read; all of those are listed
            by line number: a length that is not a whole number of at least 1, a time that is none or runs backwards.
        OSError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "trace.csv")
        >>> _ = path.write_text(
        ...     "TIMESTAMP,ContextTokens,GeneratedTokens\\n"
        ...     "2023-11-16 18:15:46.0000000,374,44\\n2023-11-16 18:15:50.5000000,396,109\\n")
        >>> load_azure_csv(path)[1]
        TraceRequest(arrival=4.5, prompt_len=396, output_len=109, hash_ids=())
    """
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip() for name in file.readline().split(",")]
        missing = [name for name in columns if name not in header]
        if missing:
            raise MalformedTraceError(
                f"{path}: line 1: no column {missing[0]}: the first line must name {', '.join(columns)}"
            )
        places = [header.index(name) for name in columns]

        def parse(line: str) -> tuple[datetime, int, int]:
            row = line.split(",")
            if len(row) != len(header):
                raise ValueError(f"{len(row)} values for {len(header)} columns")
            time, prompt_len, output_len = (row[place].strip() for place in places)
            try:
                when = datetime.fromisoformat(time)
            except ValueError:
                raise ValueError(f"TIMESTAMP is {reprlib.repr(time)}, not a date and time") from None
            return when, _length(columns[1], prompt_len), _length(columns[2], output_len)

        parsed = _parse_lines(path, enumerate(file, 2), parse)
    return [TraceRequest((when - parsed[0][0]).total_seconds(), *rest) for when, *rest in parsed]


def load_mooncake_jsonl(path: str | PathLike[str]) -> list[TraceRequest]:
    """Read a trace in Mooncake's format: a JSON object per line with timestamp (ms), input_length, output_length, hash_ids.

    Each id stands for 512 tokens of the prompt and everything before them, so equal ids mean equal prefixes.

    Raises:
        MalformedTraceError, OSError: as for :func:`load_azure_csv`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "trace.jsonl")
        >>> _ = path.write_text('{"timestamp": 500, "input_length": 600, "output_length": 9, "hash_ids": [0, 7]}')
        >>> load_mooncake_jsonl(path)
        [TraceRequest(arrival=0.0, prompt_len=600, output_len=9, hash_ids=(0, 7))]
    """  # noqa: E501

    def parse(line: str) -> tuple[float, int, int, tuple[int, ...]]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:  # whose own line number would be that within the row
            raise ValueError(f"not JSON ({error.msg}, character {error.pos + 1})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        for name in ("timestamp", "input_length", "output_length"):
            if name not in row:
                raise ValueError(f"no {name}")
        time, hash_ids = row["timestamp"], row.get("hash_ids", [])
        if isinstance(time, bool) or not isinstance(time, int | float) or not abs(time) < MOST_MILLISECONDS:
            raise ValueError(f"timestamp is {reprlib.repr(time)}, not a number of milliseconds")
        if not isinstance(hash_ids, list) or not all(type(number) is int and number >= 0 for number in hash_ids):
            raise ValueError("hash_ids is not a list of whole numbers of at least 0")
        lengths = [_length(name, row[name]) for name in ("input_length", "output_length")]
        return time / 1000, *lengths, tuple(hash_ids)

    with open(path, encoding="utf-8-sig", errors="replace") as file:
        parsed = _parse_lines(path, enumerate(file, 1), parse)
    return [TraceRequest(time - parsed[0][0], *rest) for time, *rest in parsed]


def _length(name: str, value: Any) -> int:
    """Read a number of tokens: a whole number, or a text of digits."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if type(number) is not int or number < 1:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a whole number of at least 1")
    return number


def _parse_lines(path: Any, lines: Iterable[tuple[int, str]], parse: Callable[[str], tuple[Any, ...]]) -> list[Any]:
    """Parse every line, check that time does not run backwards, and report all that is wrong at once."""
    parsed: list[Any] = []
    wrong: list[str] = []
    for number, line in lines:
        if not line.strip():
            continue
        try:
            values = parse(line)
            if parsed and values[0] < parsed[-1][0]:
                raise ValueError("time runs backwards")
        except TypeError:
            wrong.append(f"line {number}: a time with a time zone beside one without")
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
        else:
            parsed.append(values)
    if wrong:
        rest = f"; and {len(wrong) - MOST_REPORTED} more" if len(wrong) > MOST_REPORTED else ""
        raise MalformedTraceError(f"{path}: {'; '.join(wrong[:MOST_REPORTED])}{rest}")
    if not parsed:
        raise MalformedTraceError(f"{path}: there is no request in it")
    return parsed
