"""Exercise 3 of chapter 10: a server that says that the context does not fit, and three ways out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.kv_cache_groups import fit_check, kv_cache_groups
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, RequestLimits

Ways = dict[str, int | bool | None]

_GIB = 2**30


def _make_it_fit(
    total: int, percent: int, available: int, token_bytes: int, block_size: int, max_model_len: int
) -> Ways:
    def fits(available: int, token_bytes: int) -> bool:
        return (1 + cdiv(max_model_len, block_size)) * block_size * token_bytes <= available

    num_blocks = available // (block_size * token_bytes)
    ways: Ways = {
        "max_model_len": min(max_model_len, max(0, num_blocks - 1) * block_size),
        "gpu_memory_utilization": None,
        "fp8": fits(available, token_bytes // 2),
    }
    for more in range(percent, 100):
        if fits(available + (more - percent) * total // 100, token_bytes):
            ways["gpu_memory_utilization"] = more
            break
    return ways


def _by_the_library(
    total: int, percent: int, available: int, token_bytes: int, block_size: int, max_model_len: int
) -> Ways:
    def check(available: int, dtype: str) -> Any:
        layer = FullAttentionSpec(block_size, 1, token_bytes // 4, dtype)
        return fit_check(kv_cache_groups({"layer": layer}), available, RequestLimits(max_model_len, max_model_len))

    enough = (
        more for more in range(percent, 100) if check(available + (more - percent) * total // 100, "bfloat16").fits
    )
    return {
        "max_model_len": check(available, "bfloat16").largest_model_len,
        "gpu_memory_utilization": next(enough, None),
        "fp8": check(available, "float8_e4m3fn").fits,
    }


# total, percent, available, token_bytes, block_size, max_model_len, what the case is about
_MESSAGES: list[tuple[int, int, int, int, int, int, str]] = [
    (10_000, 50, 640, 4, 16, 160, "Ten blocks are there and ten are needed, but one is the null block."),
    (10_000, 50, 704, 4, 16, 160, "With the null block it fits exactly: nothing has to change."),
    (10_000, 50, 700, 4, 16, 155, "The last block of a request counts whole."),
    (10_000, 98, 640, 4, 16, 160, "One percent more is 100 bytes, and 64 are missing."),
    (10_000, 98, 256, 4, 16, 160, "Two percent are not to be had: above 99 nothing is left for the driver."),
    (10_000, 50, 0, 4, 16, 160, "The weights have taken everything."),
    (24 * _GIB, 92, 5 * _GIB, 131072, 16, 131072, "Llama-3.1-8B on a card of 24 GiB, with all of its context."),
    (24 * _GIB, 92, 8 * _GIB, 131072, 16, 131072, "The same with more left: half as many bytes a token nearly fit."),
]


def _fit_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Any, ...]:
        total, percent = rng.randint(2_000, 60_000), rng.randint(30, 97)
        token_bytes, block_size = 4 * rng.randint(1, 4), rng.choice([1, 8, 16, 32])
        available = rng.randint(0, total * percent // 100)
        around = available // token_bytes
        return total, percent, available, token_bytes, block_size, max(1, int(around * rng.uniform(0.7, 2.4)))

    known = [Case(tuple(case), about) for *case, about in _MESSAGES]
    return known + random_cases(23, 80, make, "Somewhat more is needed than there is, or somewhat less.")


_SAY = {
    "max_model_len": "how many whole blocks are left for one request?",
    "gpu_memory_utilization": "each percent adds a hundredth of `total`; try them one by one, up to 99.",
    "fp8": "a token takes half the bytes, and the memory stays what it is.",
}


def _look_at_ways(_: tuple[Any, ...], expected: Ways, got: Ways) -> str | None:
    if got is None:
        return None
    return next((f"“{name}”: {words}" for name, words in _SAY.items() if got[name] != expected[name]), None)


def _with_a_mistake(mistake: str) -> Callable[..., Ways]:
    """Find the ways out like the reference, with one mistake."""

    def make_it_fit(
        total: int, percent: int, available: int, token_bytes: int, block_size: int, max_model_len: int
    ) -> Ways:
        null = mistake != "null block"

        def fits(available: int, token_bytes: int) -> bool:
            needed = (null + cdiv(max_model_len, block_size)) * block_size * token_bytes
            if mistake == "part":
                needed = (block_size + max_model_len) * token_bytes
            return needed <= available

        num_blocks = available // (block_size * token_bytes)
        longest = max(0, num_blocks - null) * block_size
        if mistake == "part":
            longest = max(0, available // token_bytes - block_size)
        ways: Ways = {
            "max_model_len": longest if mistake == "longer" else min(max_model_len, longest),
            "gpu_memory_utilization": None,
            "fp8": fits(available, token_bytes // 2),
        }
        for more in range(percent + (mistake == "one more"), 101 if mistake == "all of it" else 100):
            added = available * (more - percent) // 100 if mistake == "of what is left" else None
            if fits(available + (added if added is not None else (more - percent) * total // 100), token_bytes):
                ways["gpu_memory_utilization"] = more
                break
        return ways

    return make_it_fit


make_it_fit = Exercise(
    "10.3",
    "make_it_fit",
    "A context that does not fit",
    cases=_fit_cases,
    reference=_make_it_fit,
    oracle=_by_the_library,
    returns='a dictionary with "max_model_len", "gpu_memory_utilization" and "fp8"',
    look=_look_at_ways,
    hints=(
        "One request of `max_model_len` tokens takes whole blocks, and the null block is never given to anybody.",
        "It fits if `(1 + ceil(max_model_len / block_size)) * block_size * token_bytes` is at most what is available. "
        "All three ways ask this question, each with one number changed.",
        "For the length, count whole blocks: `available // (block_size * token_bytes)`, less the null block, times "
        "`block_size`; never more than was asked for, never less than 0. For the share, go from `percent` to 99.",
    ),
    explanation="The message names two amounts, and what to change follows from them. A shorter context costs nothing "
    "as long as nobody sends longer requests. A larger share of the GPU takes from what the server needs beside the "
    "cache. An 8-bit cache halves what a token takes, and changes what the model says a little (chapter 08).",
    wrong={
        "forget the null block": _with_a_mistake("null block"),
        "count a last block that is not full as a part of one": _with_a_mistake("part"),
        "allow more tokens than were asked for": _with_a_mistake("longer"),
        "give all of the GPU to the server": _with_a_mistake("all of it"),
        "take a percent of what is available, not of the GPU": _with_a_mistake("of what is left"),
        "raise the share where it fits as it is": _with_a_mistake("one more"),
    },
)
"""Three ways out: ``make_it_fit(total, percent, available, token_bytes, block_size, max_model_len)``."""
