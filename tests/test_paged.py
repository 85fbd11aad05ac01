"""Paged memory behind the allocators' interface: a block when needed, no sooner, and every slot accounted for."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import initialize, invariant, precondition, rule

from pagedattn_lab.baselines.accounting import Account
from pagedattn_lab.baselines.paged import PagedAllocator, Pages
from tests.helpers.draws import drawn
from tests.helpers.ledger import Ledger


class PagedLedger(Ledger):
    """Random requests that come, grow token by token and go; the model writes on every slot what it is."""

    @initialize(data=st.data(), block_size=st.integers(1, 9), num_blocks=st.integers(2, 14))
    def begin(self, data: st.DataObject, block_size: int, num_blocks: int) -> None:
        rest = data.draw(st.integers(0, block_size - 1))
        self.block_size, self.num_blocks = block_size, num_blocks
        self.num_slots = num_blocks * block_size + rest
        self.allocator = PagedAllocator(self.num_slots, block_size)
        self.running: list[list] = []  # pages, tokens in the end, tokens by now, blocks
        self.gone: list[Pages] = []

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    @property
    def free_blocks(self) -> int:
        return self.num_blocks - 1 - sum(blocks for *_, blocks in self.running)

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        usable = (self.num_blocks - 1) * self.block_size
        prompt_len = data.draw(st.integers(1, usable))
        output_len = data.draw(st.integers(1, usable - prompt_len + 1))
        needed, blocks = prompt_len + output_len - 1, self.blocks_for(prompt_len)
        assert self.allocator.size(prompt_len, output_len) == blocks * self.block_size
        room, pages = blocks <= self.free_blocks, self.allocator.allocate(prompt_len, output_len)
        assert (pages is not None) == room
        if pages is not None:
            self.running.append([pages, needed, prompt_len, blocks])

    @rule(prompt_len=st.integers(1, 200), more=st.integers(1, 50))
    def allocate_too_much(self, prompt_len: int, more: int) -> None:
        """A request that would not fit if it were alone, even where its prompt would."""
        usable = (self.num_blocks - 1) * self.block_size
        output_len = max(1, usable - prompt_len + 1 + more)
        if prompt_len + output_len - 1 > usable:
            for call in (self.allocator.size, self.allocator.allocate):
                with pytest.raises(ValueError, match=f"needs .* blocks of {self.block_size}, and there are "):
                    call(prompt_len, output_len)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0), tokens=st.integers(1, 12))
    def generate(self, which: int, tokens: int) -> None:
        """Ask for memory when there is none for the next token, as a server does."""
        run = self.running[which % len(self.running)]
        pages, needed = run[:2]
        for _ in range(min(tokens, needed - run[2])):
            assert pages.capacity == run[3] * self.block_size >= run[2]
            if run[2] == pages.capacity:
                room = self.free_blocks > 0
                assert self.allocator.grow(pages) == room
                if not room:
                    return
                run[3] += 1
            run[2] += 1
        assert run[3] == self.blocks_for(run[2])

    @rule()
    def free_foreign(self) -> None:
        stranger = PagedAllocator(self.num_slots, self.block_size)
        pages = stranger.allocate(1, 1)
        with pytest.raises(ValueError, match="another allocator made it"):
            self.allocator.free(pages)
        assert stranger.pool.num_used_blocks == 1

    def check_empty(self) -> None:
        pool = self.allocator.pool
        assert pool.num_free_blocks == self.num_blocks - 1 and not any(block.ref_cnt for block in pool.blocks)

    @invariant()
    def account_is_that_of_the_slots(self) -> None:
        slots: list[str | None] = [None] * self.num_slots
        for pages, needed, held, blocks in self.running:
            assert len(pages.table.block_ids) == blocks
            for position in range(blocks * self.block_size):
                block, offset = divmod(position, self.block_size)
                slot = pages.table.block_ids[block] * self.block_size + offset
                assert slots[slot] is None and slot >= self.block_size, "two owners, or the null block"
                slots[slot] = "token_states" if position < held else "reservation" if position < needed else "internal"
        for slot in range(self.num_slots):
            if slot < self.block_size or slot >= self.num_blocks * self.block_size:
                assert slots[slot] is None
                slots[slot] = "external"
        counts = Counter(slots)
        expected = Account(
            counts["token_states"], counts["reservation"], counts["internal"], counts["external"], counts[None]
        )
        num_tokens = sum(held for _, _, held, _ in self.running)
        # Whoever waits can use any block: what is free does not depend on the next request.
        assert self.allocator.account(num_tokens) == self.allocator.account(num_tokens, next_size=10**9) == expected
        assert self.allocator.pool.num_free_blocks == self.free_blocks


PagedLedger.TestCase.settings = settings(max_examples=drawn(200), stateful_step_count=30)
TestLedger = PagedLedger.TestCase
TestLedger.__doc__ = (
    "Catches a block too many, too few or too early, a slot counted wrongly, a leak, half-done refusals."
)


@given(block_size=st.integers(1, 40), prompt_len=st.integers(1, 100), output_len=st.integers(1, 100))
def test_a_lone_request_gets_a_block_exactly_when_it_needs_one(
    block_size: int, prompt_len: int, output_len: int
) -> None:
    """Catches the off-by-one at a block's edge, also where nobody asks for the room within a block."""
    needed = prompt_len + output_len - 1
    blocks = -(-needed // block_size)
    allocator = PagedAllocator((blocks + 1) * block_size, block_size)
    pages = allocator.allocate(prompt_len, output_len)
    for num_tokens in range(prompt_len, needed + 1):
        if num_tokens > pages.capacity:
            assert allocator.grow(pages)
        assert allocator.pool.num_used_blocks == -(-num_tokens // block_size)
        assert allocator.account(num_tokens).token_states == num_tokens
    assert allocator.pool.num_free_blocks == 0 and not allocator.grow(pages)
    assert allocator.account(needed).internal == blocks * block_size - needed
    allocator.free(pages)
    assert allocator.account(0) == Account(0, 0, 0, block_size, blocks * block_size)


@pytest.mark.parametrize(
    ("num_slots", "block_size", "message"),
    [
        (64, 0, "block_size is 0: give a whole number of at least 1"),
        (64, -4, "block_size is -4"),
        (64, 2.5, "block_size is 2.5"),
        (64, True, "block_size is True"),
        (0, 4, "num_slots is 0"),
        (-64, 4, "num_slots is -64"),
        (64.0, 4, "num_slots is 64.0"),
        (7, 4, "7 slots make 1 blocks of 4, and the first is the null block: give more memory or smaller blocks"),
        (3, 4, "3 slots make 0 blocks of 4"),
    ],
)
def test_impossible_memories_are_refused(num_slots: int, block_size: int, message: str) -> None:
    """Catches memory that could serve nobody, and an error that blames the wrong number."""
    with pytest.raises(ValueError, match=message):
        PagedAllocator(num_slots, block_size)
