"""Exercise 4 of chapter 11: a router that finds what is cached, and lets no queue grow."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch11_fleet import (
    BLOCK_SIZE,
    Choose,
    Traffic,
    by_session,
    chase,
    chase_first,
    least_loaded,
    round_robin,
    spread,
    weigh,
)
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import Words, shown
from pagedattn_lab.recorder.sentences import counted

KEPT = "both promises kept"
MOST = 12
"""Requests that a replica may have at once."""
_SEEDS = {
    (3, 0.6): (3, 19, 124, 411), (3, 0.8): (2, 12, 1401, 772), (3, 1.0): (2, 27, 124, 414),
    (4, 0.6): (1, 12, 17), (4, 0.8): (1, 3, 7), (4, 1.0): (1, 3, 10),
    (6, 0.6): (2, 6, 14), (6, 0.8): (1, 9, 11), (6, 1.0): (0, 2, 9),
}  # fmt: skip
"""By replicas, and by the share of conversations with the system prompt: loads in which it takes both to keep both.

A router that looks at hits alone has twice as many requests at one replica as are promised, and one that looks at load
alone finds too few blocks. With the last two seeds of the first three a router by session melts a replica, too.
"""


def _choose(request: Any, fleet: Any) -> int:
    def cost(replica: int) -> int:
        missing = len(request.hash_ids) - fleet.hit_blocks(replica, request)
        return missing + 3 * fleet.load(replica)

    return min(range(fleet.num_replicas), key=cost)


def promised_hits(traffic: Traffic) -> int:
    """Give the blocks that are to be found: halfway from a router in turn to one that weighs hits against load."""
    return sum(traffic.serve(router).hit_tokens for router in (round_robin(), weigh(3))) // (2 * BLOCK_SIZE)


class _NoReplica(Exception):
    """An answer chose what is no replica."""


@dataclass(frozen=True, slots=True)
class ReadOnlyFleet:
    """What section 7 names of a fleet: it can be asked, and not changed."""

    num_replicas: int
    block_size: int
    load: Callable[[int], int]
    hit_blocks: Callable[[int, Any], int]
    is_alive: Callable[[int], bool]


class Service(Words):
    """How a load was served, in words.

    Args:
        outcome: which promise is broken, or that none is.
        choices: the replicas that were chosen, in order.
        saw_hits: whether the answer ever asked for hits.
    """

    choices: tuple[int, ...]
    saw_hits: bool

    def __new__(cls, outcome: str, choices: Iterable[int], saw_hits: bool) -> Service:
        """Keep the words, and beside them where they come from."""
        service = super().__new__(cls, outcome)
        service.choices, service.saw_hits = tuple(choices), saw_hits
        return service


def _same_service(one: Service, other: Service) -> bool:
    """Promises may be kept in any way; two break them alike by the same choices, if both looked at hits, or neither."""
    if KEPT in (one, other):
        return one == other
    return (one.choices, one.saw_hits) == (other.choices, other.saw_hits)


def _serve(answer: Callable[..., Any], arguments: tuple[Any, ...]) -> Service:
    """Serve a load with an answer, and note what it chose and whether it looked at hits."""
    traffic, promised = arguments
    choices: list[int] = []
    saw_hits = False

    def read_only(fleet: Any) -> ReadOnlyFleet:
        def load(replica: int) -> int:
            return int(fleet.load(replica))

        def hit_blocks(replica: int, request: Any) -> int:
            nonlocal saw_hits
            saw_hits = True
            return int(fleet.hit_blocks(replica, request))

        def is_alive(replica: int) -> bool:
            return bool(fleet.is_alive(replica))

        return ReadOnlyFleet(fleet.num_replicas, fleet.block_size, load, hit_blocks, is_alive)

    def asked(request: Any, fleet: Any) -> int:
        chosen = answer(request, read_only(fleet))
        try:
            replica = operator.index(chosen)
        except TypeError:
            replica = -1
        if not 0 <= replica < fleet.num_replicas:
            raise _NoReplica(f"a request goes to {shown(chosen)}: replicas are 0 to {fleet.num_replicas - 1}")
        choices.append(replica)
        return replica

    return Service(_outcome(asked, traffic, promised), choices, saw_hits)


def _outcome(asked: Choose, traffic: Traffic, promised: int) -> str:
    """Serve a load, and say which promise is broken."""

    try:
        report = traffic.serve(asked)
    except _NoReplica as stop:
        return str(stop)
    found, most = report.hit_tokens // BLOCK_SIZE, [replica.most_load for replica in report.replicas]
    if max(most) > MOST:
        melting = most.index(max(most))
        return f"replica {melting} melts: it has {max(most)} requests at once. Promised are at most {MOST}"
    if found < promised:
        return f"too few hits: {counted(found, 'block')} found. Promised are at least {promised}"
    return KEPT


def loads() -> list[Traffic]:
    """Give the loads that every answer serves: more replicas, and more requests in a second, from one to the next."""
    return [
        Traffic(
            num_replicas,
            num_blocks=(60, 90, 120)[seed % 3],
            num_requests=120,
            num_active=4 * num_replicas,
            shared=shared,
            gap=1 if num_replicas > 4 else 2,
            seed=seed,
        )
        for (num_replicas, shared), seeds in _SEEDS.items()
        for seed in seeds
    ]


def _router_cases() -> list[Case]:
    return [
        Case(
            (traffic, promised_hits(traffic)),
            shown=f"serving {traffic.num_requests} requests of {traffic.num_active} conversations on "
            f"{traffic.num_replicas} replicas, {traffic.num_blocks} blocks each (load {number})",
        )
        for number, traffic in enumerate(loads(), start=1)
    ]


def _look_at_service(_: tuple[Any, ...], expected: Service, got: Service) -> str | None:
    if "melts" in got and not got.saw_hits:
        return "Whoever comes waits for all who are there: `fleet.load(replica)` says how many those are."
    if "melts" in got:
        return "Blocks that are cached are no reason to wait for longer than it takes to compute them elsewhere."
    if "too few" in got:
        return "Each turn of a conversation repeats the turns before: somewhere most of its blocks are cached."
    return None


choose = Exercise(
    "11.4",
    "choose",
    "A router in ten lines",
    cases=_router_cases,
    reference=_choose,
    run=_serve,
    returns="the number of a replica",
    same=_same_service,
    look=_look_at_service,
    wrong={
        "follow hits alone": chase,
        "follow hits alone, and to take the first replica where several have as many": chase_first,
        "send everybody to the first replica": lambda request, fleet: 0,
        "look at the load alone": least_loaded,
        "look at the load first, and at hits between equals only": lambda request, fleet: min(
            range(fleet.num_replicas), key=lambda at: (fleet.load(at), -fleet.hit_blocks(at, request))
        ),
        "send every turn of a conversation to one replica, however long its queue": by_session,
        "spread requests evenly, and look at nothing": spread,
        "choose the replica that costs most": lambda request, fleet: max(
            range(fleet.num_replicas), key=lambda at: 3 * fleet.load(at) - fleet.hit_blocks(at, request)
        ),
    },
    hints=(
        "What does it cost a request to be sent to a replica? Two things: what is not cached there must be computed, "
        "and whoever is there already goes first.",
        "Blocks that are missing: `len(request.hash_ids) - fleet.hit_blocks(replica, request)`. To add the queue to "
        "them, give one request in it a price in blocks.",
        "A request here computes a few blocks, so a price of 2 to 5 will do: take the replica for which `missing + 3 * "
        "fleet.load(replica)` is smallest.",
    ),
    explanation="In one sum, hits and load have one unit, the blocks that a request waits for. A popular prompt "
    "is then copied to a second replica as soon as the queue at the first costs more than computing it again, and each "
    "copy draws its share from there on. The price is a guess of what the requests in line will compute. To read on: "
    "the routers of `pagedattn_lab.studies.fleet`, and Srivatsa et al. 2024, “Preble” (arXiv 2407.00023), for another "
    "way to weigh the two.",
)
"""Where a request goes: ``choose(request, fleet)`` -> the number of a replica."""
