"""What layers must know about the step under way, and the attention function that asks for it (chapters 04 and 07).

A model calls its attention function layer by layer, with tensors alone. The step's page tables, the cache and the
choice of a backend wait in a context meanwhile. A layer finds the page table of its group there, writes its keys and
values through the slot mapping and attends through the table.

Source: transformers' ``AttentionInterface``; the context follows vLLM's ``vllm/forward_context.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from pagedattn_lab.attention.backends import Call, choose
from pagedattn_lab.attention.latent import absorbed_query, expanded_output
from pagedattn_lab.attention.metadata import AttentionMetadata
from pagedattn_lab.attention.variant import EIGHT_BIT, Variant
from pagedattn_lab.kv_cache import PagedKVCache
from pagedattn_lab.models.latents import up_projections
from pagedattn_lab.models.support import refuse_layer

ATTENTION_NAME = "pagedattn_lab"
"""The name by which transformers finds the attention function below."""


@dataclass
class ForwardContext:
    """What the attention function must know about the step under way.

    Attributes:
        metadata: for each layer that of its group.
        cache: what layers write and read.
        backend: as for :func:`pagedattn_lab.attention.backends.choose`.
        windows: of each layer that has attended, how many tokens it read; ``None`` for all.
    """

    metadata: Sequence[AttentionMetadata]
    cache: PagedKVCache
    backend: str
    windows: dict[int, int | None] = field(default_factory=dict)


_forward_context: ContextVar[ForwardContext] = ContextVar("forward_context")


def _attention_through_page_table(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Stand in for one layer's attention: shapes ``[1, heads, num_tokens, head_dim]`` in, tokens before heads out.

    ``s_aux`` is transformers' name for sinks.
    """
    context = _forward_context.get()
    cache, layer = context.cache, module.layer_idx
    metadata = context.metadata[layer]
    window = getattr(attention_mask, "window", None)  # what _window_in_place_of_mask put there; no other mask has it
    if window is not None:
        sliding_window, attention_mask = window, None
    refuse_layer(module, key, value, attention_mask, sliding_window, cache.shape, layer in context.windows)
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else float(scaling)
    flat_query = query[0].transpose(0, 1)  # [num_tokens, num_heads, head_dim]
    flat_value = None if cache.shape.latent else value[0].transpose(0, 1)
    cache.store(layer, key[0].transpose(0, 1), flat_value, metadata.slot_mapping)
    context.windows[layer] = sliding_window
    if cache.shape.latent:
        w_uk, w_uv = up_projections(module)
        flat_query = absorbed_query(flat_query, w_uk)
    if sliding_window is not None and metadata.max_seq_len <= sliding_window:
        sliding_window = None  # every token sees all before it
    key_cache, value_cache = cache.key_caches[layer], cache.value_caches[layer]
    scales = {"k_scale": cache.k_scales[layer], "v_scale": cache.v_scales[layer]}
    variant = Variant(softcap, sliding_window, sinks=s_aux, **scales)
    if key_cache.dtype not in EIGHT_BIT:
        flat_query = flat_query.to(key_cache.dtype)
    call = Call.of(flat_query, key_cache, value_cache, prompts=not metadata.is_decode, variant=variant)
    output = choose(context.backend, call).attend(
        flat_query,
        key_cache,
        value_cache,
        metadata.block_tables,
        metadata.seq_lens,
        metadata.query_start_loc,
        scale,
        variant,
        metadata.cascade,
    )
    output = output.to(query.dtype)
    if cache.shape.latent:
        output = expanded_output(output, w_uv)
    return output[None], None


def _window_in_place_of_mask(*_: Any, local_size: int | None = None, **__: Any) -> torch.Tensor | None:
    """Answer with a layer's window, where transformers asks for a mask.

    The number hangs on a tensor with the four dimensions of a mask. :func:`_attention_through_page_table` takes it off
    again; a model that makes a mask of its own from ours loses it, and is refused.
    """
    if local_size is None:
        return None
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    mask.window = local_size
    return mask


AttentionInterface.register(ATTENTION_NAME, _attention_through_page_table)
AttentionMaskInterface.register(ATTENTION_NAME, _window_in_place_of_mask)


@contextmanager
def set_forward_context(context: ForwardContext) -> Iterator[None]:
    """Let layers find a step's context, in this thread and until the step is over."""
    token = _forward_context.set(context)
    try:
        yield
    finally:
        _forward_context.reset(token)
