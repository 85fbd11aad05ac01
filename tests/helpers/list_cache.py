"""A prefix cache in one list, slow and plain: the oracle for first in, first out."""

from __future__ import annotations

from collections.abc import Sequence


class ListCache:
    """First in, first out, in one list of (block, id of its contents), oldest first; slow and plain."""

    def __init__(self, capacity: int, block_size: int) -> None:
        self.capacity, self.block_size = capacity, block_size
        self.line: list[tuple[int, int]] = []
        self.made = self.evictions = 0

    def serve(self, num_tokens: int, hash_ids: Sequence[int]) -> int | None:
        if len(hash_ids) > self.capacity:
            return None
        hits = []
        for hash_id in hash_ids[: (num_tokens - 1) // self.block_size]:
            holders = [entry for entry in self.line if entry[1] == hash_id]
            if not holders:
                break
            hits.append(min(holders))  # the one that was made first
        while len(self.line) + len(hash_ids) - len(hits) > self.capacity:
            self.line.remove(next(entry for entry in self.line if entry not in hits))
            self.evictions += 1
        for hash_id in reversed(hash_ids[len(hits) : num_tokens // self.block_size]):
            self.line.append((self.made, hash_id))
            self.made += 1
        return len(hits) * self.block_size
