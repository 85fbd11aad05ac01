"""Exercises whose answer is a Triton kernel: launched where every load is seen, and shown with what it touched."""

from __future__ import annotations

import importlib
import inspect
import linecache
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, NoReturn

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.grading import Answer, Exercise
from pagedattn_lab.exercises.printed import taken_down
from pagedattn_lab.exercises.problems import KernelProblem, Outcome
from pagedattn_lab.exercises.verdict import Verdict
from pagedattn_lab.recorder.sentences import counted
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


Refusal = list[tuple[str, str]]
"""What Triton's compiler says against a kernel: rows of a verdict."""


def refusal(kernel: Any, values: Sequence[Any], constants: Mapping[str, int]) -> Refusal:
    """Compile a kernel for a GPU, which need not be here, and say what Triton's compiler has against it, if anything.

    The interpreter is Python, and runs what no GPU can: a ``break``, or a variable that is an integer before a loop and
    a float after its first turn.

    Args:
        kernel: a function decorated with ``@triton.jit``.
        values: what it is launched with: tensors, integers and floats, in their order.
        constants: its ``tl.constexpr`` arguments, by name.

    Returns:
        Triton's message, and the line of the kernel that it is about; nothing for a kernel that compiles.

    Example:
        >>> import torch
        >>> tensors = [torch.zeros(1)] * 4 + [torch.zeros(1, dtype=torch.int32)] * 2
        >>> sizes = {"WINDOW": 4, "BLOCK_SIZE": 4, "DIM": 4, "TILE": 4}
        >>> kernel = OwnKernel("pagedattn_lab.exercises.ch07_solutions", "windowed_decode")
        >>> refusal(kernel.load(), [*tensors, 4, 0.5], sizes)
        []
        >>> leaves_early = kernel.but(("running_max = new_max", "break"))
        >>> refusal(leaves_early.load(), [*tensors, 4, 0.5], sizes)[0]
        ('Triton', 'unsupported AST node type: Break')
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import PTXASError

    from pagedattn_lab.attention.launch import one_at_a_time

    given = dict(zip(kernel.arg_names, values, strict=False)) | dict(constants)
    fixed = {param.name: given[param.name] for param in kernel.params if param.is_constexpr}
    signature = {name: "constexpr" if name in fixed else _type(given[name]) for name in kernel.arg_names}
    try:
        with one_at_a_time:  # a launch exchanges parts of Triton meanwhile
            triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 80, 32))
    except CompilationError as error:
        causes = [cause for cause in _causes(error) if isinstance(cause, CompilationError)]
        said = next(cause.error_message for cause in reversed(causes) if cause.error_message or cause is error)
        own = [cause.node for cause in causes if cause.src == kernel.src and hasattr(cause.node, "lineno")]
        return [("Triton", said or type(error).__name__), *(_line(kernel, node.lineno) for node in own[-1:])]
    except PTXASError:  # the kernel was taken: what fails is what Triton made of it, as it may for a print
        return []
    return []


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from: one in a function that a kernel calls is told of for each call."""
    while error is not None:
        yield error
        error = error.__cause__


def _type(argument: Any) -> str:
    """What Triton calls the type of an argument."""
    import torch

    if isinstance(argument, torch.Tensor):
        return {torch.float32: "*fp32", torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64"}[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def _line(kernel: Any, number: int) -> tuple[str, str]:
    """Name a line of a kernel, counted from its ``def``, as it is counted where it was written."""
    text = kernel.src.splitlines()[number - 1].strip()
    before = next(index for index, line in enumerate(kernel.raw_src) if line.lstrip().startswith("def "))
    return "at", f"line {kernel.starting_line_number + before + number - 1} of {kernel.__name__}: {text}"


@dataclass(eq=False, repr=False)
class KernelExercise(Exercise):
    """An exercise whose reference and wrong answers are :class:`OwnKernel`, and whose answers ``run`` launches.

    Args:
        given: values and constants that a kernel is launched with in a case: one that has all cases right is compiled
            for them, too.
    """

    given: Callable[[tuple[Any, ...]], tuple[Sequence[Any], Mapping[str, int]]] | None = None

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

    def refused(self, answer: Answer) -> Verdict | None:
        """Refuse a kernel that Triton cannot compile."""
        from triton.runtime.jit import JITFunction

        kernel = answer.load() if isinstance(answer, OwnKernel) else answer
        if not self.given or not isinstance(kernel, JITFunction):  # with TRITON_INTERPRET set nothing can be compiled
            return None
        with taken_down():  # Triton prints what its assembler refuses
            rows = refusal(kernel, *self.given(next(iter(self.cases())).arguments))
        if not rows:
            return None
        why = "The cases run in Triton's interpreter, which is Python. A GPU runs only what the compiler takes."
        return Verdict(False, "✗ Not yet: all cases are right, but Triton cannot compile this kernel.", rows, [why])

    def solution(self) -> Sentence:
        """Show a right kernel, and why it is one."""
        source = self.reference.source  # type: ignore[attr-defined]
        return Sentence(f"{self.explanation}\n\n```python\n{IMPORTS}{source}```")


# --- parts of such an exercise ----------------------------------------------------------------------------------------


def specified(problem: KernelProblem) -> Outcome:
    """Give what is right; no kernel, so nothing is launched."""
    return problem.specified


def launching(constants: Callable[[Any], dict[str, int]], compiled_for: KernelProblem | None = None) -> dict[str, Any]:
    """Give ``run`` and ``given`` of an exercise.

    Args:
        constants: the ``tl.constexpr`` arguments of its kernels, for a problem.
        compiled_for: what a right kernel is compiled for; by default the first case.
    """
    return {"run": partial(_launched, constants), "given": partial(_given, constants, compiled_for)}


def _given(
    constants: Callable[[Any], dict[str, int]], compiled_for: KernelProblem | None, arguments: tuple[Any, ...]
) -> tuple[tuple[Any, ...], dict[str, int]]:
    problem = compiled_for or arguments[0]
    return problem.arguments(problem.tensors), constants(problem)


def _launched(constants: Callable[[Any], dict[str, int]], answer: Answer, arguments: tuple[Any, ...]) -> Outcome:
    (problem,) = arguments
    if answer is specified:
        return specified(problem)
    if isinstance(answer, OwnKernel):
        return _ours(answer, problem, tuple(constants(problem).items()))
    if not hasattr(answer, "arg_names"):
        tensors = {name: tensor.clone() for name, tensor in problem.tensors.items()}
        why = None
        try:
            answer(*problem.arguments(tensors), **constants(problem))
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


def stored_too_little(stored: int, size: int, where: str) -> str | None:
    """Say that nothing was stored, or too few elements.

    Example:
        >>> stored_too_little(3, 4, "for token 0")
        'Only 3 of 4 elements are stored for token 0.'
    """
    if not stored:
        return f"Nothing is stored {where}."
    return f"Only {stored} of {counted(size, 'element')} are stored {where}." if stored < size else None


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
