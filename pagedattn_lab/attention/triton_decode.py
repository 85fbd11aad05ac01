"""A Triton kernel that walks the page table (chapter 07).

One program computes one query token of one query head. It goes through the sequence's tokens tile by tile, looks up
each token's block, and keeps a running (online) softmax, so it needs neither the scores of all tokens at once nor the
sequence gathered in one place.

Source: Kwon et al. 2023, section 5.1, for the idea of a kernel that reads through the table; Milakov and Gimelshein
2018, arXiv 1805.02867, for the online softmax. Chapter 08 makes it fast.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagedattn_lab.attention.launch import launch

TILE_ELEMENTS = 8192
"""Elements of a key tile: with 128 threads, 64 registers each in float32."""


@triton.jit
def paged_decode_kernel(
    out_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    block_tables_ptr,
    context_lens_ptr,
    sequence_ptr,
    scale,
    out_stride_token,
    out_stride_head,
    query_stride_token,
    query_stride_head,
    key_stride_block,
    key_stride_slot,
    key_stride_head,
    value_stride_block,
    value_stride_slot,
    value_stride_head,
    table_stride,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attend for query token ``program_id(0)`` of head ``program_id(1)``; see :func:`triton_attention`."""
    # Whatever a stride multiplies is int64: the product is an offset, and an offset may pass 2**31.
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    kv_head = head // QUERIES_PER_KV
    sequence = tl.load(sequence_ptr + token).to(tl.int64)
    context_len = tl.load(context_lens_ptr + token)

    dims = tl.arange(0, PADDED_DIM)  # this, query and acc: [PADDED_DIM]
    real_dim = dims < HEAD_DIM
    query_row = query_ptr + token * query_stride_token + head * query_stride_head
    query = tl.load(query_row + dims, mask=real_dim, other=0.0).to(tl.float32) * scale

    running_max = float("-inf")
    running_sum = 0.0
    acc = tl.zeros([PADDED_DIM], dtype=tl.float32)
    for start in range(0, context_len, TILE):
        positions = start + tl.arange(0, TILE)  # this, block, slot, scores and weights: [TILE]
        in_sequence = positions < context_len
        table_row = block_tables_ptr + sequence * table_stride
        block = tl.load(table_row + positions // BLOCK_SIZE, mask=in_sequence, other=0).to(tl.int64)
        slot = (positions % BLOCK_SIZE).to(tl.int64)
        mask = in_sequence[:, None] & real_dim[None, :]  # this, key and value: [TILE, PADDED_DIM]

        key_rows = key_ptr + block * key_stride_block + slot * key_stride_slot + kv_head * key_stride_head
        key = tl.load(key_rows[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
        scores = tl.sum(query[None, :] * key, axis=1)
        scores = tl.where(in_sequence, scores, float("-inf"))

        # Online softmax: a larger maximum shrinks what has been summed so far.
        new_max = tl.maximum(running_max, tl.max(scores, axis=0))
        rescale = tl.exp(running_max - new_max)
        weights = tl.exp(scores - new_max)

        value_rows = value_ptr + block * value_stride_block + slot * value_stride_slot + kv_head * value_stride_head
        value = tl.load(value_rows[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
        acc = acc * rescale + tl.sum(weights[:, None] * value, axis=0)
        running_sum = running_sum * rescale + tl.sum(weights, axis=0)
        running_max = new_max

    out_row = out_ptr + token * out_stride_token + head * out_stride_head
    tl.store(out_row + dims, (acc / running_sum).to(out_ptr.dtype.element_ty), mask=real_dim)


def tile_size(head_dim: int) -> int:
    """Tokens that the kernel takes at a time: as many as keep a key tile within :data:`TILE_ELEMENTS`, at most 128.

    Example:
        >>> tile_size(64), tile_size(80), tile_size(256)
        (128, 64, 32)
    """
    return min(128, TILE_ELEMENTS // triton.next_power_of_2(head_dim))


def triton_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Run the kernel over a ragged batch.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked. A query in the middle of
    a prompt sees the tokens up to itself, as if the sequence ended there: each query token gets a context length of
    its own, and prefill needs no second kernel. It reads the keys once per query, though, where a prefill kernel
    would share them.

    Raises:
        ValueError: an inner dimension that is not contiguous, float64, a head_dim too large for one tile, or rows of
            ``block_tables`` so wide that a position in the sequence may not fit int32.
    """
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"the triton kernel takes float32, float16 and bfloat16, not {query.dtype}")
    for name, tensor in (("query", query), ("key_cache", key_cache), ("value_cache", value_cache)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} along head_dim: make it contiguous there")
    num_tokens, num_heads, head_dim = query.shape
    if head_dim > TILE_ELEMENTS:
        raise ValueError(f"head_dim is {head_dim}: the triton kernel takes at most {TILE_ELEMENTS}")
    block_size, num_kv_heads = key_cache.shape[1:3]
    capacity = block_tables.shape[1] * block_size
    if capacity >= 2**31 - tile_size(1):
        raise ValueError(f"a row of block_tables holds {capacity} tokens: the triton kernel counts them in int32")
    block_tables, query_lens = block_tables.contiguous(), query_start_loc.diff()
    sequence = torch.repeat_interleave(query_lens, output_size=num_tokens)
    # Token t of a sequence whose queries end at query_start_loc[i + 1] has that many successors among the queries.
    successors = query_start_loc[1:][sequence] - 1 - torch.arange(num_tokens, device=query.device)
    context_lens = (seq_lens[sequence] - successors).int()
    output = torch.empty_like(query)
    launch(
        paged_decode_kernel,
        (num_tokens, num_heads),
        output,
        query,
        key_cache,
        value_cache,
        block_tables,
        context_lens,
        sequence,
        scale,
        *output.stride()[:2],
        *query.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        block_tables.stride(0),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        QUERIES_PER_KV=num_heads // num_kv_heads,
        TILE=tile_size(head_dim),
    )
    return output
