"""Exercise 1 of chapter 10: the figures of a start-up log, from layers and memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import same
from pagedattn_lab.kv_cache_groups import capacity, kv_cache_groups
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, RequestLimits, SlidingWindowSpec

Figures = tuple[int, int, float]

_GIB = 2**30
# available, num_full, num_window, window, layer_bytes, block_size, max_model_len, in_flight, what the case is about
_LOGS: list[tuple[int, int, int, int, int, int, int, int, str]] = [
    (64 * 2**20, 2, 0, 0, 1024, 16, 256, 64, "Every layer keeps every token: one group."),
    (64 * 2**20, 2, 0, 0, 1024, 16, 250, 64, "The last block of a request is not full, and is taken all the same."),
    (64 * 2**20, 2, 2, 64, 1024, 16, 512, 32, "Two groups: a block holds one page of each layer of a group."),
    (64 * 2**20, 2, 4, 64, 1024, 16, 512, 32, "Four layers with a window make two groups of two, a table each."),
    (64 * 2**20, 2, 3, 64, 1024, 16, 512, 32, "Three layers with a window fill two groups of two but for one place."),
    (64 * 2**20, 5, 6, 64, 1024, 16, 512, 32, "The larger kind has less than 1.5 times as many layers: groups of 6."),
    (64 * 2**20, 2, 2, 4096, 1024, 16, 512, 32, "No request is as long as the window."),
    (int(58.11 * _GIB), 32, 0, 0, 4096, 16, 8192, 8192, "The logged memory of Llama-3.1-8B on an H100."),
    (int(54.12 * _GIB), 21, 21, 4096, 8192, 16, 8192, 8192, "The logged memory of gemma-2-9b on an H100."),
    (int(19.53 * _GIB), 10, 52, 1024, 8192, 16, 8192, 8192, "The logged memory of gemma-3-27b on an H100."),
]


def _log_figures(
    available: int,
    num_full: int,
    num_window: int,
    window: int,
    layer_bytes: int,
    block_size: int,
    max_model_len: int,
    in_flight: int,
) -> Figures:
    kinds = [number for number in (num_full, num_window) if number]
    group_size = max(kinds) if max(kinds) < 1.5 * min(kinds) else min(kinds)
    num_blocks = available // (group_size * block_size * layer_bytes)
    of_full = cdiv(max_model_len, block_size)
    of_window = cdiv(min(window - 1 + in_flight, max_model_len), block_size) + 1
    per_request = cdiv(num_full, group_size) * of_full + cdiv(num_window, group_size) * of_window
    concurrency = num_blocks / per_request
    return num_blocks, int(concurrency * max_model_len), round(concurrency, 2)


def _by_the_library(
    available: int,
    num_full: int,
    num_window: int,
    window: int,
    layer_bytes: int,
    block_size: int,
    max_model_len: int,
    in_flight: int,
) -> Figures:
    heads, width, dtype = 1, layer_bytes // 4, "bfloat16"  # a key and a value, 2 bytes a number
    full = FullAttentionSpec(block_size, heads, width, dtype)
    layers = {f"full.{number}": full for number in range(num_full)}
    if num_window:
        windowed = SlidingWindowSpec(block_size, heads, width, dtype, sliding_window=window)
        layers |= {f"window.{number}": windowed for number in range(num_window)}
    found = capacity([kv_cache_groups(layers)], [available], RequestLimits(max_model_len, in_flight))
    return found.num_blocks, found.kv_tokens, round(found.max_concurrency, 2)


def _log_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Any, ...]:
        num_full, num_window = rng.randint(0, 12), rng.choice([0, *range(1, 40)])
        if not num_full + num_window:
            num_full = 1
        window = rng.randint(1, 600) if num_window else 0
        layer_bytes, block_size = 4 * rng.randint(1, 600), rng.choice([1, 8, 16, 32, 48, 128])
        limits = rng.randint(1, 3000), rng.randint(1, 900)
        return rng.randint(2**20, 2**34), num_full, num_window, window, layer_bytes, block_size, *limits

    known = [Case(tuple(case), about) for *case, about in _LOGS]
    return known + random_cases(10, 60, make, "Some layers keep every token, some a window, or all are of one kind.")


def _with_a_mistake(mistake: str) -> Callable[..., Figures]:
    """Compute the figures like the reference, with one mistake."""

    def log_figures(
        available: int,
        num_full: int,
        num_window: int,
        window: int,
        layer_bytes: int,
        block_size: int,
        max_model_len: int,
        in_flight: int,
    ) -> Figures:
        kinds = [number for number in (num_full, num_window) if number]
        group_size = max(kinds) if max(kinds) < 1.5 * min(kinds) else min(kinds)
        if mistake == "smaller":
            group_size = min(kinds)
        if mistake == "one group":
            group_size = sum(kinds)
        num_blocks = available // (group_size * block_size * layer_bytes)
        if mistake == "no null block":
            num_blocks -= 1
        of_full = cdiv(max_model_len, block_size)
        kept = {"no flight": window, "own token": window + in_flight}.get(mistake, window - 1 + in_flight)
        of_window = cdiv(min(kept, max_model_len), block_size) + (mistake != "no start")
        if mistake == "full length":
            of_window = of_full
        per_request: float = cdiv(num_full, group_size) * of_full + cdiv(num_window, group_size) * of_window
        if mistake == "no padding":
            per_request = num_full / group_size * of_full + num_window / group_size * of_window
        if mistake == "one group":
            per_request = of_full
        concurrency = num_blocks / per_request
        printed = round(concurrency, 2) if mistake == "rounded" else concurrency
        tokens = num_blocks * block_size if mistake == "tokens" else int(printed * max_model_len)
        return num_blocks, tokens, round(concurrency, 2)

    return log_figures


_SAY = {  # place in the answer, in the order in which figures follow from one another
    0: "Blocks: memory divided by the bytes of one block, which holds a page of each layer of one group.",
    2: "Concurrency: blocks divided by those of one request, in all groups; with a window those of window - 1 tokens "
    "and of those in flight, and one more.",
    1: "Tokens: the concurrency before it is rounded, times max_model_len, cut off.",
}


def _look_at_figures(_: tuple[Any, ...], expected: Figures, got: Figures) -> str | None:
    if got is None:
        return None
    return next((words for place, words in _SAY.items() if not same(expected[place], got[place])), None)


log_figures = Exercise(
    "10.1",
    "log_figures",
    "Reproduce a start-up log",
    cases=_log_cases,
    reference=_log_figures,
    oracle=_by_the_library,
    look=_look_at_figures,
    returns="three things: num_blocks, kv_tokens, and the concurrency, rounded to two places",
    hints=(
        "Begin with the groups. How many layers has one, and how many groups are there of each kind? A last group that "
        "is not full counts as a whole one.",
        "A block holds one page of each layer of *one* group: `group_size * block_size * layer_bytes` bytes. A request "
        "takes blocks in every group, from the same pool.",
        "A group of full attention takes `ceil(L / block_size)` blocks, one with a window "
        "`ceil(min(window - 1 + in_flight, L) / block_size) + 1`. Concurrency is blocks through blocks per request; "
        "tokens are `int(concurrency * L)`, from the concurrency before it is rounded.",
    ),
    explanation="Three things are easy to get wrong. A block is as wide as a group and not as the model. What is "
    "divided by is a request's blocks in all groups, padding included. And the tokens of the log are no count of "
    "slots: they say how many requests of the full length fit, times that length.",
    wrong={
        "keep every layer's page in every block": _with_a_mistake("one group"),
        "take the smaller kind as the size of a group, always": _with_a_mistake("smaller"),
        "charge a window at the full length": _with_a_mistake("full length"),
        "forget the tokens in flight": _with_a_mistake("no flight"),
        "keep a window's tokens beside the one that is computed": _with_a_mistake("own token"),
        "forget that a window may begin inside a block": _with_a_mistake("no start"),
        "count a group that is not full as a part of one": _with_a_mistake("no padding"),
        "count the slots of all blocks as tokens": _with_a_mistake("tokens"),
        "take the tokens from the rounded concurrency": _with_a_mistake("rounded"),
        "take the null block away, which the log does not": _with_a_mistake("no null block"),
    },
)
"""A log's figures: ``log_figures(available, num_full, num_window, window, layer_bytes, block_size, ...)``."""
