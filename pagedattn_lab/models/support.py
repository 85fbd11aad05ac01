"""Models that the paged cache cannot run, and why (chapter 04)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pagedattn_lab.kv_cache import PagedKVCache
    from pagedattn_lab.kv_shape import KVShape


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


def refuse_layer(
    module: torch.nn.Module,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: Any,
    shape: KVShape,
    done: bool,
) -> None:
    """Raise for what shows only when a layer attends. Nothing here waits for a device.

    Args:
        module: the layer's attention; it knows its ``layer_idx``.
        key, value: ``[1, num_kv_heads, num_tokens, head_dim]``, each with a head_dim of its own.
        attention_mask: what the model built in place of a window.
        sliding_window: tokens that a token sees, if fewer than all.
        shape: of the cache.
        done: whether the layer has attended in this step before.

    Raises:
        UnsupportedModelError: the layer does what the cache cannot express.
    """
    layer = module.layer_idx
    if done:
        raise UnsupportedModelError(f"layer {layer} attends more than once in a step, over different keys or values")
    if not getattr(module, "is_causal", True):
        raise UnsupportedModelError(f"layer {layer} lets tokens see later ones, whose keys a cache does not have yet")
    for what, tensor, dim in (("keys", key, shape.head_dim), ("values", value, shape.value_dim)):
        if (tensor.shape[1], tensor.shape[3]) != (shape.num_kv_heads, dim):
            raise UnsupportedModelError(
                f"layer {layer} has {what} of {tensor.shape[1]} KV heads with {tensor.shape[3]} elements and the cache "
                f"has {shape.num_kv_heads} with {dim}: layers of different shapes are not supported yet"
            )
    if attention_mask is not None:
        raise UnsupportedModelError(f"layer {layer} builds an attention mask of its own")
    if sliding_window is not None and (not isinstance(sliding_window, int) or sliding_window < 1):
        raise UnsupportedModelError(
            f"layer {layer} has the window {sliding_window!r}: only a number of tokens is supported yet"
        )


FUSED = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Classes of transformers whose layers :mod:`pagedattn_lab.models.fused_decoder` computes."""


def fused_obstacle(model: PreTrainedModel, cache: PagedKVCache) -> str | None:
    """Say in a few words why a model cannot be computed as one fused loop; ``None`` if it can.

    It must be one of transformers' own classes, whose modules are as their configuration says and nobody's replacement:
    the loop reads their weights and leaves their code aside.

    Args:
        model: one that :func:`refuse_unsupported` lets pass.
        cache: where its keys and values go.
    """
    import torch

    name, kind = type(model).__name__, type(model)
    if name not in FUSED or not kind.__module__.startswith("transformers.models."):
        return f"{name} is none of {', '.join(sorted(FUSED))}"
    dtypes = {parameter.dtype for parameter in model.parameters()} | {cache.key_caches[0].dtype}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        return f"weights and cache are in {', '.join(sorted(map(str, dtypes)))}: one of float32 and bfloat16 is needed"
    if {parameter.device.type for parameter in model.parameters()} != {"cpu"}:
        return f"the model is on {model.device}"
    config, rotary = model.config, model.model.rotary_emb
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if rotary.rope_type == "longrope" or "dynamic" in rotary.rope_type:
        return f"its rotary angles depend on the length of the batch ({rotary.rope_type})"
    if 2 * rotary.inv_freq.numel() != model.model.layers[0].self_attn.head_dim:
        return "it rotates a part of each head"
    for name, module in model.named_modules():
        if not _is_as_configured(name, module, kind):
            return f"{name} is a {type(module).__name__}"
        if "forward" in vars(module) or any(map(_is_foreign, _hooks(module))):
            return f"{name} has a hook or a forward of its own"
    if find_spec("numba") is None:
        return "the package numba is not installed"
    return None


def _is_as_configured(name: str, module: torch.nn.Module, kind: type) -> bool:
    """Whether a module is of the class that transformers gives it in a model of that kind."""
    import torch

    if name.endswith(("_proj", "lm_head")):
        return type(module) is torch.nn.Linear
    if name.endswith("embed_tokens"):
        return type(module) is torch.nn.Embedding
    if name.endswith("norm"):
        return type(module).__name__.endswith("RMSNorm") and type(module).__module__ == kind.__module__
    return type(module).__module__ in (kind.__module__, "transformers.activations", "torch.nn.modules.container")


def _hooks(module: torch.nn.Module) -> Iterator[Any]:
    return chain(module._forward_hooks.values(), module._forward_pre_hooks.values())


def _is_foreign(hook: Any) -> bool:
    """Whether a hook is not one by which transformers notes hidden states and attention weights down."""
    return not getattr(hook, "__module__", "").startswith("transformers.")
