"""A Triton kernel that writes keys and values to their slots, and makes 8-bit numbers of them on the way (chapter 08).

A row is what one head of one token has: ``head_dim`` numbers. One program writes a tile of rows of the keys, then the
same rows of the values, so that each thread holds enough neighbours for stores of 128 bits, however few heads there
are. What is written equals, to the bit, what :mod:`pagedattn_lab.attention.quantize` computes.

Source: the arguments are those of vLLM's ``reshape_and_cache`` (Kwon et al. 2023, section 5.1, "fused reshape and block
write"), without its name of the dtype, which the caches tell.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagedattn_lab.attention.launch import launch
from pagedattn_lab.attention.quantize import LARGEST, SMALLEST_SCALE, triton_has_float8
from pagedattn_lab.attention.variant import Variant, check_variant

TILE_ELEMENTS = 2048
"""Elements of a tile: with 128 threads, 16 each, which are 128 bits once they are 8-bit numbers."""

_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """Round float32 numbers within the range of ``dtype`` to those that it has, to nearest, ties to even.

    The last bit of a float32 from 2**23 to 2**24 is worth 1. So 1.5 * 2**23 plus a smaller number is rounded to a whole
    number, and taking 1.5 * 2**23 off again leaves it; with 1.5 * 2**20 steps are eighths, and so on. A cast would not
    do: to an integer it cuts off, and to a float8 it rounds twice on compute capability 8.9, to float16 on the way.
    """
    if dtype == tl.int8:
        magic = 1.5 * 2**23
    else:  # 3 bits of mantissa: steps are eighths of the power of two below x, and no finer than those below 2**-6
        power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        magic = tl.maximum(power, 2.0**-6) * (1.5 * 2**20)
    rounded = (x + magic) - magic
    return tl.where(rounded == 0.0, x * 0.0, rounded)  # a zero of the sign of x


@triton.jit
def _write_tile(
    cache_ptr,
    scale_ptr,
    rows_ptr,
    token,
    head,
    block,
    offset,
    is_written,
    rows_stride_token,
    rows_stride_head,
    cache_stride_block,
    cache_stride_slot,
    cache_stride_head,
    scale_stride_block,
    scale_stride_slot,
    scale_stride_head,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    LARGEST: tl.constexpr,
    PER_TOKEN_HEAD: tl.constexpr,
):
    """Write rows ``token, head`` to ``block, offset``; all four, and ``is_written``, are ``[ROWS]``."""
    dims = tl.arange(0, PADDED_DIM)
    mask = is_written[:, None] & (dims < DIM)[None, :]  # this and row: [ROWS, PADDED_DIM]
    source = rows_ptr + token * rows_stride_token + head * rows_stride_head
    row = tl.load(source[:, None] + dims[None, :], mask=mask, other=0.0)
    if LARGEST is not None:
        row = row.to(tl.float32)
        if PER_TOKEN_HEAD:
            scale = tl.maximum(tl.div_rn(tl.max(tl.abs(row), axis=1), LARGEST), _SMALLEST_SCALE)
            # The maximum passes over a NaN, which int8 could not hold either: the scale holds it for the whole row.
            has_nan = tl.max((row != row).to(tl.int32), axis=1) > 0
            scale = tl.where(has_nan, float("nan"), scale)
            scale_row = scale_ptr + block * scale_stride_block + offset * scale_stride_slot + head * scale_stride_head
            tl.store(scale_row, scale, mask=is_written)
            scale = scale[:, None]
        else:
            scale = tl.load(scale_ptr)
        # Plain division may be off in the last bits.
        row = tl.clamp(tl.div_rn(row, scale), -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
        row = _rounded(row, cache_ptr.dtype.element_ty)
    target = cache_ptr + block * cache_stride_block + offset * cache_stride_slot + head * cache_stride_head
    tl.store(target[:, None] + dims[None, :], row.to(cache_ptr.dtype.element_ty), mask=mask)


@triton.jit
def reshape_and_cache_kernel(
    key_ptr,
    value_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_mapping_ptr,
    k_scale_ptr,
    v_scale_ptr,
    num_rows,
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    key_cache_stride_block,
    key_cache_stride_slot,
    key_cache_stride_head,
    value_cache_stride_block,
    value_cache_stride_slot,
    value_cache_stride_head,
    k_scale_stride_block,
    k_scale_stride_slot,
    k_scale_stride_head,
    v_scale_stride_block,
    v_scale_stride_slot,
    v_scale_stride_head,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_KEY_DIM: tl.constexpr,
    PADDED_VALUE_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    LARGEST: tl.constexpr,
    PER_TOKEN_HEAD: tl.constexpr,
):
    """Write the rows of tile ``program_id(0)``; see :func:`reshape_and_cache`."""
    # Whatever a stride multiplies is int64: the product is an offset, and an offset may pass 2**31.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # this and all that follow: [ROWS]
    token, head = rows // NUM_KV_HEADS, rows % NUM_KV_HEADS
    slot = tl.load(slot_mapping_ptr + token, mask=rows < num_rows, other=-1).to(tl.int64)
    is_written = slot >= 0
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    _write_tile(
        key_cache_ptr, k_scale_ptr, key_ptr, token, head, block, offset, is_written, key_stride_token, key_stride_head,
        key_cache_stride_block, key_cache_stride_slot, key_cache_stride_head,
        k_scale_stride_block, k_scale_stride_slot, k_scale_stride_head,
        KEY_DIM, PADDED_KEY_DIM, LARGEST, PER_TOKEN_HEAD,
    )  # fmt: skip
    _write_tile(
        value_cache_ptr, v_scale_ptr, value_ptr, token, head, block, offset, is_written,
        value_stride_token, value_stride_head,
        value_cache_stride_block, value_cache_stride_slot, value_cache_stride_head,
        v_scale_stride_block, v_scale_stride_slot, v_scale_stride_head,
        VALUE_DIM, PADDED_VALUE_DIM, LARGEST, PER_TOKEN_HEAD,
    )  # fmt: skip


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Write a step's keys and values to their slots, in the caches' dtype.

    Args:
        key, value: ``[num_tokens, num_kv_heads, head_dim]``, such as parts of a fused projection: only the numbers of a
            head must lie in a row. Values may have a head_dim of their own.
        key_cache, value_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``, float32, float16, bfloat16,
            float8_e4m3fn or int8.
        slot_mapping: ``[num_tokens]`` int64, no slot twice; −1 skips a token.
        k_scale, v_scale: for 8-bit caches. Of one element, they are read, and numbers too large for them saturate. Of
            shape ``[num_blocks, block_size, num_kv_heads]``, they are written: each row gets a scale that suits it.

    Raises:
        ValueError: shapes, dtypes, strides or devices that do not fit together. On a CPU also a slot outside the cache
            or in the null block; on a GPU, looking would stall it.
        NotImplementedError: float8_e4m3fn on an NVIDIA GPU before compute capability 8.9, whose compiler lacks it.

    Example:
        Head 0 of token 0 to slot 5: block 2, offset 1.

        >>> key_cache, value_cache = (torch.zeros(3, 2, 1, 4, dtype=torch.int8) for _ in range(2))
        >>> scale, slots = torch.tensor([0.5]), torch.tensor([5])
        >>> key = torch.tensor([[[1.0, 2.0, -3.0, 99.0]]])
        >>> reshape_and_cache(key, -key, key_cache, value_cache, slots, scale, scale)
        >>> key_cache[2, 1, 0].tolist(), value_cache[2, 1, 0].tolist()
        ([2, 4, -6, 127], [-2, -4, 6, -127])
    """
    _check(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
    num_tokens, num_kv_heads, key_dim = key.shape
    num_rows, value_dim = num_tokens * num_kv_heads, value.shape[2]
    if not num_rows:
        return
    padded = triton.next_power_of_2(key_dim), triton.next_power_of_2(value_dim)
    rows = max(1, TILE_ELEMENTS // max(padded))
    per_token_head = k_scale is not None and k_scale.numel() > 1
    launch(
        reshape_and_cache_kernel,
        (triton.cdiv(num_rows, rows),),
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        k_scale,
        v_scale,
        num_rows,
        *key.stride()[:2],
        *value.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        *(k_scale.stride() if per_token_head else (0, 0, 0)),
        *(v_scale.stride() if per_token_head else (0, 0, 0)),
        BLOCK_SIZE=key_cache.shape[1],
        NUM_KV_HEADS=num_kv_heads,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        PADDED_KEY_DIM=padded[0],
        PADDED_VALUE_DIM=padded[1],
        ROWS=rows,
        LARGEST=LARGEST.get(key_cache.dtype),
        PER_TOKEN_HEAD=per_token_head,
    )


def compiles_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether the kernel can write a cache of ``dtype`` on a GPU."""
    return dtype != torch.float8_e4m3fn or triton_has_float8(device)


def _check(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    """Refuse what the kernel cannot write, before anything is."""
    pairs = {"key": (key, key_cache), "value": (value, value_cache)}
    for name, (rows, cache) in pairs.items():
        if rows.dim() != 3 or cache.dim() != 4 or rows.shape[1:] != cache.shape[2:]:
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)} and {name}_cache {tuple(cache.shape)}: [num_tokens, "
                "num_kv_heads, head_dim] and [num_blocks, block_size, num_kv_heads, head_dim] are needed"
            )
        if rows.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"{name} is {rows.dtype}: float32, float16 or bfloat16 is needed")
        for part, tensor in ((name, rows), (f"{name}_cache", cache)):
            if tensor.stride(-1) != 1:
                raise ValueError(f"{part} has stride {tensor.stride(-1)} along head_dim: make it contiguous there")
    if key_cache.shape[:3] != value_cache.shape[:3] or key_cache.dtype != value_cache.dtype:
        raise ValueError(
            f"key_cache is {key_cache.dtype} of shape {tuple(key_cache.shape)} and value_cache {value_cache.dtype} of "
            f"{tuple(value_cache.shape)}: only head_dim may differ"
        )
    if key_cache.dtype not in (torch.float32, torch.float16, torch.bfloat16, *LARGEST):
        raise ValueError(f"a cache of {key_cache.dtype} is not supported: use a float of 16 or 32 bits, or 8 bits")
    if slot_mapping.dtype != torch.int64 or slot_mapping.shape != key.shape[:1] or len(value) != len(key):
        raise ValueError(
            f"slot_mapping is {slot_mapping.dtype} of shape {tuple(slot_mapping.shape)} for {len(key)} keys and "
            f"{len(value)} values: one int64 for each token is needed"
        )
    tensors = {"value": value, "key_cache": key_cache, "value_cache": value_cache, "slot_mapping": slot_mapping}
    for name, tensor in tensors.items():
        if tensor.device != key.device:
            raise ValueError(f"{name} is on {tensor.device} but key on {key.device}: move them to one device")
    check_variant(Variant(k_scale=k_scale, v_scale=v_scale), key, key_cache)
    if k_scale is not None and (k_scale.numel() == 1) != (v_scale.numel() == 1):
        raise ValueError("one of k_scale and v_scale has a single element: give both one, or both one a token and head")
    if key.device.type == "cpu":
        block_size, num_slots = key_cache.shape[1], key_cache.shape[0] * key_cache.shape[1]
        wrong = ((slot_mapping < block_size) & (slot_mapping != -1)) | (slot_mapping >= num_slots)
        if bool(wrong.any()):
            raise ValueError(
                f"slot {int(slot_mapping[wrong][0])} cannot be written: slots run from {block_size} to "
                f"{num_slots - 1}, and -1 skips a token"
            )
    elif not compiles_for(key.device, key_cache.dtype):
        raise NotImplementedError("Triton has no float8_e4m3fn on this GPU: use int8, or PagedKVCache.store")
