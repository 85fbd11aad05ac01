"""Exercises of chapter 04, Page tables. All work on plain lists, so that only the addressing is in the way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises import Exercise

Rows = Sequence[Sequence[int]]

# --- Exercise 1: where does this step's chunk go? ---------------------------------------------------------------------


def step_slots(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    """Give the slot mapping of one step: each request's scheduled tokens in turn, then −1 up to ``padded_len``.

    Example:
        >>> step_slots([[7, 2], [5]], num_computed=[3, 0], num_scheduled=[2, 1], block_size=4, padded_len=5)
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
    return step_slots(block_tables, [0] * len(num_computed), num_scheduled, block_size, padded_len)


def _logical_as_physical(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    rows = [list(range(len(row))) for row in block_tables]
    return step_slots(rows, num_computed, num_scheduled, block_size, padded_len)


def _padded_with_null_block(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    slots = step_slots(block_tables, num_computed, num_scheduled, block_size, padded_len)
    return [max(slot, 0) for slot in slots]


def _not_padded(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    return step_slots(block_tables, num_computed, num_scheduled, block_size, sum(num_scheduled))


def _one_block_per_chunk(
    block_tables: Rows, num_computed: Sequence[int], num_scheduled: Sequence[int], block_size: int, padded_len: int
) -> list[int]:
    slots: list[int] = []
    for row, computed, scheduled in zip(block_tables, num_computed, num_scheduled, strict=True):
        first = row[computed // block_size] * block_size + computed % block_size
        slots += range(first, first + scheduled)
    return slots + [-1] * (padded_len - len(slots))


def _check_step_slots(answer: Callable[..., list[int]]) -> None:
    tables, computed = [[7, 2, 5], [4], [9, 1, 8, 3]], [6, 0, 13]
    single = answer([[7, 2, 5]], [0], [3], 4, 3)
    assert list(single) == [28, 29, 30], (
        f"three tokens of a new request whose first block is 7 go to slots 28, 29, 30 (block size 4); got {single}"
    )
    late = answer([[7, 2, 5]], [6], [1], 4, 1)
    assert list(late) == [10], f"with 6 tokens computed, the next one has position 6: block 2, offset 2; got {late}"
    across = answer([[7, 2, 5]], [6], [4], 4, 4)
    assert list(across) == [10, 11, 20, 21], (
        f"a chunk that crosses into the next logical block must look that block up: [10, 11, 20, 21], got {across}"
    )
    ragged = answer(tables, computed, [4, 3, 1], 4, 8)
    assert list(ragged) == step_slots(tables, computed, [4, 3, 1], 4, 8), (
        f"each request counts positions from its own start, and uses its own row; got {ragged}"
    )
    padded = answer(tables, computed, [1, 2, 0], 4, 8)
    assert len(padded) == 8, f"a step padded to 8 tokens needs 8 slots, got {len(padded)}"
    assert list(padded[3:]) == [-1] * 5, f"padding must not be written anywhere: -1, not {padded[3:]}"
    rng = random.Random(4)
    for _ in range(20):
        size = rng.choice([1, 2, 3, 16])
        lens = [(rng.randrange(0, 40), rng.randrange(0, 40)) for _ in range(rng.randrange(1, 5))]
        ids = rng.sample(range(1, 500), 200)
        rows = [[ids.pop() for _ in range(cdiv(old + new, size))] for old, new in lens] if size > 1 else None
        if rows is None:
            rows = [[rng.randrange(1, 500) for _ in range(old + new)] for old, new in lens]
        old, new = [pair[0] for pair in lens], [pair[1] for pair in lens]
        expected = step_slots(rows, old, new, size, sum(new) + 3)
        given = answer(rows, old, new, size, sum(new) + 3)
        assert list(given) == expected, (
            f"for block_tables={rows}, num_computed={old}, num_scheduled={new}, block_size={size}: "
            f"expected {expected}, got {given}"
        )


slots_of_a_step = Exercise(
    check=_check_step_slots,
    reference=step_slots,
    wrong={
        "positions start at 0 instead of at the computed tokens": _from_the_start,
        "logical block number used as the physical one": _logical_as_physical,
        "padding points into the null block": _padded_with_null_block,
        "padding forgotten": _not_padded,
        "a chunk is taken to lie in one run of slots": _one_block_per_chunk,
    },
)

# --- Exercise 2: whose token is in this slot? -------------------------------------------------------------------------


def owners_of_slot(slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> list[tuple[int, int]]:
    """List every ``(request, position)`` whose token is in ``slot``, by request; an empty list where there is none.

    Example:
        >>> tables, lens = [[7, 2, 0], [7, 5, 4]], [6, 9]
        >>> owners_of_slot(30, tables, lens, block_size=4), owners_of_slot(21, tables, lens, block_size=4)
        ([(0, 2), (1, 2)], [(1, 5)])
        >>> owners_of_slot(10, tables, lens, block_size=4)       # block 2 holds two tokens: offsets 0 and 1
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
    return owners_of_slot(slot, block_tables, rounded, block_size)


def _first_owner_only(slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> list[tuple[int, int]]:
    return owners_of_slot(slot, block_tables, seq_lens, block_size)[:1]


def _reads_past_the_end(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    whole_rows = [len(row) * block_size for row in block_tables]
    return owners_of_slot(slot, block_tables, whole_rows, block_size)


def _physical_position(
    slot: int, block_tables: Rows, seq_lens: Sequence[int], block_size: int
) -> list[tuple[int, int]]:
    return [(request, slot) for request, _ in owners_of_slot(slot, block_tables, seq_lens, block_size)]


def _check_owners(answer: Callable[..., list[tuple[int, int]]]) -> None:
    tables, lens, size = [[7, 2, 5], [4, 0, 0], [7, 6, 9]], [9, 3, 12], 4
    plain = answer(9, tables, lens, size)
    assert list(plain) == [(0, 5)], (
        f"slot 9 is block 2, offset 1: logical block 1 of request 0, so position 5; expected [(0, 5)], got {plain}"
    )
    shared = answer(29, tables, lens, size)
    assert list(shared) == [(0, 1), (2, 1)], f"block 7 is in two tables, so slot 29 has two owners; got {shared}"
    empty = answer(22, tables, lens, size)
    assert list(empty) == [], (
        f"request 0 has 9 tokens, so of block 5 (its third) only offset 0 is used, not slot 22; got {empty}"
    )
    unused = answer(1, tables, lens, size)
    assert list(unused) == [], f"entries past a sequence's last block are not its blocks, slot 1 has no owner; {unused}"
    garbage = answer(24, [[7, 2, 6], [3]], [8, 2], size)
    assert list(garbage) == [], f"request 0 has 8 tokens in 2 blocks: its third entry means nothing; got {garbage}"
    rng = random.Random(5)
    for _ in range(10):
        size = rng.choice([1, 3, 16])
        lens = [rng.randrange(1, 50) for _ in range(4)]
        ids = rng.sample(range(1, 400), 250)
        rows = [[ids.pop() for _ in range(cdiv(seq_len, size) + 1)] for seq_len in lens]
        for request, (row, seq_len) in enumerate(zip(rows, lens, strict=True)):
            position = rng.randrange(seq_len)
            slot = row[position // size] * size + position % size
            given = answer(slot, rows, lens, size)
            assert list(given) == [(request, position)], (
                f"slot {slot} with block_tables={rows}, seq_lens={lens}, block_size={size}: "
                f"expected {[(request, position)]}, got {given}"
            )


whose_slot = Exercise(
    check=_check_owners,
    reference=owners_of_slot,
    wrong={
        "empty slots of the last block count as tokens": _counts_empty_slots,
        "only the first owner is found": _first_owner_only,
        "entries past the last block are believed": _reads_past_the_end,
        "the slot number is given as the position": _physical_position,
    },
)

# --- Exercise 3: an audit of live tables ------------------------------------------------------------------------------


def illegal_blocks(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    """Find the blocks that a decode step must not run with.

    A block is illegal if it is the null block in use; if one table names it twice, or two tables name it at different
    logical positions; or if a request writes this step's token into it while another table names it too.

    Example:
        >>> sorted(illegal_blocks([[7, 2, 5], [7, 4, 5]], seq_lens=[9, 10], block_size=4))
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
    return illegal_blocks(block_tables, [len(row) * block_size for row in block_tables], block_size)


def _only_partial_blocks_are_written(block_tables: Rows, seq_lens: Sequence[int], block_size: int) -> set[int]:
    partial = {row[n // block_size] for row, n in zip(block_tables, seq_lens, strict=True) if n % block_size}
    found = illegal_blocks(block_tables, seq_lens, block_size)
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
    return illegal_blocks(block_tables, seq_lens, block_size) - {0}


def _check_audit(answer: Callable[..., set[int]]) -> None:
    cases = [
        (
            [[7, 2, 5], [4, 0, 0], [1, 6, 0]],
            [9, 3, 8],
            set(),
            "disjoint tables are sound; 0 past the end is padding",
        ),
        ([[7, 2, 5], [7, 4, 0]], [9, 6], set(), "block 7 is full in both and first in both: a shared prefix is sound"),
        ([[7, 2, 5], [7, 5, 0]], [9, 6], {5}, "request 0 writes into block 5 while request 1 names it"),
        ([[7, 2, 5], [7, 2, 0]], [9, 8], {2}, "request 1's token number 8 fills block 2: a write into a shared block"),
        ([[7, 2, 5], [2, 3, 0]], [9, 7], {2}, "block 2 holds positions 4 to 7 of one and 0 to 3 of the other"),
        ([[7, 2, 7, 5], [4, 0, 0, 0]], [13, 1], {7}, "one table names block 7 twice: positions 0 to 3 and 8 to 11"),
        ([[7, 0, 5], [4, 3, 0]], [9, 5], {0}, "the null block belongs to nobody and is in use here"),
        ([[6, 7, 5], [4, 9, 7]], [9, 8], set(), "request 1 has 8 tokens: its third entry is left over and never read"),
        ([[6, 7, 5], [6, 7, 5], [8, 7, 0]], [10, 12, 5], {5, 7}, "blocks 5 and 7 are written while shared"),
    ]
    for tables, lens, expected, why in cases:
        given = set(answer(tables, lens, 4))
        assert given == expected, (
            f"block_tables={tables}, seq_lens={lens}, block_size 4: expected {sorted(expected) or 'no block'}, "
            f"got {sorted(given) or 'no block'} ({why})"
        )


audit = Exercise(
    check=_check_audit,
    reference=illegal_blocks,
    wrong={
        "every shared block is reported": _no_sharing_at_all,
        "entries past the last block are believed": _padding_counts,
        "a block that is filled in this step is taken for read-only": _only_partial_blocks_are_written,
        "logical positions are not compared": _positions_ignored,
        "the null block is allowed": _null_block_forgotten,
    },
)
