"""Exercises of chapter 04, Page tables. All work on plain lists, so that only the addressing is in the way."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.bug_hunts import positions_per_step
from pagedattn_lab.exercises.grading import Case, Exercise, random_cases
from pagedattn_lab.viz import Picture

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


def _tables_and_lengths(rng: random.Random, lengths: Sequence[int], block_size: int, spare: int = 0) -> list[list[int]]:
    """Give each sequence blocks of its own, in any order, and some entries more that mean nothing."""
    needed = [cdiv(length, block_size) + rng.randint(0, spare) for length in lengths]
    ids = rng.sample(range(1, 2 + 2 * sum(needed)), sum(needed))
    return [[ids.pop() for _ in range(number)] for number in needed]


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
        tables = _tables_and_lengths(rng, lengths, block_size)
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
    ]

    def make(rng: random.Random) -> tuple[int, list[list[int]], list[int], int]:
        block_size, number = rng.choice([1, 3, 4, 16]), rng.randint(1, 4)
        lens = [rng.randint(1, 30) for _ in range(number)]
        rows = _tables_and_lengths(rng, lens, block_size, spare=2)
        if number > 1 and rng.random() < 0.5:  # the last request shares full blocks with the first
            shared = min(lens[0], lens[-1]) // block_size
            rows[-1][:shared] = rows[0][:shared]
        row = rng.choice(rows)
        return rng.choice(row) * block_size + rng.randrange(block_size), rows, lens, block_size

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
        "stop at the first owner": _first_owner_only,
        "believe entries past the last block": _reads_past_the_end,
        "give the slot number as the position": _physical_position,
        "give the place in the block as the position": _repeats_the_offset,
    },
)

# --- Exercise 3: an audit of live tables ------------------------------------------------------------------------------


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
        rows = _tables_and_lengths(rng, lens, block_size, spare=1)
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
