"""What sharing saves: page tables that grow as a search did, against a count without any table."""

from __future__ import annotations

import math
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, reorder, take_copies
from pagedattn_lab.studies.block_savings import Sharing, replay
from pagedattn_lab.studies.paper import FIG_15
from tests.helpers.genealogy import count


@st.composite
def genealogies(draw: st.DrawFn) -> list[list[int]]:
    """A search whose width changes; it may die out."""
    width, steps = 1, []
    for _ in range(draw(st.integers(0, 12))):
        if not width:
            break
        steps.append(draw(st.lists(st.integers(0, width - 1), max_size=5)))
        width = len(steps[-1])
    return steps


@given(st.integers(1, 12), genealogies(), st.integers(1, 5))
def test_replay_equals_a_count_without_tables(prompt_len: int, genealogy: list[list[int]], block_size: int) -> None:
    """Catches a block shared by strangers, one that is not shared by siblings, a copy too many or too few, and a pool
    that is too small for the search.
    """
    assert replay(prompt_len, genealogy, block_size) == count(prompt_len, genealogy, block_size)


@given(st.integers(1, 12), genealogies(), st.integers(1, 5))
def test_reorder_keeps_the_books(prompt_len: int, genealogy: list[list[int]], block_size: int) -> None:
    """Catches a table that nobody continues but that keeps its blocks, one that is released although somebody continues
    it, and a child that is not its parent's equal.
    """
    pool = BlockPool(100, block_size)
    tables = [BlockTable(pool)]
    tables[0].append_tokens(prompt_len)
    for parents in genealogy:
        parent_ids = [table.block_ids for table in tables]
        free = pool.num_free_blocks
        old, tables = tables, reorder(tables, parents)
        assert [table.block_ids for table in tables] == [parent_ids[parent] for parent in parents]
        assert len({*map(id, tables)}) == len(tables)
        assert pool.num_free_blocks >= free, "a fork took a block"
        for index, table in enumerate(old):
            assert (table in tables) == (index in parents)
            assert table.blocks or index not in parents
        named = Counter(block.block_id for table in tables for block in table.blocks)
        assert named == Counter({block.block_id: block.ref_cnt for block in pool.blocks if block.ref_cnt})
        for table in tables:
            table.append_tokens(1)
        sources = [source for source, _ in take_copies(tables)]
        assert [*map(pool.blocks.__getitem__, sources)].count(pool.null_block) == 0
        writable = [table.blocks[-1] for table in tables]
        assert {block.ref_cnt for block in writable} <= {1}, "two sequences would write into one block"
    for table in tables:
        table.release()
    assert pool.num_used_blocks == 0


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 6), st.sampled_from([1, 4, 16]))
def test_parallel_sampling_in_closed_form(prompt_len: int, output_len: int, n: int, block_size: int) -> None:
    """Catches a saving measured against the wrong whole.

    Only full blocks of the prompt stay shared, all of them by all: of ``n`` table entries each, ``n - 1`` are saved.
    """
    sharing = replay(prompt_len, [[0] * n] + [[*range(n)]] * (output_len - 1), block_size)
    full = prompt_len // block_size
    entries = sum(n * math.ceil((prompt_len + step) / block_size) for step in range(1, output_len + 1))
    assert (sharing.table_entries, sharing.blocks) == (entries, entries - output_len * full * (n - 1))
    assert sharing.saving == pytest.approx(output_len * full * (n - 1) / entries)
    assert sharing.most_saved == full * (n - 1) and sharing.most_shared == full * (n > 1)
    assert sharing.copied == (n - 1) * (prompt_len % block_size > 0)


def test_blocks_that_others_hold_are_not_shared_by_the_outputs() -> None:
    """Catches blocks of one output counted as shared because a stranger names them too."""
    pool = BlockPool(20, 4)
    table = BlockTable(pool)
    table.append_tokens(9)
    stranger = table.fork()
    sharing = Sharing()
    assert sharing.saving == 0
    sharing.observe([table])
    sharing.observe([])
    assert sharing == Sharing(table_entries=3, blocks=3)
    sharing.observe([table, stranger])
    sharing.observe([stranger])
    assert sharing == Sharing(table_entries=12, blocks=9, most_shared=3, most_saved=3) and sharing.saving == 0.25


@pytest.mark.parametrize("parents", [[0, 2], [0, 0, -1]])
def test_nobody_continues_what_is_not_there(parents: list[int]) -> None:
    """Catches tables released or forked before all parents were looked at, and Python's indices from the end."""
    pool = BlockPool(20, 4)
    tables = [BlockTable(pool), BlockTable(pool)]
    for table in tables:
        table.append_tokens(6)
    with pytest.raises(ValueError, match=f"there is no table {parents[-1]} to continue: there are 2"):
        reorder(tables, parents)
    assert [table.num_tokens for table in tables] == [6, 6] and pool.num_used_blocks == 4
    assert {block.ref_cnt for block in pool.blocks} == {0, 1}


def test_a_copy_comes_before_a_child() -> None:
    """Catches forks made, and left behind, before it was seen that one of the parents does not hold its tokens yet."""
    pool = BlockPool(20, 4)
    table = BlockTable(pool)
    table.append_tokens(6)
    tables = reorder([table], [0, 0])
    for each in tables:
        each.append_tokens(1)
    counts = [block.ref_cnt for block in pool.blocks]
    with pytest.raises(ValueError, match="table 0 waits for a copy"):
        reorder(tables, [1, 1, 0])
    assert [block.ref_cnt for block in pool.blocks] == counts
    assert take_copies(tables) == [(2, 3)]
    assert len(reorder(tables, [1, 1, 0])) == 3


def test_replay_of_little_or_nonsense() -> None:
    """Catches a pool without room for the prompt of a search that never began, and errors that do not say what is
    wrong.
    """
    assert replay(40, [], 16) == replay(40, [[]], 16) == Sharing()
    assert replay(1, [[0]], 1) == Sharing(table_entries=2, blocks=2)
    for prompt_len, block_size in ((0, 16), (4, 0), (4, -1)):
        with pytest.raises(ValueError, match=f"prompt_len is {prompt_len} and block_size {block_size}"):
            replay(prompt_len, [[0]], block_size)
    for genealogy in ([[0, 1]], [[0], [1]], [[0, 0], [2]], [[], [0]]):
        with pytest.raises(ValueError, match="there is no table"):
            replay(5, genealogy, 4)


def test_figures_of_the_paper() -> None:
    """Catches a figure misread: more outputs never save less, no width saves more than all but one of its tables, and
    the means are those that section 6.3 prints.
    """
    for by_workload in FIG_15.values():
        for by_width in by_workload.values():
            assert [*by_width] == [2, 4, 6]
            bounds = [*by_width.values()]
            assert bounds == sorted(bounds)
            assert all(0 < least <= most < 5 / 6 for least, most in bounds)
            assert all(least < 1 - 1 / width for width, (least, _) in by_width.items())
    alpaca = [FIG_15[kind]["alpaca"][width][0] for kind in FIG_15 for width in (2, 4, 6)]
    assert alpaca == [0.0609, 0.0853, 0.0979, 0.3756, 0.5313, 0.5516]
    ranges = {kind: FIG_15[kind]["sharegpt"][2] for kind in FIG_15}
    assert ranges == {"parallel sampling": (0.162, 0.305), "beam search": (0.443, 0.663)}
