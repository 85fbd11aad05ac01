"""Routers that know what the caches hold: exactly, by late and lossy events, or weighed against load (chapter 11)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from pagedattn_lab.studies.fleet.requests import FleetRequest
from pagedattn_lab.studies.fleet.routers import (
    FleetView,
    LeastLoadedRouter,
    RandomRouter,
    RoundRobinRouter,
    Router,
    SessionRouter,
    TwoChoicesRouter,
)


class PrefixRouter(Router):
    """Where the most leading blocks are cached at this moment; of several replicas, the one with the least load.

    What waits on a replica is not cached yet, so two requests that begin alike and arrive together may part.
    """

    listens = True

    def begin(self, fleet: FleetView, rng: random.Random) -> None:
        """Begin with empty caches."""
        super().begin(fleet, rng)
        self._holders: dict[int, int] = {}  # id of a block -> the set of replicas that hold it
        self._bits = [1 << replica for replica in range(fleet.num_replicas)]  # one object for all that one alone holds

    def stored(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Note who holds the blocks."""
        holders, bit = self._holders, self._bits[replica]
        if holders.keys().isdisjoint(hash_ids):
            holders.update(dict.fromkeys(hash_ids, bit))
        else:
            for hash_id in hash_ids:
                holders[hash_id] = holders.get(hash_id, 0) | bit

    def removed(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Note who holds them no longer."""
        holders, bit = self._holders, self._bits[replica]
        for hash_id in hash_ids:
            if (among := holders.pop(hash_id)) != bit:
                holders[hash_id] = among ^ bit

    def cleared(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Note that a cache is lost."""
        self.removed(replica, hash_ids, now)

    def levels(self, request: FleetRequest, fleet: FleetView) -> list[tuple[int, int]]:
        """Say who holds how much of a prompt.

        Returns:
            Pairs of a number of leading blocks, from 0 up, and the set of the replicas alive that hold as many or more;
            only those numbers at which the set becomes smaller with the next block, and the last one.
        """
        holders, among, depth = self._holders, fleet.alive, 0
        levels: list[tuple[int, int]] = []
        for hash_id in request.hash_ids[: (request.prompt_len - 1) // fleet.block_size]:
            held = holders.get(hash_id, 0)
            if held != among and (fewer := among & held) != among:
                levels.append((depth, among))
                if not fewer:
                    return levels
                among = fewer
            depth += 1
        levels.append((depth, among))
        return levels

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Take the deepest level."""
        return fleet.least_loaded(self.levels(request, fleet)[-1][1])


class PrefixEventsRouter(PrefixRouter):
    """As :class:`PrefixRouter`, with an index made from events that come late and get lost, as over a network.

    An event tells of all blocks that one prompt stores, or that make room for one. No event tells of a hit, after which
    a cache keeps a block longer. So the index, too, keeps blocks in the order of their use: those that a prompt is
    routed for count as used. Where it knows more blocks of a replica than a cache has, removals were not told, and it
    forgets what was not used for longest. That a replica has failed is known at once.

    Args:
        delay_s: seconds from a change to its effect on the index.
        loss: part of the events that never come.

    Raises:
        ValueError: a negative delay, or a loss outside 0 to 1.
    """

    def __init__(self, delay_s: float = 1.0, loss: float = 0.01) -> None:
        if not delay_s >= 0:
            raise ValueError(f"delay_s is {delay_s!r}: give 0 or more")
        if not 0 <= loss <= 1:
            raise ValueError(f"loss is {loss!r}: give a part from 0 to 1")
        self.delay_s, self.loss = delay_s, loss

    def begin(self, fleet: FleetView, rng: random.Random) -> None:
        """Begin with empty caches and nothing on the way."""
        super().begin(fleet, rng)
        self._most = fleet.num_blocks
        self._known: list[dict[int, None]] = [{} for _ in range(fleet.num_replicas)]  # ids, next to forget first
        self._lives = [0] * fleet.num_replicas
        self._on_the_way: deque[tuple[float, int, int, bool, Sequence[int]]] = deque()

    def stored(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Send an event, which may get lost."""
        self._send(replica, hash_ids, now, stored=True)

    def removed(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Send an event, which may get lost."""
        self._send(replica, hash_ids, now, stored=False)

    def _send(self, replica: int, hash_ids: Sequence[int], now: float, *, stored: bool) -> None:
        if not self.loss or self._rng.random() >= self.loss:
            self._on_the_way.append((now + self.delay_s, replica, self._lives[replica], stored, hash_ids))

    def cleared(self, replica: int, hash_ids: Sequence[int], now: float) -> None:
        """Forget a replica that failed; what it has sent no longer counts."""
        super().removed(replica, list(self._known[replica]), now)
        self._known[replica] = {}
        self._lives[replica] += 1

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Take the deepest level of the index as it is known now."""
        while self._on_the_way and self._on_the_way[0][0] <= fleet.now:
            due, replica, life, stored, hash_ids = self._on_the_way.popleft()
            if life == self._lives[replica]:
                self._learn(replica, hash_ids, due, stored)
        depth, among = self.levels(request, fleet)[-1]
        replica = fleet.least_loaded(among)
        if self._most is not None:
            known, used = self._known[replica], dict.fromkeys(reversed(request.hash_ids[:depth]))
            for hash_id in used:
                del known[hash_id]
            known.update(used)
        return replica

    def _learn(self, replica: int, hash_ids: Sequence[int], now: float, stored: bool) -> None:
        known = self._known[replica]
        if not stored:
            gone = [hash_id for hash_id in hash_ids if hash_id in known]
            for hash_id in gone:
                del known[hash_id]
            super().removed(replica, gone, now)
            return
        for hash_id in hash_ids:
            known.pop(hash_id, None)
            known[hash_id] = None
        super().stored(replica, hash_ids, now)
        if self._most is not None and len(known) > self._most:
            gone = [hash_id for hash_id, _ in zip(known, range(len(known) - self._most), strict=False)]
            for hash_id in gone:
                del known[hash_id]
            super().removed(replica, gone, now)


class PrefixLoadRouter(PrefixRouter):
    """Where a request costs least, in tokens to be computed, its own and those in front of it::

        cost = prompt_len - hit tokens + weight * load * (tokens that a request has computed so far, on average)

    The unit is a token to be computed, which is a unit of time: one token takes ``step_time.compute`` seconds.

    Args:
        weight: of the load. 1 would be right if none of those requests had begun; but most of them run already, and
            need little more than a token a step. At 0 the router chases prefixes as :class:`PrefixRouter` does.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, weight: float = 0.25) -> None:
        if not weight >= 0:
            raise ValueError(f"weight is {weight!r}: give 0 or more")
        self.weight = weight

    def begin(self, fleet: FleetView, rng: random.Random) -> None:
        """Begin with empty caches, and nothing known of costs."""
        super().begin(fleet, rng)
        self._num_chosen = self._num_computed = 0

    def choose(self, request: FleetRequest, fleet: FleetView) -> int:
        """Compare the least loaded replicas of all levels."""
        per_request = self.weight * self._num_computed / (self._num_chosen or 1)
        least = chosen = computed = -1.0
        for depth, among in reversed(self.levels(request, fleet)):
            replica = fleet.least_loaded(among)
            tokens = request.prompt_len - depth * fleet.block_size
            cost = tokens + fleet.load(replica) * per_request
            if least < 0 or cost < least:
                least, chosen, computed = cost, replica, tokens
        self._num_chosen += 1
        self._num_computed += int(computed)
        return int(chosen)


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobinRouter,
    "random": RandomRouter,
    "least-loaded": LeastLoadedRouter,
    "two-choices": TwoChoicesRouter,
    "session": SessionRouter,
    "prefix": PrefixRouter,
    "prefix-events": PrefixEventsRouter,
    "prefix-load": PrefixLoadRouter,
}
"""Routers by name, with their usual settings."""
