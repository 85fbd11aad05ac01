"""Exercise 2 of chapter 11: a log of where a router sent requests, and why one replica melts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch11_fleet import Choose, Traffic, chase, chase_first, round_robin, weigh
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import same

Entry = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""A request in the log: its blocks, hits and queues by replica, and the replica that was chosen."""
Finding = dict[str, Any]

_EXAMPLE = Traffic(3, 40, 12, 6, 0.6, 1, seed=3)


def log_of(traffic: Traffic, choose: Choose) -> list[Entry]:
    """Serve a load with a router, and write down what it knew of each request, and what it chose."""
    log: list[Entry] = []

    def noted(request: Any, fleet: Any) -> int:
        every, chosen = range(fleet.num_replicas), choose(request, fleet)
        hits, queues = [fleet.hit_blocks(at, request) for at in every], [fleet.load(at) for at in every]
        log.append((list(request.hash_ids), hits, queues, chosen))
        return chosen

    traffic.serve(noted)
    return log


def example_in_words() -> str:
    """Tell a log of a router that chases prefixes, a line a request.

    Example:
        >>> print(example_in_words().splitlines()[2])
        2: blocks [1, 2, 3, 4, 5, 6, 11, 12], hits [6, 0, 0], queues [2, 0, 0], to replica 0
    """
    return "\n".join(
        f"{number}: blocks {blocks}, hits {hits}, queues {queues}, to replica {chosen}"
        for number, (blocks, hits, queues, chosen) in enumerate(log_of(_EXAMPLE, chase))
    )


def _melting_replica(log: Sequence[Entry], price: int) -> Finding:
    longest = max(max(queues) for _, _, queues, _ in log)
    replica = min(queues.index(longest) for _, _, queues, _ in log if longest in queues)
    drawn, firsts, causes = [], Counter(), Counter()
    for place, (blocks, hits, queues, chosen) in enumerate(log):
        costs = [len(blocks) - found + price * queue for found, queue in zip(hits, queues, strict=True)]
        if chosen == replica and min(costs) < costs[replica]:
            drawn.append(place)
            firsts[blocks[0]] += 1
            elsewhere = max(found for other, found in enumerate(hits) if other != replica)
            more, as_many = hits[replica] > elsewhere, hits[replica] == elsewhere
            causes["hits" if more else "ties" if as_many else "neither"] += 1
    return {
        "replica": replica,
        "drawn": drawn,
        "prefix": min(firsts, key=lambda block: (-firsts[block], block)) if drawn else None,
        "cause": max(["hits", "ties", "neither"], key=lambda cause: causes[cause]) if drawn else "load",
    }


# a log, its price, what the case is about
_BY_HAND: list[tuple[list[Entry], int, str]] = [
    (
        [([1, 2], [0, 0], [0, 0], 1)],
        3,
        "Nobody waits anywhere: nobody is drawn, and the first replica has the number 0.",
    ),
    (
        [([1, 2], [0, 0], [0, 0], 0), ([1, 3], [1, 0], [1, 0], 0), ([1, 4], [1, 0], [2, 0], 1)],
        3,
        "Request 1 saves a block at replica 0, and waits behind a request, which costs 3.",
    ),
    (
        [([1, 2], [0, 0], [0, 0], 0), ([1, 2, 3, 4, 5], [5, 0], [1, 0], 0), ([1, 4], [1, 0], [2, 0], 1)],
        3,
        "Request 1 saves five blocks at replica 0: it is worth waiting behind one request.",
    ),
    (
        [([1, 2, 3], [0, 0], [0, 0], 0), ([1, 2, 3, 4], [3, 0], [1, 0], 0), ([1, 2, 3], [3, 0], [2, 0], 0)],
        3,
        "Request 1 costs 4 blocks at either replica: another must cost less, not as much.",
    ),
    (
        [([1, 2], [0, 0], [0, 0], 0), ([3, 4], [0, 0], [1, 0], 0), ([5, 6], [0, 0], [2, 0], 0)],
        3,
        "No replica has anything of these, and the first one gets them: ties.",
    ),
    (
        [
            ([1, 2], [0, 0], [0, 0], 0),
            ([1, 2], [2, 0], [1, 0], 1),
            ([1, 2, 3], [2, 2], [1, 1], 0),
            ([8], [0, 0], [2, 1], 1),
        ],
        2,
        "Nobody finds a cheaper replica than the one that was chosen: this is load.",
    ),
    (
        [([1, 2], [0, 2], [1, 0], 0), ([3, 4], [0, 1], [2, 0], 0), ([5, 6], [0, 0], [3, 0], 0)],
        2,
        "Others have more of the prompts' blocks: this router does not look at hits.",
    ),
    (
        [
            ([5, 6], [0, 0], [2, 0], 0),
            ([1, 2], [1, 0], [3, 0], 0),
            ([1, 3], [1, 0], [3, 0], 0),
            ([7], [0, 0], [1, 0], 1),
        ],
        2,
        "The queue had gone down again when the last request came.",
    ),
    (
        [
            ([1, 2], [1, 0], [1, 0], 0),
            ([1, 2], [0, 1], [0, 3], 1),
            ([4, 2], [0, 1], [0, 2], 1),
            ([4, 5], [1, 0], [2, 0], 0),
        ],
        2,
        "Requests that were drawn to another replica are another matter.",
    ),
    (
        [
            ([9, 2], [1, 0], [1, 0], 0),
            ([4, 2], [1, 0], [2, 0], 0),
            ([9, 3], [2, 1], [3, 0], 0),
            ([4, 3], [1, 0], [4, 0], 0),
        ],
        2,
        "Two first blocks are as frequent among the drawn requests.",
    ),
    (
        [([1, 2, 3, 4, 5, 6], [3, 0, 5], [9, 0, 8], 0)],
        2,
        "Replica 1 is the cheapest, and replica 2 has more of the prompt than the one that melts: not hits.",
    ),
    (
        [([1, 2, 3, 4, 5, 6, 7, 8], [5, 5, 3], [5, 5, 0], 0)],
        1,
        "Replica 1 has as much of the prompt as the one that melts, though it is no cheaper: ties.",
    ),
]


def _renumbered(log: list[Entry], order: list[int]) -> list[Entry]:
    """Give replicas other numbers, since routers send what is undecided to the first one."""
    return [
        (blocks, [hits[at] for at in order], [queues[at] for at in order], order.index(chosen))
        for blocks, hits, queues, chosen in log
    ]


def _melting_cases() -> list[Case]:
    cases = [Case((log, price), about) for log, price, about in _BY_HAND]
    rng = random.Random(53)
    about = "Of the chosen replica and each other one, compare what is missing there plus the price of its queue."
    routers = [chase, chase, chase_first, round_robin, weigh]
    for number in range(30):
        router = routers[number % len(routers)]
        num_replicas, price = rng.randint(2, 4), rng.randint(1, 5)
        num_requests, strangers = rng.randint(6, 10 + 2 * number), router is chase_first
        traffic = Traffic(
            num_replicas,
            num_blocks=rng.randint(20, 90),
            num_requests=num_requests,
            num_active=num_requests if strangers else rng.randint(3, 4 * num_replicas),
            shared=0 if strangers else rng.choice([0.3, 0.6, 0.9]),
            gap=rng.randint(0, 3),
            seed=number,
        )
        made = round_robin() if router is round_robin else weigh(price) if router is weigh else router
        order = rng.sample(range(num_replicas), num_replicas)
        cases.append(Case((_renumbered(log_of(traffic, made), order), price), about))
    return cases


_SAY = {
    "replica": "look for the longest queue in every entry, not in the last one only.",
    "drawn": "what counts is a request that was sent to the melting replica, and another replica that cost it less.",
    "prefix": "count the first blocks of the requests in “drawn”.",
    "cause": "for each request in “drawn”, compare the hits at the melting replica with the most that another had.",
}


def _look_at_finding(_: tuple[Any, ...], expected: Finding, got: Finding) -> str | None:
    if got is None:
        return None
    return next((f"“{name}”: {words}" for name, words in _SAY.items() if not same(expected[name], got[name])), None)


def _with_a_mistake(mistake: str) -> Callable[..., Finding]:
    """Find out like the reference, with one mistake."""

    def melting_replica(log: Sequence[Entry], price: int) -> Finding:
        seen = log[-1:] if mistake == "the end" else log
        longest = max(max(queues) for _, _, queues, _ in seen)
        replica = min(queues.index(longest) for _, _, queues, _ in seen if longest in queues)
        if mistake == "busiest":
            sent = Counter(chosen for *_, chosen in log)
            replica = min(sent, key=lambda at: (-sent[at], at))
        drawn, there = [], []
        causes: Counter[str] = Counter()
        for place, (blocks, hits, queues, chosen) in enumerate(log):
            each = 0 if mistake == "hits only" else 1 if mistake == "no price" else price
            costs = [
                each * queue - (mistake != "queues only") * found for found, queue in zip(hits, queues, strict=True)
            ]
            others = [cost for at, cost in enumerate(costs) if at != chosen]
            if chosen != replica and mistake != "every replica":
                continue
            there.append(blocks[0])
            if min(others) < costs[chosen] or (mistake == "as much" and min(others) == costs[chosen]):
                drawn.append(place)
                elsewhere = max(found for at, found in enumerate(hits) if at != chosen)
                if mistake == "cheaper":
                    elsewhere = max(found for found, cost in zip(hits, costs, strict=True) if cost < costs[chosen])
                if mistake == "cheapest":
                    elsewhere = hits[min((at for at in range(len(hits)) if at != chosen), key=lambda at: costs[at])]
                more = hits[chosen] >= elsewhere if mistake == "no ties" else hits[chosen] > elsewhere
                causes["hits" if more else "ties" if hits[chosen] == elsewhere else "neither"] += 1
        firsts = Counter(there if mistake == "all sent there" else [log[place][0][0] for place in drawn])
        return {
            "replica": replica,
            "drawn": drawn,
            "prefix": min(firsts, key=lambda block: (-firsts[block], block), default=None),
            "cause": max(("hits", "ties", "neither"), key=lambda cause: causes[cause]) if drawn else "load",
        }

    return melting_replica


melting_replica = Exercise(
    "11.2",
    "melting_replica",
    "Which replica drowns in requests, and why",
    cases=_melting_cases,
    reference=_melting_replica,
    returns='a dictionary with "replica", "drawn", "prefix" and "cause"',
    look=_look_at_finding,
    pure=True,
    hints=(
        "First find the replica. Then look only at requests that went there: what did each other replica cost them?",
        "A replica costs `len(blocks) - hits[r] + price * queues[r]`. A request was drawn if the cheapest one costs "
        "less than the one that melts. Keep its place and its first block.",
        'Compare `hits[replica]` with the largest of the other hits: more is `"hits"`, as many `"ties"`, fewer '
        '`"neither"`. `Counter` counts first blocks and causes.',
    ),
    explanation="A router that chases prefixes sends whoever begins with the system prompt to the replica that "
    "computed it first. There the prompt stays, because it is used, and other replicas hardly ever compute it, because "
    "those who begin with it go where it is. So what draws requests is a few blocks that are cheap to compute again. "
    "Ties that go to the first replica do the same to prompts that no cache holds. The cure is in the costs: a router "
    "that takes the cheapest replica draws nobody. To read on: exercise 4, where you write that router.",
    wrong={
        "take the replica to which most requests were sent": _with_a_mistake("busiest"),
        "look at the queues when the last request came": _with_a_mistake("the end"),
        "count requests that were drawn to other replicas, too": _with_a_mistake("every replica"),
        "look at the queues, and not at what is missing": _with_a_mistake("queues only"),
        "look at what is missing, and not at the queues": _with_a_mistake("hits only"),
        "forget the price": _with_a_mistake("no price"),
        "count a request whose other replica costs as much": _with_a_mistake("as much"),
        "look for the prefix in all requests that were sent there": _with_a_mistake("all sent there"),
        "call it hits where another replica has as many": _with_a_mistake("no ties"),
        "compare the hits with those of the cheapest other replica, and not with the most": _with_a_mistake("cheapest"),
        "compare the hits with those of the cheaper replicas only": _with_a_mistake("cheaper"),
    },
)
"""Where, who and why: ``melting_replica(log, price)`` -> a dictionary."""
