"""Right answers to exercises 4 to 7 of chapter 07: the chapter's ``decode_kernel``, and with a few lines changed.

Only grading imports this module: the list of exercises waits for nothing, and Triton is published for Linux only.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def online_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decode one token of one head."""
    sequence, dims = tl.program_id(0), tl.arange(0, DIM)
    seq_len = tl.load(lens_ptr + sequence)
    query = tl.load(query_ptr + sequence * DIM + dims) * scale
    running_max, running_sum, acc = float("-inf"), 0.0, tl.zeros([DIM], dtype=tl.float32)
    for start in range(0, seq_len, TILE):
        positions = start + tl.arange(0, TILE)
        in_sequence = positions < seq_len
        block = tl.load(tables_ptr + sequence * table_stride + positions // BLOCK_SIZE, mask=in_sequence, other=0)
        slot = block * BLOCK_SIZE + positions % BLOCK_SIZE
        elements = slot[:, None] * DIM + dims[None, :]
        key = tl.load(key_ptr + elements, mask=in_sequence[:, None], other=0.0)
        scores = tl.where(in_sequence, tl.sum(query[None, :] * key, axis=1), float("-inf"))
        value = tl.load(value_ptr + elements, mask=in_sequence[:, None], other=0.0)
        new_max = tl.maximum(running_max, tl.max(scores, axis=0))
        rescale = tl.exp(running_max - new_max)
        weights = tl.exp(scores - new_max)
        acc = acc * rescale + tl.sum(weights[:, None] * value, axis=0)
        running_sum = running_sum * rescale + tl.sum(weights, axis=0)
        running_max = new_max
    tl.store(out_ptr + sequence * DIM + dims, acc / running_sum)


@triton.jit
def grouped_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decode one token: query heads of a group read the same KV head."""
    sequence, head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM)
    kv_head = head // (HEADS // KV_HEADS)
    own_row = (sequence * HEADS + head) * DIM
    seq_len = tl.load(lens_ptr + sequence)
    query = tl.load(query_ptr + own_row + dims) * scale
    running_max, running_sum, acc = float("-inf"), 0.0, tl.zeros([DIM], dtype=tl.float32)
    for start in range(0, seq_len, TILE):
        positions = start + tl.arange(0, TILE)
        in_sequence = positions < seq_len
        block = tl.load(tables_ptr + sequence * table_stride + positions // BLOCK_SIZE, mask=in_sequence, other=0)
        slot = block * BLOCK_SIZE + positions % BLOCK_SIZE
        elements = (slot * KV_HEADS + kv_head)[:, None] * DIM + dims[None, :]
        key = tl.load(key_ptr + elements, mask=in_sequence[:, None], other=0.0)
        scores = tl.where(in_sequence, tl.sum(query[None, :] * key, axis=1), float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=0))
        rescale = tl.exp(running_max - new_max)
        weights = tl.exp(scores - new_max)
        value = tl.load(value_ptr + elements, mask=in_sequence[:, None], other=0.0)
        acc = acc * rescale + tl.sum(weights[:, None] * value, axis=0)
        running_sum = running_sum * rescale + tl.sum(weights, axis=0)
        running_max = new_max
    tl.store(out_ptr + own_row + dims, acc / running_sum)


@triton.jit
def windowed_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decode one token that sees a window of the last ones."""
    sequence, dims = tl.program_id(0), tl.arange(0, DIM)
    seq_len = tl.load(lens_ptr + sequence)
    query = tl.load(query_ptr + sequence * DIM + dims) * scale
    running_max, running_sum, acc = float("-inf"), 0.0, tl.zeros([DIM], dtype=tl.float32)
    for start in range(0, seq_len, TILE):
        positions = start + tl.arange(0, TILE)
        visible = (positions < seq_len) & (positions >= seq_len - WINDOW)
        block = tl.load(tables_ptr + sequence * table_stride + positions // BLOCK_SIZE, mask=visible, other=0)
        slot = block * BLOCK_SIZE + positions % BLOCK_SIZE
        elements = slot[:, None] * DIM + dims[None, :]
        key = tl.load(key_ptr + elements, mask=visible[:, None], other=0.0)
        scores = tl.where(visible, tl.sum(query[None, :] * key, axis=1), float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=0))
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)  # no token seen yet: subtract 0
        rescale = tl.exp(running_max - finite_max)
        weights = tl.exp(scores - finite_max)
        value = tl.load(value_ptr + elements, mask=visible[:, None], other=0.0)
        acc = acc * rescale + tl.sum(weights[:, None] * value, axis=0)
        running_sum = running_sum * rescale + tl.sum(weights, axis=0)
        running_max = new_max
    tl.store(out_ptr + sequence * DIM + dims, acc / running_sum)


@triton.jit
def padded_decode(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decode one token, if there is one, and touch nothing else."""
    sequence, dims = tl.program_id(0), tl.arange(0, PADDED_DIM)
    real_dim = dims < HEAD_DIM
    seq_len = tl.load(lens_ptr + sequence)
    query = tl.load(query_ptr + sequence * HEAD_DIM + dims, mask=real_dim, other=0.0) * scale
    running_max, running_sum, acc = float("-inf"), 0.0, tl.zeros([PADDED_DIM], dtype=tl.float32)
    for start in range(0, seq_len, TILE):
        positions = start + tl.arange(0, TILE)
        in_sequence = positions < seq_len
        block = tl.load(tables_ptr + sequence * table_stride + positions // BLOCK_SIZE, mask=in_sequence, other=0)
        slot = block * BLOCK_SIZE + positions % BLOCK_SIZE
        elements = slot[:, None] * HEAD_DIM + dims[None, :]
        mask = in_sequence[:, None] & real_dim[None, :]
        key = tl.load(key_ptr + elements, mask=mask, other=0.0)
        scores = tl.where(in_sequence, tl.sum(query[None, :] * key, axis=1), float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=0))
        rescale = tl.exp(running_max - new_max)
        weights = tl.exp(scores - new_max)
        value = tl.load(value_ptr + elements, mask=mask, other=0.0)
        acc = acc * rescale + tl.sum(weights[:, None] * value, axis=0)
        running_sum = running_sum * rescale + tl.sum(weights, axis=0)
        running_max = new_max
    out = tl.where(running_sum > 0, acc / running_sum, 0.0)  # a row without a token has the sum 0
    tl.store(out_ptr + sequence * HEAD_DIM + dims, out, mask=real_dim)
