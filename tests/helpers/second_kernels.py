"""A second right kernel to each exercise that wants one, found by another way than the one that the book shows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(table_ptr, position, BLOCK_SIZE: tl.constexpr):
    """Look up where one token lies."""
    return tl.load(table_ptr + position // BLOCK_SIZE) * BLOCK_SIZE + position % BLOCK_SIZE


@triton.jit
def online_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One token at a time, and what has been divided already is mixed with the next value."""
    sequence, dims = tl.program_id(0), tl.arange(0, DIM)
    table_ptr = tables_ptr + sequence * table_stride
    query = tl.load(query_ptr + sequence * DIM + dims) * scale
    log_sum, mean = float("-inf"), tl.zeros([DIM], dtype=tl.float32)
    for position in range(tl.load(lens_ptr + sequence)):
        row = _row(table_ptr, position, BLOCK_SIZE) * DIM
        score = tl.sum(query * tl.load(key_ptr + row + dims), axis=0)
        larger = tl.maximum(log_sum, score)
        log_sum = larger + tl.log(tl.exp(log_sum - larger) + tl.exp(score - larger))
        share = tl.exp(score - log_sum)
        mean += share * (tl.load(value_ptr + row + dims) - mean)
    tl.store(out_ptr + sequence * DIM + dims, mean)


@triton.jit
def grouped_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Go over the tokens twice, one at a time: first for the maximum, then for the sums."""
    sequence, head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM)
    table_ptr = tables_ptr + sequence * table_stride
    seq_len = tl.load(lens_ptr + sequence)
    key_ptr += head * KV_HEADS // HEADS * DIM
    value_ptr += head * KV_HEADS // HEADS * DIM
    query = tl.load(query_ptr + sequence * HEADS * DIM + head * DIM + dims)
    largest = float("-inf")
    for position in range(seq_len):
        key = tl.load(key_ptr + _row(table_ptr, position, BLOCK_SIZE) * KV_HEADS * DIM + dims)
        largest = tl.maximum(largest, tl.sum(query * key, axis=0) * scale)
    total, acc = 0.0, tl.zeros([DIM], dtype=tl.float32)
    for position in range(seq_len):
        row = _row(table_ptr, position, BLOCK_SIZE) * KV_HEADS * DIM
        weight = tl.exp(tl.sum(query * tl.load(key_ptr + row + dims), axis=0) * scale - largest)
        total += weight
        acc += weight * tl.load(value_ptr + row + dims)
    tl.store(out_ptr + sequence * HEADS * DIM + head * DIM + dims, acc / total)


@triton.jit
def windowed_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count from the newest token backwards: the first tile always holds a visible one."""
    sequence, dims = tl.program_id(0), tl.arange(0, DIM)
    seq_len = tl.load(lens_ptr + sequence)
    query = tl.load(query_ptr + sequence * DIM + dims)
    largest, total, acc = -1e30, 0.0, tl.zeros([DIM], dtype=tl.float32)
    for ago in range(0, WINDOW, TILE):
        back = ago + tl.arange(0, TILE)
        positions = seq_len - 1 - back
        visible = (positions >= 0) & (back < WINDOW)
        table = tables_ptr + sequence * table_stride + positions // BLOCK_SIZE
        row = (tl.load(table, mask=visible, other=0) * BLOCK_SIZE + positions % BLOCK_SIZE) * DIM
        at = row[:, None] + dims[None, :]
        key = tl.load(key_ptr + at, mask=visible[:, None], other=0.0)
        scores = tl.where(visible, tl.sum(query[None, :] * key, axis=1) * scale, -1e30)
        larger = tl.maximum(largest, tl.max(scores, axis=0))
        weights = tl.where(visible, tl.exp(scores - larger), 0.0)
        value = tl.load(value_ptr + at, mask=visible[:, None], other=0.0)
        total = total * tl.exp(largest - larger) + tl.sum(weights, axis=0)
        acc = acc * tl.exp(largest - larger) + tl.sum(weights[:, None] * value, axis=0)
        largest = larger
    tl.store(out_ptr + sequence * DIM + dims, acc / total)


@triton.jit
def padded_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One token at a time, so that no lane lacks one; what has no element joins the first one's address, masked."""
    sequence, lanes = tl.program_id(0), tl.arange(0, PADDED_DIM)
    real = lanes < HEAD_DIM
    dims = tl.where(real, lanes, 0)
    table_ptr = tables_ptr + sequence * table_stride
    query = tl.load(query_ptr + sequence * HEAD_DIM + dims, mask=real, other=0.0)
    largest, total, acc = float("-inf"), 0.0, tl.zeros([PADDED_DIM], dtype=tl.float32)
    for position in range(tl.load(lens_ptr + sequence)):
        row = _row(table_ptr, position, BLOCK_SIZE) * HEAD_DIM
        score = tl.sum(query * tl.load(key_ptr + row + dims, mask=real, other=0.0), axis=0) * scale
        larger = tl.maximum(largest, score)
        total = total * tl.exp(largest - larger) + tl.exp(score - larger)
        value = tl.load(value_ptr + row + dims, mask=real, other=0.0)
        acc = acc * tl.exp(largest - larger) + tl.exp(score - larger) * value
        largest = larger
    tl.store(out_ptr + sequence * HEAD_DIM + dims, acc / tl.maximum(total, 1e-30), mask=real)


@triton.jit
def one_read_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Tokens in lines and heads in columns, by ``tl.dot``; what has no token weighs nothing, whatever its score."""
    sequence, kv_head, dims, head = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM), tl.arange(0, ROWS)
    in_group = head * KV_HEADS < HEADS
    own = (sequence * KV_HEADS + kv_head) * (HEADS // KV_HEADS) * DIM + head[:, None] * DIM + dims[None, :]
    query = tl.load(query_ptr + own, mask=in_group[:, None], other=0.0)
    largest = tl.full([1, ROWS], -1e30, dtype=tl.float32)
    total, acc = tl.zeros([1, ROWS], dtype=tl.float32), tl.zeros([ROWS, DIM], dtype=tl.float32)
    table = tables_ptr + sequence * table_stride
    for start in range(0, tl.load(lens_ptr + sequence), TILE):
        positions = start + tl.arange(0, TILE)[:, None]
        seen = positions < tl.load(lens_ptr + sequence)
        block = tl.load(table + positions // BLOCK_SIZE, mask=seen, other=0)
        row = (block * BLOCK_SIZE + positions % BLOCK_SIZE) * KV_HEADS + kv_head
        key = tl.load(key_ptr + row * DIM + dims[None, :], mask=seen, other=0.0)
        value = tl.load(value_ptr + row * DIM + dims[None, :], mask=seen, other=0.0)
        scores = tl.where(seen, tl.dot(key, tl.trans(query), input_precision="ieee") * scale, -1e30)
        larger = tl.maximum(largest, tl.max(scores, axis=0, keep_dims=True))
        weights = tl.where(seen, tl.exp(scores - larger), 0.0)
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, axis=0, keep_dims=True)
        acc = acc * tl.trans(shrink) + tl.dot(tl.trans(weights), value, input_precision="ieee")
        largest = larger
    tl.store(out_ptr + own, acc / tl.trans(total), mask=in_group[:, None])


@triton.jit
def merge_splits(
    out_ptr, maxima_ptr, sums_ptr, accs_ptr,
    HEADS: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One split after another, from the last to the first, as the online softmax goes; empty ones are passed over."""
    sequence, head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM)
    first = sequence * HEADS * SPLITS + head * SPLITS
    largest, total, acc = -1e30, 0.0, tl.zeros([DIM], dtype=tl.float32)
    for back in range(1, SPLITS + 1):
        split = first + SPLITS - back
        added = tl.load(sums_ptr + split)
        if added > 0:
            maximum = tl.load(maxima_ptr + split)
            larger = tl.maximum(largest, maximum)
            total = total * tl.exp(largest - larger) + added * tl.exp(maximum - larger)
            acc = acc * tl.exp(largest - larger) + tl.load(accs_ptr + split * DIM + dims) * tl.exp(maximum - larger)
            largest = larger
    tl.store(out_ptr + sequence * HEADS * DIM + head * DIM + dims, acc / tl.maximum(total, 1e-30))


@triton.jit
def quantised_write(cache_ptr, scales_ptr, key_ptr, slots_ptr, KV_HEADS: tl.constexpr, DIM: tl.constexpr):
    """Leave padding at once, multiply by the inverse, round away from 0, and scale a row of zeros by 1."""
    token, head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM)
    slot = tl.load(slots_ptr + token)
    if slot != -1:
        key = tl.load(key_ptr + token * KV_HEADS * DIM + head * DIM + dims)
        largest = tl.maximum(tl.max(key, axis=0), -tl.min(key, axis=0))
        largest = tl.where(largest == 0, 127.0, largest)
        ratio = key * (127 / largest)
        nearest = tl.where(ratio < 0, ratio - 0.5, ratio + 0.5).to(tl.int32)
        tl.store(cache_ptr + slot * KV_HEADS * DIM + head * DIM + dims, nearest.to(tl.int8))
        tl.store(scales_ptr + slot * KV_HEADS + head, largest / 127)
