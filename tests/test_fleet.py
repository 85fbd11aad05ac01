"""A fleet of replicas: against a simulation of every step, queueing theory, and what must always hold."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tracemalloc
from collections.abc import Iterator
from functools import partial
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.hardware import StepTime
from pagedattn_lab.studies.fleet import (
    ROUTERS,
    Arrived,
    ExponentialServer,
    Failed,
    Failure,
    Finished,
    Fleet,
    FleetEvent,
    FleetReport,
    FleetRequest,
    Recovered,
    Server,
    Started,
    chat_requests,
    simulate,
)
from pagedattn_lab.studies.hit_rates import measure
from pagedattn_lab.workloads import TraceRequest
from tests.helpers.draws import FLEET, drawn
from tests.helpers.oracle_fleet import serve_fleet

pytestmark = pytest.mark.when_changed(*FLEET)

BLOCK_SIZE = 4
EXACT = StepTime(weights=1 / 4, compute=1 / 64, read=1 / 1024)
"""Sums of these times are exact in floats, in whatever order they are added."""


@st.composite
def request_lists(draw: st.DrawFn, most: int = 25) -> list[FleetRequest]:
    """Conversations whose prompts begin alike, several at one instant among them."""
    requests, now = [], 0.0
    for _ in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from([0, 0, 1, 2, 5, 40])) / 8
        family, prompt_len = draw(st.integers(0, 2)), draw(st.integers(1, 45))
        shared = draw(st.integers(0, 12))
        own = draw(st.integers(1, 3))
        ids = [
            1000 * family + block if block < shared else 1000 * family + 100 * own + block
            for block in range(prompt_len // BLOCK_SIZE)
        ]
        requests.append(FleetRequest(now, prompt_len, draw(st.integers(1, 30)), tuple(ids), session=family))
    return requests


failure_lists = st.lists(
    st.builds(
        Failure,
        st.integers(0, 400).map(lambda eighths: eighths / 8),
        st.integers(0, 2),
        st.sampled_from([1 / 8, 2.0, 30.0, math.inf]),
    ),
    max_size=3,
)


def least_loaded(request: FleetRequest, loads: list[int], alive: list[bool]) -> int:
    return min((load, replica) for replica, load in enumerate(loads) if alive[replica])[1]


class LowestOfLeast:
    """The same rule as a reader would write it."""

    def choose(self, request: FleetRequest, fleet: Fleet) -> int:
        alive = [replica for replica in range(fleet.num_replicas) if fleet.is_alive(replica)]
        return min(alive, key=fleet.load)


@settings(max_examples=drawn(150), deadline=None)
@given(
    requests=request_lists(),
    num_replicas=st.integers(1, 3),
    num_blocks=st.integers(9, 30),
    seats=st.integers(1, 5),
    more=st.integers(0, 20),
    failure=st.none()
    | st.builds(
        Failure,
        st.integers(0, 200).map(lambda sixteenths: sixteenths / 16),
        st.just(0),
        st.sampled_from([0.125, 5.0, math.inf]),
    ),
)
def test_equals_a_simulation_that_takes_every_step(
    requests: list[FleetRequest], num_replicas: int, num_blocks: int, seats: int, more: int, failure: Failure | None
) -> None:
    """Catches a stretch of steps that is summed wrong or cut in the wrong place, a chunk too large or too small, and a
    request that begins in another order: every first token, every end, every hit and all working time are equal, to
    the last bit.
    """
    failures = [failure] if failure else []
    served, busy = serve_fleet(
        requests, num_replicas, least_loaded, num_blocks, BLOCK_SIZE, EXACT, seats + more, seats, failures
    )
    events: list[FleetEvent] = []
    server = Server(EXACT, max_num_batched_tokens=seats + more, max_num_seqs=seats)
    report = simulate(
        requests,
        num_replicas,
        LowestOfLeast(),
        num_blocks,
        BLOCK_SIZE,
        server,
        failures=failures,
        on_event=events.append,
    )
    for job in served:
        mine = [event for event in events if getattr(event, "number", None) == job.number]
        assert [event.replica for event in mine if isinstance(event, Arrived)] == job.sent_to
        assert [event.hit_blocks * BLOCK_SIZE for event in mine if isinstance(event, Started)] == job.found
        ends = [(event.time, event.ttft) for event in mine if isinstance(event, Finished)]
        if job.end is None:
            assert ends == []
        else:
            assert job.first_token is not None
            assert ends == [(job.end, job.first_token - job.request.arrival)]
    assert [replica.busy_s for replica in report.replicas] == busy
    assert [event.time for event in events] == sorted(event.time for event in events)


@settings(max_examples=drawn(100), deadline=None)
@given(requests=request_lists(40), num_blocks=st.integers(1, 30), router=st.sampled_from(sorted(ROUTERS)))
def test_one_replica_finds_what_hits_finds(requests: list[FleetRequest], num_blocks: int, router: str) -> None:
    """Catches a cache that differs from the one that ``hits`` measures, and tokens of refused requests forgotten."""
    trace = [TraceRequest(*request[:4]) for request in requests]
    expected = measure(trace, num_blocks, BLOCK_SIZE)
    report = simulate(requests, 1, router, num_blocks, BLOCK_SIZE, Server(EXACT))
    assert (report.hit_tokens, report.prompt_tokens) == (expected.hit_tokens, expected.prompt_tokens)
    assert (report.num_refused, report.replicas[0].evictions) == (expected.refused, expected.evictions)
    assert report.hit_rate == expected.hit_rate


def one_token_requests() -> Iterator[FleetRequest]:
    return (FleetRequest(0.0, 1, 1, (), session) for session in count())


def test_mean_response_is_that_of_queueing_theory() -> None:
    """Catches time lost or counted twice between arrival and end: four M/M/1 queues that are busy half the time keep a
    request for twice its service on average. Runs are independent, so their means have a confidence interval, and it is
    narrow enough to tell the answer from that of constant service, 1.5.
    """
    runs = [
        simulate(
            islice(one_token_requests(), 6000), 4, "random", 1, 4, ExponentialServer(mean_s=1.0), rate=2.0, seed=seed
        ).latency_mean_s
        for seed in range(12)
    ]
    half_width = 3.106 * statistics.stdev(runs) / math.sqrt(len(runs))  # 99 %, Student's t with 11 degrees of freedom
    assert half_width < 0.1
    assert abs(statistics.mean(runs) - 2.0) < half_width


@settings(max_examples=drawn(150), deadline=None)
@given(
    requests=request_lists(40),
    router=st.sampled_from(sorted(ROUTERS)),
    failures=failure_lists,
    num_blocks=st.integers(5, 30),
    server=st.sampled_from([Server(EXACT, 8, 4), Server(EXACT, 64, 64), ExponentialServer(1.0)]),
    rate=st.none() | st.just(2.0),
)
def test_every_request_ends_once(
    requests: list[FleetRequest],
    router: str,
    failures: list[Failure],
    num_blocks: int,
    server: Server | ExponentialServer,
    rate: float | None,
) -> None:
    """Catches a request that is lost with its replica, ends twice, or goes to a replica that has failed."""
    ended, dead, house = set(), set(), {replica: set() for replica in range(3)}

    def watch(event: FleetEvent) -> None:
        match event:
            case Arrived():
                assert event.replica not in dead
                house[event.replica].add(event.number)
                assert event.load == len(house[event.replica])
            case Started():
                assert event.number in house[event.replica] and event.cached_blocks <= num_blocks
            case Finished():
                house[event.replica].remove(event.number)
                assert event.number not in ended and event.ttft >= 0
                ended.add(event.number)
            case Failed():
                assert event.num_sent_again == len(house[event.replica])
                house[event.replica].clear()
                dead.add(event.replica)
            case Recovered():
                dead.remove(event.replica)

    report = simulate(requests, 3, router, num_blocks, BLOCK_SIZE, server, rate=rate, failures=failures, on_event=watch)
    assert not any(house.values())
    assert report.num_finished == len(ended) == sum(replica.num_requests for replica in report.replicas)
    assert report.num_refused == sum(request.prompt_len > num_blocks * BLOCK_SIZE for request in requests)
    assert report.num_requests == len(requests) == report.num_finished + report.num_refused + report.num_lost
    assert report.num_lost == 0 or len(dead) == 3


def test_a_replica_comes_back_empty() -> None:
    """Catches a cache that survives its replica, and a request that is not sent again."""
    request = FleetRequest(0.0, 9, 50, (1, 2), 0)
    requests = [request._replace(arrival=arrival) for arrival in (0.0, 20.0, 40.0)]
    events: list[FleetEvent] = []
    report = simulate(
        requests, 1, "prefix", 9, 4, Server(EXACT), failures=[Failure(21.0, 0, down_s=2.0)], on_event=events.append
    )
    started = [(event.number, event.hit_blocks) for event in events if isinstance(event, Started)]
    assert started == [(0, 0), (1, 2), (1, 0), (2, 2)]
    assert (report.num_sent_again, report.num_lost, report.num_finished) == (1, 0, 3)
    assert simulate(requests, 1, "prefix", 9, 4, failures=[Failure(21.0, 0)]).num_lost == 1


def test_a_failure_takes_back_what_was_taken_ahead() -> None:
    """Catches a first token, or working time, of a step that a failure cut short: steps are summed before they end."""
    request = FleetRequest(0.0, 9, 5, (1, 2), 0)
    whole = simulate([request], 1, "random", 9, 4, Server(EXACT))
    cut = simulate([request], 1, "random", 9, 4, Server(EXACT), failures=[Failure(0.125, 0, down_s=2.0)])
    assert cut.ttft_mean_s == whole.ttft_mean_s + 2.125
    assert cut.replicas[0].busy_s == whole.replicas[0].busy_s + 0.125


def chats(n: int, **more: float) -> Iterator[FleetRequest]:
    return islice(chat_requests(num_active=40, rate=2.0, **more), n)  # type: ignore[arg-type]


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_the_seed_decides_everything(router: str) -> None:
    """Catches chance that comes from elsewhere, the order of a set or the clock."""
    failures = [Failure(30.0, 1, 40.0)]
    first, again, other = (
        simulate(chats(300), 4, router, 200, 16, rate=5.0, seed=seed, failures=failures) for seed in (3, 3, 4)
    )
    assert first == again
    assert first.ttft_mean_s != other.ttft_mean_s


def race(router: str, rate: float = 5.0) -> FleetReport:
    requests = islice(chat_requests(num_active=100, rate=rate), 3000)
    return simulate(requests, 4, router, num_blocks=1500, block_size=16)


def test_what_routing_by_prefix_brings_and_costs() -> None:
    """Catches a router that does not look at prefixes, or at load. All conversations begin with one system prompt, so
    the router that chases prefixes sends all of them to the replica that had it first; weighed against load, hits and
    balance are both to be had.
    """
    blind, chasing, weighing, sticky = (race(name) for name in ("round-robin", "prefix", "prefix-load", "session"))
    assert chasing.hit_rate > blind.hit_rate and chasing.imbalance > 2 > blind.imbalance
    assert chasing.ttft_p99_s > blind.ttft_p99_s and chasing.computed_imbalance > 2 > blind.computed_imbalance
    assert weighing.hit_rate > 1.3 * blind.hit_rate and sticky.hit_rate > 1.3 * blind.hit_rate
    assert weighing.imbalance < 1.2 and weighing.ttft_mean_s < blind.ttft_mean_s


@pytest.mark.parametrize("router", ["prefix-load", "prefix-events"])
def test_memory_does_not_grow_with_the_requests(router: str) -> None:
    """Catches anything that is kept for each request or each block that ever was."""
    peaks = []
    for num_requests in (600, 2400):
        requests = islice(chat_requests(num_active=20, rate=1.0), num_requests)
        tracemalloc.start()
        simulate(requests, 4, router, num_blocks=300, block_size=16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_progress() -> None:
    """Catches a bar that stops short of its end."""
    calls: list[int] = []
    simulate(chats(2500), 4, "random", 300, 16, progress=calls.append)
    assert calls == [1000, 2000, 2500]
    for late in (Failure(1e9, 0), Failure(1.0, 0, 1e9)):  # what comes when all have ended
        calls.clear()
        simulate(chats(2500), 4, "random", 300, 16, failures=[late], progress=calls.append)
        assert calls == [1000, 2000, 2500]


def test_a_request_is_sent_again_when_a_replica_has_it_again() -> None:
    """Catches counting a request that is lost, or one that no replica had before, as sent again."""
    requests = [FleetRequest(0.0, 2000, 500, (), number) for number in range(5)]
    run = partial(simulate, requests, 1, "random", None, 4096)
    counts = []
    for failures in ([Failure(0.125, 0)], [Failure(0.125, 0, 1.0)], [Failure(0.0, 0, 1.0)], [Failure(0.0, 0)]):
        events: list[FleetEvent] = []
        report = run(failures=failures, on_event=events.append)
        arrived = sum(isinstance(event, Arrived) for event in events)
        assert report.num_sent_again == max(0, arrived - len(requests))
        counts.append((report.num_sent_again, report.num_lost, report.num_finished))
    assert counts == [(0, 5, 0), (5, 0, 5), (0, 0, 5), (0, 5, 0)]


def test_failures_are_on_the_clock_of_the_arrivals() -> None:
    """Catches a failure counted from the first request, when a log begins later than 0; with a rate it does not."""
    requests = [FleetRequest(1000.0 + second, 200, 5, (), second) for second in range(20)]
    for rate, first in ((None, 1000.0), (1.0, 0.0)):
        events: list[FleetEvent] = []
        simulate(requests, 2, "random", None, 4096, rate=rate, failures=[Failure(1005.0, 0)], on_event=events.append)
        assert events[0].time == first
        assert [event.time for event in events if isinstance(event, Failed)] == ([1005.0] if rate is None else [])


def test_a_function_is_a_router() -> None:
    """Catches a router of a reader's own that needs more than ten lines, or whose whole numbers are refused because
    NumPy made them; an empty load is a report, too.
    """
    least, by_numpy = (
        simulate(chats(100), 3, router, 300, 16)
        for router in (
            LowestOfLeast(),
            lambda _, fleet: np.argmin([fleet.load(replica) for replica in range(3)]),  # type: ignore[arg-type]
        )
    )
    assert by_numpy.replicas == least.replicas
    report = simulate(chats(100), 3, lambda request, fleet: request.session % fleet.num_replicas, 300, 16)
    assert report.num_finished == 100 and report.router == "<lambda>"
    nothing = simulate([], 3)
    assert (nothing.hit_rate, nothing.requests_per_s, nothing.imbalance, nothing.ttft_p99_s) == (0, 0, 1, 0)
    assert nothing.computed_imbalance == 1


REQUEST = FleetRequest(1.0, 9, 2, (1, 2), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_replicas": 0}, "num_replicas"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"router": "prefx"}, "'prefx' is unknown: use one of round-robin"),
        ({"rate": 0.0}, "rate of 0.0"),
        ({"failures": [Failure(1.0, 8)]}, "replicas are 0 to 7"),
        ({"failures": [Failure(math.nan, 0)]}, "replicas are 0 to 7"),
        ({"router": lambda request, fleet: 8}, "chose replica 8 for request 0, which is not there: .* 0 to 7"),
        ({"router": lambda request, fleet: -1}, "chose replica -1 for request 0, which is not there"),
        ({"router": lambda request, fleet: np.int64(8)}, "8.* for request 0, which is not there"),
        ({"router": lambda request, fleet: 1.0}, "chose replica 1.0 for request 0, which is no whole number"),
        ({"router": lambda request, fleet: None}, "chose replica None for request 0, which is no whole number"),
        ({"router": lambda request, fleet: True}, "chose replica True for request 0, which is no whole number"),
        (
            {"router": lambda request, fleet: 0, "failures": [Failure(0.5, 0)]},
            "chose replica 0 for request 0, which has failed",
        ),
        ({"requests": [REQUEST, REQUEST._replace(arrival=0.5)]}, "request 2 arrives at 0.5, after one .* at 1.0"),
        ({"requests": [REQUEST._replace(hash_ids=(1,))]}, "request 1: 1 hash_ids for 9 tokens in blocks of 4"),
        ({"requests": [REQUEST._replace(output_len=0)]}, "request 1: .* one in its output"),
    ],
)
def test_refusals_name_what_is_wrong(changes: dict[str, object], message: str) -> None:
    """Catches input that leads to figures of something else."""
    with pytest.raises(ValueError, match=message):
        simulate(**{"requests": [REQUEST], "block_size": 4, **changes})  # type: ignore[arg-type]


def test_exact_figures_by_hand() -> None:
    """Catches a figure that means something else. A step takes a second; both requests come at once, and fit one step.

    The first has its two tokens at 1 and 2, the second its only one at 1.
    """
    server = Server(StepTime(weights=1.0, compute=0.0, read=0.0))
    requests = [FleetRequest(0.0, 8, 2, (1, 2), 0), FleetRequest(0.0, 8, 1, (1, 2), 1)]
    report = simulate(requests, 2, lambda request, fleet: 0, 10, 4, server)
    assert (report.ttft_mean_s, report.latency_mean_s, report.seconds) == (1.0, 1.5, 2.0)
    assert (report.requests_per_s, report.imbalance, report.utilization) == (1.0, 2.0, 0.5)
    assert report.computed_imbalance == 2.0  # one replica computes all of it
    assert report.hit_rate == 4 / 16  # the second finds one block, for its last token must be computed
    assert dataclasses.asdict(report.replicas[0])["most_load"] == 2
    assert report.replicas[0].hit_rate == 0.25 and report.replicas[1].hit_rate == 0


def test_rate_replaces_the_times_of_a_log() -> None:
    """Catches arrivals at another rate, or ones that follow the log."""
    report = simulate(islice(one_token_requests(), 20_000), 1, "random", 1, 4, ExponentialServer(1e-6), rate=50.0)
    assert report.requests_per_s == pytest.approx(50, rel=0.03)
