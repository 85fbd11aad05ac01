"""Exercises of chapter 00: blocks and bytes on the back of an envelope."""

from __future__ import annotations

import random

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise

# --- 1. Blocks at the end ---------------------------------------------------------------------------------------------


def _blocks(num_prompt_tokens: int, num_new_tokens: int, block_size: int) -> int:
    num_cached_tokens = num_prompt_tokens + num_new_tokens - 1  # the last one is never fed to the model
    return cdiv(num_cached_tokens, block_size)


def _block_cases() -> list[Case]:
    about = "Which token has been chosen, but never been fed to the model?"
    known = ((31, 10, 16), (5, 3, 4), (16, 1, 16), (16, 2, 16), (1, 1, 1), (7, 26, 8), (100, 29, 128))

    def make(rng: random.Random) -> tuple[int, int, int]:
        return rng.randint(1, 300), rng.randint(1, 300), rng.choice([1, 2, 3, 4, 8, 16, 32])

    return [Case(case, about) for case in known] + random_cases(0, 40, make, about)


blocks_at_the_end = Exercise(
    "00.1",
    "blocks_at_the_end",
    "Blocks at the end",
    cases=_block_cases,
    reference=_blocks,
    returns="a number of blocks",
    wrong={
        "count the last token, which is never cached": lambda prompt, new, size: cdiv(prompt + new, size),
        "round down": lambda prompt, new, size: (prompt + new - 1) // size,
        "give prompt and answer blocks of their own": lambda prompt, new, size: (
            cdiv(prompt, size) + cdiv(new - 1, size)
        ),
        "forget that the prompt needs blocks too": lambda prompt, new, size: cdiv(new - 1, size),
    },
    hints=(
        "Count tokens first: which tokens have keys and values in the cache at the moment when the last one is chosen?",
        "A token's keys and values are computed when it is fed to the model. The last one is chosen, and generation "
        "ends.",
        "That leaves `num_prompt_tokens + num_new_tokens - 1` tokens. A partly filled block is a block: round up, for "
        "example with `-(-a // b)`.",
    ),
    explanation="All tokens but the last have been fed to the model. They share the blocks without regard to which of "
    "them came from the prompt, and the last block may be partly filled, so the division rounds up.",
)
"""``blocks_at_the_end(num_prompt_tokens, num_new_tokens, block_size)``: blocks in the table when all are chosen."""

# --- 2. Requests that fit ---------------------------------------------------------------------------------------------


def _requests(memory_bytes: int, bytes_per_token: int, block_size: int, tokens_per_request: int) -> int:
    num_blocks = memory_bytes // (bytes_per_token * block_size)
    usable = max(0, num_blocks - 1)  # block 0 is the null block
    return usable // cdiv(tokens_per_request, block_size)


def _request_cases() -> list[Case]:
    about = "Blocks are whole, a request's blocks are whole, and block 0 serves nobody."
    known = (
        (2**30, 46_080, 16, 500), (2**30, 46_080, 16, 512), (10_000, 100, 10, 10), (100_000, 100, 10, 11),
        (1_000, 100, 10, 5), (500, 100, 10, 5), (64_000, 100, 1, 9),
    )  # fmt: skip

    def make(rng: random.Random) -> tuple[int, int, int, int]:
        return rng.randint(0, 200_000), rng.choice([7, 24, 100]), rng.choice([1, 3, 4, 16]), rng.randint(1, 90)

    return [Case(case, about) for case in known] + random_cases(1, 40, make, about)


requests_that_fit = Exercise(
    "00.2",
    "requests_that_fit",
    "Requests that fit",
    cases=_request_cases,
    reference=_requests,
    returns="a number of requests",
    wrong={
        "divide bytes by bytes, as if tokens needed no blocks": lambda memory, per_token, size, tokens: (
            memory // (per_token * tokens)
        ),
        "forget the null block": lambda memory, per_token, size, tokens: (
            memory // (per_token * size) // cdiv(tokens, size)
        ),
        "share the last block between requests": lambda memory, per_token, size, tokens: (
            max(0, memory // (per_token * size) - 1) * size // tokens
        ),
        "go below zero in a tiny memory": lambda memory, per_token, size, tokens: (
            (memory // (per_token * size) - 1) // cdiv(tokens, size)
        ),
        "give each request a null block of its own": lambda memory, per_token, size, tokens: (
            memory // (per_token * size) // (cdiv(tokens, size) + 1)
        ),
    },
    hints=(
        "Go through whole things: bytes make whole blocks, blocks make whole requests.",
        "A block takes `bytes_per_token * block_size` bytes. How many whole ones are there, and how many of them can "
        "be handed out?",
        "Take one away for the null block, but do not go below zero; then divide, rounding down, by the blocks that "
        "one request needs, rounded up.",
    ),
    explanation="Every division loses its remainder: bytes at the end that make no block, slots at the end of a "
    "request's last block, blocks that are too few for one more request. The null block is lost before all that.",
)
"""``requests_that_fit(memory_bytes, bytes_per_token, block_size, tokens_per_request)``: how many fit at once."""
