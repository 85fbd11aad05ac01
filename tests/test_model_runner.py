"""Decoders on the paged cache: greedy tokens equal those of transformers' own generate, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.model_runner import ModelRunner, generate_greedily
from pagedattn_lab.models.support import UnsupportedModelError
from tests.helpers.models import SMALL, SPECIAL, tiny

PROMPTS = [[5, 9, 2, 44, 17, 8, 3, 61, 12, 7, 30], [4], [70, 71, 72, 73, 74, 75, 76, 77, 78], [6, 6]]


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip


def generate(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """Continue one prompt by itself with transformers."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("kind", SPECIAL)
def test_tokens_equal_generate(kind: str, block_size: int) -> None:
    """Catches wrong positions, a window or cap ignored, heads or layers mixed up, and requests leaking into another."""
    model = tiny(kind)
    runner = ModelRunner(model, num_blocks=120, block_size=block_size)
    pool = runner.new_pool()
    pool.touch(pool.blocks[3:9:2])  # somebody else's blocks: ours do not lie in a row
    outputs = generate_greedily(runner, pool, PROMPTS, max_tokens=12)
    assert outputs == [generate(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(output) for output in outputs}) == len(PROMPTS), "the model says the same whatever it is asked"
    assert pool.num_used_blocks == 3


def test_triton_backend_decodes_a_model() -> None:
    """Catches a kernel that agrees on toy tensors but not where a model calls it."""
    model = tiny("llama", num_hidden_layers=2)
    expected = [generate(model, prompt, 4) for prompt in PROMPTS[:2]]
    runner = ModelRunner(model, num_blocks=40, block_size=4, attention="triton")
    assert generate_greedily(runner, runner.new_pool(), PROMPTS[:2], max_tokens=4) == expected


def test_triton_refuses_what_its_kernel_lacks_and_leaks_nothing() -> None:
    """Catches soft-capping dropped in silence, and blocks kept after an error in the middle of a generation."""
    runner = ModelRunner(tiny("gemma2"), num_blocks=40, block_size=4, attention="triton")
    pool = runner.new_pool()
    with pytest.raises(NotImplementedError, match="softcap"):
        generate_greedily(runner, pool, PROMPTS, max_tokens=4)
    assert pool.num_used_blocks == 0
    assert runner.model.config._attn_implementation == "eager", "a step that failed left the attention switched"


def test_window_that_cannot_matter_is_no_obstacle() -> None:
    """Catches a model refused by the kernel for a window longer than any of its sequences."""
    model = tiny("mistral", sliding_window=32, num_hidden_layers=1)
    runner = ModelRunner(model, num_blocks=40, block_size=4, attention="triton")
    assert generate_greedily(runner, runner.new_pool(), PROMPTS[1:2], 3) == [generate(model, PROMPTS[1], 3)]


def test_chunked_prefill_gives_the_same_logits() -> None:
    """Catches a prompt computed in pieces that forgets its earlier pieces, or numbers its positions anew."""
    model = tiny("llama")
    runner = ModelRunner(model, num_blocks=20, block_size=4)
    pool, prompt = runner.new_pool(), PROMPTS[0]
    whole, chunked = BlockTable(pool), BlockTable(pool)
    whole.append_tokens(len(prompt))
    expected = runner.execute(prompt, attention_metadata([whole], [len(prompt)]))
    for start, stop in ((0, 3), (3, 4), (4, 11)):
        chunked.append_tokens(stop - start)
        logits = runner.execute(prompt[start:stop], attention_metadata([chunked], [stop - start]))
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected)


def test_stop_tokens_end_one_request_and_free_its_blocks() -> None:
    """Catches a stop token that ends the wrong request, is cut off, or leaves its blocks taken until the batch ends."""
    model = tiny("llama")
    runner = ModelRunner(model, num_blocks=60, block_size=4)
    pool = runner.new_pool()
    free = generate_greedily(runner, pool, PROMPTS, max_tokens=10)
    stop = free[0][4]
    used = []
    outputs = generate_greedily(
        runner, pool, PROMPTS, 10, {stop}, on_token=lambda index, *_: used.append((index, pool.num_used_blocks))
    )
    for output, longer in zip(outputs, free, strict=True):
        assert output == longer[: longer.index(stop) + 1 if stop in longer else 10]
    peak, last = max(blocks for _, blocks in used), used[-1][1]
    assert last < peak


def test_model_is_left_as_it_was() -> None:
    """Catches the attention function left switched after a generation that ran out of blocks."""
    model = tiny("llama")
    expected = generate(model, PROMPTS[0], 3)
    runner = ModelRunner(model, num_blocks=8, block_size=4)
    with pytest.raises(NoFreeBlocksError):
        generate_greedily(runner, runner.new_pool(), PROMPTS, max_tokens=60)
    assert model.config._attn_implementation == "eager"
    assert generate(model, PROMPTS[0], 3) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": [[1], []]}, ValueError, "prompt 1 is empty"),
        ({"max_tokens": 0}, ValueError, "max_tokens is 0"),
        ({"prompts": [[1] * 60]}, NoFreeBlocksError, "cannot allocate 15 blocks"),
        ({"pool": BlockPool(8, 2)}, ValueError, "8 blocks of 2 tokens does not fit a cache of 8 blocks of 4"),
        ({"pool": BlockPool(9, 4)}, ValueError, "9 blocks of 4 tokens does not fit a cache of 8 blocks of 4"),
    ],
)
def test_impossible_generations_leak_nothing(arguments: dict, error: type, message: str) -> None:
    """Catches blocks taken by a call that could not work."""
    runner = ModelRunner(tiny("llama", num_hidden_layers=1), num_blocks=8, block_size=4)
    pool = runner.new_pool()
    with pytest.raises(error, match=message):
        generate_greedily(**({"runner": runner, "pool": pool, "prompts": [[1]], "max_tokens": 3} | arguments))
    assert pool.num_used_blocks == 0


def test_unsupported_models_are_refused_by_name() -> None:
    """Catches a model that would run and answer nonsense."""
    torch.manual_seed(0)
    llama4 = tiny_config("llama4_text", attention_chunk_size=8, num_local_experts=1, intermediate_size_mlp=64)
    with pytest.raises(UnsupportedModelError, match="chunk"):
        ModelRunner(AutoModelForCausalLM.from_config(llama4), 8, 4)
    latent = tiny_config("deepseek_v3", num_key_value_heads=6, n_routed_experts=4, n_group=1, topk_group=1)
    with pytest.raises(UnsupportedModelError, match="latent attention"):
        ModelRunner(AutoModelForCausalLM.from_config(latent), 8, 4)
    bloom = AutoConfig.for_model("bloom", vocab_size=99, hidden_size=48, n_layer=1, n_head=6)
    with pytest.raises(UnsupportedModelError, match="does not compute attention through transformers' interface"):
        ModelRunner(AutoModelForCausalLM.from_config(bloom), 8, 4)
    with pytest.raises(UnsupportedModelError, match="takes no position_ids"):
        ModelRunner(AutoModelForCausalLM.from_config(tiny_config("mbart", d_model=48, is_encoder_decoder=False)), 8, 4)
    with pytest.raises(UnsupportedModelError, match="later ones: a cache needs causal attention"):
        ModelRunner(tiny("qwen2", is_causal=False), 8, 4)
    with pytest.raises(ValueError, match="attention 'flash' is unknown"):
        ModelRunner(tiny("llama"), 8, 4, attention="flash")
    with pytest.raises(ValueError, match="2 tokens but 1 slots"):
        runner = ModelRunner(tiny("llama"), 8, 4)
        table = BlockTable(runner.new_pool())
        table.append_tokens(1)
        runner.execute([1, 2], attention_metadata([table]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("diffllama", {}, "attends more than once in a step"),
        ("bert", {"is_decoder": False, "num_key_value_heads": 6}, "lets tokens see later ones"),
        ("doge", {"keep_window_size": 4}, "builds an attention mask of its own"),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}, "beyond 16 the rotary angles"),
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}, "beyond 16 the rotary angles"),
    ],
)
def test_what_shows_only_in_a_step_is_refused(kind: str, changes: dict, message: str) -> None:
    """Catches models that ran without an error and gave other tokens than generate."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), attn_implementation="eager").eval()
    runner = ModelRunner(model, num_blocks=60, block_size=4)
    pool = runner.new_pool()
    with pytest.raises(UnsupportedModelError, match=message):
        generate_greedily(runner, pool, PROMPTS, max_tokens=12)
    assert pool.num_used_blocks == 0


@pytest.mark.parametrize("changes", [{"rope_parameters": DYNAMIC}, {"rope_parameters": YARN}])
def test_rotary_embeddings_that_stretch(changes: dict) -> None:
    """Catches a refusal where nothing depends on the batch: short sequences, and scaling that is the same for all."""
    model = tiny("llama", **changes)
    runner = ModelRunner(model, num_blocks=60, block_size=4)
    outputs = generate_greedily(runner, runner.new_pool(), PROMPTS, max_tokens=8)
    assert outputs == [generate(model, prompt, 8) for prompt in PROMPTS]


def tiny_config(kind: str, **changes: object) -> AutoConfig:
    return AutoConfig.for_model(kind, **(SMALL | changes))


@pytest.mark.parametrize("block_size", [1, 16])
def test_real_model_ragged_batch_equals_generate(block_size: int) -> None:
    """Catches anything that random weights hide: rotary positions, the chat template, stop tokens, long prompts."""
    model, tokenizer = models.load()
    texts = [
        "What is a page table?",
        "Hi",
        "List three colours, and say at length why a painter needs each of them. " * 3,
    ]
    prompts = [models.encode_prompt(tokenizer, text) for text in texts]
    runner = ModelRunner(model, num_blocks=400 // block_size + 16, block_size=block_size)
    pool = runner.new_pool()
    stop = models.stop_token_ids(model, tokenizer)
    outputs = generate_greedily(runner, pool, prompts, 24, stop)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert output == expected[0, len(prompt) :].tolist()
    assert pool.num_used_blocks == 0
