"""What an attention layer may do besides a plain causal softmax, in one value for every backend (chapter 08)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

EIGHT_BIT = (torch.float8_e4m3fn, torch.int8)
"""Cache dtypes that hold a number as a scale times a small number."""


@dataclass(frozen=True)
class Variant:
    """The options of a layer's attention; all absent is the attention of chapter 04.

    With ``q`` and ``k`` the positions of query and key, a score goes through these steps in this order: scale, softcap,
    causal mask and window, ALiBi. A sink then takes part in the softmax, and its weight is thrown away.

    Attributes:
        softcap: ``softcap * tanh(score / softcap)`` replaces each score (Gemma 2).
        sliding_window: a token sees itself and the ``sliding_window - 1`` tokens before it (Mistral).
        alibi_slopes: ``[num_heads]`` float32; ``slope * (k - q)`` is added to each score (Press et al. 2022, BLOOM).
        sinks: ``[num_heads]``, a score per head for a token that has no value (gpt-oss).
        k_scale, v_scale: float32, what an 8-bit cache's numbers are multiplied with: of one element for the whole
            cache, or ``[num_blocks, block_size, num_kv_heads]``, one for each token and head.

    Source: the arguments of vLLM's ``vllm/v1/attention/ops/triton_unified_attention.py``, release 0.33.0.

    Example:
        >>> Variant(softcap=30.0).asked_for()
        ['softcap']
    """

    softcap: float | None = None
    sliding_window: int | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    def asked_for(self) -> list[str]:
        """Give the names of the options that are present."""
        return [option.name for option in fields(self) if getattr(self, option.name) is not None]


PLAIN = Variant()
"""A causal softmax and nothing else."""


def check_variant(variant: Variant, query: torch.Tensor, key_cache: torch.Tensor) -> None:
    """Refuse options that cannot be meant, by shape, dtype and device; no tensor's values are looked at.

    Args:
        variant: what is asked for.
        query: ``[num_tokens, num_heads, head_dim]``.
        key_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.

    Raises:
        ValueError: the first option that is wrong, and what it may be.
    """
    softcap, window = variant.softcap, variant.sliding_window
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"softcap is {softcap}: give a positive number, or None for no cap")
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise ValueError(
            f"sliding_window is {window!r}: a token sees at least itself, so give a whole number from 1 on, or None"
        )
    num_heads = query.shape[1]
    for name in ("alibi_slopes", "sinks"):
        tensor = getattr(variant, name)
        if tensor is not None and (tensor.shape != (num_heads,) or not tensor.is_floating_point()):
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}: one floating-point number for each of the "
                f"{num_heads} query heads is needed"
            )
    for name in ("k_scale", "v_scale"):
        scale = getattr(variant, name)
        if (scale is not None) != (key_cache.dtype in EIGHT_BIT):
            needed = "is needed" if scale is None else "has no meaning"
            raise ValueError(f"{name} {needed} with a cache of {key_cache.dtype}: 8-bit caches have scales")
        if scale is not None and (
            scale.dtype != torch.float32 or (scale.numel() != 1 and scale.shape != key_cache.shape[:3])
        ):
            raise ValueError(
                f"{name} is {scale.dtype} of shape {tuple(scale.shape)}: float32 is needed, of one element or "
                f"{tuple(key_cache.shape[:3])}, one for each token and head"
            )
    for name in variant.asked_for():
        tensor = getattr(variant, name)
        if isinstance(tensor, torch.Tensor) and tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} but query on {query.device}: move them to one device")
