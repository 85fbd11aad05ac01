"""The scheduler over several groups of layers against vLLM's own: the same loads give the same steps and blocks."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pagedattn_lab.kv_groups import GroupedKVCacheManager
from tests.helpers.vllm_replay import SchedulerReplay, groups_of
from tests.record_vllm_group_scheduler import TRANSCRIPT

RUNS = json.loads(TRANSCRIPT.read_text())["runs"]


class Replay(SchedulerReplay):
    """Gives our scheduler what vLLM's was given, and compares what each step makes of it."""

    def make_manager(self, run: dict[str, Any]) -> GroupedKVCacheManager:
        return GroupedKVCacheManager(
            groups_of(run),
            run["num_blocks"],
            run["enable_prefix_caching"],
            max_num_batched_tokens=run["options"]["max_num_batched_tokens"],
            prefix_cache_retention_interval=run["retention_interval"] if run["enable_prefix_caching"] else 0,
        )


@pytest.mark.parametrize("run", RUNS, ids=range(len(RUNS)))
def test_steps_are_those_of_vllm(run: dict[str, Any]) -> None:
    """Catches a request over several groups scheduled, cut, preempted or held back where vLLM chooses another."""
    replay = Replay(run)
    for step in run["steps"]:
        replay.step(*step)


def test_transcript_has_every_case() -> None:
    """Catches a recording in which no window moves, nothing is preempted, or nothing is shared."""
    cases: Counter[str] = Counter()
    for run in RUNS:
        lost: set[str] = set()
        for _, _, scheduled, preempted, running, waiting, sampled, ended, _ in run["steps"]:
            cases["resumed"] += len(lost & running.keys())
            lost = (lost | set(preempted)) - running.keys()
            cases["preempted"] += len(preempted)
            cases["chunk"] += len(scheduled.keys() - sampled.keys())
            cases["waits"] += bool(waiting and running)
            cases["ended"] += len(ended)
            blocks = [block for tables in running.values() for table in tables for block in table]
            cases["window moved"] += 0 in blocks
            cases["shared"] += len(set(blocks) - {0}) < len(blocks) - blocks.count(0)
    assert all(times >= 5 for times in cases.values()) and len(cases) == 7, cases
