"""The one loop behind a prefix cache: right answers by any history, and nothing leaks, whatever fails."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.engine.core import Choice, EngineCore
from pagedattn_lab.engine.sampling import Decoded, generate_greedily, sample
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.request import Request, RequestStatus
from pagedattn_lab.studies.block_savings import Sharing
from tests.helpers.draws import ENGINE, drawn
from tests.helpers.engine import (
    INDICES,
    PROMPT,
    StopHereError,
    assert_at_rest,
    caches,
    engine_of,
    expected_of,
    failing,
    forget_copies,
    indices,
    poison,
    requests_of,
    sharers,
)


@indices
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_cached_equals_greedy(index: Callable, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches hits in the wrong order or at the wrong positions, a block taken for another's, a last token that is not
    computed, blocks shared in the step that computes them but read before, and stops that end another request.
    """
    prefix = PROMPT * 3
    prompts = [prefix, [*prefix, 1], [*prefix, 2, 2, 2], [1, *prefix], prefix[:5], [9], prefix[:20], prefix]
    engine = engine_of(block_size, **index(block_size))
    manager = engine.manager
    poison(
        engine.runner, monkeypatch, lambda: {block.block_id for block in manager.block_pool.blocks if block.block_hash}
    )  # that is, whatever the cache does not answer for
    for stop in ((), (3,), ()):
        requests = requests_of(prompts)
        outputs = generate_greedily(engine, requests, 7, stop)
        assert outputs == expected_of(prompts, 7, stop) == [request.output_token_ids for request in requests]
        assert [request.status for request in requests] == [
            RequestStatus.FINISHED_STOPPED if stop and output[-1] in stop else RequestStatus.FINISHED_LENGTH_CAPPED
            for output in outputs
        ]
        assert_at_rest(manager)
    lengths = {len(output) for output in expected_of(prompts, 7, (3,))}
    assert len(lengths) > 1, "no request stopped before another"
    if manager.prefix_cache is None:
        assert manager.stats.hits == 0
    else:
        assert manager.stats.hits > {1: 0.8, 3: 0.7, 16: 0.5}[block_size] * manager.stats.queries


@caches
def test_requests_of_one_step_share_what_they_compute(index: Callable) -> None:
    """Catches a prefix computed by each of the requests that begin together."""
    engine = engine_of(**index(4))
    runner, manager = engine.runner, engine.manager
    computed = []
    execute = runner.execute
    runner.execute = lambda token_ids, *rest: (computed.append(len(token_ids)), execute(token_ids, *rest))[1]
    prompts = [[*PROMPT, last] for last in (1, 2, 3)]
    assert generate_greedily(engine, requests_of(prompts), 2) == expected_of(prompts, 2)
    assert computed == [9 + 1 + 1, 3] and manager.stats.hits == 16


@caches
@pytest.mark.parametrize("block_size", [1, 3])
def test_eviction_changes_no_output(index: Callable, block_size: int) -> None:
    """Catches a block that is found by its old hash after somebody else's tokens were written to it."""
    chooser = random.Random(0)
    engine = engine_of(block_size, 1 + -(-24 // block_size), **index(block_size))
    manager = engine.manager
    for _ in range(40):
        prompts = [[*PROMPT[: chooser.choice((3, 8))], *chooser.choices((1, 2), k=8)]]
        assert generate_greedily(engine, requests_of(prompts), 6) == expected_of(prompts, 6)
        assert_at_rest(manager)
    assert manager.stats.evictions > 40 and manager.stats.hits > 40


@settings(max_examples=drawn(60))
@given(
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([*INDICES]),
    st.lists(
        st.tuples(
            st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3), min_size=1, max_size=3),
            st.integers(1, 3),
            st.sampled_from([None, None, 0, 1]),
        ),
        min_size=2,
        max_size=5,
    ),
    st.integers(16, 40),
)
def test_any_history_leaves_a_cache_that_tells_the_truth(
    block_size: int, index: str, batches: list, num_slots: int
) -> None:
    """Catches blocks remembered for a step that failed or never came, and leaks; by any mix of batches, some of which
    are too large for the pool and some of which fail in the middle.
    """
    pieces = {"a": PROMPT[:3], "b": PROMPT[3:], "c": [1, 2, 1], "d": [3]}
    num_blocks = 1 + num_slots // block_size
    engine = engine_of(block_size, num_blocks, **INDICES[index](block_size))
    runner, manager = engine.runner, engine.manager
    for names_of_pieces, max_tokens, fails_at in batches:
        prompts = [[token for name in names for token in pieces[name]] for names in names_of_pieces]
        requests = requests_of(prompts)
        with pytest.MonkeyPatch.context() as monkeypatch:
            if fails_at is not None:
                failing(runner, fails_at, monkeypatch)
            with contextlib.suppress(StopHereError, NoFreeBlocksError):
                assert generate_greedily(engine, requests, max_tokens) == expected_of(prompts, max_tokens)
        assert {request.num_computed_tokens for request in requests} == {0}
        assert all(request.status.is_finished for request in requests)
        assert_at_rest(manager)


@caches
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_step_that_failed_is_forgotten(index: Callable, fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache that answers for blocks which were remembered before a step, although the step never came."""
    engine = engine_of(2, **index(2))
    runner, manager = engine.runner, engine.manager
    prompts = [PROMPT, [*PROMPT[:5], 1, 1, 1], PROMPT]
    with monkeypatch.context() as context:
        failing(runner, fails_at, context)
        with pytest.raises(StopHereError):
            generate_greedily(engine, requests_of(prompts), 5)
    assert_at_rest(manager)
    remembered = len(manager.prefix_cache)
    assert (remembered > 0) == (fails_at > 0), "what earlier steps computed stays"
    assert generate_greedily(engine, requests_of(prompts), 5) == expected_of(prompts, 5)
    if fails_at:
        assert manager.stats.hits > 0


@caches
def test_blocks_that_ran_out_are_forgotten_too(index: Callable) -> None:
    """Catches a request that was given blocks, and then not computed because another found none."""
    engine = engine_of(4, 7, **index(4))
    manager = engine.manager
    with pytest.raises(NoFreeBlocksError, match="needs blocks for 20 more tokens, and 4 blocks are free"):
        generate_greedily(engine, requests_of([PROMPT, [1] * 20]), 3)
    assert len(manager.prefix_cache) == 0
    assert_at_rest(manager)
    assert generate_greedily(engine, requests_of([PROMPT]), 3) == expected_of([PROMPT], 3)


@indices
def test_no_manager_is_too_small_to_leak(index: Callable) -> None:
    """Catches blocks kept when a pool runs out, at whatever moment; and a request of somebody else's that suffers."""
    prompts, outcomes = [PROMPT, [*PROMPT[:6], 1], [2, 2]], []
    for num_blocks in range(4, 20):
        engine = engine_of(3, num_blocks, **index(3))
        runner, manager = engine.runner, engine.manager
        theirs = Request("theirs", [*PROMPT[:6], 5])
        assert manager.allocate_slots(theirs, 7) is not None
        runner.execute(theirs.token_ids, attention_metadata([manager.tables["theirs"]], [7]))
        theirs.num_computed_tokens = 7
        before = manager.block_ids("theirs"), [tensor.clone() for tensor in keys_of(runner, manager)]
        try:
            assert generate_greedily(engine, requests_of(prompts), 6) == expected_of(prompts, 6)
            outcomes.append(True)
        except NoFreeBlocksError:
            outcomes.append(False)
        assert_at_rest(manager, held=3)
        assert manager.block_ids("theirs") == before[0]
        assert all(map(torch.equal, before[1], keys_of(runner, manager)))
        assert manager.tables.keys() == {"theirs"}
        assert goes_on_after_preemption(engine, theirs)
    assert outcomes == sorted(outcomes) and {*outcomes} == {True, False}


def keys_of(runner: ModelRunner, manager: KVCacheManager) -> tuple[torch.Tensor, torch.Tensor]:
    return runner.cache.gather(1, manager.tables["theirs"].slot_mapping())


def goes_on_after_preemption(engine: EngineCore, request: Request) -> bool:
    """Preempt a request that holds blocks and let it go on: it says what it would have said."""
    engine.manager.free(request)
    request.num_computed_tokens = 0
    if engine.manager.block_pool.num_free_blocks < 3:
        return True
    return generate_greedily(engine, [request], 2) == expected_of([[*PROMPT[:6], 5]], 2)


@indices
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_a_request_goes_on_after_it_was_preempted(index: Callable, block_size: int) -> None:
    """Catches a request that cannot come back, forgets what it said, or does not find its own blocks."""
    engine = engine_of(block_size, **index(block_size))
    manager = engine.manager
    [request] = requests_of([PROMPT])
    said = [generate_greedily(engine, [request], max_tokens)[0] for max_tokens in (3, 1, 2, 4)]
    assert [*itertools.chain(*said)] == expected_of([PROMPT], 10)[0] == request.token_ids[len(PROMPT) :]
    found = sum((count - 1) // block_size * block_size for count in (11, 12, 14))
    assert manager.stats.hits == (0 if manager.prefix_cache is None else found)


@indices
def test_a_fork_beside_a_request(index: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a request that writes into a block which a fork of its table names too, or goes on in a copy that was
    never carried out.
    """

    def run(forget: bool) -> tuple[list[list[int]], bool]:
        engine = engine_of(**index(4))
        runner, manager = engine.runner, engine.manager
        requests = requests_of([PROMPT[:6], PROMPT[1:6]])
        execute, forks, keys = runner.execute, [], []

        def execute_then_fork(*arguments: object) -> torch.Tensor:
            logits = execute(*arguments)
            if not forks:
                forks.extend(manager.tables[request.request_id].fork() for request in requests)
                keys.extend(torch.cat(runner.cache.gather(1, fork.slot_mapping())) for fork in forks)
            return logits

        runner.execute = execute_then_fork
        if forget:
            forget_copies(runner, monkeypatch)
        outputs = generate_greedily(engine, requests, 7)
        kept = [torch.cat(runner.cache.gather(1, fork.slot_mapping())) for fork in forks]
        assert manager.block_pool.num_used_blocks == 4
        for fork in forks:
            fork.release()
        assert_at_rest(manager)
        return outputs, all(map(torch.equal, keys, kept))

    expected = expected_of([PROMPT[:6], PROMPT[1:6]], 7)
    assert run(forget=False) == (expected, True)
    assert run(forget=True)[0] != expected


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([PROMPT, PROMPT], 0, "max_tokens is 0"),
        ([PROMPT, PROMPT], 3, "share a name"),
    ],
)
def test_nonsense_takes_no_blocks(prompts: list[list[int]], max_tokens: int, message: str) -> None:
    """Catches two requests that grow one table, and blocks taken before that was seen."""
    engine = engine_of()
    manager = engine.manager
    with pytest.raises(ValueError, match=message):
        generate_greedily(engine, [Request("Ada", prompt) for prompt in prompts], max_tokens)
    theirs = Request("Bo", PROMPT)
    manager.allocate_slots(theirs, 8)
    with pytest.raises(ValueError, match="share a name"):
        generate_greedily(engine, [Request("Bo", [1, 2])], 3)
    assert manager.block_ids("Bo") == [1, 2] and manager.block_pool.num_used_blocks == 2
    assert generate_greedily(engine, [], 3) == []


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, Callable[[str], list[int]], set[int]]:
    """The book's model, what turns a text into its prompt, and its stop tokens."""
    model, tokenizer = models.load(dtype=torch.float32)
    return model, functools.partial(models.encode_prompt, tokenizer), models.stop_token_ids(model, tokenizer)


REAL_TEXTS = [
    "You answer in one short sentence. Name a river.",
    "You answer in one short sentence. Name a colour.",
    "Count to five, and then say at length which number comes after it, and which one after that, and why.",
    "You answer in one short sentence. Name a river.",
]


@pytest.fixture(scope="module")
def said(real: tuple) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and how transformers lets the book's model continue them."""
    model, encode, _ = real
    prompts = [encode(text) for text in REAL_TEXTS]
    ids = [torch.tensor([prompt]) for prompt in prompts]
    outputs = [
        model.generate(each, attention_mask=torch.ones_like(each), max_new_tokens=5, do_sample=False) for each in ids
    ]
    return prompts, [output[0, len(prompt) :].tolist() for output, prompt in zip(outputs, prompts, strict=True)]


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_the_real_model_says_the_same_with_a_cache(real: tuple, said: tuple, index: Callable) -> None:
    """Catches what random weights hide, in requests that start in one step."""
    (model, _, stop), (prompts, expected) = real, said
    engine = engine_of(16, 40, model, **index(16))
    manager = engine.manager
    assert generate_greedily(engine, requests_of(prompts), 5, stop) == expected
    assert (manager.stats.hits > 0) == (manager.prefix_cache is not None)
    assert_at_rest(manager)


@pytest.mark.when_changed(*ENGINE)
def test_the_real_model_says_the_same_under_pressure_and_when_forked(real: tuple, said: tuple) -> None:
    """Catches what random weights hide when blocks are evicted, and when a prompt's last block is copied."""
    (model, _, stop), (prompts, expected) = real, said
    engine = engine_of(16, 5, model)
    manager = engine.manager
    for prompt, output in zip(prompts, expected, strict=True):
        assert generate_greedily(engine, requests_of([prompt]), 5, stop) == [output]
    assert manager.stats.hits > 0 and manager.stats.evictions > 0
    assert_at_rest(manager)
    sharing = Sharing()
    decoded = sample(
        engine, Request("Ada", prompts[0]), 2, 5, temperature=0.0, stop_token_ids=stop,
        on_step=lambda tables, parents, copied: sharing.observe(tables, copied),
    )  # fmt: skip
    assert decoded.sequences == [expected[0]] * 2 and sharing.copied == 1


def test_a_refused_step_leaves_nothing_in_the_cache() -> None:
    """Catches blocks found later that were remembered for a step which never ran, since another request was refused."""
    engine = engine_of(2, 6)
    manager = engine.manager
    generate_greedily(engine, [Request("Ada", [1, 2, 3])], max_tokens=1)
    with pytest.raises(NoFreeBlocksError, match="'Cy' needs blocks for 9 more tokens"):
        generate_greedily(engine, [Request("Bo", [1, 2, 3, 4, 5]), Request("Cy", [1] * 9)], max_tokens=1)
    blocks, _ = manager.get_computed_blocks(Request("Dora", [1, 2, 3, 4, 5]))
    assert [block.block_id for block in blocks] == [1], "Ada's was computed, Bo's was not"
    assert manager.block_pool.num_used_blocks == 0 and len(manager.prefix_cache) == 1


@pytest.mark.parametrize("as_index", [int, torch.tensor, np.int64])
def test_choices_of_any_whole_number(as_index: Callable) -> None:
    """Catches parents compared by identity: one request would stand twice in a step, and grow by both tokens."""
    engine, seen = engine_of(), []

    def choose(running: Sequence[Request], logits: torch.Tensor) -> list[Choice]:
        seen.append([list(request.token_ids) for request in running])
        if len(seen) == 3:
            return []
        return [Choice(as_index(0), as_index(1)), Choice(as_index(0), as_index(2))]

    engine.run([Request("Ada", [5])], choose)
    assert seen == [[[5]], [[5, 1], [5, 2]], [[5, 1, 1], [5, 1, 2]]]
    assert_at_rest(engine.manager)


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        ([Choice(0, 1), Choice(3, 1)], ValueError),
        ([Choice(-1, 1)], ValueError),
        ([Choice(0, 1), Choice(0, 1.5)], TypeError),
        ([Choice("0", 1)], TypeError),
    ],
)
def test_choices_that_make_no_sense(choices: list[Choice], error: type) -> None:
    """Catches choices that are carried out in part before one of them is refused, and blocks that stay behind."""
    engine = engine_of()
    requests = requests_of([[5, 6], [7], [8, 9, 10]])
    with pytest.raises(error):
        engine.run(requests, lambda running, logits: choices)
    assert [request.token_ids for request in requests] == [[5, 6], [7], [8, 9, 10]]
    assert_at_rest(engine.manager)
    assert generate_greedily(engine, requests_of([PROMPT]), 3) == expected_of([PROMPT], 3)


def test_a_client_cannot_lose_a_request() -> None:
    """Catches the engine's own list given away: what a client takes out of it would hold its blocks for good."""
    engine = engine_of()

    def choose(running: Sequence[Request], logits: torch.Tensor) -> list[Choice]:
        assert not hasattr(running, "pop")
        return []

    engine.run(requests_of([[5, 6], [7]]), choose)
    assert_at_rest(engine.manager)


def test_a_run_within_a_run() -> None:
    """Catches requests that hit blocks which the step under way has made known and not computed."""
    engine = engine_of()

    def on_step(*_: object) -> None:
        generate_greedily(engine, requests_of([PROMPT]), 1)

    with pytest.raises(RuntimeError, match="a run is under way"):
        sample(engine, Request("Ada", PROMPT), 2, 4, on_step=on_step)
    assert_at_rest(engine.manager)
    assert generate_greedily(engine, iter(requests_of([PROMPT])), 3) == expected_of([PROMPT], 3)


def test_a_fork_that_fails_takes_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches forks that were made before one of them failed, and that nobody gives back."""
    engine = engine_of()
    fork, calls = engine.manager.fork, itertools.count()

    def fork_twice(request: Request, name: str) -> Request:
        if next(calls) == 2:
            raise StopHereError
        return fork(request, name)

    monkeypatch.setattr(engine.manager, "fork", fork_twice)
    with pytest.raises(StopHereError):
        sample(engine, Request("Ada", PROMPT), 5, 4)
    assert_at_rest(engine.manager)
    assert engine.manager.tables == {}


@sharers
@pytest.mark.parametrize(
    "limits", [{"max_num_batched_tokens": 1}, {"max_num_batched_tokens": 3}, {"max_num_seqs": 2}], ids=str
)
def test_limits_that_leave_somebody_out(share: Callable[..., Decoded], limits: dict[str, int]) -> None:
    """Catches a choice among all that is made from some of their logits, or breaks over them."""
    engine = engine_of(**limits)
    with pytest.raises(ValueError, match=r"are left out of a step by|max_num_seqs is 2, and as many run"):
        share(engine, PROMPT, 4, 5)
    assert_at_rest(engine.manager)
    enough = {"max_num_batched_tokens": 4, "max_num_seqs": 8}  # forks come before others end
    few, all_at_once = (share(engine_of(**some), PROMPT, 4, 5) for some in (enough, {}))
    assert few.sequences == all_at_once.sequences


def test_prompts_that_a_budget_leaves_out() -> None:
    """Catches a budget of tokens that is told as a want of blocks."""
    engine = engine_of(max_num_batched_tokens=4)
    with pytest.raises(ValueError, match="1 of 2 requests are left out of a step by max_num_batched_tokens=4"):
        generate_greedily(engine, requests_of([PROMPT, PROMPT[:3]]), 3)
    assert_at_rest(engine.manager)
