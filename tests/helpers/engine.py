"""What the tests of the engine share: a model of few words, an engine on it, and ways to do it harm."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.engine.beam_search import beam_search
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.sampling import Decoded, sample
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request
from tests.helpers.models import greedy

VOCAB, HIDDEN = 12, 32
PROMPT = [7, 8, 9, 3, 4, 11, 5, 6]

names = map("request {}".format, itertools.count())


def requests_of(prompts: Sequence[Sequence[int]]) -> list[Request]:
    return [Request(next(names), prompt) for prompt in prompts]


def share_by(call: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """Give one prompt's outputs by ``sample`` or ``beam_search``, from a request with a name of its own."""
    return lambda engine, prompt, width, max_tokens, **rest: call(
        engine, Request(next(names), prompt), width, max_tokens, **rest
    )


SHARERS = {"sample": share_by(sample), "beam search": share_by(beam_search)}
sharers = pytest.mark.parametrize("share", SHARERS.values(), ids=SHARERS)

INDICES: dict[str, Callable[[int], dict[str, object]]] = {
    "no cache": lambda block_size: {"enable_prefix_caching": False},
    "hashes": lambda block_size: {},
    "radix": lambda block_size: {"index": RadixTree(block_size)},
}
indices = pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
caches = pytest.mark.parametrize("index", [INDICES["hashes"], INDICES["radix"]], ids=["hashes", "radix"])


@functools.cache
def small(seed: int = 0) -> PreTrainedModel:
    """A model of so few words that it ends by itself, and so far from uniform that no two scores are close."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def engine_of(
    block_size: int = 4, num_blocks: int = 200, model: PreTrainedModel | None = None, **caching: object
) -> EngineCore:
    return EngineCore(ModelRunner(small() if model is None else model, num_blocks, block_size), **caching)


def shuffle(pool: BlockPool, seed: int = 1) -> None:
    """Let a pool hand its blocks out in another order."""
    blocks = pool.get_new_blocks(pool.num_free_blocks)
    random.Random(seed).shuffle(blocks)
    pool.free_blocks(blocks)


@functools.cache
def greedy_small(prompt: tuple[int, ...], max_tokens: int, stop: tuple[int, ...] = ()) -> list[int]:
    return greedy(small(), prompt, max_tokens, stop)


def expected_of(prompts: Sequence[Sequence[int]], max_tokens: int, stop: tuple[int, ...] = ()) -> list[list[int]]:
    return [greedy_small(tuple(prompt), max_tokens, stop) for prompt in prompts]


def assert_at_rest(manager: KVCacheManager, held: int = 0) -> None:
    """Only what others hold is held."""
    assert manager.block_pool.num_used_blocks == held
    marked = sum(block.block_hash is not None for block in manager.block_pool.blocks)
    assert marked == (0 if manager.prefix_cache is None else len(manager.prefix_cache))


def forget_copies(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.cache, "copy_blocks", lambda pairs: None)


def poison(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, keep: Callable[[], set[int]] = set) -> list[int]:
    """Fill every slot that no sequence of a step holds with NaN before the step, all blocks but those of ``keep``.

    Returns:
        A list that grows by the number of slots filled.
    """
    execute, filled = runner.execute, []

    def poisoned(token_ids: Sequence[int], metadata: object, *rest: object) -> torch.Tensor:
        live = torch.zeros(runner.cache.num_blocks, runner.cache.block_size, dtype=torch.bool)
        for blocks, seq_len in zip(metadata.block_tables.tolist(), metadata.seq_lens.tolist(), strict=True):
            for position in range(seq_len):
                live[blocks[position // runner.cache.block_size], position % runner.cache.block_size] = True
        live[sorted(keep())] = True
        live.view(-1)[metadata.slot_mapping] = False  # the step itself writes these
        for cache in runner.cache.key_caches + runner.cache.value_caches:
            cache[~live] = torch.nan
        filled.append(int((~live).sum()))
        return execute(token_ids, metadata, *rest)

    monkeypatch.setattr(runner, "execute", poisoned)
    return filled


class StopHereError(Exception):
    """Raised on purpose."""


def failing(runner: ModelRunner, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the step of that number fail before it computes anything; those after it work."""
    execute, steps = runner.execute, itertools.count()

    def execute_or_fail(*arguments: object) -> torch.Tensor:
        if next(steps) == at:
            raise StopHereError
        return execute(*arguments)

    monkeypatch.setattr(runner, "execute", execute_or_fail)
