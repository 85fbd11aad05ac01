"""Layers in groups with page tables of their own: logits equal transformers', and nothing else is read or taken.

The tables are made by hand here: each group has its own, and what is behind a window goes back to the pool.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab.attention import paged_attention
from pagedattn_lab.attention.metadata import AttentionMetadata
from pagedattn_lab.attention.reference import reference_attention
from pagedattn_lab.attention.tolerance import tolerance
from pagedattn_lab.attention.variant import Variant
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_cache_groups import bytes_per_block, kv_cache_groups
from pagedattn_lab.kv_layers import layer_specs
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.models.support import UnsupportedModelError
from tests.helpers.draws import ENGINE
from tests.helpers.engine import shuffle
from tests.helpers.models import WINDOW, assert_logits_close, expected_logits
from tests.helpers.windows import every_model, poison_groups, some_tokens, window_of_group, windowed

LENGTHS = [WINDOW - 1, 1, WINDOW, WINDOW + 1, 5 * WINDOW + 3]  # of the prompts; decoding goes on from there


def runner_of(model: PreTrainedModel, block_size: int, num_blocks: int = 900, **options: object) -> ModelRunner:
    groups = kv_cache_groups(layer_specs(model, block_size))
    return ModelRunner(model, num_blocks, block_size, groups=groups, **options)


def logits_of_steps(
    runner: ModelRunner, prompts: list[list[int]], chunk: int, num_decodes: int = WINDOW + 2
) -> Iterator[tuple[list[list[int]], torch.Tensor]]:
    """Compute prompts in chunks, all in ragged batches, then decode; after each step, what was computed and its logits.

    Before each step every block that lies behind a group's window goes back to the pool, and soon to somebody else.
    """
    pool, size = BlockPool(runner.cache.num_blocks, runner.cache.block_size), runner.cache.block_size
    shuffle(pool)
    tables = [[BlockTable(pool) for _ in runner.groups] for _ in prompts]
    sequences = [[*prompt, *some_tokens(num_decodes, row)] for row, prompt in enumerate(prompts)]
    done = [0] * len(prompts)
    while any(done[row] < len(sequence) for row, sequence in enumerate(sequences)):
        rows, steps = [], []
        for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
            left = len(prompt) - done[row]
            step = min(chunk, left) if left > 0 else min(1, len(sequence) - done[row])
            if not step:
                continue
            rows.append(row)
            steps.append(sequence[done[row] : done[row] + step])
            for group, table in zip(runner.groups, tables[row], strict=True):
                window = window_of_group(group)
                if window is not None:
                    table.remove_skipped_blocks(max(0, done[row] - window + 1) // size)
                table.append_tokens(step)
            done[row] += step
        of_groups = [[tables[row][number] for row in rows] for number in range(len(runner.groups))]
        step = runner.input_batch.prepare_groups(of_groups, [len(tokens) for tokens in steps])
        logits = runner.execute([token for tokens in steps for token in tokens], step)
        yield [sequences[row][: done[row]] for row in rows], logits


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize(("block_size", "chunk"), [(1, 100), (1, 3), (3, 1), (4, 100), (4, 5), (16, 6)])
@pytest.mark.parametrize("forward", ["modules", "auto"])
@every_model
def test_logits_equal_transformers(
    name: str, forward: str, block_size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a layer that reads or writes by another group's table, two layers of a group in one tensor, a block given
    back while the window still reaches it, and any look at the null block, at a block given back or at a slot behind
    the window: all of these hold NaN.
    """
    model = windowed(name)
    runner = runner_of(model, block_size, forward=forward)
    assert (runner.forward == "fused") == (forward == "auto" and name in ("mistral", "qwen3"))
    filled = poison_groups(runner, monkeypatch)
    prompts = [some_tokens(length, 10 + length) for length in LENGTHS]
    num_steps = 0
    for sequences, logits in logits_of_steps(runner, prompts, chunk):
        num_steps += 1
        assert bool(torch.isfinite(logits).all())
        if num_steps % 4 == 1:
            assert_logits_close(logits, expected_logits(model, sequences))
    assert num_steps == WINDOW + 2 + -(-max(LENGTHS) // chunk) and min(filled) > 0


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("query_len", [1, 4, 20])
@pytest.mark.parametrize("size", [4, 32], ids="blocks of {}".format)
@pytest.mark.parametrize(
    "variant", [Variant(), Variant(softcap=2.0), Variant(sinks=torch.ones(4))], ids=["plain", "softcap", "sinks"]
)
def test_no_backend_reads_behind_the_window(backend: str, size: int, query_len: int, variant: Variant) -> None:
    """Catches a backend that masks what is behind the window after it has multiplied it with 0: NaN comes through."""
    generator = torch.Generator().manual_seed(4)
    window, lens = 9, [61, 9 + query_len - 1, query_len + 30]
    variant = Variant(variant.softcap, window, sinks=variant.sinks)
    clean = [torch.randn(60, size, 2, 8, generator=generator) for _ in range(2)]
    tables = torch.zeros(len(lens), 16, dtype=torch.int32)
    live = torch.zeros(60, size, dtype=torch.bool)
    free = iter((1 + torch.randperm(59, generator=generator)).tolist())
    for row, seq_len in enumerate(lens):
        first = max(0, seq_len - query_len + 1 - window)
        for block in range(first // size, -(-seq_len // size)):
            tables[row, block] = next(free)
        for position in range(first, seq_len):
            live[tables[row, position // size], position % size] = True
    poisoned = [cache.masked_fill(~live[..., None, None], torch.nan) for cache in clean]
    query = torch.randn(query_len * len(lens), 4, 8, generator=generator)
    starts = torch.arange(0, len(query) + 1, query_len, dtype=torch.int32)
    rest = tables, torch.tensor(lens, dtype=torch.int32)
    got = paged_attention(
        query, *poisoned, *rest, query_start_loc=starts, softcap=variant.softcap, sliding_window=window,
        sinks=variant.sinks, backend=backend,
    )  # fmt: skip
    # The null block is finite here, and its keys are masked: the oracle's window is tested elsewhere.
    expected = reference_attention(query, *clean, *rest, starts, 8**-0.5, variant)
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() <= tolerance(query, clean[0], clean[1])


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("block_size", [4, 16])
@every_model
def test_bytes_are_what_the_groups_say(name: str, block_size: int, kv_cache_dtype: str) -> None:
    """Catches a tensor for each layer after all, a shared one counted twice, and scales without a place."""
    model = windowed(name)
    dtype = "int8_per_token_head" if kv_cache_dtype == "int8" else None
    groups = kv_cache_groups(layer_specs(model, block_size, dtype))
    runner = ModelRunner(model, 20, block_size, kv_cache_dtype=kv_cache_dtype, groups=groups)
    assert runner.cache.num_bytes == 20 * bytes_per_block(groups)
    one_table = ModelRunner(model, 20, block_size, kv_cache_dtype=kv_cache_dtype).cache.num_bytes
    layers = model.config.num_hidden_layers
    assert runner.cache.num_bytes * layers == one_table * max(len(group.layers) for group in groups)


def test_blocks_are_copied_once_in_a_shared_tensor() -> None:
    """Catches a copy that runs once for each layer of a tensor: the second time its source has been written over."""
    cache = runner_of(windowed("gemma2"), 4, num_blocks=5).cache
    for number, tensor in enumerate((*cache.key_caches, *cache.value_caches)):
        tensor[1], tensor[2] = 10 + number, 20 + number
    before = [tensor.clone() for tensor in (*cache.key_caches, *cache.value_caches)]
    cache.copy_blocks([(1, 2), (2, 1)])
    for tensor, old in zip((*cache.key_caches, *cache.value_caches), before, strict=True):
        assert torch.equal(tensor[1], old[2]) and torch.equal(tensor[2], old[1])


def one_step(runner: ModelRunner, num_tokens: int) -> tuple[AttentionMetadata, ...]:
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    tables = [[BlockTable(pool)] for _ in runner.groups]
    for [table] in tables:
        table.append_tokens(num_tokens)
    return runner.input_batch.prepare_groups(tables, [num_tokens])


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_a_layer_that_reads_more_than_its_group_keeps_is_refused(name: str) -> None:
    """Catches groups of another configuration than the model computes with, whose tokens would be plausible and wrong:
    what is behind the window that is kept belongs to somebody else.
    """
    model = windowed(name)
    specs = list(layer_specs(model, 4).items())
    windows = [spec for _, spec in specs if spec.kind == "sliding window"]
    wrong = kv_cache_groups({layer: windows[0] for layer, _ in specs})
    tokens = some_tokens(12)
    message = f"reads every token, and its group keeps {WINDOW}"
    for forward in ("modules", "auto"):
        with pytest.raises(UnsupportedModelError, match=message):
            runner = ModelRunner(model, 40, 4, forward=forward, groups=wrong)
            runner.execute(tokens, one_step(runner, len(tokens)))


def test_a_step_of_other_groups_is_refused() -> None:
    """Catches a step of one table for a runner of two, whose second group would read the first one's blocks."""
    model = windowed("gemma2")
    runner = runner_of(model, 4, num_blocks=40)
    first, second = one_step(runner, 5)
    for step in (first, [first], [first, second, second]):
        with pytest.raises(ValueError, match="give one for each"):
            runner.execute(some_tokens(5), step)
    plain = ModelRunner(model, 40, 4)
    with pytest.raises(ValueError, match="page tables of 2 groups for 1"):
        plain.execute(some_tokens(5), (first, second))
    assert not any(cache.any() for cache in runner.cache.key_caches + plain.cache.key_caches)
    torch.testing.assert_close(plain.execute(some_tokens(5), first), runner.execute(some_tokens(5), (first, second)))
