"""Groups of layers against vLLM's own managers: the same operations, recorded there, give the same blocks here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, KVCacheSpec, MLAAttentionSpec, SlidingWindowSpec
from pagedattn_lab.kv_events import AllBlocksCleared, BlockStored, KVCacheEvent
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.request import Request
from tests.record_vllm_groups import TRANSCRIPT

RUNS = json.loads(TRANSCRIPT.read_text())["runs"]


def ids(blocks: Sequence[Sequence[KVCacheBlock]] | None) -> list[list[int]] | None:
    return None if blocks is None else [[block.block_id for block in of_group] for of_group in blocks]


def spec_of(kind: str | int, extra: int, block_size: int) -> KVCacheSpec:
    if kind == "F":
        return FullAttentionSpec(block_size, 1, 8, "float32")
    if kind == "L":
        return MLAAttentionSpec(block_size, 8, "float32")
    return SlidingWindowSpec(block_size, 1, 8, "float32", sliding_window=kind, extra_retained_tokens=extra)


def groups_of(run: dict[str, Any]) -> list[KVCacheGroup]:
    specs = [spec_of(kind, sum(extra), run["block_size"]) for kind, *extra in run["groups"]]
    return [KVCacheGroup((f"layers.{number}",), (spec,)) for number, spec in enumerate(specs)]


class Replay:
    """Does to our manager what was done to vLLM's, and compares what each call gives."""

    def __init__(self, run: dict[str, Any]) -> None:
        caching = run["enable_prefix_caching"]
        self.manager = GroupedKVCacheManager(
            groups_of(run),
            run["num_blocks"],
            caching,
            max_num_batched_tokens=run["max_in_flight_tokens"],
            prefix_cache_retention_interval=run["retention_interval"],
            enable_kv_cache_events=caching,
        )
        self.numbers: dict[int, int] = {}  # which hash is which of the recording's
        self.requests: dict[str, Request] = {}

    def run(self, operations: list[list]) -> None:
        for kind, *arguments, events, tables, queue in operations:
            getattr(self, kind)(*arguments)
            assert [self.plain(event) for event in self.manager.take_events()] == events
            assert [block.block_id for block in self.free_queue] == queue
            if tables:
                assert list(self.manager.block_ids(arguments[0])) == tables
        assert not self.requests and self.manager.block_pool.num_used_blocks == 0

    @property
    def free_queue(self) -> list[KVCacheBlock]:
        return self.manager.block_pool.free_block_queue.get_all_free_blocks()

    def admit(
        self,
        name: str,
        tokens: str,
        salt: str | None,
        found: list[list[int]],
        junction: int,
        num_new: int,
        must_fit: bool,
        new: list[list[int]] | None,
    ) -> None:
        request, manager = Request(name, map(int, tokens), cache_salt=salt), self.manager
        blocks, num_hit_tokens = manager.get_computed_blocks(request)
        assert ids(blocks) == found
        assert request.shared_prefix_boundary == junction
        num_free = manager.block_pool.num_free_blocks
        if must_fit and manager.num_blocks_to_admit(request, num_new, blocks) > num_free:
            assert new is None
            return
        assert ids(manager.allocate_slots(request, num_new, computed_blocks=blocks)) == new
        if new is not None:
            request.num_computed_tokens = num_hit_tokens + num_new
            self.requests[name] = request

    def step(
        self,
        name: str,
        appended: str,
        num_slots: int,
        num_new: int,
        accepted: str,
        new: list[list[int]] | None,
        preempted: bool,
    ) -> None:
        request = self.requests[name]
        for token in appended:
            request.append_token(int(token))
        assert ids(self.manager.allocate_slots(request, num_slots)) == new
        if preempted:
            self.free(name)
        elif new is not None:
            for token in accepted:
                request.append_token(int(token))
            request.num_computed_tokens += num_new + len(accepted)

    def plain(self, event: KVCacheEvent) -> list:
        """Give an event as the recording does: each hash by its number, in the order of their first appearance."""
        if isinstance(event, AllBlocksCleared):
            return ["AllBlocksCleared"]
        name: list = [type(event).__name__, [self.number(block_hash) for block_hash in event.block_hashes]]
        if isinstance(event, BlockStored):
            parent, tokens = event.parent_block_hash, "".join(map(str, event.token_ids))
            name += [None if parent is None else self.number(parent), tokens, event.block_size]
            keys = event.extra_keys
            name.append(keys and [of_block and list(of_block) for of_block in keys])
        return [*name, event.medium, event.group_idx]

    def number(self, block_hash: int) -> int:
        return self.numbers.setdefault(block_hash, len(self.numbers))

    def free(self, name: str) -> None:
        self.manager.free(self.requests.pop(name))

    def reset(self, done: bool) -> None:
        assert self.manager.reset_prefix_cache() == done


@pytest.mark.parametrize("run", RUNS, ids=range(len(RUNS)))
def test_blocks_are_those_that_vllm_gives(run: dict[str, Any]) -> None:
    """Catches a block of any group that is found, taken, given back or evicted where vLLM chooses another, or in another
    order; a hit of another length; a window that is remembered where vLLM's is not; and an event that differs.
    """
    Replay(run).run(run["operations"])
