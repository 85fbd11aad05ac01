"""Exercises of chapter 05: append with copy-on-write, a step of beam search, and what many samples need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.exercises import Exercise

Tables = list[list[int]]

# ---------------------------------------------------------------------------------------------------------------------
# 1. Append with copy-on-write
# ---------------------------------------------------------------------------------------------------------------------

Append = Callable[[Tables, list[int], int, list[int], int], tuple[int, int] | None]

_APPENDS = [  # tables, lengths, who appends, free, block size, tables after, free after, copy
    ([[1, 2]], [6], 0, [5, 3], 4, [[1, 2]], [5, 3], None, "there is room, and nobody else names the block"),
    ([[1, 2]], [8], 0, [5, 3], 4, [[1, 2, 5]], [3], None, "a full last block means a new one"),
    ([[1, 2], [1, 2]], [6, 6], 1, [5, 3], 4, [[1, 2], [1, 5]], [3], (2, 5), "a shared, partly filled block is copied"),
    (
        [[1, 2], [1, 2]],
        [6, 6],
        0,
        [5, 3],
        4,
        [[1, 5], [1, 2]],
        [3],
        (2, 5),
        "it is copied for the first as for the last",
    ),
    (
        [[1, 2], [1, 5]],
        [7, 7],
        0,
        [3],
        4,
        [[1, 2], [1, 5]],
        [3],
        None,
        "only the block to be written counts, not block 1",
    ),
    ([[1, 2], [1, 2]], [8, 8], 0, [4, 6], 4, [[1, 2, 4], [1, 2]], [6], None, "a shared full block is not written to"),
    ([[7], [7], [7]], [1, 1, 1], 2, [9, 8], 3, [[7], [7], [9]], [8], (7, 9), "two others name it"),
    ([[], [3]], [0, 2], 0, [6], 4, [[6], [3]], [], None, "an empty sequence takes its first block"),
]


def _reference_append(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    if lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    elif sum(table[-1] in other for other in tables) > 1:
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    lengths[i] += 1
    return copy


def _check_append(answer: Append) -> None:
    for tables, lengths, i, free, block_size, tables_after, free_after, copy, about in _APPENDS:
        case = f"tables={tables}, lengths={lengths}, i={i}, free={free}, block_size={block_size}"
        mine, grown, left = [list(table) for table in tables], list(lengths), list(free)
        result = answer(mine, grown, i, left, block_size)
        assert result == copy, f"for {case} return {copy}, not {result}: {about}"
        assert mine == tables_after, f"for {case} the tables become {tables_after}, not {mine}: {about}"
        assert left == free_after, f"for {case} free becomes {free_after}, not {left}: {about}"
        expected = [length + (number == i) for number, length in enumerate(lengths)]
        assert grown == expected, f"for {case} lengths become {expected}, not {grown}"


def _append_never_copies(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    if lengths[i] == len(tables[i]) * block_size:
        tables[i].append(free.pop(0))
    lengths[i] += 1
    return None


def _append_copies_full_blocks(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    if table and sum(table[-1] in other for other in tables) > 1:
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    elif lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    lengths[i] += 1
    return copy


def _append_copies_if_anything_is_shared(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    others = {block for number, other in enumerate(tables) if number != i for block in other}
    if lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    elif others & set(table):
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    lengths[i] += 1
    return copy


def _append_keeps_the_first_owner(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    if lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    elif any(table[-1] in other for other in tables[:i]):
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    lengths[i] += 1
    return copy


def _append_reverses_the_copy(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    copy = _reference_append(tables, lengths, i, free, block_size)
    return None if copy is None else copy[::-1]


append_one = Exercise(
    _check_append,
    reference=_reference_append,
    wrong={
        "never copies": _append_never_copies,
        "copies full blocks too": _append_copies_full_blocks,
        "copies if anything at all is shared": _append_copies_if_anything_is_shared,
        "lets the first owner write": _append_keeps_the_first_owner,
        "copies the wrong way round": _append_reverses_the_copy,
    },
)
"""One token, with copy-on-write: ``append_one(tables, lengths, i, free, block_size)`` -> the copy, or ``None``."""

# ---------------------------------------------------------------------------------------------------------------------
# 2. A step of beam search
# ---------------------------------------------------------------------------------------------------------------------

Continue = Callable[[Sequence[Sequence[int]], Sequence[int]], tuple[Tables, set[int]]]

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


def _check_continue(answer: Continue) -> None:
    for tables, parents in _STEPS:
        case = f"tables={tables}, parents={parents}"
        given = [list(table) for table in tables]
        new_tables, freed = answer(given, list(parents))
        expected, gone = _reference_continue(tables, parents)
        assert new_tables == expected, f"for {case} the new tables are {expected}, not {new_tables}"
        assert set(freed) == gone, f"for {case} the blocks {gone or '{}'} are free afterwards, not {freed or '{}'}"
        assert len({id(table) for table in new_tables}) == len(new_tables), (
            f"for {case} two beams have one list between them: when one grows, so will the other"
        )


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
    _check_continue,
    reference=_reference_continue,
    wrong={
        "frees blocks that a surviving beam names": _continue_frees_all,
        "gives two beams one list": _continue_one_list,
        "overwrites a parent before its second child is made": _continue_backwards,
        "frees nothing": _continue_frees_nothing,
    },
)
"""Who goes on, who goes: ``continue_beams(tables, parents)`` -> new tables, and the blocks that are free afterwards."""

# ---------------------------------------------------------------------------------------------------------------------
# 3. What many samples need
# ---------------------------------------------------------------------------------------------------------------------

Need = Callable[[int, int, int, int], tuple[int, int]]

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


def _check_needs(answer: Need) -> None:
    for case in _CASES:
        expected, result = _library_needs(*case), answer(*case)
        named = "prompt_len={}, output_len={}, n={}, block_size={}".format(*case)
        assert isinstance(result, tuple) and len(result) == 2, f"return (blocks, copies), not {result!r}"
        assert result[0] == expected[0], f"for {named} {expected[0]} blocks are in use, not {result[0]}"
        assert result[1] == expected[1], f"for {named} {expected[1]} blocks are copied, not {result[1]}"


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
    _check_needs,
    reference=_needs,
    wrong={
        "shares the partly filled block for ever": _needs_shares_the_tail,
        "copies for the last owner too": _needs_copies_for_all,
        "copies a full block": _needs_always_copies,
        "rounds prompt and output apart": _needs_parts_apart,
    },
)
"""Samples of one prompt: ``blocks_and_copies(prompt_len, output_len, n, block_size)`` -> blocks at the end, copies."""
