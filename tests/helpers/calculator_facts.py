"""Facts for a calculator that no model has: every kind of layers, memory that is known exactly, and none at all."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from pagedattn_lab.arithmetic import GIB

FULL, WINDOW, CHUNK, STATE = ["full", 16, 0], ["window", 16, 100], ["chunk", 32, 64], ["state", 544, 2]


def memory(weights: float, other: float, spread: float, limits: Sequence[int]) -> list[list[int]]:
    """Make a model's memory on each GPU: other memory, and with it what is left, may be off by ``spread``."""
    sizes = [int(size * GIB) for size in (weights, other - spread, other, other + spread)]
    return [[*sizes, limit - sizes[0] - sizes[3], limit - sizes[0] - sizes[1]] for limit in limits]


def made_up() -> dict[str, Any]:
    """Make the facts; see the module."""
    totals = {"tiny": 2 * GIB, "<small> & odd": 8 * GIB + 12345, "large": 141 * GIB}
    gpus = [
        {
            "name": name,
            "total": total,
            "limit": math.ceil(total * 0.9),
            "in_flight": 4096,
            "decode_in_flight": 1 if name == "tiny" else 2,
            "capability_without_fp8": "" if name == "large" else "8.6",
        }
        for name, total in totals.items()
    ]
    limits = [gpu["limit"] for gpu in gpus]
    kinds = {
        "full": [[16, 2**21, [FULL]], [64, 2**23, [["full", 64, 0]]]],
        "window": [[16, 2**20, [WINDOW] * 3 + [FULL]], [64, 2**22, [["window", 64, 100]] * 3 + [["full", 64, 0]]]],
        "chunk": [[32, 393_216, [CHUNK, ["full", 32, 0]]]] * 2,
        "state": [[544, 13_369_344, [STATE, STATE, ["full", 544, 0]]]] * 2,
    }
    models = [
        {
            "name": f"model & {kind}",
            "max_model_len": 5000 if kind == "window" else 2**20,
            "memory": memory(1 + index, 0.5, 0 if kind == "chunk" else 0.25, limits),
            "layouts": [
                [layouts, [[size, width // 2, groups] for size, width, groups in layouts]],
                [layouts, [[size, width // 4, groups] for size, width, groups in layouts]],
            ],
            "layout_of": [0, 1, 0],
        }
        for index, (kind, layouts) in enumerate(kinds.items())
    ]
    return {
        "utilization": "0.9", "models": models, "gpus": gpus, "contexts": [1, 16, 4096, 131_072],
        "dtypes": ["auto", "fp8"], "block_sizes": [16, 64], "tokens": [1, 65, 2000, 100_000], "users": [1, 7, 300],
    }  # fmt: skip


def counts(facts: dict[str, Any]) -> list[int]:
    """Count the options of each control."""
    names = ("models", "gpus", "contexts", "dtypes", "block_sizes", "tokens", "users")
    return [len(facts[name]) for name in names]


def sample(facts: dict[str, Any], seed: int, number: int) -> Iterator[list[int]]:
    """Choose positions of the controls: every pair of options at least once, with random others, and so many more."""
    rng, sizes = random.Random(seed), counts(facts)
    for first in range(len(sizes)):
        for second in range(first):
            for option in range(sizes[first]):
                for other in range(sizes[second]):
                    at = [rng.randrange(size) for size in sizes]
                    at[first], at[second] = option, other
                    yield at
    for _ in range(number):
        yield [rng.randrange(size) for size in sizes]


def index_of(facts: dict[str, Any], at: Sequence[int]) -> int:
    """Number a position as a lesson's page does: the last control moves first."""
    index = 0
    for position, size in zip(at, counts(facts), strict=True):
        index = index * size + position
    return index
