"""Exercise 4 of chapter 09: who is served next, so that nobody starves and urgent requests still go first."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import Words, shown
from pagedattn_lab.recorder.sentences import counted

Request = tuple[str, int, int]
"""Its name, priority, and the step in which it comes."""

KEPT = Words("both promises kept")


def _next_to_run(waiting: Sequence[Request], now: int, patience: int) -> str:
    return min(waiting, key=lambda request: request[2] + patience * request[1])[0]


def _serve(answer: Callable[..., Any], arguments: tuple[Any, ...]) -> Words:
    """Serve a load, one request a step, and say which promise is broken first."""
    load, patience = arguments
    coming, waiting, ahead, now = sorted(load, key=lambda each: each[2]), [], {}, 0
    while coming or waiting:
        while coming and coming[0][2] <= now:
            waiting.append(coming.pop(0))
        for request in waiting:
            ahead.setdefault(request[0], len(waiting) - 1)
        for name, priority, arrival in waiting:
            promised = ahead[name] + patience * priority
            if now - arrival > promised:
                return Words(
                    f"{name} starves: priority {priority}, {ahead[name]} waited when it came. Promised are "
                    f"{counted(promised, 'step')}, and it still waits after {now - arrival}"
                )
        if waiting:
            name = answer(list(waiting), now, patience)
            chosen = next((request for request in waiting if isinstance(name, str) and request[0] == name), None)
            if chosen is None:
                return Words(f"step {now}: {shown(name)} is not the name of one who waits")
            for other in waiting:
                levels = chosen[1] - other[1]
                if levels > 0 and now - chosen[2] < patience * levels:
                    return Words(
                        f"{name} goes too early: priority {chosen[1]}, waited {counted(now - chosen[2], 'step')}, "
                        f"before {other[0]} of priority {other[1]}"
                    )
            waiting.remove(chosen)
        now += 1
    return KEPT


def _starving_cases() -> list[Case]:
    cases = []

    def add(load: list[Request], patience: int, words: str) -> None:
        cases.append(Case((load, patience), shown=f"serving {words}, with a patience of {patience}"))

    def urgent(start: int, stop: int) -> list[Request]:
        return [(f"u{step}", 0, step) for step in range(start, stop)]

    add([("Ada", 1, 0), ("Bo", 0, 0)], 3, "Ada (priority 1) and Bo (priority 0), who come together")
    add([("Ada", 1, 0), ("Bo", 1, 0), ("Cy", 1, 0)], 3, "three of one priority")
    for patience in (3, 5):
        for level in (1, 2, 3):
            add(
                [("Ada", level, 0), *urgent(0, 40)],
                patience,
                f"Ada (priority {level}, step 0) and an urgent request in each of 40 steps",
            )
    add(
        [*((f"r{step}", 1, step) for step in range(40)), ("Ada", 1, 0)],
        4,
        "Ada (priority 1, step 0) and one more of priority 1 in each of 40 steps",
    )
    add(
        [("Ada", 2, 0), ("Bo", 1, 0), ("Cy", 0, 0), *((f"r{step}", step % 3, step) for step in range(1, 60))],
        4,
        "Ada (2), Bo (1), Cy (0) and then priorities 1, 2, 0 in turn, one in each of 59 steps",
    )
    add(
        [*((f"b{i}", 2, 0) for i in range(12)), *urgent(6, 50)],
        4,
        "12 of priority 2 in step 0, and from step 6 an urgent request in each step",
    )
    rng = random.Random(29)
    for number in range(16):
        patience, levels = rng.randint(2, 9), rng.randint(2, 5)
        burst: list[Request] = [(f"b{i}", rng.randrange(levels), 0) for i in range(rng.randint(2, 15))]
        share = rng.choice([0.0, 0.2, 0.6])  # of those that are not urgent
        rest = [
            (f"r{step}", rng.randrange(levels) if rng.random() < share else 0, step)
            for step in range(1, 80)
            if rng.random() < 0.95
        ]
        add(
            burst + rest,
            patience,
            f"{len(burst)} requests at once and {len(rest)} later ones, of priorities 0 to {levels - 1} "
            f"(load {number + 1})",
        )
    return cases


def _look_at_service(arguments: tuple[Any, ...], expected: str, got: str) -> str | None:
    if got is not None and "starves" in got:
        return "Whoever waits must gain on those who come later, whatever their priority."
    if got is not None and "too early" in got:
        return f"Waiting makes up for one unit of priority after {counted(arguments[1], 'step')}, and no sooner."
    return None


def _level(waited: int, priority: int, patience: int) -> int:
    return priority - waited // patience


next_to_run = Exercise(
    "09.4",
    "next_to_run",
    "Let a starving request finish",
    cases=_starving_cases,
    reference=_next_to_run,
    run=_serve,
    returns="the name of the request to serve",
    look=_look_at_service,
    wrong={
        "go by priority alone": lambda waiting, now, patience: min(waiting, key=lambda each: each[1:])[0],
        "go by arrival alone": lambda waiting, now, patience: min(waiting, key=lambda each: each[2])[0],
        "take the newest of a priority": lambda waiting, now, patience: min(
            reversed(waiting), key=lambda each: (_level(now - each[2], each[1], patience), -each[2])
        )[0],
        "let a request rise in every step": lambda waiting, now, patience: min(
            waiting, key=lambda each: each[1] + each[2]
        )[0],
        "let anybody go first who has waited for as long as patience says": lambda waiting, now, patience: min(
            waiting, key=lambda each: (now - each[2] < patience, each[2] if now - each[2] >= patience else each[1])
        )[0],
        "let a request rise by one unit at most": lambda waiting, now, patience: min(
            waiting, key=lambda each: each[1] - min(1, (now - each[2]) // patience)
        )[0],
        "serve the least urgent first": lambda waiting, now, patience: max(waiting, key=lambda each: each[1])[0],
    },
    hints=(
        "In which step has a request of priority 2 waited long enough to go before an urgent one that comes just then?",
        "In step `arrival + 2 * patience`. Before that the urgent one goes first. Compare other pairs in the same way.",
        "Give each request a due step, `arrival + patience * priority`, and serve the one that is due first.",
    ),
    explanation="Each request gets a due step, and the first that is due goes first. Of those who come later, only "
    "the ones of the next `patience * priority` steps can overtake it, one a step: hence the bound. The due step does "
    "not depend on `now`, so no scheduler has to be changed: a client that sends it as the priority gets this order "
    "from `policy='priority'`. Operating systems call this aging. Other orders keep both promises, too.",
)
"""Whom to serve: ``next_to_run(waiting, now, patience)`` -> a name."""
