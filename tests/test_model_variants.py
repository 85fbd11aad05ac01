"""Models whose attention does more than a causal softmax: logits of steps through the page table equal transformers'.

Sinks, windows, soft-capping, values narrower than keys, and latents; each against the model's own eager attention over
the whole sequence, which has no cache at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab.attention.backends import BACKENDS
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.models.support import UnsupportedModelError
from tests.helpers.models import LATENTS, WINDOW, assert_logits_close, expected_logits, tiny

LENGTHS = [WINDOW - 1, 1, WINDOW, WINDOW + 1, 2 * WINDOW]  # of the prompts; decoding goes on from there
KINDS = ["gpt_oss", "gemma2", "mimo_v2_flash", "deepseek_v2", "deepseek_v3", "minicpm3"]


def variant(kind: str, **changes: object) -> PreTrainedModel:
    """Build a model; sinks are large, and differ from head to head and layer to layer, so that each must be right."""
    model = tiny(kind, **changes)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if getattr(module, "sinks", None) is not None:
            module.sinks.data.copy_(4 * torch.randn(module.sinks.shape, generator=generator))
    return model


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 99, (length,), generator=generator).tolist() for length in lengths]


def logits_of_steps(
    runner: ModelRunner, prompts: list[list[int]], chunk: int, num_decodes: int = 3
) -> Iterator[tuple[list[list[int]], torch.Tensor]]:
    """Compute prompts in chunks, all in ragged batches, then decode; after each step, what was computed and its logits.

    Blocks that no step has written hold NaN.
    """
    for cache in runner.cache.key_caches + runner.cache.value_caches:
        cache.fill_(torch.nan)
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    tables, done = [BlockTable(pool) for _ in prompts], [0] * len(prompts)
    sequences = [[*prompt, *range(10 + row, 10 + row + num_decodes)] for row, prompt in enumerate(prompts)]
    while any(done[row] < len(sequence) for row, sequence in enumerate(sequences)):
        rows, steps = [], []
        for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
            left = len(prompt) - done[row]
            step = min(chunk, left) if left > 0 else min(1, len(sequence) - done[row])
            if step:
                rows.append(row)
                steps.append(sequence[done[row] : done[row] + step])
                tables[row].append_tokens(step)
                done[row] += step
        metadata = attention_metadata([tables[row] for row in rows], [len(step) for step in steps])
        logits = runner.execute([token for step in steps for token in step], metadata)
        yield [sequences[row][: done[row]] for row in rows], logits


@pytest.mark.parametrize("chunk", [100, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(kind: str, chunk: int) -> None:
    """Catches sinks dropped or of another layer, a window off by one, values cut to another width, a latent without its
    rotated key, and a chunk that forgets what was before it: all of them give plausible logits.
    """
    model = variant(kind)
    runner = ModelRunner(model, num_blocks=40, block_size=4)
    num_steps = 0
    for sequences, logits in logits_of_steps(runner, prompts_of(LENGTHS), chunk):
        assert_logits_close(logits, expected_logits(model, sequences))
        num_steps += 1
    assert num_steps == 3 + -(-max(LENGTHS) // chunk)


@pytest.mark.parametrize("kind", ["gpt_oss", "gemma2"])
@pytest.mark.parametrize("window", [1, 2, WINDOW - 1, WINDOW + 1, 2 * WINDOW + 2, 2 * WINDOW + 3])
def test_windows_around_the_length(kind: str, window: int) -> None:
    """Catches a window off by one, and one left out for a batch that it just cuts."""
    model = variant(kind, sliding_window=window)
    runner = ModelRunner(model, num_blocks=40, block_size=4)
    for sequences, logits in logits_of_steps(runner, prompts_of(LENGTHS), chunk=5):
        assert_logits_close(logits, expected_logits(model, sequences))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_decodes_it_or_says_what_it_lacks(backend: str, kind: str) -> None:
    """Catches a kernel that drops in silence what it does not have."""
    model = variant(kind)
    refused = False
    try:
        runner = ModelRunner(model, num_blocks=40, block_size=4, attention=backend)
        for sequences, logits in logits_of_steps(runner, prompts_of(LENGTHS[2:3]), chunk=100, num_decodes=2):
            assert_logits_close(logits, expected_logits(model, sequences))
    except NotImplementedError as error:
        refused = f"the {backend} backend has no" in str(error)
        assert refused
    assert not refused or backend == "triton_decode"


def test_a_latent_model_caches_latents_and_is_left_as_it_was() -> None:
    """Catches keys and values of every head stored after all, and a model that hands out latents after a step."""
    model = variant("deepseek_v3")
    runner = ModelRunner(model, num_blocks=8, block_size=4)
    assert runner.cache.shape == KVShape(4, 1, 16 + 8, "float32", value_dim=16, latent=True)
    assert runner.cache.num_bytes == 8 * 4 * 4 * (16 + 8) * 4
    before = expected_logits(model, [[5, 9, 2]])
    table = BlockTable(BlockPool(8, 4))
    table.append_tokens(3)
    step = attention_metadata([table], [3])
    logits = runner.execute([5, 9, 2], step)
    assert_logits_close(logits, before)
    assert torch.equal(expected_logits(model, [[5, 9, 2]]), before)
    hook = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.execute([5, 9, 2], step)
    hook.remove()
    assert torch.equal(expected_logits(model, [[5, 9, 2]]), before)


def test_latents_in_half_precision() -> None:
    """Catches dtypes that do not meet where a query is projected, and a product that is rounded more than it must be:
    ours may be no further from the model in float32 than twice as far as transformers' own in bfloat16.
    """
    exact, model = variant("minicpm3"), variant("minicpm3").to(torch.bfloat16)
    exact.load_state_dict(model.state_dict())
    runner = ModelRunner(model, num_blocks=40, block_size=4)
    for sequences, logits in logits_of_steps(runner, prompts_of([9, 4]), chunk=5):
        expected = expected_logits(exact, sequences)
        theirs = (expected_logits(model, sequences).float() - expected).abs().max()
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - expected).abs().max() <= 2 * theirs


def test_what_the_cache_cannot_hold_is_refused_by_name() -> None:
    """Catches layers of unlike shapes squeezed into one, and latents whose matrix cannot be split by heads."""
    for kind, changes, message in (
        ("mimo_v2_flash", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "twice the KV heads"),
        ("deepseek_v2", {"kv_lora_rank": 16, "index_head_dim": 8}, "caches index keys"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            ModelRunner(tiny(kind, **changes), 8, 4)
    model = tiny("deepseek_v3", num_hidden_layers=1)
    layer = model.model.layers[0].self_attn
    layer.kv_b_proj = torch.nn.Linear(LATENTS["kv_lora_rank"], layer.kv_b_proj.out_features, bias=True)
    with pytest.raises(UnsupportedModelError, match="layer 0 makes keys and values of its latents by Linear"):
        ModelRunner(model, 8, 4)
