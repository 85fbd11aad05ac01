"""Prompts, chunks of prompts and decodes in one launch, straight from the page table (chapter 08).

A tile has as its rows the query tokens of one sequence, each with all query heads that share a KV head. So a key that
was read serves a whole tile of tokens and heads. Tiles of keys that no row of a tile sees, because they lie in its
future or behind its window, are not visited.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from pagedattn_lab.attention.launch import launch
from pagedattn_lab.attention.triton_call import arguments, check, constants, tile_shape
from pagedattn_lab.attention.triton_tile import LOG2E, attend, finish, load_part
from pagedattn_lab.attention.variant import PLAIN, Variant


@triton.jit
def sequence_of(tile, query_start_loc_ptr, num_seqs, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Find the sequence that a tile belongs to, by halving.

    Sequence ``i`` owns the tiles from number ``start[i] * GROUP // ROWS + i`` on. These are enough for its rows, since
    the one tile more makes up for what the division drops; how many are needed exactly only the GPU knows.
    """
    low = tl.full([], 0, dtype=tl.int32)
    high = low + num_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        first = tl.load(query_start_loc_ptr + middle).to(tl.int64) * GROUP // ROWS + middle
        if first <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def paged_prefill_kernel(
    out_ptr,
    lse_ptr,
    out_stride_token,
    out_stride_head,
    query_start_loc_ptr,
    num_seqs,
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
    CAUSAL: tl.constexpr,
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
    """Attend for tile ``program_id(0)`` of query tokens and heads, KV head ``program_id(1)``."""
    # Whatever a stride multiplies is int64: the product is an offset, and an offset may pass 2**31.
    tile = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    sequence = sequence_of(tile, query_start_loc_ptr, num_seqs, GROUP, ROWS)
    start = tl.load(query_start_loc_ptr + sequence).to(tl.int64)
    query_len = (tl.load(query_start_loc_ptr + sequence + 1) - start).to(tl.int32)
    first_row = ((tile - sequence - start * GROUP // ROWS) * ROWS).to(tl.int32)
    num_rows = query_len * GROUP
    if first_row >= num_rows:  # the one tile more was not needed
        return

    row = first_row + tl.arange(0, ROWS)  # of the sequence's tokens and heads; this, and what follows: [ROWS]
    real = row < num_rows
    heads = kv_head * GROUP + row % GROUP
    tokens = start + row // GROUP
    rows = tokens * query_stride_token + heads * query_stride_head
    query = load_part(query_ptr, rows, real, 0, DIM, HEAD_DIM)  # [ROWS, DIM]
    query_rest = query
    if REST:
        query_rest = load_part(query_ptr, rows, real, DIM, REST, HEAD_DIM)  # [ROWS, REST]
    slopes = None
    if slopes_ptr is not None:
        slopes = tl.load(slopes_ptr + heads, mask=real, other=0.0).to(tl.float32) * LOG2E

    # The queries are the sequence's last tokens. Of what its rows see, the first row begins it and the last ends it.
    seq_len = tl.load(seq_lens_ptr + sequence).to(tl.int32)
    before = seq_len - query_len
    begin = 0
    if window is not None:
        begin = tl.maximum(before + first_row // GROUP - window + 1, 0) // TILE * TILE
    # A row that is not real sees what the last one sees.
    query_position = before + tl.minimum(row, num_rows - 1) // GROUP
    end = before + (tl.minimum(first_row + ROWS, num_rows) - 1) // GROUP + 1
    if not CAUSAL:  # the queries come from behind these tokens, and see them all
        query_position = query_position * 0 + (seq_len - 1)
        end = seq_len
    acc, running_max, running_sum = attend(
        query,
        query_rest,
        query_position,
        slopes,
        begin,
        end,
        seq_len - 1,
        block_tables_ptr + sequence.to(tl.int64) * table_stride,
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
    acc, lse = finish(acc, running_max, running_sum, sinks_ptr, heads, real)
    if lse_ptr is not None:
        tl.store(lse_ptr + tokens * (tl.num_programs(1) * GROUP) + heads, lse, mask=real)
    out_rows = tokens * out_stride_token + heads * out_stride_head
    dims = tl.arange(0, PADDED_VALUE)
    mask = real[:, None] & (dims < VALUE_DIM)[None, :]
    tl.store(out_ptr + out_rows[:, None] + dims[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


def prefill_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
    lse: torch.Tensor | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attend for a ragged batch in which sequences have any number of query tokens, their last ones.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked, and ``lse`` as in
    :func:`pagedattn_lab.attention.triton_grouped.grouped_attention`. If not ``causal``, queries are no tokens of their
    sequence, but come after it and see all of it: so a prefix that several sequences share is read.

    Raises:
        ValueError: what :func:`pagedattn_lab.attention.triton_call.check` refuses.

    Example:
        >>> cache = torch.arange(3 * 2 * 16.0).reshape(3, 2, 1, 16)
        >>> tables, lens, starts = torch.tensor([[2, 1]]), torch.tensor([3]), torch.tensor([0, 2])
        >>> prefill_attention(torch.zeros(2, 1, 16), cache, cache, tables, lens, starts, scale=1.0)[:, 0, 0]
        tensor([72.0000, 58.6667])
    """
    check(query, key_cache, value_cache, block_tables)
    (num_tokens, num_heads, _), num_kv_heads = query.shape, key_cache.shape[2]
    group, num_seqs = num_heads // num_kv_heads, len(seq_lens)
    shape = tile_shape(query, key_cache, value_cache, rows=num_tokens * group)
    output = query.new_empty(num_tokens, num_heads, value_cache.shape[3])
    launch(
        paged_prefill_kernel,
        (num_tokens * group // shape["ROWS"] + num_seqs, num_kv_heads),
        output,
        lse,
        *output.stride()[:2],
        query_start_loc.contiguous(),
        num_seqs,
        *arguments(query, key_cache, value_cache, block_tables, seq_lens, scale, variant),
        CAUSAL=causal,
        GROUP=group,
        **constants(query, key_cache, value_cache, variant),
        **shape,
    )
    return output


def prefix_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    blocks: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with the queries of several sequences to blocks that each of them sees in full, in one launch.

    Arguments and results are those of :func:`pagedattn_lab.attention.cascade.prefix_product`. The blocks are taken for
    one sequence, and all queries come from behind it: so a tile of rows holds queries of many sequences.
    """
    num_tokens, device = len(query), query.device
    lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    seq_lens = torch.full((1,), len(blocks) * key_cache.shape[1], dtype=torch.int32, device=device)
    starts = torch.arange(2, dtype=torch.int32, device=device) * num_tokens
    without_sinks = replace(variant, sinks=None)
    tensors = (query, key_cache, value_cache, blocks[None], seq_lens, starts)
    return prefill_attention(*tensors, scale, without_sinks, lse, causal=False), lse
