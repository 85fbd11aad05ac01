"""Cases to try an answer on, and what came of one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.exercises.raised import Raised


@dataclass(frozen=True)
class Case:
    """Arguments to call an answer with.

    Attributes:
        arguments: of the call; every answer gets a copy.
        about: a sentence that helps whoever has this case wrong.
        shown: the call in words, where arguments are too long to be read.
    """

    arguments: tuple[Any, ...]
    about: str = ""
    shown: str = ""


def random_cases(
    seed: int, number: int, make: Callable[[random.Random], tuple[Any, ...]], about: str = ""
) -> list[Case]:
    """Make cases by chance, the same ones every time and the shortest first, so that the one shown is easy to follow.

    Example:
        >>> made = random_cases(0, 3, lambda rng: ([rng.randrange(9) for _ in range(rng.randint(1, 9))],))
        >>> [len(case.arguments[0]) for case in made]
        [7, 8, 9]
    """
    rng = random.Random(seed)
    return [Case(each, about) for each in sorted((make(rng) for _ in range(number)), key=lambda each: len(repr(each)))]


@dataclass(frozen=True)
class Attempt:
    """One case tried.

    Attributes:
        case: what was called.
        expected: the right outcome.
        got: what came.
        raised: in its place.
        wrong: whether it counts as wrong.
        objection: what speaks against it, if more can be said than the case says.
        changed: the first argument that was changed without being asked for.
        fits: whether it is of the kind that was asked for.
        rebound: an argument that should have changed, and whose name was given to a new value instead.
    """

    case: Case
    expected: Any
    got: Any = None
    raised: Raised | None = None
    wrong: bool = False
    objection: str = ""
    changed: str = ""
    fits: bool = True
    rebound: str = ""
