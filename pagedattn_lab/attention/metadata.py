"""The page tables of one step of a ragged batch, laid out as tensors (chapter 04).

Source: vLLM's ``vllm/v1/attention/backend.py`` (``CommonAttentionMetadata``), release 0.33.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagedattn_lab.attention.cascade import Cascade, plan_cascade
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable


@dataclass(frozen=True)
class AttentionMetadata:
    """What a step needs to know about where its tokens lie: :meth:`pagedattn_lab.model_runner.ModelRunner.execute`.

    It holds for the layers that read these page tables: for all of a model, or for those of one group. The groups of a
    step differ in ``block_tables``, ``slot_mapping``, ``cascade`` and ``tables``, and share the other tensors.

    Attributes:
        block_tables: ``[num_seqs, max_blocks_per_seq]`` int32; unused entries name the null block.
        seq_lens: ``[num_seqs]`` int32, tokens in the cache, those of this step included.
        query_start_loc: ``[num_seqs + 1]`` int32; sequence ``i`` owns query tokens ``[i]`` to ``[i + 1] - 1``.
        slot_mapping: ``[num_tokens]`` int64, where this step's keys and values go.
        positions: ``[num_tokens]`` int64, each token's place in its own sequence.
        max_seq_len: the largest of ``seq_lens``, known without asking the device.
        cascade: prefixes that sequences share, to be read once for all of them; ``None`` if that would save little.
        tables: the page tables themselves, on one pool: whoever carries the step out takes their pending copies first.

    Layers trust it: every slot and every table entry in use is a block of the pool. Make it with
    :func:`attention_metadata`.
    """

    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    max_seq_len: int
    cascade: Cascade | None
    tables: tuple[BlockTable, ...]

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes exactly one token in this step."""
        return len(self.slot_mapping) == len(self.seq_lens)


def check_step(tables: Sequence[BlockTable], query_lens: Sequence[int]) -> BlockPool:
    """Refuse a step that cannot be, and give the pool of its tables.

    Raises:
        ValueError: no table, tables of two pools, lists of different lengths, or a query longer than its sequence.
    """
    if not tables:
        raise ValueError("a step needs at least one sequence")
    if len(query_lens) != len(tables):
        raise ValueError(f"{len(tables)} tables but {len(query_lens)} query lengths: give one for each table")
    pool = tables[0].pool
    for table, query_len in zip(tables, query_lens, strict=True):
        if table.pool is not pool:
            raise ValueError("the tables of a step take their blocks from two pools: a cache has one")
        if not 1 <= query_len <= table.num_tokens:
            raise ValueError(
                f"a sequence of {table.num_tokens} tokens cannot compute its last {query_len}: "
                "append the step's tokens to the table first"
            )
    return pool


def attention_metadata(
    tables: Sequence[BlockTable], query_lens: Sequence[int] | None = None, device: torch.device | str = "cpu"
) -> AttentionMetadata:
    """Lay the page tables of a ragged batch out as tensors, for one step.

    Nothing changes: copies that tables are waiting for are carried out with the step. Lay it out when all of its tables
    have grown, and carry it out before another step: until then the blocks to copy from may be handed out again.

    Args:
        tables: one per sequence, with the tokens of this step already appended.
        query_lens: how many of each sequence's last tokens are computed in this step; by default 1 each (decode).
        device: where the tensors go.

    Raises:
        ValueError: no table, tables of two pools, lists of different lengths, or a query longer than its sequence.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> long, short = BlockTable(pool), BlockTable(pool)
        >>> _ = long.append_tokens(5), short.append_tokens(2)
        >>> step = attention_metadata([long, short], query_lens=[1, 2])
        >>> step.block_tables.tolist(), step.seq_lens.tolist()
        ([[1, 2], [3, 0]], [5, 2])
        >>> step.query_start_loc.tolist(), step.slot_mapping.tolist()
        ([0, 1, 3], [8, 12, 13])
    """
    query_lens = [1] * len(tables) if query_lens is None else list(query_lens)
    pool = check_step(tables, query_lens)
    width = max(len(table.blocks) for table in tables)
    starts = [0]  # [num_seqs + 1]
    slots: list[int] = []  # [num_tokens]
    positions: list[int] = []  # [num_tokens]
    for table, query_len in zip(tables, query_lens, strict=True):
        first = table.num_tokens - query_len
        starts.append(starts[-1] + query_len)
        slots += table.slot_mapping(first, table.num_tokens)
        positions += range(first, table.num_tokens)
    seq_lens = [table.num_tokens for table in tables]  # [num_seqs]
    rows = [table.block_ids + [0] * (width - len(table.blocks)) for table in tables]  # [num_seqs, width]
    return AttentionMetadata(
        block_tables=torch.tensor(rows, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        max_seq_len=max(seq_lens),
        cascade=plan_cascade(rows, seq_lens, query_lens, pool.block_size, device),
        tables=tuple(tables),
    )
