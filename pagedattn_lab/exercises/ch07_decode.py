"""Exercise 7 of chapter 07, which stands in its section 4: the core of a kernel that decodes through the page table."""

from __future__ import annotations

import random
from functools import cache

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch07_kernels import (
    AT_HAND,
    FALLING,
    MAXIMUM,
    NONE,
    SOLUTIONS,
    decode_cases,
    decode_exercise,
)
from pagedattn_lab.exercises.ch07_problem import Problem
from pagedattn_lab.exercises.kernels import OwnKernel, launching


def _constants(problem: Problem) -> dict[str, int]:
    return {"BLOCK_SIZE": problem.block_size, "DIM": problem.dim, "TILE": problem.tile}


@cache
def _cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> Problem:
        lens = tuple(rng.randint(1, 9) for _ in range(rng.choice([1, 1, 1, 2])))
        size, tile, dim = rng.choice([1, 2, 3, 4, 5]), rng.choice([4, 4, 8]), rng.choice([2, 4, 8])
        return Problem(lens, size, tile, dim, scores=rng.choice(["mixed", "rising"]), seed=seed)

    known = [
        (Problem((4,), 4, 4), "One full tile: the loop takes one turn."),
        (Problem((3,), 4, 4), "One lane has no token."),
        (Problem((8,), 4, 4), "Two tiles: the second must be merged with the first."),
        (Problem((9,), 4, 4, scores="rising"), "The maximum rises in each tile."),
        (Problem((9,), 4, 4, scores="falling"), FALLING),
        (Problem((6, 3), 4, 4, scores="rising"), "Two sequences, and the last tile of each is partly empty."),
        (Problem((7, 4), 1, 8), "A block holds one token."),
        (Problem((3,), 4, 1), "A tile holds one token."),
        (Problem((5,), 4, 4, scores="low"), "All scores are far below 0."),
        (Problem((5,), 4, 4, scores="high"), "All scores are far above 0."),
    ]
    about = "After each tile, maximum, sum and accumulator stand for all tokens so far."
    return decode_cases("online_decode", _constants, known, make, about)


_right = OwnKernel(SOLUTIONS, "online_decode")
_RESCALE = "rescale = tl.exp(running_max - new_max)"

online_decode = decode_exercise(
    "07.7",
    "online_decode",
    "The core of the kernel",
    cases=_cases,
    reference=_right,
    **launching(_constants),
    hints=(
        "It is the body of the loop in section 3. Which of its lines are about keys, and which about scores?",
        "`new_max` is the larger of `running_max` and the tile's largest score, `rescale` is `tl.exp(running_max - "
        "new_max)`, and `weights` are `tl.exp(scores - new_max)`. In Triton: `tl.maximum(a, b)`, `tl.max(x, axis=0)`.",
        "`acc = acc * rescale + tl.sum(weights[:, None] * value, axis=0)`, the same for `running_sum` without the "
        "values, and last `running_max = new_max`.",
    ),
    explanation="The lines before the core find the tile's keys and values, wherever they lie; the core sees scores "
    "and values only, and would be the same over contiguous memory. A lane without a token scores -inf, so its weight "
    "is 0 and it needs no case of its own.",
    wrong={
        "leave the rescale out": _right.but((_RESCALE, "rescale = 1.0")),
        "rescale the accumulator and not the sum": _right.but(("running_sum * rescale", "running_sum")),
        "rescale the sum and not the accumulator": _right.but(("acc * rescale", "acc")),
        "forget to keep the new maximum": _right.but(("running_max = new_max\n", "running_max = running_max\n")),
        "turn the rescale around": _right.but((_RESCALE, "rescale = tl.exp(new_max - running_max)")),
        "leave the maximum out, without which low scores vanish": _right.but((MAXIMUM, NONE)),
        "take the maximum of the tile at hand, not of all tokens so far": _right.but((MAXIMUM, AT_HAND)),
        "weigh the keys instead of the values": _right.but(("weights[:, None] * value", "weights[:, None] * key")),
        "add the values without their weights": _right.but(("weights[:, None] * value", "value")),
    },
)
