"""What memory management costs: block operations, and tokens appended, in pools of very different size (chapter 03)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.bench.load import BLOCK_SIZE, LONGEST_OUTPUT, LONGEST_PROMPT, lengths
from pagedattn_lab.bench.timing import CLOCK, check_rising, nanoseconds, no_collection, summary, turns
from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable

SIZES = (1_000, 30_000, 1_000_000)
BLOCKS_PER_CALL = 16
"""Blocks that are handed out, or taken back, by one call."""


def operate(pool: BlockPool, num_calls: int, in_turn: bool) -> int:
    """Take blocks and give them back, :data:`BLOCKS_PER_CALL` at a time.

    Args:
        pool: where they come from.
        num_calls: how often.
        in_turn: blocks return to the tail of the free queue, not to its head; see :func:`measure`.

    Returns:
        How many blocks were handed out and how many taken back, both together.

    Example:
        >>> operate(BlockPool(100, BLOCK_SIZE), num_calls=2, in_turn=False)
        64
    """
    for _ in range(num_calls):
        blocks = pool.get_new_blocks(BLOCKS_PER_CALL)
        if in_turn:
            _mark(blocks)
        pool.free_blocks(blocks)
    return 2 * BLOCKS_PER_CALL * num_calls


def serve(pool: BlockPool, num_running: int, num_steps: int, in_turn: bool) -> int:
    """Let requests grow by a token in every step; replace those that are finished; in the end let all of them go.

    Args:
        pool: holds their blocks.
        num_running: requests at any time.
        num_steps: how often each of them grows.
        in_turn: as for :func:`operate`.

    Returns:
        How many tokens were appended one at a time. Prompts, which a request brings along, come on top.

    Example:
        >>> pool = BlockPool(100, BLOCK_SIZE)
        >>> serve(pool, num_running=2, num_steps=300, in_turn=False), pool.num_used_blocks
        (600, 0)
    """
    requests = lengths()
    tables: list[BlockTable] = []
    ends: list[int] = []  # tokens at which a table's request is finished

    def start() -> tuple[BlockTable, int]:
        prompt_len, output_len = next(requests)
        table = BlockTable(pool)
        table.append_tokens(prompt_len)
        return table, prompt_len + output_len

    def finish(table: BlockTable) -> None:
        if in_turn:
            _mark(table.blocks)
        table.release()

    for _ in range(num_running):
        table, end = start()
        tables.append(table)
        ends.append(end)
    for _ in range(num_steps):
        for index, table in enumerate(tables):
            table.append_tokens(1)
            if table.num_tokens == ends[index]:
                finish(table)
                tables[index], ends[index] = start()
    for table in tables:
        finish(table)
    return num_running * num_steps


def _mark(blocks: Sequence[KVCacheBlock]) -> None:
    """Give blocks a hash, as a prefix cache does: when they are freed, they join the tail of the free queue."""
    for block in blocks:
        block.block_hash = block.block_id


def _shuffle(pool: BlockPool) -> None:
    """Put the free queue into an order that has nothing to do with where the blocks lie in memory."""
    blocks = pool.get_new_blocks(pool.num_free_blocks)
    random.Random("queue").shuffle(blocks)
    pool.free_blocks(blocks)


def measure(
    sizes: Sequence[int] = SIZES,
    *,
    num_running: int = 64,
    num_steps: int = 500,
    num_calls: int = 2_000,
    repetitions: int = 15,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure pools of several sizes, side by side.

    Every size gets the same work, in two ways. *Same load*: a block that comes back is the next to be handed out, so
    the same few hundred blocks are in use in every pool, and only the cost of the operations themselves can differ.
    *Whole pool*: blocks come back to the tail, as those with a hash do, and the queue was shuffled before, so each
    block handed out is the one untouched for longest, and the processor's caches see how large the pool is.

    Sizes take turns within a repetition, each time another one first. A ratio compares a size with the smallest within
    one repetition.

    Args:
        sizes: blocks in each pool, ascending.
        num_running: requests that run at any time.
        num_steps: tokens that each of them appends in a repetition.
        num_calls: calls that hand out blocks, and as many that take them back, in a repetition.
        repetitions: how often all of it is measured.
        progress: whether to show a bar on standard error after a second; by default if that is a terminal.

    Returns:
        The settings; ``pools``, by size: for ``same_load`` and ``whole_pool``, the medians and quartiles of
        ``block_operations_per_second`` (blocks handed out, and blocks taken back), of ``append_ns`` (CPU time per
        appended token, starting and ending requests included), and of the time that either takes over the time that it
        takes in the smallest pool; ``flat``, the largest median of ``append_ns`` over the smallest; ``append_us``, the
        largest in microseconds; and these two for the whole pool.

    Raises:
        ValueError: no size, sizes that do not rise, a pool too small for the load, fewer than 2 repetitions, or
            another number below 1.

    Example:
        >>> report = measure([1_000, 2_000], num_steps=5, num_calls=5, repetitions=2)
        >>> [pool["num_blocks"] for pool in report["pools"]], report["append_us"] > 0
        ([1000, 2000], True)
    """
    from tqdm import tqdm

    if min(num_running, num_steps, num_calls) < 1:
        raise ValueError("give at least 1 request, step and call")
    check_rising("sizes", sizes, repetitions)
    most = max(BLOCKS_PER_CALL, num_running * cdiv(LONGEST_PROMPT + LONGEST_OUTPUT, BLOCK_SIZE))
    if sizes[0] <= most:
        raise ValueError(f"a pool of {sizes[0]} blocks may be too small for {num_running} requests: give {most + 1}")

    measured: dict[str, dict[int, list[tuple[float, float]]]] = {}
    with no_collection():
        pools = {size: BlockPool(size, BLOCK_SIZE) for size in sizes}
        num_runs, disable = 2 * repetitions * len(sizes), None if progress is None else not progress
        with tqdm(total=num_runs, unit=" runs", delay=1, leave=False, disable=disable) as bar:
            for way in ("same_load", "whole_pool"):
                in_turn = way == "whole_pool"
                results = measured[way] = {size: [] for size in sizes}
                for size in sizes if in_turn else ():
                    _shuffle(pools[size])
                for repetition in range(repetitions):
                    for size in turns(sizes, repetition):
                        pool = pools[size]
                        operation = nanoseconds(operate, pool, num_calls, in_turn)
                        append = nanoseconds(serve, pool, num_running, num_steps, in_turn)
                        results[size].append((operation, append))
                        bar.update()

    report: dict[str, Any] = {
        "block_size": BLOCK_SIZE,
        "blocks_per_call": BLOCKS_PER_CALL,
        "num_running": num_running,
        "num_steps": num_steps,
        "num_calls": num_calls,
        "repetitions": repetitions,
        "clock": CLOCK,
        "pools": [
            {"num_blocks": size, **{way: _summary(of[size], of[sizes[0]]) for way, of in measured.items()}}
            for size in sizes
        ],
    }
    for way, suffix in (("same_load", ""), ("whole_pool", "_whole_pool")):
        medians = [pool[way]["append_ns"] for pool in report["pools"]]
        report[f"flat{suffix}"] = max(medians) / min(medians)
        report[f"append_us{suffix}"] = max(medians) / 1000
    return report


def _summary(runs: list[tuple[float, float]], smallest: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians and quartiles of one size's repetitions, and of their ratios to the smallest size's."""
    operations, appends = zip(*runs, strict=True)
    first_operations, first_appends = zip(*smallest, strict=True)
    return summary(
        {
            "block_operations_per_second": [1e9 / duration for duration in operations],
            "block_operation_time_ratio": [
                mine / first for mine, first in zip(operations, first_operations, strict=True)
            ],
            "append_ns": appends,
            "append_time_ratio": [mine / first for mine, first in zip(appends, first_appends, strict=True)],
        }
    )


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured.

    Example:
        >>> report = measure([1_000], num_steps=5, num_calls=5, repetitions=2)
        >>> print(describe(report).splitlines()[0])
        Blocks of 16 tokens, 64 running requests.
    """
    lines = [
        f"Blocks of {report['block_size']} tokens, {report['num_running']} running requests.",
        f"{report['clock']}.",
        f"Medians of {report['repetitions']} repetitions (quartiles).",
        "ratio: time over that of the smallest pool.",
    ]
    titles = {
        "same_load": "Same load: a block that comes back is handed out next, so every pool has the\nsame ones in use.",
        "whole_pool": "Whole pool: each block handed out is the one untouched for longest, so caches\nhold less of a "
        "larger pool. The operations are the same.",
    }
    for way, title in titles.items():
        lines += ["", title, f"{'blocks':>10}{'block operations/s':>24}{'ratio':>8}{'ns per token':>20}{'ratio':>8}"]
        for pool in report["pools"]:
            row = pool[way]
            millions = [row["block_operations_per_second"] / 1e6]
            millions += [value / 1e6 for value in row["block_operations_per_second_quartiles"]]
            operations = "{:.2f} M ({:.2f}-{:.2f})".format(*millions)
            append = "{:.0f} ({:.0f}-{:.0f})".format(row["append_ns"], *row["append_ns_quartiles"])
            lines.append(
                f"{pool['num_blocks']:>10,}{operations:>24}{row['block_operation_time_ratio']:>8.2f}"
                f"{append:>20}{row['append_time_ratio']:>8.2f}"
            )
    lines += [
        "",
        f"Appending a token: same load, {report['append_us']:.2f} us at most, largest over smallest\nmedian "
        f"{report['flat']:.2f}; whole pool, {report['append_us_whole_pool']:.2f} us and "
        f"{report['flat_whole_pool']:.2f}.",
    ]
    return "\n".join(lines)
