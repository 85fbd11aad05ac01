"""Exercises of chapter 07: merging partial softmaxes, address arithmetic, and what a launch costs."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.grading import Case, Exercise, random_cases

if TYPE_CHECKING:  # a list of exercises must not wait for torch
    import torch

    Partial = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Attention over a part of a sequence: maximum ``[heads]``, sum ``[heads]``, accumulator ``[heads, dim]``."""

ROUNDING = 1e-10
"""Float64 rounds at 1e-16; a few hundred operations on numbers near 1 stay far below this, and every bug far above."""

# --- merge_partials -------------------------------------------------------------------------------------------------


def partial_attention(scores: torch.Tensor, value: torch.Tensor) -> Partial:
    """Attend over one part of a sequence, without the final division.

    Args:
        scores: ``[heads, tokens]``; no token at all gives the empty partial ``(-inf, 0, 0)``.
        value: ``[tokens, dim]``.
    """
    import torch

    heads, tokens = scores.shape
    if tokens == 0:
        empty = torch.zeros(heads, dtype=scores.dtype)
        return empty - torch.inf, empty, torch.zeros(heads, value.shape[1], dtype=value.dtype)
    running_max = scores.max(dim=1).values
    weights = torch.exp(scores - running_max[:, None])
    return running_max, weights.sum(dim=1), weights @ value


def _merge_partials(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    # Where both parts are empty the new maximum is -inf, and -inf - -inf would be NaN: subtract 0 there.
    finite = torch.where(torch.isinf(new_max), 0.0, new_max)
    first_factor, second_factor = torch.exp(first[0] - finite), torch.exp(second[0] - finite)
    return (
        new_max,
        first[1] * first_factor + second[1] * second_factor,
        first[2] * first_factor[:, None] + second[2] * second_factor[:, None],
    )


def _plain(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    a, b = torch.exp(first[0] - new_max), torch.exp(second[0] - new_max)
    return new_max, first[1] * a + second[1] * b, first[2] * a[:, None] + second[2] * b[:, None]


def _no_rescale(first: Partial, second: Partial) -> Partial:
    import torch

    return torch.maximum(first[0], second[0]), first[1] + second[1], first[2] + second[2]


def _sums_only(first: Partial, second: Partial) -> Partial:
    new_max, new_sum, _ = _merge_partials(first, second)
    return new_max, new_sum, first[2] + second[2]


def _first_only(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    a = torch.exp(first[0] - torch.where(torch.isinf(new_max), 0.0, new_max))
    return new_max, first[1] * a + second[1], first[2] * a[:, None] + second[2]


def _without_maximum(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    a, b, back = torch.exp(first[0]), torch.exp(second[0]), torch.exp(-new_max)
    new_sum = (first[1] * a + second[1] * b) * back
    return new_max, new_sum, (first[2] * a[:, None] + second[2] * b[:, None]) * back[:, None]


def _one_maximum(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0]).max().expand_as(first[0])
    finite = torch.where(torch.isinf(new_max), 0.0, new_max)
    a, b = torch.exp(first[0] - finite), torch.exp(second[0] - finite)
    return new_max, first[1] * a + second[1] * b, first[2] * a[:, None] + second[2] * b[:, None]


def _mean_of_outputs(first: Partial, second: Partial) -> Partial:
    new_max, new_sum, _ = _merge_partials(first, second)
    outputs = (first[2] / first[1][:, None] + second[2] / second[1][:, None]) / 2
    return new_max, new_sum, outputs * new_sum[:, None]


def _in_place(first: Partial, second: Partial) -> Partial:
    merged = _merge_partials(first, second)
    for old, new in zip(first, merged, strict=True):
        old.copy_(new)
    return first


def _merge_cases() -> list[Case]:
    import torch

    generator = torch.Generator().manual_seed(7)
    rng = random.Random(7)
    cases = []
    for offset in ((0.0, 0.0, 0.0), (1000.0, 0.0, -1000.0), (0.0, -1000.0, 1000.0)):
        for cuts in ([4], [9], [0], [11], [2, 7], [0, 0], sorted(rng.sample(range(12), 3))):
            scores = torch.randn(3, 11, generator=generator, dtype=torch.float64) * 3 + torch.tensor(offset)[:, None]
            value = torch.randn(11, 5, generator=generator, dtype=torch.float64)
            ends = itertools.pairwise([0, *cuts, 11])
            parts = tuple(partial_attention(scores[:, start:stop], value[start:stop]) for start, stop in ends)
            lengths = " + ".join(str(stop - start) for start, stop in itertools.pairwise([0, *cuts, 11]))
            shown = f"parts of {lengths} tokens, merged from left to right; 3 heads with scores near {offset}"
            cases.append(Case(parts, "Every part's sum and accumulator are relative to its own maximum.", shown))
    nothing = partial_attention(torch.empty(3, 0, dtype=torch.float64), torch.empty(0, 5, dtype=torch.float64))
    return [*cases, Case((nothing, nothing), "Two parts without any token make one.", "two parts of 0 tokens")]


def _merge_all(merge: Callable[[Partial, Partial], Partial], parts: tuple[Partial, ...]) -> Partial:
    return functools.reduce(merge, parts)


def _close(expected: Partial, got: Any) -> bool:
    import torch

    if expected is None or got is None:
        return expected is got
    pairs = [(torch.as_tensor(one), torch.as_tensor(other)) for one, other in zip(expected, got, strict=True)]
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
        for one, other in pairs
    )


def _look_at_partial(parts: tuple[Partial, ...], expected: Partial, got: Any) -> str | None:
    import torch

    hints = {
        "maximum": "each head keeps its own, the larger of its two",
        "sum": "both old sums were taken relative to their own maximum; bring both to the new one",
        "accumulator": "it needs the same factors as the sum, one per head",
    }
    if got is None:
        return None
    for (name, hint), wanted, given in zip(hints.items(), expected, map(torch.as_tensor, got), strict=True):
        if given.shape != wanted.shape:
            return f"The {name} has shape {tuple(given.shape)}, not {tuple(wanted.shape)}."
        if given.isnan().any():
            return f"The {name} holds NaN: what is exp(-inf - -inf), and 0 / 0?"
        if not torch.isclose(given, wanted, rtol=ROUNDING, atol=ROUNDING).all():
            return f"The {name} is wrong: {hint}."
    return None


merge_partials = Exercise(
    "07.1",
    "merge_partials",
    "Merge two partial results",
    cases=_merge_cases,
    returns="a tuple (maximum, sum, accumulator)",
    run=_merge_all,
    same=_close,
    look=_look_at_partial,
    pure=True,
    hints=(
        "It is the step of the online softmax in which the maximum rises, for both sides at once.",
        "The new maximum is the larger one, head by head. Each side's sum and accumulator are multiplied by "
        "`exp(old maximum - new maximum)`, then added; the accumulator needs the factor once per head, `[:, None]`.",
        "Where both sides are empty the new maximum is -inf, and -inf - -inf is NaN. Subtract 0 there: "
        "`torch.where(torch.isinf(new_max), 0.0, new_max)`.",
    ),
    explanation="A factor is at most 1, so nothing overflows, and an empty side gets the factor exp(-inf) = 0. New "
    "tensors are made, because the parts may be merged in more than one order.",
    reference=_merge_partials,
    wrong={
        "add sums and accumulators as they are": _no_rescale,
        "rescale the sums but not the accumulators": _sums_only,
        "rescale the first part only": _first_only,
        "multiply by exp(maximum), which overflows": _without_maximum,
        "take one maximum over all heads": _one_maximum,
        "average the two outputs": _mean_of_outputs,
        "give NaN for two empty parts": _plain,
        "overwrite the first argument": _in_place,
    },
)

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
