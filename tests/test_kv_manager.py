"""The manager against lists that know no hashes, token by token, and on examples worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from oracle_blocks import Contents, Extra, PlainBlocks, PlainTable

from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.decoding import generate_cached
from pagedattn_lab.kv_manager import KVCacheManager, PrefixCacheStats
from pagedattn_lab.prefix_cache import HashIndex, Image, PrefixIndex, Request
from pagedattn_lab.radix_tree import RadixTree

STEMS = ([0] * 60, [0, 1] * 30, [0] * 21 + [1] * 39)
EXTRAS: tuple[Extra, ...] = ((None, None), ("a", None), (None, "a"))


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
        request = Request(f"request {self.born}", tokens, cache_salt=extra[0], lora_name=extra[1])
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
        self.plain.end(live.plain)
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
        ours = (stats.requests, stats.queries, stats.hits, stats.evictions, stats.reuse_distances)
        assert ours == (plain.requests, plain.queries, plain.hits, plain.evictions, plain.distances)

    def teardown(self) -> None:
        if not hasattr(self, "plain"):
            return
        self.execute()
        for live in list(self.live):
            self.leave(live)
            self.same_as_lists()
        assert sorted(self.plain.free) == list(range(1, self.pool.num_blocks)) and not self.manager.tables
        assert self.manager.reset_prefix_cache()
        assert all(block.block_hash is None for block in self.pool.blocks)


TestManagerAndForks = ManagerAndForks.TestCase
TestManagerAndForks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestManagerAndForks.__doc__ = "Catches anything that lets a sequence read what it did not write: see the invariants."
