"""What one token costs: layers x KV heads x head dimension x bytes per element (chapter 01).

Every later figure of memory in the book is a multiple of :attr:`KVShape.bytes_per_token`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.arithmetic import at_least_one

DTYPE_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Bytes per element of the dtypes a KV cache is stored in."""

# Layer kinds, as in transformers' ``layer_types``, that keep keys and values for their tokens.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


@dataclass(frozen=True)
class KVShape:
    """The shape of the keys and values that one token leaves behind in a model.

    Args:
        num_layers: attention layers, each with a cache of its own.
        num_kv_heads: heads of keys and values; fewer than query heads under grouped-query attention.
        head_dim: elements in one head's key, and in its value.
        dtype: a name such as ``"bfloat16"``, or a ``torch.dtype``.

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
        """Bytes of keys and values that one token occupies over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

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
        """Read the shape from a model's published configuration.

        Args:
            config: a transformers configuration object, or the mapping in a model's ``config.json``.
            dtype: the dtype of the cache; by default the one the configuration names.

        Raises:
            ValueError: the configuration lacks a figure, keeps its cache in another form (multi-head latent
                attention, layers that share or lack one), or names no dtype and none is given.

        Example:
            >>> KVShape.from_config(
            ...     {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            ...      "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
            ... )
            KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype='bfloat16')
        """
        fields = _fields(config)
        if fields.get("kv_lora_rank"):
            raise ValueError(
                f"this configuration uses multi-head latent attention (kv_lora_rank = {fields['kv_lora_rank']}): "
                "it caches one compressed vector per token, not keys and values per head"
            )
        for name in ("num_kv_shared_layers", "global_head_dim", "is_encoder_decoder"):
            if fields.get(name):
                raise ValueError(f"this configuration sets {name} = {fields[name]}: its layers do not all cache alike")
        num_heads = _first(fields, "num_attention_heads", "n_head", "num_heads")
        head_dim = fields.get("head_dim") or _first(fields, "hidden_size", "n_embd", "d_model") // num_heads
        layer_types = fields.get("layer_types")
        if layer_types:
            num_layers = sum(kind in _ATTENTION_LAYERS for kind in layer_types)
        else:
            for name in ("full_attention_interval", "attn_layer_period"):
                if fields.get(name):
                    raise ValueError(
                        f"this configuration sets {name} = {fields[name]}: only some of its layers keep a KV cache, "
                        "so build the KVShape from their number yourself"
                    )
            num_layers = _first(fields, "num_hidden_layers", "n_layer", "num_layers")
        dtype = dtype or fields.get("dtype") or fields.get("torch_dtype")
        if dtype is None:
            raise ValueError("the configuration names no dtype: pass one, for example dtype='bfloat16'")
        return cls(num_layers, _num_kv_heads(fields, num_heads), head_dim, dtype)


def _fields(config: Any) -> Mapping[str, Any]:
    """Give the text model's fields of a configuration object or mapping."""
    if isinstance(config, Mapping):
        return config.get("text_config") or config
    config = config.get_text_config()
    # Attributes too: transformers maps names such as num_hidden_layers onto a model's own (n_layer).
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
    try:
        return config.to_dict() | {name: getattr(config, name) for name in names if hasattr(config, name)}
    except Exception as error:  # a configuration may refuse to answer for all its layers at once
        raise ValueError(f"{type(config).__name__} gives no one KV shape for all layers ({error})") from error


def _num_kv_heads(fields: Mapping[str, Any], num_heads: int) -> int:
    """Read how many KV heads there are, under the names that families of models have for it."""
    if fields.get("num_key_value_heads"):
        return fields["num_key_value_heads"]
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return 1  # Falcon-7B, StarCoder
    return fields.get("num_kv_heads") or fields.get("multi_query_group_num") or num_heads  # Falcon-40B, ChatGLM


def _first(fields: Mapping[str, Any], *names: str) -> int:
    """Give the first of several names that a configuration may use for one figure."""
    for name in names:
        if fields.get(name):
            return fields[name]
    raise ValueError(f"the configuration has no {names[0]}: it needs one of {', '.join(names)}")
