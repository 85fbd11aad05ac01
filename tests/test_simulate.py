"""The simulation against a server that takes one step and one token at a time, and its behaviour as a function."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import count, islice

import hypothesis.strategies as st
import pytest
import tqdm
from hypothesis import assume, example, given, settings

from pagedattn_lab import workloads
from pagedattn_lab.baselines.accounting import Account, Allocator
from pagedattn_lab.baselines.contiguous import max_length, next_power_of_two, oracle
from pagedattn_lab.baselines.paged import PagedAllocator
from pagedattn_lab.baselines.strip import FirstFit
from pagedattn_lab.hardware import StepTime
from pagedattn_lab.studies import report as report_module
from pagedattn_lab.studies.paper import A100_OPT_13B
from pagedattn_lab.studies.report import MOST_SAMPLES, Report
from pagedattn_lab.studies.simulate import simulate
from pagedattn_lab.workloads import TraceRequest
from tests.helpers.draws import LIBRARY, drawn
from tests.helpers.oracle_simulate import Blocks, Result, Strip, serve

SCHEMES = ("max", "pow2", "oracle", "oracle, first fit", "paged")
STEP_TIMES = [(1.0, 0.0, 0.0), (2**-3, 2**-9, 2**-16), (2**-6, 2**-4, 2**-10)]
UNIT = Fraction(1, 2**53)  # what one operation on floats is off by at most, relative to its result


def memories(scheme: str, num_slots: int, max_model_len: int, block_size: int) -> tuple[Allocator, Strip | Blocks]:
    """The library's memory and the oracle's."""
    if scheme == "paged":
        return PagedAllocator(num_slots, block_size), Blocks(num_slots, block_size)
    allocator = {
        "max": lambda: max_length(num_slots, max_model_len),
        "pow2": lambda: next_power_of_two(num_slots, max_model_len),
        "oracle": lambda: oracle(num_slots),
        "oracle, first fit": lambda: oracle(num_slots, strip=FirstFit),
    }[scheme]()
    return allocator, Strip(num_slots, scheme, max_model_len)


def assert_same(report: Report, expected: Result, operations: int) -> None:
    """Compare every field; each sum in the report was made with so many operations on floats."""
    compared = {"samples"}

    def close(name: str, exact: Fraction, scale: Fraction, units: int) -> None:
        compared.add(name)
        assert abs(Fraction(getattr(report, name)) - exact) <= scale * units * UNIT, (name, float(exact))

    for name in ("num_finished", "num_steps", "num_preemptions", "num_recomputed"):
        compared.add(name)
        assert getattr(report, name) == getattr(expected, name), name
    names = ("token_states", "reservation", "internal", "external", "free", "rounding")
    for name, share in zip(names, expected.shares, strict=True):
        # The reservation is what is left of the two first when the first is taken away. Then come two divisions.
        scale = share + 2 * expected.shares[0] if name == "reservation" and operations else share
        close(name, share, scale, 2 * operations + 3)
    close("mean_running", expected.mean_running, expected.mean_running, 2 * operations + 2)
    close("requests_per_second", expected.requests_per_second, expected.requests_per_second, operations + 2)
    close("seconds", expected.seconds, expected.seconds, operations)
    # Waits are differences of times up to all the seconds.
    mean_wait = sum(expected.waits) / len(expected.waits)
    close("mean_wait", mean_wait, mean_wait + 2 * expected.seconds if operations else mean_wait, 2 * operations + 2)
    close("max_wait", max(expected.waits), 2 * expected.seconds, operations)
    assert compared == {field.name for field in dataclasses.fields(Report)}

    states = iter(expected.states)  # samples are states of the oracle's, in the same order
    for sample in report.samples:
        assert any(
            abs(Fraction(sample.seconds) - seconds) <= seconds * operations * UNIT
            and (sample.num_running, sample.account) == (running, account)
            for seconds, running, account in states
        ), sample
    seconds = [sample.seconds for sample in report.samples]
    assert seconds == sorted(seconds) and 1 <= len(seconds) <= MOST_SAMPLES


@st.composite
def workloads_that_fit(draw: st.DrawFn) -> dict:
    """Ragged requests and a memory into which each of them fits; times are sums of powers of two: exact floats."""
    scheme = draw(st.sampled_from([*SCHEMES, "paged", "paged"]))
    max_model_len = draw(st.integers(2, 30))
    block_size = draw(st.one_of(st.integers(1, 8), st.integers(1, 64)))
    if scheme == "paged":
        blocks = -(-max_model_len // block_size)
        num_slots = (blocks + 1 + draw(st.integers(0, 2 * blocks + 6))) * block_size + draw(
            st.integers(0, block_size - 1)
        )
    else:
        longest = max_model_len if "first" in scheme or scheme == "max" else 1 << (max_model_len - 1).bit_length()
        num_slots = longest + draw(st.integers(0, 5 * longest))
    gap = draw(
        st.sampled_from(
            [
                st.just(0.0),  # all at once
                st.sampled_from([0.0, 0.0, 0.0, 40.0]),  # bunches, and idle between them
                st.integers(0, 64).map(lambda ticks: ticks / 16),
                st.integers(0, 3).map(float),  # often just when a step ends
            ]
        )
    )
    requests, arrival = [], draw(st.sampled_from([0.0, 7.5]))
    for _ in range(draw(st.integers(1, 12))):
        prompt_len = draw(st.integers(1, max_model_len - 1))
        requests.append((arrival, prompt_len, draw(st.integers(1, max_model_len - prompt_len))))
        arrival += draw(gap)
    return {
        "scheme": scheme,
        "num_slots": num_slots,
        "max_model_len": max_model_len,
        "block_size": block_size,
        "requests": requests,
        "step_time": draw(st.sampled_from(STEP_TIMES)),
        "max_num_seqs": draw(st.sampled_from([None, None, 1, 2, 3, 5])),
    }


@st.composite
def crowds(draw: st.DrawFn) -> dict:
    """Short prompts and long outputs, in paged memory that holds one of them and little more."""
    block_size, max_model_len = draw(st.integers(1, 6)), draw(st.integers(8, 30))
    blocks = -(-max_model_len // block_size) + 1 + draw(st.integers(0, 5))
    requests, arrival = [], 0.0
    for _ in range(draw(st.integers(3, 10))):
        prompt_len = draw(st.integers(1, 6))
        requests.append((arrival, prompt_len, draw(st.integers(2, max_model_len - prompt_len))))
        arrival += draw(st.sampled_from([0.0, 0.0, 1.0]))
    return {
        "scheme": "paged",
        "num_slots": blocks * block_size,
        "max_model_len": max_model_len,
        "block_size": block_size,
        "requests": requests,
        "step_time": draw(st.sampled_from(STEP_TIMES)),
        "max_num_seqs": draw(st.sampled_from([None, None, 4])),
    }


def compare_step_by_step(case: dict, least_preemptions: int = 0) -> None:
    """Every sum is exact, of times too; a share is then rounded twice, divided by the time and by the slots."""
    allocator, memory = memories(case["scheme"], case["num_slots"], case["max_model_len"], case["block_size"])
    expected = serve(case["requests"], memory, *case["step_time"], max_num_seqs=case["max_num_seqs"])
    assume(expected.num_preemptions >= least_preemptions)
    report = simulate(
        (TraceRequest(*request) for request in case["requests"]),
        allocator,
        StepTime(*case["step_time"]),
        max_num_seqs=case["max_num_seqs"],
    )
    assert_same(report, expected, operations=0)
    assert report.num_finished == len(case["requests"])
    assert not any(allocator.account(0)[:3])
    assert report.samples[-1].seconds == report.seconds


@settings(max_examples=drawn(800))
@given(case=workloads_that_fit())
@example(  # the second arrives while steps are summed up and max_num_seqs keeps it waiting: no gap was too short before
    case={
        "scheme": "max",
        "num_slots": 5,
        "max_model_len": 4,
        "block_size": 1,
        "requests": [(0.0, 1, 3), (2.0, 1, 1)],
        "step_time": (1.0, 0.0, 0.0),
        "max_num_seqs": 1,
    }
)
def test_same_as_step_by_step(case: dict) -> None:
    """Catches any step in which a token, a slot, a second or a request is not where the rules say."""
    compare_step_by_step(case)


@settings(max_examples=drawn(500))
@given(case=crowds())
def test_same_as_step_by_step_where_requests_are_preempted(case: dict) -> None:
    """Catches another victim, another place in the queue, and a token lost or computed twice on the way back."""
    compare_step_by_step(case, least_preemptions=2)


@pytest.mark.when_changed(*LIBRARY)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rate", [math.inf, 2.0])
def test_same_as_step_by_step_at_the_papers_size(scheme: str, rate: float) -> None:
    """Catches what small memories and round times hide, such as a sum over many steps that drifts.

    A report's sums have at most one term per step and one per idle time, and at most 8 operations lead to each term.
    """
    requests = list(workloads.arrive(islice(workloads.sharegpt(seed=5), 120), rate, seed=5))
    allocator, memory = memories(scheme, 6_000, 2048, 16)
    report = simulate(iter(requests), allocator)
    step_time = (A100_OPT_13B.weights, A100_OPT_13B.compute, A100_OPT_13B.read)
    expected = serve([request[:3] for request in requests], memory, *step_time)
    assert_same(report, expected, operations=len(expected.states) + 8)
    if scheme == "paged" and rate == math.inf:
        assert report.num_preemptions > 20  # or nothing was tested


def load(num_requests: int = 200, rate: float = math.inf) -> Iterator[TraceRequest]:
    return workloads.arrive(islice(workloads.sharegpt(), num_requests), rate)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_same_requests_same_report(scheme: str) -> None:
    """Catches anything left to chance, and memory that a first run leaves in another state."""
    allocator = memories(scheme, 8192, 2048, 16)[0]
    first = simulate(load(rate=3.0), allocator)
    assert simulate(load(rate=3.0), allocator) == first == simulate(load(rate=3.0), memories(scheme, 8192, 2048, 16)[0])


@pytest.mark.parametrize(
    "allocator", [max_length(64, 16), next_power_of_two(64, 16), oracle(64), PagedAllocator(64, 4)]
)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            TraceRequest(2.0, 3, 3),
            r"request 4 \(counted from 0\) arrives at 2.0 s, the one ahead of it at 3.0 s: .*sort",
        ),
        (TraceRequest(math.nan, 3, 3), r"request 4 \(counted from 0\) arrives at nan s"),
        (TraceRequest(math.inf, 3, 3), r"request 4 \(counted from 0\) arrives at inf s"),
        (TraceRequest(3.0, 3, 0), "output_len is 0"),
        (TraceRequest(3.0, 60, 60), r"60 \+ 60 tokens|never fits"),
    ],
)
def test_a_bad_request_leaves_the_memory_empty(allocator: Allocator, bad: TraceRequest, message: str) -> None:
    """Catches a request that is skipped or served out of turn, and memory that an error leaves taken."""
    requests = [TraceRequest(float(second), 5, 9) for second in range(4)]
    with pytest.raises(ValueError, match=message):
        simulate([*requests, bad, TraceRequest(9.0, 1, 1)], allocator, StepTime(1.0, 0.0, 0.0))
    assert not any(allocator.account(0)[:3])
    assert simulate(requests, allocator).num_finished == 4


@pytest.mark.parametrize("arrival", [math.nan, math.inf])
def test_the_first_arrival_is_a_time(arrival: float) -> None:
    """Catches a clock that starts at no time at all."""
    with pytest.raises(ValueError, match=f"request 0 .* arrives at {arrival} s"):
        simulate([TraceRequest(arrival, 3, 3)], oracle(64))


def test_impossible_calls_are_refused() -> None:
    """Catches a report of nothing, memory that others use, and half a request at most; none takes a request first."""
    with pytest.raises(ValueError, match="there is no request to serve"):
        simulate([], oracle(64))
    for allocator in (oracle(64), PagedAllocator(64, 4)):
        allocator.allocate(3, 3)
        requests = iter([TraceRequest(0.0, 1, 1)])
        with pytest.raises(ValueError, match=r"memory is in use already: .*token_states=0, reservation=[45]"):
            simulate(requests, allocator)
        assert next(requests)
    for most in (0, -1, 2.5, True):
        requests = iter([TraceRequest(0.0, 1, 1)])
        with pytest.raises(ValueError, match=f"max_num_seqs is {most!r}: give a whole number of at least 1"):
            simulate(requests, oracle(64), max_num_seqs=most)
        assert next(requests)


class Counted(TraceRequest):
    """A request that says when it is gone."""

    gone = 0

    def __del__(self) -> None:
        Counted.gone += 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_endless_workload_is_taken_one_at_a_time(scheme: str) -> None:
    """Catches a workload that is read ahead of its admission, or kept after its end: memory must stay bounded."""
    allocator, num_admitted, most_alive, gone_before = memories(scheme, 4096, 512, 16)[0], 0, 0, Counted.gone
    allocate = allocator.allocate

    def counting(prompt_len: int, output_len: int) -> object:
        nonlocal num_admitted
        holding = allocate(prompt_len, output_len)
        num_admitted += holding is not None
        return holding

    allocator.allocate = counting

    class EnoughError(Exception):
        pass

    def endless() -> Iterator[TraceRequest]:
        nonlocal most_alive
        for number, (prompt_len, output_len) in zip(count(), workloads.lognormal((40, 60), longest=512), strict=False):
            # Who was preempted is admitted once more, so that admissions may outnumber the requests taken.
            assert number <= num_admitted
            most_alive = max(most_alive, number - (Counted.gone - gone_before))
            if number == 3000:
                raise EnoughError
            yield Counted(0.0, prompt_len, output_len)

    with pytest.raises(EnoughError):
        simulate(endless(), allocator)
    assert most_alive <= 4096 // 16  # more than ever fit into the memory, fewer than came
    assert not any(allocator.account(0)[:3])


def test_samples_are_bounded_and_even() -> None:
    """Catches samples that grow with the load, or that leave its beginning or its end out."""
    everything = simulate(load(60), max_length(8192, 2048)).samples
    assert len(everything) < MOST_SAMPLES
    report = simulate(load(3000), max_length(8192, 2048))
    seconds = [sample.seconds for sample in report.samples]
    assert MOST_SAMPLES // 2 <= len(seconds) <= MOST_SAMPLES and seconds == sorted(seconds)
    assert seconds[0] < 0.001 * report.seconds and seconds[-1] > 0.995 * report.seconds
    for sample in report.samples:
        assert sample.account.check(8192)


def test_every_sample_is_kept_as_often_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches thinning that keeps two neighbours, or drops one too many: every stride-th state stays."""
    requests = [TraceRequest(0.0, 1, 1)] * 100  # one at a time: a state each
    everything = simulate(requests, oracle(8), max_num_seqs=1).samples
    assert len(everything) == 100
    monkeypatch.setattr(report_module, "MOST_SAMPLES", 16)
    assert simulate(requests, oracle(8), max_num_seqs=1).samples == everything[::8]


def test_steps_without_an_event_are_summed_up() -> None:
    """Catches a simulation that takes as long as the service: one pass admits a request, one does all the rest of it.

    Requests that wait for memory, for a place in the batch, or that have not arrived yet, need no further pass.
    """
    waiting = [TraceRequest(0.0, 1, 50)] * 10
    for most, room in ((1, 1000), (None, 64)):
        report = simulate(waiting, oracle(room), StepTime(1.0, 0.0, 0.0), max_num_seqs=most)
        assert (report.num_steps, len(report.samples)) == (500, 20)
    apart = [TraceRequest(100.0 * number, 1, 50) for number in range(10)]
    report = simulate(apart, oracle(64), StepTime(1.0, 0.0, 0.0))
    assert (report.num_steps, len(report.samples)) == (500, 10 + 10 + 9)  # and 9 idle times


def test_the_window_ends_with_the_last_admission() -> None:
    """Catches averages that count the draining of the load, or leave out the step of the last admission.

    Three requests of 4 tokens in room for two, a second per step: admitted in steps 0, 0 and 4, gone after 3, 3 and 7.
    """
    report = simulate(
        [TraceRequest(0.0, 2, 4)] * 3, oracle(16, strip=FirstFit), StepTime(1.0, 0.0, 0.0), max_num_seqs=2
    )
    assert report.num_steps == report.seconds == 8
    assert report.mean_running == (2 * 4 + 1) / 5
    assert report.requests_per_second == 2 / 5
    # 2 to 5 tokens of two requests in four steps, then 2 of one, in 16 slots; the third waits from the first step on.
    assert report.token_states == (2 * (2 + 3 + 4 + 5) + 2) / 5 / 16
    assert (report.mean_wait, report.max_wait) == (4 / 3, 4)


def test_the_youngest_yields_and_returns_first() -> None:
    """Catches another victim than the request admitted last, admission in a preempting step, and lost tokens.

    Three usable blocks of 2; three prompts of 2 tokens fill them. In step 1 the oldest needs a block and takes that of
    the youngest (2 tokens lost), so the second one finds none and loses its own (2 more). It is the first to return,
    when the oldest is gone; the fourth, which would fit beside it, does not overtake the third.
    """
    requests = [TraceRequest(0.0, 2, 3), TraceRequest(0.0, 2, 2), TraceRequest(0.0, 2, 2), TraceRequest(0.0, 1, 1)]
    report = simulate(requests, PagedAllocator(8, 2), StepTime(1.0, 0.0, 0.0))
    assert (report.num_preemptions, report.num_recomputed) == (2, 4)
    running = [(sample.seconds, sample.num_running, sample.account.token_states) for sample in report.samples]
    # In step 3 the second one computes its prompt and the token it had generated, and is done; so does the third next.
    assert running == [(1.0, 3, 6), (2.0, 1, 3), (3.0, 1, 4), (4.0, 1, 3), (5.0, 2, 4)]
    assert (report.mean_wait, report.max_wait) == (4.0 / 4, 4.0)


@pytest.fixture
def eager_bar(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A bar that does not wait, and the delays that were asked of it."""
    delays, bar = [], tqdm.tqdm

    def eager(**options: object) -> tqdm.tqdm:
        delays.append(options.pop("delay"))
        return bar(**options, mininterval=0)

    monkeypatch.setattr(tqdm, "tqdm", eager)
    return delays


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"),
    [(True, False, True), (True, True, True), (None, False, False), (None, True, True), (False, True, False)],
)
def test_progress_goes_to_standard_error(
    progress: bool | None,
    terminal: bool,
    shown: bool,
    eager_bar: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a bar on standard output, in a pipe that nobody asked for, or before a second has passed."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    simulate(load(600), max_length(8192, 2048), total=600, progress=progress)
    assert ("512/600" in screen.getvalue()) == shown == (screen.getvalue() != "")
    assert capsys.readouterr().out == "" and eager_bar == [1]


def test_a_short_run_shows_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bar that flashes up."""
    monkeypatch.setattr("tqdm.std.time", lambda: 0.0)  # short even where the machine is slow
    simulate(load(20), max_length(8192, 2048), progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_lone_request() -> None:
    """Catches a division by a window without length, and an account of the first step that lacks the prompt."""
    report = simulate([TraceRequest(3.0, 5, 1)], max_length(10, 8), StepTime(1.0, 0.5, 0.25))
    assert report.seconds == 5 * 0.5 + 5 * 0.25 and report.num_steps == report.num_finished == 1
    assert report.samples == [(3.75, 1, Account(5, 0, 3, 0, 2))]
    assert (report.token_states, report.internal, report.free) == (0.5, pytest.approx(0.3), pytest.approx(0.2))
