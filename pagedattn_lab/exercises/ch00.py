"""Exercises of chapter 00: blocks and bytes on the back of an envelope."""

from __future__ import annotations

from collections.abc import Callable

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises import Exercise


def _blocks(num_prompt_tokens: int, num_new_tokens: int, block_size: int) -> int:
    return cdiv(num_prompt_tokens + num_new_tokens - 1, block_size)


def _check_blocks(answer: Callable[[int, int, int], int]) -> None:
    for prompt, new, size in ((31, 10, 16), (5, 3, 4), (16, 1, 16), (16, 2, 16), (1, 1, 1), (7, 26, 8), (100, 29, 128)):
        expected, found = _blocks(prompt, new, size), answer(prompt, new, size)
        assert found == expected, (
            f"{prompt} prompt tokens and {new} new ones in blocks of {size}: you say {found!r}, the table ends with "
            f"{expected}. Which token has been chosen, but never been fed to the model?"
        )


def _requests(memory_bytes: int, bytes_per_token: int, block_size: int, tokens_per_request: int) -> int:
    num_blocks = memory_bytes // (bytes_per_token * block_size)
    return max(0, num_blocks - 1) // cdiv(tokens_per_request, block_size)


def _check_requests(answer: Callable[[int, int, int, int], int]) -> None:
    cases = (
        (2**30, 46_080, 16, 500), (2**30, 46_080, 16, 512), (10_000, 100, 10, 10), (100_000, 100, 10, 11),
        (1_000, 100, 10, 5), (500, 100, 10, 5), (64_000, 100, 1, 9),
    )  # fmt: skip
    for memory, per_token, size, tokens in cases:
        expected, found = _requests(memory, per_token, size, tokens), answer(memory, per_token, size, tokens)
        assert found == expected, (
            f"{memory:,} bytes at {per_token:,} per token, blocks of {size}, {tokens} tokens each: you say {found!r}, "
            f"{expected} fit. Blocks are whole, a request's blocks are whole, and block 0 serves nobody."
        )


blocks_at_the_end = Exercise(
    _check_blocks,
    reference=_blocks,
    wrong={
        "counts the last token, which is never cached": lambda prompt, new, size: cdiv(prompt + new, size),
        "rounds down": lambda prompt, new, size: (prompt + new - 1) // size,
        "always adds a block": lambda prompt, new, size: (prompt + new - 1) // size + 1,
        "gives prompt and answer blocks of their own": lambda prompt, new, size: (
            cdiv(prompt, size) + cdiv(new - 1, size)
        ),
    },
)

requests_that_fit = Exercise(
    _check_requests,
    reference=_requests,
    wrong={
        "divides bytes by bytes, as if tokens needed no blocks": lambda memory, per_token, size, tokens: (
            memory // (per_token * tokens)
        ),
        "forgets the null block": lambda memory, per_token, size, tokens: (
            memory // (per_token * size) // cdiv(tokens, size)
        ),
        "shares the last block between requests": lambda memory, per_token, size, tokens: (
            max(0, memory // (per_token * size) - 1) * size // tokens
        ),
        "goes below zero in a tiny memory": lambda memory, per_token, size, tokens: (
            (memory // (per_token * size) - 1) // cdiv(tokens, size)
        ),
    },
)
