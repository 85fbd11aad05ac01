"""What sharing saves: tables that continue one another, and the blocks that they have in common (chapter 05).

Source: Kwon et al. 2023, sections 4.4 and 6.3. As there, a saving is the number of blocks saved by sharing, over the
number that would be needed without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, reorder, take_copies


@dataclass
class Sharing:
    """How many blocks tables had in common, step by step.

    Attributes:
        table_entries: blocks that the tables named, summed over steps: what memory without sharing would hold.
        blocks: different ones among them, summed over steps: what memory did hold.
        most_shared: most blocks that several tables named at one step.
        most_saved: most that ``table_entries`` exceeded ``blocks`` by at one step.
        copied: blocks that were copied before a write.

    Example:
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> table = BlockTable(pool)
        >>> _ = table.append_tokens(6)
        >>> sharing = Sharing()
        >>> sharing.observe([table, table.fork()])
        >>> sharing.table_entries, sharing.blocks, sharing.saving
        (4, 2, 0.5)
    """

    table_entries: int = 0
    blocks: int = 0
    most_shared: int = 0
    most_saved: int = 0
    copied: int = 0

    @property
    def saving(self) -> float:
        """Part of the blocks that sharing saved, over all steps; 0 before the first."""
        return 1 - self.blocks / self.table_entries if self.table_entries else 0.0

    def observe(self, tables: Sequence[BlockTable], num_copied: int = 0) -> None:
        """Take one step into account: its page tables, and how many blocks were copied for it."""
        entries = Counter(block for table in tables for block in table.blocks)
        self.table_entries += entries.total()
        self.blocks += len(entries)
        self.copied += num_copied
        self.most_shared = max(self.most_shared, sum(times > 1 for times in entries.values()))
        self.most_saved = max(self.most_saved, entries.total() - len(entries))


def replay(prompt_len: int, genealogy: Iterable[Sequence[int]], block_size: int) -> Sharing:
    """Let page tables grow as a search once did, without a model.

    Args:
        prompt_len: tokens in the prompt.
        genealogy: for each step, the sequence that each one continues; the first step continues the prompt, number 0.
            A step adds one token to each.
        block_size: tokens per block.

    Raises:
        ValueError: an index without a sequence, or an impossible length or size.

    Example:
        >>> both = [[0, 0], [0, 1], [0, 1]]                   # two outputs of three tokens
        >>> replay(prompt_len=6, genealogy=both, block_size=4).copied
        1
    """
    if prompt_len < 1 or block_size < 1:
        raise ValueError(f"prompt_len is {prompt_len} and block_size {block_size}: both are at least 1 token")
    steps = list(genealogy)
    widest = max([1, *map(len, steps)])
    pool = BlockPool(1 + widest * cdiv(prompt_len + len(steps), block_size), block_size)
    tables, sharing = [BlockTable(pool)], Sharing()
    tables[0].append_tokens(prompt_len)
    for parents in steps:
        tables = reorder(tables, parents)
        for table in tables:
            table.append_tokens(1)
        sharing.observe(tables, len(take_copies(tables)))
    return sharing
