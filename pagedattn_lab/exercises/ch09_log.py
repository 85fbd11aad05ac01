"""Exercise 2 of chapter 09: what a log of preemptions says, and which setting to change."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch09_loads import SmallLoad, random_load
from pagedattn_lab.exercises.grading import Exercise

Log = Sequence[tuple[dict[str, int], list[str], int]]
SETTINGS = {"num_blocks": "num_blocks", "max_num_batched_tokens": "budget", "max_num_seqs": "max_num_seqs"}
"""What may hold somebody up, and what it is called in a load."""
_EXAMPLE = SmallLoad(((5, 4), (6, 6), (4, 6), (6, 2), (3, 3)), num_blocks=7, block_size=3, budget=12, max_num_seqs=4)


def log_of(load: SmallLoad) -> Log:
    """Serve a load with the library's scheduler, and write down each step."""
    return [
        (step.output.num_scheduled_tokens, [each.request_id for each in step.output.preempted], step.num_waiting)
        for step in load.steps()
    ]


def example_in_words() -> str:
    """Tell a log of a server with 12 tokens a step and places for 4, a line a step, somewhat as vLLM's logs do.

    Example:
        >>> print(example_in_words().splitlines()[2])
        Running: 2 reqs, Waiting: 3 reqs, scheduled {'Ada': 1, 'Bo': 1}, preempted ['Cy']
    """
    return "\n".join(
        f"Running: {len(tokens)} reqs, Waiting: {num_waiting} reqs, scheduled {tokens}, preempted {preempted}"
        for tokens, preempted, num_waiting in log_of(_EXAMPLE)
    )


def _reference_diagnose(log: Log, budget: int, max_num_seqs: int) -> dict[str, Any]:
    held_up = {"num_blocks": 0, "max_num_batched_tokens": 0, "max_num_seqs": 0}
    recomputed = too_early = 0
    computed, num_steps = Counter(), Counter()  # since a request was admitted
    for tokens, preempted, num_waiting in log:
        for name in preempted:
            recomputed += computed.pop(name)
            too_early += num_steps.pop(name) <= 2
        computed.update(tokens)
        num_steps.update(tokens.keys())
        if num_waiting:
            if sum(tokens.values()) == budget:
                held_up["max_num_batched_tokens"] += 1
            elif len(tokens) == max_num_seqs:
                held_up["max_num_seqs"] += 1
            else:
                held_up["num_blocks"] += 1
    change = max(held_up, key=held_up.get)
    return {"recomputed": recomputed, "too_early": too_early, "held_up": held_up, "change": change}


def steps_saved(load: SmallLoad, setting: str) -> int:
    """How many steps fewer a load takes with twice as much of a setting."""
    more = replace(load, **{SETTINGS[setting]: 2 * getattr(load, SETTINGS[setting])})
    return len(log_of(load)) - len(log_of(more))


def change_of(load: SmallLoad) -> str | None:
    """Name the setting that held up most steps of a load; ``None`` if no other is as far behind as it should be.

    It should also be the one of which twice as much saves more steps than twice as much of any other.
    """
    held_up = _reference_diagnose(log_of(load), load.budget, load.max_num_seqs)["held_up"]
    change, most = max(held_up.items(), key=lambda each: each[1])
    if list(held_up.values()).count(most) > 1:
        return None
    saved = {setting: steps_saved(load, setting) for setting in SETTINGS}
    return change if all(saved[change] > steps for setting, steps in saved.items() if setting != change) else None


def known_loads() -> list[SmallLoad]:
    """Give loads that show one thing each."""
    return [
        SmallLoad(((3, 2), (2, 2), (2, 1)), num_blocks=8, block_size=4, budget=9, max_num_seqs=2),
        SmallLoad(((2, 2), (6, 1), (5, 2)), num_blocks=8, block_size=4, budget=4, max_num_seqs=4),
        SmallLoad(((4, 1), (3, 1), (5, 1)), num_blocks=5, block_size=4, budget=5, max_num_seqs=2),
        SmallLoad(((3, 4), (4, 2), (2, 3)), num_blocks=3, block_size=3, budget=9, max_num_seqs=4),
        SmallLoad(((3, 2), (2, 4), (2, 4)), num_blocks=4, block_size=2, budget=7, max_num_seqs=3),
        _EXAMPLE,
    ]


def clear_loads() -> Iterator[SmallLoad]:
    """Draw loads, for each setting as many that lack it."""
    rng, found = random.Random(17), Counter[str]()
    while sum(found.values()) < 36:
        load = replace(random_load(rng), keep_free=0)
        change = change_of(load)
        if change and found[change] < 12:
            found[change] += 1
            yield load


def _log_cases() -> list[Case]:
    about = "Twice as much of the setting that held up most steps saves more of them than twice as much of another."
    loads = [*known_loads(), *sorted(clear_loads(), key=lambda load: len(repr(log_of(load))))]
    return [Case((log_of(load), load.budget, load.max_num_seqs), about) for load in loads]


_SAY = {
    "recomputed": "what a request has computed since it was last admitted is in vain when it loses its blocks.",
    "too_early": "count the steps in which the victim has computed since it was last admitted.",
    "held_up": "only steps after which somebody waits count, each for one of three reasons; all three have a number.",
    "change": "it is the setting that held up most steps.",
}


def _look_at_diagnosis(_: tuple[Any, ...], expected: dict[str, Any], got: dict[str, Any]) -> str | None:
    if got is None:
        return None
    return next((f"“{name}”: {words}" for name, words in _SAY.items() if got[name] != expected[name]), None)


def _with_a_mistake(mistake: str) -> Callable[..., dict[str, Any]]:
    """Diagnose like the reference, with one mistake."""

    def diagnose(log: Log, budget: int, max_num_seqs: int) -> dict[str, Any]:
        held_up = dict.fromkeys(SETTINGS, 0)
        recomputed = too_early = 0
        computed: Counter[str] = Counter()
        num_steps: Counter[str] = Counter()
        last: dict[str, int] = {}
        for tokens, preempted, num_waiting in log:
            for name in preempted:
                recomputed += last[name] if mistake == "last step" else computed[name]
                too_early += num_steps[name] <= (1 if mistake == "one step" else 2)
                if mistake != "from the beginning":
                    del computed[name], num_steps[name]
            computed.update(tokens)
            num_steps.update(tokens.keys())
            last |= tokens
            if num_waiting or mistake == "nobody waits":
                full = sum(tokens.values()) == budget, len(tokens) == max_num_seqs
                if full[0] and not (mistake == "places first" and full[1]):
                    held_up["max_num_batched_tokens"] += 1
                elif full[1]:
                    held_up["max_num_seqs"] += 1
                elif preempted or mistake != "only preemptions":
                    held_up["num_blocks"] += 1
        change = max(held_up, key=lambda name: held_up[name])
        return {"recomputed": recomputed, "too_early": too_early, "held_up": held_up, "change": change}

    return diagnose


diagnose = Exercise(
    "09.2",
    "diagnose",
    "Diagnose a preemption log",
    cases=_log_cases,
    reference=_reference_diagnose,
    returns='a dictionary with "recomputed", "too_early", "held_up" and "change"',
    look=_look_at_diagnosis,
    hints=(
        "Keep two counts for each request, of tokens and of steps. When do they begin anew?",
        "First deal with `preempted`: add the victim's tokens to `recomputed`, look at its steps, and set both counts "
        "to 0. Then count what the step computes.",
        "Where `num_waiting` is not 0, ask in this order: are the step's tokens `budget`? Has it `max_num_seqs` "
        "requests? If neither, only blocks are left to have kept them out.",
    ),
    explanation="A scheduler that lets somebody wait has a reason, and the log tells which, though it does not say so: "
    "each limit leaves its own trace, and blocks are what is left when the other two have room. A step that preempted "
    "never uses its budget up: the victim was last in line, and its tokens go to nobody. For every log here, twice as "
    "much of the setting that held up most steps saves more steps than twice as much of another. A request that is "
    "preempted early in its stay should not have been admitted yet: that is what a watermark prevents.",
    wrong={
        "count what a request had lost before once more": _with_a_mistake("from the beginning"),
        "count a victim's last step only": _with_a_mistake("last step"),
        "count only preemptions one step after the admission": _with_a_mistake("one step"),
        "blame the places where the budget is used up, too": _with_a_mistake("places first"),
        "count steps after which nobody waits": _with_a_mistake("nobody waits"),
        "see a lack of blocks only in a step that preempted": _with_a_mistake("only preemptions"),
    },
)
"""What went wrong, and what to change: ``diagnose(log, budget, max_num_seqs)`` -> a dictionary."""
