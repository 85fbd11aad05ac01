"""The scheduler against vLLM's own: the same loads, recorded there, give the same steps, blocks and order here."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus
from tests.record_vllm_scheduler import STOP, TRANSCRIPT

RUNS = json.loads(TRANSCRIPT.read_text())["runs"]


class Replay:
    """Gives our scheduler what vLLM's was given, and compares what each step makes of it."""

    def __init__(self, run: dict) -> None:
        self.manager = self.make_manager(run)
        self.scheduler = Scheduler(self.manager, **run["options"])
        self.requests: dict[str, Request] = {}

    def make_manager(self, run: dict) -> KVCacheManager | GroupedKVCacheManager:
        return KVCacheManager(run["num_blocks"], run["block_size"], run["enable_prefix_caching"])

    def block_ids(self, name: str) -> list:
        return list(self.manager.block_ids(name))

    def step(
        self,
        came: list[list],
        gone: list[str],
        scheduled: dict[str, int],
        preempted: list[str],
        running: dict[str, list[int]],
        waiting: list[str],
        sampled: dict[str, int],
        ended: list[str],
        free: list[int],
    ) -> None:
        scheduler = self.scheduler
        for name, tokens, salt, max_tokens, priority, arrival_time in came:
            request = Request(
                name, map(int, tokens), salt, max_tokens=max_tokens, priority=priority, arrival_time=arrival_time
            )
            self.requests[name] = request
            scheduler.add_request(request)
        for name in gone:
            scheduler.finish(self.requests[name], RequestStatus.FINISHED_ABORTED)

        output = scheduler.schedule()
        assert list(output.num_scheduled_tokens.items()) == list(scheduled.items())
        assert [request.request_id for request in output.requests] == list(scheduled)
        assert [request.request_id for request in output.preempted] == preempted
        assert [request.request_id for request in scheduler.running] == list(running)
        assert [self.block_ids(name) for name in running] == list(running.values())
        assert [request.request_id for request in scheduler.waiting] == waiting

        scheduler.update(output)
        computed = [request for request in output.requests if request.num_computed_tokens == request.num_tokens]
        assert [request.request_id for request in computed] == list(sampled)
        has_ended = []
        for request in computed:
            request.append_token(sampled[request.request_id])
            if request.token_ids[-1] == STOP or request.num_output_tokens == request.max_tokens:
                scheduler.finish(request, RequestStatus.FINISHED_STOPPED)
                has_ended.append(request.request_id)
        assert has_ended == ended
        queue = self.manager.block_pool.free_block_queue.get_all_free_blocks()
        assert [block.block_id for block in queue] == free


@pytest.mark.parametrize("run", RUNS, ids=range(len(RUNS)))
def test_steps_are_those_of_vllm(run: dict) -> None:
    """Catches a request scheduled, cut, preempted, admitted or held back where vLLM chooses another, or in another
    order; and blocks that differ from vLLM's by then.
    """
    replay = Replay(run)
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
