"""Routers that look at load or at the session: who gets the next request (chapter 11)."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.studies.fleet.requests import FleetRequest


class FleetView(Protocol):
    """What a router sees of a fleet.

    Sets of replicas are whole numbers: bit ``n`` is set if replica ``n`` is among them. So the replicas that hold a
    block, or have some load, are compared all at once.

    Attributes:
        num_replicas: how many there are, failed ones included.
        num_blocks: blocks of each one's cache; ``None``: as many as it takes.
        block_size: tokens per block.
        now: seconds.
        alive: those that have not failed, as a set; never empty when a router is asked.
    """

    num_replicas: int
    num_blocks: int | None
    block_size: int
    now: float
    alive: int

    def load(self, replica: int) -> int:
        """How many requests wait and run on a replica."""

    def hit_blocks(self, replica: int, request: FleetRequest) -> int:
        """How many leading blocks of a prompt a replica would find at this moment."""

    def is_alive(self, replica: int) -> bool:
        """Whether a replica has not failed."""

    def least_loaded(self, among: int) -> int:
        """The one with the least load in a set that is not empty; of several, one by chance."""


class Router:
    """Chooses a replica for each request. A reader's own needs :meth:`choose` and nothing else.

    Attributes:
        listens: whether it wants to be told what the caches hold, by :meth:`stored`, :meth:`removed`, :meth:`cleared`.
    """

    listens = False

    def begin(self, fleet: FleetView, rng: random.Random) -> None:
        """Forget what was before: a simulation begins. ``rng`` is this router's own."""
        self._rng = rng

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Say which replica gets a request; it must be alive."""
        raise NotImplementedError

    def stored(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Blocks can be found on a replica from now on."""

    def removed(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Blocks can no longer be found on a replica."""

    def cleared(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """A replica failed; these blocks were there."""


class RoundRobinRouter(Router):
    """One after the other; who has failed is left out."""

    def begin(self, fleet: FleetView, rng: random.Random) -> None:
        """Begin with replica 0."""
        self._next = 0

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Take the next one that is alive."""
        replica = self._next
        while not fleet.is_alive(replica):
            replica = (replica + 1) % fleet.num_replicas
        self._next = (replica + 1) % fleet.num_replicas
        return replica


class RandomRouter(Router):
    """Any of those alive, by chance."""

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Draw until one is alive."""
        return draw(fleet, self._rng)


class LeastLoadedRouter(Router):
    """Where the fewest requests wait and run; of several such replicas, one by chance."""

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Look at all of them."""
        return fleet.least_loaded(fleet.alive)


class TwoChoicesRouter(Router):
    """Of two replicas drawn by chance, the one with less load.

    Source: Mitzenmacher 2001, "The power of two choices in randomized load balancing".
    """

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Draw two, perhaps the same one twice."""
        first, second = draw(fleet, self._rng), draw(fleet, self._rng)
        return second if fleet.load(second) < fleet.load(first) else first


class SessionRouter(Router):
    """The same replica for all turns of a conversation, by consistent hashing.

    Every replica has points on a ring, and a session goes to the first point behind its own whose replica is alive. So
    when one fails, its sessions move, to many others, and no other session does; when it is back they return.

    Source: Karger et al. 1997, "Consistent hashing and random trees".

    Args:
        num_points: of each replica; the more, the more evenly sessions are spread.

    Raises:
        ValueError: fewer than 1 point.
    """

    def __init__(self, num_points: int = 100) -> None:
        at_least_one("num_points", num_points)
        self.num_points = num_points

    def begin(self, fleet: FleetView, rng: random.Random) -> None:
        """Lay the ring out."""
        ring = sorted(
            (_hash(f"replica {replica} point {point}"), replica)
            for replica in range(fleet.num_replicas)
            for point in range(self.num_points)
        )
        self._points, self._replicas = [point for point, _ in ring], [replica for _, replica in ring]

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Walk the ring."""
        place = bisect(self._points, _hash(f"session {request.session}")) % len(self._points)
        while not fleet.is_alive(self._replicas[place]):
            place = (place + 1) % len(self._points)
        return self._replicas[place]


def draw(fleet: FleetView, rng: random.Random) -> int:
    """Draw a replica that is alive."""
    while True:
        replica = int(rng.random() * fleet.num_replicas)
        if fleet.is_alive(replica):
            return replica


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
