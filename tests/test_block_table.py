"""Page tables: slots, the tensors of a ragged batch, and refusals that change nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, attention_metadata


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
