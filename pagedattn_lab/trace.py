"""What happened to a pool, event by event, as frames that can be stepped through, drawn and saved (chapter 03).

Pool and tables report to an optional observer (:class:`pagedattn_lab.block_pool.Observer`). A :class:`Trace` is one
that keeps, for each event, the state of every block and table after it and a sentence that says what happened.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable

FORMAT = "pagedattn_lab.trace/1"
# A table's operation is told in one frame with what the pool did for it: kind -> kinds of the pool's own reports.
PARTS = {"append": ("allocate", "evict"), "free": ("free",)}


@dataclass(frozen=True)
class TableState:
    """One page table as it was.

    Attributes:
        name: of the request that it belongs to.
        colour: index into a palette; no two tables of a frame have the same one.
        num_tokens: length of the sequence.
        block_ids: physical block of each logical block.
    """

    name: str
    colour: int
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

    @property
    def blocks(self) -> list[BlockState]:
        """Every block, in the order of block numbers."""
        owners: list[list[tuple[str, int]]] = [[] for _ in self.ref_cnt]
        filled = [0] * len(self.ref_cnt)
        for table in self.tables:
            for logical, block_id in enumerate(table.block_ids):
                owners[block_id].append((table.name, logical))
                tokens = min(self.block_size, table.num_tokens - logical * self.block_size)
                filled[block_id] = max(filled[block_id], tokens)
        return [
            BlockState(block_id, tuple(owners[block_id]), count, filled[block_id], self.hashes.get(block_id))
            for block_id, count in enumerate(self.ref_cnt)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The frame as JSON values; what :attr:`blocks` works out from the rest is left out."""
        tables = [
            {"name": t.name, "colour": t.colour, "num_tokens": t.num_tokens, "block_ids": list(t.block_ids)}
            for t in self.tables
        ]
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
        tables = tuple(
            TableState(t["name"], t["colour"], t["num_tokens"], tuple(t["block_ids"])) for t in data["tables"]
        )
        hashes = {int(block_id): text for block_id, text in data["hashes"].items()}
        lists = {name: tuple(data[name]) for name in ("changed", "ref_cnt", "free")}
        return cls(data["kind"], data["sentence"], block_size=block_size, tables=tables, hashes=hashes, **lists)


class Trace:
    """Records what happens to a pool and to the tables on it, from now on.

    Every event makes one frame; what the pool does on behalf of a table belongs to the table's event.

    Args:
        pool: what to watch. A pool has one observer at most.
        tables: tables on it, by the names of their requests; more can be added later.

    Attributes:
        frames: the state at the start, then after each event.

    Raises:
        ValueError: the pool is already observed, or a table takes its blocks from another one.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> ada = BlockTable(pool)
        >>> trace = Trace(pool, {"Ada": ada})
        >>> _ = ada.append_tokens(5)
        >>> ada.release()
        >>> for frame in trace.frames:
        ...     print(frame.sentence, "Free:", *frame.free)
        3 usable blocks of 4 tokens, all of them free. Free: 1 2 3
        Ada appends 5 tokens and takes blocks 1 and 2 from the head of the free queue. Free: 3
        Ada gives back 2 blocks, last first: blocks 2 and 1 return to the head of the free queue. Free: 2 1 3
    """

    def __init__(self, pool: BlockPool, tables: Mapping[str, BlockTable] | None = None) -> None:
        if pool.observer is not None:
            raise ValueError(f"this pool is already observed by {pool.observer!r}: call its stop() first")
        self.pool = pool
        self._names: dict[int, tuple[BlockTable, str]] = {}  # by identity; the table is kept, so that it stays its own
        self._shown: dict[str, tuple[BlockTable, int]] = {}  # request -> its table and colour, while it is drawn
        self._owners: list[BlockTable | None] = []  # the table that reported each frame
        for name, table in (tables or {}).items():
            self.add(name, table)
        usable, free = pool.num_blocks - 1, pool.num_free_blocks
        state = "all of them free" if free == usable else f"{free} of them free"
        self.frames = [self._frame("start", f"{usable} usable blocks of {pool.block_size} tokens, {state}.", ())]
        self._owners.append(None)
        pool.observer = self

    def add(self, name: str, table: BlockTable) -> BlockTable:
        """Give a table a name, and the table back. A table without one is called "request 1" and so on.

        Raises:
            ValueError: a table of another pool, or a name that another table has.
        """
        if table.pool is not self.pool:
            raise ValueError(f"the table of {name} takes its blocks from another pool than this trace watches")
        if any(other == name and known is not table for known, other in self._names.values()):
            raise ValueError(f"another table is called {name!r} already: choose another name")
        self._names[id(table)] = (table, name)
        self._show(table)
        return table

    def note(self, sentence: str, blocks: Iterable[int] = ()) -> None:
        """Add a frame in which nothing changes: a sentence, and the numbers of blocks to point at."""
        self._keep(self._frame("note", sentence, tuple(blocks)), None)

    def stop(self) -> None:
        """Stop watching; the frames stay."""
        if self.pool.observer is self:
            self.pool.observer = None

    def __call__(
        self, kind: str, blocks: Sequence[KVCacheBlock], table: BlockTable | None = None, num_tokens: int = 0
    ) -> None:
        """Take one event down: the side of the observer, called by the pool and its tables."""
        evicted: tuple[int, ...] = ()
        block_ids = tuple(block.block_id for block in blocks)
        if table is None:
            sentence = _POOL_SENTENCES[kind](blocks)
        else:
            while self._belongs(self.frames[-1], self._owners[-1], kind, block_ids):
                part = self.frames.pop()
                self._owners.pop()
                evicted = part.changed if part.kind == "evict" else evicted
            name = self._show(table)
            if kind == "append":
                sentence = _append_sentence(name, table, num_tokens, block_ids, evicted)
                first = (table.num_tokens - num_tokens) // self.pool.block_size
                block_ids = tuple(table.block_ids[first:])
            else:
                sentence = _release_sentence(name, blocks)
        self._keep(self._frame(kind, sentence, block_ids), table)
        if table is not None and not table.blocks:
            self._shown.pop(name)

    def to_dict(self) -> dict[str, Any]:
        """The whole trace as JSON values, in the form that :meth:`save` writes."""
        return {
            "format": FORMAT,
            "num_blocks": self.pool.num_blocks,
            "block_size": self.pool.block_size,
            "frames": [frame.to_dict() for frame in self.frames],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the trace as JSON; :func:`load` reads it."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    def _belongs(self, last: Frame, owner: BlockTable | None, kind: str, block_ids: tuple[int, ...]) -> bool:
        """Tell whether the last frame is the pool's share in an event of that kind over these blocks."""
        return owner is None and last.kind in PARTS[kind] and bool(block_ids) and set(last.changed) <= set(block_ids)

    def _keep(self, frame: Frame, owner: BlockTable | None) -> None:
        self.frames.append(frame)
        self._owners.append(owner)

    def _show(self, table: BlockTable) -> str:
        """Draw a table from the next frame on; return its name."""
        if id(table) not in self._names:
            taken = {name for _, name in self._names.values()}
            number = next(i for i in range(1, len(taken) + 2) if f"request {i}" not in taken)
            self._names[id(table)] = (table, f"request {number}")
        name = self._names[id(table)][1]
        if name not in self._shown:
            used = {colour for _, colour in self._shown.values()}
            self._shown[name] = (table, next(i for i in range(len(used) + 1) if i not in used))
        return name

    def _frame(self, kind: str, sentence: str, changed: tuple[int, ...]) -> Frame:
        return _snapshot(self.pool, self._shown, kind, sentence, changed)


def snapshot(pool: BlockPool, tables: Mapping[str, BlockTable], sentence: str = "") -> Frame:
    """Take the present state of a pool and of tables on it, by the names of their requests.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> table = BlockTable(pool)
        >>> _ = table.append_tokens(5)
        >>> snapshot(pool, {"Ada": table}).blocks[2]
        BlockState(block_id=2, owners=(('Ada', 1),), ref_cnt=1, num_tokens=1, block_hash=None)
    """
    shown = {name: (table, colour) for colour, (name, table) in enumerate(tables.items())}
    return _snapshot(pool, shown, "note", sentence, ())


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a saved trace; the player shows it as it shows a :class:`Trace`.

    Raises:
        ValueError: the file holds no trace in this format.

    Example:
        >>> import tempfile, os
        >>> trace = Trace(BlockPool(num_blocks=3, block_size=4))
        >>> path = os.path.join(tempfile.mkdtemp(), "trace.json")
        >>> trace.save(path)
        >>> load(path) == trace.to_dict()
        True
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): save a trace with Trace.save") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} holds {found!r}, not {FORMAT!r}: save it with this version's Trace.save")
    return data


def _snapshot(
    pool: BlockPool,
    shown: Mapping[str, tuple[BlockTable, int]],
    kind: str,
    sentence: str,
    changed: tuple[int, ...],
) -> Frame:
    hashes = {b.block_id: _short(b.block_hash) for b in pool.blocks if b.block_hash is not None}
    return Frame(
        kind,
        sentence,
        changed,
        pool.block_size,
        tuple(
            TableState(name, colour, table.num_tokens, tuple(table.block_ids))
            for name, (table, colour) in shown.items()
        ),
        tuple(block.ref_cnt for block in pool.blocks),
        hashes,
        tuple(block.block_id for block in pool.free_block_queue.get_all_free_blocks()),
    )


def _short(block_hash: Hashable) -> str:
    """The first letters of a hash, whatever its type."""
    return (block_hash.hex() if isinstance(block_hash, bytes) else str(block_hash))[:8]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _list(block_ids: Sequence[int]) -> str:
    """ "block 3", "blocks 3 and 5", "blocks 3, 5 and 6"; long lists keep their ends."""
    numbers = [str(block_id) for block_id in block_ids]
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    if len(numbers) > 8:
        return f"blocks {', '.join(numbers[:3])} … {numbers[-1]} ({len(numbers)} of them)"
    return f"blocks {', '.join(numbers[:-1])} and {numbers[-1]}"


def _allocated(blocks: Sequence[KVCacheBlock]) -> str:
    ids = _list([block.block_id for block in blocks])
    return f"The pool hands out {ids} from the head of the free queue; no table names them yet."


def _evicted(blocks: Sequence[KVCacheBlock]) -> str:
    ids = _list([block.block_id for block in blocks])
    return f"The pool forgets the cached contents of {ids}, to hand them out again."


def _touched(blocks: Sequence[KVCacheBlock]) -> str:
    parts = [
        f"block {block.block_id} leaves the free queue with its contents"
        if block.ref_cnt == 1
        else f"block {block.block_id} now has {block.ref_cnt} owners"
        for block in blocks
    ]
    return f"Touched: {', '.join(parts)}."


def _freed(blocks: Sequence[KVCacheBlock]) -> str:
    return f"One owner fewer: {_after_free(blocks)}."


def _after_free(blocks: Sequence[KVCacheBlock]) -> str:
    """Say where blocks went that lost an owner; each is named once."""
    once = list(dict.fromkeys(blocks))
    back = [block.block_id for block in once if block.ref_cnt == 0 and block.block_hash is None]
    cached = [block.block_id for block in once if block.ref_cnt == 0 and block.block_hash is not None]
    kept = [f"block {block.block_id} keeps {_count(block.ref_cnt, 'owner')}" for block in once if block.ref_cnt]
    parts = []
    if back:
        parts.append(f"{_list(back)} {'returns' if len(back) == 1 else 'return'} to the head of the free queue")
    if cached:
        verb = "joins" if len(cached) == 1 else "join"
        parts.append(f"{_list(cached)}, still cached, {verb} the queue's tail")
    return "; ".join(parts + kept)


_POOL_SENTENCES = {"allocate": _allocated, "evict": _evicted, "touch": _touched, "free": _freed}


def _append_sentence(name: str, table: BlockTable, num_tokens: int, new: Sequence[int], evicted: Sequence[int]) -> str:
    start = f"{name} appends {_count(num_tokens, 'token')}"
    if not new:
        where = "it fits" if num_tokens == 1 else "they fit"
        return f"{start}: {where} in block {table.block_ids[-1]}."
    lost = f", and the pool forgets what {_list(evicted)} held" if evicted else ""
    return f"{start} and takes {_list(new)} from the head of the free queue{lost}."


def _release_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    return f"{name} gives back {_count(len(blocks), 'block')}, last first: {_after_free(blocks)}."
