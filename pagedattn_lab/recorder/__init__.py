"""What happens to a pool, event by event, as frames that can be stepped through, drawn and saved (chapter 03).

Pool and tables tell their observers what they do (:class:`pagedattn_lab.block_pool.Observer`). A :class:`Recorder` is
one. It makes of every event one frame: the state of every block and table after it, and a sentence that says what
happened. "Ada appends 5 tokens" is one event, though the pool takes two steps for it::

    ada.append_tokens(5)          told to the recorder                  what the recorder does
    ---------------------         ------------------------------        ------------------------------------
    the table begins              begin(ada)                            opens a bracket
      the pool hands out          pool_event("evict", [2])              keeps inside it: block 2 is evicted
      blocks 1 and 2              pool_event("allocate", [1, 2])        keeps inside it
    the table has its tokens      end("append", [1, 2], ada, 5)         closes it: one sentence, one frame

    pool.touch([block])           pool_event("touch", [1])              no bracket is open: a frame of its own

* :mod:`pagedattn_lab.recorder.frame` holds the state at one moment.
* :mod:`pagedattn_lab.recorder.sentences` says what happened.
* :mod:`pagedattn_lab.recorder.operations` lists what was done, so that the recording can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder.frame import Film
from pagedattn_lab.recorder.operations import (
    Operation,
    hash_operations,
    pool_operations,
    start_operation,
    table_operations,
)
from pagedattn_lab.recorder.sentences import (
    append_sentence,
    block_numbers,
    copy_sentence,
    fork_sentence,
    hit_sentence,
    pool_sentence,
    release_sentence,
    skip_sentence,
)

FORMAT = "pagedattn_lab.recording/1"


class Recorder:
    """Records what happens to a pool and to the tables on it, from now on.

    Every event makes one frame; what the pool does on behalf of a table belongs to the table's event. Each frame holds
    the whole state, so an event costs time and memory in proportion to the number of blocks: this is for watching,
    not for servers. As a context manager, a recorder stops at the end of the block.

    Args:
        pool: what to watch. Any number of observers can.
        tables: tables on it, by the names of their requests; more can be added later.

    Attributes:
        frames: the state at the start, then after each event.
        ops: what was done, see :mod:`pagedattn_lab.recorder.operations`.

    Raises:
        ValueError: a table cannot be added.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> ada = BlockTable(pool)
        >>> recorder = Recorder(pool, {"Ada": ada})
        >>> _ = ada.append_tokens(5)
        >>> ada.release()
        >>> for frame in recorder.frames:
        ...     print(frame.sentence, "Free:", *frame.free)
        At the start, 3 of 3 usable blocks are free. Free: 1 2 3
        Ada appends 5 tokens and takes blocks 1 and 2 from the head of the free queue. Free: 3
        Ada gives back 2 blocks, last first: blocks 2 and 1 return to the head of the free queue. Free: 2 1 3
    """

    def __init__(self, pool: BlockPool, tables: Mapping[str, BlockTable] | None = None) -> None:
        self.pool = pool
        self._names: dict[int, tuple[BlockTable, str]] = {}  # by identity; the table is kept, so that it stays its own
        self._shown: dict[str, BlockTable] = {}
        self._film = Film()
        for name, table in (tables or {}).items():
            self._add(name, table)
        state = f"At the start, {pool.num_free_blocks} of {pool.num_blocks - 1} usable blocks are free."
        self.frames = [self._film.take(pool, self._shown, "start", state)]
        self.ops: list[Operation] = [start_operation(pool, self._shown, self.frames[0])]
        self._evicted: list[int] | None = None  # since a table began; None while none is at work
        pool.observers.append(self)

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
        if self._add(name, table):
            self.ops.append(["add", name, table.num_tokens, table.block_ids])
        return table

    def _add(self, name: str, table: BlockTable) -> bool:
        """Do what :meth:`add` does, and say whether it did anything: the table had no name, or was not drawn."""
        known = self._names.get(id(table), (table, name))[1]
        if table.pool is not self.pool:
            raise ValueError(f"the table of {name} takes its blocks from another pool than this recorder watches")
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
        is_new = id(table) not in self._names or name not in self._shown
        self._names[id(table)] = (table, name)
        self._shown[name] = table
        return is_new

    def note(self, sentence: str, blocks: Iterable[int] = ()) -> None:
        """Add a frame in which nothing changes: a sentence, and the numbers of blocks to point at.

        Raises:
            ValueError: a block that the pool does not have.
        """
        numbers = tuple(blocks)
        for number in numbers:
            if not 0 <= number < self.pool.num_blocks:
                raise ValueError(f"there is no block {number} to point at: blocks go up to {self.pool.num_blocks - 1}")
        self._keep_hashes()
        self.ops.append(["note", sentence, list(numbers)])
        self._add_frame("note", sentence, numbers)

    def stop(self) -> None:
        """Stop watching; the frames stay."""
        if self in self.pool.observers:
            self.pool.observers.remove(self)

    def begin(self, table: BlockTable) -> None:
        """Open a bracket. One that is still open was broken off, by a keyboard interrupt for instance: forget it."""
        self._evicted = []
        self._keep_hashes()
        self._name(table)

    def pool_event(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        """Keep what the pool does for a table until that table ends; what it does by hand is an event of its own."""
        if self._evicted is None:
            self._keep_hashes(block_numbers(blocks) if kind == "evict" else ())
            self.ops += pool_operations(kind, blocks)
            self._add_frame(kind, pool_sentence(kind, blocks), block_numbers(blocks))
        elif kind == "evict":  # all else is part of what the table will say
            self._evicted += block_numbers(blocks)

    def end(self, kind: str, blocks: Sequence[KVCacheBlock], table: BlockTable, num_tokens: int) -> None:
        """Close the bracket: one sentence and one frame for all that happened inside it."""
        evicted, self._evicted = self._evicted or [], None
        name, numbers = self._name(table), block_numbers(blocks)
        self.ops += table_operations(kind, name, table, num_tokens, self._names.values())
        changed = numbers
        if kind == "append":
            block_size = self.pool.block_size
            first, last = (table.num_tokens - num_tokens) // block_size, (table.num_tokens - 1) // block_size
            written = table.block_ids[first : last + 1]
            changed = tuple(dict.fromkeys([*written, *numbers]))
            sentence = append_sentence(name, num_tokens, written, numbers, evicted)
        elif kind == "copy-on-write":
            source, copy = blocks
            sentence = copy_sentence(name, source, copy, evicted)
        elif kind == "fork":
            sentence = fork_sentence(name, blocks)
        elif kind == "hit":
            sentence = hit_sentence(name, blocks, num_tokens)
        elif kind == "skip":
            sentence = skip_sentence(name, blocks)
        else:
            sentence = release_sentence(name, blocks)
        self._add_frame(kind, sentence, changed)
        if not table.blocks:
            del self._shown[name]  # its last frame has shown it empty

    def to_dict(self) -> dict[str, Any]:
        """The whole recording as JSON values, in the form that :meth:`save` writes."""
        return {
            "format": FORMAT,
            "num_blocks": self.pool.num_blocks,
            "block_size": self.pool.block_size,
            "frames": [frame.to_dict() for frame in self.frames],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the recording as JSON; :func:`load` reads it."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    def _add_frame(self, kind: str, sentence: str, changed: tuple[int, ...]) -> None:
        self.frames.append(self._film.take(self.pool, self._shown, kind, sentence, changed))

    def _keep_hashes(self, evicted: tuple[int, ...] = ()) -> None:
        """List the hashes that a prefix cache, which tells nobody, has given to blocks since the last frame."""
        self.ops += hash_operations(self.pool, self.frames[-1].hashes, evicted)

    def _name(self, table: BlockTable) -> str:
        """Return a table's name, and draw the table from now on. It must not fail: the event cannot be undone."""
        own = table.name if isinstance(table.name, str) and table.name.strip() else None
        if id(table) in self._names:
            name = self._names[id(table)][1]
        elif own is not None and own not in {name for other, name in self._names.values() if other.blocks}:
            name = own
        else:
            taken = {name for _, name in self._names.values()}
            numbers = range(1, len(taken) + 2) if own is None else range(2, len(taken) + 3)
            name = next(name for i in numbers if (name := f"{own or 'request'} {i}") not in taken)
        was_shown = name in self._shown  # of another table, an empty one
        if self._add(name, table) and (was_shown or table.blocks):  # with blocks, it was here before anybody watched
            self.ops.append(["add", name, table.num_tokens, table.block_ids])
        return name


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a saved recording; the player shows it as it shows a :class:`Recorder`.

    Raises:
        ValueError: the file holds no recording in this format.

    Example:
        >>> import tempfile, os
        >>> recorder = Recorder(BlockPool(num_blocks=3, block_size=4))
        >>> path = os.path.join(tempfile.mkdtemp(), "recording.json")
        >>> recorder.save(path)
        >>> load(path) == recorder.to_dict()
        True
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): save one with Recorder.save") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} holds {found!r}, not {FORMAT!r}: save it with this version's Recorder.save")
    return data
