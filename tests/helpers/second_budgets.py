"""A second right answer to each exercise of chapter 10, found in another way than the first."""

from __future__ import annotations

import itertools
import math
from typing import Any


def log_figures(
    available: int,
    num_full: int,
    num_window: int,
    window: int,
    layer_bytes: int,
    block_size: int,
    max_model_len: int,
    in_flight: int,
) -> tuple[int, int, float]:
    """Deal layers out to groups one by one, and count the blocks of a request token by token."""
    small, large = sorted(number for number in (num_full or num_window, num_window or num_full))
    size = small if 2 * large >= 3 * small else large
    groups = [kind for kind, number in (("f", num_full), ("w", num_window)) for _ in range(0, number, size)]
    every = {position // block_size for position in range(max_model_len)}
    recent = {position // block_size for position in range(min(max_model_len, in_flight + window - 1))}
    a_request = sum(len(every) if kind == "f" else 1 + len(recent) for kind in groups)
    blocks = math.floor(available / (size * layer_bytes * block_size))
    return blocks, math.floor(blocks / a_request * max_model_len), float(f"{blocks / a_request:.2f}")


def why_no_hits(prompts: Any, salts: Any, block_size: int, caching: bool) -> tuple[str, int]:
    """Keep every beginning that ends with a block in a set, as the cache does."""

    def serve(prompts: Any, salts: Any, size: int, caching: bool) -> int:
        kept: set[tuple[Any, ...]] = set()
        total = 0
        for prompt, salt in zip(prompts, salts, strict=True):
            ends = range(size, len(prompt) + 1, size)
            beginnings = [(salt, *prompt[:end]) for end in ends]
            found = itertools.takewhile(kept.__contains__, beginnings)
            total += sum(size for beginning in found if len(beginning) - 1 < len(prompt))
            if caching:
                kept.update(beginnings)
        return total

    nobody = [""] * len(salts)
    for cause, setting in (
        ("hits", (prompts, salts, block_size, caching)),
        ("caching", (prompts, salts, block_size, True)),
        ("salts", (prompts, nobody, block_size, caching)),
        ("block size", (prompts, salts, 16 if block_size > 16 else block_size, caching)),
        ("first token", ([list(prompt)[1:] for prompt in prompts], salts, block_size, caching)),
    ):
        found = serve(*setting)
        if found:
            return cause, found
    return "more than one", 0


def make_it_fit(
    total: int, percent: int, available: int, token_bytes: int, block_size: int, max_model_len: int
) -> dict[str, Any]:
    """Count blocks up and down, and never divide bytes."""

    def blocks(memory: int, of_token: int) -> int:
        return memory // (of_token * block_size) - 1

    wanted = -(-max_model_len // block_size)
    longest = max_model_len if blocks(available, token_bytes) >= wanted else blocks(available, token_bytes) * block_size
    enough = [
        share
        for share in range(percent, 100)
        if blocks(available + (share - percent) * total // 100, token_bytes) >= wanted
    ]
    return {
        "fp8": blocks(available, token_bytes // 2) >= wanted,
        "gpu_memory_utilization": enough[0] if enough else None,
        "max_model_len": max(0, longest),
    }


def pick_flags(available: int, token_bytes: int, block_size: int, lengths: Any, shared: int) -> dict[str, Any] | None:
    """Try every number of users, from all of them down, and both dtypes."""
    longest = sorted(lengths)[::-1]

    def needed(users: int) -> int:
        in_common = shared // block_size
        own = [-(-length // block_size) - in_common for length in longest[:users]]
        return 1 + in_common + sum(own)

    for users in range(len(longest), 0, -1):
        for dtype, of_token in (("auto", token_bytes), ("fp8", token_bytes // 2)):
            if needed(users) * block_size * of_token <= available:
                return {"max_num_seqs": users, "max_model_len": longest[0], "kv_cache_dtype": dtype}
    return None
