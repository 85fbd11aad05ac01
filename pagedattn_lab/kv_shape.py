"""What one token costs: layers x KV heads x head dimension x bytes per element (chapter 01).

Every later figure of memory in the book is a multiple of :attr:`KVShape.bytes_per_token`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.arithmetic import at_least_one

DTYPE_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "fp8_per_token_head": 1,
    "int8_per_token_head": 1,
}
"""Bytes per element of the dtypes a KV cache is stored in.

The last two are vLLM's names for float8_e4m3fn and int8 with a scale for each token and head; without that ending, one
scale holds for a whole tensor.
"""

SCALE_BYTES = 4
"""Bytes of a scale, a float32. Each token and head has one for its key and one for its value, if it has any."""

KV_CACHE_DTYPES = {
    "auto": None,
    "fp8": "float8_e4m3fn",
    "fp8_per_token_head": "fp8_per_token_head",
    "int8": "int8_per_token_head",
    "int8_per_token_head": "int8_per_token_head",
}
"""What a user may ask a cache to be kept in, and its name in a :class:`KVShape`; ``None`` is the model's dtype.

The names are those of vLLM's ``--kv-cache-dtype``, ``int8`` apart: a single scale for all of a tensor's integers would
have to be measured first, so the short name means what vLLM calls ``int8_per_token_head``.
"""

# Layer kinds, as in transformers' ``layer_types``: those that keep keys and values of their tokens, those that do not.
_ATTENTION_LAYERS = {
    "full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid", "hybrid_sliding",
}  # fmt: skip
_LAYERS_WITHOUT_CACHE = {"linear_attention", "mamba", "recurrent", "conv", "moe", "mlp"}

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
_OTHER_CACHES = {
    "kv_lora_rank": "multi-head latent attention caches one compressed vector per token, not keys and values per head",
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

# Figures that may differ from the one for all layers: of values, or of some layers only.
_VARIANTS = {
    "v_head_dim": "head_dim", "swa_head_dim": "head_dim", "swa_v_head_dim": "head_dim", "global_head_dim": "head_dim",
    "swa_num_key_value_heads": "num_key_value_heads", "num_global_key_value_heads": "num_key_value_heads",
}  # fmt: skip

_QUERY_GROUPS = ("multi_query", "new_decoder_architecture", "multi_query_attention", "multi_query_group_num")
_SETTINGS = (*_OTHER_CACHES, *_LAYER_PATTERNS, *_VARIANTS, *_QUERY_GROUPS, "per_layer_config", "kv_sharing_modes")


_CAUSAL_WHATEVER_IS_DECODER_SAYS = {"gpt_neox", "gpt_neox_japanese"}
"""Model types whose class has ``is_decoder``, False by default, though their attention is always causal."""


@dataclass(frozen=True)
class KVShape:
    """The shape of the keys and values that one token leaves behind in a model.

    Args:
        num_layers: attention layers, each with a cache of its own.
        num_kv_heads: heads of keys and values; fewer than query heads under grouped-query attention.
        head_dim: elements in one head's key, and in its value.
        dtype: a name such as ``"bfloat16"``, or a ``torch.dtype``; see :data:`DTYPE_BYTES`.

    Raises:
        ValueError: a count below 1, or an unknown dtype.

    Example:
        OPT-13B in half precision, the paper's example (section 3): 800 KiB per token.

        >>> shape = KVShape(num_layers=40, num_kv_heads=40, head_dim=128, dtype="float16")
        >>> shape.bytes_per_token
        819200
        >>> shape.bytes_per_block(16) == 16 * shape.bytes_per_token
        True
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        """Normalise the dtype's name and refuse impossible shapes."""
        for name in ("num_layers", "num_kv_heads", "head_dim"):
            at_least_one(name, getattr(self, name))
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {dtype!r} is not one a KV cache is stored in: use one of {', '.join(DTYPE_BYTES)}")
        object.__setattr__(self, "dtype", dtype)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token occupies over all layers, scales of its own included.

        Source: vLLM counts these scales in a page too, in ``page_size_bytes`` of ``vllm/v1/kv_cache_interface.py``. The
        one scale of a whole tensor belongs to no page.

        Example:
            128 numbers and a scale, 132 bytes, for each head's key and value:

            >>> KVShape(32, 8, 128, "int8_per_token_head").bytes_per_token / KVShape(32, 8, 128, "int8").bytes_per_token
            1.03125
        """
        scales = SCALE_BYTES if self.dtype.endswith("_per_token_head") else 0
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * DTYPE_BYTES[self.dtype] + scales)

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes that one block of ``block_size`` tokens occupies over all layers.

        Raises:
            ValueError: ``block_size`` below 1.
        """
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}: a block holds at least 1 token")
        return block_size * self.bytes_per_token

    @classmethod
    def from_config(cls, config: Any, dtype: Any = None) -> KVShape:
        """Read the shape from a model's published configuration, or refuse where one shape cannot say what it caches.

        The shape counts what a token leaves behind in layers with attention, before any window drops it: a sliding
        window caps how many tokens a layer keeps, not what each of them takes. Layers without attention (state-space,
        convolution) keep a state of constant size, and add nothing per token.

        What a file leaves out, its model's class fills in, so a mapping that names a ``model_type`` is read through
        transformers. If its type is unknown there, or transformers is not installed, the file must name the heads
        itself. A mapping without a type is read as it stands: no ``num_key_value_heads`` means as many as query heads,
        no ``head_dim`` means ``hidden_size / num_attention_heads``.

        Args:
            config: a transformers configuration object, or the mapping in a model's ``config.json``.
            dtype: the dtype of the cache; by default the one the configuration names.

        Raises:
            ValueError: the configuration lacks a figure, keeps its cache in another form (latent attention, an index
                beside it, cross-attention), has layers that do not cache alike or share a cache, keys and values of
                different widths, no cache at all, or names no dtype and none is given.

        Example:
            >>> KVShape.from_config(
            ...     {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            ...      "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
            ... )
            KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype='bfloat16')
        """
        fields = _text_fields(config)
        for name, reason in _OTHER_CACHES.items():
            if fields.get(name):
                raise _no_one_shape(f"it sets {name} = {fields[name]}, and {reason}")
        num_layers = _num_attention_layers(fields)
        figures = {"num_key_value_heads": _num_kv_heads(fields), "head_dim": _head_dim(fields)}
        for variant, name in _VARIANTS.items():
            if fields.get(variant) and fields[variant] != figures[name]:
                raise _no_one_shape(f"it sets {variant} = {fields[variant]} beside {name} = {figures[name]}")
        dtype = dtype or fields.get("dtype")
        if dtype is None:
            raise ValueError("the configuration names no dtype: pass one, for example dtype='bfloat16'")
        return cls(num_layers, figures["num_key_value_heads"], figures["head_dim"], dtype)


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
        raise ValueError(f"transformers cannot read this configuration of type {model_type!r} ({error})") from error


def _as_in_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a mapping as its file would hold it, with infinities as numbers, which transformers writes as objects."""
    text = json.dumps(dict(mapping), default=lambda value: str(value).removeprefix("torch."))
    return json.loads(text, object_hook=lambda read: float(read["__float__"]) if read.keys() == {"__float__"} else read)


def _text_fields(config: Any) -> dict[str, Any]:
    """Give what a configuration says of its text decoder, each figure under its usual name.

    ``left_out_by`` is the model type, if any, that decides what a figure left out means, and that nobody here knows.
    """
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
        for name in ("dtype", "is_encoder_decoder"):  # some files name these at the top only
            fields[name] = fields[name] or _fields(outer)[name]
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
        named = {"skip", *_VARIANTS, *(name for names in figures.values() for name in names)} & set(overrides)
        if named:  # reading one of these from the whole configuration would raise
            raise _no_one_shape(f"per_layer_config gives layer {int(layer)} another {', '.join(sorted(named))}")
    fields = {name: read(name) for name in _SETTINGS}
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
        return _required(fields, "num_hidden_layers")
    unknown = set(kinds) - _ATTENTION_LAYERS - _LAYERS_WITHOUT_CACHE
    if unknown:
        raise _no_one_shape(f"what its layers of kind {', '.join(sorted(unknown))} cache is not keys and values alone")
    if fields["num_hidden_layers"] not in (None, len(kinds)):
        raise ValueError(
            f"{len(kinds)} layer kinds for num_hidden_layers = {fields['num_hidden_layers']}: give as many"
        )
    num_layers = sum(kind in _ATTENTION_LAYERS for kind in kinds)
    if not num_layers:
        raise ValueError("none of the configuration's layers has attention: it keeps a state of constant size instead")
    return num_layers


def _num_kv_heads(fields: Mapping[str, Any]) -> int:
    """Read how many KV heads every layer has."""
    if fields["multi_query"] and not fields["new_decoder_architecture"]:
        return 1  # Falcon-7B, StarCoder
    if fields["multi_query_attention"] is False:  # ChatGLM
        return _required(fields, "num_attention_heads")
    if fields["multi_query_group_num"]:
        return fields["multi_query_group_num"]
    if fields["num_key_value_heads"] or fields["left_out_by"]:
        return _required(fields, "num_key_value_heads")
    return _required(fields, "num_attention_heads")


def _head_dim(fields: Mapping[str, Any]) -> int:
    """Read how many elements a head's key has."""
    if fields["head_dim"] or fields["left_out_by"]:
        return _required(fields, "head_dim")
    hidden_size, num_heads = _required(fields, "hidden_size"), _required(fields, "num_attention_heads")
    return hidden_size // num_heads


def _required(fields: Mapping[str, Any], name: str) -> int:
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
