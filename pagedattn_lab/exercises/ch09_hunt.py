"""Bug hunt of chapter 09: a scheduler whose prefill flag survives preemption.

What holds the bug stands here word for word as in the chapter, so that an unchanged cell is recognised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch09_loads import NAMES
from pagedattn_lab.exercises.grading import Exercise

Plan = Sequence[tuple[Sequence[str], Sequence[str]]]
Shared = tuple[list[dict[str, int]], dict[str, int]]


def _share_out(prompts: Mapping[str, int], plan: Plan, budget: int) -> Shared:
    num_tokens, num_computed = dict(prompts), dict.fromkeys(prompts, 0)
    steps = []
    for running, preempted in plan:
        for name in preempted:
            num_computed[name] = 0
        step, left = {}, budget
        for name in running:
            if left > 0:
                step[name] = min(left, num_tokens[name] - num_computed[name])
                left -= step[name]
                num_computed[name] += step[name]
                if num_computed[name] == num_tokens[name]:
                    num_tokens[name] += 1  # the step has chosen a new token
        steps.append(step)
    return steps, num_tokens


def _share_out_buggy(prompts, plan, budget):
    num_tokens, num_computed = dict(prompts), dict.fromkeys(prompts, 0)
    in_prefill, steps = set(prompts), []
    for running, preempted in plan:
        for name in preempted:
            num_computed[name] = 0
        step, left = {}, budget
        for name in running:
            if left > 0:
                step[name] = min(left, prompts[name] - num_computed[name] if name in in_prefill else 1)
                left -= step[name]
                num_computed[name] += step[name]
                if name not in in_prefill or num_computed[name] == prompts[name]:
                    in_prefill.discard(name)
                    num_tokens[name] += 1  # the step has chosen a new token
        steps.append(step)
    return steps, num_tokens


def _with_a_mistake(mistake: str) -> Callable[..., Shared]:
    """Share out like the reference, with one mistake."""

    def share_out(prompts: Mapping[str, int], plan: Plan, budget: int) -> Shared:
        num_tokens, num_computed = dict(prompts), dict.fromkeys(prompts, 0)
        in_prefill, steps = set(prompts), []
        for running, preempted in plan:
            for name in preempted:
                in_prefill.add(name)
                num_computed[name] = num_computed[name] if mistake == "keeps" else 0
                num_tokens[name] = prompts[name] if mistake == "forgets" else num_tokens[name]
            step: dict[str, int] = {}
            left = budget
            for name in running:
                if left > 0:
                    known = prompts[name] if mistake == "prompt" and name in in_prefill else num_tokens[name]
                    wanted = 1 if mistake == "prompt" and name not in in_prefill else known - num_computed[name]
                    step[name] = wanted if mistake == "no budget" else min(left, wanted)
                    left -= step[name]
                    num_computed[name] += step[name]
                    if num_computed[name] >= known or mistake == "every chunk" or name not in in_prefill:
                        in_prefill.discard(name)
                        num_tokens[name] += 1
            steps.append(step)
        return steps, num_tokens

    return share_out


def _share_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[dict[str, int], Plan, int]:
        prompts = {name: rng.randint(1, 7) for name in NAMES[: rng.randint(1, 3)]}
        running: list[str] = []
        plan: list[tuple[list[str], list[str]]] = []
        for _ in range(rng.randint(2, 8)):
            gone = [running.pop()] if running and rng.random() < 0.3 else []
            if not gone:
                running += [name for name in prompts if name not in running][: rng.randint(0, 2)]
            plan.append((list(running), gone))
        return prompts, plan, rng.randint(2, 9)

    both = ["Ada", "Bo"]
    known = [
        Case(({"Ada": 3}, [(["Ada"], [])] * 3, 8), "The prompt in one step, then one token a step."),
        Case(({"Ada": 3, "Bo": 6}, [(both, [])] * 3, 4), "Bo's prompt takes what the budget leaves, in chunks."),
        Case(
            ({"Ada": 3, "Bo": 2}, [(both, []), (both, []), (["Ada"], ["Bo"]), (both, [])], 8),
            "Bo comes back with 4 tokens, and none of them is computed.",
        ),
        Case(
            ({"Ada": 3}, [(["Ada"], []), (["Ada"], []), ([], ["Ada"]), (["Ada"], []), (["Ada"], [])], 4),
            "Ada comes back with 5 tokens and a budget of 4: her prompt is computed, and nothing is chosen yet.",
        ),
        Case(({"Ada": 5}, [(["Ada"], []), ([], ["Ada"]), (["Ada"], [])], 3), "It is preempted in its first prompt."),
    ]
    about = "After a preemption nothing is computed: prompt and answer are, in chunks, before a new token is chosen."
    return known + random_cases(31, 60, make, about)


def _look_at_shares(arguments: tuple[Any, ...], expected: Shared, got: Shared) -> str | None:
    if got is None or list(got[0]) == expected[0]:
        return None
    for number, (right, mine) in enumerate(zip(expected[0], got[0], strict=False), start=1):
        for name, tokens in right.items():
            if isinstance(mine, dict) and name in mine and mine[name] != tokens:
                return f"In step {number} {name} should compute {tokens}, and computes {mine[name]}."
    return None


share_out = Exercise(
    "09.3",
    "share_out",
    "Bug hunt: the flag that survives",
    cases=_share_cases,
    reference=_share_out,
    buggy=_share_out_buggy,
    returns="a list of steps, and a dictionary with the number of tokens of each request",
    look=_look_at_shares,
    wrong={
        "take a preempted request for one that is decoding": _share_out_buggy,
        "compute the prompt again, and not the answer so far": _with_a_mistake("prompt"),
        "forget the tokens that were chosen before the preemption": _with_a_mistake("forgets"),
        "choose a new token after every chunk": _with_a_mistake("every chunk"),
        "count as computed what went with the blocks": _with_a_mistake("keeps"),
        "forget the budget": _with_a_mistake("no budget"),
    },
    hints=(
        "Follow Bo through the second cell: which facts about him does the preemption put right, and which does it "
        "forget?",
        "He is still out of `in_prefill`, so he computes one token with nothing before it. Put him back in, as in "
        "chapter 04, and count again: he has four tokens when he comes back. How many does the prefill compute?",
        "Two, his prompt: the flag knows prompts only. Do without it: a step computes up to `num_tokens - "
        "num_computed`, and chooses a token when these two are equal.",
    ),
    explanation="A prompt, a decode and a request that comes back are one case: tokens that are known and not "
    "computed. The flag told two cases apart and knew nothing of the third. Set back, it has the prompt computed again "
    "and the answer not; without it there is nothing to set back. vLLM's V1 has no such flag.",
)
"""``share_out(prompts, plan, budget)``: what each step computes, some requests being preempted now and then."""
