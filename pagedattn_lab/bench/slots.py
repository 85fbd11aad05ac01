"""What one ``allocate_slots`` costs: requests come, grow by a token a step and go, without any model (chapter 06)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.bench.load import BLOCK_SIZE, LONGEST_OUTPUT, LONGEST_PROMPT, lengths
from pagedattn_lab.bench.timing import clock, no_collection, summary
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request

NUM_RUNNING, NUM_REQUESTS = 256, 1_024


def serve(manager: KVCacheManager, num_running: int, num_requests: int) -> tuple[int, int]:
    """Serve requests to their end: whoever finishes makes room for the next; prompts have no token in common.

    Returns:
        ``(nanoseconds, calls)``: CPU time spent in ``allocate_slots``, and how often it was called. Looking up,
        appending tokens and giving blocks back are not timed.

    Example:
        >>> manager = KVCacheManager(num_blocks=100, block_size=16)
        >>> nanoseconds, calls = serve(manager, num_running=2, num_requests=3)
        >>> calls == sum(output_len for _, output_len in islice(lengths(), 3)), manager.block_pool.num_used_blocks
        (True, 0)
    """
    waiting = deque(
        (Request(str(number), range(number << 20, (number << 20) + prompt_len)), prompt_len + output_len)
        for number, (prompt_len, output_len) in enumerate(islice(lengths(), num_requests))
    )
    running: list[tuple[Request, int]] = []
    nanoseconds = calls = 0
    while waiting or running:
        start = clock()
        for request, _ in running:
            manager.allocate_slots(request, 1)
        nanoseconds += clock() - start
        calls += len(running)
        while waiting and len(running) < num_running:
            request, end = waiting.popleft()
            blocks, num_hit_tokens = manager.get_computed_blocks(request)
            start = clock()
            manager.allocate_slots(request, request.num_tokens - num_hit_tokens, blocks)
            nanoseconds += clock() - start
            calls += 1
            running.append((request, end))
        still = []
        for request, end in running:
            request.num_computed_tokens = request.num_tokens
            request.append_token(request.num_tokens)
            if request.num_tokens == end:
                manager.free(request)
            else:
                still.append((request, end))
        running = still
    return nanoseconds, calls


def measure(
    *, num_running: int = NUM_RUNNING, num_requests: int = NUM_REQUESTS, repetitions: int = 9
) -> dict[str, Any]:
    """Measure with and without prefix caching, in turn.

    Returns:
        ``allocate_slots``: the settings, and for ``plain`` and ``cached`` medians and quartiles of ``us``, the
        microseconds of CPU time per call.

    Example:
        >>> report = measure(num_running=2, num_requests=3, repetitions=2)
        >>> sorted(report["allocate_slots"])
        ['cached', 'num_requests', 'num_running', 'plain']
    """
    num_blocks = 1 + num_running * cdiv(LONGEST_PROMPT + LONGEST_OUTPUT, BLOCK_SIZE)
    measured: dict[str, list[float]] = {"plain": [], "cached": []}
    with no_collection():
        for _ in range(repetitions):
            for name, times in measured.items():
                manager = KVCacheManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=name == "cached")
                nanoseconds, calls = serve(manager, num_running, num_requests)
                times.append(nanoseconds / calls / 1000)
    settings = {"num_running": num_running, "num_requests": num_requests}
    return {"allocate_slots": settings | {name: summary({"us": times}) for name, times in measured.items()}}


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured, in two lines.

    Example:
        >>> print(describe(measure(num_running=2, num_requests=3, repetitions=2)).split(":")[0])
        allocate_slots, 2 of 3 requests running
    """
    row = report["allocate_slots"]
    ways = (
        "{:.2f} us ({:.2f}-{:.2f}) {}".format(row[name]["us"], *row[name]["us_quartiles"], what)
        for name, what in (("plain", "without prefix caching"), ("cached", "with it"))
    )
    return f"allocate_slots, {row['num_running']} of {row['num_requests']:,} requests running:\n{', '.join(ways)}."
