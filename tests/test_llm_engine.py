"""The engine as a whole: what it says is what transformers says, whatever memory, budget, order and faults do."""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.engine.llm_engine import KV_POLICIES, LLMEngine, StepFailedError
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.models.prompts import encode_prompt
from tests.helpers.draws import ENGINE, drawn
from tests.helpers.engine import PROMPT, StopHereError, assert_at_rest, failing, greedy_small, poison, shuffle, small
from tests.helpers.models import greedy

FORWARDS = ("modules", "fused")


def engine_of(**options: Any) -> LLMEngine:
    options = {"num_blocks": 100, "block_size": 4, "seed": 3} | options
    model = options.pop("model", None) or small()
    return LLMEngine(model, options.pop("tokenizer", None), **options)


def greedily(max_tokens: int, **rest: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **rest)


def tokens_of(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def assert_idle(engine: LLMEngine) -> None:
    """Nothing is left of any request, in any of the books that are kept."""
    assert not engine.has_unfinished_requests()
    assert_at_rest(engine.core.manager)
    scheduler, manager = engine.core.scheduler, engine.core.manager
    books = (scheduler.requests, scheduler.running, scheduler.waiting, scheduler.swapped, manager.tables)
    assert not any(map(len, (*books, engine._requests, engine._outputs, engine.metrics._states)))
    if manager.swap_space is not None:
        assert not manager.swap_space.tables and manager.swap_space.block_pool.num_used_blocks == 0


prompts = st.lists(st.integers(0, 11), min_size=1, max_size=14)
loads = st.fixed_dictionaries(
    {
        "requests": st.lists(
            st.tuples(prompts, st.integers(1, 6), st.integers(0, 5), st.integers(-1, 1)), min_size=1, max_size=7
        ),
        "block_size": st.sampled_from([1, 2, 3, 8]),
        "more_blocks": st.integers(0, 12),
        "aborts": st.dictionaries(st.integers(0, 12), st.integers(0, 6), max_size=3),
        "fails_at": st.sets(st.integers(0, 12), max_size=2),
        "options": st.fixed_dictionaries(
            {
                "max_num_batched_tokens": st.sampled_from([1, 2, 5, 1000]),
                "max_num_seqs": st.sampled_from([1, 3, 1000]),
                "enable_prefix_caching": st.booleans(),
                "watermark": st.sampled_from([0.0, 0.0, 0.3]),
                "policy": st.sampled_from(["fcfs", "priority"]),
                "preemption": st.sampled_from(["recompute", "swap"]),
                "num_host_blocks": st.sampled_from([0, 6, 60]),
                "forward": st.sampled_from(FORWARDS),
            }
        ),
    }
)


@settings(max_examples=drawn(150))
@given(loads)
def test_whatever_happens_it_says_what_the_model_says(load: dict[str, Any]) -> None:
    """Catches tokens lost, repeated or computed from other blocks: by arrivals in any order, down to the fewest blocks
    that the longest request needs, in chunks, by preemption and swapping, beside aborted ones, after failed steps.
    """
    requests, block_size = load["requests"], load["block_size"]
    most = max(cdiv(len(prompt) + max_tokens - 1, block_size) for prompt, max_tokens, *_ in requests)
    engine = engine_of(num_blocks=1 + most + load["more_blocks"], block_size=block_size, **load["options"])
    shuffle(engine.core.manager.block_pool)
    said: dict[str, list[int]] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(engine.core.runner, monkeypatch, lambda: cached_blocks(engine))
        for at in load["fails_at"]:
            failing(engine.core.runner, at, monkeypatch)
        for step in itertools.count():
            for number, (prompt, max_tokens, arrival, priority) in enumerate(requests):
                if arrival == step:
                    engine.add_request(str(number), prompt, greedily(max_tokens), priority=priority)
            if (victim := load["aborts"].get(step)) is not None:
                engine.abort([str(victim), "nobody"])
            try:
                outputs = engine.step()
            except StepFailedError as error:
                assert isinstance(error.__cause__, StopHereError) and error.request_ids
                continue
            for output in outputs:
                said[output.request_id] = output.outputs[0].token_ids
                assert output.outputs[0].finish_reason == ("length" if output.finished else None)
                prompt, max_tokens, *_ = requests[int(output.request_id)]
                whole = greedy_small(tuple(prompt), max_tokens)
                assert said[output.request_id] == whole[: len(said[output.request_id])]
                assert output.finished == (said[output.request_id] == whole)
            if step > 5 and not engine.has_unfinished_requests():
                break
    aborted = {str(number) for number in load["aborts"].values()}
    for number, (prompt, max_tokens, *_) in enumerate(requests):
        if str(number) not in aborted:
            assert said[str(number)] == greedy_small(tuple(prompt), max_tokens)
    assert_idle(engine)


def cached_blocks(engine: LLMEngine) -> set[int]:
    """Blocks whose contents somebody may find, or that running requests that pause in this step go on with."""
    pool = engine.core.manager.block_pool
    return {block.block_id for block in pool.blocks if block.block_hash is not None or block.ref_cnt}


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, Any]:
    """The book's model."""
    return models.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def real(loaded: tuple) -> tuple[PreTrainedModel, Any, list[list[int]], list[int], list[list[int]]]:
    """The book's model, 64 ragged pieces of real text, and what transformers lets it say after each."""
    model, tokenizer = loaded
    text = encode_prompt(tokenizer, str(models.load.__doc__) + str(LLMEngine.__doc__))
    rng = random.Random(5)
    lens = [rng.choice([rng.randint(1, 12), rng.randint(12, 60)]) for _ in range(64)]
    starts = [rng.choice([0, rng.randrange(len(text) - length)]) for length in lens]  # some begin alike
    prompts = [text[start : start + length] for start, length in zip(starts, lens, strict=True)]
    max_tokens = [rng.randint(1, 4) for _ in prompts]
    said = []
    for prompt, number in zip(prompts, max_tokens, strict=True):
        ids = torch.tensor([prompt])
        settings = GenerationConfig(max_new_tokens=number, do_sample=False)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        said.append(output[0, len(prompt) :].tolist())
    return model, tokenizer, prompts, max_tokens, said


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 6, "forward": "fused", "max_num_batched_tokens": 37},
        {"num_blocks": 6, "forward": "fused", "preemption": "swap", "num_host_blocks": 40},
        {"num_blocks": 40, "forward": "modules", "enable_prefix_caching": False, "max_num_batched_tokens": 150},
    ],
    ids=["tight", "swap", "modules"],
)
def test_the_real_model_says_what_transformers_says(real: tuple, options: dict[str, Any]) -> None:
    """Catches what random weights hide, in 64 requests, the longest of which needs nearly all blocks there are."""
    model, tokenizer, prompts, max_tokens, said = real
    engine = LLMEngine(model, tokenizer, **options)
    params = [greedily(number) for number in max_tokens]
    assert tokens_of(engine.generate(prompts, params)) == said
    if options["num_blocks"] < 40:
        assert engine.metrics.totals.num_preempted_reqs > 0
    assert_idle(engine)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_a_seed_gives_the_same_whoever_else_is_there(forward: str, temperature: float) -> None:
    """Catches draws that depend on the batch, on its order, on preemption, or on how many ran before."""
    params = [SamplingParams(seed=seed, temperature=temperature, max_tokens=9) for seed in range(6)]
    asked = [PROMPT[: 3 + number] for number in range(6)]
    work = list(zip(asked, params, strict=True))
    alone = [engine_of(forward=forward).generate([prompt], one)[0].outputs[0].token_ids for prompt, one in work]
    assert len({*map(tuple, alone)}) > 3
    rng = random.Random(0)
    for num_blocks in (6, 9, 100):
        engine = engine_of(num_blocks=num_blocks, max_num_batched_tokens=rng.choice([3, 9, 500]), forward=forward)
        order = rng.sample(range(6), 6)
        others = [(PROMPT[:2], SamplingParams(max_tokens=rng.randint(1, 9))) for _ in range(4)]
        work = [(asked[number], params[number]) for number in order] + others
        outputs = tokens_of(engine.generate([prompt for prompt, _ in work], [one for _, one in work]))
        assert outputs[:6] == [alone[number] for number in order]
    assert tokens_of(engine.generate(asked, params)) == alone, "and again in the same engine"


def test_outputs_of_one_prompt_share_its_blocks() -> None:
    """Catches outputs that are computed from the prompt each, that are all alike, or that come in another order."""
    engine = engine_of()
    params = SamplingParams(n=5, temperature=1.5, max_tokens=6, seed=1, logprobs=2)
    [output] = engine.generate([PROMPT * 2], params)
    assert [one.index for one in output.outputs] == [0, 1, 2, 3, 4]
    assert len({tuple(one.token_ids) for one in output.outputs}) > 1
    assert engine.core.manager.stats.hits == 4 * 12  # all but the last block of the 16 tokens
    for one in output.outputs:
        chosen = [report[token].logprob for report, token in zip(one.logprobs, one.token_ids, strict=True)]
        assert one.cumulative_logprob == pytest.approx(sum(chosen))
        for length, (report, token) in enumerate(zip(one.logprobs, one.token_ids, strict=True)):
            [[_, best]] = torch.topk(small()(torch.tensor([[*PROMPT * 2, *one.token_ids[:length]]])).logits[:, -1], 2)[
                1
            ]
            assert {token, int(best)} <= report.keys() and len(report) in (2, 3)
    again = engine_of().generate([PROMPT * 2], params)[0]
    assert [one.token_ids for one in again.outputs] == [one.token_ids for one in output.outputs]


def test_a_text_that_is_none(loaded: tuple) -> None:
    """Catches half a character that ends in the tokenizer's own error."""
    engine = LLMEngine(*loaded, num_blocks=60)
    with pytest.raises(ValueError, match="is no text: surrogates not allowed"):
        engine.add_request("Ada", "\ud800")
    assert_idle(engine)


def test_text_and_how_it_ended(loaded: tuple) -> None:
    """Catches text that is not that of the tokens, a stop string left in it, an end that is not told."""
    model, tokenizer = loaded
    engine = LLMEngine(model, tokenizer, num_blocks=60)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say: one, two, three."}], add_generation_prompt=True, tokenize=False
    )
    [free] = engine.generate(prompt, greedily(12))
    text = free.outputs[0].text
    assert text == tokenizer.decode(free.outputs[0].token_ids, skip_special_tokens=True) and len(text) > 8
    assert free.prompt == prompt and free.prompt_token_ids == tokenizer(prompt)["input_ids"]
    [stopped] = engine.generate(prompt, greedily(12, stop=text[4:7]))
    assert stopped.outputs[0].text == text[: text.index(text[4:7])]
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", text[4:7])
    assert stopped.num_cached_tokens == (len(free.prompt_token_ids) - 1) // 16 * 16
    token = free.outputs[0].token_ids[2]
    [by_token] = engine.generate([free.prompt_token_ids], [greedily(12, stop_token_ids=[token])])
    assert by_token.prompt is None and by_token.outputs[0].stop_reason == token
    assert by_token.outputs[0].token_ids == free.outputs[0].token_ids[: free.outputs[0].token_ids.index(token) + 1]
    assert_idle(engine)


# --- memory before paging -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_policy", KV_POLICIES)
def test_memory_is_given_as_asked(kv_policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a policy that changes what is said, lies in pieces although it is contiguous, or preempts."""
    engine = engine_of(num_blocks=17, kv_policy=kv_policy, max_model_len=24)
    poison(engine.core.runner, monkeypatch, lambda: cached_blocks(engine))
    rng, most = random.Random(2), 0
    work = [([rng.randrange(12) for _ in range(rng.randint(1, 9))], rng.randint(1, 9)) for _ in range(12)]
    for number, (prompt, max_tokens) in enumerate(work):
        engine.add_request(str(number), prompt, greedily(max_tokens))
    said: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        said.update((output.request_id, output.outputs[0].token_ids) for output in engine.step())
        most = max(most, len(engine.core.scheduler.running))
        if kv_policy != "paged":
            for table in engine.core.manager.tables.values():
                ids = table.block_ids
                assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert [said[str(number)] for number in range(12)] == [greedy_small(tuple(p), n) for p, n in work]
    assert kv_policy == "paged" or engine.metrics.totals.num_preempted_reqs == 0
    assert most == 2 if kv_policy == "contiguous-max" else most > 2
    assert_idle(engine)


def test_a_run_that_no_memory_has_is_refused() -> None:
    """Catches a request that waits for ever: 20 of 24 blocks would do in pieces, and the longest run has 16."""
    engine = engine_of(num_blocks=25, block_size=1, kv_policy="contiguous-oracle")
    with pytest.raises(ValueError, match="needs 32 blocks of 1 tokens in a row, and the longest run has 16"):
        engine.add_request("Ada", PROMPT, greedily(13))
    assert_idle(engine)
    assert tokens_of(engine.generate([PROMPT], greedily(9))) == [greedy_small(tuple(PROMPT), 9)]


# --- faults ---------------------------------------------------------------------------------------------------------


def refusing(allocate: Callable, calls: Iterator[int], at: int, fault: type[Exception] | None) -> Callable:
    def refuse(*arguments: Any) -> Any:
        if next(calls) != at:
            return allocate(*arguments)
        if fault is not None:
            raise fault
        return None

    return refuse


@pytest.mark.parametrize("options", [{}, {"preemption": "swap", "num_host_blocks": 30}], ids=["recompute", "swap"])
def test_allocation_refused_anywhere(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches blocks lost, or a request never finished, when one call finds no block or fails, whichever it is."""
    asked = [PROMPT[:number] for number in (8, 3, 6, 5)]
    expected = [greedy_small(tuple(prompt), 5) for prompt in asked]
    for fault, at in itertools.product((None, MemoryError), range(24)):
        engine = engine_of(num_blocks=8, block_size=2, **options)
        allocate, calls = engine.core.manager.allocate_slots, itertools.count()

        def refuse(
            *arguments: Any, fault: Any = fault, at: int = at, calls: Any = calls, allocate: Any = allocate
        ) -> Any:
            if next(calls) == at:
                if fault:
                    raise fault
                return None
            return allocate(*arguments)

        monkeypatch.setattr(engine.core.manager, "allocate_slots", refuse)
        for number, prompt in enumerate(asked):
            engine.add_request(str(number), prompt, greedily(5))
        said: dict[str, list[int]] = {}
        num_faults = 0
        while engine.has_unfinished_requests():
            try:
                said.update((output.request_id, output.outputs[0].token_ids) for output in engine.step())
            except MemoryError:
                num_faults += 1
        assert [said[str(number)] for number in range(4)] == expected
        assert num_faults == (fault is not None)
        assert_idle(engine)


def test_a_failed_step_can_be_given_up_or_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a failed step that takes others along, names the wrong requests, or leaves generate's behind."""
    engine = engine_of(max_num_seqs=2)
    failing(engine.core.runner, 1, monkeypatch)
    for number in range(4):
        engine.add_request(str(number), PROMPT[: 3 + number], greedily(3, n=1))
    engine.step()
    with pytest.raises(StepFailedError, match="step of requests 0, 1 failed") as caught:
        engine.step()
    engine.abort(caught.value.request_ids, "error")
    said: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        said.update((output.request_id, output.outputs[0].token_ids) for output in engine.step())
    assert said == {str(number): greedy_small(tuple(PROMPT[: 3 + number]), 3) for number in (2, 3)}
    failing(engine.core.runner, 2, monkeypatch)
    with pytest.raises(StepFailedError):
        engine.generate([PROMPT, PROMPT[:4]], greedily(6))
    assert_idle(engine)
    assert tokens_of(engine.generate([PROMPT], greedily(6))) == [greedy_small(tuple(PROMPT), 6)]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([12], {}, "token id 12 is no word of this model: use 0 to 11"),
        ([1.5], {}, "token id 1.5 is no word"),
        ("a text", {}, "there is no tokenizer"),
        ([1] * 10, {"max_tokens": 16}, "10 tokens and asks for 16 more, which take 7 blocks of 4 tokens"),
        ([1] * 25, {"max_tokens": None}, "asks for 1 more"),
        ([1], {"request_id": "there"}, "'there' already"),
        ([1], {"request_id": "1_there", "n": 2, "temperature": 1.0}, "'1_there' already"),
        ([1], {"request_id": "more", "n": 3}, "'1_more' already"),
        ([1], {"stop": "end"}, "without a tokenizer there is no text"),
        ([1], {"stop_token_ids": range(12), "min_tokens": 1}, "min_tokens=1 holds back every token"),
        ([1], {"priority": None}, "priority None"),
        ([1], {"arrival_time": math.nan}, "arrival_time nan"),
        ([True, 2**70], {}, f"token id {2**70} is no word"),
    ],
)
def test_requests_that_are_refused(prompt: Any, options: dict[str, Any], message: str) -> None:
    """Catches a request that takes its name or its blocks although it was refused."""
    engine = engine_of(num_blocks=7, policy="priority")
    there = ("there", "1_there", "1_more")
    for name in there:
        engine.add_request(name, PROMPT, greedily(2))
    options = dict(options)
    name = options.pop("request_id", "new")
    when = {key: options.pop(key) for key in ("priority", "arrival_time") if key in options}
    with pytest.raises(ValueError, match=message):
        engine.add_request(name, prompt, SamplingParams(**options), **when)
    said: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        said.update((output.request_id, output.outputs[0].token_ids) for output in engine.step())
    assert said == dict.fromkeys(there, greedy_small(tuple(PROMPT), 2))
    assert_idle(engine)
    assert engine.generate([[1] * 10], greedily(15))[0].finished, "25 tokens: the last one needs no slot"


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_prompts_of_any_whole_numbers(kind: Callable[[list[int]], Any]) -> None:
    """Catches token ids that are refused, or taken for a list of prompts, because NumPy or torch made them."""
    engine = engine_of()
    said = [greedy_small(tuple(prompt), 3) for prompt in (PROMPT, PROMPT[:4])]
    assert tokens_of(engine.generate([kind(PROMPT), kind(PROMPT[:4])], greedily(3))) == said
    [alone] = engine.generate(kind(PROMPT), greedily(3))
    assert alone.outputs[0].token_ids == said[0] and all(type(token) is int for token in alone.prompt_token_ids)


def test_generate_beside_other_requests() -> None:
    """Catches a generate that counts others' outputs as its own, and then misses one of its own and loses theirs."""
    engine = engine_of()
    engine.add_request("mine", PROMPT, greedily(2))
    with pytest.raises(RuntimeError, match="requests mine are unfinished"):
        engine.generate([PROMPT], greedily(6))
    [first], [second] = engine.step(), engine.step()
    assert not first.finished and second.outputs[0].token_ids == greedy_small(tuple(PROMPT), 2)
    assert tokens_of(engine.generate([PROMPT], greedily(6))) == [greedy_small(tuple(PROMPT), 6)]
    assert_idle(engine)


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_no_penalty_fails_a_step(penalty: float, temperature: float) -> None:
    """Catches one request whose penalty no float32 holds, which makes every request beside it fail again and again."""
    engine = engine_of()
    params = [SamplingParams(temperature=temperature, repetition_penalty=penalty, max_tokens=5), greedily(5)]
    odd, plain = tokens_of(engine.generate([PROMPT, PROMPT], params))
    assert plain == greedy_small(tuple(PROMPT), 5)
    assert len(odd) == 5 and (odd[0] in PROMPT or penalty > 1), "a penalty below 1 favours what was there before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_memory": 1000, "num_blocks": 10}, "give one of the two"),
        ({"num_blocks": None}, "give one of the two"),
        ({"num_blocks": None, "kv_memory": 2000}, "holds 1 blocks of 1,024 bytes"),
        ({"kv_policy": "contiguous"}, "kv_policy 'contiguous' is unknown"),
        ({"max_model_len": 100, "num_blocks": 5}, "max_model_len is 100: give 2 to 17, which is what all blocks hold"),
        ({"max_model_len": 9999, "num_blocks": 9999}, "which is what the model was made for"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0"),
        ({"watermark": 1.0}, "watermark is 1.0"),
        ({"kv_policy": "contiguous-max", "preemption": "swap"}, "preempts nobody"),
        ({"kv_policy": "contiguous-max", "num_host_blocks": 9}, "preempts nobody"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    """Catches an engine that cannot work, and memory taken before that was seen."""
    with pytest.raises(ValueError, match=message):
        engine_of(**options)


# --- a long life ----------------------------------------------------------------------------------------------------


@pytest.mark.when_changed(*ENGINE)
def test_five_thousand_requests() -> None:
    """Catches starvation, a leak of blocks or of Python objects, and a wrong token, in memory that always preempts.

    Bounded waiting: a request is finished after at most as many steps as it and those before it have tokens to compute.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, initializer_range=0.9, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    engine = engine_of(model=model, num_blocks=14, block_size=2, max_num_batched_tokens=24)
    rng = random.Random(4)
    kinds = [([rng.randrange(12) for _ in range(rng.randint(1, 8))], rng.randint(1, 8)) for _ in range(40)]
    expected = [greedy(model, prompt, max_tokens) for prompt, max_tokens in kinds]
    added, finished, step, num_objects, due = 0, 0, 0, [], {}
    backlog = 0  # the last step at which all that has come is finished, by the bound
    while finished < 5000:
        while added < 5000 and added - finished < 24:
            prompt, max_tokens = kinds[added % 40]
            engine.add_request(str(added), prompt, greedily(max_tokens))
            backlog = max(backlog, step) + len(prompt) + max_tokens - 1
            due[str(added)] = backlog
            added += 1
        outputs = engine.step()
        step += 1
        for output in outputs:
            if output.finished:
                assert output.outputs[0].token_ids == expected[int(output.request_id) % 40]
                assert step <= due.pop(output.request_id)
                finished += 1
                if finished in (1000, 4900):
                    outputs = output = None
                    gc.collect()
                    num_objects.append(len(gc.get_objects()))
    assert engine.metrics.totals.num_preempted_reqs > 1000
    assert num_objects[1] <= num_objects[0] + 500 and math.isfinite(num_objects[0])
    assert_idle(engine)
