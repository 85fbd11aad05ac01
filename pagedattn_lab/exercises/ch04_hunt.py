"""Bug hunt of chapter 04: a flag that survives preemption.

What holds the bug stands here word for word as in the chapter, so that an unchanged cell is recognised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise


def _positions_per_step(prompt_len: int, events: Sequence[str]) -> list[list[int]]:
    num_tokens, in_prefill = prompt_len, True
    steps = []
    for event in events:
        if event == "preempt":
            in_prefill = True  # its blocks are gone, so everything is computed again
            continue
        start = 0 if in_prefill else num_tokens - 1
        steps.append(list(range(start, num_tokens)))
        in_prefill = False
        num_tokens += 1
    return steps


def _positions_buggy(prompt_len, events):
    num_tokens, in_prefill = prompt_len, True
    steps = []
    for event in events:
        if event == "preempt":
            continue
        start = 0 if in_prefill else num_tokens - 1
        steps.append(list(range(start, num_tokens)))
        in_prefill = False
        num_tokens += 1
    return steps


def _positions(prompt_len: int, events: Sequence[str], *, forgets: str) -> list[list[int]]:
    """Serve with one mistake in what is done after a preemption."""
    num_tokens, num_computed = prompt_len, 0
    steps = []
    for event in events:
        if event == "preempt":
            num_computed = 0
            num_tokens = prompt_len if forgets == "output" else num_tokens
            continue
        stop = prompt_len if forgets == "stop" and num_computed == 0 else num_tokens
        steps.append(list(range(0 if forgets == "cache" else num_computed, stop)))
        num_computed = stop
        num_tokens += 1
    return steps


def _position_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[int, list[str]]:
        return rng.randint(1, 6), rng.choices(["run", "run", "preempt"], k=rng.randint(1, 7))

    known = [
        Case((3, ["run", "run", "run"]), "The prompt in one step, then one token a step."),
        Case((3, ["run", "run", "preempt", "run"]), "The blocks are gone: all 5 tokens must be computed again."),
        Case((3, ["preempt", "run", "run"]), "It was preempted before it had computed anything."),
    ]
    about = "After a preemption nothing is cached: compute every token that is known, prompt and output."
    return known + random_cases(21, 40, make, about)


positions_per_step = Exercise(
    "04.4",
    "positions_per_step",
    "Bug hunt: after the preemption",
    cases=_position_cases,
    reference=_positions_per_step,
    buggy=_positions_buggy,
    returns="a list of steps, each a list of positions",
    wrong={
        "take a preempted request for one that is decoding": _positions_buggy,
        "forget the tokens that were generated before the preemption": lambda prompt_len, events: _positions(
            prompt_len, events, forgets="output"
        ),
        "compute the prompt again, and not the output": lambda prompt_len, events: _positions(
            prompt_len, events, forgets="stop"
        ),
        "compute everything in every step": lambda prompt_len, events: _positions(prompt_len, events, forgets="cache"),
    },
    hints=(
        "Follow one request that runs, is preempted and runs again. Which positions are in the cache when it comes "
        "back?",
        "None: its blocks went to others. But `in_prefill` still says what it said before, and one position is "
        "computed on top of a cache that is not there.",
        "Set the flag back when the request is preempted. Better still, have no flag: keep `num_computed`, set it to "
        "0, and begin each step there.",
    ),
    explanation="Two facts say the same thing, the flag and what is cached, and only one was kept up to date. vLLM's "
    "V1 has no flag: a step always computes from `num_computed_tokens` on, for a new prompt, a decode and a request "
    "that comes back.",
)
"""``positions_per_step(prompt_len, events)``: what each step computes of a request that is preempted now and then."""
