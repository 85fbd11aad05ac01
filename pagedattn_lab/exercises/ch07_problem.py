"""Decode problems for kernels that readers write: hostile inputs, what is right, and what a kernel did.

Every slot that nobody needs holds NaN, every entry of a page table behind its last block holds garbage, blocks are
handed out in no order. What a kernel touches is compared with what its program needs, row by row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.ch07_faults import in_words
from pagedattn_lab.exercises.problems import Fault, KernelProblem, Outcome
from pagedattn_lab.recorder.sentences import counted

if TYPE_CHECKING:  # a list of exercises must not wait for torch
    import torch

    from pagedattn_lab.exercises.touched import Program

LOW = 150.0
"""Subtracted from scores that are to be low, and added to those that are to be high; falling scores go from one to the
other. exp(-150) is 0 in float32, whose smallest number is exp(-103), and exp(150) is inf, since its largest is exp(88).
"""
GARBAGE = (0, -1, 10**6)
"""The null block, the mark of an empty entry, and a block that does not exist."""


@dataclass(frozen=True, eq=False)
class Problem(KernelProblem):
    """Sequences that decode one token each.

    Attributes:
        lens: tokens of each sequence; a row without any is padding of the batch.
        block_size: tokens per block.
        tile: tokens per turn of a kernel's loop.
        dim: of a head.
        heads: query heads.
        kv_heads: that they share.
        window: tokens that a query sees, itself included; ``None``: all.
        scores: "mixed", "rising" or "falling" from token to token, all "low", or all "high".
        seed: of the numbers in it.

    Example:
        >>> problem = Problem((5, 2), block_size=4, tile=4)
        >>> problem.needed["keys", (1, 0, 0)] == {int(problem.tensors["page tables"][1, 0]) * 4 + i for i in (0, 1)}
        True
    """

    lens: tuple[int, ...]
    block_size: int
    tile: int
    dim: int = 4
    heads: int = 1
    kv_heads: int = 1
    window: int | None = None
    scores: str = "mixed"
    seed: int = 0

    causes_first: ClassVar[Sequence[str]] = ("lengths", "page tables", "queries", "keys", "values", "out")
    loaders: ClassVar[str] = "query heads"
    """What the second number of a program stands for."""

    def heads_of(self, head: int) -> range:
        """Query heads that a program computes, by its second number."""
        return range(head, head + 1)

    def kv_head_of(self, head: int) -> int:
        """The KV head that it reads."""
        return head // (self.heads // self.kv_heads)

    def reads(self, head: int) -> str:
        """Its second number, in words that go on with a KV head."""
        return f"query head {head} reads"

    @property
    def padded_dim(self) -> int:
        """The lanes for it: ``dim`` rounded up to a power of two."""
        return 1 << (self.dim - 1).bit_length()

    @property
    def scale(self) -> float:
        """Of the scores."""
        return float(self.dim**-0.5)

    def visible(self, sequence: int) -> range:
        """Positions that the query of a sequence sees."""
        length = self.lens[sequence]
        return range(0 if self.window is None else max(0, length - self.window), length)

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """A kernel's arguments, by what they are called in sentences."""
        import torch

        rng, generator = random.Random(self.seed), torch.Generator().manual_seed(self.seed)
        size, columns = self.block_size, cdiv(max(*self.lens, 1), self.block_size) + 1
        logical = [sorted({position // size for position in self.visible(i)}) for i in range(len(self.lens))]
        num_blocks = sum(map(len, logical)) + 1
        free = iter(rng.sample(range(1, num_blocks), num_blocks - 1))
        tables = [[rng.choice((*GARBAGE, rng.randrange(num_blocks))) for _ in range(columns)] for _ in self.lens]
        query = torch.randn(len(self.lens), self.heads, self.dim, generator=generator)
        caches = torch.full((2, num_blocks, size, self.kv_heads, self.dim), torch.nan)
        for row, (table, used) in enumerate(zip(tables, logical, strict=True)):
            table[: self.lens[row] // size] = [0] * (self.lens[row] // size)  # a window frees what it leaves behind
            for place in used:
                table[place] = next(free)
            tokens = torch.randn(2, len(self.visible(row)), self.kv_heads, self.dim, generator=generator)
            own = query[row, :: self.heads // self.kv_heads]  # the first query head of each group
            if self.scores == "rising":
                order = (tokens[0] * own).sum(-1).argsort(dim=0)
                tokens = tokens.gather(1, order[None, ..., None].expand_as(tokens))
            if self.scores in ("low", "high", "falling"):
                first, last = (LOW if self.scores != "low" else -LOW), (LOW if self.scores == "high" else -LOW)
                shifts = torch.linspace(first, last, len(tokens[0]))[:, None, None]
                tokens[0] += own * (shifts / self.scale / own.square().sum(-1, keepdim=True))
            slots = [table[position // size] * size + position % size for position in self.visible(row)]
            caches.flatten(1, 2)[:, slots] = tokens
        return {
            "out": torch.full_like(query, torch.nan),
            "queries": query,
            "keys": caches[0],
            "values": caches[1],
            "page tables": torch.tensor(tables, dtype=torch.int32),
            "lengths": torch.tensor(self.lens, dtype=torch.int32),
        }

    @cached_property
    def programs(self) -> Mapping[Program, tuple[int, int]]:
        """Which sequence each program of the grid computes, and which of ``loaders``."""
        return {(row, head, 0): (row, head) for row in range(len(self.lens)) for head in range(self.per_sequence)}

    @property
    def per_sequence(self) -> int:
        """Programs for each sequence."""
        return self.heads

    @cached_property
    def needed(self) -> Mapping[tuple[str, Program], set[int]]:
        """Rows of tensors that each program needs: of keys and values one per slot and KV head, of tables entries."""
        found: dict[tuple[str, Program], set[int]] = {}
        for program, (row, head) in self.programs.items():
            table = self.tensors["page tables"]
            entries = {position: row * table.shape[1] + position // self.block_size for position in self.visible(row)}
            slots = [int(table.flatten()[e]) * self.block_size + p % self.block_size for p, e in entries.items()]
            rows = {slot * self.kv_heads + self.kv_head_of(head) for slot in slots}
            found["keys", program], found["values", program] = rows, rows
            found["page tables", program] = set(entries.values())
            found["lengths", program] = {row}
            own = {row * self.heads + each for each in self.heads_of(head)}
            found["queries", program] = found["out", program] = own
        return found

    def width(self, tensor: str) -> int:
        """Elements in a row of a tensor."""
        return 1 if tensor in ("page tables", "lengths") else self.dim

    @cached_property
    def limit(self) -> float:
        """How far rounding can drive two right answers apart."""
        from pagedattn_lab.attention.tolerance import tolerance

        query, key, value = (self.tensors[name].nan_to_num() for name in ("queries", "keys", "values"))
        return tolerance(query, key.flatten(0, 1), value.flatten(0, 1), max(self.lens))

    @cached_property
    def values(self) -> torch.Tensor:
        """What is right, ``[sequences, heads, dim]`` in float64, by the specification that the chapter shows."""
        import torch

        tensors, size = self.tensors, self.block_size
        out = torch.zeros(tensors["out"].shape, dtype=torch.float64)
        for row in range(len(self.lens)):
            positions = torch.tensor(self.visible(row), dtype=torch.int64)
            slots = tensors["page tables"][row, positions // size] * size + positions % size
            group = self.heads // self.kv_heads
            key, value = (
                tensors[name].flatten(0, 1)[slots].double().repeat_interleave(group, dim=1)
                for name in ("keys", "values")
            )
            scores = torch.einsum("hd,thd->ht", tensors["queries"][row].double(), key) * self.scale
            out[row] = torch.einsum("ht,thd->hd", torch.softmax(scores, dim=1), value)
        return out

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Give what a kernel is launched with, beside its constants."""
        return (*tensors.values(), tensors["page tables"].stride(0), self.scale)

    def grid(self, constants: Mapping[str, int]) -> tuple[int, ...]:
        """One program per sequence and, where heads share, one of ``loaders``."""
        per_head = self.heads > 1 or "HEADS" in constants
        return (len(self.lens), self.per_sequence) if per_head else (len(self.lens),)

    def results(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Give out, ``[sequences, heads, dim]``."""
        return tensors["out"].double()

    def is_close(self, values: torch.Tensor, others: torch.Tensor) -> bool:
        """Whether no number is further from its counterpart than rounding can drive it."""
        import torch

        return torch.allclose(values, others, rtol=0, atol=self.limit, equal_nan=True)

    def in_words(self, found: Sequence[Fault]) -> str:
        """Say what the first of these faults is."""
        return in_words(self, found)

    def told(self, outcome: Outcome) -> str:
        """The first rows of out, and how much was loaded."""
        numbers = ["[" + ", ".join(f"{x:.3g}" for x in row) + "]" for row in outcome.values.flatten(0, 1).tolist()]
        shown = ", ".join(numbers[:4]) + (", …" if len(numbers) > 4 else "")
        loads = {name: outcome.rows("load", name) for name in ("keys", "values", "page tables")}
        keys, values, tables = (sum(map(len, each.values())) for each in loads.values())
        entries = f"{tables} {'entry' if tables == 1 else 'entries'} of page tables"
        again = any(fault.kind == "again" for fault in outcome.faults)
        often = ", some of them more than once" if again else ""
        return f"out {shown}; loaded: {counted(keys, 'row')} of keys, {values} of values, {entries}{often}"
