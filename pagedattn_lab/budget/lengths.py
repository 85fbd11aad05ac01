"""What requests of real lengths take, rather than the longest that may come: users at once, and the size of a block."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.result import Budget
from pagedattn_lab.kv_cache_specs import (
    ChunkedLocalAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    RequestLimits,
    SlidingWindowSpec,
)

POINTS = 8
"""At how many moments of its life a request is looked at."""

RISK = {0.5: 0.0, 0.1: 1.2816, 0.01: 2.3263, 0.001: 3.0902}
"""Standard deviations that a normal quantity exceeds so rarely."""

TABLE_ENTRY_BYTES = 4
"""Bytes of an entry of a block table: an int32."""

BLOCK_SIZES: dict[str, tuple[int, ...]] = {
    "flash_attn": (16, 32, 64, 128, 256),
    "triton": (16, 32, 64, 128, 256),
    "flashinfer": (16, 32, 64),
    "flashmla": (64,),
    "cutlass_mla": (128,),
    "cpu": (32, 64, 96, 128, 160, 192, 224, 256),
}
"""Tokens per block that vLLM 0.33's attention backends take. The first two take all multiples of 16."""


Group = Sequence[Any]
"""What a group of layers keeps, as values that a page can store: its kind ("full", "window", "chunk" or "state"), its
block size, and the tokens of a window or of a chunk, or the number of states."""


def kept_by(spec: KVCacheSpec, limits: RequestLimits) -> Group:
    """Say what layers of a spec keep.

    Example:
        >>> kept_by(SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=4096), RequestLimits(8192, 2048))
        ['window', 16, 4096]
    """
    if isinstance(spec, SlidingWindowSpec):
        return ["window", spec.block_size, spec.sliding_window + spec.extra_retained_tokens]
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return ["chunk", spec.block_size, spec.attention_chunk_size]
    if isinstance(spec, MambaSpec) and limits.mamba_cache_mode != "all":
        return ["state", spec.block_size, spec.max_blocks_per_request(limits)]
    return ["full", spec.block_size, 0]


def decode_in_flight(budget: Budget) -> int:
    """Count the tokens of a decoding request that are scheduled and not yet settled, once a step is scheduled.

    They are one step's, and with asynchronous scheduling two steps', since the next is scheduled before the last has
    settled. A pipeline has more steps at once, but one request is in no more of them.

    Example:
        >>> from pagedattn_lab.budget import plan
        >>> [decode_in_flight(plan("Llama-3.1-8B", "H100", vllm_version=version)) for version in ("0.25", "0.33")]
        [1, 2]
    """
    options = budget.asked
    ranks = options.pipeline_parallel_size
    steps = budget.version.concurrent_batches(ranks, async_scheduling=options.async_scheduling, device=options.device)
    return (2 if steps > ranks else 1) * (1 + options.num_speculative_tokens)


def held_blocks(group: Group, tokens: int, in_flight: int) -> tuple[int, int]:
    """Count the blocks that a request holds while it decodes, and their slots without a token in use.

    Unlike :meth:`~pagedattn_lab.kv_cache_groups.KVCacheGroup.max_blocks_per_request` this is no bound: a step of
    decoding brings one token, not a batch of a prompt's. What has left a window is dropped by the tokens that have
    settled, so those in flight keep a few older ones.

    Args:
        group: what its layers keep.
        tokens: of the request, those in flight among them.
        in_flight: tokens scheduled and not yet settled (:func:`decode_in_flight`).

    Example:
        >>> held_blocks(["full", 16, 0], 20, 1), [held_blocks(["window", 16, 4], 20, ahead) for ahead in (1, 2)]
        ((2, 12), [(1, 12), (2, 27)])

    Source: ``get_num_skipped_tokens`` in vLLM's ``vllm/v1/core/single_type_kv_cache_manager.py``, and
    ``allocate_slots`` in ``kv_cache_manager.py``.
    """
    kind, block_size, bound = group
    if kind == "state":
        return bound, 0
    settled, skipped = max(0, tokens - in_flight), 0
    if kind == "window":
        skipped = max(0, settled - bound + 1)
    elif kind == "chunk":
        skipped = settled // bound * bound
    blocks = cdiv(tokens, block_size) - skipped // block_size
    return blocks, blocks * block_size - (tokens - skipped)


@dataclass(frozen=True)
class Users:
    """How many requests of given lengths a cache holds at once.

    A request grows while it decodes, so at a random moment some are young and some old. Long outputs stay longer and
    are met more often: requests are weighted by the length of their output, in every average.

    Attributes:
        num_requests: requests whose lengths were looked at.
        refused: of these, prompts that leave no room for an output within ``max_model_len``.
        mean_blocks: blocks that a request holds at a random moment.
        deviation: the standard deviation of that.
        mean_blocks_at_end: blocks that it will hold when it is done.
        usable_blocks: blocks that there are, without the null block.
    """

    num_requests: int
    refused: int
    mean_blocks: float
    deviation: float
    mean_blocks_at_end: float
    usable_blocks: int

    @property
    def mean(self) -> int:
        """As many as fit on average: half of the time they need more, and someone is preempted."""
        return self.with_risk(0.5)

    @property
    def at_end(self) -> int:
        """As many as fit on average if all that run happen to be as long as they will get."""
        return _most(self.usable_blocks, self.mean_blocks_at_end, 0.0)

    def with_risk(self, risk: float = 0.01) -> int:
        """As many as need more than there is only so rarely, if they come and go independently of each other.

        Args:
            risk: one of :data:`RISK`.

        Example:
            >>> load = Users(1000, 0, mean_blocks=20.0, deviation=10.0, mean_blocks_at_end=30.0, usable_blocks=2000)
            >>> load.mean, load.with_risk(0.01), load.at_end
            (100, 89, 66)
        """
        if risk not in RISK:
            raise ValueError(f"risk is {risk}: use one of {', '.join(map(str, RISK))}")
        return _most(self.usable_blocks, self.mean_blocks, RISK[risk] * self.deviation)


def _most(usable: int, mean: float, spread: float) -> int:
    """Find the largest n with ``n * mean + spread * sqrt(n) <= usable``."""
    root = (math.sqrt(spread**2 + 4 * mean * usable) - spread) / (2 * mean)
    number = int(root**2)
    # The root is rounded, and its square may be a hair below a whole number. The mean is rounded too.
    needed = (number + 1) * mean + spread * math.sqrt(number + 1)
    return number + (needed * (1 - 4 * sys.float_info.epsilon) <= usable)


def users(budget: Budget, lengths: Iterable[tuple[int, int]]) -> Users:
    """Count the requests of given lengths that the cache of a budget holds at once.

    All are taken to decode. While a prompt is computed its request can hold more behind a window, for a few steps.

    Args:
        budget: the server.
        lengths: tokens of prompts and of outputs. Outputs are cut at ``max_model_len``, as a server does.

    Raises:
        BudgetError: no request can be served.
    """
    longest = budget.max_model_len
    groups = [kept_by(group.spec, budget.limits) for group in budget.groups]
    in_flight = decode_in_flight(budget)

    @cache
    def blocks(num_tokens: int) -> int:
        return sum(held_blocks(group, num_tokens, in_flight)[0] for group in groups)

    moments: list[tuple[int, int]] = []  # weight, blocks
    at_end: list[tuple[int, int]] = []  # the same, at the end
    num_requests = 0
    for prompt, output in lengths:
        num_requests += 1
        output = min(output, longest - prompt)
        if output < 1:
            continue
        at_end.append((output, blocks(prompt + output)))
        # The moments stand for equal parts of its decoding, each in the middle of its part.
        moments += [(output, blocks(prompt + cdiv(output * (2 * i + 1), 2 * POINTS))) for i in range(POINTS)]
    if not at_end:
        raise BudgetError(
            f"none of {num_requests:,} requests has a prompt that leaves room for an output within {longest:,} tokens: "
            "raise max_model_len"
        )
    mean, mean_at_end = _mean(moments), _mean(at_end)
    variance = _mean([(weight, (held - mean) ** 2) for weight, held in moments])
    return Users(
        num_requests, num_requests - len(at_end), mean, math.sqrt(variance), mean_at_end,
        max(0, budget.num_blocks - 1),
    )  # fmt: skip


def _mean(weighted: Sequence[tuple[int, float]]) -> float:
    return sum(weight * value for weight, value in weighted) / sum(weight for weight, _ in weighted)


@dataclass(frozen=True)
class BlockSize:
    """What a size of blocks means for requests of given lengths.

    Attributes:
        block_size: tokens per block.
        waste: the part of the slots that a finished request holds and does not use: the tail of its last block.
        lost_hits: the part of a prompt's tokens that are computed though they are cached, on average: those behind the
            last full block, if the whole prompt was seen before.
        table_bytes: bytes of the block tables of all sequences.
    """

    block_size: int
    waste: float
    lost_hits: float
    table_bytes: int


def block_table_bytes(block_size: int, max_model_len: int, max_num_seqs: int) -> int:
    """Count the bytes of a tensor of block tables with room for every request that may run, at its longest.

    Example:
        >>> block_table_bytes(16, max_model_len=8192, max_num_seqs=256)
        524288
    """
    return TABLE_ENTRY_BYTES * max_num_seqs * cdiv(max_model_len, block_size)


def block_size_advice(
    lengths: Sequence[tuple[int, int]], backend: str = "flash_attn", *, max_model_len: int, max_num_seqs: int = 256
) -> list[BlockSize]:
    """Say what each size of blocks that a backend takes means for requests of given lengths.

    Args:
        lengths: tokens of prompts and of outputs.
        backend: one of :data:`BLOCK_SIZES`.
        max_model_len: most tokens of a request; tables have room for as many.
        max_num_seqs: tables that there are.

    Raises:
        BudgetError: an unknown backend, or no lengths.

    Example:
        >>> rows = block_size_advice([(100, 60), (40, 10)], "flashinfer", max_model_len=2048)
        >>> [(row.block_size, round(row.waste, 3)) for row in rows]
        [(16, 0.062), (32, 0.062), (64, 0.18)]
    """
    if backend not in BLOCK_SIZES:
        raise BudgetError(f"there is no backend {backend!r}: use one of {', '.join(BLOCK_SIZES)}")
    if not lengths:
        raise BudgetError("there are no lengths: give at least one request")
    at_least_one("max_model_len", max_model_len)
    tokens = sum(prompt + output for prompt, output in lengths)
    prompts = sum(prompt for prompt, _ in lengths)
    rows = []
    for size in BLOCK_SIZES[backend]:
        slots = sum(cdiv(prompt + output, size) * size for prompt, output in lengths)
        computed = sum(prompt - (prompt - 1) // size * size for prompt, _ in lengths)
        table = block_table_bytes(size, max_model_len, max_num_seqs)
        rows.append(BlockSize(size, 1 - tokens / slots, computed / prompts, table))
    return rows
