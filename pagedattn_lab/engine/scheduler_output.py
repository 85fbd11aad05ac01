"""What a scheduler hands to whoever executes a step (chapter 09).

Source: ``vllm/v1/core/sched/output.py`` of vLLM, release 0.33.0; pairs to swap are the 2023 engine's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pagedattn_lab.request import Request


@dataclass(frozen=True)
class SchedulerOutput:
    """One step: who computes how much, and who had to make room.

    Whoever executes it copies ``swap_out`` and ``stores`` first, then ``swap_in`` and ``loads``, then what page tables
    wait for, and only then writes anything. A request's next token is sampled in this step if its
    ``num_computed_tokens`` and the tokens of this step are all that it has.

    Attributes:
        requests: who computes, in the order of the batch.
        num_scheduled_tokens: tokens of this step, by request id, in the same order.
        preempted: who lost its blocks while this was made.
        swap_out: ``(block, host block)`` to copy away.
        swap_in: ``(host block, block)`` to copy back.
        stores: ``(block, host block)`` to copy away, of what the prefix cache has evicted.
        loads: ``(host block, block)`` to copy back, of what was found in host memory.
    """

    requests: tuple[Request, ...] = ()
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    preempted: tuple[Request, ...] = ()
    swap_out: tuple[tuple[int, int], ...] = ()
    swap_in: tuple[tuple[int, int], ...] = ()
    stores: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens of the whole batch."""
        return sum(self.num_scheduled_tokens.values())


class StepInTheMaking:
    """What a scheduler has put into a step so far.

    Args:
        budget: tokens that may be scheduled.
        max_chunk: tokens of one request at most.
    """

    def __init__(self, budget: int, max_chunk: int) -> None:
        self.budget, self.max_chunk = budget, max_chunk
        self.scheduled: dict[str, tuple[Request, int]] = {}
        self.preempted: list[Request] = []
        self.swap_out: list[tuple[int, int]] = []
        self.swap_in: list[tuple[int, int]] = []
        self.stores: list[tuple[int, int]] = []
        self.loads: list[tuple[int, int]] = []

    def num_new_tokens(self, request: Request, num_computed_tokens: int) -> int:
        """How many tokens a request may compute in this step."""
        return min(request.num_tokens - num_computed_tokens, self.max_chunk, self.budget)

    def add(self, request: Request, num_new_tokens: int) -> None:
        """Schedule so many tokens of a request."""
        self.scheduled[request.request_id] = request, num_new_tokens
        self.budget -= num_new_tokens

    def take_back(self, request: Request) -> None:
        """Schedule none of a request's tokens, for others to have."""
        _, num_new_tokens = self.scheduled.pop(request.request_id, (request, 0))
        self.budget += num_new_tokens

    def output(self) -> SchedulerOutput:
        """Make it a step."""
        return SchedulerOutput(
            tuple(request for request, _ in self.scheduled.values()),
            {name: num_new_tokens for name, (_, num_new_tokens) in self.scheduled.items()},
            tuple(self.preempted),
            tuple(self.swap_out),
            tuple(self.swap_in),
            tuple(self.stores),
            tuple(self.loads),
        )
