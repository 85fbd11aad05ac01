"""Split-KV: several programs share one long sequence, and a second kernel merges their partial softmaxes (chapter 08).

A GPU with 132 multiprocessors and a batch of one sequence with 8 KV heads would leave 124 of them idle. So the tokens
of a sequence are shared out too. Each split leaves what an online softmax leaves in the middle of its loop, a sum of
weighted values, a maximum and a sum of weights, in float32; rescaled to one maximum they add up.

Source: Dao, Haziza, Massa and Sizov 2023, "Flash-Decoding for long-context inference", for splitting decode;
FlashInfer (Ye et al. 2025, arXiv 2501.01005) for splitting only while programs are fewer than a GPU holds at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.attention.launch import launch
from pagedattn_lab.attention.triton_call import check, padded, tiles_of_heads
from pagedattn_lab.attention.triton_grouped import grouped_attention, launch_grouped
from pagedattn_lab.attention.triton_tile import finish
from pagedattn_lab.attention.variant import PLAIN, Variant

MIN_SPLIT = 256
"""Tokens for each of which a split pays: it also writes and reads a partial result, 4 bytes for each element."""
MAX_SPLITS = 64
"""Partial results that the merge takes at once."""
WAVE = 4
"""Programs that a multiprocessor should have: it hides the waiting of one behind the others."""


def num_splits(programs: int, max_tokens: int, multiprocessors: int) -> int:
    """Choose how many programs share a sequence.

    As many as give every multiprocessor :data:`WAVE` programs, but no more than one for every :data:`MIN_SPLIT` tokens,
    rounded up, and no more than :data:`MAX_SPLITS`. A batch that fills the GPU by itself is not split: a merge would
    only cost.

    Args:
        programs: that there are without splitting: sequences times tiles of query heads.
        max_tokens: that a sequence may have; the longest one need not be asked for, which a GPU would have to wait for.
        multiprocessors: of the GPU.

    Source: the rules of others differ. vLLM 0.33 (Triton) cuts into 16 when programs are at most 128; FlashInfer
    searches the pages per split while programs are fewer than it can hold at once.

    Example:
        An H100 has 132. One sequence of 32,768 tokens with 8 KV heads; 64 of them; and one of 1,000 tokens:

        >>> num_splits(8, 32768, 132), num_splits(64 * 8, 32768, 132), num_splits(8, 1000, 132)
        (64, 2, 4)
        >>> num_splits(128 * 8, 32768, 132)
        1
    """
    return max(1, min(cdiv(WAVE * multiprocessors, programs), cdiv(max_tokens, MIN_SPLIT), MAX_SPLITS))


@triton.jit
def merge_splits_kernel(
    out_ptr,
    lse_ptr,
    out_stride_token,
    out_stride_head,
    acc_ptr,
    max_ptr,
    sum_ptr,
    sinks_ptr,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
):
    """Merge the partial softmaxes of sequence ``program_id(0)``, head ``program_id(1)``."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.arange(0, PADDED_SPLITS)  # this, maxima, sums and rescale: [PADDED_SPLITS]
    real = split < SPLITS
    partial = (sequence * tl.num_programs(1) + head) * SPLITS + split
    maxima = tl.load(max_ptr + partial, mask=real, other=float("-inf"))
    sums = tl.load(sum_ptr + partial, mask=real, other=0.0)
    # The last token is in some split, so the largest maximum is finite; a split without a token counts nothing.
    largest = tl.max(maxima, axis=0)
    rescale = tl.exp2(maxima - largest)
    dims = tl.arange(0, PADDED_VALUE)
    mask = real[:, None] & (dims < VALUE_DIM)[None, :]
    acc = tl.load(acc_ptr + partial[:, None] * VALUE_DIM + dims[None, :], mask=mask, other=0.0)
    acc = tl.sum(acc * rescale[:, None], axis=0)  # [PADDED_VALUE]
    # One row is a tile of one row. The sink takes part here, and not in each split.
    row = tl.arange(0, 1)
    total = tl.sum(sums * rescale, axis=0)
    acc, lse = finish(acc[None, :], largest + row, total + row, sinks_ptr, head + row, row == 0)
    if lse_ptr is not None:
        tl.store(lse_ptr + sequence * tl.num_programs(1) + head + row, lse)
    out_row = out_ptr + sequence * out_stride_token + head.to(tl.int64) * out_stride_head
    tl.store(out_row + dims[None, :], acc.to(out_ptr.dtype.element_ty), mask=(dims < VALUE_DIM)[None, :])


def decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
    splits: int | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a batch, one query token a sequence, with as many programs a sequence as suit the GPU.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked, and ``splits``, chosen by
    :func:`num_splits` if ``None``; ``lse`` is that of :func:`pagedattn_lab.attention.triton_grouped.grouped_attention`.
    The interpreter runs one program after the other, so it gets one split.

    Raises:
        ValueError: what :func:`pagedattn_lab.attention.triton_call.check` refuses, or splits that are not from 1 to
            :data:`MAX_SPLITS`.

    Example:
        >>> cache = torch.arange(3 * 2 * 16.0).reshape(3, 2, 1, 16)
        >>> tables, lens = torch.tensor([[2, 1]]), torch.tensor([3])
        >>> decode_attention(torch.zeros(1, 2, 16), cache, cache, tables, lens, scale=1.0, splits=2)[0, :, 0]
        tensor([58.6667, 58.6667])
    """
    check(query, key_cache, value_cache, block_tables)
    (num_seqs, num_heads, _), value_dim = query.shape, value_cache.shape[3]
    if splits is None:
        tokens = block_tables.shape[1] * key_cache.shape[1]
        if variant.sliding_window is not None:
            tokens = min(tokens, variant.sliding_window)
        programs = num_seqs * tiles_of_heads(query, key_cache, value_cache)
        splits = num_splits(programs, tokens, _multiprocessors(query.device))
    if not 1 <= splits <= MAX_SPLITS:
        raise ValueError(f"splits is {splits}: a sequence is shared by 1 to {MAX_SPLITS} programs")
    if splits == 1:
        return grouped_attention(query, key_cache, value_cache, block_tables, seq_lens, scale, variant, lse)
    acc = query.new_empty(num_seqs, num_heads, splits, value_dim, dtype=torch.float32)
    maxima, sums = query.new_empty(2, num_seqs, num_heads, splits, dtype=torch.float32)
    launch_grouped(acc, None, maxima, sums, query, key_cache, value_cache, block_tables, seq_lens, scale, variant)
    output = query.new_empty(num_seqs, num_heads, value_dim)
    partials = triton.next_power_of_2(splits) * padded(value_dim)
    launch(
        merge_splits_kernel,
        (num_seqs, num_heads),
        output,
        lse,
        *output.stride()[:2],
        acc,
        maxima,
        sums,
        None if variant.sinks is None else variant.sinks.contiguous(),
        SPLITS=splits,
        PADDED_SPLITS=triton.next_power_of_2(splits),
        VALUE_DIM=value_dim,
        PADDED_VALUE=padded(value_dim),
        num_warps=min(16, max(1, partials // 2048)),  # 64 registers for each of a warp's 32 threads
    )
    return output


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0
