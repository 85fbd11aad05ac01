"""Bug hunt of chapter 06: a count of hits that has grown old.

What holds the bug stands here word for word as in the chapter, so that an unchanged cell is recognised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise


def _blocks_to_compute(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    computed = []
    for cached in cached_each_time:
        num_hits = 0
        while num_hits < len(hashes) and hashes[num_hits] in cached:
            num_hits += 1
        computed.append(hashes[num_hits:])
    return computed


def _compute_buggy(hashes, cached_each_time):
    num_hits = 0
    computed = []
    for cached in cached_each_time:
        while num_hits < len(hashes) and hashes[num_hits] in cached:
            num_hits += 1
        computed.append(hashes[num_hits:])
    return computed


def _compute_once(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    return [_blocks_to_compute(hashes, cached_each_time[:1])[0] for _ in cached_each_time]


def _compute_latest(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    return [
        list(hashes) if number else each for number, each in enumerate(_blocks_to_compute(hashes, cached_each_time))
    ]


def _compute_from_the_end(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    num_hits = 0
    computed = []
    for cached in cached_each_time:
        while num_hits and hashes[num_hits - 1] not in cached:
            num_hits -= 1
        while num_hits < len(hashes) and hashes[num_hits] in cached:
            num_hits += 1
        computed.append(list(hashes[num_hits:]))
    return computed


def _compute_missing(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    return [[each for each in hashes if each not in cached] for cached in cached_each_time]


def _compute_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[str], list[set[str]]]:
        hashes = list("abcdef"[: rng.randint(1, 6)])
        times = [
            set(hashes[: rng.randint(0, len(hashes))]) - set(rng.sample(hashes, rng.choice([0, 0, 1])))
            for _ in range(rng.randint(1, 3))
        ]
        return hashes, times

    known = [
        Case((["a", "b", "c"], [{"a", "b"}]), "Two blocks are found, one is computed."),
        Case((["a", "b", "c"], [{"a", "b"}, {"a"}]), "While it waited, b was evicted: it must be computed again."),
        Case((["a", "b", "c"], [set(), {"a", "b", "c"}]), "What it computed itself is found when it comes back."),
        Case((["a", "b", "c"], [{"a"}, {"b", "c"}]), "Without a, neither b nor c is found."),
        Case((["a", "b", "c"], [{"a", "b"}, {"b"}]), "Its last hit is still there, and is not found without a."),
    ]
    return known + random_cases(
        23, 50, make, "What is found depends on what is cached at that moment, and on nothing before."
    )


blocks_to_compute = Exercise(
    "06.4",
    "blocks_to_compute",
    "Bug hunt: a count that has grown old",
    cases=_compute_cases,
    reference=_blocks_to_compute,
    buggy=_compute_buggy,
    returns="a list with a list of hashes for each time",
    wrong={
        "go on counting from the hits of last time": _compute_buggy,
        "look up once, and believe it ever after": _compute_once,
        "look nothing up when a request comes back": _compute_latest,
        "find blocks behind a gap": _compute_missing,
        "give hits back from the last one on, as long as they are gone": _compute_from_the_end,
    },
    hints=(
        "A request that was preempted comes back to another cache. What does the function still know from the first "
        "time?",
        "`num_hits` begins where it stood. If a block was evicted meanwhile, the request believes that it is there, "
        "and reads a block that holds somebody else's tokens.",
        "Begin every look-up with `num_hits = 0`, inside the loop.",
    ),
    explanation="A hit is a statement about one moment. Whoever keeps the count must throw it away with the blocks: "
    "the same fault in a counter shows as a hit rate above what the cache can give, in a table as another user's "
    "words.",
)
"""``blocks_to_compute(hashes, cached_each_time)``: what a request computes when it is admitted, and admitted again."""
