"""Attention over a paged KV cache: one function, several backends (chapters 04, 07, 08)."""

from __future__ import annotations

import math

import torch

from pagedattn_lab.attention.reference import reference_attention

BACKENDS = ("auto", "reference", "triton")


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
) -> torch.Tensor:
    """Causal grouped-query attention of a ragged batch against keys and values scattered over blocks.

    The queries of a sequence are its last tokens; each sees every token of its sequence up to and including itself.
    Entries of ``block_tables`` past a sequence's last block, and slots past its last token, are never read.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``; ``num_heads // num_kv_heads`` neighbouring heads share a KV head.
        key_cache, value_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``, dtype of ``query``.
        block_tables: ``[num_seqs, max_blocks_per_seq]`` int32.
        seq_lens: ``[num_seqs]`` int32, tokens in the cache, the queries' own included.
        query_start_loc: ``[num_seqs + 1]`` int32, where each sequence's queries start; ``None``: one query each.
        scale: factor on the scores; by default ``1 / sqrt(head_dim)``.
        backend: ``"reference"`` (plain torch), ``"triton"`` (compiled on a GPU, interpreted elsewhere), or ``"auto"``:
            Triton on a GPU wherever it can express the call, else the reference.
        softcap: ``softcap * tanh(score / softcap)`` replaces each score (Gemma 2). Reference only.
        sliding_window: a token sees itself and the ``sliding_window - 1`` tokens before it. Reference only.

    Returns:
        ``[num_tokens, num_heads, head_dim]``, dtype of ``query``.

    Raises:
        ValueError: shapes, dtypes, devices or lengths that do not fit together, a table entry that is no usable
            block, or an unknown backend. Values are checked on the CPU only: on a GPU, looking would stall it.
        ImportError: ``backend="triton"`` where Triton is not installed.
        NotImplementedError: ``backend="triton"`` with ``softcap`` or ``sliding_window``.

    Source: Kwon et al. 2023, equation 4.

    Example:
        Two tokens in block 2 and one in block 1; with equal scores attention is the mean of the values.

        >>> key_cache = torch.zeros(3, 2, 1, 4)
        >>> value_cache = torch.arange(3 * 2 * 4.).reshape(3, 2, 1, 4)
        >>> tables, lens = torch.tensor([[2, 1]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
        >>> paged_attention(torch.ones(1, 1, 4), key_cache, value_cache, tables, lens)
        tensor([[[14.6667, 15.6667, 16.6667, 17.6667]]])
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown: use one of {', '.join(BACKENDS)}")
    if query_start_loc is None:
        query_start_loc = torch.arange(len(seq_lens) + 1, dtype=torch.int32, device=seq_lens.device)
    _check_shapes(query, key_cache, value_cache, block_tables, seq_lens, query_start_loc)
    if query.device.type == "cpu":
        _check_values(query, key_cache, block_tables, seq_lens, query_start_loc)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    scale = float(scale)
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}: give a positive number, or None for no cap")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(
            f"sliding_window is {sliding_window}: a token sees at least itself, so give 1 or more, or None"
        )
    special = softcap is not None or sliding_window is not None
    if backend == "triton" and special:
        raise NotImplementedError(
            f"the triton kernel has no softcap ({softcap}) or sliding_window ({sliding_window}) yet: "
            'use backend="reference"'
        )
    arguments = (query, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale)
    if backend == "triton" or (backend == "auto" and query.is_cuda and not special):
        # Imported late: Triton exists for Linux only, and the other backends must work without it.
        try:
            from pagedattn_lab.attention.triton_decode import triton_attention
        except ModuleNotFoundError as error:
            raise ImportError(
                'the "triton" backend needs the package triton, which is published for Linux only: '
                'use backend="reference" here, or run the book on Linux (WSL and Colab count)'
            ) from error
        return triton_attention(*arguments)
    return reference_attention(*arguments, softcap=softcap, sliding_window=sliding_window)


def _check_shapes(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
) -> None:
    """Refuse what can be told from shapes, dtypes and devices alone."""
    if not query.is_floating_point():
        raise ValueError(f"query is {query.dtype}: floating-point numbers are needed")
    if query.dim() != 3:
        raise ValueError(f"query has shape {tuple(query.shape)}: [num_tokens, num_heads, head_dim] is needed")
    if key_cache.dim() != 4 or key_cache.shape != value_cache.shape:
        raise ValueError(
            f"key_cache has shape {tuple(key_cache.shape)} and value_cache {tuple(value_cache.shape)}: "
            "both must be [num_blocks, block_size, num_kv_heads, head_dim]"
        )
    if 0 in key_cache.shape:
        raise ValueError(f"key_cache has shape {tuple(key_cache.shape)}: every dimension must be at least 1")
    num_kv_heads, head_dim = key_cache.shape[2:]
    if query.shape[2] != head_dim:
        raise ValueError(f"query has head_dim {query.shape[2]} but the cache has {head_dim}")
    if query.shape[1] % num_kv_heads:
        raise ValueError(f"{query.shape[1]} query heads cannot be shared out evenly over {num_kv_heads} KV heads")
    if not query.dtype == key_cache.dtype == value_cache.dtype:
        raise ValueError(
            f"query is {query.dtype}, key_cache {key_cache.dtype} and value_cache {value_cache.dtype}: "
            "convert them to one dtype"
        )
    if block_tables.dim() != 2 or seq_lens.shape != block_tables.shape[:1]:
        raise ValueError(
            f"block_tables has shape {tuple(block_tables.shape)} and seq_lens {tuple(seq_lens.shape)}: "
            "[num_seqs, max_blocks_per_seq] and [num_seqs] are needed"
        )
    if query_start_loc.shape != (len(seq_lens) + 1,):
        raise ValueError(f"query_start_loc has shape {tuple(query_start_loc.shape)}: ({len(seq_lens) + 1},) is needed")
    integers = {"block_tables": block_tables, "seq_lens": seq_lens, "query_start_loc": query_start_loc}
    for name, tensor in integers.items():
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} is {tensor.dtype}: int32 is needed")
    tensors = {"key_cache": key_cache, "value_cache": value_cache} | integers
    for name, tensor in tensors.items():
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} but query on {query.device}: move them to one device")


def _check_values(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
) -> None:
    """Refuse lengths and table entries that would make a backend read memory it must not."""
    num_blocks, block_size = key_cache.shape[:2]
    query_lens = query_start_loc.diff()
    if query_start_loc[0] != 0 or query_start_loc[-1] != len(query) or bool((query_lens < 1).any()):
        raise ValueError(
            f"query_start_loc is {query_start_loc.tolist()}: it must rise from 0 to {len(query)}, the number of query "
            "tokens, by at least 1 per sequence"
        )
    capacity = block_tables.shape[1] * block_size
    wrong = (seq_lens < query_lens) | (seq_lens > capacity)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"sequence {index} has seq_len {int(seq_lens[index])}: it must be between its {int(query_lens[index])} "
            f"query token(s) and {capacity}, the tokens that its row of block_tables can hold"
        )
    in_use = torch.arange(block_tables.shape[1]) < ((seq_lens + block_size - 1) // block_size)[:, None]
    wrong = in_use & ((block_tables < 1) | (block_tables >= num_blocks))
    if bool(wrong.any()):
        sequence, logical = (int(index) for index in wrong.nonzero()[0])
        raise ValueError(
            f"block_tables[{sequence}, {logical}] is {int(block_tables[sequence, logical])}: sequence {sequence} reads "
            f"that entry, so it must be a block from 1 to {num_blocks - 1} (0 is the null block)"
        )
