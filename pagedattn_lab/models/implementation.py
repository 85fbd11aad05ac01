"""Which function computes a model's attention, for a while (chapter 04)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


_one_at_a_time = threading.RLock()


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model compute attention with the function of that name; leave every part as it was, also after an error.

    A model in several parts has a configuration for each, and each may name a function of its own. transformers can
    set them all to one name. It cannot give each its own back.

    One thread at a time may do so, and another waits: two would take each other's name for the usual one.

    Args:
        model: any transformers model.
        name: a function registered with transformers' ``AttentionInterface``, or ``"eager"``.

    Raises:
        ValueError: a part of the model cannot compute attention with it.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=4, attn_implementation="eager")
        >>> model = LlamaForCausalLM(config)
        >>> with attention_of(model, "sdpa"):
        ...     model.config._attn_implementation
        'sdpa'
        >>> model.config._attn_implementation
        'eager'
    """
    with _one_at_a_time:
        usual = [(config, config._attn_implementation) for config in _configs(model)]
        try:
            model.set_attn_implementation(name)
            yield
        finally:
            for config, implementation in usual:
                config._attn_implementation_internal = implementation  # the property would change its parts as well


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every configuration that the model or one of its modules holds, with the parts of each, once."""
    from transformers import PreTrainedConfig

    found: dict[int, PreTrainedConfig] = {}  # a configuration compares by value, and parts may be equal
    waiting = [vars(module).get("config") for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, part, None) for part in config.sub_configs]
    return [*found.values()]
