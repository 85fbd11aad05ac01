"""A fleet of replicas behind a router, from the first arrival to the last token (chapter 11).

Only lengths and ids of blocks matter, so nothing is computed, and requests stream through: what is kept is what is in
the house, and the caches.

At one instant failures come first, then arrivals in their order, then what ends on the replicas, in the order in which
it was foreseen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush, heapreplace
from operator import index
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.studies.fleet.collector import rare_collections
from pagedattn_lab.studies.fleet.events import Arrived, Evicted, Failed, Finished, FleetEvent, Recovered, Started
from pagedattn_lab.studies.fleet.prefix_routers import ROUTERS
from pagedattn_lab.studies.fleet.replicas import Fleet
from pagedattn_lab.studies.fleet.report import FleetReport, LogHistogram, ReplicaReport
from pagedattn_lab.studies.fleet.requests import FleetRequest
from pagedattn_lab.studies.fleet.routers import Router
from pagedattn_lab.studies.fleet.servers import ExponentialServer, Job, Line, Server

PROGRESS_EVERY = 1000
"""Requests between two calls of ``progress``."""


class Failure(NamedTuple):
    """A replica fails: its cache is lost, and requests that wait or run there are sent again, from their beginning.

    Attributes:
        time: seconds on the clock by which requests arrive: that of a log, which need not begin at 0, or with a
            ``rate`` one that begins with the first request.
        replica: which.
        down_s: seconds until it is back, with an empty cache.
    """

    time: float
    replica: int
    down_s: float = math.inf


def simulate(
    requests: Iterable[FleetRequest],
    num_replicas: int = 8,
    router: str | Router | Callable[[FleetRequest, Fleet], int] = "prefix-load",
    num_blocks: int | None = 1000,
    block_size: int = 512,
    server: Server | ExponentialServer | None = None,
    rate: float | None = None,
    seed: int = 0,
    failures: Iterable[Failure] = (),
    on_event: Callable[[FleetEvent], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> FleetReport:
    """Let requests arrive, be routed, and be served to their end.

    A prompt is looked up, and its full blocks are cached, when its replica begins with it.

    Args:
        requests: in the order of their arrival; only those in the house are kept.
        num_replicas: how many.
        router: a name of :data:`pagedattn_lab.studies.fleet.prefix_routers.ROUTERS`, an object with ``choose``, or a
            function of a request and the fleet that returns the number of a replica.
        num_blocks: blocks of each replica's cache; ``None``: as many as it takes.
        block_size: tokens per block of the requests' ids.
        server: how replicas spend their time; by default a :class:`pagedattn_lab.studies.fleet.servers.Server`.
        rate: requests per second, which then arrive as a Poisson process; ``None``: when they say.
        seed: same seed, same figures.
        failures: in any order.
        on_event: called with each event, in the order of time.
        progress: called with the number of requests that have arrived, after each thousand of them and at the end.

    Raises:
        ValueError: a number below 1, an unknown router, a rate that is not above 0, a failure of a replica that is not
            there or at a time below 0, a request that arrives before the one in front of it or has too few ids or too
            many, or a router that chooses what is no replica, or one that has failed.

    Example:
        >>> from itertools import islice
        >>> from pagedattn_lab.studies.fleet.requests import chat_requests
        >>> rates = {}
        >>> for router in ("round-robin", "prefix-load"):
        ...     report = simulate(islice(chat_requests(), 2000), 4, router, num_blocks=1000, block_size=16)
        ...     rates[router] = round(report.hit_rate, 2)
        >>> rates
        {'round-robin': 0.28, 'prefix-load': 0.53}
    """
    at_least_one("num_replicas", num_replicas)
    if rate is not None and not rate > 0:
        raise ValueError(f"a rate of {rate} requests per second: give one above 0, or None for the requests' own times")
    if isinstance(router, str):
        if router not in ROUTERS:
            raise ValueError(f"router {router!r} is unknown: use one of {', '.join(ROUTERS)}")
        name, router = router, ROUTERS[router]()
    else:
        name = getattr(router, "__name__", type(router).__name__)
    failures = list(failures)
    for failure in failures:
        if not (0 <= failure.replica < num_replicas and failure.time >= 0 and failure.down_s > 0):
            raise ValueError(f"{failure}: replicas are 0 to {num_replicas - 1}, and times and down_s are not negative")
    fleet = Fleet(num_replicas, num_blocks, block_size, random.Random(f"ties {seed}"))
    run = _Run(fleet, router, server or Server(), seed, failures, on_event)
    arrivals = run.check(requests, rate, random.Random(f"arrivals of a fleet {seed}"))
    with rare_collections():
        run.through(arrivals, progress)
    return run.report(name)


class _Run:
    """One simulation: the fleet, and what is due."""

    def __init__(
        self,
        fleet: Fleet,
        router: Router | Callable[[FleetRequest, Fleet], int],
        server: Server | ExponentialServer,
        seed: int,
        failures: Iterable[Failure],
        on_event: Callable[[FleetEvent], object] | None,
    ) -> None:
        self.fleet, self.on_event = fleet, on_event
        self.choose: Callable[[FleetRequest, Fleet], int] = getattr(router, "choose", router)  # type: ignore[arg-type]
        self.router: Router | None = router if getattr(router, "listens", False) else None  # type: ignore[assignment]
        if hasattr(router, "begin"):
            router.begin(fleet, random.Random(f"route {seed}"))
        self.desks = [_Desk(self, replica) for replica in range(fleet.num_replicas)]
        self.lines: list[Line] = [
            server.line(desk, random.Random(f"serve {seed} {desk.replica}")) for desk in self.desks
        ]
        self.due: list[tuple[float, int]] = []  # a heap: time and replica
        self.due_at = [math.inf] * fleet.num_replicas  # what else the heap says of a replica no longer counts
        self.turns: list[tuple[float, int, int]] = []  # a heap: time, 0 to come back or 1 to fail, place in failures
        self.failures = list(failures)
        for place, failure in enumerate(self.failures):
            heappush(self.turns, (failure.time, 1, place))
        self.down_until = [0.0] * fleet.num_replicas
        self.homeless: list[Job] = []  # they wait for a replica that comes back
        self.ttft, self.latency = LogHistogram(), LogHistogram()
        self.num_requests = self.num_refused = self.num_lost = self.num_sent_again = self.refused_tokens = 0
        self.first_arrival: float | None = None
        self.last = 0.0

    def check(
        self, requests: Iterable[FleetRequest], rate: float | None, rng: random.Random
    ) -> Iterator[tuple[float, FleetRequest]]:
        """Pass requests on with their times of arrival."""
        latest, size = -math.inf, self.fleet.block_size
        for number, request in enumerate(requests, start=1):
            now, tokens, num_ids = request.arrival, request.prompt_len, len(request.hash_ids)
            if tokens < 1 or request.output_len < 1:
                raise ValueError(f"request {number}: {request} needs a token in its prompt and one in its output")
            if num_ids != tokens // size and num_ids != cdiv(tokens, size):
                raise ValueError(
                    f"request {number}: {num_ids} hash_ids for {tokens} tokens in blocks of {size}: there must be one "
                    "for each block, or for each full block"
                )
            if rate is not None:
                now = max(latest, 0.0)
                latest = now + rng.expovariate(rate)
            elif not latest <= now < math.inf:
                raise ValueError(f"request {number} arrives at {now}, after one that arrives at {latest}: sort them")
            else:
                latest = now
            yield now, request

    def through(self, arrivals: Iterator[tuple[float, FleetRequest]], progress: Callable[[int], object] | None) -> None:
        """Do what is due, in order, until all requests have ended."""
        fleet, due, turns, due_at, lines = self.fleet, self.due, self.turns, self.due_at, self.lines
        coming, request = next(arrivals, (math.inf, None))
        self.first_arrival = None if request is None else coming
        while True:
            at = due[0][0] if due else math.inf
            if turns and turns[0][0] <= coming and turns[0][0] <= at:
                if request is None and not due and not self.homeless:
                    break  # nobody is left whom it concerns
                self.turn()
            elif coming <= at:
                if request is None:
                    break
                fleet.now = coming
                self.arrive(request)
                if progress is not None and not self.num_requests % PROGRESS_EVERY:
                    progress(self.num_requests)
                coming, request = next(arrivals, (math.inf, None))
            else:
                replica = due[0][1]
                if at != due_at[replica]:
                    heappop(due)
                    continue
                fleet.now = at
                again = lines[replica].fire(at)
                if again is None:
                    due_at[replica] = math.inf
                    heappop(due)
                else:
                    due_at[replica] = again
                    heapreplace(due, (again, replica))
        self.num_lost = len(self.homeless)
        if progress is not None and self.num_requests % PROGRESS_EVERY:
            progress(self.num_requests)

    def arrive(self, request: FleetRequest) -> None:
        """Take a request in, or refuse it."""
        number = self.num_requests
        self.num_requests += 1
        if self.fleet.caches[0].fits(request.prompt_len):
            self.send(Job(request, number, self.fleet.now))
        else:
            self.num_refused += 1
            self.refused_tokens += request.prompt_len

    def send(self, job: Job) -> None:
        """Ask the router, and hand a job over."""
        fleet, now = self.fleet, self.fleet.now
        if not fleet.alive:
            self.homeless.append(job)
            return
        replica = self.choose(job.request, fleet)
        if type(replica) is not int or not 0 <= replica < fleet.num_replicas or not fleet.is_alive(replica):
            replica = self.checked(replica, job.number)
        self.num_sent_again += job.was_sent
        job.was_sent = True
        fleet.change_load(replica, 1)
        load, figures = fleet.load(replica), self.desks[replica].figures
        if load > figures.most_load:
            figures.most_load = load
        if self.on_event is not None:
            self.on_event(Arrived(now, replica, job.number, job.request, load))
        again = self.lines[replica].add(job, now)
        if again is not None:
            self.due_at[replica] = again
            heappush(self.due, (again, replica))

    def checked(self, chosen: object, number: int) -> int:
        """Return a router's choice as an ``int``, as which NumPy's whole numbers will do, or say what is wrong."""
        fleet, about = self.fleet, f"the router chose replica {chosen!r} for request {number}"
        try:
            replica = index(chosen)  # type: ignore[arg-type]
        except TypeError:
            replica = None
        if replica is None or isinstance(chosen, bool):
            raise ValueError(f"{about}, which is no whole number: return one from 0 to {fleet.num_replicas - 1}")
        if not 0 <= replica < fleet.num_replicas:
            raise ValueError(f"{about}, which is not there: they are numbered 0 to {fleet.num_replicas - 1}")
        if not fleet.is_alive(replica):
            raise ValueError(f"{about}, which has failed: choose one for which fleet.is_alive is true")
        return replica

    def turn(self) -> None:
        """Let a replica fail, or come back."""
        fleet = self.fleet
        now, fails, place = heappop(self.turns)
        replica, bit = self.failures[place].replica, 1 << self.failures[place].replica
        fleet.now = now
        if not fails:
            if self.down_until[replica] > now or fleet.alive & bit:
                return  # another failure keeps it down, or has let it come back at this instant
            fleet.alive |= bit
            if self.on_event is not None:
                self.on_event(Recovered(now, replica))
            jobs, self.homeless = self.homeless, []
        else:
            self.down_until[replica] = max(self.down_until[replica], now + self.failures[place].down_s)
            if self.down_until[replica] < math.inf:
                heappush(self.turns, (self.down_until[replica], 0, place))
            if not fleet.alive & bit:
                return
            fleet.alive ^= bit
            self.due_at[replica] = math.inf
            jobs = self.lines[replica].drop(now)
            fleet.change_load(replica, -len(jobs))
            cache = fleet.caches[replica]
            if self.router is not None:
                self.router.cleared(replica, cache.hash_ids(), now)
            cache.clear()
            self.desks[replica].figures.num_failures += 1
            if self.on_event is not None:
                self.on_event(Failed(now, replica, len(jobs)))
        for job in jobs:
            self.send(job)

    def report(self, name: str) -> FleetReport:
        """Sum up."""
        for desk, line, cache in zip(self.desks, self.lines, self.fleet.caches, strict=True):
            desk.figures.busy_s, desk.figures.evictions = line.busy_s, cache.evictions
        replicas = tuple(desk.figures for desk in self.desks)
        return FleetReport(
            router=name,
            num_replicas=self.fleet.num_replicas,
            num_requests=self.num_requests,
            num_finished=self.latency.count,
            num_refused=self.num_refused,
            num_lost=self.num_lost,
            num_sent_again=self.num_sent_again,
            prompt_tokens=sum(replica.prompt_tokens for replica in replicas) + self.refused_tokens,
            hit_tokens=sum(replica.hit_tokens for replica in replicas),
            seconds=max(0.0, self.last - (self.first_arrival or 0.0)),
            ttft_mean_s=self.ttft.mean,
            ttft_p99_s=self.ttft.quantile(0.99),
            latency_mean_s=self.latency.mean,
            latency_p99_s=self.latency.quantile(0.99),
            replicas=replicas,
        )


class _Desk:
    """Where one replica's server tells what becomes of its jobs."""

    __slots__ = ("cache", "figures", "replica", "run")

    def __init__(self, run: _Run, replica: int) -> None:
        self.run, self.replica = run, replica
        self.figures = ReplicaReport()
        self.cache = run.fleet.caches[replica]
        if run.router is not None or run.on_event is not None:
            self.cache.on_change = self.changed

    def start(self, job: Job, now: float) -> int:
        """A prompt is looked up and cached."""
        request = job.request
        hit_tokens = self.cache.serve(request.prompt_len, request.hash_ids)
        self.figures.prompt_tokens += request.prompt_len
        self.figures.hit_tokens += hit_tokens
        if self.run.on_event is not None:
            hit_blocks = hit_tokens // self.cache.block_size
            self.run.on_event(Started(now, self.replica, job.number, request, hit_blocks, len(self.cache)))
        return hit_tokens

    def finish(self, job: Job, now: float) -> None:
        """A job has its last token."""
        run = self.run
        assert job.first_token is not None
        ttft = job.first_token - job.arrival
        run.ttft.add(ttft)
        run.latency.add(now - job.arrival)
        run.last = now
        self.figures.num_requests += 1
        run.fleet.change_load(self.replica, -1)
        if run.on_event is not None:
            run.on_event(Finished(now, self.replica, job.number, job.request, ttft))

    def changed(self, evicted: list[int], stored: list[int]) -> None:
        """The cache holds other blocks now."""
        run, now = self.run, self.run.fleet.now
        if run.router is not None:
            if evicted:
                run.router.removed(self.replica, evicted, now)
            if stored:
                run.router.stored(self.replica, stored, now)
        if run.on_event is not None and evicted:
            run.on_event(Evicted(now, self.replica, tuple(evicted), len(self.cache)))
