"""The page tables of running sequences, kept from step to step (chapter 09).

From one step to the next a page table hardly changes: one sequence in ``block_size`` gets a block. So each table has a
row that stays, and a step writes what is new and computes the rest as whole arrays, without a loop over tokens.

Source: vLLM's ``vllm/v1/worker/gpu_input_batch.py`` and ``block_table.py``, release 0.33.0. There requests are added
and removed; here a row is taken for a table that has none, and given up when room is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from pagedattn_lab.attention.cascade import MIN_SEQUENCES, Cascade, plan_cascade
from pagedattn_lab.attention.metadata import AttentionMetadata, check_step
from pagedattn_lab.block_table import BlockTable


class InputBatch:
    """Lays steps out as :func:`pagedattn_lab.attention.metadata.attention_metadata` does, and remembers page tables.

    Args:
        device: where the tensors of a step go.
        num_rows: page tables to have room for at first; it grows with the steps.

    What it gives for a step is the step's own: a later step changes nothing in it.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> long, short = BlockTable(pool), BlockTable(pool)
        >>> batch = InputBatch()
        >>> _ = long.append_tokens(4), short.append_tokens(2)
        >>> batch.prepare([long, short], query_lens=[4, 2]).slot_mapping.tolist()
        [4, 5, 6, 7, 8, 9]
        >>> _ = long.append_tokens(1)
        >>> batch.prepare([long]).block_tables.tolist()
        [[1, 3]]
    """

    def __init__(self, device: torch.device | str = "cpu", num_rows: int = 64) -> None:
        self.device = torch.device(device)
        self._rows = np.zeros((num_rows, 16), np.int32)  # [rows, blocks]; 0, the null block, behind a table's last
        self._free = list(range(num_rows))
        self._row_of: dict[int, int] = {}  # by the identity of a table, which is in _known as long as it is here
        self._known: dict[int, tuple[BlockTable, list, int]] = {}  # of each row: table, its list, blocks written

    def prepare(self, tables: Sequence[BlockTable], query_lens: Sequence[int] | None = None) -> AttentionMetadata:
        """Lay out one step.

        Args:
            tables: one per sequence, with the tokens of this step already appended.
            query_lens: how many of each sequence's last tokens are computed in this step; by default 1 each (decode).

        Raises:
            ValueError: no table, tables of two pools, lists of different lengths, or a query longer than its sequence.
        """
        [metadata] = self.prepare_groups([tables], query_lens)
        return metadata

    def prepare_groups(
        self, tables_of_groups: Sequence[Sequence[BlockTable]], query_lens: Sequence[int] | None = None
    ) -> tuple[AttentionMetadata, ...]:
        """Lay out one step of a model whose layers read several page tables.

        Args:
            tables_of_groups: for each group of layers one table per sequence, as for :meth:`prepare`. A table names the
                null block where a window has dropped one.
            query_lens: as for :meth:`prepare`.

        Returns:
            The step for each group. What does not hang on a page table is laid out once, and shared.

        Raises:
            ValueError: as :meth:`prepare`, or a sequence that has more tokens in one group than in another.
        """
        tables = tables_of_groups[0]
        query_lens = [1] * len(tables) if query_lens is None else query_lens
        block_size = check_step(tables, query_lens).block_size
        lens = np.array([table.num_tokens for table in tables])
        queries = np.array(query_lens)
        ends = np.cumsum(queries)
        # Token j of the batch, of sequence i, is number j - starts[i] of this step: number first[i] + that of sequence.
        positions = np.arange(ends[-1]) + np.repeat(lens - ends, queries)
        places, offsets = np.divmod(positions, block_size)
        common = {
            "seq_lens": self._tensor(lens.astype(np.int32)),
            "query_start_loc": self._tensor(np.concatenate([[0], ends]).astype(np.int32)),
            "positions": self._tensor(positions),
            "max_seq_len": int(lens.max()),
        }
        if len(tables_of_groups) > 1:
            _check_groups(tables_of_groups, query_lens)
        groups = []
        for tables in tables_of_groups:
            rows = np.array([self._update(table, tables_of_groups) for table in tables])  # [num_seqs]
            block_tables = self._rows[rows, : max(len(table.blocks) for table in tables)]
            blocks = self._rows[np.repeat(rows, queries), places]
            step = AttentionMetadata(
                block_tables=self._tensor(block_tables),
                slot_mapping=self._tensor(blocks.astype(np.int64) * block_size + offsets),
                cascade=self._cascade(tables, block_tables, lens, queries),
                tables=tuple(tables),
                **common,
            )
            groups.append(step)
        return tuple(groups)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _update(self, table: BlockTable, step: Sequence[Sequence[BlockTable]]) -> int:
        """Write to a table's row what it has not got yet, and give its number.

        A list of blocks grows at its end, copy-on-write replaces its last block, and the null block its first ones; a
        table that changes otherwise gets another list.
        """
        row = self._row_of.get(id(table))
        if row is None:
            row = self._take_row(step)
            self._row_of[id(table)] = row
            self._known[row] = table, [], 0
        _, before, written = self._known[row]
        blocks = table.blocks
        if blocks is not before:
            self._rows[row] = 0
            written = 0
        if len(blocks) > self._rows.shape[1]:
            self._rows = np.pad(self._rows, ((0, 0), (0, 2 * len(blocks) - self._rows.shape[1])))
        first = max(written - 1, 0)
        self._rows[row, first : len(blocks)] = [block.block_id for block in blocks[first:]]
        if table.num_skipped_blocks:
            self._rows[row, : table.num_skipped_blocks] = 0
        self._known[row] = table, blocks, len(blocks)
        return row

    def _take_row(self, step: Sequence[Sequence[BlockTable]]) -> int:
        """Find a free row; where there is none, take those of tables that are not in the step, or else make more."""
        if not self._free:
            kept = set(map(id, chain.from_iterable(step)))
            for owner in self._row_of.keys() - kept:
                row = self._row_of.pop(owner)
                del self._known[row]
                self._free.append(row)
        if not self._free:
            num_rows = len(self._rows)
            self._rows = np.pad(self._rows, ((0, num_rows), (0, 0)))
            self._free = list(range(num_rows, 2 * num_rows))
        return self._free.pop()

    def _cascade(
        self, tables: Sequence[BlockTable], rows: np.ndarray, lens: np.ndarray, queries: np.ndarray
    ) -> Cascade | None:
        """Look for shared prefixes only if enough sequences begin with a block that as many tables name."""
        if sum(table.blocks[0].ref_cnt >= MIN_SEQUENCES for table in tables) < MIN_SEQUENCES:
            return None
        block_size = tables[0].pool.block_size
        return plan_cascade(rows.tolist(), lens.tolist(), queries.tolist(), block_size, self.device)


def _check_groups(tables_of_groups: Sequence[Sequence[BlockTable]], query_lens: Sequence[int]) -> None:
    """Refuse groups that do not hold the same tokens of the same sequences in one pool."""
    first = tables_of_groups[0]
    for number, tables in enumerate(tables_of_groups[1:], 1):
        if check_step(tables, query_lens) is not first[0].pool:
            raise ValueError("the groups of a step take their blocks from two pools: a cache has one")
        for one, other in zip(first, tables, strict=True):
            if one.num_tokens != other.num_tokens:
                raise ValueError(
                    f"a sequence has {one.num_tokens} tokens in group 0 and {other.num_tokens} in group {number}: let "
                    "its tables grow together"
                )
