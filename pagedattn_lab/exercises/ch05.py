"""Exercises of chapter 05: append with copy-on-write, a step of beam search, and what many samples need."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch05_append import append_one
from pagedattn_lab.exercises.ch05_hunt import reorder
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.viz import Picture

__all__ = ["append_one", "blocks_and_copies", "continue_beams", "reorder"]

Tables = list[list[int]]

# ---------------------------------------------------------------------------------------------------------------------
# 2. A step of beam search
# ---------------------------------------------------------------------------------------------------------------------

_STEPS = [  # tables, parents
    ([[1, 2], [1, 3]], [0, 1]),
    ([[1, 2], [1, 3]], [1, 1]),
    ([[1, 2], [1, 3]], [1, 0]),
    ([[1, 2, 4], [1, 2, 5], [1, 6]], [2, 2, 2]),
    ([[1, 2, 4], [1, 2, 5], [1, 6]], [0, 0, 2]),
    ([[7, 3]], [0, 0, 0, 0]),
]


def _reference_continue(tables: Sequence[Sequence[int]], parents: Sequence[int]) -> tuple[Tables, set[int]]:
    new_tables = [list(tables[parent]) for parent in parents]
    before = {block for table in tables for block in table}
    return new_tables, before - {block for table in new_tables for block in table}


def _library_continue(tables: Sequence[Sequence[int]], parents: Sequence[int]) -> tuple[Tables, set[int]]:
    """Let the library's tables play the step through: every block holds one token."""
    pool = BlockPool(2 + max(block for table in tables for block in table), block_size=1)
    taken = {block.block_id: block for block in pool.get_new_blocks(pool.num_free_blocks)}
    for table in tables:
        pool.touch([taken[block] for block in table])
    pool.free_blocks(taken.values())  # from here on each block is held by the tables that name it, and by nobody else
    before = _free(pool)
    children = [[taken[block] for block in tables[parent]] for parent in parents]
    for child in children:
        pool.touch(child)
    for table in tables:
        pool.free_blocks(taken[block] for block in reversed(table))
    return [[block.block_id for block in child] for child in children], _free(pool) - before


def _free(pool: BlockPool) -> set[int]:
    return {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}


def _continue_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Tables, list[int]]:
        ids = rng.sample(range(1, 30), 29)
        tables: Tables = [[ids.pop() for _ in range(rng.randint(1, 2))]]
        for _ in range(rng.randint(0, 3)):  # beams part from one another at some block
            parent = rng.choice(tables)
            kept = rng.randint(1, len(parent))
            tables.append(parent[:kept] + [ids.pop() for _ in range(rng.randint(0 if kept < len(parent) else 1, 2))])
        return tables, [rng.randrange(len(tables)) for _ in range(rng.randint(1, len(tables) + 1))]

    about = "A child begins with its parent's table; what no child's table names is free."
    return [Case(case, about) for case in _STEPS] + random_cases(15, 50, make, about)


def _look_at_lists(arguments: tuple[Any, ...], expected: Any, got: Any) -> str | None:
    lists = [id(table) for table in got[0] if isinstance(table, list)] if got else []  # a tuple never grows
    if len(set(lists)) == len(lists):
        return None
    return "Two beams have one list between them: when one grows, so will the other."


def _draw_beams(arguments: tuple[Any, ...], outcome: tuple[Tables, set[int]]) -> Picture | None:
    return board(outcome[0], free=sorted(outcome[1]), block_size=1)


def _continue_frees_all(tables: Sequence[Sequence[int]], parents: Sequence[int]) -> tuple[Tables, set[int]]:
    dead = [table for number, table in enumerate(tables) if number not in parents]
    return _reference_continue(tables, parents)[0], {block for table in dead for block in table}


def _continue_one_list(tables: Sequence[Sequence[int]], parents: Sequence[int]) -> tuple[Tables, set[int]]:
    return [tables[parent] for parent in parents], _reference_continue(tables, parents)[1]


def _continue_backwards(tables: Sequence[Sequence[int]], parents: Sequence[int]) -> tuple[Tables, set[int]]:
    new_tables = [list(table) for table in tables] + [list(tables[0])] * (len(parents) - len(tables))
    for number, parent in enumerate(parents):
        new_tables[number] = list(new_tables[parent])  # already overwritten, perhaps
    gone = {block for table in tables for block in table} - {block for table in new_tables for block in table}
    return new_tables, gone


def _continue_frees_nothing(tables: Sequence[Sequence[int]], parents: Sequence[int]) -> tuple[Tables, set[int]]:
    return _reference_continue(tables, parents)[0], set()


continue_beams = Exercise(
    "05.2",
    "continue_beams",
    "A step of beam search",
    cases=_continue_cases,
    reference=_reference_continue,
    oracle=_library_continue,
    returns="two values, (new_tables, freed): a list of tables, and a set of block numbers",
    look=_look_at_lists,
    draw=_draw_beams,
    hints=(
        "New beam `j` begins with the table of beam `parents[j]`. Two children of one parent must not have one list.",
        "`list(tables[parent])` makes a copy. Build a new list of tables, so that no parent is overwritten while "
        "another child still needs it.",
        "Freed is what the old tables name and no new one does: a difference of two sets. A parent without children "
        "may share blocks with one that has some.",
    ),
    explanation="All children are made before any parent goes. Then blocks are counted over all tables, since a beam "
    "that dies usually leaves ancestors that others still name.",
    wrong={
        "free blocks that a surviving beam names": _continue_frees_all,
        "give two beams one list": _continue_one_list,
        "overwrite a parent before its second child is made": _continue_backwards,
        "free nothing": _continue_frees_nothing,
        "leave every beam as it was": lambda tables, parents: ([list(table) for table in tables], set()),
    },
)
"""Who goes on, who goes: ``continue_beams(tables, parents)`` -> new tables, and the blocks that are free afterwards."""

# ---------------------------------------------------------------------------------------------------------------------
# 3. What many samples need
# ---------------------------------------------------------------------------------------------------------------------

_CASES = [  # prompt, output, samples, block size
    (10, 6, 3, 4),
    (12, 6, 3, 4),
    (3, 1, 4, 16),
    (16, 16, 2, 16),
    (33, 200, 5, 16),
    (7, 9, 1, 4),
    (1, 1, 2, 1),
]


def _library_needs(prompt_len: int, output_len: int, n: int, block_size: int) -> tuple[int, int]:
    """Let the library's tables play the case through."""
    pool = BlockPool(2 + n * cdiv(prompt_len + output_len, block_size), block_size)
    tables, copies = [BlockTable(pool)], 0
    tables[0].append_tokens(prompt_len)
    tables += [tables[0].fork() for _ in range(n - 1)]
    for _ in range(output_len):
        for table in tables:
            table.append_tokens(1)
        copies += len(take_copies(tables))
    return pool.num_used_blocks, copies


def _need_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[int, int, int, int]:
        return rng.randint(1, 40), rng.randint(1, 40), rng.randint(1, 5), rng.choice([1, 2, 3, 4, 16])

    about = (
        "What do all samples name for ever, what does each have for itself, and who writes first to the shared block?"
    )
    return [Case(case, about) for case in _CASES] + random_cases(16, 40, make, about)


def _needs(prompt_len: int, output_len: int, n: int, block_size: int) -> tuple[int, int]:
    shared = prompt_len // block_size
    each = cdiv(prompt_len + output_len, block_size)
    return shared + n * (each - shared), (n - 1) * (prompt_len % block_size > 0)


def _needs_shares_the_tail(prompt_len: int, output_len: int, n: int, block_size: int) -> tuple[int, int]:
    shared = cdiv(prompt_len, block_size)
    return shared + n * (cdiv(prompt_len + output_len, block_size) - shared), 0


def _needs_copies_for_all(prompt_len: int, output_len: int, n: int, block_size: int) -> tuple[int, int]:
    blocks, copies = _needs(prompt_len, output_len, n, block_size)
    return blocks, n if copies else 0


def _needs_always_copies(prompt_len: int, output_len: int, n: int, block_size: int) -> tuple[int, int]:
    return _needs(prompt_len, output_len, n, block_size)[0], n - 1


def _needs_parts_apart(prompt_len: int, output_len: int, n: int, block_size: int) -> tuple[int, int]:
    blocks = cdiv(prompt_len, block_size) + n * cdiv(output_len, block_size)
    return blocks, _needs(prompt_len, output_len, n, block_size)[1]


blocks_and_copies = Exercise(
    "05.3",
    "blocks_and_copies",
    "What will n samples need?",
    cases=_need_cases,
    reference=_needs,
    oracle=_library_needs,
    returns="two values, (blocks, copies)",
    hints=(
        "Which of the prompt's blocks stay shared to the end? Those that nobody writes to any more.",
        "Full blocks of the prompt: `prompt_len // block_size`. Every sample has the rest of its blocks for itself.",
        "A partly filled last block of the prompt is copied by everyone who writes to it while others name it: by all "
        "but one.",
    ),
    explanation="Blocks in use at the end: the full ones of the prompt once, and for each sample what its whole "
    "length needs beyond them. Copies: the partly filled block, if there is one, for all samples but the last, which "
    "finds itself alone and writes in place.",
    wrong={
        "share the partly filled block for ever": _needs_shares_the_tail,
        "copy for the last owner too": _needs_copies_for_all,
        "copy a full block": _needs_always_copies,
        "round prompt and output apart": _needs_parts_apart,
        "share nothing": lambda prompt_len, output_len, n, block_size: (
            n * cdiv(prompt_len + output_len, block_size),
            0,
        ),
    },
)
"""Samples of one prompt: ``blocks_and_copies(prompt_len, output_len, n, block_size)`` -> blocks at the end, copies."""
