"""Page tables kept from step to step: a step is laid out as from nothing, whatever tables did in between."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab import input_batch
from pagedattn_lab.attention.cascade import MIN_SEQUENCES
from pagedattn_lab.attention.metadata import AttentionMetadata, attention_metadata
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.input_batch import InputBatch
from tests.helpers.draws import drawn

TENSORS = ("block_tables", "seq_lens", "query_start_loc", "slot_mapping", "positions")


def assert_same(got: AttentionMetadata, expected: AttentionMetadata) -> None:
    for name in TENSORS:
        one, other = getattr(got, name), getattr(expected, name)
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert (got.max_seq_len, got.tables) == (expected.max_seq_len, expected.tables)
    assert (got.cascade is None) == (expected.cascade is None)
    if got.cascade is not None and expected.cascade is not None:
        for name in ("block_tables", "seq_lens"):
            assert torch.equal(getattr(got.cascade, name), getattr(expected.cascade, name))
        for one, other in zip(got.cascade.prefixes, expected.cascade.prefixes, strict=True):
            assert all(map(torch.equal, one, other))


@settings(max_examples=drawn(60), deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 5))
def test_a_step_is_laid_out_as_from_nothing(seed: int, num_rows: int, block_size: int) -> None:
    """Catches a row that keeps a block which a copy replaced, blocks of a table that was released and fills up again,
    another table's row, an entry left behind a table's last block, and one of a block that a window has given back.
    """
    source, pool = random.Random(seed), BlockPool(300, block_size)
    batch, tables = InputBatch(num_rows=num_rows), [BlockTable(pool) for _ in range(3)]
    for _ in range(25):
        act = source.choice(["grow", "grow", "grow", "fork", "release", "replace", "adopt", "skip"])
        table = source.choice(tables)
        if act == "fork" and len(tables) < 8 and not table.num_skipped_blocks:
            tables.append(table.fork())
        elif act == "release":
            table.release()
        elif act == "replace":
            table.release()
            tables[tables.index(table)] = BlockTable(pool)
        elif act == "adopt" and not table.blocks:
            other = source.choice(tables)
            table.adopt(other.blocks[: other.num_tokens // block_size])  # null blocks among them
        elif act == "skip" and table.num_tokens:
            table.remove_skipped_blocks(source.randrange(len(table.blocks)))
        step = source.sample(tables, source.randint(1, len(tables)))
        query_lens = [source.randint(1, 2 * block_size + 1) for _ in step]
        for each, query_len in zip(step, query_lens, strict=True):
            each.append_tokens(query_len)
        assert_same(batch.prepare(step, query_lens), attention_metadata(step, query_lens))
        take_copies(step)


def test_a_step_keeps_what_it_was_given() -> None:
    """Catches tensors that a later step writes over."""
    pool, batch = BlockPool(30, 2), InputBatch(num_rows=1)
    table = BlockTable(pool)
    table.append_tokens(3)
    first = batch.prepare([table], [3])
    before = {name: getattr(first, name).clone() for name in TENSORS}
    others = [BlockTable(pool) for _ in range(3)]
    for each in (table, *others):
        each.append_tokens(4)
    batch.prepare([*others, table], [4] * 4)
    batch.prepare(others, [2] * 3)
    assert all(torch.equal(getattr(first, name), before[name]) for name in TENSORS)


def test_rows_of_ended_sequences_are_used_again() -> None:
    """Catches rows that grow with every request ever served."""
    pool, batch = BlockPool(30, 2), InputBatch(num_rows=4)
    for _ in range(50):
        tables = [BlockTable(pool) for _ in range(3)]
        for table in tables:
            table.append_tokens(3)
        batch.prepare(tables)
        for table in tables:
            table.release()
    assert len(batch._rows) == 4


def test_prefixes_are_looked_for_only_where_blocks_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a search in every step, which costs more than the rest of its layout; and a prefix that is missed."""
    calls = []
    plan = input_batch.plan_cascade
    monkeypatch.setattr(input_batch, "plan_cascade", lambda *rows: calls.append(rows) or plan(*rows))
    pool, batch = BlockPool(900, 4), InputBatch()
    tables = [BlockTable(pool) for _ in range(20)]
    for table in tables:
        table.append_tokens(40)
    assert batch.prepare(tables).cascade is None and not calls
    tables[0].append_tokens(300)
    few = [tables[0], *(tables[0].fork() for _ in range(MIN_SEQUENCES - 2))]
    assert batch.prepare(few).cascade is None and not calls
    enough = [*few, *(tables[0].fork() for _ in range(3))]
    for table in enough:
        table.append_tokens(2)
    step = [*tables[1:], *enough]
    assert_same(batch.prepare(step), attention_metadata(step))
    assert batch.prepare(step).cascade is not None and calls
    some = [*tables[1:], *enough[: MIN_SEQUENCES - 1]]
    before = len(calls)
    assert batch.prepare(some).cascade is None and len(calls) == before


def test_a_step_that_cannot_be_is_refused() -> None:
    """Catches what attention_metadata refuses, let through."""
    table = BlockTable(BlockPool(8, 4))
    table.append_tokens(2)
    other = BlockTable(BlockPool(8, 4))
    other.append_tokens(2)
    batch = InputBatch()
    for tables, query_lens, reason in (
        ([], [], "at least one sequence"),
        ([table, other], None, "from two pools"),
        ([table], [1, 1], "1 tables but 2 query lengths"),
        ([table], [3], "a sequence of 2 tokens cannot compute its last 3"),
        ([table], [0], "cannot compute its last 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            batch.prepare(tables, query_lens)


@settings(max_examples=drawn(40), deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 3), st.integers(1, 4))
def test_groups_are_laid_out_as_each_by_itself(seed: int, block_size: int, num_groups: int, num_rows: int) -> None:
    """Catches the page table or the slots of another group, and a row that one group takes from another in a step."""
    source, pool = random.Random(seed), BlockPool(400, block_size)
    batch = InputBatch(num_rows=num_rows)
    sequences = [[BlockTable(pool) for _ in range(num_groups)] for _ in range(4)]
    for _ in range(12):
        step = source.sample(sequences, source.randint(1, len(sequences)))
        query_lens = [source.randint(1, 2 * block_size + 1) for _ in step]
        for tables, query_len in zip(step, query_lens, strict=True):
            for number, table in enumerate(tables):
                table.remove_skipped_blocks(number * len(table.blocks) // num_groups)
                table.append_tokens(query_len)
        groups = [[tables[number] for tables in step] for number in range(num_groups)]
        got = batch.prepare_groups(groups, query_lens)
        assert len(got) == num_groups
        for one, tables in zip(got, groups, strict=True):
            assert_same(one, attention_metadata(tables, query_lens))
            assert one.positions is got[0].positions and one.seq_lens is got[0].seq_lens


def test_groups_that_do_not_go_together_are_refused() -> None:
    """Catches sequences that are longer in one group than in another, and groups on two pools or of other sequences."""
    pool, batch = BlockPool(20, 4), InputBatch()
    one, other, longer, elsewhere = BlockTable(pool), BlockTable(pool), BlockTable(pool), BlockTable(BlockPool(20, 4))
    for table, num_tokens in ((one, 3), (other, 3), (longer, 4), (elsewhere, 3)):
        table.append_tokens(num_tokens)
    for groups, reason in (
        ([[one], [longer]], "3 tokens in group 0 and 4 in group 1"),
        ([[one], [elsewhere]], "two pools"),
        ([[one], [other, other]], "2 tables but 1 query lengths"),
    ):
        with pytest.raises(ValueError, match=reason):
            batch.prepare_groups(groups, [2])
