"""Exercises that answer back: what is wrong, in which case, and what the answer seems to do (chapters 00 to 11).

A chapter ships a stub that raises ``NotImplementedError``; "run all" passes and reports "not attempted".
"""

from __future__ import annotations

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.catalogue import catalogue, progress
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.guesses import reconcile
from pagedattn_lab.exercises.verdict import Verdict

__all__ = ["Case", "Exercise", "Verdict", "catalogue", "progress", "reconcile"]
