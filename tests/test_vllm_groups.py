"""Groups of layers against vLLM's own managers: the same operations, recorded there, give the same blocks here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pagedattn_lab import block_table, kv_group_managers, kv_groups
from pagedattn_lab.block_pool import KVCacheBlock, NoFreeBlocksError
from pagedattn_lab.kv_events import AllBlocksCleared, BlockStored, KVCacheEvent
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.request import Request
from tests.helpers.vllm_replay import groups_of
from tests.record_vllm_groups import TRANSCRIPT

RUNS = json.loads(TRANSCRIPT.read_text())["runs"]


def ids(blocks: Sequence[Sequence[KVCacheBlock]] | None) -> list[list[int]] | None:
    return None if blocks is None else [[block.block_id for block in of_group] for of_group in blocks]


class Replay:
    """Does to our manager what was done to vLLM's, and compares what each call gives."""

    def __init__(self, run: dict[str, Any]) -> None:
        caching = run["enable_prefix_caching"]
        self.manager = GroupedKVCacheManager(
            groups_of(run),
            run["num_blocks"],
            caching,
            max_num_batched_tokens=run["max_in_flight_tokens"],
            prefix_cache_retention_interval=run["retention_interval"] if caching else 0,  # without, it does nothing
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
    """Catches a block of any group found, taken, given back or evicted where vLLM chooses another, or in another order;
    a hit of another length; a window that is remembered where vLLM's is not; and another event.
    """
    Replay(run).run(run["operations"])


def test_transcript_has_every_case() -> None:
    """Catches a recording without windows that move, hits with holes, groups that disagree, or requests refused."""
    cases: Counter[str] = Counter()
    for run in RUNS:
        windows = [isinstance(kind, int) for kind, *_ in run["groups"]]
        cases[f"{len(windows)} groups"] += 1
        cases["two widths"] += len({kind for kind, *_ in run["groups"] if isinstance(kind, int)}) > 1
        cases[f"interval {run['retention_interval']}" if not run["retention_interval"] else "interval"] += 1
        cases["latents"] += ["L"] in run["groups"]
        before: list[int] = []
        for kind, *arguments, events, tables, queue in run["operations"]:
            cases["stored nothing"] += any(event[0] == "BlockStored" and not event[1] for event in events)
            cases["removed from a later group"] += any(event[0] == "BlockRemoved" and event[-1] for event in events)
            if kind == "admit":
                _, _, salt, found, junction, _, _, new = arguments
                cases["found, without a hole"] += bool(found[0]) and not any(0 in blocks for blocks in found)
                cases["found, with a hole"] += any(0 in blocks for blocks in found)
                cases["junction"] += junction > 0
                cases["refused"] += new is None
                cases["salted"] += bool(found[0] and salt)
            elif kind == "step":
                _, _, num_slots, num_new, accepted, new, preempted = arguments
                cases["window moved"] += any(0 in table for table in tables)
                cases["preempted"] += preempted
                cases["short"] += new is None and not preempted
                cases["short, and yet given back"] += new is None and not preempted and len(queue) > len(before)
                cases["rejected"] += new is not None and len(accepted) < num_slots - num_new
            elif kind == "reset":
                cases["reset" if arguments[0] else "not reset"] += 1
            before = queue
    assert all(times >= 4 for times in cases.values()) and len(cases) == 23, cases


WINDOW_FREEING = {
    "window one token short": (
        kv_group_managers,
        "num_computed_tokens - spec.sliding_window + 1 - spec.extra",
        "num_computed_tokens - spec.sliding_window + 2 - spec.extra",
    ),
    "window one token long": (
        kv_group_managers,
        "num_computed_tokens - spec.sliding_window + 1 - spec.extra",
        "num_computed_tokens - spec.sliding_window - spec.extra",
    ),
    "drafter's tokens not kept": (kv_group_managers, " + 1 - spec.extra_retained_tokens)", " + 1)"),
    "never given back": (kv_groups, "manager.num_skipped_blocks(request.num_computed_tokens)", "0"),
    "given back a step late": (
        kv_groups,
        "manager.num_skipped_blocks(request.num_computed_tokens)",
        "manager.num_skipped_blocks(request.num_computed_tokens - 1)",
    ),
    "first block goes first": (
        block_table,
        "self.blocks[self.num_skipped_blocks : num_blocks][::-1]",
        "self.blocks[self.num_skipped_blocks : num_blocks]",
    ),
    "first block of all goes first at the end": (
        block_table,
        "self.blocks[self.num_skipped_blocks :][::-1]",
        "self.blocks[self.num_skipped_blocks :]",
    ),
    "entries keep their blocks": (block_table, "[self.pool.null_block] * len(freed)", "freed[::-1]"),
}
HIT_TRIMMING = {
    "one block more than a window": (kv_group_managers, "cdiv(spec.sliding_window - 1,", "cdiv(spec.sliding_window,"),
    "one block fewer than a window": (
        kv_group_managers,
        "cdiv(spec.sliding_window - 1, spec.block_size)",
        "cdiv(spec.sliding_window - 1, spec.block_size) - 1",
    ),
    "a miss does not end a row": (kv_group_managers, "found, stop = [], place", "stop = place + len(found)"),
    "looked for beyond a window": (kv_group_managers, "if len(found) >= self", "if len(found) > self"),
    "full attention not cut": (kv_group_managers, "by_group[group_idx][:num_blocks]", "by_group[group_idx]"),
    "each group asked once": (kv_group_managers, "while num_blocks != num_before:", "for _ in range(1):"),
    "groups of one spec not found together": (kv_group_managers, "if len(known) < len(blocks):", "if not known:"),
    "last token taken from the cache": (
        kv_groups,
        "num_blocks = (request.num_tokens - 1)",
        "num_blocks = (request.num_tokens)",
    ),
}
REMEMBERING = {
    "junction forgotten": (kv_group_managers, ", request.shared_prefix_boundary // block_size]", "]"),
    "junction is the hit": (
        kv_groups,
        "request.shared_prefix_boundary = num_longest",
        "request.shared_prefix_boundary = len(hits[0])",
    ),
    "prompt's last token in the cache": (
        kv_group_managers,
        "(request.num_prompt_tokens - 1) // block_size",
        "request.num_prompt_tokens // block_size",
    ),
    "interval from its beginning": (kv_group_managers, ">= per_segment - need)", "< need)"),
    "every block": (kv_group_managers, "if 0 < per_segment <= need:", "if True:"),
    "null block remembered": (kv_groups, "if place >= table.num_skipped_blocks]", "]"),
}
COUNTING = {
    "hits that nobody holds not counted": (kv_groups, "sum(block.ref_cnt == 0 and", "sum(block.ref_cnt < 0 and"),
    "null block counted": (kv_groups, "block.ref_cnt == 0 and block is not null_block", "block.ref_cnt == 0"),
    "window not counted at admission": (
        kv_group_managers,
        "return min(num_blocks, self.spec",
        "return max(num_blocks, self.spec",
    ),
}
MUTATIONS = WINDOW_FREEING | HIT_TRIMMING | REMEMBERING | COUNTING


def run_all(patch: pytest.MonkeyPatch, mutant: ModuleType) -> None:
    """Replay every history with the names of one module taken from its mutant."""
    for target in (kv_groups, sys.modules[__name__]):
        for name in ("GroupedKVCacheManager", "single_type_managers", "find_longest_cache_hit", "BlockTable"):
            if hasattr(mutant, name) and hasattr(target, name):
                patch.setattr(target, name, getattr(mutant, name))
    for run in RUNS:
        Replay(run).run(run["operations"])


def load(module: ModuleType, original: str, mutated: str) -> ModuleType:
    """Import a changed copy of a module."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(original) == 1, f"{module.__name__} no longer holds {original!r} once: bring it up to date"
    mutant = ModuleType(module.__name__)
    mutant.__file__ = module.__file__
    exec(compile(source.replace(original, mutated), str(module.__file__), "exec"), vars(mutant))
    return mutant


@pytest.mark.parametrize("module", [kv_groups, kv_group_managers, block_table], ids=lambda module: module.__name__)
def test_unmutated_copy_passes(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a harness in which a copy fails whatever it does."""
    run_all(monkeypatch, load(module, "from __future__ import annotations", "from __future__ import annotations"))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutant_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a recording too weak to notice the named mistake."""
    mutant = load(*MUTATIONS[mutation])
    with pytest.raises((AssertionError, ValueError, IndexError, NoFreeBlocksError)):
        run_all(monkeypatch, mutant)
