"""The manager against vLLM's own: the same operations, recorded there, give the same blocks, events and free queue."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.kv_events import AllBlocksCleared, BlockStored, KVCacheEvent
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request
from tests.record_vllm_transcript import TRANSCRIPT

RUNS = json.loads(TRANSCRIPT.read_text())["runs"]


def ids(blocks: list[KVCacheBlock] | None) -> list[int] | None:
    return None if blocks is None else [block.block_id for block in blocks]


class Replay:
    """Does to our manager what was done to vLLM's, and compares what each call gives."""

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.manager = KVCacheManager(
            num_blocks, block_size, enable_prefix_caching, enable_kv_cache_events=enable_prefix_caching
        )
        self.numbers: dict[int, int] = {}  # which hash is which of the recording's
        self.requests: dict[str, Request] = {}

    def admit(
        self, name: str, tokens: list[int], salt: str | None, found: list[int], num_new: int, new: list[int] | None
    ) -> None:
        request = Request(name, tokens, cache_salt=salt)
        blocks, num_hit_tokens = self.manager.get_computed_blocks(request)
        assert ids(blocks) == found
        assert ids(self.manager.allocate_slots(request, num_new, computed_blocks=blocks)) == new
        if new is not None:
            request.num_computed_tokens = num_hit_tokens + num_new
            self.requests[name] = request

    def step(
        self,
        name: str,
        appended: list[int],
        num_slots: int,
        num_new: int,
        accepted: list[int],
        new: list[int] | None,
        preempted: bool,
    ) -> None:
        request = self.requests[name]
        for token in appended:
            request.append_token(token)
        assert ids(self.manager.allocate_slots(request, num_slots)) == new
        if preempted:
            self.free(name)
        elif new is not None:
            for token in accepted:
                request.append_token(token)
            request.num_computed_tokens += num_new + len(accepted)

    def plain(self, event: KVCacheEvent) -> list:
        """Give an event as the recording does: each hash by its number, in the order of their first appearance."""
        if isinstance(event, AllBlocksCleared):
            return ["AllBlocksCleared"]
        name = [type(event).__name__, [self.number(block_hash) for block_hash in event.block_hashes]]
        if isinstance(event, BlockStored):
            parent = event.parent_block_hash
            name += [None if parent is None else self.number(parent), event.token_ids, event.block_size]
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
def test_blocks_are_those_that_vllm_gives(run: dict) -> None:
    """Catches a block found, taken, given back or evicted where vLLM chooses another, or in another order, and an event
    that vLLM does not tell, or tells otherwise.
    """
    replay = Replay(run["num_blocks"], run["block_size"], run["enable_prefix_caching"])
    for name, *arguments, events, queue in run["operations"]:
        getattr(replay, name)(*arguments)
        assert [replay.plain(event) for event in replay.manager.take_events()] == events
        assert ids(replay.manager.block_pool.free_block_queue.get_all_free_blocks()) == queue
    assert not replay.requests and replay.manager.block_pool.num_used_blocks == 0


def test_transcript_has_every_case() -> None:
    """Catches a recording in which nothing is ever found, refused, preempted, rejected, salted or reset in vain."""
    cases: Counter[str] = Counter()
    for run in RUNS:
        for name, *arguments, events, _ in run["operations"]:
            cases.update(event[0] for event in events)
            cases["stored behind others"] += any(event[0] == "BlockStored" and event[2] is not None for event in events)
            cases["stored with a salt"] += any(event[0] == "BlockStored" and any(event[5]) for event in events)
            if name == "admit":
                _, _, salt, found, _, new = arguments
                cases += Counter({"found": bool(found), "refused": new is None, "salted": bool(found and salt)})
                cases["refused with hits"] += new is None and bool(found)
            elif name == "step":
                _, _, num_slots, num_new, accepted, new, preempted = arguments
                cases["preempted"] += preempted
                cases["short"] += new is None and not preempted
                cases["rejected"] += new is not None and len(accepted) < num_slots - num_new
            elif name == "reset":
                cases["reset" if arguments[0] else "not reset"] += 1
    assert all(times >= 5 for times in cases.values()) and len(cases) == 14, cases
