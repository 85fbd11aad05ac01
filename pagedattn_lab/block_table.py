"""The page table: where each of a sequence's tokens lives (chapter 04).

Token ``i`` of a sequence lies in logical block ``i // block_size``. The table maps that to a physical block, and the
*slot* ``block_id * block_size + i % block_size`` names the token's place in the cache.

Source: Kwon et al. 2023, section 4.3; slots as in vLLM's ``slot_mapping``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock

if TYPE_CHECKING:
    import torch


class BlockTable:
    """The blocks of one sequence, in the order of its tokens.

    Args:
        pool: where blocks come from and return to.

    Example:
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> table = BlockTable(pool)
        >>> new_blocks = table.append_tokens(6)
        >>> table.block_ids, table.num_tokens
        ([1, 2], 6)
        >>> table.slot_mapping(3, 6)
        [7, 8, 9]
        >>> table.append_tokens(2)                # both fit in the second block
        []
        >>> table.release()
        >>> pool.num_free_blocks
        7
    """

    __slots__ = ("blocks", "num_tokens", "pool")

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[KVCacheBlock] = []
        self.num_tokens = 0

    @property
    def block_ids(self) -> list[int]:
        """Physical block of each logical block."""
        return [block.block_id for block in self.blocks]

    @property
    def num_empty_slots(self) -> int:
        """Slots of the last block that no token occupies: the only waste that paging leaves."""
        return len(self.blocks) * self.pool.block_size - self.num_tokens

    def append_tokens(self, num_tokens: int) -> list[KVCacheBlock]:
        """Make room for more tokens; allocate only for those that the last block cannot hold.

        Returns:
            The blocks that were added, often none.

        Raises:
            NoFreeBlocksError: the pool is short; the table is unchanged.
            ValueError: ``num_tokens`` is negative.
        """
        if num_tokens < 0:
            raise ValueError(f"cannot append {num_tokens} tokens: give 0 or more")
        pool = self.pool
        missing = self.num_tokens + num_tokens - len(self.blocks) * pool.block_size
        new_blocks: list[KVCacheBlock] = []
        if missing > 0:
            new_blocks = pool.get_new_blocks(-(-missing // pool.block_size))
            self.blocks += new_blocks
        self.num_tokens += num_tokens
        if pool.observer is not None and num_tokens:
            pool.observer("append", new_blocks, self, num_tokens)
        return new_blocks

    def slot_mapping(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Slots of tokens ``start`` to ``stop - 1``; by default of all.

        Raises:
            IndexError: the range is not within the sequence.
        """
        stop = self.num_tokens if stop is None else stop
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} are not all in a sequence of {self.num_tokens} tokens")
        block_size = self.pool.block_size
        return [
            self.blocks[position // block_size].block_id * block_size + position % block_size
            for position in range(start, stop)
        ]

    def release(self) -> None:
        """Give every block back, last first, and become the empty table. On an empty table it does nothing."""
        freed = self.blocks[::-1]
        self.pool.free_blocks(freed)
        self.blocks, self.num_tokens = [], 0
        if self.pool.observer is not None and freed:
            self.pool.observer("free", freed, self)

    def __repr__(self) -> str:
        return f"BlockTable(num_tokens={self.num_tokens}, block_ids={self.block_ids})"


@dataclass(frozen=True)
class AttentionMetadata:
    """What attention needs to know about one step of a ragged batch.

    Attributes:
        block_tables: ``[num_seqs, max_blocks_per_seq]`` int32; unused entries name the null block.
        seq_lens: ``[num_seqs]`` int32, tokens in the cache, those of this step included.
        query_start_loc: ``[num_seqs + 1]`` int32; sequence ``i`` owns query tokens ``[i]`` to ``[i + 1] - 1``.
        slot_mapping: ``[num_tokens]`` int64, where this step's keys and values go.
        positions: ``[num_tokens]`` int64, each token's place in its own sequence.
        max_seq_len: the largest of ``seq_lens``, known without asking the device.
    """

    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    max_seq_len: int

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes exactly one token in this step."""
        return len(self.slot_mapping) == len(self.seq_lens)


def attention_metadata(
    tables: Sequence[BlockTable], query_lens: Sequence[int] | None = None, device: torch.device | str = "cpu"
) -> AttentionMetadata:
    """Lay the page tables of a ragged batch out as tensors.

    Args:
        tables: one per sequence, with the tokens of this step already appended.
        query_lens: how many of each sequence's last tokens are computed in this step; by default 1 each (decode).
        device: where the tensors go.

    Raises:
        ValueError: no table, lists of different lengths, or a query longer than its sequence.

    Example:
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> long, short = BlockTable(pool), BlockTable(pool)
        >>> _ = long.append_tokens(5), short.append_tokens(2)
        >>> step = attention_metadata([long, short], query_lens=[1, 2])
        >>> step.block_tables.tolist(), step.seq_lens.tolist()
        ([[1, 2], [3, 0]], [5, 2])
        >>> step.query_start_loc.tolist(), step.slot_mapping.tolist()
        ([0, 1, 3], [8, 12, 13])
    """
    import torch

    query_lens = [1] * len(tables) if query_lens is None else list(query_lens)
    if not tables:
        raise ValueError("a step needs at least one sequence")
    if len(query_lens) != len(tables):
        raise ValueError(f"{len(tables)} tables but {len(query_lens)} query lengths: give one for each table")
    for table, query_len in zip(tables, query_lens, strict=True):
        if not 1 <= query_len <= table.num_tokens:
            raise ValueError(
                f"a sequence of {table.num_tokens} tokens cannot compute its last {query_len}: "
                "append the step's tokens to the table first"
            )
    width = max(len(table.blocks) for table in tables)
    starts = [0]
    slots: list[int] = []
    positions: list[int] = []
    for table, query_len in zip(tables, query_lens, strict=True):
        first = table.num_tokens - query_len
        starts.append(starts[-1] + query_len)
        slots += table.slot_mapping(first, table.num_tokens)
        positions += range(first, table.num_tokens)
    return AttentionMetadata(
        block_tables=torch.tensor(
            [table.block_ids + [0] * (width - len(table.blocks)) for table in tables], dtype=torch.int32, device=device
        ),
        seq_lens=torch.tensor([table.num_tokens for table in tables], dtype=torch.int32, device=device),
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        max_seq_len=max(table.num_tokens for table in tables),
    )
