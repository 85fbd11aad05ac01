"""From layers to blocks: which layers share a block table, what a block of the pool costs, how many requests fit.

All layers of a model draw their blocks from one pool, so all blocks have one size. Layers that need their blocks at the
same times share a table; we call them a *group*. A model with full attention alone has one group. A model with
windows has several: a block of a full-attention group is needed as long as its request lives, a block behind a window
is not.

How vLLM forms groups is worth knowing, because it decides what a byte of memory is worth:

1. All layers alike, or at least able to read one table: one group, and a block is all their pages in a row.
2. Otherwise pages are made equally large, by giving narrow layers longer blocks or by padding.
3. Layers are sorted into *buckets* of one kind each, and buckets are cut into groups of equally many layers: as many
   as the smallest bucket has. If the largest has less than 1.5 times as many, then as many as the largest has. What
   does not come out even is filled up with *padding layers*, memory that nothing is kept in.
4. A block holds one group's layers, so ``bytes_per_block`` is a page times the layers of a group.
5. A request takes blocks in every group, and all come from the same pool: ``blocks_per_request`` is their sum.

Then ``num_blocks = available // bytes_per_block``, and ``num_blocks / blocks_per_request`` requests of full length fit.
One of the blocks is the null block, which a table names where a window has dropped a block; it is counted in
``num_blocks`` all the same.

Names and figures are those of vLLM 0.33.0, ``vllm/v1/core/kv_cache_planning.py`` and ``kv_cache_utils.py``, for a cache
whose outermost dimension is the layer (``LBNHC`` or ``LBHNC``). That is what vLLM resolves to with FlashAttention,
Triton, FlashInfer and on a CPU, unless ``VLLM_KV_CACHE_LAYOUT`` or a model's own backend asks for another.

Example:
    gemma-2-9b: 21 layers of full attention and 21 with a window of 4,096, 54.12 GiB, context 8,192, batch 8,192.

    >>> from pagedattn_lab.kv_cache_specs import FullAttentionSpec, RequestLimits, SlidingWindowSpec
    >>> full = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=256, dtype="bfloat16")
    >>> window = SlidingWindowSpec(16, 8, 256, "bfloat16", sliding_window=4096)
    >>> groups = kv_cache_groups({f"layers.{i}": full if i % 2 else window for i in range(42)})
    >>> [(len(group.layers), group.spec.kind) for group in groups], bytes_per_block(groups)
    ([(21, 'sliding window'), (21, 'full attention')], 2752512)
    >>> limits = RequestLimits(max_model_len=8192, max_in_flight_tokens=8192)
    >>> found = capacity([groups], [int(54.12 * 2**30)], limits)
    >>> found.blocks_per_request, f"{found.max_concurrency:.2f}x"
    (1025, '20.60x')
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.kv_cache_pages import UnknownLayoutError, equal_pages, kept_as_full_attention, share_a_table
from pagedattn_lab.kv_cache_specs import (
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)

__all__ = [
    "FitCheck", "Formula", "KVCacheCapacity", "KVCacheGroup", "UnknownLayoutError", "blocks_per_request",
    "bytes_per_block", "capacity", "fit_check", "kv_cache_groups", "largest_model_len", "project_groups",
]  # fmt: skip

Formula = Literal["request", "groups", "block size"]
"""How tokens and concurrency are counted; see :func:`capacity`."""


@dataclass(frozen=True)
class KVCacheGroup:
    """Layers that read one block table. A block of the pool, given to a group, holds one page of each of them.

    Args:
        layers: their names.
        specs: how each keeps its cache, in the same order.
        spec: how the group's blocks are counted; the first layer's unless said. A group keeps it on a pipeline rank
            that has none of its layers.
        bucket: which kind of layer it belongs to, in order of first appearance.
        padding_layers: layers' worth of memory in each block that nothing is kept in.
    """

    layers: tuple[str, ...]
    specs: tuple[KVCacheSpec, ...]
    spec: KVCacheSpec = None  # type: ignore[assignment]  # a spec from __post_init__ on
    bucket: int = 0
    padding_layers: int = 0

    def __post_init__(self) -> None:
        """Take the first layer's spec for the group's, and refuse a group of nothing."""
        if len(self.layers) != len(self.specs):
            raise ValueError(f"{len(self.layers)} layers with {len(self.specs)} specs: give one a layer")
        if self.spec is None:
            if not self.specs:
                raise ValueError("a group without layers says by spec= how its blocks are counted")
            object.__setattr__(self, "spec", self.specs[0])

    @property
    def block_size(self) -> int:
        """Tokens in one of its blocks."""
        return self.spec.block_size

    @property
    def page_size_bytes(self) -> int:
        """Bytes of its layers' pages in one block, without padding layers."""
        return sum(spec.page_size_bytes for spec in self.specs)

    def max_blocks_per_request(self, limits: RequestLimits) -> int:
        """Blocks that one request holds in this group at most."""
        return max(spec.max_blocks_per_request(limits) for spec in self.specs or (self.spec,))


@dataclass(frozen=True)
class KVCacheCapacity:
    """What a pool of blocks holds.

    Attributes:
        num_blocks: blocks in the pool, the null block among them.
        blocks_per_request: blocks of one request of the full length.
        max_concurrency: requests of the full length that fit, as the log prints it to two places.
        kv_tokens: "KV cache size" in tokens, as the log prints it.
    """

    num_blocks: int
    blocks_per_request: int
    max_concurrency: float
    kv_tokens: int


# --- layers to groups -----------------------------------------------------------------------------------------------


def kv_cache_groups(
    specs: Mapping[str, KVCacheSpec], *, hybrid_kv_cache_manager: bool = True, near: float = 1.5
) -> list[KVCacheGroup]:
    """Form the groups of a whole model, all pipeline ranks together.

    Args:
        specs: how each layer keeps its cache, by name, in the order of the layers. A drafter's layers come last.
        hybrid_kv_cache_manager: whether several groups are allowed. Without them (vLLM's
            ``--disable-hybrid-kv-cache-manager``) windows and chunks are kept like full attention.
        near: the largest bucket's size decides if it is less than this many times the smallest one's.

    Raises:
        UnknownLayoutError: vLLM cannot serve these layers together, or lays them out in a way we do not know.

    Example:
        5 layers with a window for each with full attention, and a rest: gemma-3-27b has 52 + 10 layers. The smaller
        bucket says 10 layers a group; 52 fill 6 groups if 8 layers are padding.

        >>> full = FullAttentionSpec(block_size=16, num_kv_heads=16, head_size=128, dtype="bfloat16")
        >>> window = SlidingWindowSpec(16, 16, 128, "bfloat16", sliding_window=1024)
        >>> groups = kv_cache_groups({f"layers.{i}": full if i % 6 == 5 else window for i in range(62)})
        >>> [len(group.layers) for group in groups], sum(group.padding_layers for group in groups)
        ([9, 9, 9, 9, 8, 8, 10], 8)
    """
    if not specs:
        return []
    if not hybrid_kv_cache_manager:
        specs = kept_as_full_attention(specs)
    if share_a_table(specs.values()):
        return [KVCacheGroup(tuple(specs), tuple(specs.values()))]
    try:
        return _groups_of_equal_pages(equal_pages(specs), near)
    except UnknownLayoutError:
        latents_and_windows = {MLAAttentionSpec, SlidingWindowSpec}
        if {type(spec) for spec in specs.values()} - {FullAttentionSpec} != latents_and_windows:
            raise
        # Latents beside a drafter with a window: vLLM gives up the window rather than refuse.
        promoted = kept_as_full_attention(specs)
        return [KVCacheGroup(tuple(promoted), tuple(promoted.values()))]


def _alike(specs: Iterable[KVCacheSpec]) -> bool:
    """Whether layers belong in one bucket: they are equal.

    One difference does not count. Layers with a window that are kept like full attention are like full attention, as
    long as there is one width of window.
    """
    plain, limits = set(), set()
    for spec in specs:
        if isinstance(spec, FullAttentionSpec):
            limits |= {(spec.sliding_window, spec.attention_chunk_size)} - {(None, None)}
            spec = replace(spec, sliding_window=None, attention_chunk_size=None)
        plain.add(spec)
    return len(plain) == 1 and len(limits) <= 1


def _groups_of_equal_pages(specs: Mapping[str, KVCacheSpec], near: float) -> list[KVCacheGroup]:
    """Sort layers into buckets, and cut these into groups of equally many layers."""
    kinds: dict[KVCacheSpec, list[str]] = {}
    for name, spec in specs.items():
        kinds.setdefault(spec, []).append(name)
    buckets: list[tuple[list[KVCacheSpec], list[str]]] = []
    for spec, names in kinds.items():
        bucket = next((bucket for bucket in buckets if _alike([*bucket[0], spec])), None)
        if bucket is None:
            buckets.append(([spec], list(names)))
        else:
            bucket[0].append(spec)
            bucket[1].extend(names)

    sizes = [len(names) for _, names in buckets]
    group_size = max(sizes) if max(sizes) < min(sizes) * near else min(sizes)
    groups = []
    for number, (_, names) in enumerate(buckets):
        num_groups = cdiv(len(names), group_size)
        for first in range(num_groups):
            # Every num_groups-th layer, not a run of layers: each pipeline rank then has its share of every group.
            layers = tuple(names[first::num_groups])
            layer_specs = tuple(specs[layer] for layer in layers)
            groups.append(KVCacheGroup(layers, layer_specs, None, number, group_size - len(layers)))  # type: ignore[arg-type]
    return groups


def project_groups(groups: Sequence[KVCacheGroup], layers: Collection[str]) -> list[KVCacheGroup]:
    """Keep of every group what one pipeline rank computes: the groups are the whole model's, on every rank.

    Example:
        >>> full = FullAttentionSpec(16, 8, 128, "bfloat16")
        >>> [group] = kv_cache_groups({"a": full, "b": full, "c": full})
        >>> [len(project_groups([group], rank)[0].layers) for rank in (["a", "b"], ["c"])]
        [2, 1]
    """
    projected = []
    for group in groups:
        kept = [(name, spec) for name, spec in zip(group.layers, group.specs, strict=True) if name in layers]
        names, specs = tuple(name for name, _ in kept), tuple(spec for _, spec in kept)
        projected.append(replace(group, layers=names, specs=specs))
    return projected


# --- groups to blocks -----------------------------------------------------------------------------------------------


def bytes_per_block(groups: Sequence[KVCacheGroup]) -> int:
    """Bytes of one block of the pool on one rank: the widest group's layers decide. 0 where no layer keeps a cache."""
    return max((group.page_size_bytes for group in groups), default=0)


def blocks_per_request(groups: Sequence[KVCacheGroup], limits: RequestLimits) -> int:
    """Blocks that one request of the full length takes from the pool, over all groups."""
    return sum(group.max_blocks_per_request(limits) for group in groups)


def capacity(
    groups_of_ranks: Sequence[Sequence[KVCacheGroup]],
    available_bytes: Sequence[int],
    limits: RequestLimits,
    *,
    formula: Formula = "request",
) -> KVCacheCapacity:
    """Count the blocks, tokens and requests that fit: every rank gets as many blocks as the poorest can have.

    How the log counts tokens has changed from version to version; :mod:`pagedattn_lab.budget.versions` says which
    formula belongs to which.

    Args:
        groups_of_ranks: the groups on each rank (:func:`project_groups`); one rank for a model that is not split into
            a pipeline. Ranks of tensor parallelism are alike, so one stands for all.
        available_bytes: what each rank has for its cache.
        limits: what one request may take.
        formula: ``"request"``, as today: concurrency is ``num_blocks / blocks_per_request``, and tokens are that times
            ``max_model_len``. ``"groups"``: the same concurrency, but tokens are ``num_blocks // groups * block_size``,
            as if all groups took equally many. ``"block size"``, before there were groups: tokens are ``num_blocks *
            block_size``, and concurrency is tokens through ``max_model_len``.

    Raises:
        ValueError: no layer keeps a cache, ranks and memory do not match, or another formula.

    Example:
        Llama-3.1-8B with 58.11 GiB, as a log has it: 476,016 tokens, 58.11x at 8,192.

        >>> full = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype="bfloat16")
        >>> groups = kv_cache_groups({f"layers.{i}": full for i in range(32)})
        >>> limits = RequestLimits(max_model_len=8192, max_in_flight_tokens=8192)
        >>> found = capacity([groups], [29751 * 16 * 131072], limits)
        >>> f"{found.kv_tokens:,}", f"{found.max_concurrency:.2f}x"
        ('476,016', '58.11x')
    """
    if len(groups_of_ranks) != len(available_bytes) or not groups_of_ranks:
        raise ValueError(f"{len(groups_of_ranks)} ranks with {len(available_bytes)} amounts of memory: give one a rank")
    widths = [bytes_per_block(groups) for groups in groups_of_ranks]
    if 0 in widths:
        raise ValueError(f"rank {widths.index(0)} has no layer that keeps a cache: vLLM cannot divide its memory")
    num_blocks = max(0, min(memory // width for memory, width in zip(available_bytes, widths, strict=True)))
    groups = groups_of_ranks[0]
    per_request = blocks_per_request(groups, limits)
    block_size = min(group.block_size for group in groups)
    concurrency = num_blocks / per_request
    if formula == "request":
        tokens = int(concurrency * limits.max_model_len)
    elif formula == "groups":
        tokens = num_blocks // len(groups) * block_size
    elif formula == "block size":
        tokens = num_blocks * block_size
        concurrency = tokens / limits.max_model_len
    else:
        raise ValueError(f"formula is {formula!r}: use 'request', 'groups' or 'block size'")
    return KVCacheCapacity(num_blocks, per_request, concurrency, tokens)


@dataclass(frozen=True)
class FitCheck:
    """Whether one request of the full length fits on a rank, with the numbers of vLLM's message if it does not.

    Attributes:
        needed_bytes: what one request of the full length takes.
        available_bytes: what there is for it, the null block set aside.
        largest_model_len: the longest request that fits, 0 if none does.
    """

    needed_bytes: int
    available_bytes: int
    largest_model_len: int

    @property
    def fits(self) -> bool:
        """Whether a server would start."""
        return self.needed_bytes <= self.available_bytes and self.available_bytes > 0


def fit_check(
    groups: Sequence[KVCacheGroup], available_bytes: int, limits: RequestLimits, *, null_block: bool = True
) -> FitCheck:
    """Check one rank's memory as vLLM does before it starts.

    Args:
        groups: the groups on this rank.
        available_bytes: its memory for the cache.
        limits: what one request may take.
        null_block: whether one block is set aside, because nothing is kept in the null block. Older versions did not.

    Example:
        >>> full = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype="bfloat16")
        >>> groups = kv_cache_groups({f"layers.{i}": full for i in range(32)})
        >>> found = fit_check(groups, 8 * 2**30, RequestLimits(131072, 8192))
        >>> found.fits, found.needed_bytes / 2**30, found.largest_model_len
        (False, 16.0, 65520)
    """
    width = bytes_per_block(groups)
    left = available_bytes - width * null_block
    lengths = range(1, limits.max_model_len + 1)
    fitting = bisect_right(
        lengths, left, key=lambda length: width * blocks_per_request(groups, replace(limits, max_model_len=length))
    )
    return FitCheck(width * blocks_per_request(groups, limits), left, fitting)


def largest_model_len(groups: Sequence[KVCacheGroup], available_bytes: int, limits: RequestLimits) -> int:
    """Find the longest request that fits, up to ``limits.max_model_len``, as ``--max-model-len auto`` does."""
    return fit_check(groups, available_bytes, limits).largest_model_len
