"""A frame: the state of every block, every page table and the free queue at one moment (chapter 03).

:mod:`pagedattn_lab.recorder` records them, :mod:`pagedattn_lab.viz.board` draws them. Two things in a frame depend on
the frames before it in the same recording:

* **Looks.** The n-th name that a recording shows, counted from 0, has colour n, and a mark that no name before it has.
  It keeps both to the end: no other request gets them, and a name that is used again gets its own ones back.
* **Contents.** Of each block that is free (``ref_cnt`` 0) and has a hash, a frame keeps what it held when a table last
  named it: of the first such table, its name and look, the logical block, and the tokens in it. A block that has
  neither an owner nor a hash in a frame holds nothing from then on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable


@dataclass(frozen=True)
class TableState:
    """One page table as it was.

    Attributes:
        name: of the request that it belongs to.
        colour: index of the name's colour; no two names of a recording have the same one.
        mark: a letter or a number that stands for the name in small places; no two names share it either.
        num_tokens: length of the sequence.
        block_ids: physical block of each logical block.
    """

    name: str
    colour: int
    mark: str
    num_tokens: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What a free block still holds: the tokens of a table that named it before.

    Attributes:
        name, colour, mark: of that table, as in :class:`TableState`.
        logical: the logical block that it was.
        num_tokens: how many of its slots hold a token.
    """

    name: str
    colour: int
    mark: str
    logical: int
    num_tokens: int


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
        contents: what each free block that has a hash held when a table last named it.
    """

    kind: str
    sentence: str
    changed: tuple[int, ...]
    block_size: int
    tables: tuple[TableState, ...]
    ref_cnt: tuple[int, ...]
    hashes: Mapping[int, str] = field(repr=False)
    free: tuple[int, ...] = field(repr=False)
    contents: Mapping[int, Contents] = field(default_factory=dict, repr=False)

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
                if block_id == 0:
                    continue  # the null block: it holds nothing
                owners[block_id].append((table.name, logical))
                filled[block_id] = max(filled[block_id], self.tokens_in(table, logical))
        return [
            BlockState(block_id, tuple(owners[block_id]), count, filled[block_id], self.hashes.get(block_id))
            for block_id, count in enumerate(self.ref_cnt)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The frame as JSON values; what :attr:`blocks` works out from the rest is left out."""
        tables = [vars(table) | {"block_ids": list(table.block_ids)} for table in self.tables]
        return {
            "kind": self.kind,
            "sentence": self.sentence,
            "changed": list(self.changed),
            "tables": tables,
            "ref_cnt": list(self.ref_cnt),
            "hashes": {str(block_id): text for block_id, text in self.hashes.items()},
            "free": list(self.free),
            "contents": {str(block_id): dict(vars(held)) for block_id, held in self.contents.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], block_size: int) -> Frame:
        """Make a frame from what :meth:`to_dict` gave."""
        tables = tuple(TableState(**table | {"block_ids": tuple(table["block_ids"])}) for table in data["tables"])
        hashes = {int(block_id): text for block_id, text in data["hashes"].items()}
        contents = {int(block_id): Contents(**held) for block_id, held in data.get("contents", {}).items()}
        lists = {name: tuple(data[name]) for name in ("changed", "ref_cnt", "free")}
        return cls(
            data["kind"],
            data["sentence"],
            block_size=block_size,
            tables=tables,
            hashes=hashes,
            contents=contents,  # recordings that were saved before there were any have none
            **lists,
        )


class Look(NamedTuple):
    """How a name is drawn all through a recording."""

    colour: int
    mark: str


class Film:
    """What one frame of a recording needs of those before it: how each name looks, and what each block last held.

    Example:
        >>> film = Film()
        >>> [tuple(film.look(name)) for name in ("Ada", "Ann", "request 12", "Ada")]
        [(0, 'A'), (1, 'A2'), (2, '12'), (0, 'A')]
    """

    def __init__(self) -> None:
        self._looks: dict[str, Look] = {}
        self._held: dict[int, tuple[TableState, int]] = {}  # by block number: the table, and its logical block

    def look(self, name: str) -> Look:
        """How a name is drawn: as before, or with the next colour and the shortest mark that no other name has."""
        if name not in self._looks:
            self._looks[name] = Look(len(self._looks), mark_for(name, [look.mark for look in self._looks.values()]))
        return self._looks[name]

    def take(
        self,
        pool: BlockPool,
        tables: Mapping[str, BlockTable],
        kind: str,
        sentence: str,
        changed: tuple[int, ...] = (),
    ) -> Frame:
        """Take the present state of a pool and of the tables that are shown, by their names. O(blocks)."""
        states = tuple(
            TableState(name, *self.look(name), table.num_tokens, tuple(table.block_ids))
            for name, table in tables.items()
        )
        hashes = short_hashes(pool)
        frame = Frame(
            kind,
            sentence,
            changed,
            pool.block_size,
            states,
            tuple(block.ref_cnt for block in pool.blocks),
            hashes,
            tuple(block.block_id for block in pool.free_block_queue.get_all_free_blocks()),
        )
        named: dict[int, tuple[TableState, int]] = {}
        for table in states:
            for logical, block_id in enumerate(table.block_ids):
                named.setdefault(block_id, (table, logical))
        self._held = {block_id: held for block_id, held in self._held.items() if block_id in hashes} | named
        contents = {}
        for block_id in hashes:
            if frame.ref_cnt[block_id] == 0 and block_id in self._held:
                table, logical = self._held[block_id]
                num_tokens = frame.tokens_in(table, logical)
                contents[block_id] = Contents(table.name, table.colour, table.mark, logical, num_tokens)
        return replace(frame, contents=contents) if contents else frame


def mark_for(name: str, marks: Collection[str]) -> str:
    """Choose the shortest mark for a name that is not one of ``marks``: its last digits, or its first letter.

    Example:
        >>> mark_for("Ann", ["A", "B"]), mark_for("request 12", []), mark_for("Bo 2", ["1", "2"])
        ('A2', '12', 'B2')
    """
    number = re.search(r"\d{1,3}$", name)
    first = name[:1]
    shortest = [number[0], first + number[0]] if number else [first]
    return next(m for m in (*shortest, *(f"{first}{i}" for i in range(2, len(marks) + 3))) if m not in marks)


def snapshot(pool: BlockPool, tables: Mapping[str, BlockTable], sentence: str = "") -> Frame:
    """Take the present state of a pool and of tables on it, by the names of their requests.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> table = BlockTable(pool)
        >>> _ = table.append_tokens(5)
        >>> snapshot(pool, {"Ada": table}).blocks[2]
        BlockState(block_id=2, owners=(('Ada', 1),), ref_cnt=1, num_tokens=1, block_hash=None)
    """
    return Film().take(pool, tables, "note", sentence)


def short_hashes(pool: BlockPool) -> dict[int, str]:
    """The first letters of the hash of every block that has one, by block number."""
    return {block.block_id: _short(block.block_hash) for block in pool.blocks if block.block_hash is not None}


def _short(block_hash: Hashable) -> str:
    """The first letters of a hash, whatever its type."""
    return (block_hash.hex() if isinstance(block_hash, bytes) else str(block_hash))[:8]
