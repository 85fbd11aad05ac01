"""What one token costs: layers x KV heads x head dimension x bytes per element (chapter 01).

Every later figure of memory in the book is a multiple of :attr:`KVShape.bytes_per_token`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.kv_config import cached_figures

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


@dataclass(frozen=True)
class KVShape:
    """The shape of the keys and values that one token leaves behind in a model.

    Args:
        num_layers: attention layers, each with a cache of its own.
        num_kv_heads: heads of keys and values; fewer than query heads under grouped-query attention.
        head_dim: elements in one head's key.
        dtype: a name such as ``"bfloat16"``, or a ``torch.dtype``; see :data:`DTYPE_BYTES`.
        value_dim: elements in one head's value; by default as many as in its key.
        latent: whether a layer keeps one vector per token for all its heads, from which keys and values are made
            (multi-head latent attention). The vector is the key of one KV head, its first ``value_dim`` elements are
            the value, and nothing is kept for values.

    Raises:
        ValueError: a count below 1, an unknown dtype, or latents of several heads or narrower than their values.

    Example:
        OPT-13B in half precision, the paper's example (section 3): 800 KiB per token.

        >>> shape = KVShape(num_layers=40, num_kv_heads=40, head_dim=128, dtype="float16")
        >>> shape.bytes_per_token
        819200
        >>> shape.bytes_per_block(16) == 16 * shape.bytes_per_token
        True

        DeepSeek-V3 keeps 512 + 64 numbers a token and layer, and would keep 71 times as many without latents.

        >>> latents = KVShape(61, 1, 512 + 64, "bfloat16", value_dim=512, latent=True)
        >>> expanded = KVShape(61, 128, 128 + 64, "bfloat16", value_dim=128)
        >>> latents.bytes_per_token, expanded.bytes_per_token // latents.bytes_per_token
        (70272, 71)

    Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, section 2.1, for latents.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    value_dim: int = None  # type: ignore[assignment]  # a number from __post_init__ on
    latent: bool = False

    def __post_init__(self) -> None:
        """Normalise the dtype's name, fill in the width of values and refuse impossible shapes."""
        if self.value_dim is None:
            object.__setattr__(self, "value_dim", self.head_dim)
        for name in ("num_layers", "num_kv_heads", "head_dim", "value_dim"):
            at_least_one(name, getattr(self, name))
        if self.latent and (self.num_kv_heads != 1 or self.value_dim > self.head_dim):
            raise ValueError(
                f"latents of {self.num_kv_heads} KV heads, {self.head_dim} elements wide with values of "
                f"{self.value_dim}: a latent has 1 KV head, and its value is a part of it"
            )
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {dtype!r} is not one a KV cache is stored in: use one of {', '.join(DTYPE_BYTES)}")
        object.__setattr__(self, "dtype", dtype)

    def __repr__(self) -> str:
        """Name what is usual only where it is not."""
        usual = {"value_dim": self.head_dim, "latent": False}
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        said = (f"{name}={value!r}" for name, value in named.items() if name not in usual or value != usual[name])
        return f"KVShape({', '.join(said)})"

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
        scale = SCALE_BYTES if self.dtype.endswith("_per_token_head") else 0
        rows = [self.head_dim] if self.latent else [self.head_dim, self.value_dim]  # of one head
        of_one_head = sum(elements * DTYPE_BYTES[self.dtype] + scale for elements in rows)
        return self.num_layers * self.num_kv_heads * of_one_head

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
            ValueError: the configuration lacks a figure, keeps its cache in another form (an index beside it,
                cross-attention), has layers that do not cache alike or share a cache, no cache at all, or names no
                dtype and none is given.

        Example:
            >>> KVShape.from_config(
            ...     {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            ...      "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
            ... )
            KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype='bfloat16')
        """
        figures = cached_figures(config)
        figures["dtype"] = dtype or figures["dtype"]
        if figures["dtype"] is None:
            raise ValueError("the configuration names no dtype: pass one, for example dtype='bfloat16'")
        return cls(**figures)
