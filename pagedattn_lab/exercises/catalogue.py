"""Every exercise of the book, and how far a reader has come with each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedattn_lab.exercises import record
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.record import Standing
from pagedattn_lab.recorder.sentences import counted

COUNTS = ("attempts", "right", "cases")
MARKS = {"solved": "✓", "tried": "✗", "not attempted": "·"}


def catalogue() -> list[Exercise]:
    """List every exercise, in the order of the chapters.

    Example:
        >>> catalogue()[0].number, catalogue()[0].path
        ('00.1', 'ch00.blocks_at_the_end')
    """
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [
        importlib.import_module(f"pagedattn_lab.exercises.{name}")
        for name in names
        if name.removeprefix("ch").isdigit()
    ]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Exercise)]
    return sorted(found, key=lambda exercise: exercise.number)


@dataclass(frozen=True)
class Progress:
    """How every exercise stands.

    Attributes:
        exercises: of the book, in order.
        standings: by the number of the exercise; those without one were not attempted.
        kept_in: the file that keeps it.
        notes: a sentence on everything in that file that cannot be read.
    """

    exercises: list[Exercise]
    standings: Mapping[str, Standing]
    kept_in: Path
    notes: Sequence[str] = ()

    @property
    def solved(self) -> int:
        """How many exercises are solved."""
        return sum(self.status(exercise) == "solved" for exercise in self.exercises)

    def status(self, exercise: Exercise) -> str:
        """How one stands: ``"solved"``, ``"tried"`` or ``"not attempted"``."""
        standing = self.standings.get(exercise.number)
        return "not attempted" if standing is None else "solved" if standing.solved else "tried"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Give a mark, the number, the title and a few words for each exercise."""
        found = []
        for exercise in self.exercises:
            words = status = self.status(exercise)
            if status == "tried":
                standing = self.standings[exercise.number]
                words = (
                    f"{standing.right} of {counted(standing.cases, 'case')}, {counted(standing.attempts, 'attempt')}"
                )
            found.append((MARKS[status], exercise.number, exercise.title, words))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        exercises = [
            {"number": exercise.number, "title": exercise.title, "status": self.status(exercise)}
            | {name: getattr(self.standings.get(exercise.number, Standing()), name) for name in COUNTS}
            for exercise in self.exercises
        ]
        return {
            "solved": self.solved,
            "exercises": exercises,
            "kept_in": str(self.kept_in),
            "notes": [*self.notes],
        }

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(title) for _, _, title, _ in rows)
        lines = [f"{mark} {number}  {title:<{width}}  {words}" for mark, number, title, words in rows]
        return "\n".join([*lines, *self._summary()])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        rows = [f"| {mark} | {number} | {title} | {words} |" for mark, number, title, words in self.rows()]
        table = "\n".join(["| | exercise | | |", "|---|---|---|---|", *rows])
        summary = "\n\n".join(self._summary())
        return {"text/markdown": f"{table}\n\n{summary}", "text/plain": repr(self)}

    def _summary(self) -> list[str]:
        solved = f"{self.solved} of {counted(len(self.exercises), 'exercise')} solved."
        return [solved, *(f"In {self.kept_in}, {note}" for note in self.notes)]


def progress() -> Progress:
    """Say which exercises of the book are solved, and how far the others have come.

    Raises:
        OSError: the record cannot be read; the message says what to do.
    """
    kept = record.read()
    return Progress(catalogue(), kept.standings, record.file(), kept.notes)
