"""Exercises of chapter 10 agree with logs, with the manager and with the scheduler."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.exercises import ch10
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus

GIB = 2**30


@pytest.mark.parametrize(
    ("arguments", "num_groups", "logged_tokens", "logged_concurrency"),
    [
        ((58.11, 32, 0, 0, 4096), 1, 476_016, 58.11),
        ((54.12, 21, 21, 4096, 8192), 2, 168_880, 20.60),
        ((19.53, 10, 52, 1024, 8192), 7, 36_560, 4.46),
        ((58.47, 12, 12, 128, 2048), 2, 1_277_184, 155.75),
    ],
)
def test_logged_figures_come_out(
    arguments: tuple[float, int, int, int, int], num_groups: int, logged_tokens: int, logged_concurrency: float
) -> None:
    """Catches an exercise whose formula is not that of the logs: of all amounts that print as the log's GiB, one gives
    the log's blocks and concurrency. These logs are of vLLM 0.19, which counted as tokens what a group's share of the
    blocks holds; the exercise counts as 0.33 does.
    """
    gib, *layers = arguments
    found = set()
    # A step of half a block of the narrowest model here passes no number of blocks by.
    for available in range(int((gib - 0.005) * GIB), int((gib + 0.005) * GIB), 150_000):
        for answer in (ch10.log_figures.reference, ch10.log_figures.oracle):
            assert answer is not None
            num_blocks, _, concurrency = answer(available, *layers, 16, 8192, 8192)
            found.add((num_blocks // num_groups * 16, concurrency))
    assert (logged_tokens, logged_concurrency) in found


@pytest.mark.parametrize(
    ("salts", "block_size", "caching", "found"),
    [
        ([None, None], 4, True, ("hits", 8)),
        (["a", "a"], 4, True, ("hits", 8)),
        ([None, None], 4, False, ("caching", 8)),
        (["a", "b"], 4, True, ("salts", 8)),
        (["a", "b"], 4, False, ("more than one", 0)),
    ],
)
def test_a_hit_rate_by_hand(salts: list[str | None], block_size: int, caching: bool, found: tuple[str, int]) -> None:
    """Catches a reference and a manager that agree with each other and not with a count by hand."""
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]]
    for answer in (ch10.why_no_hits.reference, ch10.why_no_hits.oracle):
        assert answer is not None
        assert answer(prompts, salts, block_size, caching) == found


def test_every_cause_occurs() -> None:
    """Catches cases in which an answer that never looks for one of the causes is right."""
    causes = Counter(ch10.why_no_hits.reference(*case.arguments)[0] for case in ch10.why_no_hits.cases())
    assert set(causes) == {"hits", "caching", "salts", "block size", "first token", "more than one"}
    assert min(causes.values()) >= 5, causes


def test_ways_out_occur() -> None:
    """Catches cases that are all of one outcome."""
    ways = [ch10.make_it_fit.reference(*case.arguments) for case in ch10.make_it_fit.cases()]
    cases = [case.arguments for case in ch10.make_it_fit.cases()]
    assert min(Counter(way["fp8"] for way in ways).values()) >= 15
    raised = Counter(
        "never" if way["gpu_memory_utilization"] is None else way["gpu_memory_utilization"] > case[1]
        for way, case in zip(ways, cases, strict=True)
    )
    assert set(raised) == {"never", True, False} and min(raised.values()) >= 8, raised


def served(lengths: list[int], shared: int, num_blocks: int, block_size: int, max_num_seqs: int) -> int:
    """Serve a load in the order given, and count preemptions."""
    scheduler = Scheduler(KVCacheManager(num_blocks, block_size), max_num_seqs=max_num_seqs)
    for number, length in enumerate(lengths):
        # Half of what is its own is the prompt; the rest is generated.
        own = length - shared
        prompt = [*range(shared), *range(1000 * (number + 1), 1000 * (number + 1) + max(1, own // 2))]
        request = Request(f"r{number}", prompt, max_tokens=length - len(prompt))
        scheduler.add_request(request)
        if not number:  # the first computes what is shared before the others come
            output = scheduler.schedule()
            scheduler.update(output)
            if request.max_tokens:
                request.append_token(0)
    preempted = 0
    while scheduler.has_unfinished:
        output = scheduler.schedule()
        preempted += len(output.preempted)
        scheduler.update(output)
        for request in output.requests:
            if request.num_computed_tokens == request.num_tokens:
                if request.num_tokens >= lengths[int(request.request_id[1:])]:
                    scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)
                else:
                    request.append_token(1000 * int(request.request_id[1:]) + request.num_tokens)
    return preempted


def test_picked_flags_keep_their_promise() -> None:
    """Catches a rule that lets requests be preempted, or that is more careful than it has to be."""
    rng, once_too_many = random.Random(3), 0
    for case in ch10.pick_flags.cases():
        available, token_bytes, block_size, lengths, shared = case.arguments
        flags = ch10.pick_flags.reference(*case.arguments)
        if flags is None or min(lengths) - shared < 2:
            continue
        of_token = token_bytes // 2 if flags["kv_cache_dtype"] == "fp8" else token_bytes
        num_blocks, seqs = available // (block_size * of_token), flags["max_num_seqs"]
        longest = sorted(lengths, reverse=True)
        for order in (longest, longest[:seqs], rng.sample(lengths, len(lengths))):
            assert served(order, shared, num_blocks, block_size, seqs) == 0, (case, order)
        if seqs < len(lengths):
            once_too_many += served(longest, shared, num_blocks, block_size, seqs + 1) > 0
    assert once_too_many >= 5


@pytest.mark.parametrize("name", ch10.__all__)
def test_stub_is_not_attempted(name: str) -> None:
    """Catches a chapter whose "run all" grades a stub as an attempt."""

    def stub(*arguments: Any) -> Any:
        raise NotImplementedError

    verdict = replace(getattr(ch10, name), number="").grade(stub)
    assert verdict.passed is None
