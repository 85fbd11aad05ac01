"""Several outputs of one prompt, and cached prompts: what comes out is what comes out without any sharing."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
from collections.abc import Callable, Collection, Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.engine.beam_search import Decoded, beam_search, generate_cached, sample
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner, generate_greedily
from pagedattn_lab.prefix_cache import Request
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.studies.block_savings import replay
from tests.helpers.models import (
    assert_scores_close,
    greedy,
    log_probs_of,
    tiny,
    transformers_beams,
)

VOCAB, HIDDEN = 12, 32
PROMPT = [7, 8, 9, 3, 4, 11, 5, 6]

SHARERS: dict[str, Callable[..., Decoded]] = {
    "sample": lambda runner, table, prompt, width, max_tokens, **rest: sample(
        runner, table, prompt, width, max_tokens, **rest
    ),
    "beam search": lambda runner, table, prompt, width, max_tokens, **rest: beam_search(
        runner, table, prompt, width, max_tokens, **rest
    ),
}
sharers = pytest.mark.parametrize("share", SHARERS.values(), ids=SHARERS)


@functools.cache
def small(seed: int = 0) -> PreTrainedModel:
    """A model of so few words that it ends by itself, and so far from uniform that no two scores are close."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, Callable[[str], list[int]], set[int]]:
    """The book's model, what turns a text into its prompt, and its stop tokens."""
    model, tokenizer = models.load(dtype=torch.float32)
    return model, functools.partial(models.encode_prompt, tokenizer), models.stop_token_ids(model, tokenizer)


def runner_of(block_size: int = 4, num_blocks: int = 200, model: PreTrainedModel | None = None) -> ModelRunner:
    return ModelRunner(small() if model is None else model, num_blocks, block_size)


def shuffled_pool(runner: ModelRunner, seed: int = 1) -> BlockPool:
    """A pool that hands blocks out in an order of its own."""
    pool = runner.new_pool()
    blocks = pool.get_new_blocks(pool.num_free_blocks)
    random.Random(seed).shuffle(blocks)
    pool.free_blocks(blocks)
    return pool


@functools.cache
def greedy_small(prompt: tuple[int, ...], max_tokens: int, stop: tuple[int, ...] = ()) -> list[int]:
    return greedy(small(), prompt, max_tokens, stop)


def assert_beams_equal(
    runner: ModelRunner, prompt: list[int], num_beams: int, max_tokens: int, stop: Collection[int], **rest: object
) -> Decoded:
    """Compare one search with transformers'."""
    sequences, scores = transformers_beams(runner.model, prompt, num_beams, max_tokens, stop, **rest)
    pool = shuffled_pool(runner)
    decoded = beam_search(runner, BlockTable(pool), prompt, num_beams, max_tokens, stop_token_ids=stop, **rest)
    assert decoded.sequences == sequences
    logits = runner.model(torch.tensor([prompt])).logits
    config = runner.model.config
    terms = max(config.hidden_size, getattr(config, "intermediate_size", 0))
    power = rest.get("length_penalty", 1.0)
    assert_scores_close(decoded.scores, scores, [*map(len, sequences)], terms, logits.abs().max().item(), power)
    assert pool.num_used_blocks == 0
    return decoded


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_beams_equal_transformers(block_size: int, early_stopping: bool | str) -> None:
    """Catches beams that go on from another's keys, too few candidates, a penalty by the wrong length, and a search
    that ends too early or too late.
    """
    ended, lengths = 0, set()
    for seed, length_penalty in enumerate((-1.0, 0.0, 0.5, 1.0, 2.0)):
        stop = ({3}, {3, 4, 5}, set())[seed % 3]
        runner = runner_of(block_size, model=small(seed))
        for num_beams in (2, 3, 5, 8):
            decoded = assert_beams_equal(
                runner, PROMPT[: 3 + seed], num_beams, 9, stop, length_penalty=length_penalty,
                early_stopping=early_stopping,
            )  # fmt: skip
            ended += sum(bool(stop & {*tokens}) for tokens in decoded.sequences)
            lengths |= {len(tokens) for tokens in decoded.sequences}
    assert ended > 20 and len(lengths) > 3, "hardly any sequence ended by itself: nothing about stopping was tested"


def test_every_setting_of_the_penalty_and_of_stopping_matters() -> None:
    """Catches settings that are not looked at, and cases that would agree with transformers whatever a setting did."""
    found: dict[tuple, list] = {}
    for seed, power, early_stopping in itertools.product((0, 1, 6), (-0.5, 0.0, 2.0), (True, False, "never")):
        decoded = assert_beams_equal(
            runner_of(model=small(seed)), PROMPT, 4, 12, {3, 4}, length_penalty=power, early_stopping=early_stopping
        )
        found.setdefault((power, early_stopping), []).append(decoded.sequences)
    assert found[-0.5, False] != found[0.0, False] != found[2.0, False]
    assert found[2.0, True] != found[2.0, False] != found[2.0, "never"]


def test_every_beam_could_end() -> None:
    """Catches too few candidates where several stop tokens are the likeliest words of all."""
    likeliest = log_probs_of(small(), PROMPT).topk(4).indices.tolist()
    decoded = assert_beams_equal(runner_of(), PROMPT, 2, 6, {*likeliest}, length_penalty=3.0, early_stopping="never")
    assert max(map(len, decoded.sequences)) > 1


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2"])
def test_beams_of_other_families(kind: str) -> None:
    """Catches sharing that works with one family's positions, heads or windows only."""
    assert_beams_equal(runner_of(model=tiny(kind, vocab_size=20)), PROMPT, 4, 10, {2}, length_penalty=0.5)


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"), [(2, 1.0, False), (6, 2.0, "never")], ids=["two", "six"]
)
def test_beams_of_the_real_model(real: tuple, num_beams: int, length_penalty: float, early_stopping: object) -> None:
    """Catches what random weights hide: rotary positions and the model's own stop tokens."""
    model, encode, stop = real
    decoded = assert_beams_equal(
        runner_of(16, model=model), encode("Name three rivers."), num_beams, 8, stop, length_penalty=length_penalty,
        early_stopping=early_stopping,
    )  # fmt: skip
    assert decoded.sharing.saving > 0.3


def test_one_beam_is_greedy() -> None:
    """Catches a search that needs a second beam."""
    runner = runner_of()
    decoded = beam_search(runner, BlockTable(runner.new_pool()), PROMPT, 1, 8)
    assert decoded.sequences == [greedy(small(), PROMPT, 8)]


def test_beams_that_find_everything() -> None:
    """Catches a search that misses sequences although it keeps as many as there are."""
    width, length = VOCAB**2, 3
    runner = runner_of(num_blocks=2000)
    decoded = beam_search(runner, BlockTable(runner.new_pool()), PROMPT, width, length, length_penalty=0.0)
    first = log_probs_of(small(), PROMPT)
    second = torch.stack([log_probs_of(small(), [*PROMPT, one]) for one in range(VOCAB)])
    pairs = itertools.product(range(VOCAB), repeat=2)
    third = torch.stack([log_probs_of(small(), [*PROMPT, *pair]) for pair in pairs]).reshape(VOCAB, VOCAB, VOCAB)
    totals = first[:, None, None] + second[:, :, None] + third
    best = totals.flatten().topk(width).indices
    assert decoded.sequences == torch.stack(torch.unravel_index(best, totals.shape), dim=1).tolist()


def dense_sample(
    model: PreTrainedModel, prompt: Sequence[int], index: int, max_tokens: int, temperature: float, seed: int,
    stop: Collection[int],
) -> tuple[list[int], float]:  # fmt: skip
    """Draw one output by itself, without any cache."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    tokens: list[int] = []
    score = 0.0
    while len(tokens) < max_tokens and (not tokens or tokens[-1] not in stop):
        log_probs = log_probs_of(model, [*prompt, *tokens])
        token = int(torch.multinomial((log_probs / temperature).softmax(-1), 1, generator=generator))
        tokens.append(token)
        score += log_probs[token].item()
    return tokens, score


@pytest.mark.parametrize("temperature", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_samples_equal_those_drawn_alone(block_size: int, temperature: float) -> None:
    """Catches an output that reads or disturbs another's tokens, draws another's random numbers, goes on after its stop
    token, or is given another's score, and a score at the wrong temperature.
    """
    runner = runner_of(block_size)
    pool = shuffled_pool(runner)
    decoded = sample(runner, BlockTable(pool), PROMPT, 6, 10, temperature=temperature, seed=5, stop_token_ids={3})
    alone = [dense_sample(small(), PROMPT, index, 10, temperature, 5, {3}) for index in range(6)]
    assert decoded.sequences == [tokens for tokens, _ in alone]
    largest = max(log_probs_of(small(), PROMPT).abs()).item()
    lengths = [len(tokens) for tokens in decoded.sequences]
    assert_scores_close(decoded.scores, [score for _, score in alone], lengths, HIDDEN, largest)
    assert len({*lengths}) > 1 and len({*map(tuple, decoded.sequences)}) > 3
    assert pool.num_used_blocks == 0


def test_samples_do_not_depend_on_how_many_there_are() -> None:
    """Catches generators that take turns, and seeds of which two give one output."""
    runner = runner_of()

    def outputs(n: int, seed: int) -> list[list[int]]:
        return sample(runner, BlockTable(runner.new_pool()), PROMPT, n, 9, temperature=2.0, seed=seed).sequences

    assert outputs(7, 3)[:2] == outputs(2, 3)
    seen = [tuple(tokens) for seed in range(4) for tokens in outputs(7, seed)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
def test_temperature_zero_is_greedy(temperature: float) -> None:
    """Catches a division by 0, or by a number so small that nothing is left to draw from."""
    runner = runner_of()
    expected = generate_greedily(runner, runner.new_pool(), [PROMPT], 9)
    decoded = sample(runner, BlockTable(runner.new_pool()), PROMPT, 3, 9, temperature=temperature)
    assert decoded.sequences == expected * 3
    assert len({*decoded.scores}) == 1


@sharers
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_on_step_tells_who_continues_whom(share: Callable[..., Decoded], block_size: int) -> None:
    """Catches parents numbered as after the step, or by output, a call before blocks were found or after the step, and
    sharing measured on other tables.
    """
    runner = runner_of(block_size)
    pool = runner.new_pool()
    genealogy: list[list[int]] = []
    before: list[torch.Tensor] = []

    def keys_of(table: BlockTable, num_tokens: int) -> torch.Tensor:
        return torch.cat(runner.cache.gather(1, table.slot_mapping(0, num_tokens)))

    def on_step(tables: Sequence[BlockTable], parents: Sequence[int]) -> None:
        nonlocal before
        known = len(PROMPT) + len(genealogy)  # tokens computed before this step
        assert [table.num_tokens for table in tables] == [known + 1] * len(parents)
        keys = [keys_of(table, known) for table in tables]
        for key, parent in zip(keys, parents, strict=True):
            past = (before or [keys_of(tables[0], len(PROMPT))])[parent]
            length = len(past) // 2
            assert torch.equal(key[:length], past[:length])
            assert torch.equal(key[known : known + length], past[length:])
        before = keys
        genealogy.append(list(parents))
        for cache in runner.cache.key_caches:  # the step is still to come, and writes here
            cache.flatten(0, 1)[[table.slot_mapping()[-1] for table in tables]] = torch.nan

    decoded = share(runner, BlockTable(pool), PROMPT, 4, 8, on_step=on_step)
    assert len(genealogy) == 7 and genealogy[0] == [0] * 4, "the last token of each needs no step"
    assert decoded.sharing == replay(len(PROMPT), genealogy, block_size)


def test_on_step_tells_who_stopped() -> None:
    """Catches outputs that are counted on after they ended, so that a later one continues another's table."""
    runner = runner_of()
    seen: list[list[int]] = []
    decoded = sample(
        runner, BlockTable(runner.new_pool()), PROMPT, 6, 10, temperature=2.0, stop_token_ids={3, 4},
        on_step=lambda _, parents: seen.append(list(parents)),
    )  # fmt: skip
    running = [[index for index in range(6) if len(decoded.sequences[index]) > step] for step in range(1, 10)]
    expected = [[0] * len(running[0])]
    expected += [[old.index(index) for index in new] for old, new in itertools.pairwise(running)]
    assert seen == [parents for parents in expected if parents]
    assert len({*map(len, seen)}) > 2


def forget_copies(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.cache, "copy_blocks", lambda pairs: None)


@sharers
def test_a_forgotten_copy_shows(share: Callable[..., Decoded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches equality tests that would pass without a single copy, and copies made one by one."""
    runner = runner_of()
    copy_blocks, calls = runner.cache.copy_blocks, []
    monkeypatch.setattr(runner.cache, "copy_blocks", lambda pairs: (calls.append(len(pairs)), copy_blocks(pairs)))
    expected = share(runner, BlockTable(runner.new_pool()), PROMPT[:6], 5, 8)
    assert sum(calls) == expected.sharing.copied and len(calls) <= 8 and max(calls) == 4
    runner = runner_of()
    forget_copies(runner, monkeypatch)
    assert share(runner, BlockTable(runner.new_pool()), PROMPT[:6], 5, 8).sequences != expected.sequences


def poison(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, keep: Callable[[], set[int]] = set) -> list[int]:
    """Fill every slot that no sequence of a step holds with NaN before the step, all blocks but those of ``keep``.

    Returns:
        A list that grows by the number of slots filled.
    """
    execute, filled = runner.execute, []

    def poisoned(token_ids: Sequence[int], metadata: object) -> torch.Tensor:
        live = torch.zeros(runner.cache.num_blocks, runner.cache.block_size, dtype=torch.bool)
        for blocks, seq_len in zip(metadata.block_tables.tolist(), metadata.seq_lens.tolist(), strict=True):
            for position in range(seq_len):
                live[blocks[position // runner.cache.block_size], position % runner.cache.block_size] = True
        live[sorted(keep())] = True
        live.view(-1)[metadata.slot_mapping] = False  # the step itself writes these
        for cache in runner.cache.key_caches + runner.cache.value_caches:
            cache[~live] = torch.nan
        filled.append(int((~live).sum()))
        return execute(token_ids, metadata)

    monkeypatch.setattr(runner, "execute", poisoned)
    return filled


@sharers
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_nothing_outside_its_own_tokens_is_read(
    share: Callable[..., Decoded], block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a beam that reads a block which its family has given back, or the empty end of one."""
    expected = share(runner_of(block_size), BlockTable(runner_of(block_size).new_pool()), PROMPT, 5, 9)
    runner = runner_of(block_size)
    filled = poison(runner, monkeypatch)
    assert share(runner, BlockTable(shuffled_pool(runner)), PROMPT, 5, 9) == expected
    assert len(filled) == 9 and min(filled) > 0


@sharers
@pytest.mark.parametrize("known", [0, 1, 4, 6, 7])
def test_a_table_that_holds_the_beginning(
    share: Callable[..., Decoded], known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a beginning that is computed again, or a fork of it whose half-filled block is written to or not copied.

    Somebody else holds the beginning too, and finds it as it was.
    """
    expected = share(runner_of(), BlockTable(runner_of().new_pool()), PROMPT, 4, 6)
    runner = runner_of()
    pool = runner.new_pool()
    theirs = BlockTable(pool)
    if known:
        theirs.append_tokens(known)
        runner.execute(PROMPT[:known], attention_metadata([theirs], [known]))
    keys = [tensor.clone() for tensor in runner.cache.gather(1, theirs.slot_mapping())]
    poison(runner, monkeypatch, keep=lambda: {block.block_id for block in theirs.blocks})
    held = pool.num_used_blocks
    decoded = share(runner, theirs.fork(), PROMPT, 4, 6)
    assert decoded.sequences == expected.sequences and decoded.scores == pytest.approx(expected.scores, rel=1e-5)
    assert all(map(torch.equal, keys, runner.cache.gather(1, theirs.slot_mapping())))
    assert pool.num_used_blocks == held
    prefix_copies = 1 if known % 4 else 0
    assert decoded.sharing.copied == expected.sharing.copied + prefix_copies


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


@sharers
def test_no_pool_is_too_small_to_leak(share: Callable[..., Decoded]) -> None:
    """Catches a block kept by a table, a fork or a copy when blocks run out, at whatever moment that is."""
    failed = succeeded = 0
    expected = share(runner_of(3), BlockTable(runner_of(3).new_pool()), PROMPT, 4, 7)
    for num_blocks in range(2, 24):
        runner = runner_of(3, num_blocks)
        pool = runner.new_pool()
        table = BlockTable(pool)
        try:
            assert share(runner, table, PROMPT, 4, 7) == expected
            succeeded += 1
        except NoFreeBlocksError:
            failed += 1
        assert pool.num_used_blocks == 0 and table.blocks == [] and table.num_tokens == 0
        assert {block.ref_cnt for block in pool.blocks} == {0}
    assert failed > 6 and succeeded > 2


@sharers
@pytest.mark.parametrize("at", range(4))
def test_nothing_leaks_whatever_is_raised(
    share: Callable[..., Decoded], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches tables that are given back only if all goes well."""
    runner = runner_of(3)
    pool = runner.new_pool()
    theirs = BlockTable(pool)
    theirs.append_tokens(5)
    steps = itertools.count(1)

    def on_step(*_: object) -> None:
        if next(steps) == at:
            raise StopHereError

    if at:
        with pytest.raises(StopHereError):
            share(runner, theirs.fork(), PROMPT, 4, 7, on_step=on_step)
        assert pool.num_used_blocks == 2 and theirs.num_tokens == 5
    failing(runner, at, monkeypatch)
    with pytest.raises(StopHereError):
        share(runner, theirs.fork(), PROMPT, 4, 7)
    assert pool.num_used_blocks == 2 and [block.ref_cnt for block in theirs.blocks] == [1, 1]


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (sample, {"n": 0}, "n is 0"),
        (sample, {"n": 2, "temperature": -0.5}, "temperature -0.5"),
        (sample, {"n": 2, "temperature": float("nan")}, "temperature nan"),
        (sample, {"n": 2, "temperature": float("inf")}, "temperature inf"),
        (sample, {"n": 2, "seed": -1}, "seed is -1"),
        (sample, {"n": 2, "seed": 2**32}, "seed is 4294967296"),
        (sample, {"n": 2, "max_tokens": 0}, "max_tokens is 0"),
        (sample, {"n": 2, "prompt": []}, "the prompt has 0 tokens"),
        (sample, {"n": 2, "prompt": [1, 2]}, "at least the last token must be left"),
        (beam_search, {"num_beams": 0}, "num_beams is 0"),
        (beam_search, {"num_beams": 2, "early_stopping": "sometimes"}, "'sometimes'"),
        (beam_search, {"num_beams": 2, "early_stopping": 1}, "early_stopping is 1"),
        (beam_search, {"num_beams": 2, "max_tokens": -1}, "max_tokens is -1"),
        (beam_search, {"num_beams": 2, "length_penalty": 1000}, "length_penalty is 1000: .* lengths up to 3"),
        (beam_search, {"num_beams": 2, "length_penalty": -1000.0}, "length_penalty is -1000.0"),
        (beam_search, {"num_beams": 2, "length_penalty": math.nan}, "length_penalty is nan"),
        (beam_search, {"num_beams": 2, "length_penalty": math.inf, "max_tokens": 1}, "length_penalty is inf"),
        (beam_search, {"num_beams": 2, "prompt": [1]}, "at least the last token must be left"),
    ],
)
def test_nonsense_is_refused_before_anything_changes(call: Callable, arguments: dict, message: str) -> None:
    """Catches a search that begins before it looks at what was asked, and an error that does not name it."""
    runner = runner_of()
    table = BlockTable(runner.new_pool())
    table.append_tokens(2)
    with pytest.raises(ValueError, match=message):
        call(**({"runner": runner, "table": table, "prompt": PROMPT, "max_tokens": 3} | arguments))
    assert table.num_tokens == 2 and table.pool.num_used_blocks == 1
    with pytest.raises(ValueError, match="does not fit a cache"):
        call(runner, BlockTable(BlockPool(4, 5)), PROMPT, 2, 3)


# --- a prefix cache -------------------------------------------------------------------------------------------------

INDICES: dict[str, Callable[[int], dict[str, object]]] = {
    "no cache": lambda block_size: {"enable_prefix_caching": False},
    "hashes": lambda block_size: {},
    "radix": lambda block_size: {"index": RadixTree(block_size)},
}
indices = pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
caches = pytest.mark.parametrize("index", [INDICES["hashes"], INDICES["radix"]], ids=["hashes", "radix"])
names = map("request {}".format, itertools.count())


def requests_of(prompts: Sequence[Sequence[int]]) -> list[Request]:
    return [Request(next(names), prompt) for prompt in prompts]


def expected_of(prompts: Sequence[Sequence[int]], max_tokens: int, stop: tuple[int, ...] = ()) -> list[list[int]]:
    return [greedy_small(tuple(prompt), max_tokens, stop) for prompt in prompts]


def assert_at_rest(manager: KVCacheManager, held: int = 0) -> None:
    """Only what others hold is held."""
    assert manager.block_pool.num_used_blocks == held
    marked = sum(block.block_hash is not None for block in manager.block_pool.blocks)
    assert marked == (0 if manager.prefix_cache is None else len(manager.prefix_cache))


@indices
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_cached_equals_greedy(index: Callable, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches hits in the wrong order or at the wrong positions, a block taken for another's, a last token that is not
    computed, blocks shared in the step that computes them but read before, and stops that end another request.
    """
    prefix = PROMPT * 3
    prompts = [prefix, [*prefix, 1], [*prefix, 2, 2, 2], [1, *prefix], prefix[:5], [9], prefix[:20], prefix]
    runner = runner_of(block_size)
    manager = KVCacheManager(200, block_size, **index(block_size))
    poison(
        runner, monkeypatch, lambda: {block.block_id for block in manager.block_pool.blocks if block.block_hash}
    )  # that is, whatever the cache does not answer for
    for stop in ((), (3,), ()):
        outputs = generate_cached(runner, manager, requests_of(prompts), 7, stop)
        assert outputs == expected_of(prompts, 7, stop)
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
    runner, manager = runner_of(), KVCacheManager(40, 4, **index(4))
    computed = []
    execute = runner.execute
    runner.execute = lambda token_ids, metadata: (computed.append(len(token_ids)), execute(token_ids, metadata))[1]
    prompts = [[*PROMPT, last] for last in (1, 2, 3)]
    assert generate_cached(runner, manager, requests_of(prompts), 2) == expected_of(prompts, 2)
    assert computed == [9 + 1 + 1, 3] and manager.stats.hits == 16


@caches
@pytest.mark.parametrize("block_size", [1, 3])
def test_eviction_changes_no_output(index: Callable, block_size: int) -> None:
    """Catches a block that is found by its old hash after somebody else's tokens were written to it."""
    chooser = random.Random(0)
    manager = KVCacheManager(1 + -(-24 // block_size), block_size, **index(block_size))
    runner = runner_of(block_size, manager.block_pool.num_blocks)
    for _ in range(40):
        prompts = [[*PROMPT[: chooser.choice((3, 8))], *chooser.choices((1, 2), k=8)]]
        assert generate_cached(runner, manager, requests_of(prompts), 6) == expected_of(prompts, 6)
        assert_at_rest(manager)
    assert manager.stats.evictions > 40 and manager.stats.hits > 40


@settings(max_examples=60, deadline=None)
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
    runner = runner_of(block_size, num_blocks)
    manager = KVCacheManager(num_blocks, block_size, **INDICES[index](block_size))
    for names_of_pieces, max_tokens, fails_at in batches:
        prompts = [[token for name in names for token in pieces[name]] for names in names_of_pieces]
        requests = requests_of(prompts)
        with pytest.MonkeyPatch.context() as monkeypatch:
            if fails_at is not None:
                failing(runner, fails_at, monkeypatch)
            with contextlib.suppress(StopHereError, NoFreeBlocksError):
                assert generate_cached(runner, manager, requests, max_tokens) == expected_of(prompts, max_tokens)
        assert {request.num_computed_tokens for request in requests} == {0}
        assert_at_rest(manager)


@caches
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_step_that_failed_is_forgotten(index: Callable, fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache that answers for blocks which were remembered before a step, although the step never came."""
    runner, manager = runner_of(2), KVCacheManager(60, 2, **index(2))
    prompts = [PROMPT, [*PROMPT[:5], 1, 1, 1], PROMPT]
    with monkeypatch.context() as context:
        failing(runner, fails_at, context)
        with pytest.raises(StopHereError):
            generate_cached(runner, manager, requests_of(prompts), 5)
    assert_at_rest(manager)
    remembered = len(manager.prefix_cache)
    assert (remembered > 0) == (fails_at > 0), "what earlier steps computed stays"
    assert generate_cached(runner, manager, requests_of(prompts), 5) == expected_of(prompts, 5)
    if fails_at:
        assert manager.stats.hits > 0


@caches
def test_blocks_that_ran_out_are_forgotten_too(index: Callable) -> None:
    """Catches a request that was given blocks, and then not computed because another found none."""
    runner, manager = runner_of(4), KVCacheManager(7, 4, **index(4))
    with pytest.raises(NoFreeBlocksError, match="needs blocks for 20 more tokens, and 4 blocks are free"):
        generate_cached(runner, manager, requests_of([PROMPT, [1] * 20]), 3)
    assert len(manager.prefix_cache) == 0
    assert_at_rest(manager)
    assert generate_cached(runner, manager, requests_of([PROMPT]), 3) == expected_of([PROMPT], 3)


@indices
def test_no_manager_is_too_small_to_leak(index: Callable) -> None:
    """Catches blocks kept when a pool runs out, at whatever moment; and a request of somebody else's that suffers."""
    prompts, outcomes = [PROMPT, [*PROMPT[:6], 1], [2, 2]], []
    for num_blocks in range(4, 20):
        runner, manager = runner_of(3, num_blocks), KVCacheManager(num_blocks, 3, **index(3))
        theirs = Request("theirs", [*PROMPT[:6], 5])
        assert manager.allocate_slots(theirs, 7) is not None
        runner.execute(theirs.token_ids, attention_metadata([manager.tables["theirs"]], [7]))
        theirs.num_computed_tokens = 7
        before = manager.block_ids("theirs"), [tensor.clone() for tensor in keys_of(runner, manager)]
        try:
            assert generate_cached(runner, manager, requests_of(prompts), 6) == expected_of(prompts, 6)
            outcomes.append(True)
        except NoFreeBlocksError:
            outcomes.append(False)
        assert_at_rest(manager, held=3)
        assert manager.block_ids("theirs") == before[0]
        assert all(map(torch.equal, before[1], keys_of(runner, manager)))
        assert manager.tables.keys() == {"theirs"}
        assert generate_cached_after(runner, manager, theirs)
    assert outcomes == sorted(outcomes) and {*outcomes} == {True, False}


def keys_of(runner: ModelRunner, manager: KVCacheManager) -> tuple[torch.Tensor, torch.Tensor]:
    return runner.cache.gather(1, manager.tables["theirs"].slot_mapping())


def generate_cached_after(runner: ModelRunner, manager: KVCacheManager, request: Request) -> bool:
    """Preempt a request that holds blocks and let it go on: it says what it would have said."""
    manager.free(request)
    request.num_computed_tokens = 0
    if manager.block_pool.num_free_blocks < 3:
        return True
    return generate_cached(runner, manager, [request], 2) == expected_of([[*PROMPT[:6], 5]], 2)


@indices
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_a_request_goes_on_after_it_was_preempted(index: Callable, block_size: int) -> None:
    """Catches a request that cannot come back, forgets what it said, or does not find its own blocks."""
    runner, manager = runner_of(block_size), KVCacheManager(60, block_size, **index(block_size))
    [request] = requests_of([PROMPT])
    said = [generate_cached(runner, manager, [request], max_tokens)[0] for max_tokens in (3, 1, 2, 4)]
    assert [*itertools.chain(*said)] == expected_of([PROMPT], 10)[0] == request.token_ids[len(PROMPT) :]
    found = sum((count - 1) // block_size * block_size for count in (11, 12, 14))
    assert manager.stats.hits == (0 if manager.prefix_cache is None else found)


@indices
def test_a_fork_beside_a_request(index: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a request that writes into a block which a fork of its table names too, or goes on in a copy that was
    never carried out.
    """

    def run(forget: bool) -> tuple[list[list[int]], bool]:
        runner, manager = runner_of(), KVCacheManager(60, 4, **index(4))
        requests = requests_of([PROMPT[:6], PROMPT[1:6]])
        execute, forks, keys = runner.execute, [], []

        def execute_then_fork(token_ids: Sequence[int], metadata: object) -> torch.Tensor:
            logits = execute(token_ids, metadata)
            if not forks:
                forks.extend(manager.tables[request.request_id].fork() for request in requests)
                keys.extend(torch.cat(runner.cache.gather(1, fork.slot_mapping())) for fork in forks)
            return logits

        runner.execute = execute_then_fork
        if forget:
            forget_copies(runner, monkeypatch)
        outputs = generate_cached(runner, manager, requests, 7)
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
        ([PROMPT, PROMPT], 3, "share an id"),
    ],
)
def test_nonsense_takes_no_blocks(prompts: list[list[int]], max_tokens: int, message: str) -> None:
    """Catches two requests that grow one table, and blocks taken before that was seen."""
    runner, manager = runner_of(), KVCacheManager(60, 4)
    with pytest.raises(ValueError, match=message):
        generate_cached(runner, manager, [Request("Ada", prompt) for prompt in prompts], max_tokens)
    theirs = Request("Bo", PROMPT)
    manager.allocate_slots(theirs, 8)
    with pytest.raises(ValueError, match="share an id"):
        generate_cached(runner, manager, [Request("Bo", [1, 2])], 3)
    assert manager.block_ids("Bo") == [1, 2] and manager.block_pool.num_used_blocks == 2
    with pytest.raises(ValueError, match="does not fit a cache"):
        generate_cached(runner, KVCacheManager(60, 5), [Request("Cy", [1, 2])], 3)
    assert generate_cached(runner, manager, [], 3) == []


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


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_the_real_model_says_the_same_with_a_cache(real: tuple, said: tuple, index: Callable) -> None:
    """Catches what random weights hide, in requests that start in one step."""
    (model, _, stop), (prompts, expected) = real, said
    manager = KVCacheManager(40, 16, **index(16))
    assert generate_cached(runner_of(16, 40, model), manager, requests_of(prompts), 5, stop) == expected
    assert (manager.stats.hits > 0) == (manager.prefix_cache is not None)
    assert_at_rest(manager)


def test_the_real_model_says_the_same_under_pressure_and_when_forked(real: tuple, said: tuple) -> None:
    """Catches what random weights hide when blocks are evicted, and when a prompt's last block is copied."""
    (model, _, stop), (prompts, expected) = real, said
    manager = KVCacheManager(5, 16)
    runner = runner_of(16, 5, model)
    for prompt, output in zip(prompts, expected, strict=True):
        assert generate_cached(runner, manager, requests_of([prompt]), 5, stop) == [output]
    assert manager.stats.hits > 0 and manager.stats.evictions > 0
    assert_at_rest(manager)
    decoded = sample(runner, BlockTable(manager.block_pool), prompts[0], 2, 5, temperature=0.0, stop_token_ids=stop)
    assert decoded.sequences == [expected[0]] * 2 and decoded.sharing.copied == 1
