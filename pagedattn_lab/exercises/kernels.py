"""Exercises whose answer is a Triton kernel: launched where every load is seen, and shown with what it touched."""

from __future__ import annotations

import importlib
import inspect
import linecache
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

from pagedattn_lab.exercises.grading import Answer, Exercise
from pagedattn_lab.exercises.printed import taken_down
from pagedattn_lab.exercises.verdict import Verdict
from pagedattn_lab.viz.sentence import Sentence

IMPORTS = "import triton\nimport triton.language as tl\n\n\n"


class OwnKernel:
    """A kernel of the library's, and a list of exercises need not wait for Triton: it is made when it is first used.

    Args:
        module: in which it stands.
        name: of the kernel there.
        changes: pieces of its source, each with what it is replaced by: a wrong answer is a right one with a mistake.

    Example:
        >>> kernel = OwnKernel("pagedattn_lab.exercises.ch07_solutions", "grouped_decode", ("head //", "head %"))
        >>> kernel.load().arg_names[0], "head % (HEADS" in kernel.source
        ('out_ptr', True)
    """

    def __init__(self, module: str, name: str, *changes: tuple[str, str]) -> None:
        self.module, self.name, self.changes = module, name, changes

    def but(self, *changes: tuple[str, str]) -> OwnKernel:
        """Give the same kernel with pieces of its source replaced."""
        return OwnKernel(self.module, self.name, *self.changes, *changes)

    def __call__(self, *_: Any) -> NoReturn:
        """Refuse: a kernel runs on a grid.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self.name} is a kernel: it is launched, and not called")

    @cached_property
    def source(self) -> str:
        """Its source.

        Raises:
            ValueError: a piece to be replaced does not stand there.
        """
        text = inspect.getsource(getattr(importlib.import_module(self.module), self.name).fn)
        for old, new in self.changes:
            if old not in text:
                raise ValueError(f"{old!r} does not stand in {self.name}: bring the change up to date")
            text = text.replace(old, new)
        return text

    def load(self) -> Any:
        """Give the kernel."""
        return self._kernel

    @cached_property
    def _kernel(self) -> Any:
        if not self.changes:
            return getattr(importlib.import_module(self.module), self.name)
        text, name = IMPORTS + self.source, f"<{self.name}: {self.changes}>"
        linecache.cache[name] = (
            len(text),
            None,
            text.splitlines(keepends=True),
            name,
        )  # Triton reads a kernel's source
        namespace: dict[str, Any] = {"__name__": __name__}
        exec(compile(text, name, "exec"), namespace)
        return namespace[self.name]


class KernelExercise(Exercise):
    """An exercise whose reference and wrong answers are :class:`OwnKernel`, and whose answers ``run`` launches."""

    @property
    def parameters(self) -> list[str]:
        """Names of the kernel's arguments."""
        return list(self.reference.load().arg_names)  # type: ignore[attr-defined]

    def grade(self, answer: Answer) -> Verdict:
        """Try an answer on every case; a right one, too, is shown what it touched, in the first case."""
        verdict = super().grade(answer)
        if not verdict.passed or not self.draw or not self.run:
            return verdict
        arguments = next(iter(self.cases())).arguments
        with taken_down():  # what it prints has been told of
            outcome = self.run(answer, arguments)
        picture = self.draw(arguments, outcome)
        pictures = [("what your kernel touched in the first case", picture)] if picture else []
        return replace(verdict, pictures=pictures)

    def solution(self) -> Sentence:
        """Show a right kernel, and why it is one."""
        source = self.reference.source  # type: ignore[attr-defined]
        return Sentence(f"{self.explanation}\n\n```python\n{IMPORTS}{source}```")
