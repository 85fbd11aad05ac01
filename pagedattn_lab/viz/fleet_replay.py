"""A fleet's events, played back: what waits, runs and lies in the caches after each step (chapter 11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.studies.fleet.events import Arrived, Evicted, Finished, FleetEvent, Recovered, Started
from pagedattn_lab.studies.fleet.requests import FleetRequest

SHARED = -1  # in place of a session: blocks that requests of several sessions begin with


class ReplicaView(NamedTuple):
    """One replica at one moment.

    Attributes:
        waiting: sessions of the requests that wait, first come first.
        running: sessions of those that run, the latest last.
        cached: blocks in its cache by session, ``SHARED`` first, then by their numbers. Blocks of one content count
            once.
        hits: those of ``cached`` that the request of this step has found.
        is_alive: whether it has not failed, or is back.
    """

    waiting: tuple[int, ...]
    running: tuple[int, ...]
    cached: dict[int, int]
    hits: dict[int, int]
    is_alive: bool


class FleetStep(NamedTuple):
    """The fleet after one step.

    Attributes:
        time: seconds.
        events: what happened; the last one but evictions and ends is what the step is about.
        replicas: how they stand now.
        evicted: blocks that went in this step, by session.
        hit_rate: prompt tokens found over those looked for, from the beginning, by requests that a replica has begun
            with; ``None`` before the first one.
        imbalance: how long the busiest replica has worked, over the mean of all; ``None`` before any has.
    """

    time: float
    events: tuple[FleetEvent, ...]
    replicas: tuple[ReplicaView, ...]
    evicted: dict[int, int]
    hit_rate: float | None
    imbalance: float | None


@dataclass
class _Replica:
    waiting: dict[int, FleetRequest] = field(default_factory=dict)  # by number
    running: dict[int, FleetRequest] = field(default_factory=dict)
    cached: dict[int, None] = field(default_factory=dict)  # ids of contents
    is_alive: bool = True
    busy_s: float = 0.0


def fleet_steps(events: Iterable[FleetEvent], num_replicas: int, block_size: int) -> list[FleetStep]:
    """Play events back, from the first on.

    An arrival, a start, a failure and a recovery are steps. A request that starts before anything else happens is one
    step with its arrival. Evictions and ends belong to the step that follows them; the last ends are a step.

    Args:
        events: as ``on_event`` of :func:`pagedattn_lab.studies.fleet.simulation.simulate` gets them, from the
            first one on.
        num_replicas: how many there are.
        block_size: tokens per block.

    Raises:
        ValueError: a number below 1, no event, or one that cannot be: of a replica that there is not, a start of what
            does not wait there, an end of what does not run there, an eviction of what does not lie there.

    Example:
        >>> request = FleetRequest(arrival=0.0, prompt_len=9, output_len=1, hash_ids=(1, 2, 3), session=0)
        >>> [step] = fleet_steps([Arrived(0.0, 1, 0, request, 1), Started(0.0, 1, 0, request, 0, 2)], 2, block_size=4)
        >>> step.replicas[1]
        ReplicaView(waiting=(), running=(0,), cached={0: 2}, hits={}, is_alive=True)
    """
    at_least_one("num_replicas", num_replicas)
    at_least_one("block_size", block_size)
    events = list(events)
    if not events:
        raise ValueError("no event has happened: pass on_event=events.append to simulate, and give the list")
    return list(_Replay(events, num_replicas, block_size).steps(_grouped(events)))


def _grouped(events: Iterable[FleetEvent]) -> Iterator[tuple[FleetEvent, ...]]:
    """Put events together that are one step."""
    step: list[FleetEvent] = []
    held: list[FleetEvent] = []  # evictions and ends, for the step that follows
    for event in events:
        if isinstance(event, Evicted | Finished):
            held.append(event)
            continue
        about = step[-1] if step else None
        begins = isinstance(event, Started) and isinstance(about, Arrived) and event.number == about.number
        if step and (not begins or any(isinstance(each, Finished) for each in held)):
            yield tuple(step)
            step = []
        step += [*held, event]
        held = []
    if step:
        yield tuple(step)
    if held:
        yield tuple(held)


class _Replay:
    """The state of a fleet, as its events tell it."""

    def __init__(self, events: Sequence[FleetEvent], num_replicas: int, block_size: int) -> None:
        self.block_size = block_size
        self.replicas = [_Replica() for _ in range(num_replicas)]
        self.now, self.found, self.looked_for = events[0].time, 0, 0
        self.session_of: dict[int, int] = {}  # of every content that a request ever has
        for event in events:
            if isinstance(event, Arrived):
                session = event.request.session
                for hash_id in self._full(event.request):
                    if self.session_of.setdefault(hash_id, session) != session:
                        self.session_of[hash_id] = SHARED

    def steps(self, grouped: Iterable[tuple[FleetEvent, ...]]) -> Iterator[FleetStep]:
        """Take the state after each group of events."""
        for events in grouped:
            evicted: Counter[int] = Counter()
            hits: dict[int, dict[int, int]] = {}
            for event in events:
                self._apply(event)
                if isinstance(event, Evicted):
                    evicted.update(self.session_of[hash_id] for hash_id in event.hash_ids)
                elif isinstance(event, Started):
                    hits[event.replica] = self._by_session(event.request.hash_ids[: event.hit_blocks])
            views = [
                ReplicaView(
                    tuple(request.session for request in replica.waiting.values()),
                    tuple(request.session for request in replica.running.values()),
                    self._by_session(replica.cached),
                    hits.get(number, {}),
                    replica.is_alive,
                )
                for number, replica in enumerate(self.replicas)
            ]
            busy = [replica.busy_s for replica in self.replicas]
            yield FleetStep(
                events[-1].time,
                events,
                tuple(views),
                dict(evicted),
                self.found / self.looked_for if self.looked_for else None,
                max(busy) * len(busy) / sum(busy) if any(busy) else None,
            )

    def _apply(self, event: FleetEvent) -> None:
        if not 0 <= event.replica < len(self.replicas):
            raise ValueError(f"replica {event.replica} of {len(self.replicas)}: give the number of replicas that ran")
        for replica in self.replicas:
            if replica.running:
                replica.busy_s += event.time - self.now
        self.now = event.time
        replica = self.replicas[event.replica]
        if isinstance(event, Arrived):
            replica.waiting[event.number] = event.request
        elif isinstance(event, Started):
            if replica.waiting.pop(event.number, None) is None:
                raise ValueError(f"request {event.number} starts on replica {event.replica}, where it does not wait")
            replica.running[event.number] = event.request
            replica.cached.update(dict.fromkeys(self._full(event.request)))
            self.found += event.hit_blocks * self.block_size
            self.looked_for += event.request.prompt_len
        elif isinstance(event, Finished):
            if replica.running.pop(event.number, None) is None:
                raise ValueError(f"request {event.number} ends on replica {event.replica}, where it does not run")
        elif isinstance(event, Evicted):
            for hash_id in event.hash_ids:
                if hash_id not in replica.cached:
                    raise ValueError(f"content {hash_id} goes from replica {event.replica}, which does not hold it")
                del replica.cached[hash_id]
        else:
            replica.waiting.clear()
            replica.running.clear()
            replica.cached.clear()
            replica.is_alive = isinstance(event, Recovered)

    def _full(self, request: FleetRequest) -> tuple[int, ...]:
        return request.hash_ids[: request.prompt_len // self.block_size]

    def _by_session(self, hash_ids: Iterable[int]) -> dict[int, int]:
        return dict(sorted(Counter(self.session_of[hash_id] for hash_id in hash_ids).items()))
