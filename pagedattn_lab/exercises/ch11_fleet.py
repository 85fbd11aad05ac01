"""Small fleets for exercises of chapter 11: a replica serves one request at a time, and computes a block a second."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from pagedattn_lab.hardware import StepTime
from pagedattn_lab.studies.fleet import FleetReport, FleetRequest, Server, simulate

BLOCK_SIZE = 16
ONE_BY_ONE = Server(StepTime(weights=1 / BLOCK_SIZE, compute=1 / BLOCK_SIZE, read=0), max_num_seqs=1)
SYSTEM_PROMPT = 6
"""Blocks of the system prompt."""

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
        gap: seconds from one request to the next, on average.
        seed: of what is left to chance.
    """

    num_replicas: int
    num_blocks: int
    num_requests: int
    num_active: int
    shared: float
    gap: int
    seed: int

    def requests(self) -> Iterator[FleetRequest]:
        """Give the requests in order of arrival."""
        rng, now, names, sessions = random.Random(self.seed), 0, count(1), count()
        system_prompt = _named(names, SYSTEM_PROMPT)
        active: list[tuple[int, tuple[int, ...]]] = []  # sessions, and the blocks of their latest prompts
        for _ in range(self.num_requests):
            if len(active) < self.num_active:
                begin = system_prompt if rng.random() < self.shared else _named(names, 3)
                active.append((next(sessions), begin))
            place = rng.randrange(len(active))
            session, blocks = active[place]
            blocks += _named(names, rng.randint(1, 3))
            prompt_len = BLOCK_SIZE * len(blocks) + rng.randrange(1, BLOCK_SIZE)
            yield FleetRequest(now, prompt_len, BLOCK_SIZE * rng.randint(1, 3), blocks, session)
            active[place] = session, blocks
            if rng.random() < 0.15:
                del active[place]
            now += rng.randint(0, 2 * self.gap)

    def serve(self, choose: Choose) -> FleetReport:
        """Serve the requests, each where ``choose`` says."""
        return simulate(self.requests(), self.num_replicas, choose, self.num_blocks, BLOCK_SIZE, ONE_BY_ONE)


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


def by_session(request: Any, fleet: Any) -> int:
    """Choose by the conversation, whatever the load."""
    return request.session % fleet.num_replicas


def spread(request: Any, fleet: Any) -> int:
    """Choose by the name of the last block, which is new in every turn: as even as in turn, and as blind."""
    return request.hash_ids[-1] % fleet.num_replicas


def round_robin() -> Choose:
    """Make a router that takes the replicas in turn."""
    turns = count()
    return lambda request, fleet: next(turns) % fleet.num_replicas


def _least(fleet: Any, cost: Callable[[int], Any]) -> int:
    return min(range(fleet.num_replicas), key=cost)
