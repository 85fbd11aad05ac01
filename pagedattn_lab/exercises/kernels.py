"""Exercises whose answer is a Triton kernel: launched where every load is seen, and shown with what it touched."""

from __future__ import annotations

import importlib
import inspect
import linecache
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any, NoReturn

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.grading import Answer, Exercise
from pagedattn_lab.exercises.printed import taken_down
from pagedattn_lab.exercises.problems import KernelProblem, Outcome
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


# --- parts of such an exercise ----------------------------------------------------------------------------------------


def specified(problem: KernelProblem) -> Outcome:
    """Give what is right; no kernel, so nothing is launched."""
    return problem.specified


def launching(constants: Callable[[Any], dict[str, int]]) -> Callable[[Answer, tuple[Any, ...]], Outcome]:
    """Give the ``run`` of an exercise whose kernels take these ``tl.constexpr`` arguments of a problem."""
    return partial(_launched, constants)


def _launched(constants: Callable[[Any], dict[str, int]], answer: Answer, arguments: tuple[Any, ...]) -> Outcome:
    (problem,) = arguments
    if answer is specified:
        return specified(problem)
    if isinstance(answer, OwnKernel):
        return _ours(answer, problem, tuple(constants(problem).items()))
    if not hasattr(answer, "arg_names"):
        tensors = [tensor.clone() for tensor in problem.tensors.values()]
        why = None
        try:
            answer(*tensors, *problem.scalars, **constants(problem))
        except NotImplementedError:  # a stub says so
            raise
        except Exception as error:  # it is written for Triton: whatever it meets outside, the mark is what it lacks
            why = error
        raise TypeError("this is no kernel: put @triton.jit above its def") from why
    return problem.run(answer, **constants(problem))  # type: ignore[no-any-return]


@cache
def _ours(kernel: OwnKernel, problem: KernelProblem, constants: tuple[tuple[str, int], ...]) -> Outcome:
    """Launch a known kernel once: each wrong answer of a reader is compared with those that are known."""
    return problem.run(kernel.load(), **dict(constants))


def same(expected: Outcome, got: Outcome) -> bool:
    """Say whether two kernels stored the same, and touched the same that they must not."""
    stored = all(expected.rows("store", name) == got.rows("store", name) for name in expected.problem.written)
    return stored and got.is_close(expected) and got.faults == expected.faults


def touched_wrongly(expected: Outcome, got: Outcome) -> str | None:
    """Say what a program must not have touched, if there is anything."""
    if not got.faults:
        return None
    words = got.problem.in_words(got.faults)
    if not got.is_close(expected):
        return str(words)
    stores = {fault.kind for fault in got.faults if fault.access == "store"}
    luck = "right all the same"
    if stores:
        in_turn, kept = "programs run one after the other here", "what lies outside of a tensor is never written here"
        luck = f"right only because {in_turn if 'not its own' in stores else kept}"
    return f"{words} The result is {luck}."


def kernel_cases(
    name: str,
    known: Sequence[tuple[Any, str]],
    make: Callable[[random.Random, int], Any],
    number: int,
    about: str,
    shown: Callable[[Any], str],
    size: Callable[[Any], int],
) -> list[Case]:
    """Give cases made by hand, each a problem with a sentence about it, then some by chance, the smallest first."""
    import torch  # noqa: F401  what is slow to import is not on an answer's time

    import pagedattn_lab.attention.launch  # noqa: F401

    rng = random.Random(name)
    chance = sorted((make(rng, seed) for seed in range(number)), key=size)
    problems = [*known, *((problem, about) for problem in chance)]
    return [Case((problem,), words, f"{name} on {shown(problem)}") for problem, words in problems]
