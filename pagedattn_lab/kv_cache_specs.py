"""How one layer keeps its cache: bytes of a block, and blocks that one request can come to hold (chapters 10 and 11).

A model with one kind of attention has one answer for all layers, a :class:`~pagedattn_lab.kv_shape.KVShape`. Newer
models mix kinds. A sliding window drops what has left the window, a state-space layer keeps one state however long the
text, and a drafter brings layers of its own size. So each layer gets a *spec*, which answers two questions:

* ``page_size_bytes``: how many bytes is one block of this layer? vLLM calls one layer's part of a block a *page*.
* ``max_blocks_per_request(limits)``: how many blocks does a request hold at most, under a server's limits?

From these follow groups, blocks and concurrency of a whole model (:mod:`~pagedattn_lab.kv_cache_groups`). Names and
figures are those of vLLM 0.33.0, ``vllm/v1/kv_cache_interface.py``.

Example:
    A layer of Llama-3.1-8B, and what a context of 8,192 tokens takes of it; then the same with a window, as in Mistral:

    >>> limits = RequestLimits(max_model_len=8192, max_in_flight_tokens=2048)
    >>> full = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype="bfloat16")
    >>> full.page_size_bytes, full.max_blocks_per_request(limits)
    (65536, 512)
    >>> SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=4096).max_blocks_per_request(limits)
    385
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.kv_shape import DTYPE_BYTES, SCALE_BYTES

MambaCacheMode = Literal["none", "align", "all"]
"""What a state-space layer remembers for others; see :class:`MambaSpec`."""


def _at_least_zero(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 0")


@dataclass(frozen=True)
class RequestLimits:
    """What a server allows one request, as far as the cache is concerned.

    Args:
        max_model_len: tokens that a request may come to have, prompt and output together.
        max_in_flight_tokens: tokens that may be scheduled and not yet settled: ``max_num_batched_tokens`` times the
            steps that run at once (two with asynchronous scheduling). Layers drop old tokens only when the step that
            passed them has settled, so those that drop any need room for these on top.
        mamba_cache_mode: ``"none"`` without prefix caching, ``"align"`` with it, ``"all"`` as in older vLLM.

    Raises:
        ValueError: a number below 1 or another mode.

    Source: vLLM's ``max_in_flight_tokens`` in ``vllm/config/vllm.py`` (pull request 47728).
    """

    max_model_len: int
    max_in_flight_tokens: int
    mamba_cache_mode: MambaCacheMode = "none"

    def __post_init__(self) -> None:
        """Refuse limits under which no request could run."""
        at_least_one("max_model_len", self.max_model_len)
        at_least_one("max_in_flight_tokens", self.max_in_flight_tokens)
        if self.mamba_cache_mode not in ("none", "align", "all"):
            raise ValueError(f"mamba_cache_mode is {self.mamba_cache_mode!r}: use 'none', 'align' or 'all'")


@dataclass(frozen=True)
class KVCacheSpec(ABC):
    """How one layer keeps its cache.

    Args:
        block_size: tokens in a block. For a layer with one state it is how often a state could be kept.
    """

    block_size: int
    kind: ClassVar[str]  # what the layer does, in words
    table: ClassVar[str]
    """The kind of block table it reads: latents are kept for every token, so they read the table of full attention."""
    table_fields: ClassVar[tuple[str, ...]] = ("block_size",)

    def __post_init__(self) -> None:
        """Refuse an impossible block."""
        at_least_one("block_size", self.block_size)

    @property
    @abstractmethod
    def unpadded_page_size_bytes(self) -> int:
        """Bytes of one block of this layer that hold something."""

    @property
    def page_size_bytes(self) -> int:
        """Bytes of one block of this layer, padded if it must be as large as another layer's."""
        padded: int | None = self.page_size_padded  # type: ignore[attr-defined]  # each kind has it
        return self.unpadded_page_size_bytes if padded is None else padded

    def _check_padding(self) -> None:
        if self.page_size_bytes < self.unpadded_page_size_bytes:
            raise ValueError(
                f"a page padded to {self.page_size_bytes:,} bytes does not hold the "
                f"{self.unpadded_page_size_bytes:,} bytes of a block"
            )

    @abstractmethod
    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks that one request holds at most."""

    @property
    def table_key(self) -> Hashable:
        """What must be equal for two layers to be able to read one block table.

        Layers of one table hold the same tokens at the same places, so they need their blocks at the same times. How
        wide a token is may differ.
        """
        return (self.table, *(getattr(self, name) for name in self.table_fields))


def _row_bytes(head_size: int, dtype: str) -> int:
    """Bytes of one head's key or value of one token, its scale included."""
    if dtype == "nvfp4":  # two numbers a byte, and one byte of scale for 16 of them: 0.5625 bytes a number
        return head_size // 2 + head_size // 16
    return head_size * DTYPE_BYTES[dtype] + (SCALE_BYTES if dtype.endswith("_per_token_head") else 0)


def _checked_dtype(dtype: object, *more: str) -> str:
    name = str(dtype).removeprefix("torch.")
    known = (*DTYPE_BYTES, *more)
    if name not in known:
        raise ValueError(f"dtype {name!r} is not one this kind of cache is stored in: use one of {', '.join(known)}")
    return name


@dataclass(frozen=True)
class AttentionSpec(KVCacheSpec):
    """A layer that keeps a key and a value for each KV head and token.

    Args:
        num_kv_heads: KV heads on one GPU: under tensor parallelism a GPU has its share of them, at least one.
        head_size: elements of a key.
        dtype: a name of :data:`~pagedattn_lab.kv_shape.DTYPE_BYTES`, or ``"nvfp4"``: two numbers a byte and a byte of
            scale for each 16 of them, 0.5625 bytes a number.
        head_size_v: elements of a value; as many as of a key unless said.
        page_size_padded: bytes that a page is padded to.

    Raises:
        ValueError: a count below 1, an unknown dtype, a padded page smaller than its content, or nvfp4 with heads that
            vLLM does not pack (keys and values of different widths, or no multiple of 16).

    Example:
        >>> [FullAttentionSpec(16, 8, 128, dtype).page_size_bytes for dtype in ("bfloat16", "float8_e4m3fn", "nvfp4")]
        [65536, 32768, 18432]
    """

    num_kv_heads: int
    head_size: int
    dtype: str
    head_size_v: int = None  # type: ignore[assignment]  # a number from __post_init__ on
    page_size_padded: int | None = None

    def __post_init__(self) -> None:
        """Normalise the dtype's name, fill in the width of values and refuse impossible heads."""
        super().__post_init__()
        if self.head_size_v is None:
            object.__setattr__(self, "head_size_v", self.head_size)
        for name in ("num_kv_heads", "head_size", "head_size_v"):
            at_least_one(name, getattr(self, name))
        object.__setattr__(self, "dtype", _checked_dtype(self.dtype, "nvfp4"))
        if self.dtype == "nvfp4" and (self.head_size != self.head_size_v or self.head_size % 16):
            raise ValueError(
                f"nvfp4 keys of {self.head_size} and values of {self.head_size_v} elements: vLLM packs them only if "
                "both are equal and a multiple of 16"
            )
        self._check_padding()

    @property
    def unpadded_page_size_bytes(self) -> int:
        """Bytes of keys and values, scales included, of one block of this layer."""
        rows = _row_bytes(self.head_size, self.dtype) + _row_bytes(self.head_size_v, self.dtype)
        return self.block_size * self.num_kv_heads * rows


@dataclass(frozen=True)
class FullAttentionSpec(AttentionSpec):
    """A layer that reads every token before: a request of ``L`` tokens holds ``ceil(L / block_size)`` blocks.

    Args:
        sliding_window: the window of a layer that has one but is *kept* like full attention, because the manager of
            several groups is off. What the layer computes stays the same, what it keeps is not.
        attention_chunk_size: the same for chunks.
    """

    sliding_window: int | None = field(default=None, kw_only=True)
    attention_chunk_size: int | None = field(default=None, kw_only=True)
    kind: ClassVar[str] = "full attention"
    table: ClassVar[str] = "every token"

    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks for all tokens."""
        return cdiv(limits.max_model_len, self.block_size)


@dataclass(frozen=True)
class SlidingWindowSpec(AttentionSpec):
    """A layer that reads the last ``sliding_window`` tokens and drops blocks that hold only older ones.

    A request holds the window up to its newest token, and every token that is in flight:
    ``ceil(min(sliding_window - 1 + in_flight, L) / block_size) + 1`` blocks. The 1 is there because a window can begin
    in the middle of a block.

    Args:
        sliding_window: tokens that a token reads, itself included.
        extra_retained_tokens: older tokens kept all the same, for drafters that compute some of them again.
    """

    sliding_window: int = field(kw_only=True)
    extra_retained_tokens: int = field(default=0, kw_only=True)
    kind: ClassVar[str] = "sliding window"
    table: ClassVar[str] = "window"
    table_fields: ClassVar[tuple[str, ...]] = ("block_size", "sliding_window")

    def __post_init__(self) -> None:
        """Refuse a window that is none."""
        super().__post_init__()
        at_least_one("sliding_window", self.sliding_window)
        _at_least_zero("extra_retained_tokens", self.extra_retained_tokens)

    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks for the window and what is in flight."""
        kept = self.sliding_window - 1 + self.extra_retained_tokens + limits.max_in_flight_tokens
        return cdiv(min(kept, limits.max_model_len), self.block_size) + 1


@dataclass(frozen=True)
class ChunkedLocalAttentionSpec(AttentionSpec):
    """A layer that reads the tokens of its own chunk: chunks lie one after another, and never look back (Llama 4).

    A request holds ``ceil(min(attention_chunk_size + in_flight, L) / block_size)`` blocks. Chunks begin at multiples of
    their size, so no block is added for a beginning in the middle.

    Args:
        attention_chunk_size: tokens in a chunk.
    """

    attention_chunk_size: int = field(kw_only=True)
    kind: ClassVar[str] = "chunked attention"
    table: ClassVar[str] = "chunk"
    table_fields: ClassVar[tuple[str, ...]] = ("block_size", "attention_chunk_size")

    def __post_init__(self) -> None:
        """Refuse a chunk that is none."""
        super().__post_init__()
        at_least_one("attention_chunk_size", self.attention_chunk_size)

    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks for one chunk and what is in flight."""
        kept = self.attention_chunk_size + limits.max_in_flight_tokens
        return cdiv(min(kept, limits.max_model_len), self.block_size)


@dataclass(frozen=True)
class MLAAttentionSpec(KVCacheSpec):
    """A layer that keeps one latent a token, from which all heads make their keys and values (DeepSeek).

    Every head needs the whole latent, so tensor parallelism does not split it: each GPU keeps all of it.

    Args:
        head_size: elements of a latent, the part with positions included (DeepSeek-V2 and V3: 512 + 64).
        dtype: as in :class:`AttentionSpec`, without nvfp4. With scales of its own a latent has two of them.
        page_size_padded: bytes that a page is padded to.

    Example:
        >>> MLAAttentionSpec(block_size=64, head_size=576, dtype="bfloat16").page_size_bytes
        73728

    Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, section 2.1.
    """

    head_size: int
    dtype: str
    page_size_padded: int | None = None
    kind: ClassVar[str] = "latent attention"
    table: ClassVar[str] = "every token"

    def __post_init__(self) -> None:
        """Normalise the dtype's name and refuse an impossible latent."""
        super().__post_init__()
        at_least_one("head_size", self.head_size)
        object.__setattr__(self, "dtype", _checked_dtype(self.dtype))
        self._check_padding()

    @property
    def unpadded_page_size_bytes(self) -> int:
        """Bytes of latents, scales included, of one block of this layer."""
        second_scale = SCALE_BYTES if self.dtype.endswith("_per_token_head") else 0
        return self.block_size * (_row_bytes(self.head_size, self.dtype) + second_scale)

    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks for all tokens."""
        return cdiv(limits.max_model_len, self.block_size)


@dataclass(frozen=True)
class MambaSpec(KVCacheSpec):
    """A layer that keeps one state, of one size, however many tokens it has read (Mamba, linear attention).

    A request holds 1 state, and 2 with prefix caching (``"align"``): the running one, and the one at the last boundary
    of a block, from which others may start. Older versions could keep one for every block (``"all"``). A drafter needs
    a state for each token that may be taken back.

    Args:
        state_bytes: bytes of a state on one GPU.
        page_size_padded: bytes that a page is padded to, so that it is as large as an attention layer's.
        num_speculative_blocks: tokens that a drafter guesses at a time.
        num_prefill_checkpoint_blocks: states that a kernel hands out in the middle of a prompt (``"align"`` only).
    """

    state_bytes: int
    page_size_padded: int | None = None
    num_speculative_blocks: int = 0
    num_prefill_checkpoint_blocks: int = 0
    kind: ClassVar[str] = "state space"
    table: ClassVar[str] = "state"
    table_fields: ClassVar[tuple[str, ...]] = (
        "block_size", "page_size_bytes", "num_speculative_blocks", "num_prefill_checkpoint_blocks",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse an impossible state."""
        super().__post_init__()
        at_least_one("state_bytes", self.state_bytes)
        _at_least_zero("num_speculative_blocks", self.num_speculative_blocks)
        _at_least_zero("num_prefill_checkpoint_blocks", self.num_prefill_checkpoint_blocks)
        self._check_padding()

    @property
    def unpadded_page_size_bytes(self) -> int:
        """Bytes of a state; the size of a block does not matter."""
        return self.state_bytes

    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks for the states of one request."""
        if limits.mamba_cache_mode == "all":
            return cdiv(limits.max_model_len, self.block_size)
        if limits.mamba_cache_mode == "align":
            return 2 + self.num_speculative_blocks + self.num_prefill_checkpoint_blocks
        return 1 + self.num_speculative_blocks
