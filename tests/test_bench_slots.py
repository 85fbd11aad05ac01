"""The benchmark of ``allocate_slots`` calls what it says, as often as it says, and times nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import pytest

from pagedattn_lab.bench import slots
from pagedattn_lab.bench.load import BLOCK_SIZE, lengths
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request


@pytest.mark.parametrize("caching", [False, True])
def test_every_request_is_served_to_its_end(caching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches calls that are refused and cost nothing, requests cut short, hits between strangers, more requests at
    once than the report says, calls that are not timed, and other work that is.
    """
    manager = KVCacheManager(num_blocks=64, block_size=BLOCK_SIZE, enable_prefix_caching=caching)
    now = most = 0
    asked: dict[str, list[int]] = {}
    allocate_slots, free = manager.allocate_slots, manager.free

    def allocate_in_one_unit_of_time(request: Request, num_new_tokens: int, blocks: Sequence = ()) -> list:
        nonlocal now, most
        now += 1
        taken = allocate_slots(request, num_new_tokens, blocks)
        assert taken is not None and not blocks
        asked.setdefault(request.request_id, []).append(num_new_tokens)
        most = max(most, len(manager.tables))
        return taken

    def free_slowly(request: Request) -> None:
        nonlocal now
        now += 1_000
        free(request)

    monkeypatch.setattr(manager, "allocate_slots", allocate_in_one_unit_of_time)
    monkeypatch.setattr(manager, "free", free_slowly)
    monkeypatch.setattr(slots, "clock", lambda: now)
    nanoseconds, calls = slots.serve(manager, num_running=4, num_requests=11)
    expected = {str(i): [prompt] + [1] * (output - 1) for i, (prompt, output) in enumerate(islice(lengths(), 11))}
    assert asked == expected and most == 4
    assert nanoseconds == calls == sum(map(len, expected.values())), "one unit of time each"
    assert manager.block_pool.num_used_blocks == 0 and manager.stats.hits == 0


def test_the_line_says_what_was_measured() -> None:
    """Catches a line that mixes up the two ways, or does not say how many requests there were."""
    row = {"num_running": 256, "num_requests": 1_024}
    row |= {"plain": {"us": 1.0, "us_quartiles": [0.5, 2.0]}, "cached": {"us": 3.0, "us_quartiles": [2.5, 4.0]}}
    assert slots.describe({"allocate_slots": row}) == (
        "allocate_slots, 256 of 1,024 requests running:\n"
        "1.00 us (0.50-2.00) without prefix caching, 3.00 us (2.50-4.00) with it."
    )
