"""Decode with a tile of query heads: one program serves all heads that share a KV head (chapter 08).

The kernel of chapter 07 reads a KV head once for each query head that shares it. Here the heads of a group are the rows
of one tile, so a key is read once and serves them all, and the products run on tensor cores. These want at least 16
rows; a smaller group leaves rows empty, which costs little where memory is what limits.

A program may also take only a part of its sequence and leave a partial softmax, for :mod:`.triton_split` to merge.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagedattn_lab.attention.launch import launch
from pagedattn_lab.attention.triton_call import arguments, check, constants, tile_shape, tiles_of_heads
from pagedattn_lab.attention.triton_tile import LOG2E, attend, finish, load_part
from pagedattn_lab.attention.variant import PLAIN, Variant


@triton.jit
def paged_grouped_kernel(
    out_ptr,
    lse_ptr,
    max_ptr,
    sum_ptr,
    out_stride_token,
    out_stride_head,
    out_stride_split,
    query_ptr,
    key_ptr,
    value_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    slopes_ptr,
    sinks_ptr,
    k_scale_ptr,
    v_scale_ptr,
    scale,
    softcap,
    window,
    query_stride_token,
    query_stride_head,
    key_stride_block,
    key_stride_slot,
    key_stride_head,
    value_stride_block,
    value_stride_slot,
    value_stride_head,
    k_scale_stride_block,
    k_scale_stride_slot,
    k_scale_stride_head,
    v_scale_stride_block,
    v_scale_stride_slot,
    v_scale_stride_head,
    table_stride,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
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
    """Attend for sequence ``program_id(0)``, tile ``program_id(1)`` of heads, split ``program_id(2)`` of its tokens."""
    # Whatever a stride multiplies is int64: the product is an offset, and an offset may pass 2**31.
    sequence = tl.program_id(0).to(tl.int64)
    TILES: tl.constexpr = (GROUP + ROWS - 1) // ROWS  # tiles that one group of heads takes
    kv_head = (tl.program_id(1) // TILES).to(tl.int64)
    split = tl.program_id(2)
    member = tl.program_id(1) % TILES * ROWS + tl.arange(0, ROWS)  # of the group; this, heads and rows: [ROWS]
    real = member < GROUP
    heads = kv_head * GROUP + member
    rows = sequence * query_stride_token + heads * query_stride_head
    query = load_part(query_ptr, rows, real, 0, DIM, HEAD_DIM)  # [ROWS, DIM]
    query_rest = query
    if REST:
        query_rest = load_part(query_ptr, rows, real, DIM, REST, HEAD_DIM)  # [ROWS, REST]
    slopes = None
    if slopes_ptr is not None:
        slopes = tl.load(slopes_ptr + heads, mask=real, other=0.0).to(tl.float32) * LOG2E

    # The tiles that hold a token which the query sees, shared out evenly over the splits.
    seq_len = tl.load(seq_lens_ptr + sequence).to(tl.int32)
    first = 0
    if window is not None:
        first = tl.maximum(seq_len - window, 0) // TILE * TILE
    share = tl.cdiv(tl.cdiv(seq_len - first, TILE), SPLITS) * TILE
    begin = first + split * share
    acc, running_max, running_sum = attend(
        query,
        query_rest,
        tl.full([ROWS], 0, dtype=tl.int32) + (seq_len - 1),
        slopes,
        begin,
        tl.minimum(begin + share, seq_len),
        seq_len - 1,
        block_tables_ptr + sequence * table_stride,
        kv_head,
        key_ptr,
        value_ptr,
        k_scale_ptr,
        v_scale_ptr,
        (key_stride_block, key_stride_slot, key_stride_head),
        (value_stride_block, value_stride_slot, value_stride_head),
        (k_scale_stride_block, k_scale_stride_slot, k_scale_stride_head),
        (v_scale_stride_block, v_scale_stride_slot, v_scale_stride_head),
        scale,
        softcap,
        window,
        BLOCK_SIZE,
        TILE,
        ROWS,
        HEAD_DIM,
        DIM,
        REST,
        VALUE_DIM,
        PADDED_VALUE,
        VALUE_IN_KEY,
        K_PER_TOKEN,
        V_PER_TOKEN,
        WEIGHTS,
    )

    num_heads = tl.num_programs(1) // TILES * GROUP
    if SPLITS == 1:
        acc, lse = finish(acc, running_max, running_sum, sinks_ptr, heads, real)
        if lse_ptr is not None:
            tl.store(lse_ptr + sequence * num_heads + heads, lse, mask=real)
    else:  # a partial softmax: one maximum and one sum for each head and split
        partial = (sequence * num_heads + heads) * SPLITS + split
        tl.store(max_ptr + partial, running_max, mask=real)
        tl.store(sum_ptr + partial, running_sum, mask=real)
    out_rows = sequence * out_stride_token + heads * out_stride_head + split * out_stride_split
    dims = tl.arange(0, PADDED_VALUE)
    mask = real[:, None] & (dims < VALUE_DIM)[None, :]
    tl.store(out_ptr + out_rows[:, None] + dims[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


def launch_grouped(
    output: torch.Tensor,
    lse: torch.Tensor | None,
    partial_max: torch.Tensor | None,
    partial_sum: torch.Tensor | None,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    variant: Variant,
) -> None:
    """Launch the kernel, over whole sequences or over splits of them.

    Args:
        output: ``[num_seqs, num_heads, splits, value_dim]``; of more than one split, float32 and contiguous.
        lse: ``[num_seqs, num_heads]`` float32, contiguous, for the log-sum-exps of whole sequences; ``None`` if nobody
            asks for them, and with splits.
        partial_max, partial_sum: ``[num_seqs, num_heads, splits]`` float32, contiguous; ``None`` for one split.
        query: ``[num_seqs, num_heads, head_dim]``; the rest as in :func:`grouped_attention`.
    """
    group = query.shape[1] // key_cache.shape[2]
    launch(
        paged_grouped_kernel,
        (len(query), tiles_of_heads(query, key_cache, value_cache), output.shape[2]),
        output,
        lse,
        partial_max,
        partial_sum,
        *output.stride()[:3],
        *arguments(query, key_cache, value_cache, block_tables, seq_lens, scale, variant),
        SPLITS=output.shape[2],
        GROUP=group,
        **constants(query, key_cache, value_cache, variant),
        **tile_shape(query, key_cache, value_cache, rows=group),
    )


def grouped_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a batch, one query token a sequence and one program for each of its KV heads.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked, and ``lse``: float32,
    ``[num_seqs, num_heads]``, which the log-sum-exps of the scores are written to.

    Raises:
        ValueError: what :func:`pagedattn_lab.attention.triton_call.check` refuses.

    Example:
        >>> cache = torch.arange(3 * 2 * 16.0).reshape(3, 2, 1, 16)
        >>> tables, lens = torch.tensor([[2, 1]]), torch.tensor([3])
        >>> grouped_attention(torch.zeros(1, 4, 16), cache, cache, tables, lens, scale=1.0)[0, :, 0]
        tensor([58.6667, 58.6667, 58.6667, 58.6667])
    """
    check(query, key_cache, value_cache, block_tables)
    output = query.new_empty(len(query), query.shape[1], 1, value_cache.shape[3])
    launch_grouped(output, lse, None, None, query, key_cache, value_cache, block_tables, seq_lens, scale, variant)
    return output[:, :, 0]
