"""Exercise 3 of chapter 04: an audit of live tables."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.viz import Picture

Rows = Sequence[Sequence[int]]


def scattered_tables(rng: random.Random, lengths: Sequence[int], block_size: int, spare: int = 0) -> list[list[int]]:
    """Give each sequence blocks of its own, in any order, and some entries more that mean nothing."""
    needed = [cdiv(length, block_size) + rng.randint(0, spare) for length in lengths]
    ids = rng.sample(range(1, 2 + 2 * sum(needed)), sum(needed))
    return [[ids.pop() for _ in range(number)] for number in needed]


def _illegal_blocks(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    """Find the blocks that a decode step must not run with.

    A block is illegal if it is the null block in use; if one table names it twice, or two tables name it at different
    logical positions; or if a request writes this step's token into it while another table names it too.

    Example:
        >>> sorted(_illegal_blocks([[7, 2, 5], [7, 4, 5]], seq_lens=[9, 10], block_size=4))
        [5]
    """
    places: dict[int, list[int]] = {}
    written = set()
    illegal = set()
    for row, seq_len in zip(block_tables, seq_lens, strict=True):
        in_use = cdiv(seq_len, block_size)
        for logical, block_id in enumerate(row[:in_use]):
            places.setdefault(block_id, []).append(logical)
        written.add(row[in_use - 1])
    for block_id, logicals in places.items():
        twice_or_shifted = len(set(logicals)) > 1
        written_while_shared = block_id in written and len(logicals) > 1
        if block_id == 0 or twice_or_shifted or written_while_shared:
            illegal.add(block_id)
    return illegal


def _no_sharing_at_all(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    seen, repeated = set(), set()
    for row, seq_len in zip(block_tables, seq_lens, strict=True):
        for block_id in row[: cdiv(seq_len, block_size)]:
            (repeated if block_id in seen or block_id == 0 else seen).add(block_id)
    return repeated


def _padding_counts(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    return _illegal_blocks(block_tables, [len(row) * block_size for row in block_tables], block_size)


def _only_partial_blocks_are_written(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    partial = {row[n // block_size] for row, n in zip(block_tables, seq_lens, strict=True) if n % block_size}
    found = _illegal_blocks(block_tables, seq_lens, block_size)
    places: dict[int, set[int]] = {}
    for row, seq_len in zip(block_tables, seq_lens, strict=True):
        for logical, block_id in enumerate(row[: cdiv(seq_len, block_size)]):
            places.setdefault(block_id, set()).add(logical)
    return {block_id for block_id in found if block_id == 0 or len(places[block_id]) > 1 or block_id in partial}


def _positions_ignored(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    owners: dict[int, set[int]] = {}
    written = set()
    for request, (row, seq_len) in enumerate(zip(block_tables, seq_lens, strict=True)):
        in_use = cdiv(seq_len, block_size)
        for block_id in row[:in_use]:
            owners.setdefault(block_id, set()).add(request)
        written.add(row[in_use - 1])
    return {b for b, requests in owners.items() if b == 0 or (b in written and len(requests) > 1)}


def _null_block_forgotten(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    return _illegal_blocks(block_tables, seq_lens, block_size) - {0}


def _audit_cases() -> list[Case]:
    known = [
        ([[7, 2, 5], [4, 0, 0], [1, 6, 0]], [9, 3, 8], "Disjoint tables are sound; 0 past the end is padding."),
        ([[7, 2, 5], [7, 4, 0]], [9, 6], "Block 7 is full in both and first in both: a shared prefix is sound."),
        ([[7, 2, 5], [7, 5, 0]], [9, 6], "Request 0 writes into block 5 while request 1 names it."),
        ([[7, 2, 5], [7, 2, 0]], [9, 8], "Request 1's token number 8 fills block 2: a write into a shared block."),
        ([[7, 2, 5], [2, 3, 0]], [9, 7], "Block 2 holds positions 4 to 7 of one and 0 to 3 of the other."),
        ([[7, 2, 7, 5], [4, 0, 0, 0]], [13, 1], "One table names block 7 twice: positions 0 to 3 and 8 to 11."),
        ([[7, 0, 5], [4, 3, 0]], [9, 5], "The null block belongs to nobody and is in use here."),
        ([[6, 7, 5], [4, 9, 7]], [9, 8], "Request 1 has 8 tokens: its third entry is left over and never read."),
        ([[6, 7, 5], [6, 7, 5], [8, 7, 0]], [10, 12, 5], "Blocks 5 and 7 are written while shared."),
    ]

    def make(rng: random.Random) -> tuple[list[list[int]], list[int], int]:
        block_size, number = rng.choice([1, 2, 4]), rng.randint(2, 4)
        lens = [rng.randint(1, 4 * block_size) for _ in range(number)]
        rows = scattered_tables(rng, lens, block_size, spare=1)
        for _ in range(rng.randint(0, 2)):  # one request takes over some of another's first blocks, or one entry slips
            one, other = rng.sample(range(number), 2)
            shared = rng.randint(0, min(len(rows[one]), len(rows[other])))
            rows[one][:shared] = rows[other][:shared]
            if rng.random() < 0.4:
                rows[one][rng.randrange(len(rows[one]))] = rng.choice([0, *rows[other]])
        return rows, lens, block_size

    about = (
        "Ask of each block in use: is it the null block, where is it named, and does anybody write to it in this step?"
    )
    return [Case((rows, lens, 4), why) for rows, lens, why in known] + random_cases(13, 80, make, about)


def _look_at_illegal(arguments: tuple, expected: set[int], got: set[int]) -> str | None:
    if got is None or set(got) == expected:
        return None
    missed, blamed = sorted(expected - set(got)), sorted(set(got) - expected)
    return f"You miss block {missed[0]}." if missed else f"Block {blamed[0]} is legal."


def _draw_tables(arguments: tuple, outcome: set[int]) -> Picture | None:
    """Draw the tables as far as they are in use, with the blocks named by an answer outlined."""
    block_tables, seq_lens, block_size = arguments
    used = [row[: cdiv(seq_len, block_size)] for row, seq_len in zip(block_tables, seq_lens, strict=True)]
    named = {block for row in used for block in row}
    free = [block for block in range(1, max(named) + 1) if block not in named]
    return board(used, seq_lens, free, block_size=block_size, changed=set(outcome))


illegal_blocks = Exercise(
    "04.3",
    "illegal_blocks",
    "Audit the tables",
    cases=_audit_cases,
    returns="a set of block numbers",
    look=_look_at_illegal,
    draw=_draw_tables,
    hints=(
        "Look only at blocks in use: the first ceil(seq_len / block_size) entries of each row.",
        "Note for each block at which logical positions it is named, and how often. A block that is named at two "
        "different ones is illegal, in one table or in two.",
        "This step's token has position `seq_len - 1`, so it is written into the last block in use, full afterwards "
        "or not. That block must be named once only. And block 0 must not be in use at all.",
    ),
    explanation="One pass notes where each block is named and which blocks are written. Sharing is legal exactly if "
    "all who share a block name it at the same place and nobody writes to it.",
    reference=_illegal_blocks,
    wrong={
        "report every shared block": _no_sharing_at_all,
        "believe entries past the last block": _padding_counts,
        "take a block that this step fills for read-only": _only_partial_blocks_are_written,
        "compare no logical positions": _positions_ignored,
        "allow the null block": _null_block_forgotten,
    },
)
