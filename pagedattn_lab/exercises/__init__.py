"""Exercises that answer back: what is wrong, in which case, and what the answer seems to do (chapters 00 to 07).

A chapter ships a stub that raises ``NotImplementedError``; "run all" passes and reports "not attempted".
"""

from __future__ import annotations

from pagedattn_lab.exercises.catalogue import catalogue, progress
from pagedattn_lab.exercises.grading import Case, Exercise
from pagedattn_lab.exercises.verdict import Verdict
from pagedattn_lab.viz.sentence import Sentence

__all__ = ["Case", "Exercise", "Verdict", "catalogue", "progress", "reconcile"]


def reconcile(guess: float | None, outcome: float, unit: str = "") -> Sentence:
    """Compare a guess with the outcome; without a guess, say so and give the outcome.

    Example:
        >>> reconcile(None, 23040, "bytes")
        The answer is **23,040 bytes**. (You left the guess at `None`.)
        >>> reconcile(46080, 23040, "bytes")
        You guessed 46,080 bytes; the answer is **23,040 bytes**: your guess is 2 times as large.
    """
    shown = f"{outcome:,.4g}" if isinstance(outcome, float) else f"{outcome:,}"
    unit = f" {unit}" if unit else ""
    if guess is None:
        return Sentence(f"The answer is **{shown}{unit}**. (You left the guess at `None`.)")
    if guess == outcome:
        return Sentence(f"You guessed {guess:,}{unit}, and that is the answer.")
    opening = f"You guessed {guess:,}{unit}; the answer is **{shown}{unit}**"
    if guess * outcome <= 0:
        return Sentence(f"{opening}.")
    larger, factor = abs(guess) > abs(outcome), guess / outcome
    return Sentence(
        f"{opening}: your guess is {factor if larger else 1 / factor:.3g} times as {'large' if larger else 'small'}."
    )
