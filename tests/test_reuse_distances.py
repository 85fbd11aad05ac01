"""Reuse distances: how many blocks were handed out between two uses, whoever took them.

``tests/test_kv_manager.py`` compares them with a model in plain lists, for any sequence of requests and forks.
"""

from __future__ import annotations

import pytest

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.request import Request
from pagedattn_lab.studies.reuse_distances import ReuseDistances


def admit(manager: KVCacheManager, name: str, token_ids: list[int]) -> Request:
    request = Request(name, token_ids)
    blocks, num_hit_tokens = manager.get_computed_blocks(request)
    assert manager.allocate_slots(request, len(token_ids) - num_hit_tokens, computed_blocks=blocks) is not None
    return request


def test_distances_of_a_manager() -> None:
    """Catches a distance counted from the wrong end, or from a use that was not the last."""
    manager, tokens = KVCacheManager(num_blocks=9, block_size=2), [1, 2, 3, 4, 5]
    reuse = ReuseDistances(manager.block_pool)
    assert reuse.distance(1) is None
    manager.free(admit(manager, "Ada", tokens))
    admit(manager, "Bo", [7, 7, 7, 7])
    cy, dora = admit(manager, "Cy", tokens), admit(manager, "Dora", tokens)
    assert reuse.distances == {2: 2, 0: 2}, "Bo took two; Cy still held them"
    assert [reuse.distance(part) for part in (0.01, 0.5, 0.51, 1)] == [0, 0, 2, 2]
    manager.free(cy)
    manager.free(dora)
    fay = admit(manager, "Fay", tokens)
    assert reuse.distances == {2: 2, 0: 4}, "used last by Dora, not by Ada"
    for part in (0, 1.1):
        with pytest.raises(ValueError, match=f"part is {part}"):
            reuse.distance(part)
    reuse.stop()
    manager.free(fay)
    admit(manager, "Gil", tokens)
    assert reuse.distances.total() == 6, "it has stopped"


def test_everybody_on_the_pool_counts() -> None:
    """Catches blocks taken by hand or by a fork's copy left out, a fork taken for a hit, and one use for another."""
    manager = KVCacheManager(num_blocks=12, block_size=2)
    pool = manager.block_pool
    reuse, recorder = ReuseDistances(pool), Recorder(pool)
    ada = admit(manager, "Ada", [1, 2, 3])
    fork = manager.tables["Ada"].fork()
    manager.free(ada)
    pool.get_new_blocks(3)
    fork.append_tokens(2)  # into its own last block, and one more
    other = fork.fork()
    fork.release()
    bo = admit(manager, "Bo", [1, 2, 3])
    assert reuse.distances == {0: 1}, "a fork of the fork holds it"
    manager.free(bo)
    pool.get_new_blocks(1)
    other.release()
    pool.get_new_blocks(1)
    admit(manager, "Cy", [1, 2, 3])
    assert reuse.distances == {0: 1, 1: 1}
    assert [frame.kind for frame in recorder.frames].count("hit") == 2, "both watch"


def test_what_was_before_the_watch_is_a_lower_bound() -> None:
    """Catches a hit on a block that was given back before the watch began, for which nothing was noted."""
    pool = BlockPool(6, 2)
    table = BlockTable(pool)
    table.append_tokens(2)
    [block] = table.blocks
    block.block_hash = "cached"
    table.release()
    reuse = ReuseDistances(pool)
    pool.get_new_blocks(3)
    BlockTable(pool).adopt([block])
    assert reuse.distances == {3: 1}


def test_a_block_found_for_two_places() -> None:
    """Catches a free block taken for one in use because a weak hash found it twice."""
    pool = BlockPool(6, 2)
    reuse = ReuseDistances(pool)
    [block] = pool.get_new_blocks(1)
    block.block_hash = "cached"
    pool.free_blocks([block])
    pool.get_new_blocks(2)
    BlockTable(pool).adopt([block, block])
    assert reuse.distances == {2: 2}
