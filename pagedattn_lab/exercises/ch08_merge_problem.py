"""Partial results to be merged by kernels that readers write: some splits are empty, some scores extreme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from pagedattn_lab.exercises.ch07_merge import partial_attention
from pagedattn_lab.exercises.ch07_problem import LOW
from pagedattn_lab.exercises.problems import Fault, KernelProblem, Outcome
from pagedattn_lab.recorder.sentences import counted

if TYPE_CHECKING:  # a list of exercises must not wait for torch
    import torch

    from pagedattn_lab.exercises.touched import Program

OFFSETS = {"mixed": (0.0,), "high": (LOW,), "low": (-LOW,), "apart": (LOW, 0.0, -LOW)}
"""What is added to the scores of one split after another: exp(150) is infinite in float32, and exp(-150) is 0."""


@dataclass(frozen=True, eq=False)
class MergeProblem(KernelProblem):
    """Partial results of sequences whose tokens were split.

    Attributes:
        tokens: in each split of each sequence; a split without any has the maximum -inf, the sum 0, and an
            accumulator that nobody wrote.
        heads: query heads.
        dim: of a head.
        scores: a key of ``OFFSETS``.
        seed: of the numbers in it.

    Example:
        >>> problem = MergeProblem(((3, 0, 2),))
        >>> problem.tensors["maxima"][0, 0, 1], problem.needed["accumulators", (0, 0, 0)]
        (tensor(-inf), {0, 2})
    """

    tokens: tuple[tuple[int, ...], ...]
    heads: int = 1
    dim: int = 4
    scores: str = "mixed"
    seed: int = 0

    causes_first: ClassVar[Sequence[str]] = ("maxima", "sums", "accumulators", "out")

    @property
    def splits(self) -> int:
        """Partial results of each head of each sequence."""
        return len(self.tokens[0])

    @property
    def lanes(self) -> int:
        """Splits, rounded up to a power of two."""
        return 1 << (self.splits - 1).bit_length()

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """A kernel's arguments, by what they are called in sentences."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        shape, offsets = (len(self.tokens), self.heads, self.splits), OFFSETS[self.scores]
        maxima, sums = torch.full(shape, -torch.inf), torch.zeros(shape)
        accumulators = torch.full((*shape, self.dim), torch.nan)
        for row, splits in enumerate(self.tokens):
            for split, tokens in enumerate(splits):
                scores = 2 * torch.randn(self.heads, tokens, generator=generator) + offsets[split % len(offsets)]
                value = torch.randn(tokens, self.dim, generator=generator)
                if tokens:
                    place = row, slice(None), split
                    maxima[place], sums[place], accumulators[place] = partial_attention(scores, value)
        out = torch.full((*shape[:2], self.dim), torch.nan)
        return {"out": out, "maxima": maxima, "sums": sums, "accumulators": accumulators}

    @cached_property
    def programs(self) -> Mapping[Program, tuple[int, int]]:
        """Which sequence and query head each program of the grid merges."""
        return {(row, head, 0): (row, head) for row in range(len(self.tokens)) for head in range(self.heads)}

    @cached_property
    def needed(self) -> Mapping[tuple[str, Program], set[int]]:
        """Maxima and sums of all splits, the accumulators of those that have tokens, and a row of out."""
        found: dict[tuple[str, Program], set[int]] = {}
        for program, (row, head) in self.programs.items():
            first = (row * self.heads + head) * self.splits
            found["maxima", program] = found["sums", program] = set(range(first, first + self.splits))
            used = {first + split for split, tokens in enumerate(self.tokens[row]) if tokens}
            found["accumulators", program] = used
            found["out", program] = {row * self.heads + head}
        return found

    def width(self, tensor: str) -> int:
        """Elements in a row of a tensor."""
        return 1 if tensor in ("maxima", "sums") else self.dim

    def grid(self, constants: Mapping[str, int]) -> tuple[int, ...]:
        """One program per sequence and query head."""
        return len(self.tokens), self.heads

    @cached_property
    def values(self) -> torch.Tensor:
        """What is right, ``[sequences, heads, dim]`` in float64, by the specification that the chapter shows."""
        import torch

        maxima, sums, accumulators = (self.tensors[name].double() for name in ("maxima", "sums", "accumulators"))
        out = torch.empty(self.tensors["out"].shape, dtype=torch.float64)
        for place in self.programs.values():
            used = maxima[place] > -torch.inf
            shares = torch.softmax(maxima[place][used] + torch.log(sums[place][used]), dim=0)
            out[place] = shares @ (accumulators[place][used] / sums[place][used][:, None])
        return out

    def results(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Give out, ``[sequences, heads, dim]``."""
        return tensors["out"].double()

    @cached_property
    def limit(self) -> float:
        """How far rounding can drive two right answers apart.

        The output is a mean of the splits' outputs. Each of two sums over them rounds at most twice per split, where
        one split after another is merged, and factors, products and the division a few times more. Two ways may each
        be off by that much.
        """
        import torch

        outputs = (self.tensors["accumulators"] / self.tensors["sums"][..., None]).nan_to_num(0.0)
        return float(2 * torch.finfo(torch.float32).eps * (2 * self.splits + 10) * outputs.abs().max())

    def is_close(self, values: torch.Tensor, others: torch.Tensor) -> bool:
        """Whether no number is further from its counterpart than rounding can drive it."""
        import torch

        return torch.allclose(values, others, rtol=0, atol=self.limit, equal_nan=True)

    def in_words(self, found: Sequence[Fault]) -> str:
        """Say what the first of these faults is."""
        fault = found[0]
        row, head = self.programs[fault.program]
        who, element = f"Program {(row, head)}", fault.elements[0]
        if fault.access == "store" and fault.tensor != "out":
            return f"{who} stores into the {fault.tensor}, which are there to be read."
        lanes = self._lanes(fault)
        if fault.kind == "outside":
            size = self.tensors[fault.tensor].numel()
            return f"{who} {fault.verb} element {element} of {fault.tensor}, which has {size}: out of bounds.{lanes}"
        index = element // self.width(fault.tensor)
        if fault.tensor == "out":
            theirs = divmod(index, self.heads)
            return (
                f"{who} {fault.verb} elements of out that belong to {place(theirs)}, but merges {place((row, head))}."
            )
        theirs, split = divmod(index // self.splits, self.heads), index % self.splits
        if theirs != (row, head):
            of = f"split {split} of {place(theirs)}"
            return f"{who} loads {fault.tensor} of {of}, but merges {place((row, head))}.{lanes}"
        return (
            f"{who} loads the accumulator of split {split}, which had no token: nobody wrote it, and what lies there "
            "is garbage, here NaN."
        )

    def _lanes(self, fault: Fault) -> str:
        """A sentence on lanes that run on behind the last split, where it is these that did it."""
        behind = max(self.needed["maxima", fault.program]) + 1
        rows = {element // self.width(fault.tensor) for element in fault.elements}
        if fault.tensor == "out" or not rows <= {*range(behind, behind + self.lanes - self.splits)}:
            return ""
        return f" Lanes from {self.splits} on have no split: they run into what follows the row."

    def told(self, outcome: Outcome) -> str:
        """The first rows of out, and how much was loaded."""
        numbers = ["[" + ", ".join(f"{x:.3g}" for x in row) + "]" for row in outcome.values.flatten(0, 1).tolist()]
        shown = ", ".join(numbers[:4]) + (", …" if len(numbers) > 4 else "")
        rows = sum(map(len, outcome.rows("load", "accumulators").values()))
        return f"out {shown}; loaded: {counted(rows, 'accumulator')}"


def place(pair: tuple[int, int]) -> str:
    """Name a sequence and a head."""
    return f"sequence {pair[0]}, head {pair[1]}"
