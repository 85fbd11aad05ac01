"""Exercises of chapter 07: merging partial softmaxes, address arithmetic, what a launch costs, and four kernels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch07_decode import online_decode
from pagedattn_lab.exercises.ch07_kernels import grouped_decode, padded_decode, windowed_decode
from pagedattn_lab.exercises.ch07_merge import merge_partials, partial_attention
from pagedattn_lab.exercises.grading import Exercise

__all__ = [
    "element_offset", "grouped_decode", "launch_cost", "merge_partials", "online_decode", "padded_decode",
    "partial_attention", "windowed_decode",
]  # fmt: skip

# --- element_offset -------------------------------------------------------------------------------------------------


def _element_offset(
    block_table: Sequence[int], position: int, kv_head: int, dim: int, block_size: int, strides: Sequence[int]
) -> int:
    block, slot = block_table[position // block_size], position % block_size
    return block * strides[0] + slot * strides[1] + kv_head * strides[2] + dim * strides[3]


def _logical_block(table: Sequence[int], position: int, head: int, dim: int, size: int, strides: Sequence[int]) -> int:
    return (position // size) * strides[0] + (position % size) * strides[1] + head * strides[2] + dim * strides[3]


def _flat_slot(table: Sequence[int], position: int, head: int, dim: int, size: int, strides: Sequence[int]) -> int:
    slot = table[position // size] * size + position % size
    return slot * strides[1] + head * strides[2] + dim * strides[3]


def _whole_position(table: Sequence[int], position: int, head: int, dim: int, size: int, strides: Sequence[int]) -> int:
    return table[position // size] * strides[0] + position * strides[1] + head * strides[2] + dim * strides[3]


def _unit_dim(table: Sequence[int], position: int, head: int, dim: int, size: int, strides: Sequence[int]) -> int:
    return table[position // size] * strides[0] + (position % size) * strides[1] + head * strides[2] + dim


def _swapped(table: Sequence[int], position: int, head: int, dim: int, size: int, strides: Sequence[int]) -> int:
    return table[position // size] * strides[0] + (position % size) * strides[2] + head * strides[1] + dim * strides[3]


def _bytes(table: Sequence[int], position: int, head: int, dim: int, size: int, strides: Sequence[int]) -> int:
    return 2 * _element_offset(table, position, head, dim, size, strides)


def _strided_offset(
    block_table: Sequence[int], position: int, kv_head: int, dim: int, block_size: int, strides: Sequence[int]
) -> int:
    """Let torch look it up, in a view with these strides of storage that holds 0, 1, 2 and so on."""
    import torch

    shape = (max(block_table) + 1, block_size, kv_head + 1, dim + 1)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    view = torch.arange(last + 1).as_strided(shape, tuple(strides))
    return int(view[block_table[position // block_size], position % block_size, kv_head, dim])


def _offset_cases() -> list[Case]:
    layouts = {  # in which order blocks, slots, heads and dims are stored, and how many caches lie side by side
        "Blocks, slots, heads, dims, contiguous.": ((0, 1, 2, 3), 1),
        "Heads are stored before slots.": ((0, 2, 1, 3), 1),
        "Keys and values of a block lie side by side.": ((0, 1, 2, 3), 2),
        "Slots are stored innermost.": ((0, 2, 3, 1), 1),
        "Blocks are stored innermost.": ((1, 2, 3, 0), 1),
    }

    def strides_of(shape: Sequence[int], order: Sequence[int], side_by_side: int) -> tuple[int, ...]:
        strides, step = [0] * 4, 1
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis]
        return tuple(stride * (side_by_side if axis == 0 else 1) for axis, stride in enumerate(strides))

    def make(rng: random.Random) -> tuple[list[int], int, int, int, int, tuple[int, ...]]:
        block_size, heads, dims = rng.choice([1, 3, 4, 16]), rng.randint(1, 4), rng.randint(2, 9)
        table = rng.sample(range(1, 9), rng.randint(1, 4))
        order, side_by_side = rng.choice(list(layouts.values()))
        strides = strides_of((9, block_size, heads, dims), order, side_by_side)
        position = rng.randrange(len(table) * block_size)
        return table, position, rng.randrange(heads), rng.randrange(dims), block_size, strides

    places = ((0, 0, 0), (1, 0, 0), (6, 2, 3), (9, 1, 4), (11, 2, 0), (4, 0, 2))
    known = [
        Case(([5, 2, 6], *place, 4, strides_of((7, 4, 3, 5), order, side_by_side)), about)
        for about, (order, side_by_side) in layouts.items()
        for place in places
    ]
    return known + random_cases(
        17, 40, make, "Every index has a stride of its own, and the block's comes from the table."
    )


element_offset = Exercise(
    "07.2",
    "element_offset",
    "One address",
    cases=_offset_cases,
    reference=_element_offset,
    oracle=_strided_offset,
    returns="a number of elements",
    hints=(
        "Which four indices does `key_cache[...]` need for this element?",
        "Block and slot come from the position: `block_table[position // block_size]` and `position % block_size`.",
        "The offset is the sum of index times stride over all four. No stride may be replaced by what it is in a "
        "contiguous cache, not even the last one.",
    ),
    explanation="Strides say how far apart neighbours along an axis lie, whatever the storage looks like. A kernel "
    "that multiplies by sizes in their place works for the layout that its author had in mind.",
    wrong={
        "use the logical block's number, without a look-up": _logical_block,
        "multiply the flat slot by the slot stride": _flat_slot,
        "forget the modulo": _whole_position,
        "take the last stride to be 1": _unit_dim,
        "swap the strides of slots and heads": _swapped,
        "count bytes": _bytes,
    },
)

# --- launch_cost ----------------------------------------------------------------------------------------------------


def _launch_cost(
    seq_lens: Sequence[int], num_heads: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, tile: int
) -> dict[str, int]:
    row_bytes = 2 * head_dim * dtype_bytes  # a key and a value
    return {
        "programs": len(seq_lens) * num_heads,
        "longest_loop": cdiv(max(seq_lens), tile),
        "bytes_requested": sum(seq_lens) * num_heads * row_bytes,
        "bytes_stored": sum(seq_lens) * num_kv_heads * row_bytes,
    }


def _changed(**changes: Callable[..., int]) -> Callable[..., dict[str, int]]:
    """Give the reference with some of its entries computed differently."""

    def wrong(
        seq_lens: Sequence[int], num_heads: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, tile: int
    ) -> dict[str, int]:
        arguments = (seq_lens, num_heads, num_kv_heads, head_dim, dtype_bytes, tile)
        return _launch_cost(*arguments) | {name: change(*arguments) for name, change in changes.items()}

    return wrong


def _launch_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], int, int, int, int, int]:
        num_kv_heads = rng.choice([1, 2, 3, 8])
        seq_lens = [rng.randint(1, 400) for _ in range(rng.randint(1, 5))]
        return (
            seq_lens,
            num_kv_heads * rng.choice([1, 2, 4]),
            num_kv_heads,
            rng.choice([64, 80, 128]),
            rng.choice([2, 4]),
            64,
        )

    known = [
        Case(([300, 1, 129], 9, 3, 64, 4, 128), "Three ragged requests, 9 query heads on 3 KV heads, float32."),
        Case(([256], 8, 1, 128, 2, 64), "One request whose length is a whole number of tiles, 8 query heads on 1."),
        Case(([5, 70, 33, 33], 4, 4, 80, 2, 64), "Four requests without grouping, head_dim 80."),
    ]
    return known + random_cases(18, 30, make)


def _look_at_cost(arguments: tuple[Any, ...], expected: dict[str, int], got: Any) -> str | None:
    hints = {
        "programs": "the grid has one program per sequence (its newest token is the query) and query head",
        "longest_loop": "the longest sequence needs its length divided by the tile, rounded up",
        "bytes_requested": "every program loads a key and a value row per token of its own sequence, "
        "masked lanes load nothing, and dims beyond head_dim are masked too",
        "bytes_stored": "each KV row lies in memory once per KV head, however many query heads read it",
    }
    wrong = [name for name in hints if got is not None and got[name] != expected[name]]
    return f"{wrong[0]} is {expected[wrong[0]]}, not {got[wrong[0]]}: {hints[wrong[0]]}." if wrong else None


launch_cost = Exercise(
    "07.3",
    "launch_cost",
    "What a launch costs",
    cases=_launch_cases,
    reference=_launch_cost,
    returns="a dict with programs, longest_loop, bytes_requested and bytes_stored",
    look=_look_at_cost,
    hints=(
        "What does one program of the grid do, and how many are there?",
        "A program has one query head of one sequence, and walks over that sequence in tiles. It loads a key and a "
        "value for each token: `2 * head_dim * dtype_bytes` bytes.",
        "Requested bytes count a row once for every query head that reads it, stored bytes once for every KV head. "
        "Only tokens count, not lanes.",
    ),
    explanation="The two numbers of bytes differ by the group size: query heads of a group ask for the same rows, "
    "each for itself. Whether memory sees all of these requests is up to the GPU's cache, and the subject of chapter "
    "08.",
    wrong={
        "start one program per KV head": _changed(programs=lambda lens, heads, kv, *_: len(lens) * kv),
        "run one loop for all tokens of the batch": _changed(
            longest_loop=lambda lens, heads, kv, dim, width, tile: cdiv(sum(lens), tile)
        ),
        "round the loop down": _changed(longest_loop=lambda lens, heads, kv, dim, width, tile: max(lens) // tile),
        "count masked lanes as bytes": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: (
                sum(cdiv(n, tile) for n in lens) * tile * heads * 2 * dim * width
            )
        ),
        "pad every request to the longest": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: max(lens) * len(lens) * heads * 2 * dim * width
        ),
        "pad head_dim to a power of two": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: (
                sum(lens) * heads * 2 * (1 << (dim - 1).bit_length()) * width
            )
        ),
        "forget the values": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: sum(lens) * heads * dim * width
        ),
        "store a row per query head": _changed(
            bytes_stored=lambda lens, heads, kv, dim, width, tile: sum(lens) * heads * 2 * dim * width
        ),
    },
)
