"""Attention that reads a prefix once for all sequences that share it: cascade attention (chapter 08).

Sequences that begin with the same blocks attend to them together, as one matrix product of all their queries with
those keys, and each to its own tail apart. Softmax over two ranges of tokens, taken apart, is put together again with
the two log-sum-exps: :func:`merge_attention`, the same step as between two tiles of chapter 07.

Source: Ye et al. 2024, "Cascade Inference", flashinfer.ai; Juravsky et al. 2024, arXiv 2402.05099, section 3.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.attention.reference import dequantized
from pagedattn_lab.attention.shared_prefix import shared_prefixes
from pagedattn_lab.attention.variant import Variant

TOKENS_AT_A_TIME = 512
"""Tokens of a prefix that are gathered at a time, so that a long one needs little memory."""

MIN_SEQUENCES = 8
"""Fewer that share a prefix read it as fast each by itself: a matrix product of few rows is no faster than so many
passes, on a CPU whose arithmetic reading has not left idle for long."""

MAX_QUERIES = 4
"""A sequence with more query tokens reads its prefix once for all of them anyway, and on a GPU it takes no part. On a
CPU it does: keys are gathered first, so those of a prefix once for all, and no mask is needed there. Up to so many
queries, the CPU kernel reads keys faster, once for each query, than it could gather them."""

MIN_TOKENS_SAVED = 2048
"""A prefix that saves fewer tokens from being read costs as much as it saves: a pass of its own, and a merge."""

FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""torch's attention on a CPU, whose scores stay in the processor's caches, with log-sum-exps; private, so it may be
missing."""


def multiplies_bfloat16(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether torch multiplies bfloat16 matrices in units made for it, with sums in float32: AMX.

    It takes a CPU that has them, torch's code for AVX-512, which ``ATEN_CPU_CAPABILITY`` can turn off, and a oneDNN
    that may use them: ``ONEDNN_MAX_CPU_ISA`` can name an older set of instructions as the most.

    Example:
        >>> multiplies_bfloat16({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})
        False
    """
    most = environment.get("ONEDNN_MAX_CPU_ISA", "").upper()
    has_units = torch.cpu.get_capabilities().get("amx_bf16", False)
    is_used = torch.backends.cpu.get_cpu_capability() == "AVX512" and (most in ("", "ALL", "DEFAULT") or "AMX" in most)
    return has_units and is_used


MULTIPLIES_BFLOAT16 = multiplies_bfloat16()
"""Where this holds, :data:`FLASH` takes bfloat16 as it is, in half the time, and rounds the weights of values to
bfloat16, as tensor cores do."""


@dataclass(frozen=True)
class Cascade:
    """One step of a ragged batch, parted into shared prefixes and tails; it serves every layer of the step.

    Attributes:
        prefixes: for each shared prefix ``(tokens, blocks)``: which query tokens attend to it, and its blocks, both
            int64.
        block_tables, seq_lens: as in :func:`pagedattn_lab.attention.paged_attention`, of the tails alone.
    """

    prefixes: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    block_tables: torch.Tensor
    seq_lens: torch.Tensor


def plan_cascade(
    tables: Sequence[Sequence[int]],
    seq_lens: Sequence[int],
    query_lens: Sequence[int],
    block_size: int,
    device: torch.device | str = "cpu",
    min_sequences: int = MIN_SEQUENCES,
    min_tokens: int = MIN_TOKENS_SAVED,
) -> Cascade | None:
    """Find what the sequences of a step share, and part their page tables at the end of it.

    Args:
        tables: each sequence's row of the page table, all of one width. One that begins with the null block is of a
            window that has moved on, and shares nothing.
        seq_lens: tokens in the cache.
        query_lens: how many of each sequence's last tokens are queries. All blocks that end before the first of them
            can be shared, so a tail always holds a token; not on a GPU where there are more than :data:`MAX_QUERIES`.
        block_size: tokens per block.
        device: where the tensors go.
        min_sequences, min_tokens: how many sequences must share a prefix, and how many tokens it must save from being
            read, to be worth a pass of its own.

    Returns:
        ``None`` if no prefix is worth it.

    Example:
        >>> plan = plan_cascade([[5, 6, 7], [5, 6, 8]], [9, 12], [1, 1], block_size=4, min_sequences=2, min_tokens=8)
        >>> plan.block_tables[:, 0].tolist(), plan.seq_lens.tolist()
        ([7, 8], [1, 4])
    """
    if len(tables) < min_sequences:
        return None
    max_queries = math.inf if torch.device(device).type == "cpu" else MAX_QUERIES
    shareable = [
        list(row[: (seq_len - query_len) // block_size]) if query_len <= max_queries and row[0] != 0 else []
        for row, seq_len, query_len in zip(tables, seq_lens, query_lens, strict=True)
    ]
    prefixes = shared_prefixes(shareable, min_sequences, cdiv(min_tokens, block_size))
    if not prefixes:
        return None
    width = max(len(row) for row in tables)
    # What stands behind a sequence's last block is not looked at; it may be anything.
    used = [list(row[: cdiv(seq_len, block_size)]) for row, seq_len in zip(tables, seq_lens, strict=True)]
    rows, tail_lens = [row + [0] * (width - len(row)) for row in used], list(seq_lens)
    starts = [0, *itertools.accumulate(query_lens)]
    parts = []
    for prefix in prefixes:
        tokens: list[int] = []
        num_blocks = len(prefix.block_ids)
        for row in prefix.sequences:
            rows[row] = rows[row][num_blocks:] + [0] * num_blocks
            tail_lens[row] -= num_blocks * block_size
            tokens += range(starts[row], starts[row + 1])
        parts.append((torch.tensor(tokens, device=device), torch.tensor(prefix.block_ids, device=device)))
    tail_tables = torch.tensor(rows, dtype=torch.int32, device=device)
    return Cascade(tuple(parts), tail_tables, torch.tensor(tail_lens, dtype=torch.int32, device=device))


Prefix = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, Variant], tuple[torch.Tensor, torch.Tensor]
]
"""From ``(query, key_cache, value_cache, blocks, scale, variant)`` to output and log-sum-exps; see
:func:`prefix_product`, which is one."""


def cascade_attention(
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    prefix: Prefix,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    cascade: Cascade,
    query_start_loc: torch.Tensor,
    scale: float,
    variant: Variant,
) -> torch.Tensor:
    """Attend to tails with a backend, to shared prefixes with one product for all, and merge.

    Args:
        attend: a backend's function, called with ``return_lse=True``.
        prefix: how the queries of several sequences attend to blocks that each of them sees in full. A sink is left to
            the tails.
        query, key_cache, value_cache, query_start_loc, scale: as in :func:`pagedattn_lab.attention.paged_attention`.
        cascade: the step, parted; see :func:`plan_cascade`.
        variant: without a window and without ALiBi; see :func:`can_cascade`.
    """
    tails = (cascade.block_tables, cascade.seq_lens, query_start_loc, scale, variant)
    output, lse = attend(query, key_cache, value_cache, *tails, return_lse=True)
    for tokens, blocks in cascade.prefixes:
        ahead = prefix(query[tokens], key_cache, value_cache, blocks, scale, variant)
        merged, _ = merge_attention(*ahead, output[tokens], lse[tokens])
        output[tokens] = merged.to(output.dtype)
    return output


def can_cascade(variant: Variant) -> bool:
    """Whether each query sees all of a prefix, and in the same way as every other query does.

    Example:
        >>> can_cascade(Variant(softcap=30.0)), can_cascade(Variant(sliding_window=64))
        (True, False)
    """
    return variant.sliding_window is None and variant.alibi_slopes is None


def merge_attention(
    one: torch.Tensor, one_lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put together what the same queries found in two ranges of tokens, as if they had seen both at once.

    Args:
        one, other: ``[num_tokens, num_heads, head_dim]``, attention to each range alone.
        one_lse, other_lse: ``[num_tokens, num_heads]``, the logarithm of each range's sum of exponentiated scores.

    Returns:
        Output and log-sum-exp over both ranges.

    Source: vLLM's ``merge_attn_states``.

    Example:
        A range that weighs three times as much counts three times:

        >>> one, other = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
        >>> merge_attention(one, torch.zeros(1, 1), other, torch.full((1, 1), 3.0).log())[0]
        tensor([[[0.7500, 0.7500]]])
    """
    top = torch.maximum(one_lse, other_lse)
    one_weight, other_weight = torch.exp(one_lse - top), torch.exp(other_lse - top)
    total = one_weight + other_weight
    output = (one * one_weight[..., None] + other * other_weight[..., None]) / total[..., None]
    return output, top + torch.log(total)


def gather(cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Copy blocks of a cache to one place, ``[num_blocks * block_size, num_kv_heads, head_dim]``.

    Several times faster than ``cache[blocks]``: it copies a block at once, where that takes numbers one by one.
    """
    return cache.index_select(0, blocks).flatten(0, 1)


def flash_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what numbers of a dtype go to :data:`FLASH`: as they are, where the CPU has units for it, else in float32."""
    return dtype if dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16 else torch.promote_types(dtype, torch.float32)


def prefix_product(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    blocks: torch.Tensor,
    scale: float,
    variant: Variant,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with the queries of several sequences to blocks that each of them sees in full, as matrix products.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``, of all the sequences.
        key_cache, value_cache, scale, variant: as in :func:`pagedattn_lab.attention.paged_attention`; no sink counts.
        blocks: ``[num_blocks]`` int64, all of them full.

    Returns:
        ``[num_tokens, num_heads, value_dim]`` and ``[num_tokens, num_heads]``: the first in float32 or wider, but for
        what :data:`FLASH` has rounded to bfloat16; the second in float32 or wider.
    """
    output, lse = prefix_by_group(query, key_cache, value_cache, blocks, scale, variant)
    return output.transpose(1, 2).flatten(1, 2), lse.transpose(1, 2).flatten(1, 2)


def prefix_by_group(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    blocks: torch.Tensor,
    scale: float,
    variant: Variant,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what :func:`prefix_product` does, and leave results where :data:`FLASH` writes them.

    Returns:
        ``[num_tokens, group, num_kv_heads, value_dim]`` and ``[num_tokens, group, num_kv_heads]``: head
        ``kv_head * group + i`` stands at ``[:, i, kv_head]``.
    """
    (num_tokens, num_heads, head_dim), (_, block_size, num_kv_heads, _) = query.shape, key_cache.shape
    group = num_heads // num_kv_heads
    is_quantized = variant.k_scale is not None or variant.v_scale is not None
    by_flash = FLASH is not None and query.device.type == "cpu" and variant.softcap is None and not is_quantized
    by_flash = by_flash and key_cache.shape[3] == value_cache.shape[3]
    compute = flash_dtype(query.dtype) if by_flash else torch.promote_types(query.dtype, torch.float32)
    # All queries that meet one KV head are the rows of one matrix: [num_kv_heads, num_tokens * group, head_dim].
    rows = query.to(compute).contiguous().view(num_tokens, num_kv_heads, group, head_dim).transpose(0, 1).flatten(1, 2)
    result = None
    for some in blocks.split(max(1, TOKENS_AT_A_TIME // block_size)):
        key, value = gather(key_cache, some), gather(value_cache, some)
        if is_quantized:
            slots = some.repeat_interleave(block_size), torch.arange(block_size, device=some.device).repeat(len(some))
            key = dequantized(key, variant.k_scale, *slots, compute)
            value = dequantized(value, variant.v_scale, *slots, compute)
        tensors = rows[None], key.to(compute).transpose(0, 1)[None], value.to(compute).transpose(0, 1)[None]
        if by_flash:
            output, lse = FLASH(*tensors, scale=scale)
        else:
            output, lse = _product(*tensors, scale, variant.softcap)
        result = (output, lse) if result is None else merge_attention(*result, output, lse)
    assert result is not None  # a shared prefix has at least one block
    output, lse = (x[0].transpose(0, 1).unflatten(0, (num_tokens, group)) for x in result)
    return output, lse


def _product(
    rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with all rows to all keys, as :data:`FLASH` does: ``[1, num_kv_heads, num_rows, value_dim]`` and more."""
    scores = (rows * scale) @ key.transpose(2, 3)  # [1, num_kv_heads, num_rows, tokens]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    top = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(top).exp_()  # in place, and once for both results
    total = weights.sum(dim=-1, keepdim=True)
    return weights @ value / total, (top + total.log())[..., 0]
