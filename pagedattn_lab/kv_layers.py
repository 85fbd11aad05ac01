"""From a model's configuration to the spec of each of its layers, and where each layer's pages lie (chapter 11).

A :class:`~pagedattn_lab.kv_shape.KVShape` says what a token leaves behind in any layer. Which layers read only a window
of it stands in the configuration as well, so that a model runner can form groups
(:func:`~pagedattn_lab.kv_cache_groups.kv_cache_groups`) of what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, KVCacheSpec, MLAAttentionSpec, SlidingWindowSpec
from pagedattn_lab.kv_config import text_fields
from pagedattn_lab.kv_shape import KVShape

_KINDS = {"full_attention", "attention", "sliding_attention"}


def layer_name(layer: int) -> str:
    """Name a layer's attention as vLLM does.

    Example:
        >>> layer_name(3)
        'model.layers.3.self_attn'
    """
    return f"model.layers.{layer}.self_attn"


def layer_index(name: str) -> int:
    """Give the number in a layer's name: the inverse of :func:`layer_name`."""
    return int(name.split(".")[2])


def layer_windows(fields: Mapping[str, Any], num_layers: int) -> list[int | None]:
    """Give the window of each layer, in tokens; ``None`` for a layer that reads every token.

    Args:
        fields: what :func:`~pagedattn_lab.kv_config.text_fields` gives.
        num_layers: layers with attention.

    Example:
        Without a list of kinds a window holds for all layers; Gemma 2 has it in every other one.

        >>> gemma = {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 4096}
        >>> layer_windows(text_fields({"num_hidden_layers": 2, "sliding_window": 8}), 2)
        [8, 8]
        >>> layer_windows(text_fields(gemma), 4)
        [4096, None, 4096, None]
    """
    window, kinds = fields["sliding_window"], fields["layer_types"]
    if not window or fields["use_sliding_window"] is False:  # some files write 0 for none
        return [None] * num_layers
    if fields["model_type"] == "cohere2":
        window += 1  # vLLM takes it not to count the token itself, and keeps one more than is read
    return [window if not kinds or kind == "sliding_attention" else None for kind in kinds or [None] * num_layers]


def layer_specs(config: Any, block_size: int, dtype: Any = None) -> dict[str, KVCacheSpec]:
    """Say how each layer of a model keeps its cache, so that what is kept is what the model reads.

    The budget's :func:`~pagedattn_lab.budget.layers.layer_specs` says how vLLM keeps it. The two part where vLLM does
    not use a window that transformers computes with, or does not load the model.

    Args:
        config: a transformers model, its configuration, or the mapping in its ``config.json``.
        block_size: tokens per block.
        dtype: of the cache; by default the model's, or the one that the configuration names.

    Returns:
        A spec for each layer, by :func:`layer_name`, in the model's order.

    Raises:
        ValueError: a configuration without one KV shape, or with layers that are neither full attention nor a window.

    Example:
        >>> config = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "sliding_window": 32,
        ...           "layer_types": ["sliding_attention", "full_attention"], "dtype": "float32"}
        >>> [(name, spec.kind, spec.page_size_bytes) for name, spec in layer_specs(config, block_size=16).items()]
        [('model.layers.0.self_attn', 'sliding window', 4096), ('model.layers.1.self_attn', 'full attention', 4096)]
    """
    if hasattr(config, "config"):
        config, dtype = config.config, dtype or config.dtype
    shape, fields = KVShape.from_config(config, dtype), text_fields(config)
    others = set(fields["layer_types"] or ()) - _KINDS
    if others:
        raise ValueError(
            f"layers of kind {', '.join(sorted(others))} keep another cache than keys and values of tokens"
        )
    if shape.latent:
        latent = MLAAttentionSpec(block_size, shape.head_dim, shape.dtype)
        return {layer_name(layer): latent for layer in range(shape.num_layers)}
    full = FullAttentionSpec(block_size, shape.num_kv_heads, shape.head_dim, shape.dtype, shape.value_dim)
    specs: dict[str, KVCacheSpec] = {}
    for layer, window in enumerate(layer_windows(fields, shape.num_layers)):
        specs[layer_name(layer)] = full if window is None else _windowed(full, window)
    return specs


def _windowed(full: FullAttentionSpec, window: int) -> SlidingWindowSpec:
    heads = (full.num_kv_heads, full.head_size, full.dtype, full.head_size_v)
    return SlidingWindowSpec(full.block_size, *heads, sliding_window=window)


class LayerPlace(NamedTuple):
    """Where one layer's keys and values are kept.

    Attributes:
        group: whose page tables it reads.
        tensor: in which of the pool's tensors its pages lie; the layers of one group are in different ones.
        window: tokens that its group keeps, itself included; ``None`` for all.
    """

    group: int
    tensor: int
    window: int | None


def layer_places(groups: Sequence[KVCacheGroup], shape: KVShape, block_size: int) -> list[LayerPlace]:
    """Lay the layers of all groups out in one pool: layer ``k`` of every group has its pages in tensor ``k``.

    A block belongs to one group at a time, so layers of different groups never meet in it. Where a group has fewer
    layers than the largest, the rest of its blocks is padding.

    Args:
        groups: of the whole model.
        shape: of one token in one layer, all layers alike.
        block_size: tokens per block, the same in all groups.

    Returns:
        A place for each layer, by its number.

    Raises:
        ValueError: groups that do not have each layer once, or blocks of another size than ``shape`` and ``block_size``
            give.

    Example:
        >>> from pagedattn_lab.kv_cache_groups import kv_cache_groups
        >>> config = {"num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8, "sliding_window": 32,
        ...           "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "dtype": "float32"}
        >>> groups = kv_cache_groups(layer_specs(config, 16))
        >>> [(place.group, place.tensor) for place in layer_places(groups, KVShape.from_config(config), 16)]
        [(0, 0), (1, 0), (2, 0)]
    """
    places: dict[int, LayerPlace] = {}
    layers = [layer_index(name) for group in groups for name in group.layers]
    if sorted(layers) != list(range(shape.num_layers)):
        raise ValueError(f"the groups have layers {sorted(layers)}: give each of 0 to {shape.num_layers - 1} once")
    page = replace(shape, num_layers=1).bytes_per_block(block_size)
    for number, group in enumerate(groups):
        for tensor, (name, spec) in enumerate(zip(group.layers, group.specs, strict=True)):
            if spec.block_size != block_size or spec.page_size_bytes != page:
                raise ValueError(
                    f"{name} has pages of {spec.block_size} tokens and {spec.page_size_bytes:,} bytes, and the cache "
                    f"has {block_size} and {page:,}: make the specs by layer_specs with its block size and dtype"
                )
            window = spec.sliding_window if isinstance(spec, SlidingWindowSpec) else None
            places[layer_index(name)] = LayerPlace(number, tensor, window)
    return [places[layer] for layer in range(shape.num_layers)]
