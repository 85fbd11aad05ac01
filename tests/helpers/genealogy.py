"""Blocks that a family of sequences shares, counted without any table: the oracle for savings."""

from __future__ import annotations

import math
from collections import Counter

from pagedattn_lab.studies.block_savings import Sharing


def count(prompt_len: int, genealogy: list[list[int]], block_size: int) -> Sharing:
    """Count with sequences written out, and no table: a sequence is the tuple of its tokens, each a name of its own.

    Two sequences can share a block if all tokens up to the end of what they hold of it are the same. They stop sharing
    it when they write different tokens to it; then the last of them to write may keep it, and each of the others
    copies, unless the block was full or nothing was in it yet.
    """
    sequences = [tuple(range(-prompt_len, 0))]
    sharing, fresh = Sharing(), 0
    for parents in genealogy:
        for times in Counter(parents).values():
            if prompt_len % block_size:
                sharing.copied += times - 1
        sequences = [(*sequences[parent], (fresh := fresh + 1)) for parent in parents]
        prompt_len += 1
        held = Counter(
            (index, sequence[: (index + 1) * block_size])
            for sequence in sequences
            for index in range(math.ceil(len(sequence) / block_size))
        )
        sharing.table_entries += held.total()
        sharing.blocks += len(held)
        sharing.most_shared = max(sharing.most_shared, sum(times > 1 for times in held.values()))
        sharing.most_saved = max(sharing.most_saved, held.total() - len(held))
    return sharing
