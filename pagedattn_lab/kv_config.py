"""What a model's published configuration says of its KV cache (chapter 01).

Families of models name the same figures differently, leave out what their class knows, and cache other things than
equal keys and values in every layer. What one shape cannot say is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

# Layer kinds, as in transformers' ``layer_types``: those that keep keys and values of their tokens, those that do not.
ATTENTION_LAYERS = {
    "full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid", "hybrid_sliding",
}  # fmt: skip
LAYERS_WITHOUT_CACHE = {"linear_attention", "mamba", "recurrent", "conv", "moe", "mlp"}

# The names that families of models have for one figure, the usual one first.
_NAMES = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "num_key_value_heads_per_layer"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "head_dim": ("head_dim", "kv_channels", "dim_head"),
    "dtype": ("dtype", "torch_dtype"),
    "layer_types": ("layer_types", "layers_block_type"),
}

# Settings under which a token leaves something else behind than equal keys and values in every layer.
OTHER_CACHES = {
    "is_encoder_decoder": "an encoder-decoder also caches the encoder's output, once per prompt",
    "add_cross_attention": "cross-attention also caches another sequence, once per prompt",
    "cross_attention_layers": "cross-attention layers cache an image's tokens, not the prompt's",
    "num_kv_shared_layers": "so many of its last layers read the cache of earlier ones and keep none",
    "block_configs": "each of its layers has heads of its own",
    "mem_len": "it caches hidden states, not keys and values",  # Transformer-XL, XLNet
    "attn_layers": "layers that hash cache buckets and hidden states, not keys and values",  # Reformer
}

# Settings that say which layers have attention, where no list of layer kinds does.
_LAYER_PATTERNS = (
    "full_attention_interval", "attn_layer_period", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids",
    "hybrid_override_pattern", "attn_type_list", "block_types",
)  # fmt: skip

# Figures of some layers only, which may differ from the one for all layers.
VARIANTS = {
    "swa_head_dim": "head_dim", "swa_v_head_dim": "v_head_dim", "global_head_dim": "head_dim",
    "swa_num_key_value_heads": "num_key_value_heads", "num_global_key_value_heads": "num_key_value_heads",
}  # fmt: skip

_QUERY_GROUPS = ("multi_query", "new_decoder_architecture", "multi_query_attention", "multi_query_group_num")
_LATENTS = ("kv_lora_rank", "qk_rope_head_dim", "index_head_dim")
_SETTINGS = (
    *OTHER_CACHES, *_LAYER_PATTERNS, *VARIANTS, *_QUERY_GROUPS, *_LATENTS, "v_head_dim", "per_layer_config",
    "kv_sharing_modes", "model_type",
)  # fmt: skip

# What a server's budget reads besides: windows, states, the vocabulary, drafts, how weights are stored.
_BUDGET_SETTINGS = (
    "sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size", "no_rope_layers", "index_topk",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings", "quantization_config", "architectures",
    "num_nextn_predict_layers", "mtp_num_hidden_layers", "partial_rotary_factor", "rope_parameters", "rope_scaling",
    "qk_nope_head_dim", "attn_layer_offset",
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "intermediate_size", "moe_intermediate_size", "num_experts_per_tok",
    "linear_conv_kernel_dim", "mamba_ssm_dtype", "mamba_ssm_cache_dtype", "mamba_expand", "mamba_n_groups",
    "mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_d_conv", "mamba_d_ssm", "mamba_num_heads",
    "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "conv_dim", "conv_L_cache",
    "position_embedding_type",
)  # fmt: skip


class CompleteConfig(dict[str, Any]):
    """What a configuration says of its text decoder, with all that its class knows filled in: nothing is left out.

    The keys are the usual names. A figure that is missing or None does not exist for this model.
    """


_OTHER_HEADS_IN_WINDOWS = {"mimo_v2_flash"}
"""Model types whose layers with a sliding window have twice the KV heads, though no setting says so."""

_CAUSAL_WHATEVER_IS_DECODER_SAYS = {"gpt_neox", "gpt_neox_japanese"}
"""Model types whose class has ``is_decoder``, False by default, though their attention is always causal."""


def cached_figures(config: Any) -> dict[str, Any]:
    """Read the arguments of a :class:`pagedattn_lab.kv_shape.KVShape`, or refuse where one shape cannot say it all.

    Args:
        config: a transformers configuration object, or the mapping in a model's ``config.json``.

    Returns:
        One figure for each field of the shape; the dtype is ``None`` where the configuration names none.

    Raises:
        ValueError: see :meth:`pagedattn_lab.kv_shape.KVShape.from_config`.

    Example:
        >>> cached_figures({"num_hidden_layers": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
        {'num_layers': 2, 'num_kv_heads': 1, 'head_dim': 576, 'value_dim': 512, 'latent': True, 'dtype': None}
    """
    fields = text_fields(config)
    for name, reason in OTHER_CACHES.items():
        if fields.get(name):
            raise _no_one_shape(f"it sets {name} = {fields[name]}, and {reason}")
    num_layers = _num_attention_layers(fields)
    if fields["index_head_dim"]:
        raise _no_one_shape(f"it sets index_head_dim = {fields['index_head_dim']} and caches index keys as well")
    rank = fields["kv_lora_rank"]
    if rank:  # one latent for all heads, and behind it the part of a key that is rotated
        num_kv_heads, head_dim, value_dim = 1, rank + required(fields, "qk_rope_head_dim"), rank
    else:
        num_kv_heads, head_dim = read_num_kv_heads(fields), read_head_dim(fields)
        value_dim = fields["v_head_dim"] or head_dim
        figures = {"num_key_value_heads": num_kv_heads, "head_dim": head_dim, "v_head_dim": value_dim}
        for variant, name in VARIANTS.items():
            if fields.get(variant) and fields[variant] != figures[name]:
                raise _no_one_shape(f"it sets {variant} = {fields[variant]} beside {name} = {figures[name]}")
    return {
        "num_layers": num_layers, "num_kv_heads": num_kv_heads, "head_dim": head_dim,
        "value_dim": value_dim, "latent": bool(rank), "dtype": fields["dtype"],
    }  # fmt: skip


def _no_one_shape(cause: str) -> ValueError:
    """Make the error that refuses a configuration, with what to do about it."""
    return ValueError(
        f"this configuration has no one KV shape: {cause}. "
        "Build KVShape(num_layers, num_kv_heads, head_dim, dtype) yourself, one for each group of equal layers"
    )


def _with_class_defaults(mapping: Mapping[str, Any]) -> Any:
    """Turn a mapping into a configuration object, which knows what the mapping leaves out; or give it back as it is."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return mapping
    model_type = mapping.get("model_type")
    if model_type is None or model_type not in CONFIG_MAPPING:
        return mapping
    try:
        return CONFIG_MAPPING[model_type].from_dict(_as_in_json(mapping))
    except Exception as error:  # each class checks its own figures, and raises what it likes
        cause = " ".join(str(error).split())
        raise ValueError(f"transformers cannot read this configuration of type {model_type!r} ({cause})") from error


def _as_in_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a mapping as its file would hold it, with infinities as numbers, which transformers writes as objects."""
    text = json.dumps(dict(mapping), default=lambda value: str(value).removeprefix("torch."))
    return json.loads(text, object_hook=lambda read: float(read["__float__"]) if read.keys() == {"__float__"} else read)


def text_fields(config: Any) -> dict[str, Any]:
    """Give what a configuration says of its text decoder, each figure under its usual name.

    ``left_out_by`` is the model type, if any, that decides what a figure left out means, and that nobody here knows.
    """
    if isinstance(config, CompleteConfig):
        return {name: config.get(name) for name in (*_NAMES, *_SETTINGS, *_BUDGET_SETTINGS, "left_out_by")}
    outer = _with_class_defaults(config) if isinstance(config, Mapping) else config
    if isinstance(outer, Mapping):
        text = _with_class_defaults(outer["text_config"]) if outer.get("text_config") else outer
    else:
        text = outer.get_text_config(decoder=True)
    for name in ("is_decoder", "is_causal", "causal"):  # of the class: any configuration may carry a stray is_decoder
        matters = (
            hasattr(type(text), name) and getattr(text, "model_type", None) not in _CAUSAL_WHATEVER_IS_DECODER_SAYS
        )
        if matters and getattr(text, name) is False:
            raise ValueError(f"this configuration sets {name} = False, so its tokens see later ones and none is cached")
    fields = _fields(text)
    if text is not outer:
        top = _fields(outer)
        for name in ("dtype", "is_encoder_decoder", "quantization_config", "architectures"):
            fields[name] = fields[name] or top[name]  # some files name these at the top only
    is_mapping = isinstance(text, Mapping)
    fields["left_out_by"] = (text.get("model_type") or outer.get("model_type")) if is_mapping else None
    return fields


def _fields(source: Any) -> dict[str, Any]:
    """Read what this module knows of, from an object's attributes or a mapping's keys."""
    if isinstance(source, Mapping):
        read: Callable[[str], Any] = source.get
        per_layer = source.get("per_layer_config")
    else:  # an object has dtype alone, and prints a warning when asked for torch_dtype
        read, per_layer = (lambda name: None if name == "torch_dtype" else getattr(source, name, None)), None
        if getattr(source, "is_heterogeneous", False):
            per_layer = source.to_dict().get("per_layer_config")
    figures = {name: names for name, names in _NAMES.items() if name != "layer_types"}
    for layer, overrides in (per_layer or {}).items():
        named = {"skip", *VARIANTS, *(name for names in figures.values() for name in names)} & set(overrides)
        if named:  # reading one of these from the whole configuration would raise
            raise _no_one_shape(f"per_layer_config gives layer {int(layer)} another {', '.join(sorted(named))}")
    fields = {name: read(name) for name in (*_SETTINGS, *_BUDGET_SETTINGS)}
    for name, names in _NAMES.items():
        fields[name] = next((value for value in map(read, names) if value), None)
    return fields


def _num_attention_layers(fields: Mapping[str, Any]) -> int:
    """Count the layers in which a token leaves keys and values."""
    kinds = fields["layer_types"]
    if "reuse" in (fields["kv_sharing_modes"] or ()):
        raise _no_one_shape("some of its layers read the cache of others (kv_sharing_modes) and keep none")
    if not kinds:
        for name in _LAYER_PATTERNS:
            if fields[name]:
                raise _no_one_shape(f"it sets {name} = {fields[name]}, so only some of its layers keep a KV cache")
        return required(fields, "num_hidden_layers")
    unknown = set(kinds) - ATTENTION_LAYERS - LAYERS_WITHOUT_CACHE
    if unknown:
        raise _no_one_shape(f"what its layers of kind {', '.join(sorted(unknown))} cache is not keys and values alone")
    if "sliding_attention" in kinds and fields["model_type"] in _OTHER_HEADS_IN_WINDOWS:
        raise _no_one_shape("its layers with a sliding window have twice the KV heads of the others")
    if fields["num_hidden_layers"] not in (None, len(kinds)):
        raise ValueError(
            f"{len(kinds)} layer kinds for num_hidden_layers = {fields['num_hidden_layers']}: give as many"
        )
    num_layers = sum(kind in ATTENTION_LAYERS for kind in kinds)
    if not num_layers:
        raise ValueError("none of the configuration's layers has attention: it keeps a state of constant size instead")
    return num_layers


def read_num_kv_heads(fields: Mapping[str, Any]) -> int:
    """Read how many KV heads every layer has."""
    if fields["multi_query"] and not fields["new_decoder_architecture"]:
        return 1  # Falcon-7B, StarCoder
    if fields["multi_query_attention"] is False:  # ChatGLM
        return required(fields, "num_attention_heads")
    if fields["multi_query_group_num"]:
        return fields["multi_query_group_num"]
    if fields["num_key_value_heads"] or fields["left_out_by"]:
        return required(fields, "num_key_value_heads")
    return required(fields, "num_attention_heads")


def read_head_dim(fields: Mapping[str, Any]) -> int:
    """Read how many elements a head's key has."""
    if fields["head_dim"] or fields["left_out_by"]:
        return required(fields, "head_dim")
    hidden_size, num_heads = required(fields, "hidden_size"), required(fields, "num_attention_heads")
    return hidden_size // num_heads


def required(fields: Mapping[str, Any], name: str) -> int:
    """Give one figure that holds for all layers, or say that it is missing or differs."""
    value = fields[name]
    if isinstance(value, list | tuple):
        if len(set(value)) > 1:
            raise _no_one_shape(f"{name} differs from layer to layer ({value})")
        value = value[0]
    if value is not None:
        return value
    missing = f"the configuration has no {name}, without which no KV cache has a shape: add it"
    if fields["left_out_by"]:
        missing += f", because what model type {fields['left_out_by']!r} takes for it is known only to its class"
    raise ValueError(missing)
