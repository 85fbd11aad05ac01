"""Which dtype a model runs in and its cache is kept in, once what ``"auto"`` means is decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagedattn_lab.budget.errors import BudgetError

CACHE_DTYPES = {
    "float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32",
    "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2", "nvfp4": "nvfp4",
    "fp8_per_token_head": "fp8_per_token_head", "int8_per_token_head": "int8_per_token_head",
}  # fmt: skip
"""Names of vLLM's ``--dtype`` and ``--kv-cache-dtype`` and the dtype a spec has for them."""

_NO_FLOAT16 = {"gemma2", "gemma3", "gemma3_text", "glm4"}
"""Model types that are unstable in float16: ``_FLOAT16_NOT_SUPPORTED_MODELS`` in ``vllm/config/model.py``."""


def model_dtype(fields: Mapping[str, Any], dtype: str = "auto") -> str:
    """Resolve a model's dtype as vLLM does on a GPU: float32 checkpoints are run in bfloat16.

    Raises:
        BudgetError: no dtype of a model, or one that vLLM refuses for it.

    Example:
        >>> [model_dtype({"dtype": "float16", "model_type": name}) for name in ("opt", "gemma2")]
        ['float16', 'bfloat16']
    """
    wanted = str(dtype).removeprefix("torch.")
    model_type = fields["model_type"]
    if wanted == "auto":
        published = str(fields["dtype"] or "float32").removeprefix("torch.")
        if published == "float32" or (published == "float16" and model_type in _NO_FLOAT16):
            return "bfloat16"
        wanted = published
    name = CACHE_DTYPES.get(wanted)
    if name not in ("float16", "bfloat16", "float32"):
        raise BudgetError(f"dtype {wanted!r} is not one a model runs in: use auto, bfloat16, float16 or float32")
    if name == "float16" and model_type in _NO_FLOAT16:
        raise BudgetError(f"vLLM does not run model type {model_type!r} in float16: use bfloat16 or float32")
    return name


def _checkpoint_kv_dtype(quantization: Mapping[str, Any] | None) -> str | None:
    """Read the KV dtype that a quantised checkpoint asks for, or ``None`` where it asks for none."""
    if not quantization:
        return None
    method = str(quantization.get("quant_method", "")).replace("_", "-")
    inner = quantization.get("quantization") or {}
    if method.startswith("modelopt"):
        names = ("kv_cache_scheme", "kv_cache_quant_algo")
        asked = next((part[name] for name in names for part in (inner, quantization) if part.get(name)), None)
        if isinstance(asked, Mapping):
            bits, static = asked.get("num_bits"), asked.get("dynamic") is False
            if asked.get("type") != "float":
                return None
            return "fp8_e4m3" if bits == 8 and static else "nvfp4" if bits == 4 else None
        return {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}.get(str(asked).lower())
    if method == "compressed-tensors" and quantization.get("kv_cache_scheme"):
        return "fp8"
    return None


def cache_dtype(fields: Mapping[str, Any], kv_cache_dtype: str, dtype: str, notes: list[str]) -> str:
    """Resolve a KV cache's dtype: what was asked for, what a quantised checkpoint asks for, or the model's.

    Raises:
        BudgetError: a dtype that is not known here.
    """
    if kv_cache_dtype == "auto":
        asked = _checkpoint_kv_dtype(fields["quantization_config"])
        if asked is None:
            return dtype
        notes.append(f"the checkpoint asks for a KV cache in {asked}, and kv_cache_dtype auto follows it")
        kv_cache_dtype = asked
    name = CACHE_DTYPES.get(str(kv_cache_dtype).removeprefix("torch."))
    if name is None:
        raise BudgetError(f"kv_cache_dtype {kv_cache_dtype!r} is not known here: use auto, {', '.join(CACHE_DTYPES)}")
    return name
