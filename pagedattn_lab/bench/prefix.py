"""What a prefix cache costs: to look a prompt up and find blocks for it, for prompts of many lengths (chapter 06)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.bench.timing import CLOCK, check_rising, clock, no_collection, summary, turns
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.prefix_cache import HashIndex
from pagedattn_lab.radix_tree import RadixTree
from pagedattn_lab.request import Request

LENGTHS = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
"""Tokens in the prompts."""

BLOCK_SIZE = 16
PROMISED_LENGTH = 32_768
"""Length of the prompt whose look-up the report gives in milliseconds."""

INDEXES = {"hash": HashIndex, "radix": RadixTree}
STATES = {
    "not_cached": "Not cached: the first block misses, and all are taken from the pool and made\nknown.",
    "cached": "Cached: all blocks but the last are found; one is taken from the pool.",
}


def admit(manager: KVCacheManager, request: Request) -> tuple[int, int]:
    """Look a request up and give it blocks.

    Returns:
        ``(look_up, allocation)``: nanoseconds of CPU time that each of them took.

    Example:
        >>> manager = KVCacheManager(num_blocks=4, block_size=16)
        >>> times = admit(manager, Request("Ada", range(33)))
        >>> len(times), manager.block_ids("Ada")
        (2, [1, 2, 3])
    """
    start = clock()
    blocks, num_hit_tokens = manager.get_computed_blocks(request)
    found = clock()
    manager.allocate_slots(request, request.num_tokens - num_hit_tokens, blocks)
    return found - start, clock() - found


def serve(manager: KVCacheManager, token_ids: Sequence[int], num_rounds: int) -> dict[str, tuple[float, float]]:
    """Admit one prompt twice, to an empty cache and to one that holds it; several times over.

    Both requests are new and hash all their blocks. Emptying the cache and giving blocks back is not timed.

    Args:
        manager: with blocks for the prompt and one more. Its cache is emptied.
        token_ids: the prompt.
        num_rounds: how often.

    Returns:
        For each of ``STATES``, the means of what :func:`admit` gives.

    Example:
        >>> manager = KVCacheManager(num_blocks=5, block_size=16)
        >>> sorted(serve(manager, range(48), num_rounds=2)), manager.stats.hits
        (['cached', 'not_cached'], 32)
    """
    totals = {state: [0, 0] for state in STATES}
    for _ in range(num_rounds):
        manager.reset_prefix_cache()
        for state, total in totals.items():
            request = Request(state, token_ids)
            look_up, allocation = admit(manager, request)
            total[0] += look_up
            total[1] += allocation
            manager.free(request)
    return {state: (look_up / num_rounds, allocation / num_rounds) for state, (look_up, allocation) in totals.items()}


def measure(lengths: Sequence[int] = LENGTHS, *, repetitions: int = 15, progress: bool | None = None) -> dict[str, Any]:
    """Measure prompts of several lengths, side by side, against hashes and against a radix tree.

    In a repetition every length has about as many tokens looked up in all, so a short prompt is served more often.
    Lengths take turns, each time another one first, and so do the two indexes. A ratio compares times of one
    repetition.

    Args:
        lengths: tokens in each prompt, ascending.
        repetitions: how often all of it is measured.
        progress: whether to show a bar on standard error after a second; by default if that is a terminal.

    Returns:
        The settings; ``prompts``, by length: for ``not_cached`` and ``cached``, the medians and quartiles of
        ``look_up_us`` (hashing a new request and looking its hashes up), ``us`` (look-up and allocation),
        ``ns_per_block`` (the same, by blocks of the prompt) and ``radix_time_ratio`` (the time with a radix tree over
        ``us``); ``linearity``, the largest median of ``ns_per_block`` over the smallest among cached prompts, and
        ``linearity_not_cached``; ``ms_32k``, the median of a look-up of 32,768 tokens in milliseconds, cached or not,
        whichever takes longer, or ``None`` if that length is not among ``lengths``.

    Raises:
        ValueError: no length, lengths that do not rise, one that does not exceed a block, or fewer than 2 repetitions.

    Example:
        >>> report = measure([64, 128], repetitions=2)
        >>> [prompt["num_blocks"] for prompt in report["prompts"]], report["linearity"] >= 1
        ([4, 8], True)
    """
    from tqdm import tqdm

    check_rising("lengths", lengths, repetitions)
    if lengths[0] <= BLOCK_SIZE:
        raise ValueError(f"a prompt of {lengths[0]} tokens is never found: give more than a block of {BLOCK_SIZE}")
    prompts = {length: random.Random("bench prefix").choices(range(50_000), k=length) for length in lengths}
    measured: dict[int, list[dict[str, dict[str, tuple[float, float]]]]] = {length: [] for length in lengths}
    disable = None if progress is None else not progress
    with (
        no_collection(),
        tqdm(total=repetitions * len(lengths), unit=" runs", delay=1, leave=False, disable=disable) as bar,
    ):
        managers = {
            (length, name): KVCacheManager(_num_blocks(length) + 2, BLOCK_SIZE, index=index(BLOCK_SIZE))
            for length in lengths
            for name, index in INDEXES.items()
        }
        for repetition in range(repetitions):
            for length in turns(lengths, repetition):
                measured[length].append(
                    {
                        name: serve(managers[length, name], prompts[length], lengths[-1] // length)
                        for name in turns(list(INDEXES), repetition)
                    }
                )
                bar.update()

    report: dict[str, Any] = {
        "block_size": BLOCK_SIZE,
        "repetitions": repetitions,
        "clock": CLOCK,
        "prompts": [
            {
                "num_tokens": length,
                "num_blocks": _num_blocks(length),
                **{state: _summary(runs, state, _num_blocks(length)) for state in STATES},
            }
            for length, runs in measured.items()
        ],
    }
    for state, name in (("cached", "linearity"), ("not_cached", "linearity_not_cached")):
        medians = [prompt[state]["ns_per_block"] for prompt in report["prompts"]]
        report[name] = max(medians) / min(medians)
    promised = [prompt for prompt in report["prompts"] if prompt["num_tokens"] == PROMISED_LENGTH]
    look_ups = [prompt[state]["look_up_us"] / 1000 for prompt in promised for state in STATES]
    report["ms_32k"] = max(look_ups, default=None)
    return report


def _num_blocks(length: int) -> int:
    return cdiv(length, BLOCK_SIZE)


def _summary(
    runs: Sequence[Mapping[str, Mapping[str, tuple[float, float]]]], state: str, num_blocks: int
) -> dict[str, Any]:
    """Medians and quartiles of one length's repetitions in one state."""
    nanoseconds = [sum(run["hash"][state]) for run in runs]
    return summary(
        {
            "look_up_us": [run["hash"][state][0] / 1000 for run in runs],
            "us": [duration / 1000 for duration in nanoseconds],
            "ns_per_block": [duration / num_blocks for duration in nanoseconds],
            "radix_time_ratio": [
                sum(run["radix"][state]) / duration for run, duration in zip(runs, nanoseconds, strict=True)
            ],
        }
    )


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured.

    Example:
        >>> print(describe(measure([64, 128], repetitions=2)).splitlines()[0])
        Blocks of 16 tokens, found by hash.
    """
    lines = [
        f"Blocks of {report['block_size']} tokens, found by hash.",
        f"{report['clock']}.",
        f"Medians of {report['repetitions']} repetitions (quartiles).",
        "radix: time with a radix tree over that with hashes.",
    ]
    for state, title in STATES.items():
        lines += [
            "",
            title,
            f"{'tokens':>8}{'blocks':>7}{'look-up us':>11}{'look-up and allocation us':>26}"
            f"{'ns per block':>20}{'radix':>6}",
        ]
        for prompt in report["prompts"]:
            row = prompt[state]
            total = "{:,.0f} ({:,.0f}-{:,.0f})".format(row["us"], *row["us_quartiles"])
            per_block = "{:,.0f} ({:,.0f}-{:,.0f})".format(row["ns_per_block"], *row["ns_per_block_quartiles"])
            lines.append(
                f"{prompt['num_tokens']:>8,}{prompt['num_blocks']:>7,}{row['look_up_us']:>11,.0f}{total:>26}"
                f"{per_block:>20}{row['radix_time_ratio']:>6.2f}"
            )
    lines += [
        "",
        f"Time per block, largest over smallest median: cached {report['linearity']:.2f}, not cached "
        f"{report['linearity_not_cached']:.2f}.",
    ]
    if report["ms_32k"] is not None:
        lines.append(f"Hashing and looking up {PROMISED_LENGTH:,} tokens: {report['ms_32k']:.2f} ms.")
    return "\n".join(lines)
