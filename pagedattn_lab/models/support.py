"""What a model may not be, to run on the paged cache, and why (chapter 04)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnsupportedModelError(ValueError):
    """The model does something that the paged cache of this book cannot express yet; the message says what."""


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise for what the model says of itself, beyond its KV shape, so that nothing runs and then fails."""
    config, name = model.config.get_text_config(), type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder: choose a decoder-only model")
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(f"{name} does not compute attention through transformers' interface")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(f"{name} takes no position_ids, which a flattened ragged batch needs")
    if getattr(config, "is_causal", True) is False:
        raise UnsupportedModelError(
            f"{name} is configured to let tokens see later ones: a cache needs causal attention"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UnsupportedModelError(f"{name} has layers of kind {', '.join(sorted(kinds))}, not supported yet")
    chunk_size = getattr(config, "attention_chunk_size", None)
    if chunk_size:
        raise UnsupportedModelError(f"{name} sets attention_chunk_size = {chunk_size}, not supported yet")


def rotary_limit(model: PreTrainedModel) -> int | None:
    """Give the length up to which rotary angles do not depend on what else is in the batch, if there is one."""
    limits = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None) or {}
        for layer_type, kind in ({None: kinds} if isinstance(kinds, str) else kinds).items():
            if kind == "longrope" or "dynamic" in kind:
                every = module.config.rope_parameters
                parameters = every if layer_type is None else every[layer_type]
                limits.append(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)
    return min(limits, default=None)
