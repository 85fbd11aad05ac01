"""Small loads for the exercises of chapter 09, and the library's scheduler that serves them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.engine.scheduler_output import SchedulerOutput
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus

NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")


def scheduler_of(num_blocks: int, block_size: int, budget: int, max_num_seqs: int, keep_free: int = 0) -> Scheduler:
    """Make a scheduler without a prefix cache.

    Args:
        num_blocks: usable ones.
        block_size: tokens per block.
        budget: tokens of a step at most.
        max_num_seqs: requests that run at most.
        keep_free: blocks that stay free when a request is admitted, unless nothing runs.
    """
    return Scheduler(
        KVCacheManager(num_blocks + 1, block_size, enable_prefix_caching=False),  # block 0 is the null block
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        watermark=(keep_free + 0.5) / (num_blocks + 1),  # rounded down to keep_free blocks
    )


class ServedStep(NamedTuple):
    """One step: what was before it, and what the scheduler made of it.

    Attributes:
        running: name, number of tokens and of computed ones of each that runs before it.
        waiting: name and number of tokens of each that waits before it.
        num_free_blocks: before it.
        output: the step.
        num_waiting: after it.
    """

    running: list[tuple[str, int, int]]
    waiting: list[tuple[str, int]]
    num_free_blocks: int
    output: SchedulerOutput
    num_waiting: int


@dataclass(frozen=True)
class SmallLoad:
    """Requests that come together, and the limits under which they are served.

    Attributes:
        lengths: tokens of each prompt, and of each answer.
        num_blocks: usable ones; block_size, budget, max_num_seqs and keep_free as for :func:`scheduler_of`.
    """

    lengths: tuple[tuple[int, int], ...]
    num_blocks: int
    block_size: int
    budget: int
    max_num_seqs: int
    keep_free: int = 0

    def steps(self) -> Iterator[ServedStep]:
        """Serve to the end, with the library's scheduler.

        Example:
            >>> [step.output.num_scheduled_tokens for step in SmallLoad(((2, 3), (6, 1)), 8, 4, 4, 2).steps()]
            [{'Ada': 2, 'Bo': 2}, {'Ada': 1, 'Bo': 3}, {'Ada': 1, 'Bo': 1}]
        """
        scheduler = scheduler_of(self.num_blocks, self.block_size, self.budget, self.max_num_seqs, self.keep_free)
        for name, (prompt, answer) in zip(NAMES, self.lengths, strict=False):
            scheduler.add_request(Request(name, [0] * prompt, max_tokens=answer))
        while scheduler.has_unfinished:
            running = [(each.request_id, each.num_tokens, each.num_computed_tokens) for each in scheduler.running]
            waiting = [(each.request_id, each.num_tokens) for each in scheduler.waiting]
            num_free_blocks = scheduler.manager.block_pool.num_free_blocks
            output = scheduler.schedule()
            yield ServedStep(running, waiting, num_free_blocks, output, len(scheduler.waiting))
            scheduler.update(output)
            for request in output.requests:
                if request.num_computed_tokens == request.num_tokens:
                    request.append_token(0)
                if request.num_output_tokens == request.max_tokens:
                    scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)


def random_load(rng: random.Random) -> SmallLoad:
    """Draw a load in which each request would fit alone."""
    lengths = tuple((rng.randint(1, 12), rng.randint(1, 9)) for _ in range(rng.randint(3, 6)))
    block_size = rng.randint(2, 4)
    longest = max(cdiv(prompt + answer - 1, block_size) for prompt, answer in lengths)
    num_blocks = longest + rng.randint(1, 8)
    return SmallLoad(lengths, num_blocks, block_size, rng.randint(3, 16), rng.randint(2, 5), rng.randint(0, 1))
