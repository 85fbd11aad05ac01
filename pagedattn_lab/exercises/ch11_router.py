"""Exercise 4 of chapter 11: a router that finds what is cached, and lets no queue grow."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch11_fleet import (
    Choose,
    Traffic,
    by_conversation,
    chase,
    chase_first,
    least_loaded,
    round_robin,
    spread,
    weigh,
)  # fmt: skip
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import Words, shown
from pagedattn_lab.recorder.sentences import counted

KEPT = Words("both promises kept")
MOST = 12
"""Requests that a replica may have at once."""


def _choose(request: Any, fleet: Any) -> int:
    def cost(replica: int) -> int:
        missing = len(request.hash_ids) - fleet.hit_blocks(replica, request)
        return missing + 3 * fleet.load(replica)

    return min(range(fleet.num_replicas), key=cost)


def blocks_found(traffic: Traffic, choose: Choose) -> int:
    """Count the blocks that all requests find."""
    return sum(fleet.hit_blocks(replica, request) for request, fleet, replica in traffic.serve(choose))


def promised_hits(traffic: Traffic) -> int:
    """Give the blocks that are to be found: halfway from a router in turn to one that weighs hits against load."""
    return (blocks_found(traffic, round_robin()) + blocks_found(traffic, weigh(3))) // 2


def _serve(answer: Callable[..., Any], arguments: tuple[Any, ...]) -> Words:
    """Serve a load with an answer, and say which promise is broken."""
    traffic, promised = arguments
    found, longest, melting = 0, 0, 0
    for number, (request, fleet, chosen) in enumerate(traffic.serve(answer), start=1):
        try:
            replica = operator.index(chosen)
        except TypeError:
            replica = -1
        if not fleet.is_alive(replica):
            return Words(f"request {number} goes to {shown(chosen)}: replicas are 0 to {fleet.num_replicas - 1}")
        found += fleet.hit_blocks(replica, request)
        longest, melting = max((longest, melting), (fleet.load(replica) + 1, replica))
    if longest > MOST:
        return Words(f"replica {melting} melts: it has {longest} requests at once. Promised are at most {MOST}")
    if found < promised:
        return Words(f"too few hits: {counted(found, 'block')} found. Promised are at least {promised}")
    return KEPT


def loads() -> list[Traffic]:
    """Give the loads that every answer serves: more replicas, and more requests, from one to the next."""
    rng, found = random.Random(47), []
    for num_replicas in (2, 3, 4, 6):
        for shared in (0.6, 0.8, 1.0):
            for _ in range(2):
                num_blocks, gap = rng.choice([60, 90, 120]), {2: 4, 3: 2, 4: 2, 6: 1}[num_replicas]
                found.append(Traffic(num_replicas, num_blocks, 120, 4 * num_replicas, shared, gap, rng.randrange(1000)))
    return found


def _router_cases() -> list[Case]:
    return [
        Case(
            (traffic, promised_hits(traffic)),
            shown=f"serving {traffic.num_requests} requests of {traffic.num_active} conversations on "
            f"{traffic.num_replicas} replicas, {traffic.num_blocks} blocks each (load {number})",
        )
        for number, traffic in enumerate(loads(), start=1)
    ]


def _look_at_service(_: tuple[Any, ...], expected: str, got: str) -> str | None:
    if got is not None and "melts" in got:
        return "Blocks that are cached are no reason to wait for longer than it takes to compute them elsewhere."
    if got is not None and "too few" in got:
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
    look=_look_at_service,
    wrong={
        "follow hits alone": chase,
        "follow hits alone, and to take the first replica where several have as many": chase_first,
        "look at the load alone": least_loaded,
        "look at the load first, and at hits between equals only": lambda request, fleet: min(
            range(fleet.num_replicas), key=lambda at: (fleet.load(at), -fleet.hit_blocks(at, request))
        ),
        "send every turn of a conversation to one replica, however long its queue": by_conversation,
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
