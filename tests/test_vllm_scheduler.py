"""The scheduler against vLLM's own: the same loads, recorded there, give the same steps, blocks and order here."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.helpers.vllm_replay import SchedulerReplay
from tests.record_vllm_scheduler import STOP, TRANSCRIPT

RUNS = json.loads(TRANSCRIPT.read_text())["runs"]


@pytest.mark.parametrize("run", RUNS, ids=range(len(RUNS)))
def test_steps_are_those_of_vllm(run: dict) -> None:
    """Catches a request scheduled, cut, preempted, admitted or held back where vLLM chooses another, or in another
    order; and blocks that differ from vLLM's by then.
    """
    replay = SchedulerReplay(run)
    for step in run["steps"]:
        replay.step(*step)


def test_transcript_has_every_case() -> None:
    """Catches a recording in which nothing is ever preempted, found again, cut, held back, given up or stopped."""
    cases: Counter[str] = Counter()
    for run in RUNS:
        policy, lost, lengths = run["options"]["policy"], set(), {}
        for came, gone, scheduled, preempted, running, waiting, sampled, ended, _ in run["steps"]:
            lengths |= {name: len(tokens) for name, tokens, *_ in came}
            resumed = lost & running.keys()
            lost = (lost | set(preempted)) - running.keys()
            cases[f"preempted, {policy}"] += len(preempted)
            cases[f"several at once, {policy}"] += len(preempted) > 1
            cases[f"resumed, {policy}"] += len(resumed)
            cases["preempted and went on"] += bool(preempted and scheduled)
            cases["chunk"] += len(scheduled.keys() - sampled.keys())
            if run["options"]["watermark"] and waiting and running and not preempted:
                num_used = len({block for ids in running.values() for block in ids})
                num_free = run["num_blocks"] - 1 - num_used
                cases["held back"] += num_free * run["block_size"] >= lengths[waiting[0]] + run["block_size"]
            cases["given up"] += len(gone)
            cases["stopped"] += STOP in sampled.values()
            blocks = [block for ids in running.values() for block in ids]
            cases["shared"] += len(set(blocks)) < len(blocks)
            cases["ended"] += len(ended)
    assert all(times >= 5 for times in cases.values()) and len(cases) == 13, cases
