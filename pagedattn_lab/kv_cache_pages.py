"""Layers of different widths in one pool: pages made equally large, or all layers kept like full attention.

A pool has blocks of one size. Where layers differ in what they keep, and cannot share a table, vLLM makes their pages
equal first (:func:`equal_pages`); groups are formed after that (:mod:`~pagedattn_lab.kv_cache_groups`).

Names and rules are those of vLLM 0.33.0, ``vllm/v1/core/kv_cache_planning.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from pagedattn_lab.kv_cache_specs import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)


class UnknownLayoutError(ValueError):
    """Layers that vLLM lays out in a way we do not know, or refuses. Nothing is guessed."""


def share_a_table(specs: Collection[KVCacheSpec]) -> bool:
    """Say whether all layers need their blocks at the same times, be they equally wide or not.

    Example:
        >>> wide, narrow = (FullAttentionSpec(16, heads, 128, "bfloat16") for heads in (8, 2))
        >>> window = SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=4096)
        >>> share_a_table([wide, narrow]), share_a_table([wide, window])
        (True, False)
    """
    return len({spec.table_key for spec in specs}) == 1


def equal_pages(specs: Mapping[str, KVCacheSpec]) -> dict[str, KVCacheSpec]:
    """Make all pages as large as the largest.

    A narrow layer gets longer blocks, if that comes out even: then nothing is lost. Else its page is padded. States
    have one size whatever the block, so they are padded too. vLLM pads no latents, whose kernels count in whole tokens.

    Raises:
        UnknownLayoutError: latents that do not come out even, or a padded page whose block would have to grow.

    Example:
        Two KV heads beside eight: blocks of 64 tokens beside blocks of 16.

        >>> wide, narrow = (FullAttentionSpec(16, heads, 128, "bfloat16") for heads in (8, 2))
        >>> equal = equal_pages({"target": wide, "drafter": narrow})
        >>> [(spec.block_size, spec.page_size_bytes) for spec in equal.values()]
        [(16, 65536), (64, 65536)]
    """
    largest = max(spec.page_size_bytes for spec in specs.values())
    equal: dict[str, KVCacheSpec] = {}
    for name, spec in specs.items():
        times, rest = divmod(largest, spec.page_size_bytes)
        if spec.page_size_bytes == largest:
            equal[name] = spec
        elif isinstance(spec, MambaSpec) or (rest and isinstance(spec, AttentionSpec)):
            equal[name] = replace(spec, page_size_padded=largest)
        elif rest:
            raise UnknownLayoutError(
                f"{name}: its page of {spec.page_size_bytes:,} bytes does not divide the largest, {largest:,}, and "
                f"vLLM does not pad {spec.kind}"
            )
        elif getattr(spec, "page_size_padded", None) is not None:
            raise UnknownLayoutError(f"{name}: vLLM does not make the blocks of a layer longer whose page is padded")
        else:
            equal[name] = replace(spec, block_size=spec.block_size * times)
    return equal


def kept_as_full_attention(specs: Mapping[str, KVCacheSpec]) -> dict[str, KVCacheSpec]:
    """Make one table do for all: beside full attention, layers with windows or chunks keep every token too.

    What they compute stays the same. Only memory is spent.

    Raises:
        UnknownLayoutError: even so they cannot share a table, as with states, or two widths of window. vLLM refuses
            such a model then.

    Example:
        >>> full = FullAttentionSpec(16, 8, 128, "bfloat16")
        >>> window = SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=4096)
        >>> {spec.kind for spec in kept_as_full_attention({"a": full, "b": window}).values()}
        {'full attention'}
    """
    if share_a_table(specs.values()):
        return dict(specs)
    promoted = dict(specs)
    sizes = {spec.block_size for spec in specs.values() if isinstance(spec, (FullAttentionSpec, MLAAttentionSpec))}
    for name, spec in specs.items():
        if sizes and isinstance(spec, (SlidingWindowSpec, ChunkedLocalAttentionSpec)):
            promoted[name] = _promote(spec, min(sizes) if len(sizes) == 1 else spec.block_size)
    attention = [spec for spec in promoted.values() if isinstance(spec, FullAttentionSpec)]
    mixed = len(attention) == len(promoted) and any(
        len({getattr(spec, limit) for spec in attention} - {None}) > 1
        for limit in ("sliding_window", "attention_chunk_size")
    )
    if mixed or not share_a_table(promoted.values()):
        raise UnknownLayoutError(
            f"{_named(specs)}: vLLM refuses to keep these layers in one group, so it does not serve them without its "
            "manager of several groups (--disable-hybrid-kv-cache-manager)"
        )
    return promoted


def _promote(spec: SlidingWindowSpec | ChunkedLocalAttentionSpec, block_size: int) -> FullAttentionSpec:
    """Keep a layer with a window or chunks like full attention; a padded page grows with its block."""
    padded = spec.page_size_padded
    if padded is not None:
        padded = max(padded, spec.unpadded_page_size_bytes * block_size // spec.block_size)
    return FullAttentionSpec(
        block_size,
        spec.num_kv_heads,
        spec.head_size,
        spec.dtype,
        spec.head_size_v,
        padded,
        sliding_window=getattr(spec, "sliding_window", None),
        attention_chunk_size=getattr(spec, "attention_chunk_size", None),
    )


def _named(specs: Mapping[str, KVCacheSpec]) -> str:
    """Name a layer of each kind, for an error."""
    kinds: dict[str, str] = {}
    for name, spec in specs.items():
        kinds.setdefault(spec.kind, name)
    return ", ".join(f"{name} ({kind})" for kind, name in kinds.items())
