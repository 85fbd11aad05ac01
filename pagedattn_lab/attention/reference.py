"""Paged attention in plain torch: the oracle that every other backend is compared with (chapter 04)."""

from __future__ import annotations

import torch


def reference_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Gather each sequence through its page table, then attend as if it had been contiguous all along.

    Arguments are those of :func:`pagedattn_lab.attention.paged_attention`, already checked. Half-precision inputs are
    computed in float32 and rounded once, at the end.
    """
    block_size = key_cache.shape[1]
    output = torch.empty_like(query)
    starts, lens = query_start_loc.tolist(), seq_lens.tolist()
    for sequence, seq_len in enumerate(lens):
        rows = slice(starts[sequence], starts[sequence + 1])
        positions = torch.arange(seq_len, device=query.device)
        blocks, offsets = block_tables[sequence, positions // block_size].long(), positions % block_size
        key, value = key_cache[blocks, offsets], value_cache[blocks, offsets]  # [seq_len, num_kv_heads, head_dim]
        output[rows] = _attend(query[rows], key, value, scale, softcap, sliding_window)
    return output


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    softcap: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend for one sequence whose queries are its last tokens. Shapes ``[tokens, heads, head_dim]``."""
    compute = torch.promote_types(query.dtype, torch.float32)
    query_len, num_heads, head_dim = query.shape
    seq_len, num_kv_heads, _ = key.shape
    # Query heads in groups of those that share a KV head: [query_len, num_kv_heads, group, head_dim].
    grouped = query.to(compute).reshape(query_len, num_kv_heads, num_heads // num_kv_heads, head_dim)
    # [num_kv_heads, group, query_len, seq_len]
    scores = torch.einsum("qkgd,skd->kgqs", grouped, key.to(compute)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(seq_len - query_len, seq_len, device=query.device)[:, None]
    others = torch.arange(seq_len, device=query.device)[None, :]
    visible = others <= position
    if sliding_window is not None:
        visible &= others > position - sliding_window
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
    return torch.einsum("kgqs,skd->qkgd", weights, value.to(compute)).reshape(query.shape).to(query.dtype)
