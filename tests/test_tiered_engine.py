"""An engine with a second tier says what the model says, whatever is evicted, reloaded or broken off on the way."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.llm_engine import LLMEngine, StepFailedError
from pagedattn_lab.engine.metrics import json_lines
from pagedattn_lab.engine.prometheus import PrometheusStatLogger
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from tests.helpers.draws import drawn
from tests.helpers.engine import VOCAB, StopHereError, assert_at_rest, failing, greedy_small, poison, shuffle, small
from tests.helpers.models import tiny


def engine_of(**options: Any) -> LLMEngine:
    return LLMEngine(small(), None, **{"num_blocks": 9, "block_size": 2, "num_offload_blocks": 20} | options)


def greedily(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


STEMS = [[random.Random(stem).randrange(3, VOCAB) for _ in range(14)] for stem in range(4)]
"""Four conversations that come again and again, each cut somewhere."""


def watch_copies(engine: LLMEngine, monkeypatch: pytest.MonkeyPatch, faults: Sequence[int] = ()) -> list[str]:
    """Poison whatever a copy is to write before it is made, and all else that the tier does not hold.

    A copy of one of the numbers in ``faults`` breaks off: its last block has wrong values in one layer.

    Returns:
        A list that grows by ``"out"`` or ``"in"`` with every copy of at least one block.
    """
    cache, tier, made = engine.core.runner.cache, engine.core.manager.tier, []

    def watched(name: str, copy: Any, written: Sequence[torch.Tensor]) -> Any:
        def broken_or_copy(pairs: Sequence[tuple[int, int]]) -> None:
            held = set(tier.contents.values())
            for tensor in cache._host:
                tensor[[block_id for block_id in range(cache.num_host_blocks) if block_id not in held]] = torch.nan
            for tensor in written:
                tensor[[destination for _, destination in pairs]] = torch.nan
            copy(pairs)
            if pairs:
                made.append(name)
            if pairs and len(made) - 1 in faults:
                written[-1][pairs[-1][1]] = torch.nan
                raise StopHereError

        return broken_or_copy

    monkeypatch.setattr(cache, "copy_out", watched("out", cache.copy_out, cache._host))
    monkeypatch.setattr(cache, "copy_in", watched("in", cache.copy_in, cache._in_blocks()))
    return made


def assert_idle(engine: LLMEngine) -> None:
    """Nothing is left of any request, and the tier's books are in order."""
    assert not engine.has_unfinished_requests()
    assert_at_rest(engine.core.manager)
    tier = engine.core.manager.tier
    assert not tier.has_copies and not tier._pins
    assert sorted([*tier.contents.values(), *tier._free]) == list(range(1, 1 + tier.num_blocks))


requests = st.tuples(
    st.integers(0, 3), st.integers(1, 14), st.lists(st.integers(3, VOCAB - 1), max_size=3), st.integers(1, 5)
)
loads = st.fixed_dictionaries(
    {
        "requests": st.lists(st.tuples(requests, st.integers(0, 12)), min_size=1, max_size=10),
        "block_size": st.sampled_from([1, 2, 3, 5]),
        "more_blocks": st.integers(0, 6),
        "aborts": st.dictionaries(st.integers(0, 16), st.integers(0, 9), max_size=3),
        "fails_at": st.sets(st.integers(0, 16), max_size=2),
        "faults": st.sets(st.integers(0, 12), max_size=2),
        "options": st.fixed_dictionaries(
            {
                "num_offload_blocks": st.sampled_from([1, 2, 5, 40]),
                "max_num_batched_tokens": st.sampled_from([1, 3, 1000]),
                "max_num_seqs": st.sampled_from([1, 3, 1000]),
                "policy": st.sampled_from(["fcfs", "priority"]),
                "forward": st.sampled_from(["modules", "fused"]),
            }
        ),
    }
)


@settings(max_examples=drawn(80), deadline=None)
@given(loads)
def test_whatever_happens_it_says_what_the_model_says(load: dict[str, Any]) -> None:
    """Catches tokens computed from other contents: conversations come back while a tiny pool evicts all the time, into
    a tier that may hold a single block; steps and copies break off, requests are given up.
    """
    block_size, arriving = load["block_size"], []
    for (stem, cut, tail, max_tokens), arrival in load["requests"]:
        arriving.append((STEMS[stem][:cut] + tail, max_tokens, arrival))
    most = max(cdiv(len(prompt) + max_tokens - 1, block_size) for prompt, max_tokens, _ in arriving)
    engine = engine_of(num_blocks=1 + most + load["more_blocks"], block_size=block_size, **load["options"])
    pool = engine.core.manager.block_pool
    shuffle(pool)
    said: dict[str, list[int]] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(
            engine.core.runner,
            monkeypatch,
            lambda: {block.block_id for block in pool.blocks if block.block_hash is not None or block.ref_cnt},
        )
        for at in load["fails_at"]:
            failing(engine.core.runner, at, monkeypatch)
        watch_copies(engine, monkeypatch, tuple(load["faults"]))
        for step in itertools.count():
            for number, (prompt, max_tokens, arrival) in enumerate(arriving):
                if arrival == step:
                    engine.add_request(str(number), prompt, greedily(max_tokens), priority=number % 3)
            if (victim := load["aborts"].get(step)) is not None:
                engine.abort([str(victim)])
            try:
                outputs = engine.step()
            except StepFailedError as error:
                assert isinstance(error.__cause__, StopHereError)
                continue
            said.update((output.request_id, output.outputs[0].token_ids) for output in outputs)
            if step > 12 and not engine.has_unfinished_requests():
                break
    aborted = {str(number) for number in load["aborts"].values()}
    for number, (prompt, max_tokens, _) in enumerate(arriving):
        whole = greedy_small(tuple(prompt), max_tokens)
        if str(number) in aborted:
            assert said.get(str(number), []) == whole[: len(said.get(str(number), []))]
        else:
            assert said[str(number)] == whole
    assert_idle(engine)


CONVERSATIONS = [(0, 9), (1, 11), (0, 13), (2, 7), (1, 14), (3, 12), (0, 14), (1, 14)]


def converse(engine: LLMEngine, *, num_tries: int = 3) -> tuple[list[list[int]], int]:
    """Let conversations come and come back, one after the other, two at a time; a step that fails is tried again."""
    said: dict[str, list[int]] = {}
    num_failures = 0
    for number, (stem, cut) in enumerate(CONVERSATIONS):
        engine.add_request(str(number), STEMS[stem][:cut], greedily(3))
        while engine.has_unfinished_requests() and (number % 2 or number == len(CONVERSATIONS) - 1):
            try:
                said.update((output.request_id, output.outputs[0].token_ids) for output in engine.step())
            except StepFailedError as error:
                assert isinstance(error.__cause__, StopHereError)
                num_failures += 1
                assert num_failures <= num_tries
    return [said[str(number)] for number in range(len(CONVERSATIONS))], num_failures


EXPECTED = [(tuple(STEMS[stem][:cut]), 3) for stem, cut in CONVERSATIONS]


@pytest.mark.parametrize("num_offload_blocks", [1, 4, 30])
@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_a_fault_at_every_copy(block_size: int, num_offload_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches contents that can be found though their copy broke off, and blocks lost with it: whichever copy it is."""
    expected = [greedy_small(*asked) for asked in EXPECTED]

    def run(faults: Sequence[int]) -> tuple[int, list[str]]:
        engine = engine_of(
            num_blocks=1 + 34 // block_size, block_size=block_size, num_offload_blocks=num_offload_blocks
        )
        with monkeypatch.context() as patched:
            made = watch_copies(engine, patched, faults)
            said, num_failures = converse(engine)
        assert said == expected
        assert_idle(engine)
        return num_failures, made

    num_failures, made = run(())
    assert num_failures == 0 and set(made) >= ({"out", "in"} if num_offload_blocks > 1 else {"out"})
    for at in range(len(made)):
        assert run((at,))[0] == 1
    run((0, 1))


@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "int8"}, {"forward": "fused"}, {"num_offload_blocks": 1}])
def test_with_the_tier_and_without(options: dict[str, Any]) -> None:
    """Catches a tier that changes a token, and one that is never used: it computes less than the engine without."""
    said, computed = [], []
    for tier in ({}, {"num_offload_blocks": 0}):
        engine = engine_of(**{"num_blocks": 18} | options | tier)
        steps: list[Any] = []
        engine.metrics.loggers.append(steps.append)
        said.append(converse(engine)[0])
        computed.append(sum(getattr(step, "num_scheduled_tokens", 0) for step in steps))
    assert said[0] == said[1]
    has_room = options.get("num_offload_blocks") != 1
    assert computed[0] < computed[1] + (not has_room)


def test_what_comes_back_is_what_was_written() -> None:
    """Catches a block that comes back to another place in the sequence, or a layer left out, to the bit."""
    engine = engine_of(num_blocks=8)
    core, prompt = engine.core, STEMS[0][:13]

    def keys_and_values() -> list[torch.Tensor]:
        slots = core.manager.tables["Ada"].slot_mapping(0, 12)
        return [rows for layer in range(2) for rows in core.runner.cache.gather(layer, slots)]

    seen = []
    for _ in range(2):
        engine.add_request("Ada", prompt, greedily(2))
        engine.step()
        seen.append(keys_and_values())
        engine.step()
        engine.generate([STEMS[1][:14]], greedily(1))  # takes all seven blocks
    assert core.manager.stats.external_hits == 2 * 12, "both prompts came back once"
    assert all(torch.equal(first, again) for first, again in zip(*seen, strict=True))


def test_reloaded_tokens_are_counted() -> None:
    """Catches tokens of the tier counted as computed, as the device's, twice, or not at all."""
    engine, lines, steps = engine_of(num_blocks=8), io.StringIO(), []
    logger = PrometheusStatLogger("toy", engine.core.scheduler, engine.max_model_len)
    engine.metrics.loggers += [json_lines(lines), logger, steps.append]
    for prompt in (STEMS[0][:13], STEMS[1][:14]):
        engine.generate([prompt], greedily(1))
    before = engine.metrics.totals.num_steps
    (output,) = engine.generate([STEMS[0][:13]], greedily(1))
    assert output.num_cached_tokens == 12
    assert steps[-2].num_scheduled_tokens == 1 and engine.metrics.totals.num_steps == before + 1
    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert sum(line.get("external_prefix_cache_hits", 0) for line in written) == 12
    assert 'vllm:external_prefix_cache_hits_total{engine="0",model_name="toy"} 12.0' in logger.text()
    assert 'vllm:prefix_cache_hits_total{engine="0",model_name="toy"} 0.0' in logger.text()
    assert engine.metrics.summary()["hit_rate"] == pytest.approx(12 / 40)


def test_a_reset_empties_the_tier() -> None:
    """Catches contents of other weights that come back from the host."""
    engine = engine_of(num_blocks=8)
    for prompt in (STEMS[0][:13], STEMS[1][:14]):
        engine.generate([prompt], greedily(1))
    assert len(engine.core.manager.tier) and engine.core.manager.reset_prefix_cache()
    (output,) = engine.generate([STEMS[0][:13]], greedily(1))
    assert output.num_cached_tokens == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_policy": "contiguous-max"}, "has no prefix cache: leave num_offload_blocks away"),
        ({"enable_prefix_caching": False}, "a tier needs a HashIndex"),
        ({"num_host_blocks": 9, "preemption": "swap"}, "give one of the two"),
        ({"num_offload_blocks": -3}, "num_offload_blocks is -3"),
    ],
)
def test_what_has_no_tier(options: dict[str, Any], message: str) -> None:
    """Catches an engine that takes host memory which nothing could ever use."""
    with pytest.raises(ValueError, match=message):
        engine_of(**options)


def test_a_runner_without_host_blocks() -> None:
    """Catches a tier whose first copy would fail, seen only then."""
    manager = KVCacheManager(num_blocks=8, block_size=2, num_offload_blocks=4)
    with pytest.raises(ValueError, match="make it with num_host_blocks=5"):
        EngineCore(ModelRunner(small(), 8, 2, num_host_blocks=4), manager=manager)
    assert EngineCore(ModelRunner(small(), 8, 2, num_host_blocks=5), manager=manager).manager is manager


def test_layers_with_windows() -> None:
    """Catches a tier that mixes up the blocks of groups of layers, and one refused where there is one table."""
    model = tiny("mistral")
    with pytest.raises(ValueError, match="give hybrid_kv_cache_manager=False"):
        LLMEngine(model, None, num_blocks=9, block_size=2, num_offload_blocks=20)
    prompts = [[20 + (7 * token + place) % 60 for place in range(13)] for token in (1, 2, 3)]
    said = []
    for options in ({}, {"hybrid_kv_cache_manager": False, "num_offload_blocks": 20}):
        engine = LLMEngine(model, None, num_blocks=9 if options else 99, block_size=2, **options)
        said.append([engine.generate([prompt], greedily(3))[0].outputs[0].token_ids for prompt in prompts * 2])
    assert said[0] == said[1] and engine.core.manager.stats.external_hits > 0
