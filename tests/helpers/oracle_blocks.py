"""Blocks, tables and a prefix cache once more, with lists only: what the rules say, at any cost, and without hashes.

The free blocks are a list, next to be handed out first. What a block holds is named by all tokens up to its end and by
what else decides about them, so two blocks hold the same if and only if they have the same name.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

Extra = str | None


class Contents(NamedTuple):
    """What a full block holds: ``extra`` is the salt."""

    extra: Extra
    tokens: tuple[int, ...]


class PlainTable:
    """Block numbers of a sequence, and how many of them it has registered or found."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.num_tokens = 0
        self.num_cached = 0


class PlainBlocks:
    """All memory. With ``tree``, a name belongs to one block at most, and goes when the name before it goes."""

    def __init__(self, num_blocks: int, block_size: int, tree: bool = False, caching: bool = True) -> None:
        self.block_size, self.tree, self.caching = block_size, tree, caching
        self.num_blocks = num_blocks
        self.free = list(range(1, num_blocks))
        self.tables: list[PlainTable] = []
        self.names: list[tuple[Contents, int]] = []  # in the order in which they became known
        self.copies: list[tuple[int, int]] = []
        self.reset_stats()

    def reset_stats(self) -> None:
        self.requests = self.queries = self.hits = self.evictions = 0

    def counts(self) -> Counter[int]:
        return Counter(block_id for table in self.tables for block_id in table.ids)

    def marked(self) -> set[int]:
        return {block_id for _, block_id in self.names}

    def find(self, extra: Extra, tokens: list[int]) -> list[int]:
        """The longest run of known names, the last token left out; of several blocks the one known longest."""
        found = []
        for stop in range(self.block_size, len(tokens), self.block_size):
            holders = [block_id for name, block_id in self.names if name == (extra, tuple(tokens[:stop]))]
            if not holders:
                break
            found.append(holders[0])
        return found

    def grow(self, table: PlainTable, num_tokens: int) -> list[int] | None:
        """Blocks taken for so many more tokens, a private copy first; ``None`` if there are too few."""
        shared = table.num_tokens % self.block_size > 0 and num_tokens > 0 and self.counts()[table.ids[-1]] > 1
        total = -(-(table.num_tokens + num_tokens) // self.block_size)
        taken = self.take(total - len(table.ids) + shared)
        if taken is None:
            return None
        if shared:
            self.copies.append((table.ids.pop(), taken[0]))
        table.ids += taken
        table.num_tokens += num_tokens
        return taken

    def take(self, count: int) -> list[int] | None:
        if count > len(self.free):
            return None
        taken, self.free = self.free[:count], self.free[count:]
        for block_id in taken:
            self.evictions += block_id in self.marked()
            self.forget(block_id)
        return taken

    def forget(self, block_id: int) -> None:
        for extra, tokens in [name for name, known in self.names if known == block_id]:
            self.names = [
                (name, known)
                for name, known in self.names
                if known != block_id
                and not (self.tree and name.extra == extra and name.tokens[: len(tokens)] == tokens)
            ]

    def begin(self, extra: Extra, tokens: list[int], found: list[int], num_new: int) -> PlainTable | None:
        """Admit a request whose first blocks are ``found``."""
        needed = -(-num_new // self.block_size)
        if needed + sum(block_id in self.free for block_id in found) > len(self.free):
            return None
        if self.caching:
            self.requests, self.queries = self.requests + 1, self.queries + len(tokens)
            self.hits += len(found) * self.block_size
        table = PlainTable()
        table.ids, table.num_tokens, table.num_cached = list(found), len(found) * self.block_size, len(found)
        self.free = [block_id for block_id in self.free if block_id not in found]
        self.tables.append(table)
        return table

    def extend(self, table: PlainTable, extra: Extra, tokens: list[int], num_new: int) -> list[int] | None:
        """Give a request's table more tokens, and remember the blocks that are full now."""
        taken = self.grow(table, num_new)
        if taken is None:
            return None
        full = min(table.num_tokens, len(tokens)) // self.block_size
        if self.caching:
            for index in range(table.num_cached, full):
                name = Contents(extra, tuple(tokens[: (index + 1) * self.block_size]))
                before = name.tokens[: -self.block_size]
                if not self.tree or (
                    all(name != known for known, _ in self.names)
                    and (not before or any((extra, before) == known for known, _ in self.names))
                ):
                    self.names.append((name, table.ids[index]))
            table.num_cached = max(table.num_cached, full)
        return taken

    def fork(self, table: PlainTable) -> PlainTable:
        child = PlainTable()
        child.ids, child.num_tokens = list(table.ids), table.num_tokens
        self.tables.append(child)
        return child

    def release(self, table: PlainTable) -> None:
        """Last block first; those that nobody names any more join the tail if they hold a name, else the head."""
        self.tables.remove(table)
        still, marked = self.counts(), self.marked()
        gone = [block_id for block_id in reversed(table.ids) if block_id not in still]
        unmarked = [block_id for block_id in gone if block_id not in marked]
        self.free = unmarked + self.free + [block_id for block_id in gone if block_id in marked]

    def reset(self) -> bool:
        if any(table.ids for table in self.tables):
            return False
        self.names = []
        self.reset_stats()
        return True
