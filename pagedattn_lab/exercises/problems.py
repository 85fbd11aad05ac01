"""Problems for kernels that readers write: what a kernel is launched on, what it did, and what it must not touch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # a list of exercises must not wait for torch
    import torch

    from pagedattn_lab.exercises.touched import Program, Touched


class KernelProblem(ABC):
    """Inputs for one launch, and what each program of it needs.

    Attributes:
        causes_first: names of the tensors; what is wrong with an early one may be why a later one is touched.
        written: tensors that programs store into.
        once: tensors of which a program loads an element at most once.
    """

    causes_first: ClassVar[Sequence[str]]
    written: ClassVar[Sequence[str]] = ("out",)
    once: ClassVar[Sequence[str]] = ()

    def __deepcopy__(self, _: Any) -> KernelProblem:
        return self  # a kernel gets copies of the tensors

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Tensors among a kernel's arguments, by what they are called in sentences."""

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Give what a kernel is launched with, beside its constants."""
        return tuple(tensors.values())

    @property
    @abstractmethod
    def programs(self) -> Mapping[Program, tuple[int, int]]:
        """What each program of the grid computes, in two numbers."""

    @property
    @abstractmethod
    def needed(self) -> Mapping[tuple[str, Program], set[int]]:
        """Rows of tensors that each program needs, or, of those in ``written``, has to store."""

    @property
    @abstractmethod
    def values(self) -> Any:
        """What is right, as ``results`` gives it."""

    @abstractmethod
    def grid(self, constants: Mapping[str, int]) -> tuple[int, ...]:
        """Programs along each axis."""

    @abstractmethod
    def width(self, tensor: str) -> int:
        """Elements in a row of a tensor."""

    @abstractmethod
    def results(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Give what a launch computed, out of its tensors."""

    @abstractmethod
    def is_close(self, values: Any, others: Any) -> bool:
        """Whether two results are the same up to rounding."""

    @abstractmethod
    def in_words(self, found: Sequence[Fault]) -> str:
        """Say what the first of these faults is, and what follows from it."""

    @abstractmethod
    def told(self, outcome: Outcome) -> str:
        """An outcome in a line."""

    @cached_property
    def specified(self) -> Outcome:
        """What is right, with all that is needed touched once."""
        touched = {
            ("store" if name in self.written else "load", name, program): {
                row * self.width(name) + i for row in rows for i in range(self.width(name))
            }
            for (name, program), rows in self.needed.items()
            if rows
        }
        return Outcome(self, self.values, touched)

    def run(self, kernel: Any, **constants: int) -> Outcome:
        """Launch a kernel.

        Raises:
            Exception: whatever the kernel raises.
        """
        from triton.runtime.interpreter import InterpreterError

        from pagedattn_lab.attention.launch import launch
        from pagedattn_lab.exercises.touched import watched

        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        with watched(tensors) as touched:
            try:
                launch(kernel, self.grid(constants), *self.arguments(tensors), **constants)
            except InterpreterError as error:
                raise (error.__cause__ or error) from None
        return Outcome(self, self.results(tensors), dict(touched))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a kernel computed, and what it touched on the way."""

    problem: Any
    values: Any
    touched: Touched

    def __repr__(self) -> str:
        return str(self.problem.told(self))

    def rows(self, access: str, tensor: str) -> Mapping[Program, set[int]]:
        """Rows of a tensor that each program touched, also those outside of it."""
        width = self.problem.width(tensor)
        return {
            program: {element // width for element in elements}
            for (how, name, program), elements in sorted(self.touched.items())
            if (how, name) == (access, tensor)
        }

    @cached_property
    def faults(self) -> list[Fault]:
        """What must not have been touched, causes before their effects."""
        return faults(self.problem, self.touched)

    def is_close(self, expected: Outcome) -> bool:
        """Whether the values are those of another outcome, up to rounding."""
        return bool(self.problem.is_close(self.values, expected.values))


@dataclass(frozen=True)
class Fault:
    """Something that a program touched and must not.

    Attributes:
        kind: "outside" of the tensor, "not needed" by the program that loads it, loaded "again", or "not its own" to
            store into.
        tensor: its name.
        program: that did it.
        elements: of the tensor, in order.
        access: "load" or "store".
    """

    kind: str
    tensor: str
    program: tuple[int, int, int]
    elements: tuple[int, ...]
    access: str = "load"

    @property
    def verb(self) -> str:
        """What the program does to them."""
        return f"{self.access}s"


def faults(problem: KernelProblem, touched: Touched) -> list[Fault]:
    """List what programs touched outside of tensors, without need, or too often; causes before their effects."""
    found = []
    order = sorted(touched.items(), key=lambda each: problem.causes_first.index(each[0][1]))
    for (access, name, program), elements in order:
        mine = access != "store" or name in problem.written
        needed = problem.needed.get((name, program), set()) if mine else set()
        outside = {element for element in elements if not 0 <= element < problem.tensors[name].numel()}
        others = {element for element in elements - outside if element // problem.width(name) not in needed}
        if access == "again":  # what it must not load at all is told where it loads it
            kinds = {"again": elements - outside - others if name in problem.once else set()}
        else:
            kinds = {"outside": outside, "not needed" if access == "load" else "not its own": others}
        how = "store" if access == "store" else "load"
        found += [Fault(kind, name, program, tuple(sorted(those)), how) for kind, those in kinds.items() if those]
    return found
