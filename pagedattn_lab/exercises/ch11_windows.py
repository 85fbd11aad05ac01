"""Exercise 1 of chapter 11: the page table of a layer with a window, before the next token is computed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise

Table = list[int]

# num_tokens, block_size, window, number of blocks, what the case is about
_KNOWN: list[tuple[int, int, int, int, str]] = [
    (3, 4, 8, 1, "All that was computed is in the window."),
    (8, 4, 8, 3, "The next token, number 8, reads tokens 1 to 8: one of block 0 is out, and the block stays."),
    (11, 4, 8, 3, "Token 11 reads tokens 4 to 11: block 0 is behind the window."),
    (10, 4, 8, 3, "Token 10 reads tokens 3 to 10: the last token of block 0 is still read."),
    (
        12,
        4,
        8,
        4,
        "Token 12 reads tokens 5 to 12. A window of two blocks begins in the middle of one, and needs three.",
    ),
    (30, 4, 8, 8, "Five blocks are behind the window, and the table is as long as it was."),
    (9, 4, 5, 3, "A window need not be whole blocks: token 9 reads tokens 5 to 9."),
    (8, 4, 1, 3, "With a window of 1 a token reads itself only."),
    (7, 4, 1, 2, "With a window of 1 a token reads itself only."),
    (8, 4, 4, 5, "Two blocks are there for tokens to come; they are nobody's past."),
    (6, 1, 3, 7, "With blocks of one token only what the next token reads stays."),
]


def _window_table(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
    first_read = max(0, num_tokens - (window - 1))
    num_behind = first_read // block_size
    return [0] * num_behind + list(blocks[num_behind:])


def _token_by_token(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
    """Keep a block if the next token, or one that comes later, reads a token of it."""
    later = range(num_tokens, num_tokens + len(blocks) * block_size)
    read = {at // block_size for token in later for at in range(max(0, token - window + 1), token + 1)}
    return [block if number in read else 0 for number, block in enumerate(blocks)]


def _window_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Any, ...]:
        block_size = rng.choice([1, 2, 3, 4, 8, 16])
        num_tokens = rng.randint(0, 12 * block_size)
        window = rng.choice([rng.randint(1, 3), rng.randint(1, 6 * block_size), block_size * rng.randint(1, 4)])
        num_blocks = cdiv(num_tokens + 1, block_size) + rng.choice([0, 0, 1, 2])
        return num_tokens, block_size, window, rng.sample(range(1, 60), num_blocks)

    rng = random.Random(3)
    known = [Case((*case, rng.sample(range(1, 20), number)), about) for *case, number, about in _KNOWN]
    return known + random_cases(41, 120, make, "Which is the first token that the next one reads, and in which block?")


def _look_at_table(arguments: tuple[Any, ...], expected: Table, got: Table) -> str | None:
    num_tokens, block_size, window, blocks = arguments
    if got is None:
        return None
    if len(got) != len(blocks):
        return "The table keeps its length: block number `position // block_size` must still be found at its place."
    first = max(0, num_tokens - window + 1)
    for number, (right, mine) in enumerate(zip(expected, got, strict=True)):
        if right == mine:
            continue
        if mine and not right:
            return f"Entry {number} is kept, and nobody reads it: the next token reads from token {first} on."
        if not mine and number * block_size > num_tokens:
            return f"Entry {number} is gone, and it is for tokens to come: the next one is token {num_tokens}."
        if not mine:
            return f"Entry {number} is gone, and tokens of it are read: the next token reads from token {first} on."
        return f"Entry {number} names another block than the one that was handed out."
    return None


def _behind(count: Callable[[int, int, int], int]) -> Callable[..., Table]:
    """Point as many entries at the null block as ``count(num_tokens, block_size, window)`` says."""

    def window_table(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
        num_behind = min(len(blocks), max(0, count(num_tokens, block_size, window)))
        return [0] * num_behind + list(blocks[num_behind:])

    return window_table


def _shortened(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
    return list(blocks[max(0, num_tokens - window + 1) // block_size :])


def _the_last_ones(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
    kept = cdiv(window, block_size)
    return [0] * (len(blocks) - kept) + list(blocks[-kept:])


def _at_the_end(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
    num_behind = max(0, num_tokens - window + 1) // block_size
    return list(blocks[num_behind:]) + [0] * num_behind


def _without_what_comes(num_tokens: int, block_size: int, window: int, blocks: Sequence[int]) -> Table:
    table = _window_table(num_tokens, block_size, window, blocks)
    return [block if number * block_size <= num_tokens else 0 for number, block in enumerate(table)]


window_table = Exercise(
    "11.1",
    "window_table",
    "A window's page table by hand",
    cases=_window_cases,
    reference=_window_table,
    oracle=_token_by_token,
    returns="a list with a number for each block",
    look=_look_at_table,
    pure=True,
    hints=(
        "The next token has the number `num_tokens`, since counting begins at 0. Which is the first token that it "
        "reads?",
        "It reads itself and `window - 1` tokens before: from `num_tokens - (window - 1)` on, or from 0. Tokens before "
        "that one are never read again, since later tokens read later ones.",
        "Block number `first // block_size` holds the first token that is read, so it stays. The blocks before it hold "
        "only older ones: as many entries point at block 0.",
    ),
    explanation="A block goes when all of its tokens are behind the window, so a window that begins inside a block "
    "holds one block more than its tokens fill. The table keeps its length, because a kernel finds the block of a "
    "position at `position // block_size`. It never reads the entries that point at the null block, since its window "
    "begins behind them. To read on: `SlidingWindowManager` in vLLM's `vllm/v1/core/single_type_kv_cache_manager.py`, "
    "methods `get_num_skipped_tokens` and `remove_skipped_blocks`.",
    wrong={
        "let a token read itself and `window` tokens before it": _behind(lambda n, size, window: (n - window) // size),
        "let a token read `window - 1` tokens, itself included": _behind(
            lambda n, size, window: (n - window + 2) // size
        ),
        "give a block back as soon as one of its tokens is behind the window": _behind(
            lambda n, size, window: -(-(n - window + 1) // size)
        ),
        "give a block back only when the one after it is behind the window, too": _behind(
            lambda n, size, window: (n - window + 1) // size - 1
        ),
        "count the window in whole blocks": _behind(lambda n, size, window: n // size - cdiv(window, size) + 1),
        "keep as many blocks at the end as the window fills": _the_last_ones,
        "take the entries out, so that the others move to the front": _shortened,
        "put the null blocks at the end": _at_the_end,
        "take away blocks for tokens to come, too": _without_what_comes,
        "keep every block": lambda num_tokens, block_size, window, blocks: list(blocks),
    },
)
"""Which entries point at the null block: ``window_table(num_tokens, block_size, window, blocks)`` -> a page table."""
