"""What a block size costs: counted by formula, and by handing blocks out."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from pagedattn_lab import BlockPool, BlockTable, KVCacheManager, Request
from pagedattn_lab.studies.block_size import block_size_costs, utilisation
from pagedattn_lab.workloads import WORKLOADS
from pagedattn_lab.workloads.conversations import Piece, Prompt, system_prompts, token_ids


def handed_out(lengths: list[tuple[int, int]], block_size: int) -> float:
    """Let each request grow in a real table, and count tokens and slots at every step."""
    pool, tokens, slots = BlockPool(2_000 // block_size + 2_000, block_size), 0, 0
    for num_in, num_out in lengths:
        table = BlockTable(pool)
        for step in range(num_out):
            table.append_tokens(1 if step else num_in)
            tokens += table.num_tokens
            slots += block_size * len(table.blocks)
        table.release()
    return tokens / slots


@pytest.mark.parametrize("block_size", [1, 2, 5, 16, 128, 784])
def test_utilisation_is_what_a_table_hands_out(block_size: int) -> None:
    """Catches a formula that is off at a block's edge, counts the token that is never fed back, or starts at 1."""
    lengths = [(16, 1), (15, 2), (1, 40), (17, 16), *islice(WORKLOADS["alpaca"](0), 10)]
    assert utilisation(lengths, block_size) == handed_out(lengths, block_size)


def test_hits_are_the_managers() -> None:
    """Catches a share of tokens found that a manager with memory enough would not find."""
    prompts = list(islice(system_prompts(num_prompts=3, system_len=100), 12))
    for cost in block_size_costs([(9, 9)], prompts, (16, 64, 128), max_model_len=64, max_num_seqs=1):
        manager = KVCacheManager(2_000, cost.block_size)
        for number, prompt in enumerate(prompts):
            request = Request(str(number), token_ids(prompt.pieces))
            blocks, found = manager.get_computed_blocks(request)
            manager.allocate_slots(request, request.num_tokens - found, computed_blocks=blocks)
            manager.free(request)
        assert cost.hit_rate == manager.stats.hit_rate


def test_tables_have_room_for_the_longest() -> None:
    """Catches a table that is rounded down, or counts tokens for blocks."""
    prompts = [Prompt((Piece("system", 8),), 1)]
    costs = block_size_costs([(8, 3)], prompts, (4, 16), max_model_len=50, max_num_seqs=3)
    assert [cost.table_bytes for cost in costs] == [4 * 3 * 13, 4 * 3 * 4]
    assert [cost.entries_per_request for cost in costs] == [3, 1]


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "there is no request: give at least one"),
        ([(8, 3)], {"block_sizes": [0]}, "block_size is 0"),
        ([(8, 3)], {"max_model_len": 0}, "max_model_len is 0"),
        ([(8, 3)], {"max_num_seqs": 0}, "max_num_seqs is 0"),
    ],
)
def test_refuses_what_is_no_load(lengths: list[tuple[int, int]], options: dict[str, object], message: str) -> None:
    """Catches a division by nothing, or a cost of blocks that hold no token."""
    given = {"block_sizes": [16], "max_model_len": 64, "max_num_seqs": 1} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        block_size_costs(lengths, [Prompt((Piece("system", 8),), 1)], **given)
