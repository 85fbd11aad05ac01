"""Serve requests with a scheduler alone, in a model of time: nothing is computed (chapter 09).

Who runs, who is preempted and how many blocks are held depend on lengths only, not on what a model says. So a load of
hundreds of requests takes a second, and its steps are those of a server with a model.

Source: Kwon et al. 2023, sections 4.5 and 6; Little 1961 for :attr:`SchedulingReport.mean_in_house`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.hardware import StepTime
from pagedattn_lab.request import Request, RequestStatus


class ServedStep(NamedTuple):
    """One step.

    Attributes:
        tokens: how many each request computes, by request id, in the order of the batch.
        preempted: ids of those that lost their blocks before it.
        num_used_blocks: blocks held in it.
        num_in_house: requests that wait or run.
        seconds: how long it takes.
    """

    tokens: dict[str, int]
    preempted: tuple[str, ...]
    num_used_blocks: int
    num_in_house: int
    seconds: float


@dataclass
class SchedulingReport:
    """What a load was like to serve.

    Attributes:
        steps: from the first to the last.
        stays: seconds from a request's arrival to its last token, by request id.
    """

    steps: list[ServedStep] = field(default_factory=list)
    stays: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time from the first arrival to the last token."""
        return sum(step.seconds for step in self.steps)

    @property
    def num_preemptions(self) -> int:
        """How often a request lost its blocks."""
        return sum(len(step.preempted) for step in self.steps)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens computed, those that were computed before included."""
        return sum(sum(step.tokens.values()) for step in self.steps)

    @property
    def mean_running(self) -> float:
        """Requests that compute, averaged over the steps."""
        return sum(len(step.tokens) for step in self.steps) / len(self.steps)

    @property
    def mean_in_house(self) -> float:
        """Requests that wait or run, averaged over the time."""
        return sum(step.seconds * step.num_in_house for step in self.steps) / self.seconds


def serve(
    scheduler: Scheduler,
    requests: Iterable[Request],
    step_time: StepTime | None = None,
    clients: int | None = None,
    *,
    through_server: bool = False,
) -> SchedulingReport:
    """Take requests to their end; each gets as many tokens as it may have.

    Args:
        scheduler: without requests; it has none afterwards.
        requests: in the order of their arrival, with ``max_tokens``.
        step_time: how long a step takes; by default every step takes a second.
        clients: how many requests are in the house at most: the next one arrives when one has ended. By default all
            arrive at once.

    Raises:
        ValueError: a request without ``max_tokens``, a scheduler that has requests, or fewer than one client; and what
            :meth:`pagedattn_lab.engine.scheduler.Scheduler.add_request` refuses.

    Example:
        >>> from pagedattn_lab.kv_manager import KVCacheManager
        >>> scheduler = Scheduler(KVCacheManager(num_blocks=5, block_size=4), max_num_batched_tokens=4)
        >>> served = serve(scheduler, [Request("Ada", range(2), max_tokens=3), Request("Bo", range(6), max_tokens=1)])
        >>> [step.tokens for step in served.steps]
        [{'Ada': 2, 'Bo': 2}, {'Ada': 1, 'Bo': 3}, {'Ada': 1, 'Bo': 1}]
        >>> served.seconds, served.mean_in_house, served.stays
        (3.0, 2.0, {'Ada': 3.0, 'Bo': 3.0})
    """
    if scheduler.has_unfinished:
        raise ValueError("the scheduler has requests already: give one of its own to every load")
    if clients is not None and clients < 1:
        raise ValueError(f"clients is {clients}: give at least 1")
    arriving = deque(requests)
    for request in arriving:
        if request.max_tokens is None:
            raise ValueError(
                f"request {request.request_id!r} has no max_tokens, so it would never end: give it a number"
            )
    served, clock, came, in_house, on_the_way = SchedulingReport(), 0.0, {}, 0, 0
    while arriving or scheduler.has_unfinished:
        room = 1 if through_server and not served.steps else clients or len(arriving) + in_house
        while arriving and in_house + on_the_way < room:
            came[arriving[0].request_id] = clock
            scheduler.add_request(arriving.popleft())
            in_house += 1
        output = scheduler.schedule()
        used = scheduler.manager.block_pool.num_used_blocks
        scheduler.update(output)
        num_held = sum(request.num_computed_tokens for request in output.requests)
        seconds = 1.0 if step_time is None else step_time.seconds(num_held, output.total_num_scheduled_tokens)
        lost = tuple(request.request_id for request in output.preempted)
        served.steps.append(ServedStep(output.num_scheduled_tokens, lost, used, in_house, seconds))
        clock += seconds
        before = in_house
        for request in output.requests:
            if request.num_computed_tokens == request.num_tokens:
                request.append_token(0)
                if request.num_output_tokens == request.max_tokens:
                    scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)
                    served.stays[request.request_id] = clock - came[request.request_id]
                    in_house -= 1
        on_the_way = before - in_house if through_server and in_house else 0  # who is idle waits
    return served
