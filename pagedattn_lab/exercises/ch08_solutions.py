"""Right answers to the exercises of chapter 08.

Only grading imports this module: the list of exercises waits for nothing, and Triton is published for Linux only.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def one_read_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Decode one token: all query heads of a group, in rows of one tile."""
    sequence, kv_head = tl.program_id(0), tl.program_id(1)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    real_row = rows[:, None] < HEADS // KV_HEADS  # a group may have fewer heads than there are rows
    head = kv_head * (HEADS // KV_HEADS) + rows
    own_rows = (sequence * HEADS + head)[:, None] * DIM + dims[None, :]
    seq_len = tl.load(lens_ptr + sequence)
    query = tl.load(query_ptr + own_rows, mask=real_row, other=0.0) * scale
    running_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, DIM], dtype=tl.float32)
    for start in range(0, seq_len, TILE):
        positions = start + tl.arange(0, TILE)
        in_sequence = positions < seq_len
        block = tl.load(tables_ptr + sequence * table_stride + positions // BLOCK_SIZE, mask=in_sequence, other=0)
        slot = block * BLOCK_SIZE + positions % BLOCK_SIZE
        elements = (slot * KV_HEADS + kv_head)[:, None] * DIM + dims[None, :]
        key = tl.load(key_ptr + elements, mask=in_sequence[:, None], other=0.0)
        scores = tl.sum(query[:, None, :] * key[None, :, :], axis=2)  # [ROWS, TILE]
        scores = tl.where(in_sequence[None, :], scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        rescale = tl.exp(running_max - new_max)
        weights = tl.exp(scores - new_max[:, None])
        value = tl.load(value_ptr + elements, mask=in_sequence[:, None], other=0.0)
        acc = acc * rescale[:, None] + tl.sum(weights[:, :, None] * value[None, :, :], axis=1)
        running_sum = running_sum * rescale + tl.sum(weights, axis=1)
        running_max = new_max
    tl.store(out_ptr + own_rows, acc / running_sum[:, None], mask=real_row)


@triton.jit
def merge_splits(
    out_ptr, maxima_ptr, sums_ptr, accs_ptr,
    HEADS: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one head of one sequence, all at once."""
    row = tl.program_id(0) * HEADS + tl.program_id(1)
    splits, dims = row * SPLITS + tl.arange(0, LANES), tl.arange(0, DIM)
    real = tl.arange(0, LANES) < SPLITS
    maxima = tl.load(maxima_ptr + splits, mask=real, other=float("-inf"))
    used = maxima > float("-inf")
    new_max = tl.max(maxima, axis=0)
    factors = tl.where(used, tl.exp(maxima - new_max), 0.0)  # at most 1; where all are empty, -inf - -inf is NaN
    sums = tl.load(sums_ptr + splits, mask=used, other=0.0)
    accs = tl.load(accs_ptr + splits[:, None] * DIM + dims[None, :], mask=used[:, None], other=0.0)
    total = tl.sum(factors * sums, axis=0)
    acc = tl.sum(factors[:, None] * accs, axis=0)
    tl.store(out_ptr + row * DIM + dims, tl.where(total > 0, acc / total, 0.0))


@triton.jit
def quantised_write(cache_ptr, scales_ptr, key_ptr, slots_ptr, KV_HEADS: tl.constexpr, DIM: tl.constexpr):
    """Write one token's keys of one KV head as int8, with a scale of their own."""
    token, head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM)
    slot = tl.load(slots_ptr + token)
    key = tl.load(key_ptr + (token * KV_HEADS + head) * DIM + dims)
    largest = tl.max(tl.abs(key), axis=0)
    scale = largest / 127
    divisor = tl.where(largest > 0, scale, 1.0)  # a row of zeros: 0 / 1
    numbers = tl.floor(key / divisor + 0.5)
    numbers = tl.minimum(tl.maximum(numbers, -127.0), 127.0)
    own_row = slot * KV_HEADS + head
    tl.store(cache_ptr + own_row * DIM + dims, numbers.to(tl.int8), mask=slot >= 0)
    tl.store(scales_ptr + own_row, scale, mask=slot >= 0)
