"""Page tables: slots, the tensors of a ragged batch, and refusals that change nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies


def table_of(pool: BlockPool, num_tokens: int) -> BlockTable:
    table = BlockTable(pool)
    table.append_tokens(num_tokens)
    return table


@given(st.integers(1, 9), st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_any_range_of_slots(block_size: int, appends: list[int], data: st.DataObject) -> None:
    """Catches a block boundary handled wrongly, however the tokens arrived."""
    pool = BlockPool(200, block_size)
    pool.get_new_blocks(3)
    table, other = BlockTable(pool), BlockTable(pool)
    for count in appends:  # the other table takes blocks in between, so ours do not lie side by side
        table.append_tokens(count)
        other.append_tokens(1)
    total = sum(appends)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    slots = table.slot_mapping(start, stop)
    assert [(table.block_ids[i // block_size], i % block_size) for i in range(start, stop)] == [
        divmod(slot, block_size) for slot in slots
    ]
    assert not set(table.slot_mapping()) & set(other.slot_mapping())
    assert table.num_empty_slots == len(table.block_ids) * block_size - total
    assert 0 <= table.num_empty_slots < block_size


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6), (6, 6)])
def test_range_outside_the_sequence(start: int, stop: int) -> None:
    """Catches a slot made up for a token that does not exist."""
    table = table_of(BlockPool(8, 4), 5)
    with pytest.raises(IndexError, match=f"tokens {start} to {stop}"):
        table.slot_mapping(start, stop)


def test_append_is_all_or_nothing() -> None:
    """Catches blocks kept, or tokens counted, by an append that failed."""
    pool = BlockPool(4, 4)
    table = table_of(pool, 5)
    with pytest.raises(NoFreeBlocksError):
        table.append_tokens(20)
    assert (table.num_tokens, table.block_ids, pool.num_free_blocks) == (5, [1, 2], 1)
    with pytest.raises(ValueError, match="cannot append -1"):
        table.append_tokens(-1)


def test_release_twice_is_harmless() -> None:
    """Catches a second release freeing blocks that another table owns by now."""
    pool = BlockPool(4, 4)
    table = table_of(pool, 9)
    table.release()
    heir = table_of(pool, 12)
    table.release()
    assert heir.num_tokens == 12 and pool.num_free_blocks == 0


def test_only_a_shared_and_partly_filled_block_is_copied() -> None:
    """Catches a copy of a full block, of one that nobody shares any more, or of one that is not written to."""
    pool = BlockPool(12, 4)
    parent = table_of(pool, 6)
    child, full = parent.fork(), table_of(pool, 4)
    twin = full.fork()
    assert not child.append_tokens(0) and child.pending_copy is None
    assert [block.block_id for block in twin.append_tokens(1)] == [4] and twin.pending_copy is None
    assert parent.must_copy and child.must_copy and not full.must_copy and not BlockTable(pool).must_copy
    assert [child.num_blocks_needed(n) for n in (0, 1, 2, 3, 6, 7)] == [0, 1, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="cannot append -1"):
        child.num_blocks_needed(-1)
    assert [block.block_id for block in child.append_tokens(7)] == [5, 6, 7]
    assert (parent.block_ids, child.block_ids, child.num_tokens) == ([1, 2], [1, 5, 6, 7], 13)
    assert not parent.must_copy and parent.append_tokens(2) == [] and parent.pending_copy is None
    assert not set(parent.slot_mapping(4)) & set(child.slot_mapping(4))
    assert take_copies([full, child, parent, twin]) == [(2, 5)] and take_copies([child]) == []


def test_the_last_of_many_owners_copies_nothing() -> None:
    """Catches a block copied for nobody: of n tables that share it, n - 1 must copy and the last keeps it."""
    pool = BlockPool(20, 4)
    tables = [table_of(pool, 7)]
    tables += [tables[0].fork() for _ in range(3)]
    for table in tables:
        table.append_tokens(1)
    assert take_copies(tables) == [(2, 3), (2, 4), (2, 5)]
    assert [table.block_ids for table in tables] == [[1, 3], [1, 4], [1, 5], [1, 2]]
    tables[1].release()
    assert [block.ref_cnt for block in pool.blocks[:6]] == [0, 3, 1, 1, 0, 1]
    assert tables[0].slot_mapping() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_a_copy_needs_a_free_block() -> None:
    """Catches an append that lets go of a shared block, or counts tokens, before it is sure of its copy."""
    pool = BlockPool(4, 4)
    parent = table_of(pool, 6)
    child = parent.fork()
    for num_tokens, needed in ((7, 3), (99, 26)):
        with pytest.raises(NoFreeBlocksError, match=f"cannot allocate {needed} blocks: 1 of 3 are free"):
            child.append_tokens(num_tokens)
        assert (child.block_ids, child.num_tokens, child.pending_copy) == ([1, 2], 6, None)
        assert [block.ref_cnt for block in pool.blocks] == [0, 2, 2, 0]


def test_no_fork_before_the_copy() -> None:
    """Catches a fork of a block that does not hold its tokens yet, and a copy that outlives its table."""
    pool = BlockPool(8, 4)
    parent = table_of(pool, 6)
    child = parent.fork()
    child.append_tokens(1)
    with pytest.raises(ValueError, match="block 3 is still to be copied from block 2"):
        child.fork()
    assert [block.ref_cnt for block in pool.blocks[:4]] == [0, 2, 1, 1]
    child.release()
    assert take_copies([child]) == [] and child.fork("heir").name == "heir"
    assert pool.num_used_blocks == 2


def test_adopted_blocks() -> None:
    """Catches a hit that takes over the caller's list, is added to tokens, or leaves its blocks in the free queue."""
    pool = BlockPool(8, 4)
    first = table_of(pool, 8)
    blocks = list(first.blocks)
    first.release()
    table = BlockTable(pool, "Ada")
    table.adopt(blocks)
    assert (table.num_tokens, table.block_ids, pool.num_free_blocks) == (8, [1, 2], 5)
    assert [block.block_id for block in table.append_tokens(1)] == [3] and len(blocks) == 2
    with pytest.raises(ValueError, match="a table of 9 tokens cannot adopt blocks"):
        table.adopt(blocks)
    with pytest.raises(ValueError, match="another pool"):
        BlockTable(pool).adopt([*blocks, *BlockPool(4, 4).get_new_blocks(1)])
    assert [block.ref_cnt for block in pool.blocks[:4]] == [0, 1, 1, 1]


def test_metadata_of_a_ragged_step() -> None:
    """Catches wrong padding, lengths, starts, slots or positions when prompts and decodes share a step."""
    pool = BlockPool(32, 4)
    tables = [table_of(pool, 9), table_of(pool, 1), table_of(pool, 6)]
    step = attention_metadata(tables, query_lens=[3, 1, 6])
    assert step.block_tables.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert step.seq_lens.tolist() == [9, 1, 6]
    assert step.query_start_loc.tolist() == [0, 3, 4, 10]
    assert step.positions.tolist() == [6, 7, 8, 0, 0, 1, 2, 3, 4, 5]
    assert step.slot_mapping.tolist() == [10, 11, 12, 16, 20, 21, 22, 23, 24, 25]
    assert (step.max_seq_len, step.is_decode) == (9, False)
    assert step.block_tables.dtype == step.seq_lens.dtype == step.query_start_loc.dtype == torch.int32
    assert step.slot_mapping.dtype == step.positions.dtype == torch.int64
    assert attention_metadata(tables).is_decode


@pytest.mark.parametrize(
    ("lengths", "query_lens", "message"),
    [([], None, "at least one"), ([3], [1, 1], "1 tables but 2"), ([3], [4], "its last 4"), ([3], [0], "its last 0")],
)
def test_impossible_steps_are_refused(lengths: list[int], query_lens: list[int] | None, message: str) -> None:
    """Catches a step whose tensors would contradict each other."""
    pool = BlockPool(8, 4)
    with pytest.raises(ValueError, match=message):
        attention_metadata([table_of(pool, length) for length in lengths], query_lens)
