"""Requests to serve: how long they are, and when they arrive (chapter 02).

Synthetic lengths come without end, from a seed; traces of real services are read from a file.

* :func:`sharegpt` and :func:`alpaca` have the *mean* lengths that Kwon et al. 2023 report for these data sets (Fig. 11)
  and no sequence longer than the model that the paper served. Their shape is an assumption: lognormal, prompts and
  outputs independent, with the spread that the logarithms of the lengths have in the Azure trace of conversations.
  Trust their means; take their quantiles for those of a plausible chat service, not of these data sets.
* :func:`azure_conv` and :func:`azure_code` draw from quantile tables of the public Azure traces of 2023. Between two
  entries of a table lengths are taken as evenly spread, which puts the means within 1 % of the traces' own (outputs of
  the coding assistant: 4 % above, for their longest percent is steep). Prompts and outputs are drawn independently:
  in the traces their ranks correlate by 0.07 and by -0.02.

Source of the tables: *Azure LLM inference trace 2023*, github.com/Azure/AzurePublicDataset, CC-BY-4.0, described in
Patel et al. 2023, "Splitwise".
"""

from __future__ import annotations

import json
import math
import random
import reprlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from itertools import pairwise, repeat
from os import PathLike
from statistics import NormalDist
from typing import Any, NamedTuple

Lengths = Iterator[tuple[int, int]]

PAPER_MEANS = {"sharegpt": (161.31, 337.99), "alpaca": (19.31, 58.45)}
"""Mean tokens in prompts and outputs: Kwon et al. 2023, Fig. 11."""

AZURE_SPREAD = (0.985, 0.859)
"""Standard deviation of the logarithms of prompt and output lengths in the Azure conversation trace."""

OPT_MAX_LEN = 2048
"""Positions that OPT models have, which the paper served."""

QUANTILE_LEVELS = (
    0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
    0.975, 0.99, 0.995, 0.999, 1,
)  # fmt: skip
"""The parts of all requests that :data:`AZURE_QUANTILES` has an entry for."""

MOST_REPORTED = 20
"""How many malformed lines an error lists."""

MOST_MILLISECONDS = 2**53
"""Up to here a float tells one millisecond from the next."""

AZURE_QUANTILES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "azure-conv": (
        (2, 29, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876, 2734, 4083,
         4092, 4142, 4831, 6179, 14050),
        (7, 16, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 522, 601, 643,
         954, 1000),
    ),
    "azure-code": (
        (3, 17, 75, 147, 232, 386, 578, 770, 939, 1075, 1261, 1469, 1690, 1909, 2164, 2433, 2744, 3192, 3920, 5188,
         7303, 7435, 7436, 7436, 7437, 7437),
        (6, 6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 29, 39, 55, 90, 145, 251, 359, 825, 1899),
    ),
}  # fmt: skip
"""Lengths of prompts and of outputs at :data:`QUANTILE_LEVELS`, interpolated linearly between ranks."""


class TraceRequest(NamedTuple):
    """One request as a trace tells it.

    Attributes:
        arrival: seconds after the first request of the trace.
        prompt_len: tokens in the prompt.
        output_len: tokens that will be generated.
        hash_ids: one id per block of the prompt, equal where whole prefixes are; empty if the trace has none.
    """

    arrival: float
    prompt_len: int
    output_len: int
    hash_ids: tuple[int, ...] = ()


class MalformedTraceError(ValueError):
    """A trace with rows that cannot be read. Its message names their lines."""


def lognormal(
    means: tuple[float, float],
    spread: tuple[float, float] = AZURE_SPREAD,
    longest: int = OPT_MAX_LEN,
    seed: int = 0,
) -> Lengths:
    """Draw pairs of prompt and output length without end: lognormal, independent, drawn again if longer than allowed.

    The medians are chosen so that the means come out as given *after* long pairs have been refused. No length is below
    1 token, which lifts very short means: 2 comes out as 2.2, 5 as 5.05.

    Args:
        means: mean tokens in prompts and outputs.
        spread: standard deviations of the logarithms of the two.
        longest: most tokens in prompt and output together.
        seed: same seed, same lengths.

    Raises:
        ValueError: a mean below 1, a spread below 0, or means that ``longest`` does not leave room for, so that less
            than one pair in a hundred would be kept.

    Example:
        >>> from itertools import islice
        >>> list(islice(lognormal((161.31, 337.99)), 3))
        [(44, 194), (70, 350), (45, 304)]
    """
    medians = _fit_medians(tuple(means), tuple(spread), longest)
    rng = random.Random(f"lengths {seed}")
    (prompt_mu, output_mu), (prompt_sigma, output_sigma) = map(math.log, medians), spread
    return _draw_lognormal(rng, prompt_mu, prompt_sigma, output_mu, output_sigma, longest)


def _draw_lognormal(
    rng: random.Random, prompt_mu: float, prompt_sigma: float, output_mu: float, output_sigma: float, longest: int
) -> Lengths:
    while True:
        prompt_len = max(1, round(rng.lognormvariate(prompt_mu, prompt_sigma)))
        output_len = max(1, round(rng.lognormvariate(output_mu, output_sigma)))
        if prompt_len + output_len <= longest:
            yield prompt_len, output_len


@cache
def _fit_medians(means: tuple[float, float], spread: tuple[float, float], longest: int) -> tuple[float, float]:
    """Find the medians that lead to given means once pairs longer than ``longest`` are refused.

    The mean output given a prompt has a closed form; over prompts we integrate numerically, in steps of a twentieth of
    a standard deviation. Medians are scaled by what the means are off, until they are not. Where fewer than one pair
    in a hundred would be kept, drawing would take for ever.
    """
    if min(means) < 1 or min(spread) < 0:
        raise ValueError(f"means {means} with spread {spread}: give means of at least 1 and spreads of at least 0")
    if sum(means) + 1 >= longest:
        raise ValueError(f"means {means} leave no room below {longest} tokens: raise longest")
    normal = NormalDist()
    steps = [step / 20 for step in range(-120, 121)]
    sigma = max(spread[1], 1e-9)
    with suppress(ArithmeticError):  # medians that run to zero or infinity are not found
        medians = [mean / math.exp(s * s / 2) for mean, s in zip(means, spread, strict=True)]
        for _ in range(200):
            kept = prompts = outputs = 0.0
            for step in steps:
                prompt = medians[0] * math.exp(spread[0] * step)
                if prompt >= longest:
                    break
                limit = math.log((longest - prompt) / medians[1]) / sigma
                weight = normal.pdf(step)
                accepted = weight * normal.cdf(limit)
                kept += accepted
                prompts += accepted * prompt
                outputs += weight * medians[1] * math.exp(sigma * sigma / 2) * normal.cdf(limit - sigma)
            factors = means[0] * kept / prompts, means[1] * kept / outputs
            medians = [median * factor for median, factor in zip(medians, factors, strict=True)]
            if max(abs(factor - 1) for factor in factors) < 1e-9 and kept > 0.01 * sum(map(normal.pdf, steps)):
                return medians[0], medians[1]
    raise ValueError(f"no lognormal lengths of spread {spread} up to {longest} tokens have the means {means}")


def from_quantiles(
    prompts: Iterable[float], outputs: Iterable[float], levels: Iterable[float] = QUANTILE_LEVELS, seed: int = 0
) -> Lengths:
    """Draw pairs of prompt and output length without end from tables of quantiles, evenly between two entries.

    Raises:
        ValueError: tables of different lengths, one that does not rise from 1 or more, or levels that do not rise from
            0 to 1.

    Example:
        >>> from itertools import islice
        >>> pairs = from_quantiles([1, 10, 100], [5, 5, 5], levels=[0, 0.5, 1])
        >>> sum(prompt <= 10 for prompt, _ in islice(pairs, 10_000))     # about half of them
        5038
    """
    levels, tables = tuple(levels), (tuple(prompts), tuple(outputs))
    if (levels[:1], levels[-1:]) != ((0,), (1,)) or not all(low < high for low, high in pairwise(levels)):
        raise ValueError(f"levels {levels} must rise from 0 to 1")
    for table in tables:
        rises = all(low <= high for low, high in pairwise((1, *table, math.inf)))
        if len(table) != len(levels) or not rises or table[-1] == math.inf:
            raise ValueError(f"{table} is no table of lengths: give {len(levels)} that rise from at least 1")
    rng = random.Random(f"lengths {seed}")
    return ((_interpolate(rng, levels, tables[0]), _interpolate(rng, levels, tables[1])) for _ in repeat(None))


def _interpolate(rng: random.Random, levels: tuple[float, ...], table: tuple[float, ...]) -> int:
    level = rng.random()
    index = bisect_right(levels, level) - 1
    part = (level - levels[index]) / (levels[index + 1] - levels[index])
    return round(table[index] + part * (table[index + 1] - table[index]))


def sharegpt(seed: int = 0) -> Lengths:
    """Lengths with the means of ShareGPT, the paper's chat load: see the module's text for what can be trusted."""
    return lognormal(PAPER_MEANS["sharegpt"], seed=seed)


def alpaca(seed: int = 0) -> Lengths:
    """Lengths with the means of Alpaca, the paper's load of short instructions."""
    return lognormal(PAPER_MEANS["alpaca"], seed=seed)


def azure_conv(seed: int = 0) -> Lengths:
    """Lengths distributed as in the Azure trace of conversations."""
    return from_quantiles(*AZURE_QUANTILES["azure-conv"], seed=seed)


def azure_code(seed: int = 0) -> Lengths:
    """Lengths distributed as in the Azure trace of a coding assistant: long prompts, very short outputs."""
    return from_quantiles(*AZURE_QUANTILES["azure-code"], seed=seed)


WORKLOADS: dict[str, Callable[[int], Lengths]] = {
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "azure-conv": azure_conv,
    "azure-code": azure_code,
}
"""Synthetic lengths by name; each takes a seed."""


def arrive(lengths: Iterable[tuple[int, int]], rate: float = math.inf, seed: int = 0) -> Iterator[TraceRequest]:
    """Let requests arrive: as a Poisson process, or, at an infinite rate, all at once.

    Args:
        lengths: pairs of prompt and output length.
        rate: requests per second on average.
        seed: same seed, same arrivals.

    Raises:
        ValueError: a rate that is not above 0.

    Example:
        >>> list(arrive([(4, 2), (3, 3)]))
        [TraceRequest(arrival=0.0, prompt_len=4, output_len=2, hash_ids=()), TraceRequest(arrival=0.0, prompt_len=3, output_len=3, hash_ids=())]
        >>> last = list(arrive([(4, 2)] * 10_000, rate=5.0))[-1]
        >>> round(10_000 / last.arrival)
        5
    """  # noqa: E501
    if not rate > 0:
        raise ValueError(f"a rate of {rate} requests per second: give one above 0, or infinity for all at once")
    return _arrive(lengths, rate, random.Random(f"arrivals {seed}"))


def _arrive(lengths: Iterable[tuple[int, int]], rate: float, rng: random.Random) -> Iterator[TraceRequest]:
    now = 0.0
    for prompt_len, output_len in lengths:
        yield TraceRequest(now, prompt_len, output_len)
        if rate < math.inf:
            now += rng.expovariate(rate)


class Fit:
    """Requests as a server takes them: too long a prompt is refused, an output ends at the model's maximum.

    Args:
        requests: what arrives.
        max_model_len: most tokens in prompt and output together.

    Attributes:
        refused: requests whose prompt leaves no room for an output, so far.
        cut: requests whose output was cut, so far.

    Raises:
        ValueError: ``max_model_len`` below 2.

    Example:
        >>> requests = Fit(arrive([(4, 2), (30, 1), (10, 30)]), max_model_len=16)
        >>> [(request.prompt_len, request.output_len) for request in requests], requests.refused, requests.cut
        ([(4, 2), (10, 6)], 1, 1)
    """

    def __init__(self, requests: Iterable[TraceRequest], max_model_len: int) -> None:
        if max_model_len < 2:
            raise ValueError(f"max_model_len is {max_model_len}: a prompt and an output need at least 2 tokens")
        self._requests, self._max_model_len = requests, max_model_len
        self.refused = self.cut = 0

    def __iter__(self) -> Iterator[TraceRequest]:
        for request in self._requests:
            room = self._max_model_len - request.prompt_len
            if room < 1:
                self.refused += 1
            elif request.output_len > room:
                self.cut += 1
                yield request._replace(output_len=room)
            else:
                yield request


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
