"""Decoders on the paged cache: greedy tokens equal those of transformers' own generate, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.sampling import generate_greedily
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.models.support import UnsupportedModelError
from pagedattn_lab.request import Request
from tests.helpers.draws import ENGINE
from tests.helpers.engine import requests_of
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


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("kind", SPECIAL)
def test_tokens_equal_generate(kind: str, block_size: int) -> None:
    """Catches wrong positions, a window or cap ignored, heads or layers mixed up, and requests leaking into another."""
    model = tiny(kind)
    engine = EngineCore(ModelRunner(model, num_blocks=120, block_size=block_size))
    pool = engine.manager.block_pool
    pool.touch(pool.blocks[3:9:2])  # somebody else's blocks: ours do not lie in a row
    outputs = generate_greedily(engine, requests_of(PROMPTS), max_tokens=12)
    assert outputs == [generate(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(output) for output in outputs}) == len(PROMPTS), "the model says the same whatever it is asked"
    assert pool.num_used_blocks == 3


def test_triton_backend_decodes_a_model() -> None:
    """Catches a kernel that agrees on toy tensors but not where a model calls it."""
    model = tiny("llama", num_hidden_layers=2)
    expected = [generate(model, prompt, 4) for prompt in PROMPTS[:2]]
    runner = ModelRunner(model, num_blocks=40, block_size=4, attention="triton")
    assert generate_greedily(EngineCore(runner), requests_of(PROMPTS[:2]), max_tokens=4) == expected


def test_a_backend_refuses_what_it_lacks_and_leaks_nothing() -> None:
    """Catches soft-capping dropped in silence, and blocks kept after an error in the middle of a generation."""
    runner = ModelRunner(tiny("gemma2"), num_blocks=40, block_size=4, attention="triton_decode")
    engine = EngineCore(runner)
    with pytest.raises(NotImplementedError, match="softcap"):
        generate_greedily(engine, requests_of(PROMPTS), max_tokens=4)
    assert engine.manager.block_pool.num_used_blocks == 0
    assert runner.model.config._attn_implementation == "eager", "a step that failed left the attention switched"


def test_window_that_cannot_matter_is_no_obstacle() -> None:
    """Catches a model refused by the kernel for a window longer than any of its sequences."""
    model = tiny("mistral", sliding_window=32, num_hidden_layers=1)
    runner = ModelRunner(model, num_blocks=40, block_size=4, attention="triton_decode")
    assert generate_greedily(EngineCore(runner), requests_of(PROMPTS[1:2]), 3) == [generate(model, PROMPTS[1], 3)]


def test_chunked_prefill_gives_the_same_logits() -> None:
    """Catches a prompt computed in pieces that forgets its earlier pieces, or numbers its positions anew."""
    model = tiny("llama")
    runner = ModelRunner(model, num_blocks=20, block_size=4)
    pool, prompt = BlockPool(20, 4), PROMPTS[0]
    whole, chunked = BlockTable(pool), BlockTable(pool)
    whole.append_tokens(len(prompt))
    expected = runner.execute(prompt, attention_metadata([whole], [len(prompt)]))
    for start, stop in ((0, 3), (3, 4), (4, 11)):
        chunked.append_tokens(stop - start)
        logits = runner.execute(prompt[start:stop], attention_metadata([chunked], [stop - start]))
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_of_some_sequences(kind: str) -> None:
    """Catches logits of other rows than those asked for, or in another order, and a step without any that fails."""
    runner = ModelRunner(tiny(kind), num_blocks=20, block_size=4)
    tables = [BlockTable(BlockPool(20, 4))]
    tables += [BlockTable(tables[0].pool) for _ in range(2)]
    query_lens, tokens = [5, 1, 3], [*range(40, 49)]
    for table, query_len in zip(tables, query_lens, strict=True):
        table.append_tokens(query_len)
    step = attention_metadata(tables, query_lens)
    every = runner.execute(tokens, step)
    assert torch.equal(runner.execute(tokens, step, [0, 1, 2]), every)
    torch.testing.assert_close(runner.execute(tokens, step, [2, 0]), every[[2, 0]])
    assert runner.execute(tokens, step, []).shape == (0, 99)
    with pytest.raises(ValueError, match=r"logits_of is \[0, 3\]: the step has sequences 0 to 2"):
        runner.execute(tokens, step, [0, 3])


def test_stop_tokens_end_one_request_and_free_its_blocks() -> None:
    """Catches a stop token that ends the wrong request, is cut off, or leaves its blocks taken until the batch ends."""
    model = tiny("llama")
    engine = EngineCore(ModelRunner(model, num_blocks=60, block_size=4))
    pool = engine.manager.block_pool
    free = generate_greedily(engine, requests_of(PROMPTS), max_tokens=10)
    stop = free[0][4]
    used, told = [], []

    def on_token(request: Request, token: int) -> None:
        told.append((request, token))
        used.append(pool.num_used_blocks)

    requests = requests_of(PROMPTS)
    outputs = generate_greedily(engine, requests, 10, {stop}, on_token)
    assert [[token for of, token in told if of is request] for request in requests] == outputs
    for output, longer in zip(outputs, free, strict=True):
        assert output == longer[: longer.index(stop) + 1 if stop in longer else 10]
    assert used[-1] < max(used)


def test_model_is_left_as_it_was() -> None:
    """Catches the attention function left switched after a generation that ran out of blocks."""
    model = tiny("llama")
    expected = generate(model, PROMPTS[0], 3)
    runner = ModelRunner(model, num_blocks=8, block_size=4)
    with pytest.raises(NoFreeBlocksError):
        generate_greedily(EngineCore(runner), requests_of(PROMPTS), max_tokens=60)
    assert model.config._attn_implementation == "eager"
    assert generate(model, PROMPTS[0], 3) == expected


def test_a_prompt_that_does_not_fit_leaks_nothing() -> None:
    """Catches blocks taken by a call that could not work."""
    engine = EngineCore(ModelRunner(tiny("llama", num_hidden_layers=1), num_blocks=8, block_size=4))
    with pytest.raises(ValueError, match="needs 15 blocks of 4 tokens for 60 tokens and up to 1 more, and there are 7"):
        generate_greedily(engine, requests_of([[1] * 60]), max_tokens=3)
    assert engine.manager.block_pool.num_used_blocks == 0


@pytest.mark.parametrize(("num_blocks", "block_size"), [(8, 2), (9, 4)])
def test_tables_of_another_pool_are_refused(num_blocks: int, block_size: int) -> None:
    """Catches page tables whose blocks the cache does not have: writes past its end, or to somebody else's slots."""
    runner = ModelRunner(tiny("llama", num_hidden_layers=1), num_blocks=8, block_size=4)
    table = BlockTable(BlockPool(num_blocks, block_size))
    table.append_tokens(1)
    with pytest.raises(ValueError, match=f"{num_blocks} blocks of {block_size} tokens do not fit a cache of 8 blocks"):
        runner.execute([1], attention_metadata([table]))
    assert not any(cache.any() for cache in runner.cache.key_caches)
    smaller = BlockTable(BlockPool(4, 4))
    smaller.append_tokens(1)
    runner.execute([1], attention_metadata([smaller]))


def test_a_step_carries_out_its_copies() -> None:
    """Catches a caller who lays a step out by hand and must remember the copies himself: the forked table would read
    what its private block held before.
    """
    model = tiny("llama")
    runner = ModelRunner(model, num_blocks=20, block_size=4)
    for cache in runner.cache.key_caches + runner.cache.value_caches:
        cache.fill_(torch.nan)
    prompt, table = PROMPTS[0][:6], BlockTable(BlockPool(20, 4))
    table.append_tokens(6)
    runner.execute(prompt, attention_metadata([table], [6]))
    tables = [table, table.fork()]
    for each in tables:
        each.append_tokens(1)
    attention_metadata(tables)  # laid out to be looked at
    step = attention_metadata(tables)
    with pytest.raises(ValueError, match="1 tokens but 2 slots"):
        runner.execute([5], step)
    assert [each.pending_copy for each in tables] == [(2, 3), None], "refused, it has taken no copy"
    logits = runner.execute([5, 9], step)
    assert [each.pending_copy for each in tables] == [None, None]
    for row, token in zip(logits, (5, 9), strict=True):
        expected = model(torch.tensor([[*prompt, token]])).logits[0, -1]
        assert row.argmax() == expected.argmax() and not row.isnan().any()


def test_layers_trust_a_step_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches slots, lengths or table entries that every layer looks at anew: a GPU would have to be waited for."""
    from pagedattn_lab.attention import checks
    from pagedattn_lab.kv_cache import PagedKVCache

    def refuse(*_: object) -> None:
        raise AssertionError("a layer checked what the library laid out itself")

    for name in ("check_shapes", "check_values"):
        monkeypatch.setattr(checks, name, refuse)
        monkeypatch.setattr(f"pagedattn_lab.attention.{name}", refuse)
    monkeypatch.setattr(PagedKVCache, "_slots", refuse)
    engine = EngineCore(ModelRunner(tiny("llama"), num_blocks=20, block_size=4))
    assert len(generate_greedily(engine, requests_of(PROMPTS[1:2]), 3)[0]) == 3


def test_unsupported_models_are_refused_by_name() -> None:
    """Catches a model that would run and answer nonsense."""
    torch.manual_seed(0)
    llama4 = tiny_config("llama4_text", attention_chunk_size=8, num_local_experts=1, intermediate_size_mlp=64)
    with pytest.raises(UnsupportedModelError, match="chunk"):
        ModelRunner(AutoModelForCausalLM.from_config(llama4), 8, 4)
    indexed = tiny_config("deepseek_v32", num_key_value_heads=6, n_routed_experts=4, n_group=1, topk_group=1)
    with pytest.raises(UnsupportedModelError, match="layers of kind indexed_attention, not supported yet"):
        ModelRunner(AutoModelForCausalLM.from_config(indexed), 8, 4)
    bloom = AutoConfig.for_model("bloom", vocab_size=99, hidden_size=48, n_layer=1, n_head=6)
    with pytest.raises(UnsupportedModelError, match="does not compute attention through transformers' interface"):
        ModelRunner(AutoModelForCausalLM.from_config(bloom), 8, 4)
    with pytest.raises(UnsupportedModelError, match="sets is_decoder = False, so its tokens see later ones"):
        ModelRunner(AutoModelForCausalLM.from_config(tiny_config("bert", is_decoder=False)), 8, 4)
    with pytest.raises(UnsupportedModelError, match="takes no position_ids"):
        ModelRunner(AutoModelForCausalLM.from_config(tiny_config("mbart", d_model=48, is_encoder_decoder=False)), 8, 4)
    with pytest.raises(UnsupportedModelError, match="later ones: a cache needs causal attention"):
        ModelRunner(tiny("qwen2", is_causal=False), 8, 4)
    with pytest.raises(ValueError, match="backend 'flash' is unknown"):
        ModelRunner(tiny("llama"), 8, 4, attention="flash")
    with pytest.raises(ValueError, match="2 tokens but 1 slots"):
        runner = ModelRunner(tiny("llama"), 8, 4)
        table = BlockTable(BlockPool(8, 4))
        table.append_tokens(1)
        runner.execute([1, 2], attention_metadata([table]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("diffllama", {}, "attends more than once in a step"),
        ("doge", {"keep_window_size": 4}, "builds an attention mask of its own"),
        ("doge", {"sliding_window": 5}, "builds an attention mask of its own"),
        ("doge", {"sliding_window": 100}, "builds an attention mask of its own"),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}, "beyond 16 the rotary angles"),
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}, "beyond 16 the rotary angles"),
    ],
)
def test_what_shows_only_in_a_step_is_refused(kind: str, changes: dict, message: str) -> None:
    """Catches models that ran without an error and gave other tokens than generate."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), attn_implementation="eager").eval()
    engine = EngineCore(ModelRunner(model, num_blocks=60, block_size=4))
    with pytest.raises(UnsupportedModelError, match=message):
        generate_greedily(engine, requests_of(PROMPTS), max_tokens=12)
    assert engine.manager.block_pool.num_used_blocks == 0


@pytest.mark.parametrize("changes", [{"rope_parameters": DYNAMIC}, {"rope_parameters": YARN}])
def test_rotary_embeddings_that_stretch(changes: dict) -> None:
    """Catches a refusal where nothing depends on the batch: short sequences, and scaling that is the same for all."""
    model = tiny("llama", **changes)
    runner = ModelRunner(model, num_blocks=60, block_size=4)
    outputs = generate_greedily(EngineCore(runner), requests_of(PROMPTS), max_tokens=8)
    assert outputs == [generate(model, prompt, 8) for prompt in PROMPTS]


def tiny_config(kind: str, **changes: object) -> AutoConfig:
    return AutoConfig.for_model(kind, **(SMALL | changes))


@pytest.mark.when_changed(*ENGINE)
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
    engine = EngineCore(ModelRunner(model, num_blocks=400 // block_size + 16, block_size=block_size))
    stop = models.stop_token_ids(model, tokenizer)
    outputs = generate_greedily(engine, requests_of(prompts), 24, stop)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert output == expected[0, len(prompt) :].tolist()
    assert engine.manager.block_pool.num_used_blocks == 0
