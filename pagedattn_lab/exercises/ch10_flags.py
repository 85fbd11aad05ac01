"""Exercise 4 of chapter 10: flags for a load, so that nobody is refused and nobody is preempted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request

Flags = dict[str, Any]


def _pick_flags(available: int, token_bytes: int, block_size: int, lengths: Sequence[int], shared: int) -> Flags | None:
    def at_once(token_bytes: int) -> int:
        left = available // (block_size * token_bytes) - 1  # without the null block
        users, in_common = 0, shared // block_size
        for length in sorted(lengths, reverse=True):
            left -= cdiv(length, block_size) - (in_common if users else 0)
            if left < 0:
                break
            users += 1
        return users

    plain, fp8 = at_once(token_bytes), at_once(token_bytes // 2)
    if not fp8:
        return None
    better = fp8 > plain
    return {
        "max_model_len": max(lengths),
        "kv_cache_dtype": "fp8" if better else "auto",
        "max_num_seqs": fp8 if better else plain,
    }


def _by_the_library(
    available: int, token_bytes: int, block_size: int, lengths: Sequence[int], shared: int
) -> Flags | None:
    """Let the library's manager take in the longest requests first, until one does not fit."""

    def at_once(token_bytes: int) -> int:
        num_blocks = available // (block_size * token_bytes)
        if num_blocks < 2:
            return 0
        manager, users = KVCacheManager(num_blocks, block_size), 0
        for number, length in enumerate(sorted(lengths, reverse=True)):
            own = range(1000 * (number + 1), 1000 * (number + 1) + length - shared)
            request = Request(f"r{number}", [*range(shared), *own])
            blocks, num_hits = manager.get_computed_blocks(request)
            if manager.allocate_slots(request, length - num_hits, computed_blocks=blocks) is None:
                break
            request.num_computed_tokens = length
            users += 1
        return users

    users = {"auto": at_once(token_bytes), "fp8": at_once(token_bytes // 2)}
    dtype = max(users, key=lambda name: users[name])  # the first of equals
    if not users[dtype]:
        return None
    return {"max_model_len": max(lengths), "kv_cache_dtype": dtype, "max_num_seqs": users[dtype]}


# available, token_bytes, block_size, lengths, shared, what the case is about
_LOADS: list[tuple[int, int, int, list[int], int, str]] = [
    (6400, 4, 16, [100, 80, 60], 0, "All fit at once, 7, 5 and 4 blocks, and 99 are there."),
    (1088, 4, 16, [100, 80, 60], 0, "17 blocks, one of them the null block: 16 are just enough."),
    (1024, 4, 16, [100, 80, 60], 0, "One block short in 16 bits."),
    (448, 4, 16, [100, 80, 60], 0, "Not even the longest fits beside the null block in 16 bits."),
    (192, 4, 16, [100, 80, 60], 0, "The longest does not fit, whatever the cache holds."),
    (960, 4, 16, [100, 80, 60], 33, "Two blocks are shared, and taken once."),
    (512, 4, 16, [90, 90, 20], 0, "The longest decide: who comes is not known beforehand."),
    (32, 4, 4, [10], 1, "The end of what is shared and the beginning of the rest lie in one block."),
]


def _flag_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Any, ...]:
        shared = rng.choice([0, 0, rng.randint(1, 60)])
        lengths = [shared + rng.randint(2, 120) for _ in range(rng.randint(1, 8))]
        block_size, token_bytes = rng.choice([1, 8, 16, 32]), 4 * rng.randint(1, 4)
        return int(sum(lengths) * token_bytes * rng.uniform(0.1, 1.3)), token_bytes, block_size, lengths, shared

    known = [Case(tuple(case), about) for *case, about in _LOADS]
    return known + random_cases(41, 80, make, "A few users with lengths of their own, and perhaps a shared beginning.")


def _look_at_flags(_: tuple[Any, ...], expected: Flags | None, got: Flags | None) -> str | None:
    if not got or not expected or got == expected:
        return None
    if got["max_model_len"] != expected["max_model_len"]:
        return "“max_model_len”: the smallest with which nobody is refused."
    if got["max_num_seqs"] != expected["max_num_seqs"]:
        return "“max_num_seqs”: whichever requests run, their blocks must be there; so look at the longest."
    return "“kv_cache_dtype”: 8 bits only if they let more requests run."


def _with_a_mistake(mistake: str) -> Callable[..., Flags | None]:
    """Pick flags like the reference, with one mistake."""

    def pick_flags(
        available: int, token_bytes: int, block_size: int, lengths: Sequence[int], shared: int
    ) -> Flags | None:
        def at_once(token_bytes: int) -> int:
            left = available // (block_size * token_bytes) - (mistake != "null block")
            if mistake == "mean":
                return min(len(lengths), max(0, left // cdiv(sum(lengths) // len(lengths), block_size)))
            users = 0
            if mistake == "apart":
                left -= cdiv(shared, block_size)
            in_common = cdiv(shared, block_size) if mistake == "part shared" else shared // block_size
            for length in sorted(lengths, reverse=mistake != "shortest"):
                saved = in_common if (users or mistake == "free for all") and mistake != "not shared" else 0
                left -= cdiv(length - shared, block_size) if mistake == "apart" else cdiv(length, block_size) - saved
                if left < 0:
                    break
                users += 1
            return users

        plain, fp8 = at_once(token_bytes), at_once(token_bytes // 2)
        if not fp8:
            return None
        better = fp8 >= plain if mistake == "always fp8" else fp8 > plain and mistake != "never fp8"
        if not better and not plain:
            return None
        return {
            "max_model_len": max(lengths),
            "kv_cache_dtype": "fp8" if better else "auto",
            "max_num_seqs": fp8 if better else plain,
        }

    return pick_flags


pick_flags = Exercise(
    "10.4",
    "pick_flags",
    "Pick flags for a load",
    cases=_flag_cases,
    reference=_pick_flags,
    oracle=_by_the_library,
    returns='a dictionary with "max_model_len", "kv_cache_dtype" and "max_num_seqs", or None',
    look=_look_at_flags,
    pure=True,
    hints=(
        "How many blocks are there for requests, and how many does each request take at its longest?",
        "You do not know which requests run together. With the longest ones first, how many fit? The first of them "
        "takes all its blocks, the others `shared // block_size` fewer.",
        'Count it twice, with `token_bytes` and with half of it. Take `"fp8"` only where its count is larger; return '
        "`None` where even that is 0.",
    ),
    explanation="The log's concurrency assumes that every request is as long as the context allows. Who knows the "
    "lengths of a load knows more: as many may run as fit when the longest of them meet. That is a promise without "
    "preemptions. A server that allows more runs faster on most days, and preempts on some (chapter 09).",
    wrong={
        "forget the null block": _with_a_mistake("null block"),
        "go by the mean length": _with_a_mistake("mean"),
        "begin with the shortest": _with_a_mistake("shortest"),
        "share nothing": _with_a_mistake("not shared"),
        "share a block that is not full": _with_a_mistake("part shared"),
        "let nobody pay for what is shared": _with_a_mistake("free for all"),
        "take 8 bits where they gain nothing": _with_a_mistake("always fp8"),
        "keep 16 bits whatever they cost": _with_a_mistake("never fp8"),
    },
)
"""Flags: ``pick_flags(available, token_bytes, block_size, lengths, shared)`` -> a dictionary, or ``None``."""
