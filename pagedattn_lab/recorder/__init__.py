"""What happened to a pool, event by event, as frames that can be stepped through, drawn and saved (chapter 03).

Pool and tables report to an optional observer (:class:`pagedattn_lab.block_pool.Observer`). A :class:`Recorder` is one
that keeps, for each event, the state of every block and table after it and a sentence that says what happened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder.frame import Frame, Shown, count, show, take

FORMAT = "pagedattn_lab.recorder/1"
MOST_NAMED = 8


class Recorder:
    """Records what happens to a pool and to the tables on it, from now on.

    Every event makes one frame; what the pool does on behalf of a table belongs to the table's event. Each frame holds
    the whole state, so an event costs time and memory in proportion to the number of blocks: this is for watching,
    not for servers. As a context manager, a trace stops at the end of the block.

    Args:
        pool: what to watch. A pool has one observer at most.
        tables: tables on it, by the names of their requests; more can be added later.

    Attributes:
        frames: the state at the start, then after each event.

    Raises:
        ValueError: the pool is already observed, or a table cannot be added.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> ada = BlockTable(pool)
        >>> trace = Recorder(pool, {"Ada": ada})
        >>> _ = ada.append_tokens(5)
        >>> ada.release()
        >>> for frame in trace.frames:
        ...     print(frame.sentence, "Free:", *frame.free)
        At the start, 3 of 3 usable blocks are free. Free: 1 2 3
        Ada appends 5 tokens and takes blocks 1 and 2 from the head of the free queue. Free: 3
        Ada gives back 2 blocks, last first: blocks 2 and 1 return to the head of the free queue. Free: 2 1 3
    """

    def __init__(self, pool: BlockPool, tables: Mapping[str, BlockTable] | None = None) -> None:
        if pool.observer is not None:
            raise ValueError(f"this pool is already observed by {pool.observer!r}: call its stop() first")
        self.pool = pool
        self._names: dict[int, tuple[BlockTable, str]] = {}  # by identity; the table is kept, so that it stays its own
        self._shown: dict[str, Shown] = {}
        for name, table in (tables or {}).items():
            self.add(name, table)
        state = f"At the start, {pool.num_free_blocks} of {pool.num_blocks - 1} usable blocks are free."
        self.frames = [take(pool, self._shown, "start", state)]
        self._unclaimed: list[str] = []  # kinds of the last frames that may turn out to be part of a table's event
        pool.observer = self

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, name: str, table: BlockTable) -> BlockTable:
        """Give a table a name, and the table back.

        One without is called by its own name, or "request 1" and so on; by its own name and a number while another
        table has that name.

        Raises:
            ValueError: a table of another pool, one that has a name, or a name that is empty or another table's. A name
                may be given again once its table is empty.
        """
        known = self._names.get(id(table), (table, name))[1]
        if table.pool is not self.pool:
            raise ValueError(f"the table of {name} takes its blocks from another pool than this trace watches")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r} is no name for a request: give a text")
        if known != name:
            raise ValueError(f"this table is called {known!r} already: it cannot be {name!r} too")
        for other, other_name in list(self._names.values()):
            if other_name == name and other is not table:
                if other.blocks:
                    raise ValueError(f"another table is called {name!r} already: choose another name")
                del self._names[id(other)]
                self._shown.pop(name, None)
        self._names[id(table)] = (table, name)
        if name not in self._shown:
            show(self._shown, name, table)
        return table

    def note(self, sentence: str, blocks: Iterable[int] = ()) -> None:
        """Add a frame in which nothing changes: a sentence, and the numbers of blocks to point at.

        Raises:
            ValueError: a block that the pool does not have.
        """
        numbers = tuple(blocks)
        for number in numbers:
            if not 0 <= number < self.pool.num_blocks:
                raise ValueError(f"there is no block {number} to point at: blocks go up to {self.pool.num_blocks - 1}")
        self._keep(take(self.pool, self._shown, "note", sentence, numbers))

    def stop(self) -> None:
        """Stop watching; the frames stay."""
        if self.pool.observer is self:
            self.pool.observer = None

    def __call__(
        self, kind: str, blocks: Sequence[KVCacheBlock], table: BlockTable | None = None, num_tokens: int = 0
    ) -> None:
        """Take one event down: the side of the observer, called by the pool and its tables."""
        if table is None:
            sentence = _POOL_SENTENCES[kind](blocks)
            self._keep(take(self.pool, self._shown, kind, sentence, _ids(blocks)), unclaimed=kind)
            return
        name, ids = self._name(table), _ids(blocks)
        changed = ids
        if kind == "append":
            evicted = self._claim("allocate", ids, before="evict")
            first = (table.num_tokens - num_tokens) // self.pool.block_size
            last = (table.num_tokens - 1) // self.pool.block_size
            written = table.block_ids[first : last + 1]
            sentence = _append_sentence(name, num_tokens, written, ids, evicted)
            changed = tuple(dict.fromkeys([*written, *ids]))
        elif kind == "copy-on-write":
            self._claim("free", ids[:1])
            evicted = self._claim("allocate", ids[1:], before="evict")
            sentence = _copy_sentence(name, blocks, evicted)
        elif kind in ("fork", "hit"):
            self._claim("touch", ids)
            sentence = _fork_sentence(name, blocks) if kind == "fork" else _hit_sentence(name, blocks, num_tokens)
        else:
            self._claim("free", ids)
            sentence = _release_sentence(name, blocks)
        self._keep(take(self.pool, self._shown, kind, sentence, changed))
        if not table.blocks:
            del self._shown[name]

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

    def _keep(self, frame: Frame, unclaimed: str | None = None) -> None:
        self.frames.append(frame)
        self._unclaimed = [*self._unclaimed[-2:], unclaimed] if unclaimed else []

    def _claim(self, kind: str, block_ids: tuple[int, ...], before: str | None = None) -> tuple[int, ...]:
        """Take the pool's share of a table's event back: its report over the same blocks, and one that led up to it.

        Returns:
            The blocks of the latter.
        """
        if self._unclaimed[-1:] != [kind] or self.frames[-1].changed != block_ids:
            return ()
        self.frames.pop()
        self._unclaimed.pop()
        if before is None or self._unclaimed[-1:] != [before] or not set(self.frames[-1].changed) <= set(block_ids):
            return ()
        self._unclaimed.pop()
        return self.frames.pop().changed

    def _name(self, table: BlockTable) -> str:
        """Return a table's name, and draw the table from now on. It must not fail: the event has happened."""
        own = table.name if isinstance(table.name, str) and table.name.strip() else None
        if id(table) in self._names:
            name = self._names[id(table)][1]
        elif own is not None and own not in {name for other, name in self._names.values() if other.blocks}:
            name = own
        else:
            taken = {name for _, name in self._names.values()}
            numbers = range(1, len(taken) + 2) if own is None else range(2, len(taken) + 3)
            name = next(name for i in numbers if (name := f"{own or 'request'} {i}") not in taken)
        self.add(name, table)
        return name


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a saved trace; the player shows it as it shows a :class:`Recorder`.

    Raises:
        ValueError: the file holds no trace in this format.

    Example:
        >>> import tempfile, os
        >>> trace = Recorder(BlockPool(num_blocks=3, block_size=4))
        >>> path = os.path.join(tempfile.mkdtemp(), "trace.json")
        >>> trace.save(path)
        >>> load(path) == trace.to_dict()
        True
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): save a trace with Recorder.save") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} holds {found!r}, not {FORMAT!r}: save it with this version's Recorder.save")
    return data


def _ids(blocks: Sequence[KVCacheBlock]) -> tuple[int, ...]:
    return tuple(block.block_id for block in blocks)


def _list(block_ids: Sequence[int]) -> str:
    """Name blocks: "block 3", "blocks 3 and 5"; long lists keep their ends."""
    numbers = [str(block_id) for block_id in block_ids]
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    if len(numbers) > MOST_NAMED:
        return f"blocks {', '.join(numbers[:3])} … {numbers[-1]} ({len(numbers)} of them)"
    return f"blocks {', '.join(numbers[:-1])} and {numbers[-1]}"


def _by_owners(blocks: Iterable[KVCacheBlock], verb: str) -> list[str]:
    """Say which blocks have how many owners now: "blocks 1 and 2 keep 1 owner"."""
    groups: dict[int, list[int]] = {}
    for block in blocks:
        groups.setdefault(block.ref_cnt, []).append(block.block_id)
    one = f"{verb}s" if verb == "keep" else "has"
    return [f"{_list(ids)} {one if len(ids) == 1 else verb} {count(owners, 'owner')}" for owners, ids in groups.items()]


def _allocated(blocks: Sequence[KVCacheBlock]) -> str:
    return f"The pool hands out {_list(_ids(blocks))} from the head of the free queue; no table names them yet."


def _evicted(blocks: Sequence[KVCacheBlock]) -> str:
    return f"The pool forgets the cached contents of {_list(_ids(blocks))}, to hand them out again."


def _touched(blocks: Sequence[KVCacheBlock]) -> str:
    once = list(dict.fromkeys(blocks))
    fetched = [block.block_id for block in once if block.ref_cnt == 1]
    parts = [f"{_list(fetched)} taken out of the free queue, contents kept"] if fetched else []
    return f"Touched: {'; '.join(parts + _by_owners((b for b in once if b.ref_cnt > 1), 'have'))}."


def _freed(blocks: Sequence[KVCacheBlock]) -> str:
    return f"One owner fewer: {_after_free(blocks)}."


def _after_free(blocks: Sequence[KVCacheBlock]) -> str:
    """Say where blocks went that lost an owner; each is named once."""
    once = list(dict.fromkeys(blocks))
    back = [block.block_id for block in once if block.ref_cnt == 0 and block.block_hash is None]
    cached = [block.block_id for block in once if block.ref_cnt == 0 and block.block_hash is not None]
    parts = []
    if back:
        parts.append(f"{_list(back)} {'returns' if len(back) == 1 else 'return'} to the head of the free queue")
    if cached:
        parts.append(f"{_list(cached)}, still cached, {'joins' if len(cached) == 1 else 'join'} the queue's tail")
    return "; ".join(parts + _by_owners((block for block in once if block.ref_cnt), "keep"))


_POOL_SENTENCES = {"allocate": _allocated, "evict": _evicted, "touch": _touched, "free": _freed}


def _append_sentence(
    name: str, num_tokens: int, written: Sequence[int], new: Sequence[int], evicted: Sequence[int]
) -> str:
    start = f"{name} appends {count(num_tokens, 'token')}"
    if not new:
        return f"{start}: {'it fits' if num_tokens == 1 else 'they fit'} in {_list(written)}."
    lost = f", and the pool forgets what {_list(evicted)} held" if evicted else ""
    return f"{start} and takes {_list(new)} from the head of the free queue{lost}."


def _copy_sentence(name: str, blocks: Sequence[KVCacheBlock], evicted: Sequence[int]) -> str:
    source, copy = blocks
    lost = ", whose old contents the pool forgets," if evicted else ""
    return (
        f"{name} must not write to {_list(_ids([source]))}, which others read too: it copies it to "
        f"{_list(_ids([copy]))}{lost} and lets go; {_by_owners([source], 'keep')[0]}."
    )


def _fork_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    return f"{name} is forked off and copies nothing: {'; '.join(_by_owners(blocks, 'have'))}."


def _hit_sentence(name: str, blocks: Sequence[KVCacheBlock], num_tokens: int) -> str:
    fetched = [block.block_id for block in blocks if block.ref_cnt == 1]
    parts = [f"{_list(fetched)} {'leaves' if len(fetched) == 1 else 'leave'} the free queue"] if fetched else []
    parts += _by_owners((block for block in blocks if block.ref_cnt > 1), "have")
    return f"{name} finds {count(num_tokens, 'token')} in the cache: {'; '.join(parts)}."


def _release_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    return f"{name} gives back {count(len(blocks), 'block')}, last first: {_after_free(blocks)}."
