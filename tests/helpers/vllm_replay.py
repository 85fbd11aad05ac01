"""Ours does again what vLLM's did: a scheduler that follows a recording, and groups of layers like those of one."""

from __future__ import annotations

from typing import Any

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, KVCacheSpec, MLAAttentionSpec, SlidingWindowSpec
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus
from tests.record_vllm_scheduler import STOP


def spec_of(kind: str | int, extra: int, block_size: int) -> KVCacheSpec:
    if kind == "F":
        return FullAttentionSpec(block_size, 1, 8, "float32")
    if kind == "L":
        return MLAAttentionSpec(block_size, 8, "float32")
    return SlidingWindowSpec(block_size, 1, 8, "float32", sliding_window=kind, extra_retained_tokens=extra)


def groups_of(run: dict[str, Any]) -> list[KVCacheGroup]:
    specs = [spec_of(kind, sum(extra), run["block_size"]) for kind, *extra in run["groups"]]
    return [KVCacheGroup((f"layers.{number}",), (spec,)) for number, spec in enumerate(specs)]


class SchedulerReplay:
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
