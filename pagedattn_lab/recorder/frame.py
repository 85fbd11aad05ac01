"""A frame: the state of every block, every page table and the free queue at one moment (chapter 03).

:mod:`pagedattn_lab.recorder` records them, :mod:`pagedattn_lab.viz.board` draws them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable


@dataclass(frozen=True)
class TableState:
    """One page table as it was.

    Attributes:
        name: of the request that it belongs to.
        colour: index into a palette; no two tables of a frame have the same one.
        mark: a letter or a number that stands for the name in small places; no two tables of a frame share it either.
        num_tokens: length of the sequence.
        block_ids: physical block of each logical block.
    """

    name: str
    colour: int
    mark: str
    num_tokens: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True)
class BlockState:
    """One physical block as it was.

    Attributes:
        block_id: its number.
        owners: ``(name of the request, logical block)`` for every table entry that names it.
        ref_cnt: its reference count. It equals the number of owners unless somebody broke the rules.
        num_tokens: how many of its slots hold a token of an owner.
        block_hash: the first letters of its hash, or ``None``.
    """

    block_id: int
    owners: tuple[tuple[str, int], ...]
    ref_cnt: int
    num_tokens: int
    block_hash: str | None


@dataclass(frozen=True)
class Frame:
    """The state of all memory after one event.

    Attributes:
        kind: what happened: an observer's event, or ``"start"`` or ``"note"``, when nothing did.
        sentence: the same for people.
        changed: the blocks that it happened to.
        block_size: tokens per block.
        tables: page tables that hold something or have just let go of it.
        ref_cnt: reference count of every block, by block number.
        hashes: the first letters of the hash of every block that has one.
        free: the free queue, next to be handed out first.
    """

    kind: str
    sentence: str
    changed: tuple[int, ...]
    block_size: int
    tables: tuple[TableState, ...]
    ref_cnt: tuple[int, ...]
    hashes: Mapping[int, str] = field(repr=False)
    free: tuple[int, ...] = field(repr=False)

    def tokens_in(self, table: TableState, logical: int) -> int:
        """How many tokens of a table lie in one of its logical blocks: 0 in a block that was handed out in advance."""
        return max(0, min(self.block_size, table.num_tokens - logical * self.block_size))

    @property
    def blocks(self) -> list[BlockState]:
        """Every block, in the order of block numbers."""
        owners: list[list[tuple[str, int]]] = [[] for _ in self.ref_cnt]
        filled = [0] * len(self.ref_cnt)
        for table in self.tables:
            for logical, block_id in enumerate(table.block_ids):
                owners[block_id].append((table.name, logical))
                filled[block_id] = max(filled[block_id], self.tokens_in(table, logical))
        return [
            BlockState(block_id, tuple(owners[block_id]), count, filled[block_id], self.hashes.get(block_id))
            for block_id, count in enumerate(self.ref_cnt)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The frame as JSON values; what :attr:`blocks` works out from the rest is left out."""
        tables = [asdict(table) | {"block_ids": list(table.block_ids)} for table in self.tables]
        return {
            "kind": self.kind,
            "sentence": self.sentence,
            "changed": list(self.changed),
            "tables": tables,
            "ref_cnt": list(self.ref_cnt),
            "hashes": {str(block_id): text for block_id, text in self.hashes.items()},
            "free": list(self.free),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], block_size: int) -> Frame:
        """Make a frame from what :meth:`to_dict` gave."""
        tables = tuple(TableState(**table | {"block_ids": tuple(table["block_ids"])}) for table in data["tables"])
        hashes = {int(block_id): text for block_id, text in data["hashes"].items()}
        lists = {name: tuple(data[name]) for name in ("changed", "ref_cnt", "free")}
        return cls(data["kind"], data["sentence"], block_size=block_size, tables=tables, hashes=hashes, **lists)


class ShownTable(NamedTuple):
    """A table that is drawn, and how."""

    table: BlockTable
    colour: int
    mark: str


def show_table(shown: dict[str, ShownTable], name: str, table: BlockTable) -> None:
    """Add a table to those that are drawn, with the first colour and the shortest mark that none of them has.

    Example:
        >>> shown, pool = {}, BlockPool(num_blocks=4, block_size=4)
        >>> for name in ("Ada", "Ann", "request 12"):
        ...     show_table(shown, name, BlockTable(pool))
        >>> [(row.colour, row.mark) for row in shown.values()]
        [(0, 'A'), (1, 'A2'), (2, '12')]
    """
    colours = {row.colour for row in shown.values()}
    mark = mark_for(name, [row.mark for row in shown.values()])
    shown[name] = ShownTable(table, next(i for i in range(len(shown) + 1) if i not in colours), mark)


def mark_for(name: str, marks: Collection[str]) -> str:
    """Choose the shortest mark for a name that is not one of ``marks``: its last digits, or its first letter.

    Example:
        >>> mark_for("Ann", ["A", "B"]), mark_for("request 12", [])
        ('A2', '12')
    """
    number = re.search(r"\d{1,3}$", name)
    mark = number[0] if number else name[:1]
    return next(m for m in (mark, *(f"{mark[:1]}{i}" for i in range(2, len(marks) + 3))) if m not in marks)


def take_frame(
    pool: BlockPool, shown: Mapping[str, ShownTable], kind: str, sentence: str, changed: tuple[int, ...] = ()
) -> Frame:
    """Take the present state of a pool and of the tables that are shown. O(blocks)."""
    tables = (
        TableState(name, row.colour, row.mark, row.table.num_tokens, tuple(row.table.block_ids))
        for name, row in shown.items()
    )
    return Frame(
        kind,
        sentence,
        changed,
        pool.block_size,
        tuple(tables),
        tuple(block.ref_cnt for block in pool.blocks),
        {block.block_id: _short(block.block_hash) for block in pool.blocks if block.block_hash is not None},
        tuple(block.block_id for block in pool.free_block_queue.get_all_free_blocks()),
    )


def snapshot(pool: BlockPool, tables: Mapping[str, BlockTable], sentence: str = "") -> Frame:
    """Take the present state of a pool and of tables on it, by the names of their requests.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> table = BlockTable(pool)
        >>> _ = table.append_tokens(5)
        >>> snapshot(pool, {"Ada": table}).blocks[2]
        BlockState(block_id=2, owners=(('Ada', 1),), ref_cnt=1, num_tokens=1, block_hash=None)
    """
    shown: dict[str, ShownTable] = {}
    for name, table in tables.items():
        show_table(shown, name, table)
    return take_frame(pool, shown, "note", sentence)


def _short(block_hash: Hashable) -> str:
    """The first letters of a hash, whatever its type."""
    return (block_hash.hex() if isinstance(block_hash, bytes) else str(block_hash))[:8]
