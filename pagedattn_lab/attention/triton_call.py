"""What a launch of the fast Triton kernels needs beforehand: refusals, arguments, and a tile's shape (chapter 08)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pagedattn_lab.attention.triton_tile import LOG2E
from pagedattn_lab.attention.variant import EIGHT_BIT, Variant

_TRITON = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def check(query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, block_tables: torch.Tensor) -> None:
    """Refuse what the kernels would misread.

    Raises:
        ValueError: float64, an inner dimension that is not contiguous, or rows of ``block_tables`` so wide that a
            position in the sequence may not fit int32.
    """
    if query.dtype not in _TRITON:
        raise ValueError(f"the triton kernels take float32, float16 and bfloat16, not {query.dtype}")
    for name, tensor in (("query", query), ("key_cache", key_cache), ("value_cache", value_cache)):
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} along head_dim: make it contiguous there")
    capacity = block_tables.shape[1] * key_cache.shape[1]
    if capacity >= 2**31 - 4096:  # a tile may end past the last token, and an empty split begin there
        raise ValueError(f"a row of block_tables holds {capacity} tokens: the triton kernels count them in int32")


def arguments(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    variant: Variant,
) -> list[Any]:
    """Give what the kernels take in common, in their order: tensors, numbers in base 2, strides."""
    log2e = LOG2E.value
    of_heads = (None if option is None else option.contiguous() for option in (variant.alibi_slopes, variant.sinks))
    strides = [
        scale.stride() if scale is not None and scale.dim() == 3 else (0, 0, 0)
        for scale in (variant.k_scale, variant.v_scale)
    ]
    block_tables = block_tables if block_tables.stride(1) == 1 else block_tables.contiguous()
    return [
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens.contiguous(),
        *of_heads,
        variant.k_scale,
        variant.v_scale,
        float(scale * log2e),
        None if variant.softcap is None else float(variant.softcap * log2e),
        variant.sliding_window,
        *query.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        *strides[0],
        *strides[1],
        block_tables.stride(0),
    ]


def padded(elements: int) -> int:
    """Round up to a width that a tile may have: a power of two, and at least the 16 of a tensor core.

    Example:
        >>> padded(8), padded(80), padded(128)
        (16, 128, 128)
    """
    return max(16, triton.next_power_of_2(elements))


def parts(head_dim: int) -> tuple[int, int]:
    """Cut a head into two parts whose widths are powers of two (the second may be 0), the second padded if need be.

    Padding the whole head to one power of two instead would nearly double what a head_dim of 576 computes.

    Example:
        >>> parts(128), parts(80), parts(576), parts(8)
        ((128, 0), (64, 16), (512, 64), (16, 0))
    """
    whole = padded(head_dim)
    if head_dim <= 16 or head_dim == whole:
        return whole, 0
    return whole // 2, padded(head_dim - whole // 2)


def constants(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, variant: Variant
) -> dict[str, Any]:
    """Give what the kernels are compiled for in common, besides :func:`tile_shape`."""
    head_dim, value_dim = key_cache.shape[3], value_cache.shape[3]
    dim, rest = parts(head_dim)
    scales = {"K_PER_TOKEN": variant.k_scale, "V_PER_TOKEN": variant.v_scale}
    eight_bit = key_cache.dtype in EIGHT_BIT
    return {
        "BLOCK_SIZE": key_cache.shape[1],
        "HEAD_DIM": head_dim,
        "DIM": dim,
        "REST": rest,
        "VALUE_DIM": value_dim,
        "PADDED_VALUE": padded(value_dim),
        # Values that are the first part of the keys, in the same memory, are read once.
        "VALUE_IN_KEY": value_dim == dim
        and value_cache.data_ptr() == key_cache.data_ptr()
        and value_cache.stride() == key_cache.stride(),
        **{name: scale is not None and scale.numel() > 1 for name, scale in scales.items()},
        # Weights are rounded to the dtype of the values that they meet. A scale that was multiplied into them may be
        # too small for float16, whose exponents are few; 8-bit numbers are exact in bfloat16 as well.
        "WEIGHTS": tl.bfloat16 if eight_bit and query.dtype != torch.float32 else _TRITON[query.dtype],
    }


def tile_shape(query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, rows: int) -> dict[str, int]:
    """Choose the rows and tokens of a tile, and the warps and pipeline stages for it.

    The rows are at most 64, and take at most 16 KiB: more would not fit into registers. The tokens are so few that
    tiles of keys and values, and those that are loaded meanwhile, fit into the 64 KiB of shared memory of the smallest
    target, for any head_dim up to 256.

    Args:
        rows: wanted: query heads that share a KV head, times query tokens.

    Example:
        >>> query, cache = torch.zeros(1, 32, 128, dtype=torch.bfloat16), torch.zeros(2, 16, 8, 128)
        >>> tile_shape(query, cache, cache, rows=4)
        {'ROWS': 16, 'TILE': 32, 'num_warps': 4, 'num_stages': 2}
    """
    widest = max(sum(parts(key_cache.shape[3])), padded(value_cache.shape[3]))
    return {
        "ROWS": min(64, padded(rows), max(16, 16384 // (padded(widest) * query.element_size()))),
        "TILE": 16 if query.dtype == torch.float32 else 32,
        "num_warps": 4 if widest <= 128 else 8,
        "num_stages": 2,
    }


def tiles_of_heads(query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor) -> int:
    """Count the tiles that the query heads of one token take: one for each KV head, or more if a group is large.

    Example:
        >>> query, cache = torch.zeros(1, 128, 576), torch.zeros(2, 16, 1, 576)
        >>> tiles_of_heads(query, cache, cache[..., :512])
        8
    """
    group = query.shape[1] // key_cache.shape[2]
    return key_cache.shape[2] * triton.cdiv(group, tile_shape(query, key_cache, value_cache, rows=group)["ROWS"])
