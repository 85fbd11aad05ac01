"""Layers that keep keys and values: how many heads a GPU has of them, and which tokens they read.

Source: vLLM 0.33.0, ``Attention`` in ``vllm/model_executor/layers/attention/attention.py`` and the class of each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.model_types import BY_LAYER, NO_MIXED_WINDOWS
from pagedattn_lab.kv_cache_specs import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)  # fmt: skip
from pagedattn_lab.kv_config import read_head_dim, read_num_kv_heads, required
from pagedattn_lab.kv_layers import layer_windows


@dataclass(frozen=True)
class Heads:
    """The heads of one layer on one GPU."""

    num_kv_heads: int
    head_size: int
    head_size_v: int
    latent: bool

    @classmethod
    def of(cls, fields: Mapping[str, Any], tp: int) -> Heads:
        """Share a model's heads out among so many GPUs.

        Raises:
            BudgetError: query heads that do not divide, or KV heads that can neither be divided nor repeated.
        """
        query_heads = required(fields, "num_attention_heads")
        if query_heads % tp:
            divisors = [n for n in range(1, query_heads + 1) if query_heads % n == 0]
            raise BudgetError(
                f"{query_heads} attention heads do not divide among tensor_parallel_size = {tp}, {query_heads % tp} "
                f"{'is' if query_heads % tp == 1 else 'are'} left over: use one of {', '.join(map(str, divisors))}"
            )
        if fields["kv_lora_rank"]:
            return cls(1, fields["kv_lora_rank"] + required(fields, "qk_rope_head_dim"), 0, True)
        kv_heads = read_num_kv_heads(fields)
        if kv_heads % tp and tp % kv_heads:
            raise BudgetError(
                f"{kv_heads} KV heads neither divide among tensor_parallel_size = {tp} nor can each be kept by as many "
                f"GPUs: use a divisor or a multiple of {kv_heads}"
            )
        head_size = read_head_dim(fields)
        return cls(max(1, kv_heads // tp), head_size, fields["v_head_dim"] or head_size, False)

    def spec(self, block_size: int, dtype: str, window: int | None = None, chunk: int | None = None) -> KVCacheSpec:
        """Make the spec of one layer with these heads."""
        if self.latent:
            return MLAAttentionSpec(block_size=block_size, head_size=self.head_size, dtype=dtype)
        kept = {"num_kv_heads": self.num_kv_heads, "head_size": self.head_size, "head_size_v": self.head_size_v}
        if window is not None:
            return SlidingWindowSpec(block_size, dtype=dtype, sliding_window=window, **kept)
        if chunk is not None:
            return ChunkedLocalAttentionSpec(block_size, dtype=dtype, attention_chunk_size=chunk, **kept)
        return FullAttentionSpec(block_size, dtype=dtype, **kept)


def windows(fields: Mapping[str, Any], number: int, notes: list[str]) -> list[int | None]:
    """Give each layer's window as vLLM uses it, which is not always as the configuration says."""
    model_type, kinds, window = fields["model_type"], fields["layer_types"], fields["sliding_window"]
    if not window or fields["use_sliding_window"] is False:  # some files write 0 for none
        return [None] * number
    if model_type == "gpt_oss":  # every other layer, whatever the list says
        return [None if index % 2 else window for index in range(number)]
    some = kinds and "sliding_attention" in kinds
    mixed = some and any(kind != "sliding_attention" for kind in kinds)
    if mixed and model_type in NO_MIXED_WINDOWS and fields["max_window_layers"] != number:
        raise BudgetError(
            f"vLLM does not load model type {model_type!r} with a window in some layers only: set "
            f"use_sliding_window to false, or max_window_layers = {fields['max_window_layers']} to {number}"
        )
    if mixed and model_type not in BY_LAYER:
        notes.append(f"vLLM does not use the window of {window} tokens, which only some layers of this type have")
        return [None] * number
    if kinds and not some:
        return [None] * number
    found = layer_windows(fields, number)
    if not mixed:
        notes.append(f"every layer has a window of {found[0]:,} tokens")
    return found


def chunks(fields: Mapping[str, Any], number: int) -> list[int | None]:
    """Give each layer's chunk: Llama 4 reads chunks where a layer rotates its keys."""
    chunk, rotated = fields["attention_chunk_size"], fields["no_rope_layers"]
    if fields["model_type"] not in ("llama4", "llama4_text") or not chunk:
        return [None] * number
    if not rotated:
        raise BudgetError("the configuration has attention_chunk_size but no no_rope_layers: add them")
    return [chunk if rotates else None for rotates in rotated]
