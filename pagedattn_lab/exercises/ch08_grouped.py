"""Exercise 1 of chapter 08: a kernel that reads keys and values once for all query heads that share them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch07_kernels import FALLING, decode_cases, decode_exercise
from pagedattn_lab.exercises.ch07_problem import Problem
from pagedattn_lab.exercises.kernels import OwnKernel, launching

SOLUTIONS = "pagedattn_lab.exercises.ch08_solutions"


@dataclass(frozen=True, eq=False)
class GroupProblem(Problem):
    """Sequences that decode one token each, with one program for each sequence and KV head.

    Example:
        >>> problem = GroupProblem((3,), block_size=4, tile=4, heads=6, kv_heads=2)
        >>> problem.needed["out", (0, 1, 0)], problem.rows
        ({3, 4, 5}, 4)
    """

    once: ClassVar[Sequence[str]] = ("keys", "values")
    loaders: ClassVar[str] = "programs"

    @property
    def rows(self) -> int:
        """The heads of a group, rounded up to a power of two."""
        return 1 << (self.heads // self.kv_heads - 1).bit_length()

    @property
    def per_sequence(self) -> int:
        """Programs for each sequence."""
        return self.kv_heads

    def heads_of(self, head: int) -> range:
        """Query heads of the group that a program computes."""
        group = self.heads // self.kv_heads
        return range(head * group, (head + 1) * group)

    def kv_head_of(self, head: int) -> int:
        """The KV head that it reads: its second number."""
        return head

    def reads(self, head: int) -> str:
        """Its second number, in words that go on with a KV head."""
        return "computes the query heads of"


def _constants(problem: GroupProblem) -> dict[str, int]:
    return {
        "HEADS": problem.heads, "KV_HEADS": problem.kv_heads, "ROWS": problem.rows, "BLOCK_SIZE": problem.block_size,
        "DIM": problem.dim, "TILE": problem.tile,
    }  # fmt: skip


@cache
def _cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> GroupProblem:
        heads, kv_heads = rng.choice([(2, 1), (3, 1), (4, 2), (4, 1), (6, 2)])
        lens = tuple(rng.randint(1, 8) for _ in range(rng.choice([1, 1, 1, 2])))
        scores = rng.choice(["mixed", "rising"])
        size, tile = rng.choice([1, 2, 3, 4, 5]), rng.choice([4, 8, 8])
        return GroupProblem(lens, size, tile, rng.choice([2, 4, 8]), heads, kv_heads, scores=scores, seed=seed)

    known = [
        (GroupProblem((3,), 4, 4, heads=4, kv_heads=2), "Program (0, 1) computes query heads 2 and 3."),
        (GroupProblem((5,), 4, 8, heads=4, kv_heads=1), "All query heads share one KV head, and one program."),
        (GroupProblem((4,), 2, 4, heads=6, kv_heads=2), "A group has 3 query heads, and a tile 4 rows."),
        (GroupProblem((6,), 3, 8, heads=3, kv_heads=3), "Every query head has a KV head of its own."),
        (GroupProblem((9,), 4, 4, heads=2, kv_heads=1, scores="rising"), "The maximum rises in each tile."),
        (GroupProblem((5,), 4, 4, heads=2, kv_heads=2, scores="falling"), FALLING),
        (GroupProblem((2, 1), 4, 4, heads=6, kv_heads=2, scores="rising"), "Two sequences, two groups of 3."),
        (GroupProblem((7, 4), 1, 8, heads=4, kv_heads=2), "A block holds one token."),
        (
            GroupProblem((5,), 4, 4, heads=2, kv_heads=1, scores="low"),
            "All scores of query head 0 are far below 0, those of head 1 are not: each head has its own maximum.",
        ),
        (GroupProblem((5,), 4, 4, heads=2, kv_heads=2, scores="low"), "All scores are far below 0."),
        (GroupProblem((5,), 4, 4, heads=2, kv_heads=2, scores="high"), "All scores are far above 0."),
    ]
    about = "Every query head of the group has its own maximum and sum, and all share the keys and values loaded once."
    return decode_cases("one_read_decode", _constants, known, make, about)


COMPILED_FOR = GroupProblem((16,), 16, 16, dim=16, heads=4, kv_heads=2)
"""Cases are small enough to be followed by hand, and too small for ``tl.dot`` on a GPU, which wants sums of 16."""

_right = OwnKernel(SOLUTIONS, "one_read_decode")
_SHARED = "mask=in_sequence[:, None], other=0.0"
_FOR_EACH_HEAD = "ptr + elements[None, :, :] + rows[:, None, None] * 0, mask=in_sequence[None, :, None], other=0.0"

one_read_decode = decode_exercise(
    "08.1",
    "one_read_decode",
    "Read once for a whole group",
    cases=_cases,
    reference=_right,
    **launching(_constants, COMPILED_FOR),
    hints=(
        "Copy your `grouped_decode` of chapter 07. `tl.program_id(1)` is the KV head now. Which of the kernel's values "
        "get a new axis, of the group's query heads, and which do not?",
        "Query and `acc` become `[ROWS, DIM]`, scores and weights `[ROWS, TILE]`, maximum and sum `[ROWS]`. Keys and "
        "values stay as they are. Row `r` is query head `kv_head * (HEADS // KV_HEADS) + r`; rows from "
        "`HEADS // KV_HEADS` on are padding, and are neither loaded nor stored.",
        "`scores = tl.sum(query[:, None, :] * key[None, :, :], axis=2)`, or `tl.dot(query, tl.trans(key))`. Reductions "
        "over the tokens are along `axis=1`, and what is per row reaches a tile as `new_max[:, None]`.",
    ),
    explanation="The address arithmetic of keys and values is that of chapter 07. One more axis, of query heads, "
    "crosses the tile after it has been loaded, so a group asks memory for each row once, and not once per head. With "
    "16 rows or more, the two products over it are what `tl.dot` gives to tensor cores.",
    wrong={
        "leave the maximum out, without which low scores vanish": _right.but(
            ("tl.maximum(running_max, tl.max(scores, axis=1))", "tl.max(scores, axis=1) * 0")
        ),
        "take the maximum of the tile at hand, not of all tokens so far": _right.but(
            ("tl.maximum(running_max, tl.max(scores, axis=1))", "tl.max(scores, axis=1)")
        ),
        "take one maximum for all heads of the group": _right.but(("tl.max(scores, axis=1)", "tl.max(scores)")),
        "load keys and values again for each query head": _right.but(
            (f"ptr + elements, {_SHARED}", _FOR_EACH_HEAD),
            ("key[None, :, :]", "key"),
            ("value[None, :, :]", "value"),
        ),
        "give every row the query of the group's first head": _right.but(
            ("query_ptr + own_rows", "query_ptr + own_rows - rows[:, None] * DIM")
        ),
        "load queries of the next group into rows that have none": _right.but(
            ("query_ptr + own_rows, mask=real_row, other=0.0", "query_ptr + own_rows")
        ),
        "store rows that have no query head": _right.but(
            ("running_sum[:, None], mask=real_row", "running_sum[:, None]")
        ),
        "take every KV_HEADS-th query head instead of neighbours": _right.but(
            ("kv_head * (HEADS // KV_HEADS) + rows", "kv_head + rows * KV_HEADS")
        ),
        "divide all rows by one sum": _right.but(
            ("acc / running_sum[:, None]", "acc / tl.sum(tl.where(rows == 0, running_sum, 0.0))")
        ),
    },
)
