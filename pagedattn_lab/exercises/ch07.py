"""Exercises of chapter 07: merging partial softmaxes, address arithmetic, and what a launch costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises import Exercise

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
    heads, tokens = scores.shape
    if tokens == 0:
        empty = torch.zeros(heads, dtype=scores.dtype)
        return empty - torch.inf, empty, torch.zeros(heads, value.shape[1], dtype=value.dtype)
    running_max = scores.max(dim=1).values
    weights = torch.exp(scores - running_max[:, None])
    return running_max, weights.sum(dim=1), weights @ value


def _merge_partials(first: Partial, second: Partial) -> Partial:
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
    new_max = torch.maximum(first[0], second[0])
    a, b = torch.exp(first[0] - new_max), torch.exp(second[0] - new_max)
    return new_max, first[1] * a + second[1] * b, first[2] * a[:, None] + second[2] * b[:, None]


def _no_rescale(first: Partial, second: Partial) -> Partial:
    return torch.maximum(first[0], second[0]), first[1] + second[1], first[2] + second[2]


def _sums_only(first: Partial, second: Partial) -> Partial:
    new_max, new_sum, _ = _merge_partials(first, second)
    return new_max, new_sum, first[2] + second[2]


def _first_only(first: Partial, second: Partial) -> Partial:
    new_max = torch.maximum(first[0], second[0])
    a = torch.exp(first[0] - torch.where(torch.isinf(new_max), 0.0, new_max))
    return new_max, first[1] * a + second[1], first[2] * a[:, None] + second[2]


def _without_maximum(first: Partial, second: Partial) -> Partial:
    new_max = torch.maximum(first[0], second[0])
    a, b, back = torch.exp(first[0]), torch.exp(second[0]), torch.exp(-new_max)
    new_sum = (first[1] * a + second[1] * b) * back
    return new_max, new_sum, (first[2] * a[:, None] + second[2] * b[:, None]) * back[:, None]


def _one_maximum(first: Partial, second: Partial) -> Partial:
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


def _check_merge_partials(merge: Callable[[Partial, Partial], Partial]) -> None:
    generator = torch.Generator().manual_seed(7)
    offsets = {"small scores": (0.0, 0.0, 0.0), "scores near 1000, near 0 and near -1000": (1000.0, 0.0, -1000.0)}
    for what, offset in offsets.items():
        scores = torch.randn(3, 11, generator=generator, dtype=torch.float64) * 3 + torch.tensor(offset)[:, None]
        value = torch.randn(11, 5, generator=generator, dtype=torch.float64)
        for split in (4, 9, 0, 11):
            parts = [partial_attention(scores[:, :split], value[:split])]
            parts += [partial_attention(scores[:, split:], value[split:])]
            _compare(merge, parts, partial_attention(scores, value), f"{what}, {split} of 11 tokens in the first part")
        pieces = [partial_attention(scores[:, a:b], value[a:b]) for a, b in ((0, 2), (2, 7), (7, 11))]
        left = merge(merge(pieces[0], pieces[1]), pieces[2])
        _same(left, partial_attention(scores, value), f"{what}, three parts merged one after another")
    nothing = partial_attention(torch.empty(3, 0, dtype=torch.float64), torch.empty(0, 5, dtype=torch.float64))
    _compare(merge, [nothing, nothing], nothing, "two parts without any token")


def _compare(merge: Callable[[Partial, Partial], Partial], parts: list[Partial], expected: Partial, what: str) -> None:
    before = [tensor.clone() for part in parts for tensor in part]
    _same(merge(*parts), expected, what)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, (t for part in parts for t in part), strict=True))
    assert unchanged, f"{what}: merging changed its arguments; make new tensors, others may still need the old ones"


def _same(merged: Partial, expected: Partial, what: str) -> None:
    assert isinstance(merged, tuple) and len(merged) == 3, "return a tuple (maximum, sum, accumulator)"
    for name, got, wanted in zip(("maximum", "sum", "accumulator"), merged, expected, strict=True):
        assert got.shape == wanted.shape, f"{what}: the {name} has shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
        assert not got.isnan().any(), f"{what}: the {name} holds NaN; what is exp(-inf - -inf), and 0 / 0?"
        right = torch.isclose(got, wanted, rtol=ROUNDING, atol=ROUNDING).all()
        hint = {
            "maximum": "each head keeps its own, the larger of its two",
            "sum": "both old sums were taken relative to their own maximum; bring both to the new one",
            "accumulator": "it needs the same factors as the sum, one per head",
        }[name]
        assert right, f"{what}: the {name} is wrong; {hint}"


merge_partials = Exercise(
    check=_check_merge_partials,
    reference=_merge_partials,
    wrong={
        "adds sums and accumulators as they are": _no_rescale,
        "rescales the sums but not the accumulators": _sums_only,
        "rescales the first part only": _first_only,
        "multiplies by exp(maximum), which overflows": _without_maximum,
        "takes one maximum over all heads": _one_maximum,
        "averages the two outputs": _mean_of_outputs,
        "gives NaN for two empty parts": _plain,
        "overwrites its first argument": _in_place,
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


def _check_element_offset(offset: Callable[..., int]) -> None:
    blocks, size, heads, head_dim = 7, 4, 3, 5
    table = [5, 2, 6]

    def numbered(*shape: int) -> torch.Tensor:
        return torch.arange(torch.Size(shape).numel()).reshape(shape)

    layouts = {
        "blocks, slots, heads, dims, contiguous": numbered(blocks, size, heads, head_dim),
        "heads stored before slots": numbered(blocks, heads, size, head_dim).permute(0, 2, 1, 3),
        "keys of a tensor that holds keys and values of a block side by side": numbered(
            blocks, 2, size, heads, head_dim
        )[:, 0],
        "values of that tensor": numbered(blocks, 2, size, heads, head_dim)[:, 1],
        "slots stored innermost": numbered(blocks, heads, head_dim, size).permute(0, 3, 1, 2),
    }
    for layout, cache in layouts.items():
        first = int(cache[0, 0, 0, 0])  # what the pointer that a kernel receives points at
        for position, kv_head, dim in ((0, 0, 0), (1, 0, 0), (6, 2, 3), (9, 1, 4), (11, 2, 0), (4, 0, 2)):
            wanted = int(cache[table[position // size], position % size, kv_head, dim]) - first
            got = offset(table, position, kv_head, dim, size, cache.stride())
            assert got == wanted, (
                f"{layout}, strides {cache.stride()}: token {position}, head {kv_head}, dim {dim} lies {wanted} "
                f"elements after the start, not {got} (table {table}, block size {size})"
            )


element_offset = Exercise(
    check=_check_element_offset,
    reference=_element_offset,
    wrong={
        "does not look the block up": _logical_block,
        "multiplies the flat slot by the slot stride": _flat_slot,
        "forgets the modulo": _whole_position,
        "takes the last stride to be 1": _unit_dim,
        "swaps the strides of slots and heads": _swapped,
        "counts bytes": _bytes,
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


def _check_launch_cost(cost: Callable[..., dict[str, int]]) -> None:
    batches = (
        (([300, 1, 129], 9, 3, 64, 4, 128), "three ragged requests, 9 query heads on 3 KV heads, float32"),
        (([256], 8, 1, 128, 2, 64), "one request whose length is a whole number of tiles, 8 query heads on 1"),
        (([5, 70, 33, 33], 4, 4, 80, 2, 64), "four requests without grouping, head_dim 80"),
    )
    hints = {
        "programs": "the grid has one program per sequence (its newest token is the query) and query head",
        "longest_loop": "the longest sequence needs its length divided by the tile, rounded up",
        "bytes_requested": "every program loads a key and a value row per token of its own sequence, "
        "masked lanes load nothing, and dims beyond head_dim are masked too",
        "bytes_stored": "each KV row lies in memory once per KV head, however many query heads read it",
    }
    for arguments, what in batches:
        wanted, got = _launch_cost(*arguments), cost(*arguments)
        assert isinstance(got, dict) and got.keys() == wanted.keys(), f"return a dict with the keys {list(wanted)}"
        for name, hint in hints.items():
            assert got[name] == wanted[name], f"{what}: {name} is {wanted[name]}, not {got[name]}; {hint}"


launch_cost = Exercise(
    check=_check_launch_cost,
    reference=_launch_cost,
    wrong={
        "one program per KV head": _changed(programs=lambda lens, heads, kv, *_: len(lens) * kv),
        "one loop for all tokens of the batch": _changed(
            longest_loop=lambda lens, heads, kv, dim, width, tile: cdiv(sum(lens), tile)
        ),
        "rounds the loop down": _changed(longest_loop=lambda lens, heads, kv, dim, width, tile: max(lens) // tile),
        "counts masked lanes as bytes": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: (
                sum(cdiv(n, tile) for n in lens) * tile * heads * 2 * dim * width
            )
        ),
        "pads every request to the longest": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: max(lens) * len(lens) * heads * 2 * dim * width
        ),
        "pads head_dim to a power of two": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: (
                sum(lens) * heads * 2 * (1 << (dim - 1).bit_length()) * width
            )
        ),
        "forgets the values": _changed(
            bytes_requested=lambda lens, heads, kv, dim, width, tile: sum(lens) * heads * dim * width
        ),
        "stores a row per query head": _changed(
            bytes_stored=lambda lens, heads, kv, dim, width, tile: sum(lens) * heads * 2 * dim * width
        ),
    },
)
