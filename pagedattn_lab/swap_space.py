"""Host memory for the blocks of requests that had to make room: swapping, one answer to a full cache (chapter 09).

A request that loses its blocks can compute them again when it comes back (recompute), or have them copied to the host's
memory and back (swap). The first vLLM did both; today's recomputes. Swapping is here to compare with.

The host's blocks are numbered and kept by a pool of their own, as the device's are. Nothing is shared there: each
swapped request has a copy of every block that it held, and whoever shared one on the device goes on with it.

Source: Kwon et al. 2023, section 4.5.
"""

from __future__ import annotations

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable

BlockCopies = list[tuple[int, int]]
"""``(source, destination)`` block numbers, one of the two in the device's pool, the other in the host's."""


class SwapSpace:
    """The host's blocks, and which swapped request has which.

    Args:
        num_host_blocks: blocks in all, the null block included.
        block_size: tokens per block, as on the device.

    Attributes:
        block_pool: the host's memory.
        tables: of each request that is swapped out, by request id: its blocks there.

    Raises:
        ValueError: impossible sizes, as for :class:`pagedattn_lab.block_pool.BlockPool`.

    Example:
        >>> device, host = BlockPool(num_blocks=4, block_size=4), SwapSpace(num_host_blocks=4, block_size=4)
        >>> ada = BlockTable(device)
        >>> _ = ada.append_tokens(6)
        >>> host.take("Ada", ada, num_tokens=6)    # blocks 1 and 2 of the device, to blocks 1 and 2 of the host
        [(1, 1), (2, 2)]
        >>> ada.release(); _ = device.get_new_blocks(1)
        >>> host.give("Ada", ada)                  # back in the same order, to free blocks
        [(1, 1), (2, 3)]
        >>> ada.num_tokens, host.block_pool.num_used_blocks
        (6, 0)
    """

    def __init__(self, num_host_blocks: int, block_size: int) -> None:
        self.block_pool = BlockPool(num_host_blocks, block_size)
        self.tables: dict[str, BlockTable] = {}

    def take(self, name: str, table: BlockTable, num_tokens: int) -> BlockCopies | None:
        """Find host blocks for the first tokens of a request. Its table stays as it is: release it afterwards.

        A block that waits for a copy (:attr:`~pagedattn_lab.block_table.BlockTable.pending_copy`) does not hold its
        tokens yet: they are read from where it was to be copied from.

        Returns:
            ``(block, host block)`` pairs; ``None`` if the host has too few, and nothing has changed.

        Raises:
            ValueError: the request is here already, or its table has fewer tokens.
        """
        if name in self.tables:
            raise ValueError(f"request {name!r} is swapped out already: swap it in, or free it, first")
        if not 0 <= num_tokens <= table.num_tokens:
            raise ValueError(f"request {name!r} has {table.num_tokens} tokens in its blocks: cannot keep {num_tokens}")
        if cdiv(num_tokens, self.block_pool.block_size) > self.block_pool.num_free_blocks:
            return None
        host = self.tables[name] = BlockTable(self.block_pool, name)
        host.append_tokens(num_tokens)
        source, copy = table.pending_copy or (0, 0)
        held = [source if block_id == copy else block_id for block_id in table.block_ids]
        return list(zip(held, host.block_ids, strict=False))  # a longer table ends in tokens that were not computed

    def give(self, name: str, table: BlockTable) -> BlockCopies | None:
        """Give an empty table the tokens that were taken from a request, and let the host's blocks go.

        Returns:
            ``(host block, block)`` pairs; ``None`` if the table's pool has too few blocks, and nothing has changed.

        Raises:
            ValueError: the request is not here, or the table is not empty.
        """
        host = self.tables.get(name)
        if host is None:
            raise ValueError(f"request {name!r} is not swapped out: there is nothing to swap in")
        if table.blocks:
            raise ValueError(f"a table of {table.num_tokens} tokens cannot take others in: give an empty one")
        if len(host.blocks) > table.pool.num_free_blocks:
            return None
        table.append_tokens(host.num_tokens)
        pairs = list(zip(host.block_ids, table.block_ids, strict=True))
        self.drop(name)
        return pairs

    def drop(self, name: str) -> None:
        """Let a request's host blocks go; a request without any loses nothing."""
        host = self.tables.pop(name, None)
        if host is not None:
            host.release()
