"""Attention on the CPU: decode by a kernel that walks the page table, prompts by gather and SDPA (chapter 08).

With more than one thread, where a sequence is cut into parts depends on the others in the batch, and with it the last
bits of its output.
"""

from __future__ import annotations

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.attention.cascade import (
    FLASH,
    MAX_QUERIES,
    Cascade,
    can_cascade,
    flash_dtype,
    gather,
    prefix_by_group,
)
from pagedattn_lab.attention.cpu_kernel import LOG2_E, TILE, Cache, as_array, merge, merge_range, run_part
from pagedattn_lab.attention.cpu_numbers import LANES
from pagedattn_lab.attention.reference import reference_attention
from pagedattn_lab.attention.variant import PLAIN, Variant

BYTES_PER_PART = 2**19
"""Bytes of keys that are worth one more thread: to wake it takes some 100 microseconds."""

QUERIES_AT_A_TIME = 64
"""Queries of a prompt that meet the keys up to the last of them: torch computes scores that a mask then takes away."""


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for all callers. numba's own would bring a second OpenMP, or refuse a second caller."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="paged-attention")


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive one


class Caches(NamedTuple):
    """One layer's keys and values, as torch sees them and as the kernel does."""

    key_cache: torch.Tensor
    value_cache: torch.Tensor
    key: Cache
    value: Cache

    @classmethod
    def of(cls, key_cache: torch.Tensor, value_cache: torch.Tensor) -> Caches:
        """View a layer's two tensors, without a copy."""
        return cls(key_cache, value_cache, Cache.of(key_cache), Cache.of(value_cache))


class _Prompt(NamedTuple):
    """A sequence that attends by gather and SDPA."""

    tokens: slice  # its queries, in the batch
    block_table: torch.Tensor  # [1, max_blocks_per_seq]
    seq_len: int
    blocks: torch.Tensor  # those that its queries see
    seen: slice  # which of the tokens in these blocks


class Plan:
    """What of a step is the same in all layers that attend in one way: made once, and used by each.

    Sequences of few query tokens go to the kernel, others by gather and SDPA. Sums are in float32, and results are
    rounded at the end; what is merged with a shared prefix, once before. Where the CPU has units for products of
    bfloat16 matrices, weights of values are rounded, too, except in the kernel. At most ``torch.get_num_threads()``
    threads take part.

    Args:
        num_heads: query heads.
        caches: those of one layer; all layers have the same shapes and strides.
        block_tables, seq_lens, query_start_loc, variant: as in :func:`pagedattn_lab.attention.paged_attention`.
        cascade: shared prefixes to be read once, where the variant allows it; what a step's metadata has.

    A plan has the kernel's working memory, so one thread at a time may attend by it.
    """

    def __init__(
        self,
        num_heads: int,
        caches: Caches,
        block_tables: torch.Tensor,
        seq_lens: torch.Tensor,
        query_start_loc: torch.Tensor,
        variant: Variant = PLAIN,
        cascade: Cascade | None = None,
    ) -> None:
        self.variant = variant
        self._prefixes: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
        if cascade is not None and can_cascade(variant):
            self._prefixes = cascade.prefixes
            block_tables, seq_lens = cascade.block_tables, cascade.seq_lens  # what is left of each sequence
        starts, lens = query_start_loc.numpy().astype(np.int64), seq_lens.numpy().astype(np.int64)
        query_lens = np.diff(starts)
        by_kernel = query_lens <= MAX_QUERIES
        if caches.key_cache.stride(3) != 1 or caches.value_cache.stride(3) != 1:
            by_kernel[:] = False  # the kernel reads a head's numbers as neighbours
        block_size, window = caches.key_cache.shape[1], variant.sliding_window
        self._prompts = [
            _prompt(starts[sequence : sequence + 2], block_tables[sequence : sequence + 1], length, block_size, window)
            for sequence, length in zip(np.flatnonzero(~by_kernel), lens[~by_kernel].tolist(), strict=True)
        ]
        if self._prompts:
            longest = max(prompt.seen.stop - prompt.seen.start for prompt in self._prompts)
            self._mask = _mask(longest, num_heads, caches.key_cache.shape[2], variant)

        token = np.flatnonzero(np.repeat(by_kernel, query_lens))
        sequence = np.repeat(np.arange(len(lens)), query_lens)[token]
        end = lens[sequence] - (starts[sequence + 1] - 1 - token)
        begin = np.maximum(end - (window or 2**62), 0)
        # A query token each: its index, that of its sequence, and which tokens it sees, from the first to before the
        # last.
        self._rows = np.stack([token, sequence, begin, end], axis=1)  # [num_rows, 4]
        self._tiles = np.zeros(len(token) + 1, np.int64)  # in which of all tiles each row begins
        np.cumsum((end - begin + TILE - 1) // TILE, out=self._tiles[1:])
        self._tables = np.ascontiguousarray(block_tables.numpy(), np.int32)

        key_bytes = int(self._tiles[-1]) * TILE * caches.key_cache[0, 0].numel() * caches.key_cache.itemsize
        self._parts = min(torch.get_num_threads(), 1 + key_bytes // BYTES_PER_PART)
        value_dim = caches.value_cache.shape[3]
        tops, totals = np.empty((2, len(token) + self._parts, num_heads), np.float32)
        accs = np.empty((len(token) + self._parts, num_heads + 1, cdiv(value_dim, LANES) * LANES), np.float32)
        self._sums = tops, totals, accs
        self._lse = torch.full((int(starts[-1]), num_heads), math.nan)
        self._options = (
            np.float32((variant.softcap or 0) * LOG2_E),
            _per_head(variant.alibi_slopes),
            _per_head(variant.sinks),
        )

    def attend(
        self, query: torch.Tensor, caches: Caches, scale: float, output: torch.Tensor, wants_lse: bool = False
    ) -> torch.Tensor:
        """Attend in one layer.

        Args:
            query: ``[num_tokens, num_heads, head_dim]``.
            caches: the layer's.
            scale: of scores.
            output: ``[num_tokens, num_heads, value_dim]``; it is written.
            wants_lse: whether log-sum-exps are needed.

        Returns:
            The log-sum-exp of each query's scores outside of shared prefixes, ``[num_tokens, num_heads]`` float32, to
            be used before the next call. Where it is not wanted, it may be NaN for a prompt.
        """
        variant, lse = self.variant, self._lse
        wants_lse = wants_lse or bool(self._prefixes)
        for prompt in self._prompts:
            queries, tokens = query[prompt.tokens], prompt.tokens
            if variant.softcap is not None or variant.sinks is not None or (wants_lse and FLASH is None):
                one = (queries, caches.key_cache, caches.value_cache, prompt.block_table)  # SDPA has none of these
                length, start = torch.tensor([prompt.seq_len]), torch.tensor([0, len(queries)])
                output[tokens], lse[tokens] = reference_attention(*one, length, start, scale, variant, return_lse=True)
            else:
                _attend_gathered(queries, caches, prompt, scale, self._mask, output[tokens], lse[tokens])
        if len(self._rows):
            softcap, slopes, sinks = self._options
            group, queries = query.shape[1] // caches.key_cache.shape[2], as_array(query.contiguous())
            common = (self._parts, self._rows, self._tiles)
            rest = (queries, caches.key, caches.value, self._tables, group, np.float32(scale * LOG2_E))
            arguments = (*common, *rest, softcap, slopes, *self._sums)
            others = [_pool().submit(run_part, part, *arguments) for part in range(1, self._parts)]
            run_part(0, *arguments)
            for other in others:
                other.result()
            merge(*common, sinks, *self._sums, as_array(output), lse.numpy())
        for tokens, blocks in self._prefixes:
            tensors = query.index_select(0, tokens), caches.key_cache, caches.value_cache, blocks
            ahead, ahead_lse = prefix_by_group(*tensors, scale, variant)
            ahead, ahead_lse = ahead.contiguous(), ahead_lse.contiguous()  # as fast as the merge can read
            merge_range(tokens.numpy(), as_array(ahead), ahead_lse.numpy(), as_array(output), lse.numpy())
        return lse


def _per_head(option: torch.Tensor | None) -> np.ndarray:
    return np.empty(0, np.float32) if option is None else option.detach().float().numpy() * np.float32(LOG2_E)


# --- prompts --------------------------------------------------------------------------------------------------------


def _prompt(
    starts: np.ndarray, block_table: torch.Tensor, seq_len: int, block_size: int, window: int | None
) -> _Prompt:
    """Say what one sequence's queries, from the first to before the last of ``starts``, see."""
    tokens = slice(*starts.tolist())
    num_queries = tokens.stop - tokens.start
    begin = 0 if window is None else max(0, seq_len - num_queries + 1 - window)  # what no query sees is not read
    skipped = begin // block_size
    blocks = block_table[0, skipped : cdiv(seq_len, block_size)].long()
    seen = slice(begin - skipped * block_size, seq_len - skipped * block_size)
    return _Prompt(tokens, block_table, seq_len, blocks, seen)


def _mask(longest: int, num_heads: int, num_kv_heads: int, variant: Variant) -> torch.Tensor:
    """Say what is added to the scores of queries that follow each other, so that it serves all prompts of a step.

    Returns:
        ``[1, 1 or num_kv_heads, QUERIES_AT_A_TIME * group, longest + QUERIES_AT_A_TIME]`` float32. Query ``i`` of
        ``QUERIES_AT_A_TIME`` is rows ``i * group`` and on. Column ``longest`` is the first query's own key.
    """
    group = num_heads // num_kv_heads
    distance = torch.arange(-longest, QUERIES_AT_A_TIME) - torch.arange(QUERIES_AT_A_TIME)[:, None]
    unseen = distance > 0
    if variant.sliding_window is not None:
        unseen |= distance <= -variant.sliding_window
    bias = torch.zeros(1, 1, 1, 1)
    if variant.alibi_slopes is not None:
        bias = variant.alibi_slopes.float().view(num_kv_heads, 1, group, 1) * distance[:, None]
    mask = bias.masked_fill(unseen[:, None], -math.inf)  # [1 or num_kv_heads, QUERIES_AT_A_TIME, 1 or group, columns]
    return mask.expand(-1, -1, group, -1).flatten(1, 2)[None]


def _attend_gathered(
    query: torch.Tensor,
    caches: Caches,
    prompt: _Prompt,
    scale: float,
    mask: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Attend for the last tokens of one sequence with torch's SDPA, over keys and values in one place.

    Args:
        query: ``[num_queries, num_heads, head_dim]``.
        caches, scale: as in :meth:`Plan.attend`.
        mask: see :func:`_mask`.
        output, lse: ``[num_queries, num_heads, value_dim]`` and ``[num_queries, num_heads]``; they are written. A
            log-sum-exp is NaN where torch keeps it to itself.
    """
    num_queries, num_heads, head_dim = query.shape
    compute = torch.float32 if FLASH is None else flash_dtype(query.dtype)
    key, value = (
        gather(cache, prompt.blocks)[prompt.seen].to(compute).transpose(0, 1)[None]
        for cache in (caches.key_cache, caches.value_cache)
    )  # with three dimensions SDPA would be several times slower
    group = num_heads // key.shape[1]
    heads = key.shape[1], group
    # All queries that meet one KV head are the rows of one matrix: [1, num_kv_heads, num_queries * group, head_dim].
    query = query.to(compute).contiguous()  # FLASH takes the numbers of a row for neighbours, and does not look
    rows = query.view(num_queries, *heads, head_dim).transpose(0, 1).flatten(1, 2)[None]
    value_dim, dim = value.shape[3], max(head_dim, value.shape[3])
    rows, key, value = (  # FLASH wants one width; zeros add nothing to a score
        x if x.shape[3] == dim else torch.nn.functional.pad(x, (0, dim - x.shape[3])) for x in (rows, key, value)
    )
    output, lse = output.unflatten(1, heads), lse.unflatten(1, heads)
    before, longest = key.shape[2] - num_queries, mask.shape[3] - QUERIES_AT_A_TIME
    for first in range(0, num_queries, QUERIES_AT_A_TIME):
        last = min(first + QUERIES_AT_A_TIME, num_queries)
        some, end = rows[:, :, first * group : last * group], before + last
        added = mask[:, :, : some.shape[2], longest - before - first : longest + last - first]
        tensors = some, key[:, :, :end], value[:, :, :end]
        if FLASH is None:
            part, part_lse = torch.nn.functional.scaled_dot_product_attention(*tensors, added, scale=scale), None
        else:
            part, part_lse = FLASH(*tensors, attn_mask=added, scale=scale)
        output[first:last] = part[0, :, :, :value_dim].unflatten(1, (-1, group)).transpose(0, 1)
        lse[first:last] = math.nan if part_lse is None else part_lse[0].unflatten(1, (-1, group)).transpose(0, 1)


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
    """Attend for a ragged batch by a plan of its own: see :class:`Plan`.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked, in float32 or bfloat16.
    With ``return_lse`` the log-sum-exp of each query's scores comes second, as :meth:`Plan.attend` gives it.
    """
    caches = Caches.of(key_cache, value_cache)
    plan = Plan(query.shape[1], caches, block_tables, seq_lens, query_start_loc, variant)
    output = query.new_empty(*query.shape[:2], value_cache.shape[3])
    lse = plan.attend(query, caches, scale, output, return_lse)
    return (output, lse) if return_lse else output
