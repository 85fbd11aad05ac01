"""Exercise 1 of chapter 09: a scheduling step on plain data, compared with the library's."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch09_loads import random_load, scheduler_of
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.request import Request, RequestStatus

Running = Sequence[tuple[str, int, int]]
Waiting = Sequence[tuple[str, int]]
Step = tuple[dict[str, int], list[str]]

# running, waiting, budget, max_num_seqs, num_free_blocks, block_size, keep_free, what the case is about
_STEPS: list[tuple[Running, Waiting, int, int, int, int, int, str]] = [
    ([("Ada", 6, 5)], [], 8, 4, 3, 4, 0, "Who runs computes what is missing, here one token."),
    ([], [("Ada", 6), ("Bo", 3)], 16, 4, 5, 4, 0, "Both prompts fit the budget and the blocks."),
    ([("Ada", 6, 5)], [("Bo", 9)], 5, 4, 4, 4, 0, "Ada's token comes first; Bo's prompt is cut to what is left."),
    ([("Ada", 9, 4), ("Bo", 6, 5)], [("Cy", 2)], 3, 4, 4, 4, 0, "Ada's chunk uses the budget up."),
    ([("Ada", 5, 4), ("Bo", 7, 6)], [], 8, 4, 0, 4, 0, "Ada needs a block, so Bo gives his two back."),
    ([("Ada", 7, 6), ("Bo", 5, 4)], [], 8, 4, 0, 4, 0, "Bo needs a block, and the last to come is Bo himself."),
    (
        [("Ada", 5, 4), ("Bo", 7, 6)],
        [("Cy", 2)],
        8,
        4,
        0,
        4,
        0,
        "Bo's blocks are free, and nobody is admitted in a step that preempted.",
    ),
    ([("Ada", 3, 2)], [("Bo", 2), ("Cy", 2)], 9, 2, 6, 4, 0, "With Bo, as many run as may."),
    ([("Ada", 3, 2)], [("Bo", 11), ("Cy", 2)], 20, 4, 2, 4, 0, "Bo's prompt does not fit; Cy waits behind him."),
    ([("Ada", 3, 2)], [("Bo", 11)], 5, 4, 2, 4, 0, "Bo's first chunk would fit, and all of his prompt does not."),
    ([("Ada", 3, 2)], [("Bo", 7)], 9, 4, 2, 4, 1, "Bo fits, but would leave no block free."),
    ([], [("Ada", 7), ("Bo", 2)], 20, 4, 3, 4, 2, "Nobody runs, so Ada may take what is kept free; Bo may not."),
    ([("Ada", 4, 3)], [("Bo", 9), ("Cy", 2)], 6, 4, 5, 4, 0, "Bo's chunk uses the budget up, so Cy waits."),
    (
        [("Ada", 12, 3), ("Bo", 3, 2), ("Cy", 5, 4), ("Di", 2, 1)],
        [],
        20,
        4,
        0,
        4,
        0,
        "Two have to go before there are blocks for Ada.",
    ),
]


def _reference_step(
    running: Running,
    waiting: Waiting,
    budget: int,
    max_num_seqs: int,
    num_free_blocks: int,
    block_size: int,
    keep_free: int,
) -> Step:
    step, preempted, left = {}, [], list(running)
    for request in running:
        name, num_tokens, num_computed = request
        tokens = min(num_tokens - num_computed, budget)
        needed = cdiv(num_computed + tokens, block_size) - cdiv(num_computed, block_size)
        while request in left and needed > num_free_blocks:
            victim, _, computed = left.pop()
            preempted.append(victim)
            num_free_blocks += cdiv(computed, block_size)
        if tokens and request in left:
            step[name] = tokens
            budget -= tokens
            num_free_blocks -= needed
    for name, num_tokens in waiting:
        kept = keep_free if left else 0
        if preempted or not budget or len(left) == max_num_seqs:
            break
        if cdiv(num_tokens, block_size) + kept > num_free_blocks:
            break
        step[name] = min(num_tokens, budget)
        budget -= step[name]
        num_free_blocks -= cdiv(step[name], block_size)
        left.append((name, num_tokens, 0))
    return step, preempted


def _by_the_library(
    running: Running,
    waiting: Waiting,
    budget: int,
    max_num_seqs: int,
    num_free_blocks: int,
    block_size: int,
    keep_free: int,
) -> Step:
    """Bring the library's scheduler where the arguments say, and let it make the step."""
    num_held = sum(cdiv(num_computed, block_size) for _, _, num_computed in running)
    scheduler = scheduler_of(num_free_blocks + num_held, block_size, budget, max_num_seqs, keep_free)
    for name, num_tokens, num_computed in running:
        request = Request(name, [0] * num_tokens)
        scheduler.add_request(request)
        scheduler.waiting.remove(request)
        scheduler.manager.allocate_slots(request, num_computed)
        request.num_computed_tokens, request.status = num_computed, RequestStatus.RUNNING
        scheduler.running.append(request)
    for name, num_tokens in waiting:
        scheduler.add_request(Request(name, [0] * num_tokens))
    output = scheduler.schedule()
    return output.num_scheduled_tokens, [request.request_id for request in output.preempted]


def _step_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Any, ...]:
        load = random_load(rng)
        served = list(load.steps())
        served += [step for step in served if step.output.preempted]  # they are rarer
        step, limits = rng.choice(served), (load.budget, load.max_num_seqs)
        return step.running, step.waiting, *limits, step.num_free_blocks, load.block_size, load.keep_free

    known = [Case(tuple(case), about) for *case, about in _STEPS]
    return known + random_cases(9, 80, make, "A step of the library's scheduler, in the middle of a small load.")


def _look_at_step(arguments: tuple[Any, ...], expected: Step, got: Step) -> str | None:
    running, waiting, budget, *_ = arguments
    step, preempted = got if got is not None else ({}, [])
    unknown = [name for name in step if name not in {each[0] for each in [*running, *waiting]}]
    if unknown:
        return f"Nobody is called {unknown[0]!r}."
    if not all(isinstance(tokens, int) for tokens in step.values()):
        return None
    if any(tokens < 1 for tokens in step.values()):
        return "Whoever computes nothing has no place in the step."
    if sum(step.values()) > budget:
        return f"You hand out {sum(step.values())} tokens, and the budget is {budget}."
    both = [name for name in step if name in list(preempted)]
    if both:
        return f"{both[0]} loses its blocks in this step, so it computes nothing."
    admitted = [name for name, _ in waiting if name in step]
    if expected[1] and preempted and admitted:
        return f"{', '.join(map(str, preempted))} had to give way, and {admitted[0]} is admitted in the same step."
    return None


def _with_a_mistake(mistake: str) -> Callable[..., Step]:
    """Make a step like the reference's, with one mistake."""

    def schedule_step(
        running: Running,
        waiting: Waiting,
        budget: int,
        max_num_seqs: int,
        num_free_blocks: int,
        block_size: int,
        keep_free: int,
    ) -> Step:
        step: dict[str, int] = {}
        preempted: list[str] = []
        left = list(running)
        for request in running:
            name, num_tokens, num_computed = request
            tokens = min(num_tokens - num_computed, budget)
            if mistake == "no chunks" and tokens < num_tokens - num_computed:
                break
            needed = cdiv(num_computed + tokens, block_size) - cdiv(num_computed, block_size)
            if mistake == "whole blocks":
                needed = cdiv(tokens, block_size)
            while request in left and needed > num_free_blocks:
                victim, _, computed = left.pop(0 if mistake == "first" else -1)
                preempted.append(victim)
                if mistake == "first" and victim in step:
                    budget += step.pop(victim)
                num_free_blocks += 0 if mistake == "nothing back" else cdiv(computed, block_size)
            if tokens and request in left:
                step[name] = tokens
                budget -= tokens
                num_free_blocks -= needed
        for name, num_tokens in waiting:
            kept = keep_free if (left or mistake == "kept when alone") and mistake != "none kept" else 0
            tokens = min(num_tokens, budget)
            if (preempted and mistake != "admits") or not budget:
                break
            if len(left) == max_num_seqs and mistake != "seats":
                break
            if mistake == "no chunks" and tokens < num_tokens:
                break
            asked = tokens if mistake == "first chunk" else num_tokens
            if cdiv(asked, block_size) + kept > num_free_blocks:
                if mistake == "overtakes":
                    continue
                break
            step[name] = tokens
            budget -= tokens
            num_free_blocks -= cdiv(tokens, block_size)
            left.append((name, num_tokens, 0))
        return step, preempted

    return schedule_step


schedule_step = Exercise(
    "09.1",
    "schedule_step",
    "Write a scheduling step",
    cases=_step_cases,
    reference=_reference_step,
    oracle=_by_the_library,
    returns="two things: a dictionary with the tokens of each that computes, and a list of those preempted",
    look=_look_at_step,
    pure=True,
    hints=(
        "There are two loops, one over `running` and one over `waiting`. What may stop the first? What may stop the "
        "second before it has begun?",
        "Who runs computes `min(num_tokens - num_computed, budget)` tokens, and needs the blocks of `num_computed` and "
        "these, less the blocks of `num_computed`. While too few are free, the last of those who still run goes, which "
        "may be the one in question. What it held is free.",
        "Admit only if nobody was preempted, tokens are left, fewer than `max_num_seqs` run, and the blocks of all "
        "`num_tokens` and `keep_free` are free; with nobody running, without `keep_free`. The first who does not fit "
        "ends the loop.",
    ),
    explanation="One loop over those who run, one over those who wait, and one budget for both: there is no phase of "
    "prompts. The test at admission looks at all tokens of a request, and takes blocks for the first chunk only: the "
    "rest is promised to nobody, and may be gone when its turn comes. That is what `keep_free` is for.",
    wrong={
        "admit somebody in a step that preempted": _with_a_mistake("admits"),
        "preempt the first to come": _with_a_mistake("first"),
        "give a request all its tokens or none": _with_a_mistake("no chunks"),
        "forget the room in a last block": _with_a_mistake("whole blocks"),
        "forget what the preempted give back": _with_a_mistake("nothing back"),
        "let more than max_num_seqs run": _with_a_mistake("seats"),
        "admit whose first chunk fits": _with_a_mistake("first chunk"),
        "let a small request overtake": _with_a_mistake("overtakes"),
        "keep no blocks free": _with_a_mistake("none kept"),
        "keep blocks free though nobody runs": _with_a_mistake("kept when alone"),
    },
)
"""One step: ``schedule_step(running, waiting, budget, max_num_seqs, num_free_blocks, block_size, keep_free)``."""
