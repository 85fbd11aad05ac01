"""Every exercise's check accepts its reference solution, and rejects each named wrong answer and the stub."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from pagedattn_lab import exercises
from pagedattn_lab.exercises import Exercise

ALL = {
    f"{module.name}.{name}": exercise
    for module in pkgutil.iter_modules(exercises.__path__)
    for name, exercise in vars(importlib.import_module(f"pagedattn_lab.exercises.{module.name}")).items()
    if isinstance(exercise, Exercise)
}


@pytest.mark.parametrize("name", ALL)
def test_reference_passes_and_stub_is_not_attempted(name: str) -> None:
    """Catches a check that nobody can satisfy, or one that scolds a reader who has not begun."""

    def stub(*_: object, **__: object) -> None:
        raise NotImplementedError

    assert ALL[name].grade(ALL[name].reference).message == "Correct."
    verdict = ALL[name].grade(stub)
    assert verdict.passed is None and verdict.message.startswith("Not attempted")


@pytest.mark.parametrize(("name", "mistake"), [(name, wrong) for name in ALL for wrong in ALL[name].wrong])
def test_wrong_answers_are_rejected(name: str, mistake: str) -> None:
    """Catches a check too weak to see the named mistake, or one that gives no hint."""
    verdict = ALL[name].grade(ALL[name].wrong[mistake])
    assert verdict.passed is False
    assert len(verdict.message) > len("Not yet: ") + 10, f"the hint for {mistake!r} is too short"


def test_exercises_have_wrong_answers() -> None:
    """Catches an exercise whose check was never shown to reject anything, and an empty collection."""
    assert ALL
    for name, exercise in ALL.items():
        assert len(exercise.wrong) >= 3, name
