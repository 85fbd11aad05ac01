"""What a block size costs: empty slots, table entries, and prefixes that are not found (chapters 03 and 10).

All of it is counted, none of it timed: how fast a kernel reads blocks of some size, a GPU has to say.

Source: Kwon et al. 2023, section 7.2, for the trade.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.budget.lengths import block_table_bytes
from pagedattn_lab.studies.hit_rates import measure
from pagedattn_lab.workloads.conversations import Prompt, hashed


@dataclass(frozen=True)
class BlockSizeCost:
    """What blocks of one size cost a load.

    Attributes:
        block_size: tokens per block.
        utilisation: of the slots that are handed out, the share that holds a token, over all steps of all requests.
        entries_per_request: entries in the page table of a request that has ended, on average.
        table_bytes: a tensor of page tables with room for every request that may run, at its longest.
        hit_rate: of the tokens of prompts, the share that is found in a cache that forgets nothing.
    """

    block_size: int
    utilisation: float
    entries_per_request: float
    table_bytes: int
    hit_rate: float


def slots_while_growing(num_tokens: int, block_size: int) -> int:
    """Slots that are handed out to a sequence while it grows, summed over its lengths from 1 to ``num_tokens``.

    Example:
        Lengths 1 to 4 take one block of 4 each, length 5 takes two.

        >>> slots_while_growing(5, block_size=4)
        24
    """
    num_full, rest = divmod(num_tokens, block_size)
    # block k is held by all lengths in it: block_size of them, each of which takes k blocks
    return block_size * (block_size * num_full * (num_full + 1) // 2 + rest * (num_full + 1))


def utilisation(lengths: Iterable[tuple[int, int]], block_size: int) -> float:
    """Of the slots that are handed out, the share that holds a token.

    A request of ``p`` prompt tokens and ``o`` generated ones holds ``p``, ``p + 1``, ... ``p + o - 1`` tokens, one step
    each: the last token is never fed back.

    Args:
        lengths: tokens in, tokens out, of each request.
        block_size: tokens per block.

    Raises:
        ValueError: a ``block_size`` below 1, or no request.

    Example:
        >>> utilisation([(3, 2)], block_size=4)  # 3 tokens in a block of 4, then 4
        0.875
    """
    at_least_one("block_size", block_size)
    tokens = slots = 0
    for num_in, num_out in lengths:
        last = num_in + num_out - 1
        tokens += (last * (last + 1) - (num_in - 1) * num_in) // 2
        slots += slots_while_growing(last, block_size) - slots_while_growing(num_in - 1, block_size)
    if not slots:
        raise ValueError("there is no request: give at least one")
    return tokens / slots


def block_size_costs(
    lengths: Sequence[tuple[int, int]],
    prompts: Sequence[Prompt],
    block_sizes: Iterable[int],
    *,
    max_model_len: int,
    max_num_seqs: int,
) -> list[BlockSizeCost]:
    """Count what each block size costs.

    Args:
        lengths: tokens in, tokens out, of each request.
        prompts: that share what they begin with, in the order in which they come.
        block_sizes: tokens per block.
        max_model_len: the longest that a sequence may get.
        max_num_seqs: how many run at once at most.

    Raises:
        ValueError: a number below 1, or no request.

    Example:
        Two prompts of one system prompt of 100 tokens:

        >>> from pagedattn_lab.workloads.conversations import Piece
        >>> prompts = [Prompt((Piece("system", 100), Piece(f"question {n}", 20)), 30) for n in range(2)]
        >>> lengths, limits = [(120, 30)] * 2, {"max_model_len": 8_192, "max_num_seqs": 256}
        >>> for cost in block_size_costs(lengths, prompts, (16, 128), **limits):
        ...     print(cost.block_size, f"{cost.utilisation:.3f}", cost.entries_per_request, cost.hit_rate)
        16 0.948 10.0 0.4
        128 0.618 2.0 0.0
    """
    at_least_one("max_model_len", max_model_len)
    at_least_one("max_num_seqs", max_num_seqs)
    costs = []
    for block_size in block_sizes:
        used = utilisation(lengths, block_size)
        entries = sum(cdiv(num_in + num_out - 1, block_size) for num_in, num_out in lengths) / len(lengths)
        table = block_table_bytes(block_size, max_model_len, max_num_seqs)
        found = measure(hashed(prompts, block_size), num_blocks=None, block_size=block_size).hit_rate
        costs.append(BlockSizeCost(block_size, used, entries, table, found))
    return costs
