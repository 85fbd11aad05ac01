"""Hit rates over a trace: against a manager with real page tables, and against caches written with plain lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request
from pagedattn_lab.studies.hit_rates import POLICIES, BlockCache, HitReport, measure
from pagedattn_lab.workloads import TraceRequest
from pagedattn_lab.workloads.conversations import chat, hashed, system_prompts
from tests.helpers.list_cache import ListCache

Prompts = Sequence[Sequence[int]]

# Tokens are 0 or 1, so that many prompts begin alike; lengths on and off the end of a block.
prompts_of_few_tokens = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=25)
block_sizes = st.integers(1, 3)
capacities = st.integers(1, 12)


def to_trace(prompts: Prompts, block_size: int) -> list[TraceRequest]:
    """Name every block by all tokens up to its end."""
    ids: dict[tuple[int, ...], int] = {}
    return [
        TraceRequest(
            float(when),
            len(prompt),
            1,
            tuple(
                ids.setdefault(tuple(prompt[: start + block_size]), len(ids))
                for start in range(0, len(prompt), block_size)
            ),
        )
        for when, prompt in enumerate(prompts)
    ]


@given(prompts_of_few_tokens, block_sizes, capacities)
@example([[0, 0], [0, 0], [0, 0], [1], [0, 0, 1]], 1, 4)  # computed twice: one id, two blocks
@example([[0, 0, 0], [0, 0, 0, 1], [1, 1], [0, 0, 0]], 1, 4)  # of a prompt that was found, the end goes first
def test_lru_does_what_the_manager_does(prompts: Prompts, block_size: int, capacity: int) -> None:
    """Catches another order of eviction, a duplicate that is left out, the last token found, a hit evicted."""
    cache, manager = BlockCache(capacity, block_size), KVCacheManager(capacity + 1, block_size)
    for request, tokens in zip(to_trace(prompts, block_size), prompts, strict=True):
        found = cache.serve(request.prompt_len, request.hash_ids)
        real = Request("one at a time", tokens)
        blocks, num_hit_tokens = manager.get_computed_blocks(real)
        admitted = manager.allocate_slots(real, real.num_tokens - num_hit_tokens, blocks) is not None
        manager.free(real)
        assert found == (num_hit_tokens if admitted else None)
        assert cache.evictions == manager.stats.evictions
        assert len(cache) == len(manager.prefix_cache)


@given(prompts_of_few_tokens, block_sizes, capacities)
def test_fifo_evicts_what_came_first(prompts: Prompts, block_size: int, capacity: int) -> None:
    """Catches a hit that moves a block to the back, and one that is evicted by the request that found it."""
    cache, plain = BlockCache(capacity, block_size, "fifo"), ListCache(capacity, block_size)
    for request in to_trace(prompts, block_size):
        served = request.prompt_len, request.hash_ids
        assert cache.serve(*served) == plain.serve(*served)
        assert (len(cache), cache.evictions) == (len(plain.line), plain.evictions)


@given(prompts_of_few_tokens, block_sizes, capacities, st.sampled_from(list(POLICIES)), st.integers(0, 9))
def test_what_holds_for_every_policy(prompts: Prompts, block_size: int, capacity: int, policy: str, seed: int) -> None:
    """Catches more blocks than fit, evictions without need or too few, finds of what nobody has sent, and a leak."""
    trace = to_trace(prompts, block_size)
    cache = BlockCache(capacity, block_size, policy, seed)
    seen: set[int] = set()
    for request in trace:
        before, evictions = len(cache), cache.evictions
        found = cache.serve(request.prompt_len, request.hash_ids)
        if found is None:
            assert len(request.hash_ids) > capacity and (len(cache), cache.evictions) == (before, evictions)
            continue
        hit_blocks, rest = divmod(found, block_size)
        assert rest == 0 and found < request.prompt_len and set(request.hash_ids[:hit_blocks]) <= seen
        new_blocks = len(request.hash_ids) - hit_blocks
        assert cache.evictions - evictions == max(0, before + new_blocks - capacity)
        full = request.hash_ids[: request.prompt_len // block_size]
        assert len(cache) == before + len(full) - hit_blocks - (cache.evictions - evictions) <= capacity
        # Nothing of this request has gone: its own hits were safe, and its full blocks are there.
        twin = len(full) - (request.prompt_len % block_size == 0)
        if policy == "lru":
            assert cache.serve(request.prompt_len, request.hash_ids) == twin * block_size
        assert all(cache._holders.get(hash_id) for hash_id in full)
        seen |= set(full)
    assert sum(map(len, cache._holders.values())) == len(cache) == len(cache._order) == len(cache._place)
    assert all(cache._order[place] == block for block, place in cache._place.items())


@given(prompts_of_few_tokens, block_sizes, capacities, st.integers(0, 9))
def test_random_repeats_itself(prompts: Prompts, block_size: int, capacity: int, seed: int) -> None:
    """Catches chance that does not come from the seed."""
    trace = to_trace(prompts, block_size)
    assert measure(trace, capacity, block_size, "random", seed) == measure(trace, capacity, block_size, "random", seed)


def test_random_depends_on_the_seed_and_spares_nobody() -> None:
    """Catches a seed that is ignored, and a choice that is none."""
    trace = list(hashed(islice(chat(), 300), 16))
    assert len({measure(trace, 2_000, 16, "random", seed).hit_tokens for seed in range(5)}) > 1
    victims = set()
    for seed in range(50):
        cache = BlockCache(5, 1, "random", seed)
        cache.serve(5, (0, 1, 2, 3, 4))
        cache.serve(1, (9,))
        victims |= {0, 1, 2, 3, 4} - set(cache._holders)
    assert victims == {0, 1, 2, 3, 4}


def naive_hits(prompts: Prompts, block_size: int) -> int:
    """Count tokens in leading full blocks that some earlier prompt had too, the last token left out."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for prompt in prompts:
        ends = range(block_size, len(prompt) + 1, block_size)
        known = takewhile(lambda end, prompt=prompt, seen=seen: end < len(prompt) and tuple(prompt[:end]) in seen, ends)
        total += block_size * sum(1 for _ in known)
        seen |= {tuple(prompt[:end]) for end in ends}
    return total


@given(prompts_of_few_tokens, block_sizes, st.sampled_from(list(POLICIES)))
def test_unlimited_finds_all_that_came_before(prompts: Prompts, block_size: int, policy: str) -> None:
    """Catches hits behind the first miss, a last block found, and something forgotten without need."""
    trace = to_trace(prompts, block_size)
    report = measure(trace, None, block_size, policy)
    tokens = sum(map(len, prompts))
    assert report == HitReport(
        policy, None, block_size, len(prompts), 0, tokens, naive_hits(prompts, block_size), 0, report.most_cached
    )
    assert report.hit_rate == report.hit_tokens / tokens
    large = measure(trace, max(1, report.most_cached) + 9, block_size, policy)
    assert (large.hit_tokens, large.most_cached, large.evictions) == (report.hit_tokens, report.most_cached, 0)


@given(prompts_of_few_tokens, block_sizes, st.integers(0, 6))
def test_more_memory_never_harms_lru(prompts: Prompts, block_size: int, more: int) -> None:
    """Catches a cache that loses what a smaller one keeps. It holds where every prompt fits, and for LRU only:
    with first in, first out a larger cache can find less (Belady's anomaly), as the next test shows."""
    trace = to_trace(prompts, block_size)
    enough = max(len(request.hash_ids) for request in trace) + more
    assert measure(trace, enough, block_size).hit_tokens <= measure(trace, enough + 1, block_size).hit_tokens


def test_more_memory_can_harm_the_others() -> None:
    """Catches FIFO that is LRU by another name, and refused requests that push others out."""
    trace = [
        TraceRequest(0.0, len(hash_ids), 1, hash_ids)
        for hash_ids in ((0,), (1, 2, 3), (0, 4), (1,), (0, 4, 5))
    ]  # fmt: skip
    assert [measure(trace, size, 1, "fifo").hit_tokens for size in (3, 4)] == [2, 1]
    assert [measure(trace, size, 1, "lru").hit_tokens for size in (3, 4)] == [2, 3]
    trace = [TraceRequest(0.0, len(hash_ids), 1, hash_ids) for hash_ids in ((0, 1), (2, 3, 4), (0, 1))]
    assert [measure(trace, size, 1).hit_tokens for size in (2, 3)] == [1, 0]
    assert [measure(trace, size, 1).refused for size in (2, 3)] == [1, 0]


def test_report_counts() -> None:
    """Catches refused prompts left out of the rate, the last size passed off as the largest, and rates of nothing."""
    trace = [
        TraceRequest(0.0, 6, 1, (0, 1, 2)),
        TraceRequest(0.0, 9, 1, (3, 4, 5, 6, 7)),  # five blocks do not fit into four
        TraceRequest(0.0, 7, 1, (0, 1, 2, 8)),
        TraceRequest(0.0, 7, 1, (9, 10, 11, 12)),
    ]
    assert measure(trace, 4, 2) == HitReport("lru", 4, 2, 4, 1, 29, 6, 3, 3)
    assert measure(trace, 4, 2).hit_rate == 6 / 29
    assert measure([], 4).hit_rate == 0


def test_policies_differ_on_conversations() -> None:
    """Catches an order of policies that nobody would expect: a conversation that was just heard goes on."""
    trace = list(hashed(islice(chat(), 1_500), 16))
    rates = {policy: measure(trace, 4_000, 16, policy).hit_rate for policy in POLICIES}
    assert measure(trace, None, 16).hit_rate > rates["lru"] > rates["fifo"] > rates["random"] > 0
    alike = list(hashed(islice(system_prompts(num_prompts=1), 100), 16))
    assert measure(alike, None, 16).hit_tokens == 99 * (1000 // 16 * 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 16), "num_blocks is 0"),
        ((-1, 16), "num_blocks is -1"),
        ((4, 0), "block_size is 0"),
        ((4, 16, "lfu"), "policy 'lfu' is unknown: use one of lru, fifo, random"),
    ],
)
def test_bad_caches_are_refused(arguments: tuple, message: str) -> None:
    """Catches a cache that could never serve anybody, or does something else than it was asked to."""
    with pytest.raises(ValueError, match=message):
        BlockCache(*arguments)


@given(prompts_of_few_tokens, block_sizes, capacities, st.sampled_from(list(POLICIES)))
def test_ids_of_full_blocks_are_enough(prompts: Prompts, block_size: int, capacity: int, policy: str) -> None:
    """Catches a log that hashes full blocks only and is refused, or measured as if it had a block less."""
    trace = to_trace(prompts, block_size)
    full_only = [request._replace(hash_ids=request.hash_ids[: request.prompt_len // block_size]) for request in trace]
    for size in (None, capacity):
        assert measure(full_only, size, block_size, policy) == measure(trace, size, block_size, policy)


def test_a_trace_must_hash_all_blocks_alike() -> None:
    """Catches a wrong block size at which each request taken alone would pass."""
    ids = (0, 1, 2, 3)
    with_rest, without_rest = TraceRequest(0.0, 17, 1, ids[:2]), TraceRequest(0.0, 40, 1, ids[:2])
    full = TraceRequest(0.0, 32, 1, ids[:2])
    for trace, first, second in (
        ([full, with_rest, full, without_rest], 2, 4),
        ([without_rest, without_rest, with_rest], 3, 1),
    ):
        with pytest.raises(ValueError) as caught:
            measure(trace, None, 16)
        assert str(caught.value) == (
            f"request {first} has an id for its last block, which is not full in blocks of 16, and request {second} "
            "has none: all such blocks must have ids, or none"
        )
    for trace in ([full, with_rest, full], [without_rest, full, without_rest]):
        assert measure(trace, None, 16).num_requests == 3


@pytest.mark.parametrize("block_size", [*range(8, 16), *range(17, 25)])
@pytest.mark.parametrize("full_only", [False, True])
def test_a_wrong_block_size_is_found(block_size: int, full_only: bool) -> None:
    """Catches both ways to hash a last block letting a trace pass that was hashed in other blocks."""
    trace = list(hashed(islice(chat(), 50), 16))
    if full_only:
        trace = [request._replace(hash_ids=request.hash_ids[: request.prompt_len // 16]) for request in trace]
    with pytest.raises(ValueError, match=r"request \d+"):
        measure(trace, None, block_size)
    assert measure(trace, None, 16).num_requests == 50


@pytest.mark.parametrize(
    ("num_tokens", "hash_ids"), [(33, (0,)), (33, (0, 1, 2, 3)), (32, (0, 1, 2)), (0, ()), (16, ())]
)
def test_ids_that_do_not_fit_the_tokens(num_tokens: int, hash_ids: tuple[int, ...]) -> None:
    """Catches a rate computed with the wrong block size, and an error that does not say which request is meant."""
    trace = [TraceRequest(0.0, 16, 1, (7,)), TraceRequest(0.0, num_tokens, 1, hash_ids)]
    message = (
        f"request 2: {len(hash_ids)} hash_ids for {num_tokens} tokens in blocks of 16: there must be one for each "
        "block, or for each full block"
    )
    with pytest.raises(ValueError, match=message):
        measure(trace, None, 16)
