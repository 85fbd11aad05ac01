"""Exercises with checks that have been proven to reject named wrong answers.

A chapter ships a stub that raises ``NotImplementedError``; "run all" passes and reports "not attempted".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.exercises.guesses import reconcile as reconcile  # where chapters import it from


@dataclass(frozen=True)
class Verdict:
    """What the check of an exercise found; ``passed`` is ``None`` where nothing was attempted."""

    passed: bool | None
    message: str

    def __repr__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Exercise:
    """A small task with its check, a reference solution, and wrong answers that the check must catch.

    Args:
        check: runs an answer and raises ``AssertionError`` with a hint when it is wrong.
        reference: a right answer.
        wrong: plausible wrong answers, by the mistake they make.

    Example:
        >>> def check(answer):
        ...     assert answer(3) == 9, f"3 squared is 9, not {answer(3)}"
        >>> square = Exercise(check, reference=lambda x: x * x, wrong={"doubles": lambda x: 2 * x})
        >>> square.grade(lambda x: 2 * x)
        Not yet: 3 squared is 9, not 6
        >>> square.grade(square.reference)
        Correct.
    """

    check: Callable[[Callable[..., Any]], None]
    reference: Callable[..., Any]
    wrong: Mapping[str, Callable[..., Any]]

    def grade(self, answer: Callable[..., Any]) -> Verdict:
        """Check an answer; an exception that it raises is a finding too, and is named."""
        try:
            self.check(answer)
        except NotImplementedError:
            return Verdict(None, "Not attempted: replace the line that raises NotImplementedError.")
        except AssertionError as hint:
            return Verdict(False, f"Not yet: {hint}")
        except Exception as error:
            return Verdict(False, f"Not yet: your code raised {type(error).__name__}: {error}")
        return Verdict(True, "Correct.")
