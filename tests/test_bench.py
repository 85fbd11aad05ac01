"""The benchmark measures what it says: how much work, on which pools, in which order, and what it makes of times."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from pagedattn_lab.bench import allocator, timing
from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable

WAYS = ("same_load", "whole_pool")


class Log:
    """An observer that keeps the ids of all blocks handed out, in order, and what was appended, by table."""

    def __init__(self, pool: BlockPool) -> None:
        self.allocated: list[int] = []
        self.freed = 0
        self.appends: dict[int, list[int]] = {}
        self.tables: list[BlockTable] = []  # kept, so that no id is used again
        self.most_running = self.num_running = 0
        pool.observers.append(self)

    def begin(self, table: BlockTable) -> None:
        pass

    def pool_event(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        if kind == "allocate":
            self.allocated += [block.block_id for block in blocks]
        elif kind == "free":
            self.freed += len(blocks)

    def end(self, kind: str, blocks: Sequence[KVCacheBlock], table: BlockTable, num_tokens: int) -> None:
        if kind == "append":
            if id(table) not in self.appends:
                self.tables.append(table)
                self.num_running += 1
                self.most_running = max(self.most_running, self.num_running)
            self.appends.setdefault(id(table), []).append(num_tokens)
        elif kind == "free":
            self.num_running -= 1


@pytest.mark.parametrize("in_turn", [False, True])
def test_serve_appends_what_it_says(in_turn: bool) -> None:
    """Catches appends that are counted and not made, requests that never end or are not replaced, and a leak."""
    pool = BlockPool(1_000, allocator.BLOCK_SIZE)
    log = Log(pool)
    assert allocator.serve(pool, num_running=8, num_steps=500, in_turn=in_turn) == 8 * 500
    prompts, steps = zip(*((appends[0], appends[1:]) for appends in log.appends.values()), strict=True)
    assert sum(map(len, steps)) == 8 * 500 and {count for step in steps for count in step} == {1}
    assert log.most_running == 8 and log.num_running == 0
    lengths = allocator.lengths()
    expected = [next(lengths) for _ in prompts]
    assert list(prompts) == [prompt_len for prompt_len, _ in expected]
    finished = [len(step) == output_len for step, (_, output_len) in zip(steps, expected, strict=True)]
    assert finished.count(False) <= 8 and len(finished) > 4 * 8  # most ended on their own, the last ones were let go
    assert all(len(step) <= output_len for step, (_, output_len) in zip(steps, expected, strict=True))
    assert len(log.allocated) == log.freed and pool.num_used_blocks == 0
    assert len(pool.free_block_queue.get_all_free_blocks()) == 999


def test_lengths_are_ragged_and_fit_the_smallest_pool() -> None:
    """Catches a load that a pool of 1,000 blocks might refuse, and one whose requests all end together."""
    lengths = allocator.lengths()
    pairs = [next(lengths) for _ in range(1_000)]
    longest = max(-(-sum(pair) // allocator.BLOCK_SIZE) for pair in pairs)
    assert 64 * longest <= allocator.SIZES[0] - 1 and min(map(min, pairs)) >= 1
    assert len(set(pairs)) > 900
    again = allocator.lengths()
    assert pairs == [next(again) for _ in range(1_000)]


def test_same_load_uses_the_same_blocks_in_every_pool() -> None:
    """Catches a comparison of pools in which something besides their size changes."""
    logs = []
    for num_blocks in (1_000, 5_000):
        pool = BlockPool(num_blocks, allocator.BLOCK_SIZE)
        log = Log(pool)
        allocator.serve(pool, num_running=64, num_steps=100, in_turn=False)
        allocator.operate(pool, num_calls=20, in_turn=False)
        logs.append(log.allocated)
    assert logs[0] == logs[1] and len(set(logs[0])) < 1_000


def test_whole_pool_hands_out_what_was_untouched_longest() -> None:
    """Catches blocks that come back while others have never been used, so that caches would hide the pool's size."""
    pool = BlockPool(401, allocator.BLOCK_SIZE)
    allocator._shuffle(pool)
    order = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
    assert sorted(order) == list(range(1, 401)) and order != sorted(order)
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 20  # neighbours do not stay together
    log = Log(pool)
    assert allocator.operate(pool, num_calls=50, in_turn=True) == 2 * 50 * allocator.BLOCKS_PER_CALL
    assert log.allocated == order * 2 and log.freed == 800

    log.allocated.clear()
    allocator.serve(pool, num_running=4, num_steps=3_000, in_turn=True)
    last: dict[int, int] = {}
    for index, block_id in enumerate(log.allocated):
        # 4 requests hold at most 60 of the 400 blocks, so a block that joins the tail has 340 hand-outs ahead of it.
        assert index - last.get(block_id, index - 400) >= 340
        last[block_id] = index
    assert len(last) == 400
    assert pool.num_used_blocks == 0


def test_same_load_keeps_to_a_few_blocks() -> None:
    """Catches the two ways of using a pool becoming one."""
    pool = BlockPool(401, allocator.BLOCK_SIZE)
    log = Log(pool)
    assert allocator.operate(pool, num_calls=50, in_turn=False) == 2 * 50 * allocator.BLOCKS_PER_CALL
    assert len(set(log.allocated)) == allocator.BLOCKS_PER_CALL and len(log.allocated) == 50 * allocator.BLOCKS_PER_CALL
    log.allocated.clear()
    allocator.serve(pool, num_running=4, num_steps=500, in_turn=False)
    assert len(log.allocated) > 100 and len(set(log.allocated)) <= 4 * 15  # as many as 4 requests hold at most


class Recorder:
    """Stands in for the two loads: notes how they are called, and does no work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, int, bool]] = []
        self.pools: dict[int, set[int]] = {}
        self.orders: list[bool] = []
        monkeypatch.setattr(allocator, "operate", self.operate)
        monkeypatch.setattr(allocator, "serve", self.serve)

    def note(self, name: str, pool: BlockPool, count: int, in_turn: bool) -> None:
        assert not gc.isenabled() and pool.num_used_blocks == 0 and pool.block_size == 16
        self.calls.append((name, pool.num_blocks, count, in_turn))
        self.pools.setdefault(pool.num_blocks, set()).add(id(pool))
        head = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        self.orders.append(head == sorted(head))

    def operate(self, pool: BlockPool, num_calls: int, in_turn: bool) -> int:
        self.note("operate", pool, num_calls, in_turn)
        return 1

    def serve(self, pool: BlockPool, num_running: int, num_steps: int, in_turn: bool) -> int:
        assert num_running == 3
        self.note("serve", pool, num_steps, in_turn)
        return 1


def test_sizes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a size that always comes first, one left out, unequal work, and a queue shuffled too early or never."""
    recorder = Recorder(monkeypatch)
    allocator.measure([100, 200, 300], num_running=3, num_steps=7, num_calls=5, repetitions=4)
    expected = [
        (name, size, count, in_turn)
        for in_turn in (False, True)
        for sizes in ((100, 200, 300), (200, 300, 100), (300, 100, 200), (100, 200, 300))
        for size in sizes
        for name, count in (("operate", 5), ("serve", 7))
    ]
    assert recorder.calls == expected
    assert recorder.orders == [not in_turn for *_, in_turn in expected]
    assert {size: len(ids) for size, ids in recorder.pools.items()} == {100: 1, 200: 1, 300: 1}


def test_defaults_are_the_sizes_promised() -> None:
    """Catches a benchmark that quietly measures smaller pools, or one repetition."""
    defaults = allocator.measure.__kwdefaults__
    assert allocator.SIZES == (1_000, 30_000, 1_000_000) and allocator.measure.__defaults__ == (allocator.SIZES,)
    assert defaults["num_running"] == 64 and defaults["repetitions"] >= 5 and allocator.BLOCK_SIZE == 16


def test_summary_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mean for a median, ratios across repetitions, ratios upside down, and a wrong unit."""
    # By size, way, and load: nanoseconds per unit in three repetitions.
    times = {
        (100, False, "operate"): [100, 400, 200], (200, False, "operate"): [200, 800, 400],
        (100, False, "serve"): [1000, 9000, 2000], (200, False, "serve"): [2000, 18000, 4000],
        (100, True, "operate"): [200, 200, 200], (200, True, "operate"): [100, 200, 300],
        (100, True, "serve"): [5000, 5000, 5000], (200, True, "serve"): [4000, 2500, 1000],
    }  # fmt: skip

    def scripted(work: Any, pool: BlockPool, *arguments: Any) -> float:
        return times[pool.num_blocks, arguments[-1], work.__name__].pop(0)

    monkeypatch.setattr(allocator, "nanoseconds", scripted)
    report = allocator.measure([100, 200], num_running=1, repetitions=3)
    first, second = report["pools"]
    assert first["same_load"] == {
        "block_operations_per_second": 5e6,
        "block_operations_per_second_quartiles": [3.75e6, 7.5e6],
        "block_operation_time_ratio": 1,
        "block_operation_time_ratio_quartiles": [1, 1],
        "append_ns": 2000,
        "append_ns_quartiles": [1500, 5500],
        "append_time_ratio": 1,
        "append_time_ratio_quartiles": [1, 1],
    }
    assert second["same_load"]["append_time_ratio_quartiles"] == [2, 2]
    assert second["same_load"]["block_operation_time_ratio"] == 2
    assert second["whole_pool"]["block_operation_time_ratio_quartiles"] == [0.75, 1.25]
    assert second["whole_pool"]["append_time_ratio"] == 0.5
    assert second["whole_pool"]["append_time_ratio_quartiles"] == pytest.approx([0.35, 0.65])
    assert (report["flat"], report["append_us"]) == (2, 4)
    assert (report["flat_whole_pool"], report["append_us_whole_pool"]) == (2, 5)


def test_nanoseconds_are_cpu_time_per_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a clock that counts other processes' turns, and a time that is not divided by the work."""
    assert timing.clock is time.process_time_ns
    ticks = iter([1_000, 3_000])
    monkeypatch.setattr(timing, "clock", lambda: next(ticks))
    assert timing.nanoseconds(lambda number: number, 8) == 250


def test_report_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches fields that are missing, values that JSON cannot take, and lines too wide for a terminal."""
    report = allocator.measure([1_000, 1_200], num_steps=20, num_calls=10, repetitions=2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [pool["num_blocks"] for pool in report["pools"]] == [1_000, 1_200]
    settings = ("block_size", "blocks_per_call", "num_running", "num_steps", "num_calls", "repetitions")
    assert [report[name] for name in settings] == [16, 16, 64, 20, 10, 2]
    for pool in report["pools"]:
        for way in WAYS:
            row = pool[way]
            for name in ("block_operations_per_second", "append_ns"):
                low, high = row[f"{name}_quartiles"]
                assert 0 < low <= row[name] <= high
    medians = [pool["same_load"]["append_ns"] for pool in report["pools"]]
    assert report["flat"] == max(medians) / min(medians) and report["append_us"] == max(medians) / 1000
    text = allocator.describe(report)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("     1,000  ") == text.count("     1,200  ") == 2
    for row in (pool[way] for pool in report["pools"] for way in WAYS):
        assert f"{row['append_ns']:.0f} (" in text and f"{row['block_operations_per_second'] / 1e6:.2f} M" in text
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_garbage_collection_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a benchmark that leaves the interpreter without garbage collection, above all after an error."""

    def fail(*_: Any) -> int:
        raise RuntimeError("stop")

    monkeypatch.setattr(allocator, "serve", fail)
    with pytest.raises(RuntimeError, match="stop"):
        allocator.measure([100], num_running=1, repetitions=2)
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="stop"):
            allocator.measure([100], num_running=1, repetitions=2)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([], {}, "give at least one"),
        ([2_000, 1_000], {}, "ascending"),
        ([1_000, 1_000], {}, "ascending"),
        ([960], {}, "a pool of 960 blocks may be too small for 64 requests: give 961"),
        ([16], {"num_running": 1}, "give 17"),
        ([1_000], {"repetitions": 1}, "at least 2 repetitions"),
        ([1_000], {"num_steps": 0}, "at least 1"),
        ([1_000], {"num_calls": 0}, "at least 1"),
        ([1_000], {"num_running": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(sizes: list[int], options: dict[str, int], message: str) -> None:
    """Catches a division by nothing, and a load that the smallest pool would refuse half-way."""
    with pytest.raises(ValueError, match=message):
        allocator.measure(sizes, **options)


def test_smallest_pool_allowed_is_enough() -> None:
    """Catches a limit that is off by one."""
    assert allocator.measure([961], num_steps=300, num_calls=1, repetitions=2)["pools"][0]["num_blocks"] == 961
