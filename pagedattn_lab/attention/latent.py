"""Multi-head latent attention over a paged cache, without making keys and values from the latents (chapter 11).

A layer with latents keeps one vector ``c`` of a token for all its heads, and makes a key ``W_UK c`` and a value
``W_UV c`` of it for each head. A score ``q · (W_UK c)`` equals ``(W_UKᵀ q) · c``, and a mean of ``W_UV c`` equals
``W_UV`` times the mean of ``c``. So the matrices can be applied to the query before attention and to the output after
it: between the two, every head reads the same latents, as under multi-query attention with one KV head.

Rotary embedding would stand between the two matrices of a score, and cannot be moved. So each token has a second, short
key, rotated and shared by all heads, which lies behind the latent. Values have no part in it.

Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, section 2.1.2 and appendix C.
"""

from __future__ import annotations

import math

import torch

from pagedattn_lab.attention import paged_attention


def absorbed_query(query: torch.Tensor, w_uk: torch.Tensor) -> torch.Tensor:
    """Turn queries for the keys of each head into queries for latents.

    Args:
        query: ``[num_tokens, num_heads, nope_dim + rope_dim]``, the part for the rotated key last.
        w_uk: ``[num_heads, nope_dim, rank]``, which make a head's key of a latent.

    Returns:
        ``[num_tokens, num_heads, rank + rope_dim]``.
    """
    nope_dim = w_uk.shape[1]
    return torch.cat([torch.einsum("thn,hnr->thr", query[..., :nope_dim], w_uk), query[..., nope_dim:]], dim=-1)


def expanded_output(output: torch.Tensor, w_uv: torch.Tensor) -> torch.Tensor:
    """Turn means of latents into means of the values that each head makes of them.

    Args:
        output: ``[num_tokens, num_heads, rank]``.
        w_uv: ``[num_heads, value_dim, rank]``, which make a head's value of a latent.

    Returns:
        ``[num_tokens, num_heads, value_dim]``.
    """
    return torch.einsum("thr,hvr->thv", output, w_uv)


def latent_attention(
    query: torch.Tensor,
    latent_cache: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    query_start_loc: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attend as if each head's keys and values had been made of the latents, which are read through the page table.

    Args:
        query: ``[num_tokens, num_heads, nope_dim + rope_dim]``, the part for the rotated key last, and rotated.
        latent_cache: ``[num_blocks, block_size, 1, rank + rope_dim]``: a token's latent, and behind it its rotated key.
        w_uk: ``[num_heads, nope_dim, rank]``, which make a head's key of a latent.
        w_uv: ``[num_heads, value_dim, rank]``, which make a head's value of a latent.
        block_tables, seq_lens, query_start_loc, backend: as in :func:`pagedattn_lab.attention.paged_attention`.
        scale: factor on the scores; by default ``1 / sqrt(nope_dim + rope_dim)``, the width of the keys that are never
            made.

    Returns:
        ``[num_tokens, num_heads, value_dim]``, dtype of ``query``.

    Raises:
        ValueError: shapes that do not fit together, or what ``paged_attention`` refuses.

    Example:
        Equal scores make the mean of two latents, (2, 3); the head's value is their sum.

        >>> latent_cache = torch.tensor([[0., 0, 0], [1, 2, 0], [3, 4, 0]]).reshape(3, 1, 1, 3)
        >>> tables, lens = torch.tensor([[2, 1]], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
        >>> query, w_uk, w_uv = torch.zeros(1, 1, 4 + 1), torch.ones(1, 4, 2), torch.ones(1, 1, 2)
        >>> latent_attention(query, latent_cache, w_uk, w_uv, tables, lens)
        tensor([[[5.]]])
    """
    all_3d = query.dim() == w_uk.dim() == w_uv.dim() == 3
    if not all_3d or not query.shape[1] == len(w_uk) == len(w_uv) or w_uk.shape[2] != w_uv.shape[2]:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, w_uk {tuple(w_uk.shape)} and w_uv {tuple(w_uv.shape)}: "
            "[num_tokens, num_heads, nope_dim + rope_dim], [num_heads, nope_dim, rank] and "
            "[num_heads, value_dim, rank] are needed"
        )
    nope_dim, rank = w_uk.shape[1:]
    if latent_cache.shape[2:] != (1, rank + query.shape[2] - nope_dim):
        raise ValueError(
            f"latent_cache has shape {tuple(latent_cache.shape)}: [num_blocks, block_size, 1, rank + rope_dim] is "
            f"needed, with 1 and {rank} + {query.shape[2] - nope_dim} here"
        )
    output = paged_attention(
        absorbed_query(query, w_uk),
        latent_cache,
        latent_cache[..., :rank],
        block_tables,
        seq_lens,
        query_start_loc=query_start_loc,
        scale=1 / math.sqrt(query.shape[2]) if scale is None else scale,
        backend=backend,
    )
    return expanded_output(output, w_uv)
