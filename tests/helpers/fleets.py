"""A small fleet that does at random what a fleet can do, and keeps its own account of it, for tests of its pictures."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from pagedattn_lab.studies.fleet.events import Arrived, Evicted, Failed, Finished, FleetEvent, Recovered, Started
from pagedattn_lab.studies.fleet.requests import FleetRequest

BLOCK_SIZE = 4
SYSTEM = (1000, 1001)  # two blocks with which every prompt begins


class State(NamedTuple):
    """One replica: sessions that wait and run, the contents of its cache, and whether it lives."""

    waiting: tuple[int, ...]
    running: tuple[int, ...]
    cached: frozenset[int]
    is_alive: bool


@dataclass
class SmallFleet:
    """A fleet that runs one request at a time on each replica.

    Attributes:
        events: all that has happened.
        states: the replicas after each of them.
        found, looked_for: tokens of prompts, so far, after each of them.
    """

    num_replicas: int
    num_blocks: int
    num_sessions: int = 4
    seed: int = 0
    events: list[FleetEvent] = field(default_factory=list)
    states: list[list[State]] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    looked_for: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = 0.0
        self.queues: list[list[tuple[int, FleetRequest]]] = [[] for _ in range(self.num_replicas)]
        self.at_work: list[tuple[int, FleetRequest] | None] = [None] * self.num_replicas
        self.caches: list[list[int]] = [[] for _ in range(self.num_replicas)]  # least recently used first
        self.alive = [True] * self.num_replicas
        self.turns: Counter[int] = Counter()
        self.number = self.num_found = self.num_looked_for = 0

    def run(self, num_moves: int, fails: bool = True) -> SmallFleet:
        """Do so many things at random, then let all requests end."""
        for _ in range(num_moves):
            self.now += 0.25 * self.rng.randrange(4)
            replica = self.rng.randrange(self.num_replicas)
            move = self.rng.random()
            if fails and move < 0.05 and sum(self.alive) > 1 and self.alive[replica]:
                self.fail(replica)
            elif not self.alive[replica]:
                self.alive[replica] = True
                self.note(Recovered(self.now, replica))
            elif move < 0.6:
                self.arrive(replica)
            elif self.at_work[replica]:
                self.finish(replica)
        for replica in range(self.num_replicas):
            while self.at_work[replica]:
                self.now += 0.5
                self.finish(replica)
        return self

    def arrive(self, replica: int, session: int | None = None) -> None:
        """Let the next turn of a conversation come to a replica."""
        session = self.rng.randrange(self.num_sessions) if session is None else session
        self.turns[session] += 1
        own = tuple(100 * session + block for block in range(min(self.turns[session], self.num_blocks - 2)))
        hash_ids = (*SYSTEM, *own, 10_000 + self.number)  # the last one for the rest, which no cache keeps
        request = FleetRequest(self.now, BLOCK_SIZE * (len(hash_ids) - 1) + 1, 3, hash_ids, session)
        self.send(replica, self.number, request)
        self.number += 1

    def send(self, replica: int, number: int, request: FleetRequest) -> None:
        """Let a replica have a request, which it begins with if it has nothing to do."""
        self.queues[replica].append((number, request))
        self.note(Arrived(self.now, replica, number, request, len(self.queues[replica])))
        if self.at_work[replica] is None:
            self.start(replica)

    def start(self, replica: int) -> None:
        """Look up the prompt of the first that waits, make room, and keep it."""
        number, request = self.queues[replica][0]
        cache, ids = self.caches[replica], request.hash_ids[:-1]
        hits = 0
        while hits < len(ids) and ids[hits] in cache:
            hits += 1
        gone = [hash_id for hash_id in cache if hash_id not in ids[:hits]]
        gone = gone[: max(0, len(cache) + len(ids) - hits - self.num_blocks)]
        cache[:] = [hash_id for hash_id in cache if hash_id not in gone and hash_id not in ids]
        cache += [*ids[::-1]]
        if gone:
            self.note(Evicted(self.now, replica, tuple(gone), len(cache)), soon=True)
        self.queues[replica].pop(0)
        self.at_work[replica] = number, request
        self.num_found += hits * BLOCK_SIZE
        self.num_looked_for += request.prompt_len
        self.note(Started(self.now, replica, number, request, hits, len(cache)))

    def finish(self, replica: int) -> None:
        """Let the request that runs end, and the next one begin."""
        number, request = self.at_work[replica]
        self.at_work[replica] = None
        self.note(Finished(self.now, replica, number, request, 1.0))
        if self.queues[replica]:
            self.start(replica)

    def fail(self, replica: int) -> None:
        """Let a replica fail; another one gets its requests."""
        held = [self.at_work[replica]] if self.at_work[replica] else []
        held += self.queues[replica]
        self.queues[replica], self.at_work[replica], self.caches[replica] = [], None, []
        self.alive[replica] = False
        self.note(Failed(self.now, replica, len(held)))
        for number, request in held:
            self.send(self.alive.index(True), number, request)

    def note(self, event: FleetEvent, soon: bool = False) -> None:
        """Keep an event and the state after it; ``soon``: the state is that of the event to come."""
        self.events.append(event)
        self.states.append([])
        if not soon:
            self.states[-1] = [
                State(
                    tuple(request.session for _, request in self.queues[replica]),
                    (self.at_work[replica][1].session,) if self.at_work[replica] else (),
                    frozenset(self.caches[replica]),
                    self.alive[replica],
                )
                for replica in range(self.num_replicas)
            ]
        self.found.append(self.num_found)
        self.looked_for.append(self.num_looked_for)
