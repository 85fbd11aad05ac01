"""Loads: drawn lengths have the means and quantiles they claim, and arrivals are a Poisson process."""

from __future__ import annotations

import math
import random
from itertools import islice, pairwise
from statistics import mean, stdev, variance

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pagedattn_lab import workloads
from pagedattn_lab.studies.paper import FIG_11
from pagedattn_lab.workloads import (
    WORKLOADS,
    Fit,
    TraceRequest,
    arrive,
    from_quantiles,
    lognormal,
)
from pagedattn_lab.workloads.lengths import AZURE_QUANTILES, AZURE_SPREAD, OPT_MAX_LEN, QUANTILE_LEVELS, _draw_lognormal

# Mean prompts and outputs in github.com/Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_{conv,code}.csv, 2023.
AZURE_MEANS = {"azure-conv": (1154.70, 211.13), "azure-code": (2047.85, 27.88)}

NUM_DRAWN = 50_000
MOST_ERRORS = 5  # a mean is further than 5 standard errors from the truth once in 1.7 million times


def standard_errors(numbers: list[int], expected: float) -> float:
    """How many standard errors the mean of a sample lies from where it should."""
    return abs(mean(numbers) - expected) / (stdev(numbers) / math.sqrt(len(numbers)))


@pytest.mark.parametrize("name", FIG_11)
def test_lengths_have_the_papers_means(name: str) -> None:
    """Catches medians taken for means, prompts taken for outputs, and pairs longer than the model."""
    pairs = list(islice(WORKLOADS[name](1), NUM_DRAWN))
    assert max(map(sum, pairs)) <= OPT_MAX_LEN and min(map(min, pairs)) >= 1
    for lengths, expected in zip(zip(*pairs, strict=True), FIG_11[name], strict=True):
        assert standard_errors(lengths, expected) < MOST_ERRORS
        assert all(type(length) is int for length in lengths)


def test_a_fit_that_forgets_the_longest_would_be_seen() -> None:
    """Catches a check of the means that is too kind: medians without the correction miss it by far."""
    mus = [math.log(m) - s * s / 2 for m, s in zip(FIG_11["sharegpt"], AZURE_SPREAD, strict=True)]
    rng = random.Random("lengths 1")
    pairs = list(islice(_draw_lognormal(rng, mus[0], AZURE_SPREAD[0], mus[1], AZURE_SPREAD[1], 2048), NUM_DRAWN))
    errors = [standard_errors(*pair) for pair in zip(zip(*pairs, strict=True), FIG_11["sharegpt"], strict=True)]
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
