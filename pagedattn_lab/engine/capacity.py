"""What an engine's memory comes to: which layers share a page table, and how long a sequence may be (chapters 09, 11).

Source: vLLM's ``vllm/v1/core/kv_cache_utils.py`` (``get_kv_cache_groups``, ``check_enough_kv_cache_memory``), release
0.33.0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import count
from pagedattn_lab.kv_cache_groups import (
    KVCacheGroup,
    blocks_per_request,
    bytes_per_block,
    kv_cache_groups,
    largest_model_len,
)
from pagedattn_lab.kv_cache_specs import RequestLimits, SlidingWindowSpec
from pagedattn_lab.kv_layers import layer_index, layer_specs
from pagedattn_lab.model_runner import windows_read
from pagedattn_lab.models.support import rotary_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def groups_with_windows(config: Any, block_size: int, dtype: Any = None) -> list[KVCacheGroup] | None:
    """Form the groups of a configuration with windows; ``None`` if it has layers that read every token alone.

    Args:
        config, block_size, dtype: as for :func:`pagedattn_lab.kv_layers.layer_specs`.

    Example:
        >>> config = {"num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8, "dtype": "float32"}
        >>> groups_with_windows(config, 16) is None
        True
        >>> [len(group.layers) for group in groups_with_windows(config | {"sliding_window": 32}, 16)]
        [4]
    """
    specs = layer_specs(config, block_size, dtype)
    if not any(isinstance(spec, SlidingWindowSpec) for spec in specs.values()):
        return None
    return kv_cache_groups(specs)


def groups_of_model(model: PreTrainedModel, block_size: int, dtype: Any = None) -> list[KVCacheGroup] | None:
    """Form the groups of a model whose layers read no more than the windows that its configuration names.

    Args:
        model: computes one token if its configuration names a window; see
            :func:`~pagedattn_lab.model_runner.windows_read`.
        block_size, dtype: as for :func:`pagedattn_lab.kv_layers.layer_specs`.

    Returns:
        ``None`` for a model without windows, or with layers that read on beyond them.

    Raises:
        UnsupportedModelError: a model that cannot run on the paged cache.
    """
    groups = groups_with_windows(model.config, block_size, dtype)
    if groups is None:
        return None
    windows = windows_read(model)
    for group in groups:
        for name, spec in zip(group.layers, group.specs, strict=True):
            window = windows[layer_index(name)]
            if isinstance(spec, SlidingWindowSpec) and (window is None or window > spec.sliding_window):
                return None
    return groups


def longest_in_groups(groups: Sequence[KVCacheGroup], num_blocks: int, max_num_batched_tokens: int) -> int:
    """Count the tokens for which all blocks together have slots, as the budget counts them.

    Windowed groups count their window and one step's tokens, so layers with windows alone have no end to it.

    Args:
        groups: of the model.
        num_blocks: blocks in all, the null block included.
        max_num_batched_tokens: tokens of one step at most.

    Raises:
        ValueError: fewer blocks than one token counts; the message says how many are needed.

    Example:
        >>> config = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "sliding_window": 32,
        ...           "layer_types": ["sliding_attention", "full_attention"], "dtype": "float32"}
        >>> groups = groups_with_windows(config, 16)
        >>> longest_in_groups(groups, num_blocks=20, max_num_batched_tokens=16)     # 19 blocks, 4 of them windowed
        240
    """
    limits = RequestLimits(sys.maxsize // 2, max_num_batched_tokens)
    longest = largest_model_len(groups, num_blocks * bytes_per_block(groups), limits)
    if not longest:
        needed = blocks_per_request(groups, replace(limits, max_model_len=1)) + 1
        raise ValueError(
            f"{num_blocks} blocks, one of them the null block, are too few for the {count(len(groups), 'group')} of "
            f"layers: give {needed} or more, since a window may begin within a block and counts one more, or keep all "
            "layers in one table by hybrid_kv_cache_manager=False"
        )
    return longest


def check_length(model: PreTrainedModel, max_model_len: int | None, longest: int) -> int:
    """Say how long a sequence may be: as asked, if the model was made for it and the cache can hold it.

    Args:
        model: what it is computed by.
        max_model_len: as asked; ``None`` for as long as may be.
        longest: what all blocks hold.

    Raises:
        ValueError: longer than that, or too short for a prompt and an output.
    """
    limits = {"all blocks hold": longest}
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if made_for is not None:
        limits["the model was made for"] = made_for
    rotary = rotary_limit(model)
    if rotary is not None:
        limits["the model's rotary angles allow"] = rotary
    what, limit = min(limits.items(), key=lambda item: item[1])
    if max_model_len is None:
        return limit
    if not 2 <= max_model_len <= limit:
        raise ValueError(f"max_model_len is {max_model_len}: give 2 to {limit}, which is what {what}")
    return max_model_len
