"""Keys to be written into an int8 cache by kernels that readers write: slots in no order, padding, rows of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from pagedattn_lab.exercises.problems import Fault, KernelProblem, Outcome
from pagedattn_lab.recorder.sentences import counted

if TYPE_CHECKING:  # a list of exercises must not wait for torch
    import torch

    from pagedattn_lab.exercises.touched import Program

    Written = Mapping[str, torch.Tensor]

LARGEST = 127
"""Of int8 in both directions; -128 has no counterpart, and stays unused."""


@dataclass(frozen=True, eq=False)
class WriteProblem(KernelProblem):
    """Keys of new tokens, and where they go.

    Attributes:
        slots: of each token; -1: the token is padding.
        kv_heads: rows of keys of a token.
        dim: of a head.
        zeros: pairs of a token and a head whose row is all zeros.
        sign: "mixed", or "negative": no number above 0.
        seed: of the numbers in it.

    Example:
        >>> problem = WriteProblem((2, -1, 0), kv_heads=2)
        >>> problem.needed["cache", (0, 1, 0)], problem.needed["cache", (1, 1, 0)]
        ({5}, set())
    """

    slots: tuple[int, ...]
    kv_heads: int = 1
    dim: int = 4
    zeros: tuple[tuple[int, int], ...] = ()
    sign: str = "mixed"
    seed: int = 0

    causes_first: ClassVar[Sequence[str]] = ("slots", "keys", "scales", "cache")
    written: ClassVar[Sequence[str]] = ("scales", "cache")

    @property
    def num_slots(self) -> int:
        """Of the cache."""
        return max(*self.slots, 0) + 2

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """A kernel's arguments, by what they are called in sentences."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        keys = torch.randn(len(self.slots), self.kv_heads, self.dim, generator=generator)
        keys *= 10 ** (2 * torch.rand(len(self.slots), self.kv_heads, 1, generator=generator) - 1)  # 0.1 to 10
        if self.sign == "negative":
            keys = -keys.abs()
        for token, head in self.zeros:
            keys[token, head] = 0
        for token, slot in enumerate(self.slots):
            if slot < 0:
                keys[token] = torch.nan
        cache = torch.randint(-128, 128, (self.num_slots, self.kv_heads, self.dim), generator=generator)
        return {
            "cache": cache.to(torch.int8),
            "scales": torch.full((self.num_slots, self.kv_heads), torch.nan),
            "keys": keys,
            "slots": torch.tensor(self.slots, dtype=torch.int64),
        }

    @cached_property
    def programs(self) -> Mapping[Program, tuple[int, int]]:
        """Which token and KV head each program of the grid writes."""
        return {(token, head, 0): (token, head) for token in range(len(self.slots)) for head in range(self.kv_heads)}

    @cached_property
    def needed(self) -> Mapping[tuple[str, Program], set[int]]:
        """Rows of tensors that each program may load, or has to store."""
        found: dict[tuple[str, Program], set[int]] = {}
        for program, (token, head) in self.programs.items():
            slot = self.slots[token]
            found["slots", program] = {token}
            found["keys", program] = {token * self.kv_heads + head}
            found["scales", program] = {slot * self.kv_heads + head} if slot >= 0 else set()
            found["cache", program] = found["scales", program]
        return found

    def width(self, tensor: str) -> int:
        """Elements in a row of a tensor."""
        return self.dim if tensor in ("keys", "cache") else 1

    def grid(self, constants: Mapping[str, int]) -> tuple[int, ...]:
        """One program per token and KV head."""
        return len(self.slots), self.kv_heads

    @cached_property
    def values(self) -> Written:
        """What is right in float64, the cache before it is rounded; what nobody writes stays."""
        import torch

        cache, scales = self.tensors["cache"].double(), self.tensors["scales"].double()
        for slot, row in zip(self.slots, self.tensors["keys"].double(), strict=True):
            if slot >= 0:
                scales[slot] = row.abs().amax(dim=1) / LARGEST
                cache[slot] = torch.nan_to_num(row / scales[slot][:, None])
        return {"cache": cache, "scales": scales}

    def results(self, tensors: Mapping[str, torch.Tensor]) -> Written:
        """Give cache and scales."""
        return {name: tensors[name].double() for name in ("cache", "scales")}

    def is_close(self, values: Written, others: Written) -> bool:
        """Whether scales are the same up to rounding and numbers are nearest; of a row of zeros, what it gives back."""
        import torch

        rounding = 4 * torch.finfo(torch.float32).eps  # of the scale, its inverse, the product, and one to spare
        keys_of = torch.zeros(self.num_slots, self.kv_heads, dtype=torch.bool)
        for token, head in self.zeros:
            keys_of[self.slots[token], head] = self.slots[token] >= 0
        back, other_back = (each["cache"][keys_of] * each["scales"][keys_of][:, None] for each in (values, others))
        scales, other_scales = (each["scales"][~keys_of] for each in (values, others))
        apart = (values["cache"][~keys_of] - others["cache"][~keys_of]).abs()
        return (
            torch.allclose(back, other_back, rtol=0, atol=0, equal_nan=True)
            and torch.allclose(scales, other_scales, rtol=rounding, atol=0, equal_nan=True)
            and bool((apart <= 0.5 + LARGEST * rounding).all())
        )

    def in_words(self, found: Sequence[Fault]) -> str:
        """Say what the first of these faults is."""
        fault = found[0]
        token, head = self.programs[fault.program]
        who, element = f"Program {(token, head)}", fault.elements[0]
        if fault.access == "store" and fault.tensor not in self.written:
            return f"{who} stores into the {fault.tensor}, which are there to be read."
        if fault.access == "store" and self.slots[token] < 0:
            return (
                f"{who} stores into the {fault.tensor}, but token {token} has slot -1: it is padding, and not written."
            )
        if fault.kind == "outside":
            size = self.tensors[fault.tensor].numel()
            return f"{who} {fault.verb} element {element} of {fault.tensor}, which has {size}: out of bounds."
        theirs = divmod(element // self.width(fault.tensor), 1 if fault.tensor == "slots" else self.kv_heads)
        if fault.tensor == "slots":
            return f"{who} loads the slot of token {theirs[0]}, but writes token {token}."
        if fault.tensor == "keys":
            return f"{who} loads keys of token {theirs[0]}, head {theirs[1]}, but writes token {token}, head {head}."
        there = f"what belongs to slot {theirs[0]}, head {theirs[1]} of the {fault.tensor}"
        return f"{who} {fault.verb} {there}: its own is slot {self.slots[token]}, head {head}."

    def told(self, outcome: Outcome) -> str:
        """The first rows written, each with its scale."""
        rows = []
        for slot, head in [(slot, head) for slot in self.slots if slot >= 0 for head in range(self.kv_heads)][:3]:
            numbers = ", ".join(f"{number:.0f}" for number in outcome.values["cache"][slot, head].tolist())
            rows.append(f"slot {slot}, head {head}: {outcome.values['scales'][slot, head]:.4g} × [{numbers}]")
        stored = sum(map(len, outcome.rows("store", "cache").values()))
        return "; ".join([*rows, f"stored: {counted(stored, 'row')} of the cache"])
