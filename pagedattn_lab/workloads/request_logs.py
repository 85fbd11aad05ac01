"""Logs of requests that real services published, read from a file (chapters 02 and 06).

Two formats are read, told apart by the first character: CSV with the columns of Azure's logs, and JSON objects with the
fields of Mooncake's, one per line or all in an array. What a file is, is told by its contents and never by its name: it
may be compressed with gzip, and its text is UTF-8 or, with a byte order mark, UTF-16.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import reprlib
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import chain
from os import PathLike
from typing import Any

from pagedattn_lab.workloads.arrivals import TraceRequest

MOST_REPORTED = 20
"""How many malformed rows an error lists."""

MOST_MILLISECONDS = 2**53
"""Up to here a float tells one millisecond from the next."""

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""What the first line of a CSV must name, among other columns and in any order."""

GZIP = b"\x1f\x8b"
"""How a file compressed with gzip begins."""

FOREIGN = {
    rb"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save the sheet as CSV",
    rb"PAR1": "a Parquet file: convert it to CSV",
    rb"\xfd7zXZ\0": "compressed with xz: unpack it with xz -d",
    rb"BZh[1-9]1AY&SY": "compressed with bzip2: unpack it with bzip2 -d",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with zstd -d",
    GZIP: "compressed with gzip twice: unpack it with gunzip",
    rb"(?s).{257}ustar": "a tar archive: unpack it with tar -x",
    rb"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch that with git lfs pull",
    rb"(\xef\xbb\xbf)?\s*<": "a web page or XML: download the file itself",
    rb"[^\n]*\0": "binary, or UTF-16 without a byte order mark: save it as text in UTF-8",
}
"""What no log begins with, as regular expressions in order, what such a file is, and what to do."""

Row = tuple[int, Any]
"""The number of a line, or of an item of an array, and what stands there; a ``ValueError`` if it cannot be read."""


class MalformedTraceError(ValueError):
    """A log that cannot be read, or has rows that cannot. Its message says what the file is, or names the rows."""


def load_trace(path: str | PathLike[str]) -> list[TraceRequest]:
    """Read a log in either format: ``{`` or ``[`` begins JSON.

    Raises:
        MalformedTraceError, OSError: as for :func:`load_azure_csv` and :func:`load_mooncake_jsonl`.

    Example:
        >>> import gzip, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "log")
        >>> _ = path.write_bytes(gzip.compress(b'[{"timestamp": 500, "input_length": 600, "output_length": 9}]'))
        >>> load_trace(path)
        [TraceRequest(arrival=0.0, prompt_len=600, output_len=9, hash_ids=())]
    """
    with _open(path) as (number, first, rest):
        read = _read_json if first.lstrip().startswith(("{", "[")) else _read_csv
        return read(path, number, first, rest)


def load_azure_csv(path: str | PathLike[str]) -> list[TraceRequest]:
    """Read a log with the columns of the Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens.

    Values may be quoted, and a quoted one may hold commas and line ends.

    Raises:
        MalformedTraceError: the file is something else, a column is missing, there is no request, or rows cannot be
            read; all of those are listed by the number of their first line: a length that is not a whole number of at
            least 1, a time that is none or runs backwards, a quote that does not close.
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
    with _open(path) as (number, first, rest):
        return _read_csv(path, number, first, rest)


def load_mooncake_jsonl(path: str | PathLike[str]) -> list[TraceRequest]:
    """Read a log in Mooncake's format: JSON objects with timestamp (ms), input_length, output_length, hash_ids.

    They stand one per line or all in one array. Each id stands for 512 tokens of the prompt and everything before them,
    so equal ids mean equal prefixes.

    Raises:
        MalformedTraceError: the file is something else, there is no request, or objects cannot be read; all of those
            are listed, by line or by their number in the array.
        OSError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "trace.jsonl")
        >>> _ = path.write_text('{"timestamp": 500, "input_length": 600, "output_length": 9, "hash_ids": [0, 7]}')
        >>> load_mooncake_jsonl(path)
        [TraceRequest(arrival=0.0, prompt_len=600, output_len=9, hash_ids=(0, 7))]
    """
    with _open(path) as (number, first, rest):
        return _read_json(path, number, first, rest)


@contextmanager
def _open(path: str | PathLike[str]) -> Iterator[tuple[int, str, Iterator[str]]]:
    """Open a log as text: the number of its first line that is not blank, that line, and the lines after it."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        try:
            if file.read(len(GZIP)) == GZIP:
                file.seek(0)
                file = stack.enter_context(gzip.open(file))
            file.seek(0)
            head = file.read(512)
            file.seek(0)
            is_utf_16 = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
            for pattern, what in FOREIGN.items():
                if not is_utf_16 and re.match(pattern, head):
                    raise MalformedTraceError(f"{path}: this is {what}")
            encoding = "utf-16" if is_utf_16 else "utf-8-sig"
            lines = stack.enter_context(io.TextIOWrapper(file, encoding, errors="replace"))
            number, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
            if not first:
                raise MalformedTraceError(f"{path}: the file is empty")
            yield number, first, lines
        except EOFError:
            raise MalformedTraceError(f"{path}: the gzip file is cut off: fetch it again") from None
        except (zlib.error, gzip.BadGzipFile) as error:
            raise MalformedTraceError(f"{path}: the gzip file is damaged ({error}): fetch it again") from None


def _read_csv(path: Any, number: int, first: str, rest: Iterator[str]) -> list[TraceRequest]:
    rows = _csv_rows(number, chain([first], rest))
    _, header = next(rows, (number, []))
    if isinstance(header, ValueError):
        raise MalformedTraceError(f"{path}: line {number}: {header}")
    header = [name.strip() for name in header]
    missing = [name for name in AZURE_COLUMNS if name not in header]
    if missing and "\ufffd" in first:
        raise MalformedTraceError(f"{path}: this is no text in UTF-8 or UTF-16: save it as text in UTF-8")
    if missing:
        raise MalformedTraceError(
            f"{path}: line {number}: no column {missing[0]} in {reprlib.repr(header)}: the first line of a CSV "
            f"must name {', '.join(AZURE_COLUMNS)}, with commas between"
        )
    places = [header.index(name) for name in AZURE_COLUMNS]

    def parse(row: list[str]) -> tuple[datetime, int, int]:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} values for {len(header)} columns")
        time, prompt_len, output_len = (row[place].strip() for place in places)
        try:
            when = datetime.fromisoformat(time)
        except ValueError:
            raise ValueError(f"TIMESTAMP is {reprlib.repr(time)}, not a date and time") from None
        return when, _length(AZURE_COLUMNS[1], prompt_len), _length(AZURE_COLUMNS[2], output_len)

    parsed = _parse(path, "line", rows, parse)
    return [TraceRequest((when - parsed[0][0]).total_seconds(), *lengths) for when, *lengths in parsed]


def _csv_rows(number: int, lines: Iterable[str]) -> Iterator[Row]:
    """Cut a CSV into rows, each with the number of its first line; blank lines are left out."""
    reader = csv.reader(lines, skipinitialspace=True, strict=True)  # or a quote left open would swallow what follows
    while True:
        start = number + reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, ValueError(f"not CSV ({error})")
        else:
            if len(row) > 1 or "".join(row).strip():
                yield start, row


def _read_json(path: Any, number: int, first: str, rest: Iterator[str]) -> list[TraceRequest]:
    rows: Iterable[Row]
    if first.lstrip().startswith("["):
        line, items = _decode(number, first + "".join(rest))
        if isinstance(items, ValueError):
            raise MalformedTraceError(f"{path}: line {line}: {items}")
        unit, rows = "item", enumerate(items, 1)
    else:
        lines = enumerate(chain([first], rest), number)
        unit, rows = "line", (_decode(line, text) for line, text in lines if text.strip())

    def parse(row: Any) -> tuple[float, int, int, tuple[int, ...]]:
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
        prompt_len, output_len = (_length(name, row[name]) for name in ("input_length", "output_length"))
        return time / 1000, prompt_len, output_len, tuple(hash_ids)

    parsed = _parse(path, unit, rows, parse)
    return [TraceRequest(time - parsed[0][0], *more) for time, *more in parsed]


def _decode(number: int, text: str) -> Row:
    """Read JSON that begins in line ``number``; an error comes with its own line."""
    try:
        return number, json.loads(text.rstrip())  # at a line's end its text ends, not the next line's
    except json.JSONDecodeError as error:
        return number + error.lineno - 1, ValueError(f"not JSON ({error.msg}, character {error.colno})")
    except (ValueError, RecursionError) as error:
        return number, ValueError(f"not JSON ({error})")


def _length(name: str, value: Any) -> int:
    """Read a number of tokens: a whole number, or a text of digits."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if type(number) is not int or number < 1:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a whole number of at least 1")
    return number


def _parse(path: Any, unit: str, rows: Iterable[Row], parse: Callable[[Any], tuple[Any, ...]]) -> list[Any]:
    """Parse every row, check that time does not run backwards, and report all that is wrong at once."""
    parsed: list[Any] = []
    wrong: list[str] = []
    for number, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            values = parse(row)
            if parsed and values[0] < parsed[-1][0]:
                raise ValueError("time runs backwards")
        except TypeError:
            wrong.append(f"{unit} {number}: a time with a time zone beside one without")
        except ValueError as error:
            wrong.append(f"{unit} {number}: {error}")
        else:
            parsed.append(values)
    if wrong:
        rest = f"; and {len(wrong) - MOST_REPORTED} more" if len(wrong) > MOST_REPORTED else ""
        raise MalformedTraceError(f"{path}: {'; '.join(wrong[:MOST_REPORTED])}{rest}")
    if not parsed:
        raise MalformedTraceError(f"{path}: there is no request in it")
    return parsed
