"""How long blocks lay in the cache before they were found again, counted beside the manager."""

from __future__ import annotations

import pytest

from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.request import Request
from pagedattn_lab.studies.reuse_distances import ReuseDistances


def admit(manager: KVCacheManager, name: str, tokens: list[int]) -> Request:
    request = Request(name, tokens)
    blocks, num_hit_tokens = manager.get_computed_blocks(request)
    assert manager.allocate_slots(request, request.num_tokens - num_hit_tokens, blocks) is not None
    return request


def test_distances() -> None:
    """Catches a distance counted from the wrong end, from the first use in place of the last, or of a block in use; and
    two observers that are in each other's way.
    """
    manager = KVCacheManager(num_blocks=9, block_size=2)
    reuse, recorder = ReuseDistances(manager.block_pool), Recorder(manager.block_pool)
    assert reuse.distance(1) is None
    manager.free(admit(manager, "Ada", [1, 2, 3, 4, 5]))
    admit(manager, "Bo", [7, 7, 7, 7])
    cy, dora = admit(manager, "Cy", [1, 2, 3, 4, 5]), admit(manager, "Dora", [1, 2, 3, 4, 5])
    assert reuse.distances == {2: 2, 0: 2}, "Bo took two; Cy still held them"
    assert [reuse.distance(part) for part in (0.01, 0.5, 0.51, 1)] == [0, 0, 2, 2]
    assert manager.allocate_slots(Request("Eve", [8] * 99), 99) is None
    manager.free(cy)
    manager.free(dora)
    admit(manager, "Fay", [1, 2, 3, 4, 5])
    assert reuse.distances == {2: 2, 0: 4}, "used last by Dora, not by Ada"
    assert [frame.kind for frame in recorder.frames].count("hit") == 3
    for part in (0, 1.1):
        with pytest.raises(ValueError, match=f"part is {part}"):
            reuse.distance(part)


def test_blocks_taken_by_hand_count_too() -> None:
    """Catches a statistic that only knows what the manager hands out, and takes a cache for smaller than it must be."""
    manager = KVCacheManager(num_blocks=12, block_size=2)
    reuse = ReuseDistances(manager.block_pool)
    manager.free(admit(manager, "Ada", [1, 2, 3]))
    table = BlockTable(manager.block_pool)
    table.append_tokens(6)
    manager.block_pool.get_new_blocks(1)
    admit(manager, "Bo", [1, 2, 4])
    assert reuse.distances == {4: 1}
