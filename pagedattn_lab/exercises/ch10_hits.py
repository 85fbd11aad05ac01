"""Exercise 2 of chapter 10: why a server finds nothing in its prefix cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request

Prompt = Sequence[int]
Finding = tuple[str, int]

USUAL_BLOCK = 16
"""The block size that is tried in the place of a larger one."""


def _common(one: Prompt, other: Prompt) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def _why_no_hits(prompts: Sequence[Prompt], salts: Sequence[str | None], block_size: int, caching: bool) -> Finding:
    def hits(block_size: int, caching: bool, salts: Sequence[str | None], skip: int = 0) -> int:
        found = 0
        for i, prompt in enumerate(prompts):
            longest = 0
            for j in range(i):
                if caching and salts[i] == salts[j]:
                    shared = _common(prompts[j][skip:], prompt[skip:])
                    longest = max(longest, min(shared, len(prompt) - skip - 1) // block_size)
            found += longest * block_size
        return found

    nobody = [None] * len(prompts)
    tried = [
        ("hits", hits(block_size, caching, salts)),
        ("caching", hits(block_size, True, salts)),
        ("salts", hits(block_size, caching, nobody)),
        ("block size", hits(min(block_size, 16), caching, salts)),
        ("first token", hits(block_size, caching, salts, skip=1)),
    ]
    return next((each for each in tried if each[1]), ("more than one", 0))


def _by_the_library(prompts: Sequence[Prompt], salts: Sequence[str | None], block_size: int, caching: bool) -> Finding:
    """Serve the prompts one after the other with the library's manager, as they are and with one thing mended."""

    def hits(prompts: Sequence[Prompt], salts: Sequence[str | None], block_size: int, caching: bool) -> int:
        num_blocks = 1 + sum(len(prompt) // block_size + 1 for prompt in prompts)
        manager, found = KVCacheManager(num_blocks, block_size, enable_prefix_caching=caching), 0
        for number, (prompt, salt) in enumerate(zip(prompts, salts, strict=True)):
            if not prompt:
                continue
            request = Request(f"r{number}", list(prompt), cache_salt=salt)
            blocks, num_hits = manager.get_computed_blocks(request)
            manager.allocate_slots(request, len(prompt) - num_hits, computed_blocks=blocks)
            request.num_computed_tokens = len(prompt)
            manager.free(request)
            found += num_hits
        return found

    mended = {
        "hits": (prompts, salts, block_size, caching),
        "caching": (prompts, salts, block_size, True),
        "salts": (prompts, [None] * len(prompts), block_size, caching),
        "block size": (prompts, salts, min(block_size, USUAL_BLOCK), caching),
        "first token": ([prompt[1:] for prompt in prompts], salts, block_size, caching),
    }
    tried = ((cause, hits(*setting)) for cause, setting in mended.items())
    return next((each for each in tried if each[1]), ("more than one", 0))


def _hit_cases() -> list[Case]:
    system = list(range(100, 140))
    known = [
        Case(([[*system, 1], [*system, 2]], [None, None], 16, True), "Forty shared tokens hold two full blocks."),
        Case(([[*system, 1], [*system, 2]], [None, None], 16, False), "Nothing is kept: caching is off."),
        Case(([[*system, 1], [*system, 2]], ["a", "b"], 16, True), "Each has a salt of its own."),
        Case(
            ([[*system, 1], [*system, 2]], [None, None], 784, True),
            "No prompt fills a block: a hybrid's block of 784 tokens.",
        ),
        Case(([[7, *system], [8, *system]], [None, None], 16, True), "The first token differs: the time of day."),
        Case(([[7, *system], [8, *system]], ["a", "b"], 16, True), "Two things are in the way."),
        Case(([[*system[:32]], [*system[:32]]], [None, None], 16, True), "The last token is always computed."),
        Case(([[*system[:16]], [*system[:16]]], [None, None], 16, True), "The last token is always computed."),
        Case(
            ([[*system, 1], [5, 6, 7], [*system, 2]], ["a", "b", "a"], 16, True),
            "Whoever has the same salt may come between others.",
        ),
    ]

    def make(rng: random.Random) -> tuple[Any, ...]:
        block_size = rng.choice([16, 16, 32, 48])
        head = range(rng.choice([0, 1]))
        shared = [rng.randrange(100) for _ in range(rng.randint(10, 70))]
        prompts = []
        for _ in range(rng.randint(2, 4)):
            own = [rng.randrange(9) for _ in head]
            cut = rng.choice([len(shared), len(shared), rng.randint(0, len(shared))])
            prompts.append([*own, *shared[:cut], *(rng.randrange(100) for _ in range(rng.randint(1, 20)))])
        salts = rng.choice([[None] * 4, [None] * 4, [None] * 4, ["a", "b", "a", "b"], ["a", "b", "c", "d"]])
        return prompts, salts[: len(prompts)], block_size, rng.random() < 0.8

    return known + random_cases(31, 120, make, "Prompts that share a beginning, some with one thing in the way.")


def _look_at_finding(_: tuple[Any, ...], expected: Finding, got: Finding) -> str | None:
    if got is None or not isinstance(got[0], str) or got[0] == expected[0]:
        return None
    if expected[0] == "hits":
        return "There are hits as it is."
    if got[0] == "hits":
        return "Nothing is found here: look at how a hit is counted."
    return None


def _with_a_mistake(mistake: str) -> Callable[..., Finding]:
    """Look for the cause like the reference, with one mistake."""

    def why_no_hits(prompts: Sequence[Prompt], salts: Sequence[str | None], block_size: int, caching: bool) -> Finding:
        def hits(block_size: int, caching: bool, salts: Sequence[str | None], skip: int = 0) -> int:
            found = 0
            for i, prompt in enumerate(prompts):
                longest = 0
                for j in range(max(0, i - 1), i) if mistake == "neighbour" else range(i):
                    if caching and salts[i] == salts[j]:
                        shared = _common(prompts[j][skip:], prompt[skip:])
                        limit = len(prompt) - skip - (mistake != "last token")
                        tokens = min(shared, limit)
                        longest = max(longest, tokens if mistake == "part" else tokens // block_size * block_size)
                found += longest
            return found

        nobody = [None] * len(prompts)
        every = mistake == "at once"  # mend one thing, and keep it mended for the next
        tried = [
            ("hits", hits(block_size, caching, salts)),
            ("caching", hits(block_size, True, salts)),
            ("salts", hits(block_size, caching or every, nobody)),
            ("block size", hits(16, caching or every, nobody if every else salts)),
            ("first token", hits(16 if every else block_size, caching or every, nobody if every else salts, skip=1)),
        ]
        return next((each for each in tried if each[1]), ("more than one", 0))

    return why_no_hits


why_no_hits = Exercise(
    "10.2",
    "why_no_hits",
    "Diagnose a hit rate of 0",
    cases=_hit_cases,
    reference=_why_no_hits,
    oracle=_by_the_library,
    returns="two things: a cause, and how many tokens are found without it",
    look=_look_at_finding,
    pure=True,
    hints=(
        "Write a function that counts hits, with the things that may be mended as its arguments. Then call it once for "
        "each.",
        "A prompt finds what it shares with an earlier one of the same salt, whole blocks only, and never its last "
        "token: `min(shared, len(prompt) - 1) // block_size * block_size`. Of the earlier ones, take the best.",
        "Without the first token both prompts begin at index 1, and are shorter by one. A block size of 16 is tried in "
        "the place of a larger one. The first in the list that gives hits is the answer.",
    ),
    explanation="A look-up stops at the first block that is not known, so everything at the front of a prompt counts: "
    "a time of day, a user's name, a salt. And it counts whole blocks, so a block that is longer than the shared "
    "beginning finds nothing at all, whatever the traffic. That is what happens to hybrid models.",
    wrong={
        "count a part of a block": _with_a_mistake("part"),
        "find a prompt's last token, which is always computed": _with_a_mistake("last token"),
        "compare with the prompt just before only": _with_a_mistake("neighbour"),
        "keep mended what was mended before": _with_a_mistake("at once"),
    },
)
"""What is in the way: ``why_no_hits(prompts, salts, block_size, caching)`` -> a cause and a number of tokens."""
