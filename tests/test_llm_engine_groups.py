"""The engine on several groups of layers: what it says is what transformers says, in the memory that was predicted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.budget.lengths import held_blocks, kept_by
from pagedattn_lab.engine.beam_search import beam_search
from pagedattn_lab.engine.capacity import longest_in_groups
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.llm_engine import KV_POLICIES, LLMEngine, StepFailedError
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.sampling import generate_greedily, sample
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.kv_cache_groups import blocks_per_request, bytes_per_block, kv_cache_groups
from pagedattn_lab.kv_cache_specs import RequestLimits
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_layers import layer_specs
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.radix_tree import RadixTree
from tests.helpers.draws import ENGINE, drawn
from tests.helpers.engine import StopHereError, failing, requests_of, shuffle, small
from tests.helpers.models import SMALL, WINDOW
from tests.helpers.windows import (
    MODELS,
    every_model,
    generated,
    poison_groups,
    some_tokens,
    window_of_group,
    windowed,
)

LENGTHS = [WINDOW + 1, 1, 5 * WINDOW + 3, WINDOW, 3 * WINDOW]
PROMPTS = [some_tokens(length, 20 + length) for length in LENGTHS]
MAX_TOKENS = WINDOW + 5


def engine_of(name: str, **options: Any) -> LLMEngine:
    return LLMEngine(windowed(name), None, **({"num_blocks": 900, "block_size": 4, "seed": 3} | options))


def greedily(max_tokens: int, **rest: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **rest)


def tokens_of(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def expected_of(name: str, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    return [generated(name, tuple(prompt), max_tokens) for prompt in prompts]


def assert_idle(engine: LLMEngine) -> None:
    manager = engine.core.manager
    assert not engine.has_unfinished_requests() and not manager.tables
    assert manager.block_pool.num_used_blocks == 0


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize(
    ("block_size", "budget", "enable_prefix_caching"),
    [(1, 1000, True), (3, 5, True), (4, 1, True), (2, 6, False), (16, 9, False)],
)
@every_model
def test_tokens_equal_generate(
    name: str, block_size: int, budget: int, enable_prefix_caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches blocks given back a token too early, tables of two groups swapped, a hit whose window is not there, and
    anything read that no token may read.
    """
    engine = engine_of(
        name, block_size=block_size, max_num_batched_tokens=budget, enable_prefix_caching=enable_prefix_caching
    )
    shuffle(engine.core.manager.block_pool)
    filled = poison_groups(engine.core.runner, monkeypatch, engine.core.manager.block_pool)
    again = [*PROMPTS, [*PROMPTS[2], *expected_of(name, PROMPTS[2:3], MAX_TOKENS)[0]], PROMPTS[2][:20]]
    for prompts in (PROMPTS, again):
        got = tokens_of(engine.generate(prompts, greedily(MAX_TOKENS)))
        assert got == expected_of(name, prompts, MAX_TOKENS)
        assert_idle(engine)
    assert min(filled) > 0
    assert len(set(map(tuple, got))) > len(PROMPTS) - 2, "the model says the same whatever it is asked"
    assert (engine.core.manager.stats.hits > 0) == enable_prefix_caching


prompts = st.tuples(st.integers(1, 40), st.integers(0, 2))  # a length, and which of three texts it begins
loads = st.fixed_dictionaries(
    {
        "name": st.sampled_from(list(MODELS)),
        "requests": st.lists(
            st.tuples(prompts, st.integers(1, 12), st.integers(0, 6), st.integers(-1, 1)), min_size=1, max_size=6
        ),
        "block_size": st.sampled_from([1, 2, 3, 8]),
        "more_blocks": st.integers(0, 12),
        "aborts": st.dictionaries(st.integers(0, 12), st.integers(0, 5), max_size=2),
        "fails_at": st.sets(st.integers(0, 12), max_size=2),
        "options": st.fixed_dictionaries(
            {
                "max_num_batched_tokens": st.sampled_from([1, 2, 7, 1000]),
                "max_num_seqs": st.sampled_from([1, 3, 1000]),
                "enable_prefix_caching": st.booleans(),
                "watermark": st.sampled_from([0.0, 0.0, 0.3]),
                "policy": st.sampled_from(["fcfs", "priority"]),
                "forward": st.sampled_from(["modules", "auto"]),
            }
        ),
    }
)
TEXTS = [some_tokens(40, seed) for seed in (50, 51)]
TEXTS.append([*TEXTS[0][:17], *some_tokens(23, 52)])  # begins as the first does


@settings(max_examples=drawn(60), deadline=None)
@given(loads)
def test_whatever_happens_it_says_what_the_model_says(load: dict[str, Any]) -> None:
    """Catches tokens lost, repeated or computed from other blocks: by arrivals in any order, down to the fewest blocks
    that the longest request needs, in chunks, by preemption, beside aborted ones, after failed steps.
    """
    name, block_size, options = load["name"], load["block_size"], load["options"]
    requests = [(TEXTS[text][:length], *rest) for (length, text), *rest in load["requests"]]
    groups = kv_cache_groups(layer_specs(windowed(name), block_size))
    longest = max(len(prompt) + max_tokens for prompt, max_tokens, *_ in requests)
    most = blocks_per_request(groups, RequestLimits(longest, options["max_num_batched_tokens"]))
    engine = engine_of(name, num_blocks=1 + most + load["more_blocks"], block_size=block_size, **options)
    assert engine.max_model_len >= longest
    pool = engine.core.manager.block_pool
    shuffle(pool)
    said: dict[str, list[int]] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison_groups(engine.core.runner, monkeypatch, pool)
        for at in load["fails_at"]:
            failing(engine.core.runner, at, monkeypatch)
        for step in itertools.count():
            for number, (prompt, max_tokens, arrival, priority) in enumerate(requests):
                if arrival == step:
                    engine.add_request(str(number), prompt, greedily(max_tokens), priority=priority)
            if (victim := load["aborts"].get(step)) is not None:
                engine.abort([str(victim)])
            try:
                outputs = engine.step()
            except StepFailedError as error:
                assert isinstance(error.__cause__, StopHereError)
                continue
            said.update((output.request_id, output.outputs[0].token_ids) for output in outputs)
            if step > 6 and not engine.has_unfinished_requests():
                break
    aborted = {str(number) for number in load["aborts"].values()}
    for number, (prompt, max_tokens, *_) in enumerate(requests):
        if str(number) not in aborted:
            assert said[str(number)] == generated(name, tuple(prompt), max_tokens)
    assert_idle(engine)


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_preempted_requests_come_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a request that goes on with a window that was given back, and a load that preempts nobody."""
    for enable_prefix_caching in (True, False):
        groups = kv_cache_groups(layer_specs(windowed(name), 2))
        num_blocks = 1 + blocks_per_request(groups, RequestLimits(60, 8)) + 6
        engine = engine_of(
            name, num_blocks=num_blocks, block_size=2, max_num_batched_tokens=8, max_model_len=60,
            enable_prefix_caching=enable_prefix_caching,
        )  # fmt: skip
        poison_groups(engine.core.runner, monkeypatch, engine.core.manager.block_pool)
        prompts = [some_tokens(4, 60 + seed) for seed in range(6)]
        assert tokens_of(engine.generate(prompts, greedily(30))) == expected_of(name, prompts, 30)
        assert engine.metrics.totals.num_preempted_reqs > 0
        assert_idle(engine)


@pytest.mark.parametrize(("block_size", "budget"), [(1, 1), (3, 5), (4, 5), (4, 1000)])
@every_model
def test_blocks_in_use_are_those_predicted(
    name: str, block_size: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches blocks behind a window that stay, one that goes too early, and a group that is forgotten: in each step a
    request holds what the budget's count says, up to the full length, and never more than the budget's bound.
    """
    engine = engine_of(name, block_size=block_size, max_num_batched_tokens=budget, enable_prefix_caching=False)
    groups, manager, execute = engine.core.runner.groups, engine.core.manager, engine.core.runner.execute
    length = len(PROMPTS[2]) + 40 - 1
    limits = RequestLimits(length, budget)
    held: list[list[int]] = []  # in each step, in each group

    def counting(token_ids: Sequence[int], *rest: Any) -> Any:
        [(request, tables)] = zip(engine.core.scheduler.running, manager.tables.values(), strict=True)
        held.append([len(table.blocks) - table.num_skipped_blocks for table in tables])
        num_tokens, num_new = request.num_computed_tokens + len(token_ids), len(token_ids)
        kept = [kept_by(group.spec, limits) for group in groups]
        assert held[-1] == [held_blocks(group, num_tokens, num_new)[0] for group in kept]
        assert manager.block_pool.num_used_blocks == sum(held[-1]) <= blocks_per_request(groups, limits)
        return execute(token_ids, *rest)

    monkeypatch.setattr(engine.core.runner, "execute", counting)
    engine.generate([PROMPTS[2]], greedily(40))
    assert len(held) == 39 + cdiv(len(PROMPTS[2]), budget)
    for group, of_steps in zip(groups, zip(*held, strict=True), strict=True):
        bound = group.max_blocks_per_request(limits)
        if group.spec.kind == "full attention":
            assert of_steps[-1] == bound == cdiv(length, block_size)
        else:
            assert of_steps[-1] in (cdiv(WINDOW, block_size), cdiv(WINDOW, block_size) + 1)
            assert max(of_steps) >= bound - 1 or budget > length, "the bound is far from what a request can hold"


@every_model
def test_bytes_of_a_long_request_go_down_as_predicted(name: str) -> None:
    """Catches memory that is given back in blocks and taken again in bytes: against one table for all layers, in the
    ratio that the budget's figures give.
    """
    used = {}
    for hybrid in (True, False):
        engine = engine_of(name, hybrid_kv_cache_manager=hybrid, enable_prefix_caching=False, max_num_batched_tokens=8)
        pool, cache = engine.core.manager.block_pool, engine.core.runner.cache
        engine.add_request("Ada", PROMPTS[2], greedily(80))
        while engine.has_unfinished_requests():
            blocks = pool.num_used_blocks
            engine.step()
        used[hybrid] = blocks * cache.num_bytes // cache.num_blocks
    groups = kv_cache_groups(layer_specs(windowed(name), 4))
    length = len(PROMPTS[2]) + 80 - 2  # the last step but one
    kept = [held_blocks(kept_by(group.spec, RequestLimits(length, 8)), length, 1)[0] for group in groups]
    layers = windowed(name).config.num_hidden_layers
    page = bytes_per_block(groups) // max(len(group.layers) for group in groups)
    assert used == {True: sum(kept) * bytes_per_block(groups), False: cdiv(length, 4) * layers * page}
    assert used[True] < 0.75 * used[False]


def test_memory_is_divided_by_what_a_block_of_a_group_takes() -> None:
    """Catches blocks counted as if each held a page of all layers: half as many, or a third of it."""
    for name in MODELS:
        groups = kv_cache_groups(layer_specs(windowed(name), 16))
        memory = 50 * bytes_per_block(groups) + 1
        engine = engine_of(name, num_blocks=None, kv_memory=memory, block_size=16)
        cache = engine.core.runner.cache
        assert cache.num_blocks == 50 and cache.num_bytes == memory - 1
        assert engine.core.manager.block_pool.num_blocks == 50
        with pytest.raises(ValueError, match="holds 1 blocks of"):
            engine_of(name, num_blocks=None, kv_memory=2 * bytes_per_block(groups) - 1, block_size=16)


@pytest.mark.parametrize(
    "options",
    [
        {"hybrid_kv_cache_manager": False},
        {"preemption": "swap", "num_host_blocks": 40},
        {"num_host_blocks": 40},
        *({"kv_policy": policy, "max_model_len": 90} for policy in KV_POLICIES if policy != "paged"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_one_table_where_groups_cannot_be(name: str, options: dict[str, Any]) -> None:
    """Catches groups under a manager that knows none of them, and an engine that refuses such a model."""
    if options.get("kv_policy") == "contiguous-oracle":
        options = options | {"max_model_len": 64}
    engine = engine_of(name, **options)
    assert engine.core.runner.groups is None and not isinstance(engine.core.manager, GroupedKVCacheManager)
    assert tokens_of(engine.generate(PROMPTS, greedily(5))) == expected_of(name, PROMPTS, 5)


def test_a_model_without_windows_keeps_one_table() -> None:
    """Catches a detour for the many models that have no windows."""
    engine = LLMEngine(small(), None, num_blocks=20, block_size=4)
    assert engine.core.runner.groups is None and type(engine.core.manager) is KVCacheManager


def test_a_pool_too_small_for_a_token_in_each_group_is_refused() -> None:
    """Catches an engine that starts and can serve nothing."""
    with pytest.raises(ValueError, match="2 blocks, one of them the null block, are too few for the 7 groups"):
        engine_of("gemma3", num_blocks=2)


def test_the_longest_request_fits_and_a_longer_one_is_refused() -> None:
    """Catches a length that is announced and cannot be served, and one that one table would have for all layers."""
    engine = engine_of("gemma2", num_blocks=20, max_num_batched_tokens=4)
    groups = engine.core.runner.groups
    longest = engine.max_model_len
    limits = [RequestLimits(longest - 1 + more, 4) for more in (0, 1)]
    assert [blocks_per_request(groups, limit) <= 19 for limit in limits] == [True, False]
    prompt = some_tokens(longest - 8)
    assert tokens_of(engine.generate([prompt], greedily(8))) == expected_of("gemma2", [prompt], 8)
    with pytest.raises(ValueError, match=f"at most {longest} tokens here"):
        engine.generate([prompt], greedily(9))


def test_several_outputs_of_one_prompt_share_it() -> None:
    """Catches outputs that fork, which groups do not have, or that compute the prompt once each."""
    said = []
    for hybrid in (True, False):
        engine = engine_of("gemma2", hybrid_kv_cache_manager=hybrid)
        [output] = engine.generate([PROMPTS[2]], SamplingParams(temperature=1, n=3, seed=5, max_tokens=4))
        said.append([one.token_ids for one in output.outputs])
        assert engine.core.manager.stats.hits > 0
        assert_idle(engine)
    assert said[0] == said[1] and len(set(map(tuple, said[0]))) > 1


def test_forks_are_refused_and_leave_nothing() -> None:
    """Catches a beam that shares blocks which the other gives back, and blocks kept after the refusal."""
    model = windowed("gemma2")
    groups = kv_cache_groups(layer_specs(model, 4))
    engine = EngineCore(ModelRunner(model, 100, 4, groups=groups))
    for share in (sample, beam_search):
        [request] = requests_of([PROMPTS[0]])
        with pytest.raises(ValueError, match="would go on twice, and with groups of layers nothing is forked"):
            share(engine, request, 2, 4)
        assert not engine.manager.tables and engine.manager.block_pool.num_used_blocks == 0
    assert generate_greedily(engine, requests_of(PROMPTS), 6) == expected_of("gemma2", PROMPTS, 6)
    with pytest.raises(ValueError, match="on_step is told of one page table"):
        generate_greedily(engine, requests_of(PROMPTS), 6, on_step=lambda *_: None)


def test_managers_and_runners_that_do_not_go_together_are_refused() -> None:
    """Catches a manager of one table on a cache of groups, where two layers would write over each other."""
    model = windowed("gemma2")
    groups = kv_cache_groups(layer_specs(model, 4))
    grouped, plain = ModelRunner(model, 40, 4, groups=groups), ModelRunner(model, 40, 4)
    for runner, manager in (
        (grouped, KVCacheManager(40, 4)),
        (plain, GroupedKVCacheManager(groups, 40)),
        (grouped, GroupedKVCacheManager(groups[::-1], 40)),
    ):
        with pytest.raises(ValueError, match="different groups of layers"):
            EngineCore(runner, manager=manager)
    with pytest.raises(ValueError, match="looked up by hash"):
        EngineCore(grouped, index=RadixTree(4))


@pytest.mark.parametrize("forward", ["modules", "auto"])
@pytest.mark.parametrize("kind", ["llama", "olmo2", "gpt_neox", "granite", "gemma", "stablelm", "cohere", "phi"])
def test_a_window_that_the_class_does_not_read_makes_no_groups(kind: str, forward: str) -> None:
    """Catches groups formed of what the configuration says alone: each step would be refused, or read what is gone."""
    config = AutoConfig.for_model(kind, **(SMALL | {"num_key_value_heads": 6, "sliding_window": 5}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    engine = LLMEngine(model, None, num_blocks=40, block_size=4, forward=forward)
    assert isinstance(engine.core.manager, KVCacheManager)
    assert tokens_of(engine.generate(PROMPTS[:1], greedily(9))) == [continued(model, PROMPTS[0], 9)]


@torch.inference_mode()
def continued(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Continue a prompt without any cache: transformers' own drops tokens behind a window that is only named."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ["mixtral", "phi3", "starcoder2", "olmo3", "cohere2"])
def test_a_window_that_the_class_reads_makes_groups(kind: str) -> None:
    """Catches windows that are seen only where an attribute of the attention names them: some classes ask elsewhere."""
    config = AutoConfig.for_model(kind, **(SMALL | {"sliding_window": 5}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    engine = LLMEngine(model, None, num_blocks=40, block_size=4)
    assert isinstance(engine.core.manager, GroupedKVCacheManager)
    assert {window_of_group(group) for group in engine.core.manager.groups} & {5, 6}


def test_refusals_do_not_count_the_blocks_of_one_table() -> None:
    """Catches a number of blocks that is too small by all groups but one, and "do not hold" where they would."""
    engine = engine_of("gemma2", num_blocks=13, max_num_batched_tokens=7)
    with pytest.raises(ValueError, match="asks for 100 more: prompt and output have at most"):
        engine.add_request("Ada", [5] * 8, greedily(100))
    for name in MODELS:
        groups = kv_cache_groups(layer_specs(windowed(name), 4))
        needed = 1 + sum(1 if window_of_group(group) is None else 2 for group in groups)
        with pytest.raises(ValueError, match=f"{needed - 1} blocks, .*, are too few .* give {needed} or more"):
            longest_in_groups(groups, needed - 1, 8)
        assert longest_in_groups(groups, needed, 8) > 0
