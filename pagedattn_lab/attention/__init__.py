"""Attention over a paged KV cache: one function, several backends (chapters 04, 07, 08)."""

from __future__ import annotations

import math

import torch

from pagedattn_lab.attention.backends import Call, check_name, choose
from pagedattn_lab.attention.cascade import can_cascade, plan_cascade
from pagedattn_lab.attention.checks import check_shapes, check_values
from pagedattn_lab.attention.variant import Variant, check_variant


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    query_start_loc: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    softcap: float | None = None,
    sliding_window: int | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal grouped-query attention of a ragged batch against keys and values scattered over blocks.

    The queries of a sequence are its last tokens; each sees every token of its sequence up to and including itself.
    Entries of ``block_tables`` past a sequence's last block, and slots past its last token, are never read.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``; ``num_heads // num_kv_heads`` neighbouring heads share a KV head.
        key_cache, value_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``, dtype of ``query``, float8_e4m3fn
            or int8. Values may have a head_dim of their own. A view will do: of latents that hold key and value in one,
            ``latent_cache[..., :rank]`` is the value cache.
        block_tables: ``[num_seqs, max_blocks_per_seq]`` int32 (int64 will do, here and in what follows).
        seq_lens: ``[num_seqs]`` int32, tokens in the cache, the queries' own included.
        query_start_loc: ``[num_seqs + 1]`` int32, where each sequence's queries start; ``None``: one query each.
        scale: factor on the scores; by default ``1 / sqrt(head_dim)``.
        backend: ``"reference"`` (plain torch), ``"cpu"`` (compiled by numba for this machine), ``"triton"`` (compiled
            on a GPU, interpreted elsewhere), ``"triton_decode"`` (chapter 07's kernel, which is there to be read), or
            ``"auto"``: Triton on a GPU, numba on a CPU where it is installed, else the reference.
        softcap, sliding_window, alibi_slopes, sinks, k_scale, v_scale: what a layer does besides; see
            :class:`pagedattn_lab.attention.variant.Variant`. Not every backend has all of them.

    Returns:
        ``[num_tokens, num_heads, head_dim]``, dtype of ``query``; the head_dim is that of the values.

    Raises:
        ValueError: shapes, dtypes, devices or lengths that do not fit together, a table entry that is no usable
            block, or an unknown backend. Values are checked on the CPU only: on a GPU, looking would stall it.
        ImportError: a Triton backend where Triton is not installed, or ``"cpu"`` where numba is not.
        NotImplementedError: the backend asked for lacks something that the call asks for.

    Source: Kwon et al. 2023, equation 4.

    Example:
        Two tokens in block 2 and one in block 1; with equal scores attention is the mean of the values.

        >>> key_cache = torch.zeros(3, 2, 1, 4)
        >>> value_cache = torch.arange(3 * 2 * 4.).reshape(3, 2, 1, 4)
        >>> tables, lens = torch.tensor([[2, 1]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
        >>> paged_attention(torch.ones(1, 1, 4), key_cache, value_cache, tables, lens)
        tensor([[[14.6667, 15.6667, 16.6667, 17.6667]]])
    """
    # Refuse what does not fit; of values only those on a CPU, since a GPU would have to be waited for.
    check_name(backend)
    if query_start_loc is None:
        query_start_loc = torch.arange(len(seq_lens) + 1, dtype=torch.int32, device=seq_lens.device)
    check_shapes(query, key_cache, value_cache, block_tables, seq_lens, query_start_loc)
    variant = Variant(softcap, sliding_window, alibi_slopes, sinks, k_scale, v_scale)
    check_variant(variant, query, key_cache)
    if query.device.type == "cpu":
        check_values(query, key_cache, block_tables, seq_lens, query_start_loc, variant)
    # Choose a backend, and run it: from here on nothing is checked but what the backend alone needs.
    call = Call.of(query, key_cache, value_cache, prompts=len(query) > len(seq_lens), variant=variant)
    chosen = choose(backend, call)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    cascade = None
    # Finding what sequences share looks at values, too.
    if query.device.type == "cpu" and chosen.prefix is not None and can_cascade(variant):
        rows, lens, query_lens = (tensor.tolist() for tensor in (block_tables, seq_lens, query_start_loc.diff()))
        cascade = plan_cascade(rows, lens, query_lens, key_cache.shape[1])
    arguments = (query, key_cache, value_cache, block_tables, seq_lens, query_start_loc)
    return chosen.attend(*arguments, scale, variant, cascade)
