"""Exercises of chapter 04, Page tables. All work on plain lists, so that only the addressing is in the way."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch04_audit import illegal_blocks, scattered_tables
from pagedattn_lab.exercises.ch04_hunt import positions_per_step
from pagedattn_lab.exercises.grading import Exercise

__all__ = ["illegal_blocks", "owners_of_slot", "positions_per_step", "step_slots"]

Rows = Sequence[Sequence[int]]

# --- Exercise 1: where does this step's chunk go? ---------------------------------------------------------------------


def _step_slots(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    """Give the slot mapping of one step: each request's scheduled tokens in turn, then −1 up to ``padded_len``.

    Example:
        >>> _step_slots([[7, 2], [5]], num_computed=[3, 0], num_scheduled=[2, 1], block_size=4, padded_len=5)
        [31, 8, 20, -1, -1]
    """
    slots = [
        row[position // block_size] * block_size + position % block_size
        for row, computed, scheduled in zip(block_tables, num_computed, num_scheduled, strict=True)
        for position in range(computed, computed + scheduled)
    ]
    return slots + [-1] * (padded_len - len(slots))


def _from_the_start(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    return _step_slots(block_tables, [0] * len(num_computed), num_scheduled, block_size, padded_len)


def _logical_as_physical(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    rows = [list(range(len(row))) for row in block_tables]
    return _step_slots(rows, num_computed, num_scheduled, block_size, padded_len)


def _padded_with_null_block(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    slots = _step_slots(block_tables, num_computed, num_scheduled, block_size, padded_len)
    return [max(slot, 0) for slot in slots]


def _not_padded(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    return _step_slots(block_tables, num_computed, num_scheduled, block_size, sum(num_scheduled))


def _one_block_per_chunk(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    slots: list[int] = []
    for row, computed, scheduled in zip(block_tables, num_computed, num_scheduled, strict=True):
        first = row[computed // block_size] * block_size + computed % block_size
        slots += range(first, first + scheduled)
    return slots + [-1] * (padded_len - len(slots))


def _slot_cases() -> list[Case]:
    tables = [[7, 2, 5], [4], [9, 1, 8, 3]]
    known = [
        (([[7, 2, 5]], [0], [3], 4, 3), "Three tokens of a new request go to the first slots of its first block, 7."),
        (([[7, 2, 5]], [6], [1], 4, 1), "With 6 tokens computed, the next one has position 6: block 2, offset 2."),
        (([[7, 2, 5]], [6], [4], 4, 4), "A chunk that crosses into the next logical block must look that block up."),
        (
            (tables, [6, 0, 13], [4, 3, 1], 4, 8),
            "Each request counts positions from its own start and uses its own row.",
        ),
        ((tables, [6, 0, 13], [1, 2, 0], 4, 8), "A step padded to 8 tokens needs 8 slots; padding goes nowhere: -1."),
    ]

    def make(rng: random.Random) -> tuple[list[list[int]], list[int], list[int], int, int]:
        block_size, number = rng.choice([1, 2, 3, 4, 16]), rng.randint(1, 4)
        computed = [rng.choice([0, rng.randint(0, 30)]) for _ in range(number)]
        scheduled = [rng.choice([1, rng.randint(0, 12)]) for _ in range(number)]
        lengths = [old + new for old, new in zip(computed, scheduled, strict=True)]
        tables = scattered_tables(rng, lengths, block_size)
        return tables, computed, scheduled, block_size, sum(scheduled) + rng.choice([0, 3])

    about = "Position // block_size picks the entry of the request's own row, position % block_size the place in it."
    return [Case(*each) for each in known] + random_cases(11, 50, make, about)


def _look_at_slots(arguments: tuple, expected: list[int], got: list[int]) -> str | None:
    if got is None or len(got) == len(expected):
        return None
    return f"The step is padded to {len(expected)} tokens, so it needs as many slots; you give {len(got)}."


step_slots = Exercise(
    "04.1",
    "step_slots",
    "Where does this step's chunk go?",
    cases=_slot_cases,
    returns="a list of slots",
    look=_look_at_slots,
    hints=(
        "Which positions does request `i` compute in this step?",
        "Those from `num_computed[i]` up to, not including, `num_computed[i] + num_scheduled[i]`. Each has an address "
        "of its own: `row[position // block_size] * block_size + position % block_size`.",
        "Collect the slots request after request, then append -1 until there are `padded_len`.",
    ),
    explanation="Positions go on where the computed tokens end, and every one is looked up by itself, because "
    "neighbours may lie in blocks far apart. -1 is no slot at all: a padded entry must not be written, not even into "
    "the null block.",
    reference=_step_slots,
    wrong={
        "start each request's positions at 0 instead of behind its computed tokens": _from_the_start,
        "take the logical block number for the physical one": _logical_as_physical,
        "point padding into the null block": _padded_with_null_block,
        "forget the padding": _not_padded,
        "take a chunk to lie in one run of slots": _one_block_per_chunk,
    },
)

# --- Exercise 2: whose token is in this slot? -------------------------------------------------------------------------


def _owners_of_slot(slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> list[tuple[int, int]]:
    """List every ``(request, position)`` whose token is in ``slot``, by request; an empty list where there is none.

    Example:
        >>> tables, lens = [[7, 2, 0], [7, 5, 4]], [6, 9]
        >>> _owners_of_slot(30, tables, lens, block_size=4), _owners_of_slot(21, tables, lens, block_size=4)
        ([(0, 2), (1, 2)], [(1, 5)])
        >>> _owners_of_slot(10, tables, lens, block_size=4)       # block 2 holds two tokens: offsets 0 and 1
        []
    """
    block_id, offset = divmod(slot, block_size)
    owners = []
    for request, (row, seq_len) in enumerate(zip(block_tables, seq_lens, strict=True)):
        for logical in range(cdiv(seq_len, block_size)):
            position = logical * block_size + offset
            if row[logical] == block_id and position < seq_len:
                owners.append((request, position))
    return owners


def _counts_empty_slots(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    rounded = [cdiv(seq_len, block_size) * block_size for seq_len in seq_lens]
    return _owners_of_slot(slot, block_tables, rounded, block_size)


def _first_owner_only(slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> list[tuple[int, int]]:
    return _owners_of_slot(slot, block_tables, seq_lens, block_size)[:1]


def _one_position_more(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    block_id, offset = divmod(slot, block_size)
    return [
        (request, logical * block_size + offset)
        for request, (row, seq_len) in enumerate(zip(block_tables, seq_lens, strict=True))
        for logical, each in enumerate(row)
        if each == block_id and logical * block_size + offset <= seq_len
    ]


def _one_position_more_in_last_block(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    rows = [row[: cdiv(seq_len, block_size)] for row, seq_len in zip(block_tables, seq_lens, strict=True)]
    return _one_position_more(slot, rows, seq_lens, block_size)


def _reads_past_the_end(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    whole_rows = [len(row) * block_size for row in block_tables]
    return _owners_of_slot(slot, block_tables, whole_rows, block_size)


def _physical_position(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    return [(request, slot) for request, _ in _owners_of_slot(slot, block_tables, seq_lens, block_size)]


def _repeats_the_offset(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    return [
        (request, position % block_size)
        for request, position in _owners_of_slot(slot, block_tables, seq_lens, block_size)
    ]


def _owner_cases() -> list[Case]:
    tables, lens = [[7, 2, 5], [4, 0, 0], [7, 6, 9]], [9, 3, 12]
    known = [
        ((9, tables, lens, 4), "Slot 9 is block 2, offset 1: logical block 1 of request 0."),
        ((29, tables, lens, 4), "Block 7 is in two tables, so slot 29 has two owners."),
        ((22, tables, lens, 4), "Request 0 has 9 tokens, so of its third block only offset 0 is used."),
        ((1, tables, lens, 4), "Entries past a sequence's last block are not its blocks, so slot 1 has no owner."),
        ((24, [[7, 2, 6], [3]], [8, 2], 4), "Request 0 has 8 tokens in 2 blocks: its third entry means nothing."),
        ((6, [[1]], [2], 4), "Two tokens have positions 0 and 1, so offset 2 of the block is empty."),
    ]

    def make(rng: random.Random) -> tuple[int, list[list[int]], list[int], int]:
        block_size, number = rng.choice([1, 3, 4, 16]), rng.randint(1, 4)
        lens = [rng.randint(1, 30) for _ in range(number)]
        rows = scattered_tables(rng, lens, block_size, spare=2)
        if number > 1 and rng.random() < 0.5:  # the last request shares full blocks with the first
            shared = min(lens[0], lens[-1]) // block_size
            rows[-1][:shared] = rows[0][:shared]
        request = rng.randrange(number)
        slots = len(rows[request]) * block_size
        # Often the last token of a request or the slot behind it, else any slot of its row.
        near_end = [min(lens[request] - rng.randint(0, 1), slots - 1)]
        logical, offset = divmod(rng.choice([rng.randrange(slots), *near_end]), block_size)
        return rows[request][logical] * block_size + offset, rows, lens, block_size

    about = "Look for the slot's block in every row as far as that sequence reaches, then compare position and length."
    return [Case(*each) for each in known] + random_cases(12, 60, make, about)


owners_of_slot = Exercise(
    "04.2",
    "owners_of_slot",
    "Whose token is this?",
    cases=_owner_cases,
    returns="a list of (request, position)",
    hints=(
        "Turn the address around: which block is the slot in, and at which offset?",
        "`divmod(slot, block_size)` gives both. Wherever that block stands in a row, at logical block `l`, the "
        "position is `l * block_size + offset`.",
        "That position is a token's only if it is below the sequence's length. Do not stop at the first owner: a "
        "block may be in several tables.",
    ),
    explanation="The table maps logical to physical, so the way back is a search. One comparison, `position < "
    "seq_len`, rules out both empty slots of the last block and entries behind it.",
    reference=_owners_of_slot,
    wrong={
        "count empty slots of the last block as tokens": _counts_empty_slots,
        "count the position behind the last token as one": _one_position_more,
        "count the slot behind the last token as one, if it is in the same block": _one_position_more_in_last_block,
        "stop at the first owner": _first_owner_only,
        "believe entries past the last block": _reads_past_the_end,
        "give the slot number as the position": _physical_position,
        "give the place in the block as the position": _repeats_the_offset,
    },
)
