"""The prefix benchmark measures what it says: which requests, in which state, and what it makes of times."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from pagedattn_lab.bench import prefix
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request

KEYS = ("look_up_us", "us", "ns_per_block", "radix_time_ratio")


@pytest.mark.parametrize("index", prefix.INDEXES.values())
@pytest.mark.parametrize(("length", "found"), [(160, 9), (161, 10), (17, 1)])
def test_every_round_admits_a_stranger_and_then_a_twin(length: int, found: int, index: Any) -> None:
    """Catches a cache that is warm when it should be empty, or the reverse, and hashes kept from request to request."""
    manager = KVCacheManager(-(-length // 16) + 2, 16, index=index(16))
    admitted: list[tuple[int, int]] = []
    requests: list[Request] = []
    look_up, allocate = manager.get_computed_blocks, manager.allocate_slots

    def get_computed_blocks(request: Request) -> Any:
        assert request.hashes == {} and request not in requests
        requests.append(request)
        return look_up(request)

    def allocate_slots(request: Request, num_new_tokens: int, blocks: Any) -> Any:
        admitted.append((len(blocks), num_new_tokens))
        assert manager.block_pool.num_used_blocks == 0
        new_blocks = allocate(request, num_new_tokens, blocks)
        assert len(new_blocks) == -(-num_new_tokens // 16)
        return new_blocks

    manager.get_computed_blocks, manager.allocate_slots = get_computed_blocks, allocate_slots
    prefix.serve(manager, range(length), num_rounds=3)
    assert admitted == [(0, length), (found, length - 16 * found)] * 3
    assert manager.block_pool.num_used_blocks == 0 and manager.stats.evictions == 0


def test_times_are_those_of_look_up_and_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one part taken for the other, sums for means, and the clock running while the cache is emptied."""
    now = 0
    manager = KVCacheManager(5, 16)

    def taking(work: Any, *durations: int) -> Any:
        left = list(durations)

        def slower(*arguments: Any) -> Any:
            nonlocal now
            now += left.pop(0)
            return work(*arguments)

        return slower

    monkeypatch.setattr(prefix, "clock", lambda: now)
    for name, *durations in (
        ("get_computed_blocks", 1, 10, 3, 30),
        ("allocate_slots", 100, 1000, 300, 3000),
        ("reset_prefix_cache", 7777, 7777),
        ("free", *[7777] * 4),
    ):
        monkeypatch.setattr(manager, name, taking(getattr(manager, name), *durations))
    assert prefix.serve(manager, range(40), num_rounds=2) == {"not_cached": (2, 200), "cached": (20, 2000)}


def test_lengths_and_indexes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a length or an index that always comes first, one left out, and short prompts that weigh less."""
    calls: list[tuple[int, str, int]] = []

    def serve(manager: KVCacheManager, token_ids: list[int], num_rounds: int) -> dict[str, tuple[float, float]]:
        assert not gc.isenabled() and manager.block_pool.block_size == 16
        assert manager.block_pool.num_blocks == -(-len(token_ids) // 16) + 2
        name = "radix" if isinstance(manager.prefix_cache, RadixTree) else "hash"
        calls.append((len(token_ids), name, num_rounds))
        return {state: (1.0, 1.0) for state in prefix.STATES}

    monkeypatch.setattr(prefix, "serve", serve)
    prefix.measure([20, 40, 90], repetitions=3)
    rounds = {20: 4, 40: 2, 90: 1}
    assert calls == [
        (length, name, rounds[length])
        for lengths, names in (
            ((20, 40, 90), ("hash", "radix")),
            ((40, 90, 20), ("radix", "hash")),
            ((90, 20, 40), ("hash", "radix")),
        )
        for length in lengths
        for name in names
    ]


def test_summary_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mean for a median, ratios upside down, a wrong unit, and the faster of two look-ups."""
    # By length, index and state: nanoseconds of look-up and of allocation in three repetitions.
    times = {
        (160, "hash"): [((1000, 9000), (3000, 1000)), ((2000, 0), (0, 90000)), ((4000, 16000), (2000, 4000))],
        (160, "radix"): [((5000, 0), (8000, 0)), ((4000, 0), (180000, 0)), ((10000, 0), (9000, 0))],
        (32_768, "hash"): [((2e6, 1e6), (3e6, 1e6)), ((2e6, 1e6), (5e6, 3e6)), ((2e6, 1e6), (3e6, 1e6))],
        (32_768, "radix"): [((3e6, 0), (4e6, 0))] * 3,
    }

    def serve(manager: KVCacheManager, token_ids: list[int], num_rounds: int) -> dict[str, tuple[float, float]]:
        name = "radix" if isinstance(manager.prefix_cache, RadixTree) else "hash"
        not_cached, cached = times[len(token_ids), name].pop(0)
        return {"not_cached": not_cached, "cached": cached}

    monkeypatch.setattr(prefix, "serve", serve)
    report = prefix.measure([160, 32_768], repetitions=3)
    short, long = report["prompts"]
    assert short["num_tokens"] == 160 and short["num_blocks"] == 10 and long["num_blocks"] == 2048
    assert short["not_cached"] == {
        "look_up_us": 2,
        "look_up_us_quartiles": [1.5, 3],
        "us": 10,
        "us_quartiles": [6, 15],
        "ns_per_block": 1000,
        "ns_per_block_quartiles": [600, 1500],
        "radix_time_ratio": 0.5,
        "radix_time_ratio_quartiles": [0.5, 1.25],
    }
    assert short["cached"]["us"] == 6 and short["cached"]["radix_time_ratio"] == 2
    assert long["cached"]["ns_per_block"] == 4e6 / 2048
    assert report["linearity"] == pytest.approx(4e6 / 2048 / 600)
    assert report["linearity_not_cached"] == pytest.approx(3e6 / 2048 / 1000)
    assert report["ms_32k"] == 3


def test_report_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches fields that are missing, values that JSON cannot take, and lines too wide for a terminal."""
    report = prefix.measure([64, 2_000], repetitions=2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["block_size"], report["repetitions"], report["ms_32k"]) == (16, 2, None)
    for prompt in report["prompts"]:
        for state in prefix.STATES:
            row = prompt[state]
            for name in KEYS:
                low, high = row[f"{name}_quartiles"]
                assert 0 < low <= row[name] <= high
            assert row["look_up_us"] < row["us"]
    text = prefix.describe(report)
    assert max(map(len, text.splitlines())) <= 80 and "32,768" not in text
    assert text.count("   2,000    125  ") == 2
    for row in (prompt[state] for prompt in report["prompts"] for state in prefix.STATES):
        assert f"{row['us']:,.0f} (" in text and f"{row['ns_per_block']:,.0f} (" in text
    assert f"cached {report['linearity']:.2f}, not cached {report['linearity_not_cached']:.2f}" in text
    assert "32,768 tokens: 2.94 ms" in prefix.describe(report | {"ms_32k": 2.942})
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_defaults_are_the_lengths_promised() -> None:
    """Catches a benchmark that quietly leaves the long prompts out."""
    assert list(prefix.LENGTHS) == [1024 * 2**doubling for doubling in range(8)]
    assert prefix.PROMISED_LENGTH in prefix.LENGTHS
    assert prefix.measure.__defaults__ == (prefix.LENGTHS,) and prefix.measure.__kwdefaults__["repetitions"] >= 5


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, r"lengths \[\]: give at least one"),
        ([64, 32], {}, "ascending"),
        ([64, 64], {}, "ascending"),
        ([16, 64], {}, "a prompt of 16 tokens is never found: give more than a block of 16"),
        ([-5], {}, "above 0"),
        ([64], {"repetitions": 1}, "at least 2 repetitions"),
    ],
)
def test_bad_settings_are_refused(lengths: list[int], options: dict[str, int], message: str) -> None:
    """Catches a division by nothing, and a cache that can hold no block of the prompt."""
    with pytest.raises(ValueError, match=message):
        prefix.measure(lengths, **options)


def test_shortest_prompt_allowed_is_found() -> None:
    """Catches a limit that is off by one."""
    [prompt] = prefix.measure([17], repetitions=2)["prompts"]
    assert prompt["num_blocks"] == 2 and prompt["cached"]["us"] > 0
