"""Groups of layers over one pool: what one group does, what many must keep, and what is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.prefix_cache import block_hashes, hash_and_group
from pagedattn_lab.request import Request, RequestStatus
from tests.helpers.draws import drawn


def full(block_size: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size, 1, 8, "float32")


def window(block_size: int, width: int) -> SlidingWindowSpec:
    return SlidingWindowSpec(block_size, 1, 8, "float32", sliding_window=width)


def grouped(*specs: KVCacheSpec) -> list[KVCacheGroup]:
    return [KVCacheGroup((f"layers.{number}",), (spec,)) for number, spec in enumerate(specs)]


def ids(blocks: Sequence[KVCacheBlock] | None) -> list[int] | None:
    return None if blocks is None else [block.block_id for block in blocks]


@pytest.mark.parametrize("seed", range(60))
def test_one_group_of_full_attention_does_what_the_manager_does(seed: int) -> None:
    """Catches a block, a hit, an event or a place in the free queue that is another one than ``KVCacheManager``'s."""
    rng = random.Random(seed)
    block_size, num_blocks, caching = rng.choice([1, 2, 3, 4, 16]), rng.randint(4, 20), seed % 5 > 0
    spec = MLAAttentionSpec(block_size, 8, "float32") if seed % 2 else full(block_size)
    one = KVCacheManager(num_blocks, block_size, caching, enable_kv_cache_events=caching)
    many = GroupedKVCacheManager(grouped(spec), num_blocks, caching, enable_kv_cache_events=caching)
    running: list[tuple[Request, Request]] = []

    def same_everywhere() -> None:
        queues = [ids(each.block_pool.free_block_queue.get_all_free_blocks()) for each in (one, many)]
        assert queues[0] == queues[1]
        assert one.take_events() == many.take_events()
        assert one.stats == many.stats
        assert [one.block_ids(first.request_id) for first, _ in running] == [
            *(many.block_ids(second.request_id)[0] for _, second in running)
        ]

    for number in range(80):
        chance = rng.random()
        if chance < 0.45 or not running:
            tokens = [rng.randint(0, 1)] * block_size * rng.randint(0, 3) + [0] * rng.randint(1, 2 * block_size)
            pair = Request(f"r{number}", tokens), Request(f"r{number}", tokens)
            hits, num_hit_tokens = one.get_computed_blocks(pair[0])
            [same_hits], same_num = many.get_computed_blocks(pair[1])
            assert (ids(hits), num_hit_tokens) == (ids(same_hits), same_num)
            num_new = rng.randint(1, len(tokens) - num_hit_tokens)
            needed = [one.num_blocks_to_admit(pair[0], num_new, hits)]
            needed.append(many.num_blocks_to_admit(pair[1], num_new, (same_hits,)))
            assert needed[0] == needed[1]
            blocks = one.allocate_slots(pair[0], num_new, hits)
            same = many.allocate_slots(pair[1], num_new, (same_hits,))
            assert ids(blocks) == (None if same is None else ids(same[0]))
            if blocks is not None:
                running.append(pair)
                for request in pair:
                    request.num_computed_tokens = num_hit_tokens + num_new
        elif chance < 0.8:
            pair = rng.choice(running)
            num_new, token = rng.randint(1, 3), rng.randint(0, 1)
            for request in pair:
                while request.num_tokens < request.num_computed_tokens + num_new:
                    request.append_token(token)
            blocks, same = one.allocate_slots(pair[0], num_new), many.allocate_slots(pair[1], num_new)
            assert ids(blocks) == (None if same is None else ids(same[0]))
            for request in pair:
                request.num_computed_tokens += 0 if blocks is None else num_new
        elif chance < 0.97:
            first, second = running.pop(rng.randrange(len(running)))
            assert one.uncomputed_block_ids(first) == many.uncomputed_block_ids(second)
            one.free(first)
            many.free(second)
        else:
            assert one.reset_prefix_cache() == many.reset_prefix_cache()
        same_everywhere()


class Groups(RuleBasedStateMachine):
    """Requests come, compute, guess, fail and go; a model of the memory says what every slot holds."""

    names = Bundle("names")

    @initialize(
        block_size=st.sampled_from([1, 2, 3, 4]),
        widths=st.lists(st.one_of(st.none(), st.integers(2, 11)), min_size=1, max_size=4),
        num_blocks=st.integers(6, 40),
        caching=st.booleans(),
        budget=st.integers(1, 9),
        interval=st.sampled_from([0, 0, None, 2]),
    )
    def make(
        self,
        block_size: int,
        widths: list[int | None],
        num_blocks: int,
        caching: bool,
        budget: int,
        interval: int | None,
    ) -> None:
        self.block_size, self.widths, self.budget = block_size, widths, budget
        self.specs = [full(block_size) if width is None else window(block_size, width) for width in widths]
        if interval and any(widths) and caching:
            interval *= block_size
        elif interval:
            interval = 0
        self.manager = GroupedKVCacheManager(
            grouped(*self.specs),
            num_blocks,
            caching,
            max_num_batched_tokens=budget,
            prefix_cache_retention_interval=interval,
        )
        self.requests: dict[str, Request] = {}
        self.memory: dict[tuple[int, int], tuple] = {}  # what the slot (block, offset) holds
        self.num_made = 0

    @rule(target=names, text=st.lists(st.integers(0, 1), min_size=1, max_size=24), chunk=st.integers(1, 9))
    def admit(self, text: list[int], chunk: int) -> str:
        name = f"r{self.num_made}"
        self.num_made += 1
        request = Request(name, [0] * (len(text) // 2) + text[len(text) // 2 :])
        longest = self.longest_hit(request)
        before = [(block.ref_cnt, block.block_hash) for block in self.manager.block_pool.blocks]
        hits, num_hit_tokens = self.manager.get_computed_blocks(request)
        assert num_hit_tokens == longest * self.block_size
        assert {len(blocks) for blocks in hits} == {longest}
        assert [(block.ref_cnt, block.block_hash) for block in self.manager.block_pool.blocks] == before
        num_new = min(chunk, self.budget, request.num_tokens - num_hit_tokens)
        if self.manager.allocate_slots(request, num_new, hits) is None:
            assert [(block.ref_cnt, block.block_hash) for block in self.manager.block_pool.blocks] == before
            return name
        request.num_computed_tokens = num_hit_tokens
        self.requests[name] = request
        self.compute(request, num_new)
        return name

    @rule(name=names, token=st.integers(0, 1), num_new=st.integers(1, 9), drafts=st.integers(0, 3), fails=st.booleans())
    def step(self, name: str, token: int, num_new: int, drafts: int, fails: bool) -> None:
        request = self.requests.get(name)
        if request is None:
            return
        if request.num_computed_tokens == request.num_tokens:
            request.append_token(token)
        num_new = min(num_new, self.budget, request.num_tokens - request.num_computed_tokens)
        # Guesses follow the last token there is: before it, the text goes on, and nothing is guessed.
        is_last = request.num_computed_tokens + num_new == request.num_tokens
        drafts = min(drafts, self.budget - num_new) if is_last else 0
        if self.manager.allocate_slots(request, num_new + drafts) is None:
            return
        if fails and not drafts:  # the step is not carried out, and the request starts again
            self.manager.evict_blocks(self.manager.uncomputed_block_ids(request))
            self.leave(name)
            return
        self.compute(request, num_new)

    @rule(name=consumes(names))
    def leave(self, name: str) -> None:
        if name in self.requests:
            self.manager.free(self.requests.pop(name))

    @rule()
    def reset(self) -> None:
        assert self.manager.reset_prefix_cache() == (not self.requests)

    def compute(self, request: Request, num_new: int) -> None:
        """Write new tokens into each group's slots, then check what the last of them reads."""
        start, stop = request.num_computed_tokens, request.num_computed_tokens + num_new
        for group, table in enumerate(self.manager.tables[request.request_id]):
            for position in range(start, stop):
                block = table.blocks[position // self.block_size]
                assert block is not self.manager.block_pool.null_block
                assert block.ref_cnt == 1, "a block that others read too is written to"
                self.memory[block.block_id, position % self.block_size] = (group, *request.token_ids[: position + 1])
        request.num_computed_tokens = stop
        for query in (start, stop - 1):
            for group, (width, table) in enumerate(
                zip(self.widths, self.manager.tables[request.request_id], strict=True)
            ):
                for position in range(0 if width is None else max(0, query - width + 1), query + 1):
                    block_id = table.blocks[position // self.block_size].block_id
                    held = self.memory.get((block_id, position % self.block_size))
                    assert held == (group, *request.token_ids[: position + 1])

    def longest_hit(self, request: Request) -> int:
        """Try every length, against the marks of all blocks."""
        if self.manager.prefix_cache is None:
            return 0
        known = {hash_and_group(block.block_hash) for block in self.manager.block_pool.blocks}
        hashes = block_hashes(request, self.block_size)
        return max(
            length
            for length in range((request.num_tokens - 1) // self.block_size + 1)
            if all(
                (hashes[place], group) in known
                for group, width in enumerate(self.widths)
                for place in range(0 if width is None else max(0, length - cdiv(width - 1, self.block_size)), length)
            )
        )

    @invariant()
    def every_block_is_held_or_free(self) -> None:
        pool = self.manager.block_pool
        tables = [table for of_request in self.manager.tables.values() for table in of_request]
        held = Counter(block.block_id for table in tables for block in table.blocks)
        del held[0]
        assert {block.block_id: block.ref_cnt for block in pool.blocks if block.ref_cnt} == dict(held)
        free = ids(pool.free_block_queue.get_all_free_blocks())
        assert sorted([*free, *held]) == list(range(1, pool.num_blocks))
        assert self.manager.tables.keys() == self.requests.keys()

    @invariant()
    def no_group_holds_more_than_its_spec_says(self) -> None:
        for tables in self.manager.tables.values():
            for spec, table in zip(self.specs, tables, strict=True):
                limits = RequestLimits(table.num_tokens, self.budget)
                assert sum(block.block_id > 0 for block in table.blocks) <= spec.max_blocks_per_request(limits)

    @invariant()
    def entries_are_null_at_the_beginning_only(self) -> None:
        for tables in self.manager.tables.values():
            for width, table in zip(self.widths, tables, strict=True):
                num_null = table.block_ids.count(0)
                assert 0 not in table.block_ids[num_null:] and num_null == table.num_skipped_blocks
                assert width is not None or num_null == 0


TestGroups = Groups.TestCase
TestGroups.settings = settings(deadline=None, max_examples=drawn(150), stateful_step_count=40)
TestGroups.__doc__ = """Catches a leak, a double free, a shared block written to, a hit that is not the longest, a slot
that is read and holds something else, and a window that keeps more than it may."""


def test_long_request_holds_no_more_than_its_window() -> None:
    """Catches a window that grows with the request when the scheduler serves it."""
    specs = full(4), window(4, 10)
    manager = GroupedKVCacheManager(grouped(*specs), num_blocks=80, max_num_batched_tokens=6)
    scheduler = Scheduler(manager, max_num_batched_tokens=6)
    scheduler.add_request(Request("Ada", range(200), max_tokens=30))
    most = [0, 0]
    while scheduler.has_unfinished:
        output = scheduler.schedule()
        held = [sum(block_id > 0 for block_id in table) for table in manager.block_ids("Ada")]
        most = list(map(max, most, held))
        scheduler.update(output)
        [ada] = output.requests
        if ada.num_computed_tokens == ada.num_tokens:
            ada.append_token(0)
            if ada.num_output_tokens == ada.max_tokens:
                scheduler.finish(ada, RequestStatus.FINISHED_LENGTH_CAPPED)
    assert most == [58, 5] and most[1] <= specs[1].max_blocks_per_request(RequestLimits(230, 6)) == 5
    assert manager.block_pool.num_used_blocks == 0


def test_admission_counts_what_a_window_holds_at_once() -> None:
    """Catches a request refused for blocks that it would have given back by then, and one let in that can never run."""
    specs = full(4), window(4, 8)
    capped = GroupedKVCacheManager(grouped(*specs), num_blocks=26, max_num_batched_tokens=4)
    uncapped = GroupedKVCacheManager(grouped(*specs), num_blocks=26)
    request = Request("Ada", range(80))
    assert (capped.num_blocks_to_admit(request, 4), uncapped.num_blocks_to_admit(request, 80)) == (24, 40)
    capped.check_fits(request)
    with pytest.raises(ValueError, match="needs 40 blocks of 4 tokens in 2 groups for 80 tokens and up to 1 more"):
        uncapped.check_fits(request)


def test_watermark_counts_the_first_chunk_after_a_long_hit() -> None:
    """Catches an admission that forgets the blocks of the next step because a long hit covers the whole window."""
    manager = GroupedKVCacheManager(grouped(window(4, 8)), num_blocks=20, max_num_batched_tokens=4)
    ada, text = Request("Ada", range(41)), range(41)
    for start in range(0, 41, 4):
        assert manager.allocate_slots(ada, min(4, 41 - start)) is not None
        ada.num_computed_tokens = min(41, start + 4)
    bo = Request("Bo", [*text, *range(8)])
    hits, num_hit_tokens = manager.get_computed_blocks(bo)
    assert num_hit_tokens == 40 and ids(hits[0])[:8] == [0] * 8
    assert manager.num_blocks_to_admit(bo, 4, hits) == 1  # ten blocks are found, and a window of four would do


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": []}, "there is no group"),
        ({"groups": grouped(full(4), window(8, 8))}, "blocks of 4 and 8 tokens"),
        (
            {"groups": grouped(ChunkedLocalAttentionSpec(4, 1, 8, "float32", attention_chunk_size=8))},
            "group 0 keeps chunked attention layers",
        ),
        ({"prefix_cache_retention_interval": 6}, "interval is 6: give a multiple of the block size, 4"),
        ({"groups": grouped(full(4)), "prefix_cache_retention_interval": 8}, "no layer has a window"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ({"enable_prefix_caching": False, "enable_kv_cache_events": True}, "use a HashIndex"),
        (
            {"enable_prefix_caching": False, "prefix_cache_retention_interval": 4},
            "interval is 4, and enable_prefix_caching is False: nothing is remembered",
        ),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    """Catches a setting that is taken and then does nothing, or fails later."""
    with pytest.raises(ValueError, match=message):
        GroupedKVCacheManager(**{"groups": grouped(full(4), window(4, 8)), "num_blocks": 9} | change)


def test_what_groups_cannot_do_is_refused_in_a_sentence() -> None:
    """Catches a fork, a swap, or a step larger than admission counts on that is tried all the same."""
    manager = GroupedKVCacheManager(grouped(full(4), window(4, 8)), num_blocks=9, max_num_batched_tokens=8)
    ada = Request("Ada", range(6))
    assert manager.allocate_slots(ada, 6) is not None
    for refused in (lambda: manager.fork(ada, "Bo"), lambda: manager.swap_out(ada), lambda: manager.swap_in(ada)):
        with pytest.raises(ValueError, match="request 'Ada' cannot be"):
            refused()
    with pytest.raises(ValueError, match="groups of layers have no host blocks: use 'recompute'"):
        Scheduler(manager, max_num_batched_tokens=8, preemption="swap")
    for most in (None, 9):
        with pytest.raises(ValueError, match=f"max_num_batched_tokens is {most}, and the manager admits .* at most 8"):
            Scheduler(manager, max_num_batched_tokens=most)


def test_counts_and_hits_that_are_out_of_date_are_refused() -> None:
    """Catches a read of the null block, or of what another group or request has put into a block meanwhile."""
    manager = GroupedKVCacheManager(grouped(full(2), window(2, 3)), num_blocks=20)
    ada = Request("Ada", range(9))
    assert manager.allocate_slots(ada, 9) is not None
    ada.num_computed_tokens = 9
    ada.append_token(9)
    assert manager.allocate_slots(ada, 1) is not None
    ada.num_computed_tokens = 4
    with pytest.raises(ValueError, match="4 computed tokens, and blocks that the next one reads have been given back"):
        manager.allocate_slots(ada, 1)

    bo = Request("Bo", range(9))
    hits, num_hit_tokens = manager.get_computed_blocks(bo)
    assert num_hit_tokens == 8
    free = ids(manager.block_pool.free_block_queue.get_all_free_blocks())
    null = manager.block_pool.null_block
    for wrong in (hits[:1], hits[::-1], ([null] * 4, hits[1]), (hits[0], [null] * 4), (hits[0][:2], hits[1][:2])):
        with pytest.raises(ValueError, match="no longer holds these blocks for request 'Bo'"):
            manager.allocate_slots(bo, 1, wrong)
    manager.evict_blocks([hits[1][-1].block_id])
    with pytest.raises(ValueError, match="no longer holds"):
        manager.allocate_slots(bo, 1, hits)
    assert ids(manager.block_pool.free_block_queue.get_all_free_blocks()) == free and "Bo" not in manager.tables


@pytest.mark.parametrize("wrong", [-1, 4, 12])
def test_computed_tokens_that_no_slot_was_made_for_are_refused(wrong: int) -> None:
    """Catches blocks that are remembered and were never written, and slots in the null block."""
    manager = GroupedKVCacheManager(grouped(full(2), window(2, 3)), num_blocks=40)
    ada = Request("Ada", range(20))
    assert manager.allocate_slots(ada, 3) is not None
    before = ids(manager.block_pool.free_block_queue.get_all_free_blocks()), manager.block_ids("Ada")
    ada.num_computed_tokens = wrong
    with pytest.raises(ValueError, match=f"'Ada' has num_computed_tokens = {wrong}, and slots for 3 tokens"):
        manager.allocate_slots(ada, 1)
    assert before == (ids(manager.block_pool.free_block_queue.get_all_free_blocks()), manager.block_ids("Ada"))


def test_a_flat_list_of_hits_is_refused() -> None:
    """Catches a TypeError for what one group's manager takes, and a table that is begun all the same."""
    manager = GroupedKVCacheManager(grouped(full(2), window(2, 3)), num_blocks=20)
    assert manager.allocate_slots(Request("Ada", range(9)), 9) is not None
    bo = Request("Bo", range(9))
    hits, _ = manager.get_computed_blocks(bo)
    with pytest.raises(
        ValueError, match="computed_blocks of request 'Bo' is a list of blocks: give a list for each of"
    ):
        manager.allocate_slots(bo, 1, hits[0])
    assert "Bo" not in manager.tables


def test_one_group_is_one() -> None:
    """Catches "in 1 groups"."""
    with pytest.raises(ValueError, match="tokens in 1 group for 20 tokens"):
        GroupedKVCacheManager(grouped(full(4)), num_blocks=4).check_fits(Request("Ada", range(20)))
