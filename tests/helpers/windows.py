"""Small models with windows, what of a grouped cache may be read in a step, and what transformers makes of a prompt."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab.attention.metadata import AttentionMetadata
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.model_runner import ModelRunner
from tests.helpers.models import WINDOW, tiny

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gemma2": ("gemma2", {}),  # every other layer
    "gemma3": ("gemma3_text", {"num_hidden_layers": 13}),  # five in six: 11 + 2, with a padding layer
    "gpt_oss": ("gpt_oss", {}),  # every other layer, sinks
    "mistral": ("mistral", {}),  # windows only
    "qwen3": ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def windowed(name: str) -> PreTrainedModel:
    """Build a model; sinks, if it has any, are large, so that each must be right."""
    kind, changes = MODELS[name]
    model = tiny(kind, max_position_embeddings=128, **changes)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if getattr(module, "sinks", None) is not None:
            module.sinks.data.copy_(4 * torch.randn(module.sinks.shape, generator=generator))
    return model


def some_tokens(length: int, seed: int = 2) -> list[int]:
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def generated(name: str, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """Continue one prompt by itself with transformers' own cache."""
    ids = torch.tensor([prompt])
    output = windowed(name).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


def window_of_group(group: KVCacheGroup) -> int | None:
    return getattr(group.spec, "sliding_window", None)


def readable(runner: ModelRunner, step: Sequence[AttentionMetadata]) -> list[torch.Tensor]:
    """Say for each tensor of the cache which slots hold what some query of a step reads: ``[num_blocks, block_size]``.

    A group's layers read the window of the first query and all after it, in their own tensors.
    """
    size, groups = runner.cache.block_size, runner.groups
    num_tensors = max(len(group.layers) for group in groups)
    masks = [torch.zeros(runner.cache.num_blocks, size, dtype=torch.bool) for _ in range(num_tensors)]
    for group, metadata in zip(groups, step, strict=True):
        window = window_of_group(group)
        query_lens = metadata.query_start_loc.diff().tolist()
        rows = zip(metadata.block_tables.tolist(), metadata.seq_lens.tolist(), query_lens, strict=True)
        for blocks, seq_len, query_len in rows:
            first = 0 if window is None else max(0, seq_len - query_len + 1 - window)
            for position in range(first, seq_len):
                for mask in masks[: len(group.layers)]:
                    mask[blocks[position // size], position % size] = True
    return masks


def poison_groups(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, pool: BlockPool | None = None) -> list[int]:
    """Fill every slot that no query of a step reads, and those that the step writes, with NaN before each step.

    The null block is among them. Of a ``pool``, blocks stay as they are that the cache may find, or that requests hold
    which pause in this step.

    Returns:
        A list that grows by the number of slots filled.
    """
    execute, filled = runner.execute, []

    def poisoned(token_ids: Sequence[int], step: Sequence[AttentionMetadata], *rest: object) -> torch.Tensor:
        written = torch.cat([metadata.slot_mapping for metadata in step])
        of_step = {block for metadata in step for block in metadata.block_tables.flatten().tolist()}
        kept = [
            block.block_id
            for block in (pool.blocks if pool is not None else ())
            if block.block_hash is not None or (block.ref_cnt and block.block_id not in of_step)
        ]
        for tensor, mask in enumerate(readable(runner, step)):
            mask[kept] = True
            mask.view(-1)[written] = False
            layer = next(i for i, place in enumerate(runner._places) if place.tensor == tensor)
            for cache in (runner.cache.key_caches[layer], runner.cache.value_caches[layer]):
                cache[~mask] = torch.nan
            filled.append(int((~mask).sum()))
        return execute(token_ids, step, *rest)

    monkeypatch.setattr(runner, "execute", poisoned)
    return filled
