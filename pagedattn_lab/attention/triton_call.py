"""What every launch of the fast Triton kernels needs beforehand: refusals, arguments, and the shape of a tile (chapter 08)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pagedattn_lab.attention.triton_tile import LOG2E
from pagedattn_lab.attention.variant import EIGHT_BIT, Variant

MAX_DIM = 1024
"""Elements of a key or a value that a tile has room for."""

_TRITON = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def lacks(
    dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, value_dim: int, device: torch.device | str
) -> str | None:
    """Say in a few words what the kernels do not have of a call, or ``None``.

    Example:
        >>> lacks(torch.float64, torch.float64, 64, 64, "cpu")
        'float64'
        >>> lacks(torch.bfloat16, torch.float8_e4m3fn, 576, 512, "cpu")
    """
    if dtype not in _TRITON:
        return str(dtype).removeprefix("torch.")
    if max(head_dim, value_dim) > MAX_DIM:
        return f"room for heads of {max(head_dim, value_dim)} elements, only for {MAX_DIM}"
    if cache_dtype == torch.float8_e4m3fn and torch.device(device).type == "cuda" and not torch.version.hip:
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 9):  # Triton converts e4m3 from Ada on
            return f"float8_e4m3fn on GPUs of compute capability {'.'.join(map(str, capability))}, only from 8.9 on"
    return None


def check(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, block_tables: torch.Tensor
) -> None:
    """Refuse what the kernels would misread.

    Raises:
        ValueError: an inner dimension that is not contiguous, a dtype or a head_dim that :func:`lacks` names, or rows
            of ``block_tables`` so wide that a position in the sequence may not fit int32.
    """
    missing = lacks(query.dtype, key_cache.dtype, query.shape[2], value_cache.shape[3], query.device)
    if missing:
        raise ValueError(f'the triton kernels have no {missing}: use backend="reference"')
    for name, tensor in (("query", query), ("key_cache", key_cache), ("value_cache", value_cache)):
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} along head_dim: make it contiguous there")
    capacity = block_tables.shape[1] * key_cache.shape[1]
    if capacity >= 2**31 - 128:  # a tile may end past the last token
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
    slopes, sinks = (None if option is None else option.contiguous() for option in (variant.alibi_slopes, variant.sinks))
    strides = [
        scale.stride() if scale is not None and scale.dim() == 3 else (0, 0, 0)
        for scale in (variant.k_scale, variant.v_scale)
    ]
    block_tables = block_tables.contiguous()
    return [
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens.contiguous(),
        slopes,
        sinks,
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


def parts(head_dim: int) -> tuple[int, int]:
    """Cut a head into two parts whose widths are powers of two (the second may be 0), the second padded if need be.

    Padding the whole head to one power of two instead would nearly double what a head_dim of 576 computes.

    Example:
        >>> parts(128), parts(80), parts(576), parts(8)
        ((128, 0), (64, 16), (512, 64), (16, 0))
    """
    if head_dim <= 16 or head_dim == triton.next_power_of_2(head_dim):
        return max(16, head_dim if head_dim > 16 else 16), 0
    first = triton.next_power_of_2(head_dim) // 2
    return first, max(16, triton.next_power_of_2(head_dim - first))


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
        "PADDED_VALUE": max(16, triton.next_power_of_2(value_dim)),
        # Values that are the first part of the keys, in the same memory, are read once.
        "VALUE_IN_KEY": value_dim == dim
        and value_cache.data_ptr() == key_cache.data_ptr()
        and value_cache.stride() == key_cache.stride(),
        **{name: scale is not None and scale.numel() > 1 for name, scale in scales.items()},
        # Weights are rounded to the dtype of the values that they meet. A scale that was multiplied into them may be
        # too small for float16, whose exponents are few; 8-bit numbers are exact in bfloat16 as well.
        "WEIGHTS": tl.bfloat16 if eight_bit and query.dtype != torch.float32 else _TRITON[query.dtype],
    }


def tile_shape(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, *, prefill: bool
) -> dict[str, int]:
    """Choose the tokens of a tile, and the warps and pipeline stages for it."""
    widest = max(triton.next_power_of_2(query.shape[2]), triton.next_power_of_2(value_cache.shape[3]))
    return {"TILE": 32 if widest <= 128 else 16, "num_warps": 4, "num_stages": 2}
