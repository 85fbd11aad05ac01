"""What ``paged_attention`` refuses, before anything is read (chapter 04).

Checks are for the edge: whoever calls with their own tensors goes through them. A model's layers, whose metadata the
library laid out itself, call a backend without.
"""

from __future__ import annotations

import torch

from pagedattn_lab.attention.variant import EIGHT_BIT, PLAIN, Variant


def check_shapes(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
) -> None:
    """Refuse what can be told from shapes, dtypes and devices alone, without waiting for a device.

    Raises:
        ValueError: they do not fit together; the message names what and how to mend it.
    """
    if not query.is_floating_point():
        raise ValueError(f"query is {query.dtype}: floating-point numbers are needed")
    if query.dim() != 3:
        raise ValueError(f"query has shape {tuple(query.shape)}: [num_tokens, num_heads, head_dim] is needed")
    if key_cache.dim() != 4 or value_cache.dim() != 4 or key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(
            f"key_cache has shape {tuple(key_cache.shape)} and value_cache {tuple(value_cache.shape)}: "
            "both must be [num_blocks, block_size, num_kv_heads, head_dim]; only head_dim may differ"
        )
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if 0 in cache.shape:
            raise ValueError(f"{name} has shape {tuple(cache.shape)}: every dimension must be at least 1")
    num_kv_heads, head_dim = key_cache.shape[2:]
    if query.shape[2] != head_dim:
        raise ValueError(f"query has head_dim {query.shape[2]} but the cache has {head_dim}")
    if query.shape[1] % num_kv_heads:
        raise ValueError(f"{query.shape[1]} query heads cannot be shared out evenly over {num_kv_heads} KV heads")
    if key_cache.dtype != value_cache.dtype or (key_cache.dtype != query.dtype and key_cache.dtype not in EIGHT_BIT):
        raise ValueError(
            f"query is {query.dtype}, key_cache {key_cache.dtype} and value_cache {value_cache.dtype}: "
            "convert them to one dtype, or both caches to one of 8 bits"
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
        if tensor.dtype not in (torch.int32, torch.int64):  # narrower ones wrap in a backend's arithmetic
            raise ValueError(f"{name} is {tensor.dtype}: int32 is needed")
    tensors = {"key_cache": key_cache, "value_cache": value_cache} | integers
    for name, tensor in tensors.items():
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} but query on {query.device}: move them to one device")


def check_values(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    variant: Variant = PLAIN,
) -> None:
    """Refuse lengths and table entries that would make a backend read memory it must not, and scales of a whole cache
    that are none.

    Looking at values makes a GPU wait for the answer, so this is for tensors on the CPU.

    Raises:
        ValueError: the first value that is wrong, where it stands and what it may be.
    """
    for name in ("k_scale", "v_scale"):
        scale = getattr(variant, name)
        if scale is not None and scale.numel() == 1 and not 0 < float(scale) < float("inf"):
            raise ValueError(f"{name} is {float(scale)}: give a finite number above 0")
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
    starts = torch.arange(block_tables.shape[1]) * block_size  # the first position of each block
    in_use = starts < seq_lens[:, None]  # [num_seqs, max_blocks_per_seq]
    # Behind the window of its first query a sequence reads nothing: there an entry may name the null block.
    first_read = seq_lens - query_lens + 1 - (variant.sliding_window or starts.numel() * block_size)
    lowest = (starts + block_size > first_read[:, None]).int()
    wrong = in_use & ((block_tables < lowest) | (block_tables >= num_blocks))
    if bool(wrong.any()):
        sequence, logical = (int(index) for index in wrong.nonzero()[0])
        raise ValueError(
            f"block_tables[{sequence}, {logical}] is {int(block_tables[sequence, logical])}: sequence {sequence} reads "
            f"that entry, so it must be a block from 1 to {num_blocks - 1} (0 is the null block)"
        )
