"""Logs of requests: however they are written they come back whole, or the complaint says what is wrong and where."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import tarfile
import zipfile
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pagedattn_lab.workloads import (
    MalformedTraceError,
    TraceRequest,
    load_azure_csv,
    load_mooncake_jsonl,
    load_trace,
)
from pagedattn_lab.workloads.request_logs import MOST_REPORTED
from tests.helpers.cli import AZURE, MOONCAKE

lengths = st.integers(1, 10**6)
quirks = st.fixed_dictionaries(
    {
        "newline": st.sampled_from(["\n", "\r\n"]),
        "bom": st.booleans(),
        "blank": st.lists(st.integers(0, 12)),
        "end": st.booleans(),
    }
)


def write(path: Path, lines: list[str], newline: str, bom: bool, blank: list[int], end: bool) -> None:
    lines = lines.copy()
    for place in blank:  # never before the first line, which may be a header
        lines.insert(1 + place % len(lines), "  ")
    text = newline.join(lines) + newline * end
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))


@given(
    rows=st.lists(st.tuples(st.integers(0, 10**12), lengths, lengths), min_size=1, max_size=12),
    columns=st.permutations(["TIMESTAMP", "ContextTokens", "GeneratedTokens", "Region", "model"]),
    extra=st.integers(0, 2),
    zone=st.sampled_from(["", "Z", "+02:00"]),
    pad=st.sampled_from(["", " "]),
    quirk=quirks,
)
def test_a_csv_trace_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list, columns: list, extra: int, zone: str, pad: str, quirk: dict
) -> None:
    """Catches columns taken by place, a lost row, times not counted from the first, and trouble with editors."""
    path, begin = tmp_path_factory.getbasetemp() / "trace.csv", datetime(2023, 11, 16, 18, 15, 46, 680590)
    columns = [column for column in columns if column not in ["Region", "model"][extra:]]
    rows = sorted(rows, key=lambda row: row[0])
    lines = [f",{pad}".join(columns)]
    for microseconds, prompt_len, output_len in rows:
        values = {
            "TIMESTAMP": f"{begin + timedelta(microseconds=microseconds):%Y-%m-%d %H:%M:%S.%f}{'0' * (not zone)}{zone}",
            "ContextTokens": str(prompt_len),
            "GeneratedTokens": str(output_len),
            "Region": "west",
            "model": "",
        }
        lines.append(f",{pad}".join(values[column] for column in columns))
    write(path, lines, **quirk)
    expected = [
        TraceRequest(timedelta(microseconds=microseconds - rows[0][0]).total_seconds(), prompt_len, output_len)
        for microseconds, prompt_len, output_len in rows
    ]
    assert load_azure_csv(path) == load_trace(path) == load_trace(str(path)) == expected


@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(-(10**12), 10**12), st.floats(-1e12, 1e12)),
            lengths,
            lengths,
            st.one_of(st.none(), st.lists(st.integers(0, 2**64), max_size=4)),
        ),
        min_size=1,
        max_size=12,
    ),
    more=st.booleans(),
    quirk=quirks,
)
def test_a_jsonl_trace_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list, more: bool, quirk: dict
) -> None:
    """Catches milliseconds taken for seconds, lost hashes, and trouble with fields that nobody asked for."""
    path = tmp_path_factory.getbasetemp() / "trace.jsonl"
    rows = sorted(rows, key=lambda row: row[0])
    lines = []
    for time, prompt_len, output_len, hash_ids in rows:
        row = {"timestamp": time, "input_length": prompt_len, "output_length": output_len}
        lines.append(
            json.dumps(row | ({} if hash_ids is None else {"hash_ids": hash_ids}) | ({"x": "ü"} if more else {}))
        )
    write(path, lines, **quirk)
    expected = [
        TraceRequest(time / 1000 - rows[0][0] / 1000, prompt_len, output_len, tuple(hash_ids or ()))
        for time, prompt_len, output_len, hash_ids in rows
    ]
    assert load_mooncake_jsonl(path) == load_trace(path) == expected


class Way(NamedTuple):
    """How a log may be written."""

    newline: str
    encoding: str
    mark: bytes
    compressed: bool


ways = st.builds(
    lambda newline, encoded, compressed: Way(newline, *encoded, compressed),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([
        ("utf-8", b""), ("utf-8", BOM_UTF8), ("utf-16-le", BOM_UTF16_LE), ("utf-16-be", BOM_UTF16_BE)
    ]),
    st.booleans(),
)  # fmt: skip
notes = st.text('a", \n\r;é☃\u2028', max_size=6)
requests_and_notes = st.lists(
    st.tuples(st.integers(0, 10**7), lengths, lengths, st.lists(st.integers(0, 99), max_size=3), notes),
    min_size=1,
    max_size=6,
)


def write_as(path: Path, lines: Sequence[str], way: Way) -> Path:
    content = way.mark + way.newline.join([*lines, ""]).encode(way.encoding)
    path.write_bytes(gzip.compress(content) if way.compressed else content)
    return path


@given(rows=requests_and_notes, way=ways, data=st.data())
def test_a_log_comes_back_however_it_is_written(
    rows: list, way: Way, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Catches a quote, a line end, a mark or a compression that spoils a log, alone or together with another."""
    begin, times, now = datetime(2024, 10, 15, 12), [], 0
    for gap, *_ in rows:
        times.append(now)
        now += gap
    expected = [
        TraceRequest(time / 1000, prompt_len, output_len, tuple(hash_ids))
        for time, (_, prompt_len, output_len, hash_ids, _) in zip(times, rows, strict=True)
    ]
    path = tmp_path_factory.getbasetemp() / "log"

    def quoted(cell: str) -> str:
        must = any(letter in cell for letter in '",\n\r')
        return '"' + cell.replace('"', '""') + '"' if must or data.draw(st.booleans()) else cell

    lines = [",".join(map(quoted, ("TIMESTAMP", "Note, or\n none", "ContextTokens", "GeneratedTokens")))]
    for time, (_, prompt_len, output_len, _, note) in zip(times, rows, strict=True):
        when = f"{begin + timedelta(milliseconds=time)}"
        lines.append(",".join(map(quoted, (when, note, str(prompt_len), str(output_len)))))
    assert load_trace(write_as(path, lines, way)) == [request._replace(hash_ids=()) for request in expected]

    objects = [
        {"timestamp": time, "x": note, "input_length": prompt_len, "output_length": output_len, "hash_ids": hash_ids}
        for time, (_, prompt_len, output_len, hash_ids, note) in zip(times, rows, strict=True)
    ]
    ascii_only = data.draw(st.booleans())
    lines = [json.dumps(item, ensure_ascii=ascii_only) for item in objects]
    assert load_trace(write_as(path, lines, way)) == expected
    lines = json.dumps(objects, ensure_ascii=ascii_only, indent=data.draw(st.sampled_from([None, 1]))).split("\n")
    assert load_trace(write_as(path, lines, way)) == load_mooncake_jsonl(path) == expected


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
FIRST = "2023-11-16 18:15:46.68,374,44"
GOOD_JSON = {"timestamp": 5000, "input_length": 6, "output_length": 9, "hash_ids": [0]}


def csv_row(time: object = "2023-11-16 18:15:50", prompt_len: object = 5, output_len: object = 5) -> str:
    return f"{time},{prompt_len},{output_len}"


def json_row(**changes: object) -> str:
    return json.dumps({name: value for name, value in (GOOD_JSON | changes).items() if value != "absent"})


MALFORMED_CSV = {
    csv_row(prompt_len=0): "ContextTokens is '0', not a whole number of at least 1",
    csv_row(output_len=-3): "GeneratedTokens is '-3', not a whole number",
    csv_row(output_len=2.0): "GeneratedTokens is '2.0'",
    csv_row(prompt_len="1_000"): "ContextTokens is '1_000'",
    csv_row(prompt_len="٣"): "ContextTokens is '٣'",
    csv_row(prompt_len="²"): "ContextTokens is '²'",
    csv_row(output_len=""): "GeneratedTokens is ''",
    csv_row(output_len="nan"): "GeneratedTokens is 'nan'",
    csv_row(output_len="9" * 5000): "4300 digits",
    csv_row(time=""): "TIMESTAMP is '', not a date and time",
    csv_row(time="yesterday"): "TIMESTAMP is 'yesterday'",
    csv_row(time="2023-13-01 00:00:00"): "TIMESTAMP is '2023-13-01 00:00:00'",
    csv_row(time="1700158546"): "TIMESTAMP is '1700158546'",
    csv_row(time="2023-11-16 18:15:46.67"): "time runs backwards",
    csv_row(time="2023-11-16 18:15:50+00:00"): "a time with a time zone beside one without",
    csv_row() + ",7": "4 values for 3 columns",
    "2023-11-16 18:15:50,5": "2 values for 3 columns",
    "\x00\x01\ufffd": "1 values for 3 columns",
    csv_row(output_len='"5" 5'): r"not CSV \(",
    csv_row(output_len='"a\nb"'): r"GeneratedTokens is 'a\\nb'",
}

MALFORMED_JSON = {
    "{": r"not JSON \(Expecting property name .*, character",
    "]": "not JSON",
    '{"timestamp": 1': "not JSON",
    json_row() + ",": "not JSON",
    "[" * 100_000: "not JSON",
    "[1, 2]": "not a JSON object",
    "null": "not a JSON object",
    '"timestamp input_length output_length"': "not a JSON object",
    json_row(timestamp="absent"): "no timestamp",
    json_row(input_length="absent"): "no input_length",
    json_row(output_length="absent"): "no output_length",
    json_row(timestamp=math.nan): "timestamp is nan, not a number of milliseconds",
    json_row(timestamp=math.inf): "timestamp is inf",
    '{"timestamp": 1e999, "input_length": 1, "output_length": 1}': "timestamp is inf",
    json_row(timestamp=10**400): "timestamp is 1000000",
    json_row(timestamp=2**53): "timestamp is 9007199254740992",
    json_row(timestamp=True): "timestamp is True",
    json_row(timestamp="5000"): "timestamp is '5000'",
    json_row(timestamp=None): "timestamp is None",
    json_row(timestamp=[]): r"timestamp is \[\]",
    json_row(timestamp=4999): "time runs backwards",
    json_row(input_length=0): "input_length is 0, not a whole number of at least 1",
    json_row(input_length=True): "input_length is True",
    json_row(input_length=6.0): "input_length is 6.0",
    json_row(output_length=math.nan): "output_length is nan",
    json_row(output_length=None): "output_length is None",
    json_row(output_length=[9]): r"output_length is \[9\]",
    json_row(hash_ids=None): "hash_ids is not a list of whole numbers of at least 0",
    json_row(hash_ids=7): "hash_ids is not a list",
    json_row(hash_ids=[1, -1]): "hash_ids is not a list",
    json_row(hash_ids=[1.0]): "hash_ids is not a list",
    json_row(hash_ids=[True]): "hash_ids is not a list",
    json_row(hash_ids=["a"]): "hash_ids is not a list",
}


@pytest.mark.parametrize(
    ("name", "start", "row", "last", "message"),
    [("x.csv", [HEADER, FIRST], row, csv_row(), message) for row, message in MALFORMED_CSV.items()]
    + [("x.jsonl", [json_row()], row, json_row(), message) for row, message in MALFORMED_JSON.items()],
    ids=lambda value: repr(value)[:40],
)
def test_a_malformed_row_is_named(
    name: str, start: list[str], row: str, last: str, message: str, tmp_path: Path
) -> None:
    """Catches a row that is read as something else or skipped, another error than the one promised, a wrong line."""
    path = tmp_path / name
    path.write_text("\n".join([*start, "", row, last]), encoding="utf-8")
    line = len(start) + 2
    with pytest.raises(MalformedTraceError, match=f"{name}: line {line}: .*{message}") as caught:
        load_trace(path)
    assert str(caught.value).count("line ") == 1 and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_every_malformed_row_is_named(tmp_path: Path) -> None:
    """Catches a loader that stops at the first, loses the count, or fills the screen."""
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEADER, csv_row(prompt_len="x"), FIRST, "", "junk", csv_row(), csv_row(output_len=0)]))
    with pytest.raises(MalformedTraceError) as caught:
        load_azure_csv(path)
    reasons = str(caught.value).removeprefix(f"{path}: ").split("; ")
    assert [reason.split(":")[0] for reason in reasons] == ["line 2", "line 5", "line 7"]
    for number, rest in (
        (MOST_REPORTED, ""),
        (MOST_REPORTED + 1, "; and 1 more"),
        (500, f"; and {500 - MOST_REPORTED} more"),
    ):
        path.write_text("\n".join([HEADER, FIRST, *["junk"] * number]))
        with pytest.raises(MalformedTraceError) as caught:
            load_azure_csv(path)
        assert str(caught.value).count("line ") == MOST_REPORTED
        assert str(caught.value).endswith(f"line {MOST_REPORTED + 2}: 1 values for 3 columns" + rest)


def test_time_is_compared_with_the_last_good_row(tmp_path: Path) -> None:
    """Catches a bad row that makes the rows after it bad, and equal times that are refused."""
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "\n".join([json_row(), json_row(timestamp=9999, input_length=0), json_row(), json_row(timestamp=1)])
    )
    with pytest.raises(MalformedTraceError) as caught:
        load_mooncake_jsonl(path)
    assert [part.split(":")[0] for part in str(caught.value).split("line ")[1:]] == ["2", "4"]


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("log.csv", content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("log.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


GOOD = AZURE.encode()
EMPTY, COLUMNS = (
    "the file is empty",
    f"the first line of a CSV must name {HEADER.replace(',', ', ')}, with commas between",
)
WEB = "this is a web page or XML: download the file itself"
BINARY = "this is binary, or UTF-16 without a byte order mark: save it as text in UTF-8"
NO_TEXT = "this is no text in UTF-8 or UTF-16: save it as text in UTF-8"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
WHAT_IT_IS = {
    "empty": (b"", EMPTY),
    "blank": (b"\n\n", EMPTY),
    "blank for long": (b" \n" * 5000, EMPTY),
    "a mark alone": (BOM_UTF8, EMPTY),
    "a mark of UTF-16 alone": (BOM_UTF16_LE, EMPTY),
    "nothing, compressed": (gzip.compress(b""), EMPTY),
    "no request": (HEADER.encode(), "there is no request in it"),
    "no request, but blanks": (HEADER.encode() + b"\n\n \n", "there is no request in it"),
    "no item": (b"[]", "there is no request in it"),
    "a column short": (b"TIMESTAMP,GeneratedTokens\n", "line 1: no column ContextTokens in ['TIMESTAMP', 'Gener"),
    "other letters": (HEADER.lower().encode(), "line 1: no column TIMESTAMP in ['timestamp', 'contexttokens', 'gen"),
    "BurstGPT": (BURST.encode(), "line 1: no column TIMESTAMP in ['Timestamp', 'Model', 'Request tokens'"),
    "semicolons": (AZURE.replace(",", ";").encode(), COLUMNS),
    "after blanks": (b"\n \nx,y\n", "line 3: no column TIMESTAMP"),
    "a quote left open in the header": (b'"TIMESTAMP,ContextTokens\n1,2\n', "line 1: not CSV ("),
    "an empty quote": (b'""\n', "line 1: no column TIMESTAMP"),
    "zip": (zipped(GOOD), "this is a zip archive or a spreadsheet: unpack it, or save the sheet as CSV"),
    "Parquet": (b"PAR1\x15\x04\x15\x08", "this is a Parquet file: convert it to CSV"),
    "xz": (lzma.compress(GOOD), "this is compressed with xz: unpack it with xz -d"),
    "bzip2": (bz2.compress(GOOD), "this is compressed with bzip2: unpack it with bzip2 -d"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x58", "this is compressed with zstd: unpack it with zstd -d"),
    "gzip in gzip": (gzip.compress(gzip.compress(GOOD)), "this is compressed with gzip twice: unpack it with gunzip"),
    "tar": (tarred(GOOD), "this is a tar archive: unpack it with tar -x"),
    "tar.gz": (gzip.compress(tarred(GOOD)), "this is a tar archive: unpack it with tar -x"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "this is a pointer of Git LFS, not the file itself"),
    "HTML": (b"\n  <!DOCTYPE html>\n<html>", WEB),
    "HTML with a mark": (BOM_UTF8 + b"<html>", WEB),
    "bytes": (bytes(range(256)) * 20, BINARY),
    "UTF-16 without a mark": (AZURE.encode("utf-16-le"), BINARY),
    "JSON in UTF-16 without a mark": (MOONCAKE.encode("utf-16-be"), BINARY),
    "no zeros": (bytes(range(128, 256)) * 20, NO_TEXT),
    "half a mark": (b"\xff", NO_TEXT),
    "rows of bytes": (
        HEADER.encode() + b"\n" + b"\xff\xfe\x00," * 3 + b"\n" + b"\x80" * 3000 + b",1,1",
        "line 2: 4 values for 3 columns; line 3: TIMES",
    ),
    "a brace and bytes": (b"{" + b"\xff" * 5000, "line 1: not JSON ("),
    "an array that does not end": (f"\n[{json_row()},\n\n{json_row()}\n".encode(), "line 4: not JSON ("),
    "a bad array": (f"[\n{json_row()},\r\n{json_row()[:-1]},\n1]".encode(), "line 4: not JSON ("),
    "much after an array": (f"[{json_row()}]\n{json_row()}".encode(), "line 2: not JSON (Extra data, character 1)"),
    "a deep array": (b"[" * 100_000, "line 1: not JSON ("),
    "an array of others": (f"[1, {json_row()}, [],\n {{}}]".encode(), "item 1: not a JSON object; item 3: not a"),
    "an array back in time": (
        f"[{json_row()},\n{json_row(timestamp=1)}]".encode(), "item 2: time runs backwards"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WHAT_IT_IS.values(), ids=WHAT_IT_IS)
def test_what_is_no_log_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    """Catches a complaint about columns in what has none, an error from deep within that does not name the file, and
    a file told by its name.
    """
    for name in ("log", "log.csv.gz", "log.jsonl", "log.zip"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MalformedTraceError) as caught:
            load_trace(path)
        said = str(caught.value)
        assert said.startswith(f"{path}: ") and message in said and len(said) - len(str(path)) < 400
        assert "\n" not in said


@pytest.mark.parametrize("load", [load_azure_csv, load_mooncake_jsonl])
def test_either_loader_names_what_it_is(load, tmp_path: Path) -> None:
    """Catches one format's loader that takes an empty file for a load, or another kind of file for its own."""
    path = tmp_path / "log"
    for name in ("empty", "blank", "zip", "gzip in gzip", "HTML", "bytes"):
        content, message = WHAT_IT_IS[name]
        path.write_bytes(content)
        with pytest.raises(MalformedTraceError, match=f"^{path}: {message}"):
            load(path)
    path.write_text({load_azure_csv: MOONCAKE, load_mooncake_jsonl: AZURE}[load])
    with pytest.raises(MalformedTraceError, match=r"line 1: not (CSV|JSON)"):
        load(path)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_an_editor_counts_them(newline: str, tmp_path: Path) -> None:
    """Catches rows counted for lines where a quoted value has lines of its own, and the last line of a row given."""
    lines = [
        "", 'TIMESTAMP,"a', 'note",ContextTokens,GeneratedTokens', "", '2024-05-10 00:00:00+00:00,"one', "", '",5,5',
        '2024-05-10 00:00:01+00:00,"two', ' lines",x,5', "2024-05-10 00:00:02+00:00,,5,0",
        '2024-05-10,"open,5,5', "5,5",
    ]  # fmt: skip
    path = tmp_path / "log.csv"
    path.write_bytes(newline.join(lines).encode())
    with pytest.raises(MalformedTraceError) as caught:
        load_trace(path)
    reasons = str(caught.value).removeprefix(f"{path}: ").split("; ")
    assert reasons == [
        "line 8: ContextTokens is 'x', not a whole number of at least 1",
        "line 10: GeneratedTokens is '0', not a whole number of at least 1",
        "line 11: not CSV (unexpected end of data)",
    ]
    path.write_bytes(newline.join(lines[:7]).encode())
    assert load_trace(path) == [TraceRequest(0.0, 5, 5)]


def test_a_quote_left_open_loses_no_row(tmp_path: Path) -> None:
    """Catches rows swallowed in silence by a value that nobody asks for, up to the next quote or the end."""
    path = tmp_path / "log.csv"
    for last in ("", '"north"'):
        rows = [HEADER + ",Region", FIRST + ',"west', *[csv_row() + ",east"] * 3, csv_row() + "," + last]
        path.write_text("\n".join(rows))
        with pytest.raises(MalformedTraceError, match=r"log\.csv: line 2: not CSV \("):
            load_trace(path)


def test_a_very_long_value_is_named(tmp_path: Path) -> None:
    """Catches the csv module's own error, which is no ValueError and names no line."""
    path = tmp_path / "log.csv"
    path.write_text("\n".join([HEADER, FIRST, "x" * 200_000, csv_row(output_len=0)]))
    with pytest.raises(MalformedTraceError, match=r"line 3: not CSV \(field larger.*\); line 4: GeneratedTokens"):
        load_trace(path)


@pytest.mark.parametrize("text", [AZURE, MOONCAKE])
def test_gzip_cut_or_damaged_anywhere(text: str, tmp_path: Path) -> None:
    """Catches a log that is short without a word, and errors of gzip and zlib that do not name the file."""
    path = tmp_path / "log"
    path.write_text(text)
    whole = load_trace(path)
    content = gzip.compress(text.encode(), mtime=0)
    assert len(content) > 100
    for size in range(2, len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(MalformedTraceError, match=f"^{path}: the gzip file is cut off: fetch it again"):
            load_trace(path)
    kinds = set()
    for place in range(2, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            assert load_trace(path) == whole and place < 10  # a time or a system in the header, which say nothing
        except MalformedTraceError as error:
            assert str(error).startswith(f"{path}: the gzip file is ")
            kinds.add(str(error).removeprefix(f"{path}: ").split("(")[0].split(":")[0].strip())
    assert kinds == {"the gzip file is cut off", "the gzip file is damaged"}
    path.write_bytes(content + gzip.compress(b"\n"))
    assert load_trace(path) == whole  # parts of a file may be compressed one after the other


@pytest.mark.parametrize("load", [load_trace, load_azure_csv, load_mooncake_jsonl])
def test_a_file_that_cannot_be_opened(load, tmp_path: Path) -> None:
    """Catches an error of the machine that is sold as one of the trace."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError):
            load(path)
