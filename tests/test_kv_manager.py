"""The manager against lists that know no hashes, token by token, and on examples worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, external_hash
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.prefix_cache import HashIndex, PrefixCacheStats, block_hashes
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request
from tests.helpers.draws import drawn
from tests.helpers.oracle_blocks import Contents, Extra, PlainBlocks, PlainTable

STEMS = ([0] * 60, [0, 1] * 30, [0] * 21 + [1] * 39)
EXTRAS: tuple[Extra, ...] = (None, "a", "b")


class Live:
    """A sequence that holds blocks: ours, the plain one, and what its slots must hold."""

    def __init__(
        self, table: BlockTable, plain: PlainTable, tokens: list[int], extra: Extra, request: Request | None = None
    ) -> None:
        self.table, self.plain, self.tokens, self.extra, self.request = table, plain, tokens, extra, request
        self.written = 0

    @property
    def dirty(self) -> bool:
        return self.table.num_tokens > self.written or self.table.pending_copy is not None

    def contents(self, position: int) -> Contents:
        """What the slot of one token must hold: keys and values depend on all tokens up to it."""
        return Contents(self.extra, tuple(self.tokens[: position + 1]))


class ManagerAndForks(RuleBasedStateMachine):
    """Requests that begin alike come, grow, fork, are refused and go; memory is a dictionary from slots to contents."""

    @initialize(
        block_size=st.sampled_from([1, 2, 3, 4, 16]),
        num_blocks=st.sampled_from([2, 3, 5, 8, 14]),
        kind=st.sampled_from(["hash", "hash", "tree", "none"]),
    )
    def begin(self, block_size: int, num_blocks: int, kind: str) -> None:
        self.block_size = block_size
        index = RadixTree(block_size) if kind == "tree" else None
        self.manager = KVCacheManager(num_blocks, block_size, kind != "none", index)
        self.pool = self.manager.block_pool
        self.plain = PlainBlocks(num_blocks, block_size, tree=kind == "tree", caching=kind != "none")
        self.waiting: list[tuple[Request, Extra]] = []
        self.live: list[Live] = []
        self.memory: dict[int, Contents] = {}  # a slot that is missing holds nothing that may be read
        self.handed_out: list[int] = []
        self.copies: list[tuple[int, int]] = []
        self.born = 0

    # what a model would do

    def execute(self) -> None:
        """Run one step: copy, forget what handed-out blocks held, write what is new; then read everything back."""
        copies = take_copies(live.table for live in self.live)
        block_size = self.block_size
        moved = [
            (destination * block_size + i, self.memory.get(source * block_size + i))
            for source, destination in copies
            for i in range(block_size)
        ]
        for block_id in self.handed_out:
            for slot in range(block_id * block_size, (block_id + 1) * block_size):
                self.memory.pop(slot, None)
        self.memory |= {slot: contents for slot, contents in moved if contents is not None}
        writers: dict[int, Live] = {}
        for live in self.live:
            for position in range(live.written, live.table.num_tokens):
                [slot] = live.table.slot_mapping(position, position + 1)
                assert slot not in writers, "two sequences write one slot"
                writers[slot] = live
                self.memory[slot] = live.contents(position)
            live.written = live.table.num_tokens
            if live.request is not None:
                live.request.num_computed_tokens = live.written
        self.handed_out = []
        for live in self.live:
            read = [self.memory.get(slot) for slot in live.table.slot_mapping()]
            assert read == [live.contents(position) for position in range(live.table.num_tokens)]
        for (extra, tokens), block_id in self.plain.names:
            read = [self.memory.get(block_id * block_size + i) for i in range(block_size)]
            assert read == [Contents(extra, tokens[: len(tokens) - block_size + 1 + i]) for i in range(block_size)]

    def state(self) -> tuple:
        """Everything that a refusal must leave as it is."""
        pool, manager = self.pool, self.manager
        return (
            [(block.ref_cnt, block.block_hash) for block in pool.blocks],
            [block.block_id for block in pool.free_block_queue.get_all_free_blocks()],
            {name: (table.block_ids, table.num_tokens, table.pending_copy) for name, table in manager.tables.items()},
            [(live.table.block_ids, live.table.num_tokens, live.table.pending_copy) for live in self.live],
            repr(manager.stats),
            manager.prefix_cache and len(manager.prefix_cache),
        )

    def pick(self, which: int, of: Sequence[Live] | None = None) -> Live:
        of = self.live if of is None else of
        return of[which % len(of)]

    @property
    def requests(self) -> list[Live]:
        return [live for live in self.live if live.request is not None]

    # what happens

    @rule(
        stem=st.integers(0, len(STEMS) - 1),
        cut=st.integers(0, 40),
        tail=st.lists(st.integers(0, 1), max_size=5),
        extra=st.sampled_from(EXTRAS),
    )
    def arrive(self, stem: int, cut: int, tail: list[int], extra: Extra) -> None:
        self.born += 1
        tokens = STEMS[stem][: cut % (3 * self.block_size + 2)] + tail or [1]
        request = Request(f"request {self.born}", tokens, cache_salt=extra)
        self.waiting.append((request, extra))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0), chunk=st.integers(0, 20), counted=st.booleans())
    def admit(self, which: int, chunk: int, counted: bool) -> None:
        """Look up, then allocate for all tokens that are left, or for some; the hits may be counted before or not."""
        request, extra = self.waiting[which % len(self.waiting)]
        tokens = list(request.token_ids)
        before = self.state()
        blocks, num_hit_tokens = self.manager.get_computed_blocks(request)
        assert self.state() == before, "looking changes nothing"
        found = self.plain.find(extra, tokens) if self.plain.caching else []
        assert [block.block_id for block in blocks] == found and num_hit_tokens == len(found) * self.block_size
        left = len(tokens) - num_hit_tokens
        num_new = min(chunk, left) or left
        request.num_computed_tokens = num_hit_tokens if counted else 0
        new_blocks = self.manager.allocate_slots(request, num_new, computed_blocks=blocks)
        plain = self.plain.begin(extra, tokens, found, num_new)
        if plain is None:
            assert new_blocks is None and self.state() == before
            request.num_computed_tokens = 0
            return
        assert [block.block_id for block in new_blocks] == self.plain.extend(plain, extra, tokens, num_new)
        self.handed_out += [block.block_id for block in new_blocks]
        self.waiting.remove((request, extra))
        live = Live(self.manager.tables[request.request_id], plain, tokens, extra, request)
        live.written = num_hit_tokens
        self.live.append(live)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0), token=st.integers(0, 1), chunk=st.integers(0, 20))
    def advance(self, which: int, token: int, chunk: int) -> None:
        """The next chunk of a prompt, or one more token of output; whoever cannot have it goes, and may come back."""
        live = self.pick(which, self.requests)
        if live.dirty:
            self.execute()
        request = live.request
        if live.written == len(live.tokens):
            live.tokens.append(token)
            request.append_token(token)
        left = len(live.tokens) - live.written
        num_new = min(chunk, left) or left
        before = self.state()
        new_blocks = self.manager.allocate_slots(request, num_new)
        taken = self.plain.extend(live.plain, live.extra, live.tokens, num_new)
        if taken is None:
            assert new_blocks is None and self.state() == before
            self.leave(live)
            return
        assert [block.block_id for block in new_blocks] == taken
        self.handed_out += taken
        self.private(live)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0))
    def fork(self, which: int) -> None:
        live = self.pick(which)
        if live.table.pending_copy is not None:
            before = self.state()
            with pytest.raises(ValueError, match="still to be copied"):
                live.table.fork()
            assert self.state() == before
            return
        tokens = live.tokens[: live.table.num_tokens]
        child = Live(live.table.fork(), self.plain.fork(live.plain), tokens, live.extra)
        child.written = child.table.num_tokens  # by the parent, if not yet
        self.live.append(child)

    @precondition(lambda self: any(not live.dirty for live in self.requests))
    @rule(which=st.integers(0))
    def fork_request(self, which: int) -> None:
        """A request goes on twice, as beams do: by the manager, which then caches what either fills."""
        live = self.pick(which, [live for live in self.requests if not live.dirty])
        self.born += 1
        request = self.manager.fork(live.request, f"request {self.born}")
        plain = self.plain.fork(live.plain)
        plain.num_cached = live.plain.num_cached
        child = Live(self.manager.tables[request.request_id], plain, list(live.tokens), live.extra, request)
        child.written = live.written
        self.live.append(child)

    @precondition(lambda self: len(self.live) > len(self.requests))
    @rule(which=st.integers(0), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def write(self, which: int, tokens: list[int]) -> None:
        """A fork goes its own way, once there is something to copy: a step copies before it writes."""
        live = self.pick(which, [live for live in self.live if live.request is None])
        if live.table.must_copy and any(other.dirty for other in self.live):
            self.execute()
        before = self.state()
        assert live.table.num_blocks_needed(len(tokens)) == self.needed(live.plain, len(tokens))
        taken = self.plain.grow(live.plain, len(tokens))
        if taken is None:
            with pytest.raises(NoFreeBlocksError):
                live.table.append_tokens(len(tokens))
            assert self.state() == before
            return
        assert [block.block_id for block in live.table.append_tokens(len(tokens))] == taken
        live.tokens += tokens
        self.handed_out += taken
        self.private(live)

    def needed(self, plain: PlainTable, num_tokens: int) -> int:
        """Count blocks by trying, in a copy of the lists that has enough of them."""
        trial = PlainBlocks(self.plain.num_blocks + 20, self.block_size)
        trial.tables = [PlainTable() for _ in self.plain.tables]
        for copy, table in zip(trial.tables, self.plain.tables, strict=True):
            copy.ids, copy.num_tokens = list(table.ids), table.num_tokens
        return len(trial.grow(trial.tables[self.plain.tables.index(plain)], num_tokens))

    def private(self, live: Live) -> None:
        """After a table grew, nobody else names a block that it is about to write to, or will."""
        for block in live.table.blocks[live.written // self.block_size :]:
            assert block.ref_cnt == 1
        assert not live.table.must_copy

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        live = self.pick(which)
        if any(other.dirty for other in self.live):
            self.execute()
        self.leave(live)

    def leave(self, live: Live) -> None:
        self.live.remove(live)
        if live.request is None:
            live.table.release()
            self.plain.release(live.plain)
            return
        self.manager.free(live.request)
        assert self.manager.block_ids(live.request.request_id) == []
        self.plain.release(live.plain)
        live.request.num_computed_tokens = 0
        self.waiting.append((live.request, live.extra))

    @precondition(lambda self: any(live.dirty for live in self.live))
    @rule(which=st.integers(0))
    def abandon(self, which: int) -> None:
        """Let a sequence go before its step has run, unless somebody waits for what it was to write."""
        live = self.pick(which, [live for live in self.live if live.dirty])
        first = live.written // self.block_size
        if any(block.ref_cnt > 1 for block in live.table.blocks[first:]):
            return
        if live.request is not None:
            self.manager.evict_blocks(live.table.block_ids[first:])
            for block_id in live.plain.ids[first:]:
                self.plain.forget(block_id)
        self.leave(live)

    @rule()
    def step(self) -> None:
        self.execute()

    @rule()
    def free_twice(self) -> None:
        before = self.state()
        for request, _ in self.waiting:
            self.manager.free(request)
        assert self.state() == before

    @rule()
    def reset(self) -> None:
        before = self.state()
        done = self.plain.reset()
        assert self.manager.reset_prefix_cache() is done
        assert done or self.state() == before

    # what must hold

    @invariant()
    def same_as_lists(self) -> None:
        if not hasattr(self, "plain"):
            return
        pool, plain, stats = self.pool, self.plain, self.manager.stats
        counts, marked = plain.counts(), plain.marked()
        free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        assert free == plain.free and len(set(free)) == len(free) == pool.num_free_blocks
        for block in pool.blocks:
            assert block.ref_cnt == counts[block.block_id]
            assert (block.block_hash is not None) == (block.block_id in marked)
            assert (block.block_id in free) == (block.ref_cnt == 0 and block is not pool.null_block)
        for live in self.live:
            assert (live.table.block_ids, live.table.num_tokens) == (live.plain.ids, live.plain.num_tokens)
        assert self.manager.tables == {live.request.request_id: live.table for live in self.requests}
        if plain.caching:
            assert len(self.manager.prefix_cache) == len(marked)
        ours = (stats.requests, stats.queries, stats.hits, stats.evictions)
        assert ours == (plain.requests, plain.queries, plain.hits, plain.evictions)

    def teardown(self) -> None:
        if not hasattr(self, "plain"):
            return
        self.execute()
        for live in list(self.live):
            self.leave(live)
            self.same_as_lists()
        assert sorted(self.plain.free) == list(range(1, self.pool.num_blocks))
        assert not self.manager.tables and not self.manager._num_cached_blocks
        assert self.manager.reset_prefix_cache()
        assert all(block.block_hash is None for block in self.pool.blocks)


TestManagerAndForks = ManagerAndForks.TestCase
TestManagerAndForks.settings = settings(max_examples=drawn(150), stateful_step_count=40)
TestManagerAndForks.__doc__ = "Catches anything that lets a sequence read what it did not write: see the invariants."


# Examples worked out by hand. Those that restate what vLLM's own tests expect (release 0.33.0,
# tests/v1/core/test_prefix_caching.py) say so; ids and orders are those that its rules give for these numbers.


def admit(manager: KVCacheManager, request: Request, num_tokens: int | None = None) -> tuple[list[int], list[int]]:
    """Look up, allocate for all tokens or for so many, and count them as computed: blocks found, blocks taken."""
    found, num_hit_tokens = manager.get_computed_blocks(request)
    num_tokens = request.num_tokens if num_tokens is None else num_tokens
    taken = manager.allocate_slots(request, num_tokens - num_hit_tokens, computed_blocks=found)
    assert taken is not None
    request.num_computed_tokens = num_tokens
    return [block.block_id for block in found], [block.block_id for block in taken]


def more(manager: KVCacheManager, request: Request, *token_ids: int) -> list[int] | None:
    """Append tokens and allocate for them."""
    for token_id in token_ids:
        request.append_token(token_id)
    taken = manager.allocate_slots(request, len(token_ids))
    if taken is None:
        return None
    request.num_computed_tokens = request.num_tokens
    return [block.block_id for block in taken]


def found(manager: KVCacheManager, *token_ids: int) -> list[int]:
    """Blocks that a new request with these tokens would share; it asks for one token more."""
    blocks, num_hit_tokens = manager.get_computed_blocks(Request("somebody", [*token_ids, 9999]))
    assert num_hit_tokens == len(blocks) * manager.block_pool.block_size
    return [block.block_id for block in blocks]


def free_ids(manager: KVCacheManager) -> list[int]:
    return [block.block_id for block in manager.block_pool.free_block_queue.get_all_free_blocks()]


def counts(manager: KVCacheManager) -> list[int]:
    return [block.ref_cnt for block in manager.block_pool.blocks]


def test_prefill_shared_while_in_use_and_after() -> None:
    """Catches a wrong order of reuse: blocks without a hash, never used ones, then cached ones, leaves first."""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada, bo, cy = Request("Ada", [*range(12), 50, 51]), Request("Bo", [*range(12), 60]), Request("Cy", [*range(12), 70])
    assert admit(manager, ada) == ([], [1, 2, 3, 4])
    hashes = block_hashes(ada, 4)
    assert [manager.block_pool.blocks[i].block_hash for i in (1, 2, 3, 4)] == [*hashes, None] and len(hashes) == 3
    assert admit(manager, bo) == ([1, 2, 3], [5])
    assert counts(manager) == [0, 2, 2, 2, 1, 1, 0, 0, 0, 0, 0]
    manager.free(ada)
    assert free_ids(manager) == [4, 6, 7, 8, 9, 10]
    manager.free(bo)
    assert free_ids(manager) == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]
    assert admit(manager, cy) == ([1, 2, 3], [5])
    assert free_ids(manager) == [4, 6, 7, 8, 9, 10]
    manager.free(cy)
    assert admit(manager, Request("Dora", [99] * 40)) == ([], [5, 4, 6, 7, 8, 9, 10, 3, 2, 1])
    assert manager.stats.evictions == 3 and free_ids(manager) == []


def test_decode_registers_a_block_when_it_fills() -> None:
    """Catches a block cached before it is full, or not when decode fills it; and one block too many or too few."""
    manager = KVCacheManager(num_blocks=11, block_size=8)
    ada = Request("Ada", range(19))
    assert admit(manager, ada) == ([], [1, 2, 3])
    third = manager.block_pool.blocks[3]
    assert more(manager, ada, 1, 2, 3, 4) == [] and third.block_hash is None
    assert more(manager, ada, *range(5)) == [4]
    assert third.block_hash == block_hashes(ada, 8)[2]
    assert manager.block_pool.blocks[4].block_hash is None and manager.block_ids("Ada") == [1, 2, 3, 4]


def test_a_hit_saves_blocks_from_eviction() -> None:
    """Catches an eviction order that is not least recently used, last block of a sequence first."""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada, bo = Request("Ada", range(23)), Request("Bo", range(100, 112))
    admit(manager, ada)
    admit(manager, bo)
    manager.free(ada)
    assert free_ids(manager) == [6, 10, 5, 4, 3, 2, 1]
    manager.free(bo)
    assert free_ids(manager) == [6, 10, 5, 4, 3, 2, 1, 9, 8, 7]
    assert admit(manager, Request("Cy", [*range(8), 77])) == ([1, 2], [6])
    assert admit(manager, Request("Dora", [55] * 20)) == ([], [10, 5, 4, 3, 9])
    assert found(manager, *range(23)) == [1, 2] and found(manager, *range(100, 112)) == [7, 8]


def test_a_block_handed_out_again_loses_its_hash() -> None:
    """Catches a stale hash: the block would be found for what it held before. (As vLLM expects.)"""
    manager = KVCacheManager(num_blocks=2, block_size=4)
    ada = Request("Ada", range(4))
    admit(manager, ada)
    manager.free(ada)
    assert found(manager, *range(4)) == [1], "kept until then"
    assert admit(manager, Request("Bo", range(3))) == ([], [1])
    assert manager.block_pool.blocks[1].block_hash is None and found(manager, *range(4)) == []


def test_hits_are_taken_before_new_blocks() -> None:
    """Catches a hit that is evicted to make room for the request that found it. (As vLLM expects.)"""
    manager = KVCacheManager(num_blocks=3, block_size=4)
    for request in (ada := Request("Ada", range(4)), bo := Request("Bo", range(4, 8))):
        admit(manager, request)
    manager.free(ada)
    manager.free(bo)
    assert free_ids(manager) == [1, 2]
    assert admit(manager, Request("Cy", range(8))) == ([1], [2])


def test_without_prefix_caching() -> None:
    """Catches hashes, hits or statistics where there should be none, and blocks that join the tail."""
    manager = KVCacheManager(num_blocks=6, block_size=4, enable_prefix_caching=False)
    ada = Request("Ada", range(10))
    assert admit(manager, ada) == ([], [1, 2, 3])
    manager.free(ada)
    assert free_ids(manager) == [3, 2, 1, 4, 5]
    assert admit(manager, Request("Bo", range(16))) == ([], [3, 2, 1, 4])
    assert manager.allocate_slots(Request("Cy", range(8)), 8) is None
    assert manager.prefix_cache is None and manager.stats == PrefixCacheStats()
    assert all(block.block_hash is None for block in manager.block_pool.blocks)
    assert not manager.reset_prefix_cache()


def test_salts_keep_caches_apart() -> None:
    """Catches a salt that is left out, forgotten behind the first block, or taken for another."""
    manager = KVCacheManager(num_blocks=40, block_size=4)
    admit(manager, Request("Ada", range(14), cache_salt="blue"))
    admit(manager, Request("Bo", range(14), cache_salt="green"))
    admit(manager, Request("Cy", range(14)))
    for salt, expected in (("blue", [1, 2, 3]), ("green", [5, 6, 7]), (None, [9, 10, 11]), ("red", [])):
        request = Request("Dora", [*range(12), 8], cache_salt=salt)
        assert [block.block_id for block in manager.get_computed_blocks(request)[0]] == expected


def test_too_few_blocks_for_a_request_with_hits() -> None:
    """Catches free hits that are not counted as needed, and hits touched by a request that is refused. (vLLM)"""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada, bo = Request("Ada", range(12)), Request("Bo", [*range(12), *range(12)])
    admit(manager, ada)
    assert admit(manager, bo) == ([1, 2, 3], [4, 5, 6])
    manager.free(bo)
    admit(manager, Request("Cy", [7] * 8))
    assert free_ids(manager) == [9, 10, 6, 5, 4]
    dora = Request("Dora", [*range(12)] * 3)
    blocks, num_hit_tokens = manager.get_computed_blocks(dora)
    assert [block.block_id for block in blocks] == [1, 2, 3, 4, 5, 6] and num_hit_tokens == 24
    before = (
        counts(manager),
        free_ids(manager),
        repr(manager.stats),
        [b.block_hash for b in manager.block_pool.blocks],
    )
    assert manager.allocate_slots(dora, 12, blocks) is None, (
        "three hits are free and three new ones needed: six of five"
    )
    assert before == (
        counts(manager), free_ids(manager), repr(manager.stats), [b.block_hash for b in manager.block_pool.blocks]
    )  # fmt: skip
    assert manager.block_ids("Dora") == [] and "Dora" not in manager.tables
    assert manager.allocate_slots(dora, 8, blocks) is not None, "five of five"


def test_reset() -> None:
    """Catches a cache forgotten under a running request, and hashes or statistics that survive. (As vLLM expects.)"""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada, bo = Request("Ada", range(14)), Request("Bo", [*range(12), 60])
    admit(manager, ada)
    admit(manager, bo)
    assert not manager.reset_prefix_cache() and len(manager.prefix_cache) == 3 and manager.stats.hits == 12
    manager.free(ada)
    assert not manager.reset_prefix_cache()
    manager.free(bo)
    order = free_ids(manager)
    assert manager.reset_prefix_cache() and len(manager.prefix_cache) == 0 and manager.stats == PrefixCacheStats()
    assert all(block.block_hash is None for block in manager.block_pool.blocks) and free_ids(manager) == order
    assert admit(manager, Request("Cy", range(14)))[0] == []
    assert manager.stats.evictions == 0


@pytest.mark.parametrize(("leaving", "expected"), [("Cy Ada Bo", [1, 3]), ("Ada Bo Cy", [1, 2])])
def test_duplicates(leaving: str, expected: list[int]) -> None:
    """Catches a table whose entry is exchanged for a duplicate, and one that goes with its twin."""
    manager = KVCacheManager(num_blocks=8, block_size=2)
    requests = {name: Request(name, tokens) for name, tokens in (("Ada", [1, 2, 3, 4]), ("Bo", [1, 2, 3, 4]))}
    requests["Cy"] = Request("Cy", [1, 2, 3, 4, 5])
    assert admit(manager, requests["Ada"]) == ([], [1, 2])
    assert admit(manager, requests["Bo"]) == ([1], [3]), "a fully cached prompt computes its last block again"
    assert manager.block_pool.blocks[2].block_hash == manager.block_pool.blocks[3].block_hash
    assert admit(manager, requests["Cy"]) == ([1, 2], [4]), "the first of two"
    for name in leaving.split():
        manager.free(requests[name])
    assert free_ids(manager) == ([4, 5, 6, 7, 2, 3, 1] if expected == [1, 3] else [4, 5, 6, 7, 3, 2, 1])
    admit(manager, Request("Dora", [9] * 10))
    assert found(manager, 1, 2, 3, 4) == expected
    admit(manager, Request("Eve", [8]))
    assert found(manager, 1, 2, 3, 4) == [1]


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(("num_tokens", "num_hit_tokens"), [(1, 0), (3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_the_last_token_is_always_computed(tree: bool, num_tokens: int, num_hit_tokens: int) -> None:
    """Catches a request without a token to compute, and a prefix shorter than a block that is found."""
    manager = KVCacheManager(num_blocks=20, block_size=4, index=RadixTree(4) if tree else None)
    admit(manager, Request("Ada", range(12)))
    request = Request("Bo", range(num_tokens))
    assert manager.get_computed_blocks(request)[1] == num_hit_tokens
    assert len(admit(manager, request)[1]) == -(-(num_tokens - num_hit_tokens) // 4)


def test_preempted_and_back() -> None:
    """Catches a request that comes back and does not find what is left of its own blocks."""
    manager = KVCacheManager(num_blocks=6, block_size=4)
    ada, bo = Request("Ada", range(10)), Request("Bo", range(50, 58))
    admit(manager, ada)
    admit(manager, bo)
    assert more(manager, ada, 7, 7) == [] and more(manager, ada, 7) is None
    manager.free(bo)
    bo.num_computed_tokens = 0
    assert free_ids(manager) == [5, 4]
    assert [block.block_id for block in manager.allocate_slots(ada, 1)] == [5]
    blocks, num_hit_tokens = manager.get_computed_blocks(bo)
    assert [block.block_id for block in blocks] == [4] and num_hit_tokens == 4
    assert manager.allocate_slots(bo, 4, blocks) is None, "one hit and one new block, of one"
    manager.free(ada)
    assert free_ids(manager) == [5, 4, 3, 2, 1]
    assert admit(manager, bo) == ([4], [5])


def test_chunks_register_what_they_fill() -> None:
    """Catches a chunked prompt whose later chunks are not cached, or whose tokens to come are."""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada = Request("Ada", range(18))
    assert admit(manager, ada, 6) == ([], [1, 2]) and found(manager, *range(18)) == [1]
    assert [block.block_id for block in manager.allocate_slots(ada, 5)] == [3]
    assert found(manager, *range(18)) == [1, 2], "at once: who comes in the same step shares it"
    ada.num_computed_tokens = 11
    assert [block.block_id for block in manager.allocate_slots(ada, 7)] == [4, 5]
    assert found(manager, *range(18)) == [1, 2, 3, 4]


def test_tokens_that_may_be_rejected_are_not_cached() -> None:
    """Catches a block cached for draft tokens, and slots asked for twice once some of them were rejected."""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada = Request("Ada", range(6))
    assert [block.block_id for block in manager.allocate_slots(ada, 6 + 4)] == [1, 2, 3]
    assert found(manager, *range(10)) == [1]
    ada.num_computed_tokens = 6
    assert more(manager, ada, 70, 71) == []
    assert found(manager, *range(6), 70, 71) == [1, 2]
    assert more(manager, ada, *range(6)) == [4], "14 tokens: the two slots of rejected ones are used again"


def test_a_fork_must_not_share_tokens_that_may_be_rejected() -> None:
    """Catches two sequences that write one slot: the request writes over its drafts, the fork has kept them."""
    manager = KVCacheManager(num_blocks=11, block_size=4)
    ada = Request("Ada", range(5))
    manager.allocate_slots(ada, 5 + 2)
    ada.num_computed_tokens = 5
    child = manager.tables["Ada"].fork()
    ada.append_token(70)
    with pytest.raises(ValueError, match=r"'Ada' would write over tokens 5 to 6 of its table, .* shares block 2"):
        manager.allocate_slots(ada, 1)
    child.release()
    assert manager.allocate_slots(ada, 1) == []


def test_room_that_was_made_before_may_be_asked_for_again() -> None:
    """Catches a request that is refused because another shares its full blocks: it writes the same contents there."""
    manager = KVCacheManager(num_blocks=5, block_size=4)
    ada, bo = Request("Ada", range(8)), Request("Bo", range(9))
    admit(manager, ada)
    assert admit(manager, bo) == ([1, 2], [3]), "Bo shares both before they are computed"
    ada.num_computed_tokens = 0  # the step failed, and runs again
    assert manager.allocate_slots(ada, 8) == []


def test_a_fork_outlives_its_request() -> None:
    """Catches a block that a fork kept when its request was freed, and that the cache lost."""
    manager = KVCacheManager(num_blocks=6, block_size=2)
    ada = Request("Ada", [1, 2, 3])
    admit(manager, ada)
    child = manager.tables["Ada"].fork()
    manager.free(ada)
    child.release()
    assert admit(manager, Request("Bo", [1, 2, 3])) == ([1], [2])


def test_a_fork_of_a_request() -> None:
    """Catches a private copy that is not counted before a request is refused, or that is not taken."""
    manager = KVCacheManager(num_blocks=4, block_size=4)
    ada = Request("Ada", range(6))
    admit(manager, ada)
    child = manager.tables["Ada"].fork("child")
    assert more(manager, ada, 7) == [3]
    assert take_copies(manager.tables.values()) == [(2, 3)]
    assert (manager.block_ids("Ada"), child.block_ids) == ([1, 3], [1, 2])
    other = manager.tables["Ada"].fork()
    ada.append_token(8)
    assert manager.allocate_slots(ada, 1) is None
    assert (manager.block_ids("Ada"), manager.tables["Ada"].num_tokens, counts(manager)) == ([1, 3], 7, [0, 3, 1, 2])
    other.release()
    assert manager.allocate_slots(ada, 1) == [] and found(manager, *ada.token_ids) == [1, 3]
    manager.free(ada)
    assert free_ids(manager) == [3] and found(manager, *range(6)) == [1]
    assert not manager.reset_prefix_cache(), "the fork still holds blocks"
    child.release()
    assert free_ids(manager) == [2, 3, 1]


def test_a_tree_forgets_what_hangs_behind() -> None:
    """Catches a block that stays marked although no look-up can reach it: it would wait at the queue's tail."""
    manager = KVCacheManager(num_blocks=7, block_size=2, index=RadixTree(2))
    ada, bo = Request("Ada", [1, 2, 3]), Request("Bo", [1, 2])
    assert admit(manager, ada) == ([], [1, 2])
    assert admit(manager, bo) == ([], [3]), "the last token is computed, so block 3 holds what block 1 does"
    assert more(manager, bo, 5, 6, 7) == [4, 5] and found(manager, 1, 2, 5, 6) == [1, 4]
    manager.free(ada)
    assert free_ids(manager) == [2, 6, 1]
    admit(manager, Request("Cy", [9] * 5))
    assert found(manager, 1, 2, 5, 6) == [] and len(manager.prefix_cache) == 2
    manager.free(bo)
    assert free_ids(manager) == [5, 4, 3], "none of them has a mark"


def test_statistics() -> None:
    """Catches tokens counted twice, and a refused request counted."""
    manager = KVCacheManager(num_blocks=9, block_size=2)
    assert manager.stats.hit_rate == 0
    admit(manager, ada := Request("Ada", [1, 2, 3, 4, 5]))
    manager.free(ada)
    admit(manager, Request("Bo", [7, 7, 7, 7]))
    for name in ("Cy", "Dora"):
        assert admit(manager, Request(name, [1, 2, 3, 4, 5]))[0] == [1, 2]
    stats = manager.stats
    assert (stats.requests, stats.queries, stats.hits, stats.evictions) == (4, 19, 8, 0)
    assert stats.hit_rate == 8 / 19
    assert manager.allocate_slots(Request("Eve", [8] * 99), 99) is None and stats.requests == 4


def test_refusals_change_nothing() -> None:
    """Catches a call that leaves tables and cache at odds: hits that are gone, of another, or of one that runs."""
    manager = KVCacheManager(num_blocks=7, block_size=2)
    ada, bo = Request("Ada", [1, 2, 3, 4, 5]), Request("Bo", [1, 2, 3, 4, 6])
    admit(manager, ada)
    blocks, _ = manager.get_computed_blocks(bo)
    before = (counts(manager), free_ids(manager), repr(manager.stats), list(manager.tables))
    with pytest.raises(ValueError, match="num_new_tokens is 0"):
        manager.allocate_slots(bo, 0, blocks)
    with pytest.raises(ValueError, match="no longer holds these blocks for request 'Bo'"):
        manager.allocate_slots(bo, 1, blocks[::-1])
    with pytest.raises(ValueError, match="'Cy': call get_computed_blocks"):
        manager.allocate_slots(Request("Cy", [9, 9, 9]), 1, blocks[:1])
    with pytest.raises(ValueError, match="'Ada' holds blocks already"):
        manager.allocate_slots(ada, 1, blocks)
    bo.num_computed_tokens = 3
    with pytest.raises(ValueError, match="'Bo' holds no blocks, yet num_computed_tokens is 3"):
        manager.allocate_slots(bo, 1, blocks)
    bo.num_computed_tokens = 0
    assert before == (counts(manager), free_ids(manager), repr(manager.stats), list(manager.tables))
    manager.free(ada)
    admit(manager, Request("Dora", range(20, 31)))
    with pytest.raises(ValueError, match="no longer holds"):
        manager.allocate_slots(bo, 1, blocks)
    manager.free(Request("nobody", [1]))
    assert manager.block_ids("nobody") == []


def test_an_index_must_fit() -> None:
    """Catches blocks found for half of what they hold, and those of another pool."""
    with pytest.raises(ValueError, match="enable_prefix_caching is False"):
        KVCacheManager(8, 4, enable_prefix_caching=False, index=HashIndex(4))
    with pytest.raises(ValueError, match="blocks of 2 tokens, not of 4"):
        KVCacheManager(8, 4, index=HashIndex(2))
    admit(manager := KVCacheManager(8, 4), Request("Ada", range(8)))
    with pytest.raises(ValueError, match="knows 2 blocks of another pool"):
        KVCacheManager(8, 4, index=manager.prefix_cache)


def test_a_weak_hash_lends_what_others_wrote() -> None:
    """Catches an index that compares more than hashes, which would hide what chapter 06 shows: collisions leak."""
    manager = KVCacheManager(8, 2, index=HashIndex(2, lambda data: bytes([sum(data) % 7])))
    admit(manager, Request("Ada", [1, 2, 3]))
    assert found(manager, 2, 1) == [1] and found(manager, 2, 2) == []


def test_forks_of_requests() -> None:
    """Catches a fork that registers its parent's blocks once more, writes to them, or keeps them when it goes."""
    manager = KVCacheManager(num_blocks=9, block_size=2)
    ada = Request("Ada", [1, 2, 3])
    admit(manager, ada)
    bo = manager.fork(ada, "Bo")
    assert counts(manager)[1:3] == [2, 2] and bo.num_computed_tokens == 3
    assert more(manager, ada, 4) == [3] and more(manager, bo, 5, 6) == [4]
    assert take_copies(manager.tables.values()) == [(2, 3)], "who writes last keeps the block"
    assert (manager.block_ids("Ada"), manager.block_ids("Bo")) == ([1, 3], [1, 2, 4])
    assert found(manager, 1, 2, 3, 4) == [1, 3] and found(manager, 1, 2, 3, 5) == [1, 2]
    for request, name, message in (
        (Request("Cy", [1]), "Dora", "'Cy' holds no blocks"),
        (ada, "Bo", "'Bo' holds blocks already"),
    ):
        before = counts(manager), list(manager.tables)
        with pytest.raises(ValueError, match=message):
            manager.fork(request, name)
        assert (counts(manager), list(manager.tables)) == before
    manager.free(ada)
    manager.free(bo)
    assert manager.block_pool.num_used_blocks == 0 and manager.reset_prefix_cache()


def test_one_look_up_at_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a manager that walks through the index again to believe what it has just found."""
    for index in (None, RadixTree(2)):
        manager = KVCacheManager(num_blocks=9, block_size=2, index=index)
        admit(manager, ada := Request("Ada", [1, 2, 3, 4, 5]))
        manager.free(ada)
        cache, looked = manager.prefix_cache, []
        find = cache.find
        monkeypatch.setattr(cache, "find", lambda *arguments: (looked.append(1), find(*arguments))[1])  # noqa: B023
        assert admit(manager, bo := Request("Bo", [1, 2, 3, 4, 6]))[0] == [1, 2]
        assert len(looked) == (1 if index is None else 2), "a tree's marks do not tell the way to them"
        looked.clear()
        assert more(manager, bo, 7) == [] and not looked


def test_events() -> None:
    """Catches events kept though nobody asked, given out twice, for an index without hashes, or for blocks swapped in
    that a router would not hear of.
    """
    quiet = KVCacheManager(num_blocks=5, block_size=2)
    admit(quiet, Request("Ada", [1, 2, 3]))
    assert quiet.take_events() == [] and isinstance(quiet.prefix_cache, HashIndex)
    for arguments in ({"enable_prefix_caching": False}, {"index": RadixTree(2)}):
        with pytest.raises(ValueError, match="events name blocks by hash"):
            KVCacheManager(num_blocks=5, block_size=2, enable_kv_cache_events=True, **arguments)

    manager = KVCacheManager(num_blocks=5, block_size=2, num_host_blocks=5, enable_kv_cache_events=True)
    admit(manager, ada := Request("Ada", [1, 2, 3, 4, 5], cache_salt="blue"))
    first, second = map(external_hash, block_hashes(ada, 2))
    stored = BlockStored([first, second], None, [1, 2, 3, 4], 2, "GPU", [("blue",), None])
    assert manager.take_events() == [stored] and manager.take_events() == []
    assert manager.swap_out(ada) is not None and manager.take_events() == [], "they can be found still"
    admit(manager, bo := Request("Bo", [9] * 7))
    assert manager.take_events()[:2] == [BlockRemoved([second]), BlockRemoved([first])]
    manager.evict_blocks(manager.block_ids("Bo"))
    manager.free(bo)
    assert [type(event) for event in manager.take_events()] == [BlockRemoved] * 3
    assert manager.swap_in(ada) is not None and manager.take_events() == [stored]
    assert more(manager, ada, 6, 7) is not None
    assert manager.take_events() == [
        BlockStored([external_hash(block_hashes(ada, 2)[2])], second, [5, 6], 2, "GPU", [None])
    ]
    assert not manager.reset_prefix_cache() and manager.take_events() == []
    manager.free(ada)
    assert manager.reset_prefix_cache() and manager.take_events() == [AllBlocksCleared()]
    admit(manager, cy := Request("Cy", [1]))
    assert manager.swap_out(cy) and manager.swap_in(cy) and manager.take_events() == [], "no full block, no event"


@pytest.mark.parametrize("wrong", [-1, 4, 12])
def test_computed_tokens_that_no_slot_was_made_for_are_refused(wrong: int) -> None:
    """Catches blocks that are remembered and were never written."""
    manager, ada = KVCacheManager(num_blocks=20, block_size=2), Request("Ada", range(20))
    assert manager.allocate_slots(ada, 3) is not None
    before = (counts(manager), free_ids(manager), manager.block_ids("Ada"))
    ada.num_computed_tokens = wrong
    with pytest.raises(ValueError, match=f"'Ada' has num_computed_tokens = {wrong}, and slots for 3 tokens"):
        manager.allocate_slots(ada, 1)
    assert before == (counts(manager), free_ids(manager), manager.block_ids("Ada"))
    ada.num_computed_tokens = 3
    assert manager.allocate_slots(ada, 1) == []
