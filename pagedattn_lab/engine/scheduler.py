"""Who computes in the next step, and how many tokens: a scheduler over one manager's blocks (chapter 09).

There is no phase of prompts and no phase of outputs. A request has tokens that are computed and tokens that are not,
and a step gives each request some of the second kind, as far as a budget of tokens and the blocks reach. A long prompt
is cut into chunks by the budget alone.

Source: ``vllm/v1/core/sched/scheduler.py`` of vLLM, release 0.33.0; names and order are its own.
``tests/test_vllm_scheduler.py`` replays what that release did, step by step. Preemption by swapping is not in it any
more: Kwon et al. 2023, section 4.5.
"""

from __future__ import annotations

import sys
from bisect import insort
from collections import deque
from typing import Any, Literal

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.engine.scheduler_output import SchedulerOutput, StepInTheMaking
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus


class Scheduler:
    """Chooses for every step who computes how many tokens, and takes the blocks for them.

    A step serves those that run first, in the order in which they were admitted, then those that wait, as long as
    tokens of the budget are left. If a request that runs finds no block, others are preempted until it does: they lose
    all their blocks and wait again. A step that preempted admits nobody.

    With ``policy="fcfs"``, while no step fails and nothing is swapped or forked, whoever runs was added before whoever
    waits. So nobody is overtaken at admission, the oldest request computes at least one token in every step and never
    loses one, and a request is finished after at most as many steps as it and those added before it have tokens to
    compute. With ``policy="priority"`` nobody is admitted before one of a smaller ``(priority, arrival_time)`` that
    waits, and there is no bound: a request waits for as long as more urgent ones keep coming.

    Args:
        manager: the blocks; nobody else takes any while this scheduler has requests.
        max_num_batched_tokens: tokens of a step at most; ``None`` for any number.
        max_num_seqs: requests that run at most; ``None`` for any number.
        policy: ``"fcfs"``: first come, first served; the one admitted last is preempted. ``"priority"``: smallest
            ``(priority, arrival_time)`` first; the largest is preempted.
        watermark: share of all blocks that stays free when a request is admitted, unless nothing runs.
        preemption: ``"recompute"``: its blocks are given back, and what the prefix cache no longer holds is computed
            once more. ``"swap"``: they are copied to the manager's host blocks, and back before anyone who waits is
            admitted; where these are short, it is recomputed.
        long_prefill_token_threshold: tokens of one request in one step at most, unless it is alone; ``None`` for any
            number.

    Attributes:
        waiting: requests without blocks, who is next first.
        running: requests with blocks, in the order in which they were admitted.
        swapped: requests whose blocks are on the host, who is next first.

    Raises:
        ValueError: limits below 1, an unknown policy or kind of preemption, or a watermark that is no share.

    Example:
        A budget of 4 tokens cuts Bo's prompt of 6 into chunks, and Ada goes on meanwhile:

        >>> scheduler = Scheduler(KVCacheManager(num_blocks=9, block_size=4), max_num_batched_tokens=4)
        >>> ada, bo = Request("Ada", [1, 2], max_tokens=3), Request("Bo", range(6), max_tokens=1)
        >>> scheduler.add_request(ada); scheduler.add_request(bo)
        >>> while scheduler.has_unfinished:
        ...     output = scheduler.schedule()
        ...     scheduler.update(output)                              # the model has computed it
        ...     print(output.num_scheduled_tokens)
        ...     for request in output.requests:
        ...         if request.num_computed_tokens == request.num_tokens:
        ...             request.append_token(7)
        ...             if request.num_output_tokens == request.max_tokens:
        ...                 scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)
        {'Ada': 2, 'Bo': 2}
        {'Ada': 1, 'Bo': 3}
        {'Ada': 1, 'Bo': 1}
    """

    def __init__(
        self,
        manager: KVCacheManager | GroupedKVCacheManager,
        *,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int | None = None,
        policy: Literal["fcfs", "priority"] = "fcfs",
        watermark: float = 0.0,
        preemption: Literal["recompute", "swap"] = "recompute",
        long_prefill_token_threshold: int | None = None,
    ) -> None:
        if policy not in ("fcfs", "priority"):
            raise ValueError(f"policy is {policy!r}: use 'fcfs' or 'priority'")
        if preemption not in ("recompute", "swap"):
            raise ValueError(f"preemption is {preemption!r}: use 'recompute' or 'swap'")
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark is {watermark}: give the share of blocks to keep free, from 0 to below 1")
        self.manager = manager
        self.policy, self.preemption, self.watermark = policy, preemption, watermark
        self.max_num_batched_tokens = _limit("max_num_batched_tokens", max_num_batched_tokens)
        if isinstance(manager, GroupedKVCacheManager):
            self._check_groups(manager)
        self.max_num_seqs = _limit("max_num_seqs", max_num_seqs)
        self.long_prefill_token_threshold = _limit("long_prefill_token_threshold", long_prefill_token_threshold)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.swapped: deque[Request] = deque()
        self._requests: dict[str, Request] = {}
        self._in_flight: SchedulerOutput | None = None  # scheduled, and neither updated nor rolled back yet

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All that wait or run, in the order in which they came."""
        return tuple(self._requests.values())

    def add_request(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            ValueError: a name that is taken, a request that has begun elsewhere, or one that could not be served even
                alone: of the tokens that it may have, all but the last need a slot. Nothing changed.

        Example:
            >>> scheduler = Scheduler(KVCacheManager(num_blocks=5, block_size=16))
            >>> scheduler.add_request(Request("Ada", range(40), max_tokens=26))  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: request 'Ada' needs 5 blocks of 16 tokens for 40 tokens and up to 26 more, and there are 4: ...
        """
        name = request.request_id
        if name in self._requests:
            raise ValueError(f"there is a request {name!r} already: give this one another name")
        if request.status is not RequestStatus.WAITING or request.num_computed_tokens:
            raise ValueError(f"{request!r} has begun elsewhere: add a new request")
        self.manager.check_fits(request)
        self._requests[name] = request
        if self.policy == "priority":
            insort(self.waiting, request, key=_urgency)
        else:
            self.waiting.append(request)

    def schedule(self) -> SchedulerOutput:
        """Choose the next step, and take the blocks for its tokens.

        ``num_computed_tokens`` of a request that is admitted says how many tokens were found in the prefix cache;
        what is scheduled is not counted before :meth:`update`.

        Returns:
            The step; without requests if there is nothing to do.

        Raises:
            NoFreeBlocksError: nothing runs, and the next request has grown past what all blocks hold: only one without
                ``max_tokens`` can. It still waits, without blocks; finish it.
            RuntimeError: the step before has been neither updated nor rolled back.
        """
        if self._in_flight is not None:
            raise RuntimeError("the last step has not ended: call update or roll_back with it before the next schedule")
        num_requests = len(self._requests)
        max_chunk = self.long_prefill_token_threshold if num_requests > 1 else None
        step = StepInTheMaking(self.max_num_batched_tokens or sys.maxsize, max_chunk or sys.maxsize)
        try:
            self._schedule_running(step)
            if not step.preempted:
                self._schedule_waiting(step)
        except BaseException:
            self._undo(step.output())
            raise
        if self.manager.tier is not None:
            step.stores, step.loads = self.manager.tier.copies()
        output = step.output()
        if output.requests or output.preempted:
            self._in_flight = output
        elif self.waiting and self.manager.num_blocks_to_admit(self.waiting[0]) > self._max_num_blocks:
            request = self.waiting[0]
            raise NoFreeBlocksError(
                f"request {request.request_id!r} has grown to {request.num_tokens} tokens, which need "
                f"{self.manager.num_blocks_to_admit(request)} blocks, and there are {self._max_num_blocks}: finish it, "
                "or give it max_tokens"
            )
        return output

    def update(self, output: SchedulerOutput) -> None:
        """Count a step's tokens as computed.

        Raises:
            ValueError: not the step that was scheduled last.
        """
        self._end_step(output)
        if self.manager.tier is not None:
            self.manager.tier.complete_stores()
            self.manager.tier.complete_loads()
        for request in output.requests:
            if self._knows(request):  # it may have been finished meanwhile
                request.num_computed_tokens += output.num_scheduled_tokens[request.request_id]

    def roll_back(self, output: SchedulerOutput) -> None:
        """Make good for a step that failed: its requests wait again, first in line, and have lost their blocks.

        What the step was to write is forgotten by the prefix cache, and so are copies of swapped blocks and of the
        tier's, which may not have been made. Of the tier's, those that it knows to have been made stay.

        Raises:
            ValueError: not the step that was scheduled last.
        """
        self._end_step(output)
        self._undo(output)

    def fork(self, request: Request, request_id: str) -> Request:
        """Let a second request run on from where one is, with the same blocks, until one of them writes.

        Raises:
            ValueError: a name that is taken, a request that does not run, or no room for one more in ``max_num_seqs``.
            RuntimeError: a step is under way: its tokens are not counted yet.

        Example:
            >>> scheduler = Scheduler(KVCacheManager(num_blocks=5, block_size=4))
            >>> scheduler.add_request(Request("Ada", range(6)))
            >>> scheduler.update(scheduler.schedule())
            >>> bo = scheduler.fork(scheduler.running[0], "Bo")
            >>> [request.request_id for request in scheduler.running], scheduler.manager.block_ids("Bo")
            (['Ada', 'Bo'], [1, 2])
        """
        if self._in_flight is not None:
            raise RuntimeError("a step is under way: update it before a request is forked")
        if request_id in self._requests:
            raise ValueError(f"there is a request {request_id!r} already: give the fork another name")
        if not self._knows(request) or request.status is not RequestStatus.RUNNING:
            raise ValueError(f"{request!r} does not run here: only a request with blocks can be forked")
        if len(self.running) >= (self.max_num_seqs or sys.maxsize):
            raise ValueError(f"max_num_seqs is {self.max_num_seqs}, and as many run: there is no room for a fork")
        twin = self.manager.fork(request, request_id)
        self._requests[request_id] = twin
        self.running.append(twin)
        return twin

    def finish(self, request: Request, status: RequestStatus) -> None:
        """End a request, wherever it is on its way, and give its blocks back. One that has finished stays as it is.

        Raises:
            ValueError: a status that is not finished, or a request that was not added here. Nothing changed.
        """
        if not status.is_finished:
            raise ValueError(f"status {status.name} is not the end of a request: use one that is finished")
        if not self._knows(request):
            if request.status.is_finished:
                return
            raise ValueError(f"{request!r} was not added here")
        del self._requests[request.request_id]
        for queue in (self.running, self.waiting, self.swapped):
            if request in queue:
                queue.remove(request)
                break
        self._free(request)
        request.status = status

    # --- a step in the making

    def _schedule_running(self, step: StepInTheMaking) -> None:
        """Give tokens to those that run; preempt until there are blocks for them."""
        place = 0
        while place < len(self.running) and step.budget > 0:
            request = self.running[place]
            num_new_tokens = step.num_new_tokens(request, request.num_computed_tokens)
            if num_new_tokens == 0:  # nobody has said yet how it goes on
                place += 1
                continue
            while self.manager.allocate_slots(request, num_new_tokens) is None:
                victim = max(self.running, key=_rank) if self.policy == "priority" else self.running[-1]
                place -= self.running.index(victim) < place
                self._preempt(victim, step)
                if victim is request:
                    break  # the one behind it has moved to its place
            else:
                step.add(request, num_new_tokens)
                place += 1

    def _preempt(self, victim: Request, step: StepInTheMaking) -> None:
        """Take all blocks from a request that runs, and let it wait in front of the others."""
        pairs = self.manager.swap_out(victim) if self.preemption == "swap" else None
        step.take_back(victim)
        self.running.remove(victim)
        step.preempted.append(victim)
        if pairs is None:
            self._wait_again(victim)
        else:
            step.swap_out += pairs
            self._put_first(self.swapped, victim)
        victim.status = RequestStatus.PREEMPTED
        victim.num_preemptions += 1

    def _schedule_waiting(self, step: StepInTheMaking) -> None:
        """Admit those that wait, one after the other, until one does not fit; first those that were swapped out."""
        has_room = True
        while has_room and step.budget > 0 and len(self.running) < (self.max_num_seqs or sys.maxsize):
            if self.swapped and not self._is_overtaken(self.swapped[0]):
                has_room = self._swap_in(self.swapped[0], step)
            else:
                has_room = bool(self.waiting) and self._admit(self.waiting[0], step)

    def _is_overtaken(self, swapped: Request) -> bool:
        """Whether one that waits is more urgent than one that was swapped out."""
        return self.policy == "priority" and bool(self.waiting) and _urgency(self.waiting[0]) < _urgency(swapped)

    def _admit(self, request: Request, step: StepInTheMaking) -> bool:
        """Give a request the blocks of its first chunk, those found in the cache included, if all of it would fit."""
        manager = self.manager
        blocks: Any  # one list, or one for each group of layers: only the manager looks into them
        blocks, num_hit_tokens = manager.get_computed_blocks(request)
        num_new_tokens = step.num_new_tokens(request, num_hit_tokens)
        if not self._fits(request, num_new_tokens, blocks):
            return False
        hits = (blocks,) if manager.tier is None else (blocks, num_hit_tokens - len(blocks) * manager.tier.block_size)
        if manager.allocate_slots(request, num_new_tokens, *hits) is None:
            return False
        request.num_computed_tokens = num_hit_tokens
        self._run(self.waiting.popleft(), num_new_tokens, step)
        return True

    def _swap_in(self, request: Request, step: StepInTheMaking) -> bool:
        """Bring all blocks of a swapped request back, and give it those of its next tokens."""
        num_new_tokens = step.num_new_tokens(request, request.num_computed_tokens)
        pairs = self.manager.swap_in(request) if self._fits(request, num_new_tokens) else None
        if pairs is None:
            return False
        step.swap_in += pairs
        self._run(self.swapped.popleft(), num_new_tokens, step)  # whatever happens next, it is known where it is
        if self.manager.allocate_slots(request, num_new_tokens) is not None:
            return True
        step.take_back(request)
        del step.swap_in[len(step.swap_in) - len(pairs) :]
        self._undo(SchedulerOutput(requests=(request,), swap_in=tuple(pairs)))
        return False

    def _run(self, request: Request, num_new_tokens: int, step: StepInTheMaking) -> None:
        self.running.append(request)
        request.status = RequestStatus.RUNNING
        step.add(request, num_new_tokens)

    def _fits(self, request: Request, num_new_tokens: int, hits: Any = ()) -> bool:
        """Whether all tokens of a request fit beside what runs, with the watermark free on top of it."""
        pool = self.manager.block_pool
        num_kept_free = int(self.watermark * pool.num_blocks) if self.running else 0
        return self.manager.num_blocks_to_admit(request, num_new_tokens, hits) + num_kept_free <= pool.num_free_blocks

    # --- what steps have in common

    def _check_groups(self, manager: GroupedKVCacheManager) -> None:
        """Refuse what a manager of several groups cannot do, or does not count on."""
        if self.preemption == "swap":
            raise ValueError("preemption is 'swap', and groups of layers have no host blocks: use 'recompute'")
        most, counted_on = self.max_num_batched_tokens, manager.max_num_batched_tokens
        if counted_on is not None and (most is None or most > counted_on):
            raise ValueError(
                f"max_num_batched_tokens is {most}, and the manager admits requests that compute at most {counted_on} "
                "tokens in one step: give both the same limit"
            )

    @property
    def _max_num_blocks(self) -> int:
        return self.manager.block_pool.num_blocks - 1  # all but the null block

    def _knows(self, request: Request) -> bool:
        return self._requests.get(request.request_id) is request

    def _end_step(self, output: SchedulerOutput) -> None:
        if output is not self._in_flight and (output.requests or output.preempted):
            raise ValueError("this is not the step that was scheduled last: each is updated or rolled back once")
        self._in_flight = None

    def _undo(self, output: SchedulerOutput) -> None:
        """Take everything back that a step was to compute or to copy."""
        self.manager.evict_blocks(block_id for _, block_id in output.swap_in)
        if self.manager.tier is not None:
            self.manager.evict_blocks(self.manager.tier.fail())
        for request in reversed(output.preempted):
            if request in self.swapped:  # its copy on the host may never have been made
                self.swapped.remove(request)
                self._wait_again(request)
        for request in reversed(output.requests):
            if self._knows(request):
                self.running.remove(request)
                self._wait_again(request)
                request.status = RequestStatus.PREEMPTED
                request.num_preemptions += 1

    def _wait_again(self, request: Request) -> None:
        self._free(request)
        self._put_first(self.waiting, request)

    def _put_first(self, queue: deque[Request], request: Request) -> None:
        if self.policy == "priority":
            insort(queue, request, key=_urgency)
        else:
            queue.appendleft(request)

    def _free(self, request: Request) -> None:
        """Give a request's blocks back. Those of a step that has not run must not be found in the cache."""
        self.manager.evict_blocks(self.manager.uncomputed_block_ids(request))
        self.manager.free(request)
        request.num_computed_tokens = 0


def _rank(request: Request) -> tuple[int, float]:
    """Order by which the last is preempted."""
    return request.priority, request.arrival_time


def _urgency(request: Request) -> tuple[int, float, str]:
    """Order by which the first is admitted."""
    return request.priority, request.arrival_time, request.request_id


def _limit(name: str, value: int | None) -> int | None:
    return None if value is None else at_least_one(name, value)
