"""Attention on the CPU: decode by a kernel that walks the page table, prompts by gather and SDPA (chapter 08).

With more than one thread, where a sequence is cut into parts depends on the others in the batch, and with it the last
bits of its output.
"""

from __future__ import annotations

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.attention.cascade import MAX_QUERIES
from pagedattn_lab.attention.cpu_kernel import LOG2_E, TILE, Cache, as_array, merge, run_part
from pagedattn_lab.attention.reference import reference_attention
from pagedattn_lab.attention.variant import PLAIN, Variant

BYTES_PER_PART = 2**19
"""Bytes of keys that are worth one more thread: to wake it takes some 100 microseconds."""


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for all callers. numba's own would bring a second OpenMP, or refuse a second caller."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="paged-attention")


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive one


def _decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    rows: np.ndarray,
    scale: float,
    variant: Variant,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Attend for some query tokens, and write their rows of ``output`` and ``lse``.

    Args:
        rows: ``[num_rows, 4]`` int64, a query token each: its index, that of its sequence, and which tokens of the
            sequence it sees, from the first to before the last.
        query, key_cache, value_cache, block_tables, scale, variant, output, lse: as in :func:`cpu_attention`.
    """
    num_heads, value_dim = output.shape[1:]
    starts = np.zeros(len(rows) + 1, np.int64)  # in which of all tiles each row begins
    np.cumsum((rows[:, 3] - rows[:, 2] + TILE - 1) // TILE, out=starts[1:])
    key_bytes = int(starts[-1]) * TILE * key_cache[0, 0].numel() * key_cache.itemsize
    parts = min(torch.get_num_threads(), 1 + key_bytes // BYTES_PER_PART)
    tops, totals = np.empty((2, len(rows) + parts, num_heads), np.float32)
    accs = np.empty((len(rows) + parts, num_heads + 1, value_dim), np.float32)

    def per_head(option: torch.Tensor | None) -> np.ndarray:
        return np.empty(0, np.float32) if option is None else option.detach().float().numpy() * np.float32(LOG2_E)

    arguments = (
        rows,
        starts,
        np.ascontiguousarray(as_array(query)),
        Cache.of(key_cache),
        Cache.of(value_cache),
        np.ascontiguousarray(block_tables.numpy(), np.int32),
        num_heads // key_cache.shape[2],
        np.float32(scale * LOG2_E),
        np.float32((variant.softcap or 0) * LOG2_E),
        per_head(variant.alibi_slopes),
        tops,
        totals,
        accs,
    )
    others = [_pool().submit(run_part, part, parts, *arguments) for part in range(1, parts)]
    run_part(0, parts, *arguments)
    for other in others:
        other.result()
    merge(parts, rows, starts, per_head(variant.sinks), tops, totals, accs, as_array(output), lse.numpy())


# --- prompts --------------------------------------------------------------------------------------------------------


def _attend_gathered(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_len: int,
    scale: float,
    variant: Variant,
) -> torch.Tensor:
    """Attend for the last tokens of one sequence with torch's SDPA, over keys and values in one place, in float32.

    Args:
        query: ``[num_queries, num_heads, head_dim]``.
        block_table: ``[1, max_blocks_per_seq]``.
        key_cache, value_cache, seq_len, scale: as in :func:`cpu_attention`.
        variant: without softcap and sinks, which SDPA does not have.
    """
    window, block_size = variant.sliding_window, key_cache.shape[1]
    begin = 0 if window is None else max(0, seq_len - len(query) + 1 - window)  # what no query sees is not read
    skipped = begin // block_size
    blocks = block_table[0, skipped : cdiv(seq_len, block_size)].long()
    seen = slice(begin - skipped * block_size, seq_len - skipped * block_size)
    key, value = (cache[blocks].flatten(0, 1)[seen].float().transpose(0, 1) for cache in (key_cache, value_cache))
    mask = None
    if len(query) < seq_len or window is not None or variant.alibi_slopes is not None:
        position, others = torch.arange(seq_len - len(query), seq_len)[:, None], torch.arange(begin, seq_len)
        mask = others <= position  # [num_queries, num_keys]
        if window is not None:
            mask &= others > position - window
        if variant.alibi_slopes is not None:
            bias = variant.alibi_slopes.float()[:, None, None] * (others - position)
            mask = bias.masked_fill(~mask, -math.inf)
    output = torch.nn.functional.scaled_dot_product_attention(  # with three dimensions it would be several times slower
        query.float().transpose(0, 1)[None],
        key[None],
        value[None],
        mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return output[0].transpose(0, 1)


@torch.no_grad()
def cpu_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    variant: Variant = PLAIN,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend for a ragged batch: sequences of few query tokens by the kernel, others by gather and SDPA.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked, in float32 or bfloat16. All
    is computed in float32 and rounded once, at the end. At most ``torch.get_num_threads()`` threads take part.

    With ``return_lse`` the log-sum-exp of each query's scores comes second, ``[num_tokens, num_heads]`` float32. It may
    be NaN where a sequence has more than ``MAX_QUERIES`` queries: SDPA keeps it to itself, and no cascade asks for it.
    """
    output = query.new_empty(*query.shape[:2], value_cache.shape[3])
    lse = query.new_full(query.shape[:2], math.nan, dtype=torch.float32)
    starts, lens = query_start_loc.numpy().astype(np.int64), seq_lens.numpy().astype(np.int64)
    query_lens = np.diff(starts)
    by_kernel = query_lens <= MAX_QUERIES
    if key_cache.stride(3) != 1 or value_cache.stride(3) != 1:  # the kernel reads a head's numbers as neighbours
        by_kernel[:] = False
    for sequence in np.flatnonzero(~by_kernel):
        tokens = slice(starts[sequence], starts[sequence + 1])
        one = (query[tokens], key_cache, value_cache, block_tables[sequence : sequence + 1])
        wants_lse = return_lse and query_lens[sequence] <= MAX_QUERIES
        if wants_lse or variant.softcap is not None or variant.sinks is not None:  # SDPA has none of these
            length, start = torch.from_numpy(lens[sequence : sequence + 1]), torch.tensor([0, query_lens[sequence]])
            output[tokens], lse[tokens] = reference_attention(*one, length, start, scale, variant, return_lse=True)
        else:
            output[tokens] = _attend_gathered(*one, int(lens[sequence]), scale, variant)
    if by_kernel.any():
        token = np.flatnonzero(np.repeat(by_kernel, query_lens))
        sequence = np.repeat(np.arange(len(lens)), query_lens)[token]
        end = lens[sequence] - (starts[sequence + 1] - 1 - token)
        begin = np.maximum(end - (variant.sliding_window or 2**62), 0)
        rows = np.stack([token, sequence, begin, end], axis=1)
        _decode(query, key_cache, value_cache, block_tables, rows, scale, variant, output, lse)
    return (output, lse) if return_lse else output
