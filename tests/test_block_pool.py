"""The pool and the tables against a plain-Python model of both: no leak, no double hand-out, no half-done refusal."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pagedattn_lab import block_pool
from pagedattn_lab.block_pool import BlockPool, FreeBlockQueue, KVCacheBlock, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies
from tests.helpers.draws import drawn

NUM_BLOCKS, BLOCK_SIZE = 12, 4


class Strict:
    """An observer that keeps the books from events alone, and refuses a bracket that nests, or ends unbegun."""

    def __init__(self) -> None:
        self.open: BlockTable | None = None
        self.inside: list[str] = []
        self.owners: Counter[int] = Counter()
        self.broken: list[str] = []  # an observer must not raise

    def begin(self, table: BlockTable) -> None:
        if self.open is not None:
            self.broken.append("a bracket begins inside another")
        self.open, self.inside = table, []

    def pool_event(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        self.inside.append(kind)
        for block in blocks:
            self.owners[block.block_id] += {"allocate": 1, "touch": 1, "free": -1, "evict": 0}[kind]

    def end(self, kind: str, blocks: Sequence[KVCacheBlock], table: BlockTable, num_tokens: int) -> None:
        steps = [step for step in self.inside if step != "evict"]
        expected = {
            "append": ["allocate"] * bool(blocks),
            "copy-on-write": ["allocate", "free"],
            "fork": ["touch"],
            "hit": ["touch"],
            "free": ["free"],
        }[kind]
        if self.open is not table or steps != expected:
            self.broken.append(f"{kind} of {table} ends what {self.open} began, with {self.inside} inside")
        self.open = None


class PoolAndTables(RuleBasedStateMachine):
    """Random appends, forks, hits, frees and bad calls; the model is a list of free ids and lists of owned ids."""

    tables = Bundle("tables")
    loose = Bundle("loose")  # blocks held directly, not through a table

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.free = list(range(1, NUM_BLOCKS))  # the model: in the order in which they will be handed out
        self.hashes: dict[int, object] = {}
        self.owned: dict[int, tuple[BlockTable, list[int], int]] = {}
        self.held: Counter[int] = Counter()
        self.next_name = 0
        self.strict = Strict()

    @rule()
    def watch_or_not(self) -> None:
        """Go on with an observer, or without: whoever comes late is told how things stand."""
        if self.pool.observers:
            self.pool.observers.clear()
        else:
            self.strict.owners = self.references()
            self.pool.observers.append(self.strict)

    def take(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        for block_id in taken:
            self.hashes.pop(block_id, None)
        return taken

    def references(self) -> Counter[int]:
        counts = Counter(self.held)
        for _, block_ids, _ in self.owned.values():
            counts.update(block_ids)
        return +counts

    def give_back(self, block_ids: list[int]) -> None:
        """Model of ``free_blocks``, called after the references have gone."""
        still = self.references()
        done = [block_id for block_id in block_ids if block_id not in still]
        self.free = [b for b in done if b not in self.hashes] + self.free + [b for b in done if b in self.hashes]

    @rule(target=tables)
    def new_table(self) -> int:
        self.next_name += 1
        self.owned[self.next_name] = (BlockTable(self.pool), [], 0)
        return self.next_name

    @rule(name=tables, count=st.integers(0, 3 * BLOCK_SIZE))
    def append(self, name: int, count: int) -> None:
        """A last block that is not full and that anybody else holds, a table or not, is copied before a write."""
        table, block_ids, num_tokens = self.owned[name]
        partial = count > 0 and num_tokens % BLOCK_SIZE > 0
        source = block_ids[-1] if partial and self.references()[block_ids[-1]] > 1 else None
        needed = -(-(num_tokens + count) // BLOCK_SIZE) - len(block_ids) + (source is not None)
        assert table.num_blocks_needed(count) == needed
        if needed > len(self.free):
            with pytest.raises(NoFreeBlocksError, match=f"cannot allocate {needed} blocks: {len(self.free)} of 11"):
                table.append_tokens(count)
            return
        new = self.take(needed)
        assert [block.block_id for block in table.append_tokens(count)] == new
        if source is not None:
            block_ids = block_ids[:-1]
            assert take_copies([table]) == [(source, new[0])]
        assert take_copies([table]) == []
        self.owned[name] = (table, block_ids + new, num_tokens + count)

    @rule(target=tables, name=tables)
    def fork(self, name: int) -> int:
        table, block_ids, num_tokens = self.owned[name]
        self.next_name += 1
        self.owned[self.next_name] = (table.fork(), list(block_ids), num_tokens)
        return self.next_name

    @rule(name=tables, block_ids=st.lists(st.integers(1, NUM_BLOCKS - 1), max_size=4, unique=True))
    def adopt(self, name: int, block_ids: list[int]) -> None:
        """A hit: blocks that are free, held by others, or both."""
        table, owned_ids, _ = self.owned[name]
        blocks = [self.pool.blocks[block_id] for block_id in block_ids]
        if owned_ids:
            with pytest.raises(ValueError, match="cannot adopt blocks"):
                table.adopt(blocks)
            return
        table.adopt(blocks)
        self.free = [block_id for block_id in self.free if block_id not in block_ids]
        self.owned[name] = (table, block_ids, BLOCK_SIZE * len(block_ids))

    @rule(name=consumes(tables))
    def release(self, name: int) -> None:
        table, block_ids, _ = self.owned.pop(name)
        self.give_back(block_ids[::-1])
        table.release()

    @rule(target=loose, count=st.integers(0, 4))
    def get(self, count: int) -> tuple[int, ...]:
        if count > len(self.free):
            with pytest.raises(NoFreeBlocksError):
                self.pool.get_new_blocks(count)
            return ()
        new = self.take(count)
        assert [block.block_id for block in self.pool.get_new_blocks(count)] == new
        self.held.update(new)
        return tuple(new)

    @rule(target=loose, block_ids=st.lists(st.integers(1, NUM_BLOCKS - 1), max_size=4))
    def touch(self, block_ids: list[int]) -> tuple[int, ...]:
        self.pool.touch(self.pool.blocks[block_id] for block_id in block_ids)
        self.held.update(block_ids)
        self.free = [block_id for block_id in self.free if block_id not in block_ids]
        return tuple(block_ids)

    @rule(block_ids=consumes(loose), reverse=st.booleans())
    def free_loose(self, block_ids: tuple[int, ...], reverse: bool) -> None:
        order = list(block_ids)[::-1] if reverse else list(block_ids)
        before = self.references()
        self.held.subtract(order)
        last_mention = [b for i, b in enumerate(order) if before[b] == order[: i + 1].count(b)]
        self.give_back(last_mention)
        self.pool.free_blocks(self.pool.blocks[block_id] for block_id in order)

    @rule(block_id=st.integers(1, NUM_BLOCKS - 1))
    def hash_block(self, block_id: int) -> None:
        if block_id not in self.free:
            self.pool.blocks[block_id].block_hash = self.hashes[block_id] = ("contents of", block_id)

    @rule(block_ids=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=5))
    def free_too_much(self, block_ids: list[int]) -> None:
        counts = self.references()
        if any(times > counts[block_id] for block_id, times in Counter(block_ids).items()):
            with pytest.raises(ValueError, match=r"double free|null block"):
                self.pool.free_blocks([self.pool.blocks[block_id] for block_id in block_ids])

    @rule(owned_too=st.booleans())
    def free_foreign(self, owned_too: bool) -> None:
        stranger = BlockPool(NUM_BLOCKS, BLOCK_SIZE).get_new_blocks(1)
        mine = [self.pool.blocks[next(iter(self.references()))]] if owned_too and self.references() else []
        with pytest.raises(ValueError, match="another pool"):
            self.pool.free_blocks(mine + stranger)
        with pytest.raises(ValueError, match="another pool"):
            self.pool.touch(mine + stranger)

    @invariant()
    def same_as_model(self) -> None:
        counts = self.references()
        assert self.strict.broken == [] and self.strict.open is None
        if self.pool.observers:
            assert +self.strict.owners == counts
        assert [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()] == self.free
        assert self.pool.num_free_blocks == len(self.free)
        assert self.pool.num_used_blocks == len(counts) == NUM_BLOCKS - 1 - len(self.free)
        for block in self.pool.blocks:
            assert block.ref_cnt == counts[block.block_id]
            assert block.block_hash == self.hashes.get(block.block_id)
        for table, block_ids, num_tokens in self.owned.values():
            assert (table.block_ids, table.num_tokens) == (block_ids, num_tokens)
            slots = [block_ids[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(num_tokens)]
            assert table.slot_mapping() == slots


PoolAndTables.TestCase.settings = settings(max_examples=drawn(150), stateful_step_count=40)
TestPoolAndTables = PoolAndTables.TestCase
TestPoolAndTables.__doc__ = "Catches leaks, double hand-outs, wrong free order, wrong counts, and half-done refusals."


def test_operations_cost_the_same_in_any_pool() -> None:
    """Catches a scan over the pool: the same calls must execute the same number of Python instructions."""

    def instructions(num_blocks: int) -> int:
        pool = BlockPool(num_blocks, BLOCK_SIZE)
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if frame.f_code.co_filename != block_pool.__file__:
                return None  # a finalizer that the garbage collector happened to run
            frame.f_trace_opcodes = True
            count += event == "opcode"
            return trace

        sys.settrace(trace)
        try:
            blocks = pool.get_new_blocks(5)
            pool.touch(blocks[1:3])
            pool.free_blocks(blocks)
            pool.touch(blocks[4:])
        finally:
            sys.settrace(None)
        return count

    assert instructions(10) == instructions(100_000) > 0


def test_running_out_is_no_wrong_value() -> None:
    """Catches a caller's mistake and a full pool under one error: only the latter may be waited out."""
    assert issubclass(NoFreeBlocksError, RuntimeError) and not issubclass(NoFreeBlocksError, ValueError)


def test_queue_remove_refuses_a_block_that_is_not_queued() -> None:
    """Catches a second removal, which would cut the list."""
    blocks = [KVCacheBlock(i) for i in range(3)]
    queue = FreeBlockQueue(blocks)
    queue.remove(blocks[1])
    with pytest.raises(ValueError, match="block 1 is not in the free queue"):
        queue.remove(blocks[1])
    assert [queue.popleft().block_id for _ in range(2)] == [0, 2]
    with pytest.raises(NoFreeBlocksError, match="empty"):
        queue.popleft()


@pytest.mark.parametrize(
    ("num_blocks", "block_size", "message"),
    [
        (1, 4, "num_blocks is 1"),
        (4, 0, "block_size is 0"),
        (4, 2.5, "block_size is 2.5"),
        (True, 2, "num_blocks is True"),
    ],
)
def test_impossible_pools_are_refused(num_blocks: int, block_size: int, message: str) -> None:
    """Catches a pool that could hand nothing out."""
    with pytest.raises(ValueError, match=message):
        BlockPool(num_blocks, block_size)


def test_null_block_is_never_handed_out() -> None:
    """Catches block 0 in circulation: padded table entries point there."""
    pool = BlockPool(4, 2)
    assert [block.block_id for block in pool.get_new_blocks(3)] == [1, 2, 3]
    for call in (pool.touch, pool.free_blocks):
        with pytest.raises(ValueError, match="null block"):
            call([pool.null_block])
    with pytest.raises(ValueError, match="cannot allocate -1"):
        pool.get_new_blocks(-1)
