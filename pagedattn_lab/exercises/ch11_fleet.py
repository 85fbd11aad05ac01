"""A fleet that is small enough to follow, for exercises of chapter 11: its clock counts blocks that a replica computes.

To a router it looks as the fleets of the chapter do.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

SYSTEM_PROMPT = 6
"""Blocks of the system prompt."""


@dataclass(frozen=True)
class SmallRequest:
    """A request: when it comes, the tokens of its prompt, the names of its full blocks, and its answer in blocks."""

    arrival: int
    prompt_len: int
    hash_ids: tuple[int, ...]
    answer: int


@dataclass
class _Replica:
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)
    ends: deque[int] = field(default_factory=deque)
    free_from: int = 0


class SmallFleet:
    """Replicas that serve one request after the other, each with a cache from which the block unused for longest goes.

    Args:
        num_replicas: of the fleet.
        num_blocks: that each replica caches.

    Example:
        >>> fleet, request = SmallFleet(2, 10), SmallRequest(0, 50, (7, 8, 9), answer=1)
        >>> fleet.serve(request, 1)
        >>> fleet.load(1), fleet.hit_blocks(1, request), fleet.hit_blocks(0, request)
        (1, 3, 0)
        >>> fleet.now = 4
        >>> fleet.load(1)
        0
    """

    def __init__(self, num_replicas: int, num_blocks: int) -> None:
        self.num_replicas = num_replicas
        self.now = 0
        self._num_blocks = num_blocks
        self._replicas = [_Replica() for _ in range(num_replicas)]

    def load(self, replica: int) -> int:
        """Requests at a replica, waiting and running."""
        ends = self._replicas[replica].ends
        while ends and ends[0] <= self.now:
            ends.popleft()
        return len(ends)

    def hit_blocks(self, replica: int, request: SmallRequest) -> int:
        """Blocks of a prompt, from the first on, that a replica has cached."""
        return len(list(takewhile(self._replicas[replica].cached.__contains__, request.hash_ids)))

    def is_alive(self, replica: int) -> bool:
        """Whether a replica answers: here all do."""
        return 0 <= replica < self.num_replicas

    def serve(self, request: SmallRequest, replica: int) -> None:
        """Put a request in line at a replica."""
        to_compute = len(request.hash_ids) - self.hit_blocks(replica, request) + request.answer
        it = self._replicas[replica]
        it.free_from = max(it.free_from, request.arrival) + to_compute
        it.ends.append(it.free_from)
        for block in reversed(request.hash_ids):  # the end of a prompt is to go before its beginning
            it.cached[block] = None
            it.cached.move_to_end(block)
        while len(it.cached) > self._num_blocks:
            it.cached.popitem(last=False)


Choose = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Traffic:
    """Conversations that grow from turn to turn, many of which begin with one system prompt, and a fleet to serve them.

    Args:
        num_replicas: of the fleet.
        num_blocks: that each replica caches.
        num_requests: in all.
        num_active: conversations that go on side by side.
        shared: share of conversations that begin with the system prompt.
        gap: blocks of time from one request to the next, on average.
        seed: of what is left to chance.
    """

    num_replicas: int
    num_blocks: int
    num_requests: int
    num_active: int
    shared: float
    gap: int
    seed: int

    def requests(self) -> Iterator[SmallRequest]:
        """Give the requests in order of arrival."""
        rng, now, names = random.Random(self.seed), 0, count(1)
        system_prompt, active = _named(names, SYSTEM_PROMPT), []
        for _ in range(self.num_requests):
            if len(active) < self.num_active:
                active.append(system_prompt if rng.random() < self.shared else _named(names, 3))
            place = rng.randrange(len(active))
            blocks = active[place] + _named(names, rng.randint(1, 3))
            yield SmallRequest(now, 16 * len(blocks) + rng.randrange(16), blocks, rng.randint(1, 3))
            active[place] = blocks
            if rng.random() < 0.15:
                del active[place]
            now += rng.randint(0, 2 * self.gap)

    def serve(self, choose: Choose) -> Iterator[tuple[SmallRequest, SmallFleet, Any]]:
        """Serve the requests: give each with the fleet as it finds it, and where it goes once the next is asked for."""
        fleet = SmallFleet(self.num_replicas, self.num_blocks)
        for request in self.requests():
            fleet.now = request.arrival
            replica = choose(request, fleet)
            yield request, fleet, replica
            fleet.serve(request, replica)


def _named(names: Iterator[int], number: int) -> tuple[int, ...]:
    return tuple(next(names) for _ in range(number))


# --- routers ----------------------------------------------------------------------------------------------------------


def weigh(price: float) -> Choose:
    """Make a router for which waiting behind one request costs as much as computing ``price`` blocks."""
    return lambda request, fleet: _least(fleet, lambda at: price * fleet.load(at) - fleet.hit_blocks(at, request))


def least_loaded(request: Any, fleet: Any) -> int:
    """Choose the replica with the fewest requests."""
    return _least(fleet, fleet.load)


def chase(request: Any, fleet: Any) -> int:
    """Choose the replica with most of the prompt's blocks; of several, the one with the fewest requests."""
    return _least(fleet, lambda at: (-fleet.hit_blocks(at, request), fleet.load(at)))


def chase_first(request: Any, fleet: Any) -> int:
    """Choose the replica with most of the prompt's blocks; of several, the first."""
    return _least(fleet, lambda at: -fleet.hit_blocks(at, request))


def by_conversation(request: Any, fleet: Any) -> int:
    """Choose by the name of the first block that is a conversation's own, whatever the load."""
    return min(request.hash_ids[SYSTEM_PROMPT:] or request.hash_ids) % fleet.num_replicas


def spread(request: Any, fleet: Any) -> int:
    """Choose by the name of the last block, which is new in every turn: as even as in turn, and as blind."""
    return request.hash_ids[-1] % fleet.num_replicas


def round_robin() -> Choose:
    """Make a router that takes the replicas in turn."""
    turns = count()
    return lambda request, fleet: next(turns) % fleet.num_replicas


def _least(fleet: Any, cost: Callable[[int], Any]) -> int:
    return min(range(fleet.num_replicas), key=cost)


def entry(request: SmallRequest, fleet: SmallFleet, replica: int) -> tuple[list[int], list[int], list[int], int]:
    """Write down what a router knew of a request: its blocks, hits and queues by replica, and the choice."""
    every: Sequence[int] = range(fleet.num_replicas)
    hits, queues = [fleet.hit_blocks(at, request) for at in every], [fleet.load(at) for at in every]
    return list(request.hash_ids), hits, queues, replica
