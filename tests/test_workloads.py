"""Loads: drawn lengths have the means and quantiles they claim, and a trace is read whole or refused by line number."""

from __future__ import annotations

import json
import math
import random
from datetime import datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean, stdev, variance

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pagedattn_lab import workloads
from pagedattn_lab.workloads import (
    PAPER_MEANS,
    WORKLOADS,
    Fit,
    MalformedTraceError,
    TraceRequest,
    arrive,
    from_quantiles,
    load_azure_csv,
    load_mooncake_jsonl,
    load_trace,
    lognormal,
)
from pagedattn_lab.workloads.lengths import AZURE_QUANTILES, AZURE_SPREAD, OPT_MAX_LEN, QUANTILE_LEVELS, _draw_lognormal
from pagedattn_lab.workloads.request_logs import MOST_REPORTED

# Mean prompts and outputs in github.com/Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_{conv,code}.csv, 2023.
AZURE_MEANS = {"azure-conv": (1154.70, 211.13), "azure-code": (2047.85, 27.88)}

NUM_DRAWN = 50_000
MOST_ERRORS = 5  # a mean is further than 5 standard errors from the truth once in 1.7 million times


def standard_errors(numbers: list[int], expected: float) -> float:
    """How many standard errors the mean of a sample lies from where it should."""
    return abs(mean(numbers) - expected) / (stdev(numbers) / math.sqrt(len(numbers)))


@pytest.mark.parametrize("name", PAPER_MEANS)
def test_lengths_have_the_papers_means(name: str) -> None:
    """Catches medians taken for means, prompts taken for outputs, and pairs longer than the model."""
    pairs = list(islice(WORKLOADS[name](1), NUM_DRAWN))
    assert max(map(sum, pairs)) <= OPT_MAX_LEN and min(map(min, pairs)) >= 1
    for lengths, expected in zip(zip(*pairs, strict=True), PAPER_MEANS[name], strict=True):
        assert standard_errors(lengths, expected) < MOST_ERRORS
        assert all(type(length) is int for length in lengths)


def test_a_fit_that_forgets_the_longest_would_be_seen() -> None:
    """Catches a check of the means that is too kind: medians without the correction miss it by far."""
    mus = [math.log(m) - s * s / 2 for m, s in zip(PAPER_MEANS["sharegpt"], AZURE_SPREAD, strict=True)]
    rng = random.Random("lengths 1")
    pairs = list(islice(_draw_lognormal(rng, mus[0], AZURE_SPREAD[0], mus[1], AZURE_SPREAD[1], 2048), NUM_DRAWN))
    errors = [standard_errors(*pair) for pair in zip(zip(*pairs, strict=True), PAPER_MEANS["sharegpt"], strict=True)]
    assert min(errors) > MOST_ERRORS


@pytest.mark.parametrize(
    ("means", "spread", "longest"),
    [
        ((100, 200), (0.5, 0.5), 10_000),
        ((300, 100), (1.2, 0.3), 800),  # one pair in five is refused
        ((100, 300), (0.0, 1.0), 1000),
        ((100, 300), (1.0, 0.0), 1000),
    ],
)
def test_other_means_and_spreads(means: tuple[float, float], spread: tuple[float, float], longest: int) -> None:
    """Catches a fit that only suits the paper's figures, exchanges the spreads, or stumbles over lengths all alike."""
    pairs = list(islice(lognormal(means, spread, longest, seed=3), NUM_DRAWN))
    assert max(map(sum, pairs)) <= longest
    for lengths, expected, sigma in zip(zip(*pairs, strict=True), means, spread, strict=True):
        if sigma == 0:
            assert set(lengths) == {expected}
        else:
            assert standard_errors(lengths, expected) < MOST_ERRORS
    if longest == 10_000:  # nothing is refused, so the logarithms have the spread asked for (standard error s / √2n)
        for lengths, sigma in zip(zip(*pairs, strict=True), spread, strict=True):
            measured = stdev(map(math.log, lengths))
            assert abs(measured - sigma) < MOST_ERRORS * sigma / math.sqrt(2 * NUM_DRAWN)


@pytest.mark.parametrize(
    ("means", "spread", "longest", "message"),
    [
        ((0.5, 10), (1, 1), 100, "give means of at least 1"),
        ((10, -3), (1, 1), 100, "give means of at least 1"),
        ((10, 10), (1, -1), 100, "spreads of at least 0"),
        ((50, 50), (1, 1), 100, "leave no room below 100 tokens: raise longest"),
        ((5, 5), (1, 1), 0, "leave no room below 0 tokens: raise longest"),
        ((math.inf, 5), (1, 1), 100, "leave no room"),
        ((60, 39), (1, 1), 101, "no lognormal lengths of spread"),
        ((math.nan, 5), (1, 1), 100, "no lognormal lengths of spread"),
        ((5, 5), (40, 1), 100, "no lognormal lengths of spread"),  # the mean of such a spread overflows a float
        ((5, 5), (1, 10), 100, "no lognormal lengths of spread"),  # and that of such a median underflows
        ((81, 7), (2, 2), 100, "no lognormal lengths of spread"),  # these exist: one draw in thousands
    ],
)
def test_impossible_means_are_refused(
    means: tuple[float, float], spread: tuple[float, float], longest: int, message: str
) -> None:
    """Catches a division by zero, an overflow, and above all a workload whose next length never comes."""
    with pytest.raises(ValueError, match=message):
        lognormal(means, spread, longest)


@pytest.mark.parametrize("name", AZURE_QUANTILES)
def test_quantile_tables(name: str) -> None:
    """Catches a figure dropped or mistyped, and means further from the traces' own than the module says."""
    claimed = {"azure-conv": (0.01, 0.01), "azure-code": (0.01, 0.04)}[name]
    for table, true_mean, most in zip(AZURE_QUANTILES[name], AZURE_MEANS[name], claimed, strict=True):
        assert len(table) == len(QUANTILE_LEVELS) and table[0] >= 1
        assert all(low <= high for low, high in pairwise(table))
        steps = zip(pairwise(QUANTILE_LEVELS), pairwise(table), strict=True)
        table_mean = sum((above - below) * (low + high) / 2 for (below, above), (low, high) in steps)
        assert abs(table_mean / true_mean - 1) < most
    pairs = islice(WORKLOADS[name](2), NUM_DRAWN)
    for lengths, table, true_mean in zip(
        zip(*pairs, strict=True), AZURE_QUANTILES[name], AZURE_MEANS[name], strict=True
    ):
        assert min(lengths) >= table[0] and max(lengths) <= table[-1]
        error = MOST_ERRORS * stdev(lengths) / math.sqrt(NUM_DRAWN)
        assert abs(mean(lengths) - true_mean) < error + 0.04 * true_mean


def test_drawn_lengths_have_the_tables_quantiles() -> None:
    """Catches levels off by one, rounding away of the ends, and lengths that are not spread evenly in between."""
    levels, prompts, outputs = (0, 0.1, 0.5, 1), (1, 1001, 9001, 90_001), (5, 5, 2005, 2005)
    pairs = list(islice(from_quantiles(prompts, outputs, levels), NUM_DRAWN))
    expected = [
        (prompts, 0, dict(zip(prompts[1:-1], levels[1:-1], strict=True)) | {501: 0.05, 5001: 0.3, 49_501: 0.75})
    ]
    expected.append((outputs, 1, {5: 0.1, 1005: 0.3, 2004: 0.5}))
    for table, side, fractions in expected:
        lengths = [pair[side] for pair in pairs]
        assert table[0] <= min(lengths) and max(lengths) <= table[-1]
        for length, fraction in fractions.items():
            found = sum(drawn <= length for drawn in lengths) / NUM_DRAWN
            rounding = 0.5 / 1000  # of a length, in the narrowest step; times the fraction that lies in the step, 0.4
            assert abs(found - fraction) < MOST_ERRORS * math.sqrt(fraction * (1 - fraction) / NUM_DRAWN) + rounding


@pytest.mark.parametrize(
    ("prompts", "outputs", "levels", "message"),
    [
        ((1, 2), (1, 2, 3), (0, 1), r"\(1, 2, 3\) is no table of lengths: give 2 that rise from at least 1"),
        ((2, 1), (1, 2), (0, 1), r"\(2, 1\) is no table of lengths"),
        ((0.9, 1), (1, 2), (0, 1), "is no table of lengths"),
        ((1, math.nan, 3), (1, 2, 3), (0, 0.5, 1), "is no table of lengths"),
        ((1, 2), (1, math.inf), (0, 1), "is no table of lengths"),
        ((), (), (), r"levels \(\) must rise from 0 to 1"),
        ((1,), (1,), (0,), "must rise from 0 to 1"),
        ((1, 2), (1, 2), (0, 0.9), "must rise from 0 to 1"),
        ((1, 2), (1, 2), (0.1, 1), "must rise from 0 to 1"),
        ((1, 2, 3, 4), (1, 2, 3, 4), (0, 0.5, 0.5, 1), "must rise from 0 to 1"),
        ((1, 2, 3), (1, 2, 3), (0, math.nan, 1), "must rise from 0 to 1"),
    ],
)
def test_impossible_tables_are_refused(prompts: tuple, outputs: tuple, levels: tuple, message: str) -> None:
    """Catches a table that fails only when a length is drawn, or draws nonsense."""
    with pytest.raises(ValueError, match=message):
        from_quantiles(prompts, outputs, levels)


@pytest.mark.parametrize("name", WORKLOADS)
def test_seeds(name: str) -> None:
    """Catches lengths that differ from run to run, or do not depend on the seed."""

    def draw(seed: int) -> list[tuple[int, int]]:
        return list(islice(WORKLOADS[name](seed), 50))

    assert draw(7) == draw(7)
    assert len({tuple(draw(seed)) for seed in range(5)}) == 5


def test_arrivals_do_not_depend_on_lengths() -> None:
    """Catches two schemes that are compared under different loads, and lengths that depend on the gaps."""
    short = list(islice(arrive(workloads.alpaca(4), rate=2.0, seed=4), 100))
    long = list(islice(arrive(workloads.azure_conv(4), rate=2.0, seed=4), 100))
    slower = list(islice(arrive(workloads.alpaca(4), rate=0.5, seed=4), 100))
    assert [request.arrival for request in short] == [request.arrival for request in long]
    assert [request.arrival for request in slower] == pytest.approx([4 * request.arrival for request in short])
    assert [request[1:] for request in slower] == [request[1:] for request in short]
    other_seed = list(islice(arrive(workloads.alpaca(4), rate=2.0, seed=5), 100))
    assert other_seed[1].arrival != short[1].arrival
    # Nor do both come from the same random numbers: lengths and gaps tell from which part of the whole they were drawn.
    million = (1, 1_000_001)
    pairs = islice(from_quantiles(million, million, levels=(0, 1), seed=4), 50)
    drawn = [(length - 1) / 1_000_000 for pair in pairs for length in pair]
    requests = arrive([(1, 1)] * 101, rate=1.0, seed=4)
    gaps = [1 - math.exp(before.arrival - after.arrival) for before, after in pairwise(requests)]
    assert sum(abs(part - gap) < 1e-5 for part, gap in zip(drawn, gaps, strict=True)) <= 1


def test_arrivals_are_a_poisson_process() -> None:
    """Catches even gaps, a rate taken for a gap, and a first request that does not come at once."""
    requests = list(arrive([(1, 1)] * NUM_DRAWN, rate=4.0, seed=9))
    gaps = [after.arrival - before.arrival for before, after in pairwise(requests)]
    assert requests[0].arrival == 0 and min(gaps) >= 0
    assert abs(mean(gaps) - 1 / 4) < MOST_ERRORS * (1 / 4) / math.sqrt(len(gaps))
    # The fourth moment of exponential gaps is 9 times the square of their variance.
    assert abs(variance(gaps) - 1 / 16) < MOST_ERRORS * (1 / 16) * math.sqrt((9 - 1) / len(gaps))


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_impossible_rates_are_refused(rate: float) -> None:
    """Catches an arrival that never comes, or comes before the last one; the call says so, not the first request."""
    with pytest.raises(ValueError, match=f"a rate of {rate} requests per second: give one above 0"):
        arrive([(1, 1)], rate=rate)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=20), max_model_len=st.integers(2, 50)
)
def test_fit(lengths: list[tuple[int, int]], max_model_len: int) -> None:
    """Catches an output cut by one too many or too few, and requests that vanish without being counted."""
    requests = Fit(arrive(lengths), max_model_len)
    fitting = list(requests)
    assert [(r.prompt_len, r.output_len) for r in fitting] == [
        (prompt_len, min(output_len, max_model_len - prompt_len))
        for prompt_len, output_len in lengths
        if prompt_len < max_model_len
    ]
    assert requests.refused == len(lengths) - len(fitting)
    assert requests.cut == sum(p < max_model_len < p + o for p, o in lengths)


def test_fit_takes_one_request_at_a_time_and_keeps_the_rest_of_it() -> None:
    """Catches an endless workload that is read to its end, a lost arrival, and lost hashes."""
    request = TraceRequest(2.5, 10, 30, (1, 2))
    endless = iter(Fit(iter(lambda: request, None), max_model_len=16))
    assert next(endless) == TraceRequest(2.5, 10, 6, (1, 2))
    for max_model_len in (1, 0, -5):
        with pytest.raises(ValueError, match=f"max_model_len is {max_model_len}: a prompt and an output need"):
            Fit([], max_model_len)


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


@settings(deadline=None)
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


@settings(deadline=None)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: no column TIMESTAMP: the first line must name TIMESTAMP, ContextTokens, GeneratedTokens"),
        (b"\n\n", "line 1: no column TIMESTAMP"),
        (b"TIMESTAMP,GeneratedTokens\n", "line 1: no column ContextTokens"),
        (b"timestamp,contexttokens,generatedtokens\n", "line 1: no column TIMESTAMP"),
        (HEADER.encode(), "there is no request in it"),
        (HEADER.encode() + b"\n\n \n", "there is no request in it"),
        (bytes(range(256)) * 20, "line 1: no column TIMESTAMP"),
        ((HEADER + "\n" + FIRST).encode("utf-16"), "line 1: no column TIMESTAMP"),
        (
            HEADER.encode() + b"\n" + b"\xff\xfe\x00," * 3 + b"\n" + b"\x80" * 3000 + b",1,1",
            "line 2: 4 values .* line 3: TIMES",
        ),
        (b"[" + json_row().encode() + b"]", "line 1: no column TIMESTAMP"),
        (b"{" + b"\xff" * 5000, "line 1: not JSON"),
    ],
)
def test_what_is_no_trace_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """Catches an empty list taken for a load, and an error from deep within that does not name the file."""
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(MalformedTraceError, match=f"^{path}: .*{message}") as caught:
        load_trace(path)
    assert len(str(caught.value)) < 400


def test_an_empty_jsonl_is_no_load(tmp_path: Path) -> None:
    """Catches the other loader returning nothing."""
    path = tmp_path / "trace"
    path.write_text("\n\n")
    with pytest.raises(MalformedTraceError, match="there is no request in it"):
        load_mooncake_jsonl(path)


@pytest.mark.parametrize("load", [load_trace, load_azure_csv, load_mooncake_jsonl])
def test_a_file_that_cannot_be_opened(load, tmp_path: Path) -> None:
    """Catches an error of the machine that is sold as one of the trace."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError):
            load(path)
