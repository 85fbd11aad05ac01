"""Exercises of chapter 09 agree with the library's scheduler, and their promises can be kept in more than one way."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.exercises import ch09, ch09_hunt, ch09_log, ch09_starving
from pagedattn_lab.exercises.ch09_loads import NAMES, random_load
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus

LOADS = [random_load(random.Random(seed)) for seed in range(200)]


def unrecorded(exercise: Exercise) -> Exercise:
    return replace(exercise, number="", seconds=60)


def test_a_whole_load_is_served_step_by_step_as_by_the_library() -> None:
    """Catches an oracle that does not bring the library's scheduler where the arguments say."""
    num_preempted = 0
    for load in LOADS:
        for step in load.steps():
            arguments = (step.running, step.waiting, load.budget, load.max_num_seqs, step.num_free_blocks)
            got = ch09.schedule_step.oracle(*arguments, load.block_size, load.keep_free)
            lost = [request.request_id for request in step.output.preempted]
            assert got == (step.output.num_scheduled_tokens, lost), (load, step)
            num_preempted += len(lost)
    assert num_preempted > 100


@pytest.mark.parametrize(
    ("running", "waiting", "limits", "step", "preempted"),
    [
        ([("Ada", 6, 5)], [("Bo", 9)], (5, 4, 4, 4, 0), {"Ada": 1, "Bo": 4}, []),
        ([("Ada", 5, 4), ("Bo", 7, 6)], [("Cy", 2)], (8, 4, 0, 4, 0), {"Ada": 1}, ["Bo"]),
        ([("Ada", 7, 6), ("Bo", 5, 4)], [], (8, 4, 0, 4, 0), {"Ada": 1}, ["Bo"]),
        ([("Ada", 3, 2)], [("Bo", 7)], (9, 4, 2, 4, 1), {"Ada": 1}, []),
    ],
)
def test_a_step_by_hand(
    running: list[Any], waiting: list[Any], limits: tuple[int, ...], step: dict[str, int], preempted: list[str]
) -> None:
    """Catches a reference, and a library, that agree with their own mistakes only."""
    for answer in (ch09.schedule_step.reference, ch09.schedule_step.oracle):
        assert answer(running, waiting, *limits) == (step, preempted)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (({"Ada": 1, "Zoe": 1}, []), "Nobody is called 'Zoe'."),
        (({"Ada": 1, "Bo": 9}, []), "You hand out 10 tokens, and the budget is 5."),
        (({"Ada": 1, "Bo": 0}, []), "Whoever computes nothing has no place in the step."),
        (({"Ada": 1}, ["Ada"]), "Ada loses its blocks in this step, so it computes nothing."),
    ],
)
def test_a_step_that_cannot_be_is_told_why(step: Any, said: str) -> None:
    """Catches a step that breaks a rule and is told only that it differs."""
    right = ch09.schedule_step.reference
    both = [("Ada", 6, 5)], [("Bo", 9)]
    verdict = unrecorded(ch09.schedule_step).grade(
        lambda running, waiting, *limits: step if (running, waiting) == both else right(running, waiting, *limits)
    )
    assert said in verdict.remarks, verdict


def test_what_a_log_calls_recomputed_is_what_was_computed_beyond_need() -> None:
    """Catches a count of recomputed tokens that does not add up."""
    for load in LOADS:
        log = ch09_log.log_of(load)
        needed = sum(prompt + answer - 1 for prompt, answer in load.lengths)
        computed = sum(sum(tokens.values()) for tokens, _, _ in log)
        found = ch09.diagnose.reference(log, load.budget, load.max_num_seqs)
        assert found["recomputed"] == computed - needed


def test_a_step_that_preempted_leaves_room_in_both_limits() -> None:
    """Catches the claim that blocks may be blamed last: a step that preempted would be counted for another limit."""
    num_preempting = 0
    for load in LOADS:
        for tokens, preempted, _ in ch09_log.log_of(load):
            if preempted:
                num_preempting += 1
                assert sum(tokens.values()) < load.budget and len(tokens) < load.max_num_seqs
    assert num_preempting > 100


def test_the_setting_to_change_is_the_one_that_helps() -> None:
    """Catches a log whose most frequent reason is not what costs most steps, and logs that all say the same."""
    loads = [*ch09_log.known_loads(), *ch09_log.clear_loads()]
    changes = [ch09_log.change_of(load) for load in loads]
    for load, change in zip(loads, changes, strict=True):
        saved = {setting: ch09_log.steps_saved(load, setting) for setting in ch09_log.SETTINGS}
        assert saved[change] > max(steps for setting, steps in saved.items() if setting != change), load
    assert min(changes.count(setting) for setting in ch09_log.SETTINGS) >= 8


def test_half_a_cure_is_told_from_none() -> None:
    """Catches a hunt that accepts the flag set back, which is what chapter 04 asks for."""
    source = inspect.getsource(ch09_hunt._share_out_buggy)
    lost = "            num_computed[name] = 0\n"
    assert source.count(lost) == 1
    namespace: dict[str, Any] = {}
    exec(source.replace(lost, f"{lost}            in_prefill.add(name)\n"), namespace)
    verdict = unrecorded(ch09.share_out).grade(namespace["_share_out_buggy"])
    assert "You seem to compute the prompt again, and not the answer so far." in verdict.remarks, verdict


def test_the_hunt_shares_out_what_the_library_computes() -> None:
    """Catches a mended function that differs from the library's scheduler, given who runs and who is preempted."""
    for load in LOADS:
        steps = [step.output for step in load.steps()]
        prompts = {name: prompt for name, (prompt, _) in zip(NAMES, load.lengths, strict=False)}
        plan = [(list(step.num_scheduled_tokens), [each.request_id for each in step.preempted]) for step in steps]
        got, num_tokens = ch09.share_out.reference(prompts, plan, load.budget)
        assert got == [step.num_scheduled_tokens for step in steps]
        answers = [answer for _, answer in load.lengths]
        assert [num_tokens[name] - prompts[name] for name in prompts] == answers


@pytest.mark.parametrize(
    "order",
    [
        lambda now, patience, priority, arrival: priority - (now - arrival) / patience,
        lambda now, patience, priority, arrival: priority - (now - arrival) // patience,
        lambda now, patience, priority, arrival: max(0, priority - (now - arrival) // patience),
        lambda now, patience, priority, arrival: -(now - arrival - patience * priority),
    ],
)
def test_promises_can_be_kept_in_several_ways(order: Callable[..., float]) -> None:
    """Catches a grader that wants one order, where several keep both promises."""

    def next_to_run(waiting: list[Any], now: int, patience: int) -> str:
        return min(waiting, key=lambda each: (order(now, patience, *each[1:]), each[2]))[0]

    verdict = unrecorded(ch09.next_to_run).grade(next_to_run)
    assert verdict.passed, verdict


def test_a_client_can_age_its_requests_by_their_priority() -> None:
    """Catches the claim of the solution: the due step as a priority, and no change in the scheduler."""
    for case in ch09_starving.next_to_run.cases():
        load, patience = case.arguments
        aged, waiting = [], []
        scheduler = Scheduler(KVCacheManager(4, 1), max_num_seqs=1, policy="priority")
        by_answer = []
        for now in range(200):
            for name, priority, arrival in load:
                if arrival == now:
                    due_step = arrival + patience * priority
                    scheduler.add_request(Request(name, [0], max_tokens=1, priority=due_step, arrival_time=arrival))
                    waiting.append((name, priority, arrival))
            output = scheduler.schedule()
            scheduler.update(output)
            for request in output.requests:
                aged.append(request.request_id)
                scheduler.finish(request, RequestStatus.FINISHED_STOPPED)
            if waiting:
                by_answer.append(ch09.next_to_run.reference(waiting, now, patience))
                waiting = [each for each in waiting if each[0] != by_answer[-1]]
        due = {name: arrival + patience * priority for name, priority, arrival in load}
        assert len(aged) == len(load) and [due[name] for name in aged] == [due[name] for name in by_answer]
