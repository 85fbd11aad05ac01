"""Paged attention in plain torch: the oracle that every other backend is compared with (chapter 04)."""

from __future__ import annotations

import torch

from pagedattn_lab.attention.variant import PLAIN, Variant


def reference_attention(
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
    """Gather each sequence through its page table, then attend as if it had been contiguous all along.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked. Half-precision inputs are
    computed in float32 and rounded once, at the end; so are 8-bit caches.

    With ``return_lse`` the log-sum-exp of each query's scores comes second, ``[num_tokens, num_heads]`` in float32 or
    wider: what it takes to merge this with attention to other tokens.
    """
    block_size = key_cache.shape[1]
    output = query.new_empty(*query.shape[:2], value_cache.shape[3])
    starts, lens = query_start_loc.tolist(), seq_lens.tolist()
    compute = torch.promote_types(query.dtype, torch.float32)
    lse = query.new_empty(query.shape[:2], dtype=compute)
    for sequence, seq_len in enumerate(lens):
        rows = slice(starts[sequence], starts[sequence + 1])
        # What is behind the window of the first query is not read: the page table may name the null block there.
        begin = max(0, seq_len - (rows.stop - rows.start) + 1 - (variant.sliding_window or seq_len))
        positions = torch.arange(begin, seq_len, device=query.device)
        blocks, offsets = block_tables[sequence, positions // block_size].long(), positions % block_size
        # [seq_len, num_kv_heads, head_dim]
        key = dequantized(key_cache[blocks, offsets], variant.k_scale, blocks, offsets, compute)
        value = dequantized(value_cache[blocks, offsets], variant.v_scale, blocks, offsets, compute)
        output[rows], lse[rows] = _attend(query[rows].to(compute), key, value, scale, variant)
    return (output, lse) if return_lse else output


def dequantized(
    rows: torch.Tensor, scale: torch.Tensor | None, blocks: torch.Tensor, offsets: torch.Tensor, compute: torch.dtype
) -> torch.Tensor:
    """Give what was read from a cache the values that it stands for.

    Args:
        rows: ``[num_tokens, num_kv_heads, head_dim]``.
        scale: of one element, or ``[num_blocks, block_size, num_kv_heads]``; ``None`` for a cache that is not 8-bit.
        blocks, offsets: ``[num_tokens]``, where each row was.
        compute: the dtype of the result.
    """
    rows = rows.to(compute)
    if scale is None:
        return rows
    return rows * (scale if scale.numel() == 1 else scale[blocks, offsets][..., None])


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, variant: Variant
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend for one sequence whose queries are its last tokens. Shapes ``[tokens, heads, head_dim]``.

    Returns:
        The outputs, and the log-sum-exp of the scores, ``[query_len, num_heads]``.
    """
    query_len, num_heads, head_dim = query.shape
    seq_len, num_kv_heads, _ = key.shape
    # Query heads in groups of those that share a KV head: [query_len, num_kv_heads, group, head_dim].
    grouped = query.reshape(query_len, num_kv_heads, num_heads // num_kv_heads, head_dim)
    # [num_kv_heads, group, query_len, seq_len]
    scores = torch.einsum("qkgd,skd->kgqs", grouped, key) * scale
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    position = torch.arange(seq_len - query_len, seq_len, device=query.device)[:, None]
    others = torch.arange(seq_len, device=query.device)[None, :]
    visible = others <= position
    if variant.sliding_window is not None:
        visible &= others > position - variant.sliding_window
    if variant.alibi_slopes is not None:
        slopes = variant.alibi_slopes.to(scores.dtype).reshape(num_kv_heads, -1, 1, 1)
        scores = scores + slopes * (others - position)
    scores = scores.masked_fill(~visible, float("-inf"))
    if variant.sinks is not None:  # one more column, for a token whose value is nothing
        sinks = variant.sinks.to(scores.dtype).reshape(num_kv_heads, -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(-1, -1, query_len, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :seq_len]
    output = torch.einsum("kgqs,skd->qkgd", weights, value).reshape(query_len, num_heads, -1)
    return output, torch.logsumexp(scores, dim=-1).flatten(0, 1).T
