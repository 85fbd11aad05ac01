"""What the fast Triton kernels share: a tile of queries walks a page table, tile of tokens by tile (chapter 08).

The rows of a tile of queries belong to one KV head, so that they all want the same keys and values: they are the query
heads that share it, of one token or of several. Scores and output are then products of matrices, which ``tl.dot`` gives
to the tensor cores.

Everything that a score is made of is multiplied by log2(e) beforehand: ``exp2`` of it is then the exponential that a
softmax wants, and the one power that a GPU has an instruction for.

Source: FlashAttention 2 (Dao 2023, arXiv 2307.08691) for the order of the loops; the argument list of vLLM's
``vllm/v1/attention/ops/triton_unified_attention.py``, release 0.33.0, for what a tile may be asked.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
"""log2(e): ``exp(x) = exp2(x * LOG2E)``."""


@triton.jit
def load_part(ptr, rows, mask, FIRST: tl.constexpr, WIDTH: tl.constexpr, LIMIT: tl.constexpr):
    """Load elements ``FIRST`` to ``FIRST + WIDTH`` of each row, 0 where ``mask`` (or ``None``) or ``LIMIT`` says no.

    ``rows`` are offsets, ``[N]`` int64; the result is ``[N, WIDTH]``.
    """
    dims = FIRST + tl.arange(0, WIDTH)
    pointers = ptr + rows[:, None] + dims[None, :]
    if FIRST + WIDTH > LIMIT:  # WIDTH is padded: head_dim is no sum of the powers of two that tiles are made of
        real = dims[None, :] < LIMIT
        return tl.load(pointers, mask=real if mask is None else mask[:, None] & real, other=0.0)
    elif mask is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=mask[:, None], other=0.0)


@triton.jit
def scale_of_all(scale_ptr, PER_TOKEN: tl.constexpr):
    """The scale of a whole cache: 1 for one that has none, or one for each token."""
    scale = 1.0
    if scale_ptr is not None and not PER_TOKEN:
        scale = tl.load(scale_ptr)
    return scale


@triton.jit
def offsets(block, slot, head, strides):
    """Where each token's row of a cache begins, ``[TILE]`` int64; ``strides`` are of block, slot and head."""
    return block * strides[0] + slot * strides[1] + head * strides[2]


@triton.jit
def masked_scores(scores, query_position, positions, slopes, softcap, window):
    """Turn scaled scores in base 2, ``[ROWS, TILE]``, into what the softmax takes: minus infinity where unseen.

    Args are the position of each row's token, ``[ROWS]``; the tile's positions, ``[TILE]``; and what the layer does
    besides, each in base 2 or ``None``: slopes, ``[ROWS]``; the cap; the window in tokens.
    """
    if softcap is not None:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        scores = softcap * (1 - 2 / (tl.exp2(scores * (2 * LOG2E / softcap)) + 1))
    distance = positions[None, :] - query_position[:, None]  # [ROWS, TILE], negative in the past
    seen = distance <= 0
    if window is not None:
        seen = seen & (distance > -window)
    if slopes is not None:
        scores += slopes[:, None] * distance.to(tl.float32)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def attend(
    query,
    query_rest,
    query_position,
    slopes,
    begin,
    end,
    last,
    table_row,
    kv_head,
    key_ptr,
    value_ptr,
    k_scale_ptr,
    v_scale_ptr,
    key_strides,
    value_strides,
    k_scale_strides,
    v_scale_strides,
    scale,
    softcap,
    window,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    REST: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    VALUE_IN_KEY: tl.constexpr,
    K_PER_TOKEN: tl.constexpr,
    V_PER_TOKEN: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """Let a tile of queries attend to the tokens from ``begin``, a multiple of ``TILE``, to ``end`` of one sequence.

    Args:
        query: ``[ROWS, DIM]``, the first ``DIM`` elements of each query.
        query_rest: ``[ROWS, REST]``, those after them; anything where ``REST`` is 0.
        query_position: ``[ROWS]``, which token of the sequence each row is.
        last: the sequence's last position; no lane reads past it.
        table_row: pointer to the sequence's row of the page table.

    Returns:
        The sum of values times weights, ``[ROWS, PADDED_VALUE]``; the largest score of each row in base 2, ``[ROWS]``;
        and the sum of its weights, ``[ROWS]``: a softmax that is not yet divided, and can be merged with others.
    """
    scale *= scale_of_all(k_scale_ptr, K_PER_TOKEN)
    running_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    running_sum = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, PADDED_VALUE], dtype=tl.float32)
    if window is not None:
        first = tl.maximum(tl.min(query_position, axis=0) - window + 1, 0)  # that any of the rows sees
    for start in range(begin, end, TILE):
        positions = start + tl.arange(0, TILE)
        # A lane past the end reads the last token once more, which is there, and weighs nothing: no load needs a mask.
        there = tl.minimum(positions, last)
        if window is not None:  # nor does one behind the window, whose block may be another's by now
            there = tl.maximum(there, first)
        # Where block size is a multiple of the tile, one look-up serves all of its tokens.
        block = tl.load(table_row + (start if BLOCK_SIZE % TILE == 0 else there) // BLOCK_SIZE).to(tl.int64)
        slot = (there % BLOCK_SIZE).to(tl.int64)  # [TILE]

        key_rows = offsets(block, slot, kv_head, key_strides)
        key = load_part(key_ptr, key_rows, None, 0, DIM, HEAD_DIM)  # [TILE, DIM]
        scores = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee")  # [ROWS, TILE] float32
        if REST:
            rest = load_part(key_ptr, key_rows, None, DIM, REST, HEAD_DIM)  # [TILE, REST]
            scores = tl.dot(query_rest, tl.trans(rest.to(query.dtype)), scores, input_precision="ieee")
        scores *= scale
        if K_PER_TOKEN:
            scores *= tl.load(k_scale_ptr + offsets(block, slot, kv_head, k_scale_strides))[None, :]
        scores = masked_scores(scores, query_position, positions, slopes, softcap, window)

        # Online softmax. A row that has seen nothing yet has no maximum: its weights are exp2(-inf - 0) = 0.
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        rescale = tl.exp2(running_max - shift)
        weights = tl.exp2(scores - shift[:, None])
        running_sum = running_sum * rescale + tl.sum(weights, axis=1)
        running_max = new_max

        if V_PER_TOKEN:
            weights *= tl.load(v_scale_ptr + offsets(block, slot, kv_head, v_scale_strides))[None, :]
        if VALUE_IN_KEY:  # latent attention: the value is the key's first DIM elements, and here already
            value = key
        else:
            value_rows = offsets(block, slot, kv_head, value_strides)
            value = load_part(value_ptr, value_rows, None, 0, PADDED_VALUE, VALUE_DIM)  # [TILE, PADDED_VALUE]
        acc = tl.dot(weights.to(WEIGHTS), value.to(WEIGHTS), acc * rescale[:, None], input_precision="ieee")
    return acc * scale_of_all(v_scale_ptr, V_PER_TOKEN), running_max, running_sum


@triton.jit
def finish(acc, running_max, running_sum, sinks_ptr, heads, real):
    """Divide a softmax that has seen all of its tokens, ``[ROWS, PADDED_VALUE]``; its sink takes part here, once.

    ``heads`` are the query head of each row, ``[ROWS]``, where ``real``. Second comes the log-sum-exp of each row.
    """
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + heads, mask=real, other=0.0).to(tl.float32) * LOG2E
        new_max = tl.maximum(running_max, sink)
        rescale = tl.exp2(running_max - new_max)
        acc *= rescale[:, None]
        running_sum = running_sum * rescale + tl.exp2(sink - new_max)
        running_max = new_max
    return acc / running_sum[:, None], (running_max + tl.log2(running_sum)) / LOG2E
