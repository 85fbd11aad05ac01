"""Serve a workload against an allocator, step by step, and account for every slot of memory (chapters 02 and 03).

Scheduling is per iteration, as Orca introduced it and as vLLM does it: each step computes one token of every running
request, and the whole prompt of those that it admits. Requests are admitted in the order of their arrival, as soon as
memory and ``max_num_seqs`` allow; nobody overtakes. Where memory is asked for as a request grows and there is none, the
request that was admitted last loses all of it, goes to the head of the queue, and computes its tokens again later; a
step that preempts admits nobody. A gap counts as external waste in a step if it is too short for the request that
waited at the head of the queue when the step began.

How long a step takes is a roofline (:class:`pagedattn_lab.hardware.StepTime`): what a machine could do at best.
There is no limit on the tokens of a step, nor, unless given, on its requests.

Source: Yu et al. 2022, "Orca"; Kwon et al. 2023, sections 4.5 and 6; ``vllm/v1/core/sched/scheduler.py``.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.baselines.accounting import Allocator, Holding, num_kv_tokens
from pagedattn_lab.hardware import StepTime
from pagedattn_lab.studies.paper import A100_OPT_13B
from pagedattn_lab.studies.report import Ledger, Report
from pagedattn_lab.workloads import TraceRequest

# What can happen to a running request. Memory is asked for before a step, a request finishes after one: in a heap of
# (step, kind), a step's growth comes ahead of its end.
_GROW, _FINISH = 0, 1


def sum_steps(
    step_time: StepTime, num_steps: int, num_tokens: int, num_decoding: int, num_prefilled: int
) -> tuple[float, float]:
    """Sum up ``num_steps`` steps of the same requests, without taking them one by one.

    Each of the ``num_decoding`` requests grows by a token a step, so the tokens held climb a staircase::

        tokens held                               T = num_tokens, before the first step
        T + n g  |                    ______      g = num_decoding
           :     |              ____ |            n = num_steps
        T + 2 g  |        _____|
        T + g    |  _____|                        held in step i:  h = T + i g
        T        |_|________________________
                     1     2     ...    n   step

    A step that holds ``h`` tokens takes ``F + r h`` seconds: ``F`` for weights and linear layers, the same in each, and
    ``r`` for each token that attention reads. Sums over i = 1 ... n are sums of powers, for which there are formulas::

        seconds        sum of (F + r h)    = n F + r H        H = sum of h   = n T   + g S
        token-seconds  sum of (F + r h) h  = F H + r Q        Q = sum of h²  = n T² + 2 T g S + g² Z
                                                              S = 1  + 2  + ... + n  = n (n + 1) / 2
                                                              Z = 1² + 2² + ... + n² = n (n + 1) (2 n + 1) / 6

    All counts are whole numbers and exact; floats come in only where they are multiplied by times.

    Args:
        step_time: how long a step takes.
        num_steps: how many steps.
        num_tokens: tokens held before the first, those that it computes for prompts included.
        num_decoding: requests that compute one token in each step.
        num_prefilled: tokens of prompts computed in each step; not 0 only where there is one step.

    Returns:
        Seconds that the steps take, and the integral of the tokens held over them.

    Example:
        Three steps hold 5, 6 and 7 tokens, and take 1 + 5, 1 + 6 and 1 + 7 seconds:

        >>> sum_steps(StepTime(weights=1.0, compute=0.0, read=1.0), 3, num_tokens=4, num_decoding=1, num_prefilled=0)
        (21.0, 128.0)
    """
    n, grow, tokens = num_steps, num_decoding, num_tokens
    fixed = step_time.seconds(0, num_decoding + num_prefilled)  # F
    first_powers, second_powers = n * (n + 1) // 2, n * (n + 1) * (2 * n + 1) // 6  # S, Z
    held = n * tokens + grow * first_powers  # H
    held_squared = n * tokens * tokens + 2 * tokens * grow * first_powers + grow * grow * second_powers  # Q
    return n * fixed + step_time.read * held, fixed * held + step_time.read * held_squared


class _Running:
    """A request in the batch.

    Attributes:
        request: which.
        holding: its memory.
        order: grows with every admission.
        first_step: the step that admitted it.
        first_len: tokens computed in that step: the prompt, and after a preemption what had been generated.
        last_step: the step that computes its last token.
        preempted: it has lost its memory.

    In step ``first_step + k`` it holds ``first_len + k`` tokens, so its future is known when it is admitted.
    """

    __slots__ = ("first_len", "first_step", "holding", "last_step", "order", "preempted", "request")

    def __init__(self, request: TraceRequest, holding: Holding, order: int, first_step: int, first_len: int) -> None:
        self.request, self.holding, self.order = request, holding, order
        self.first_step, self.first_len = first_step, first_len
        self.last_step = first_step + num_kv_tokens(request.prompt_len, request.output_len) - first_len
        self.preempted = False

    def next_event(self) -> tuple[int, int]:
        """The step that needs more memory, or at whose end the request is finished; and which of the two it is."""
        full = self.first_step + self.holding.capacity - self.first_len + 1  # the first step whose token does not fit
        return (full, _GROW) if full <= self.last_step else (self.last_step, _FINISH)


class _Server:
    """The state of a simulation.

    Between two events only lengths change: nobody is admitted, preempted or done, no memory is asked for or given back.
    So :meth:`serve` takes the one step at which something happens, or all the steps up to the next event at once, and
    :func:`sum_steps` adds them up. A request of 10,000 tokens costs a handful of events instead of 10,000 steps.
    """

    def __init__(
        self, requests: Iterable[TraceRequest], allocator: Allocator, step_time: StepTime, max_num_seqs: int | None
    ) -> None:
        if any(allocator.account(0)[:3]):
            raise ValueError(f"the allocator's memory is in use already: {allocator.account(0)}")
        self.max_num_seqs = math.inf if max_num_seqs is None else at_least_one("max_num_seqs", max_num_seqs)
        self.requests, self.allocator, self.step_time = enumerate(requests), allocator, step_time
        self.upcoming = self.pull(-math.inf)  # the next to be admitted of those that never were
        if self.upcoming is None:
            raise ValueError("there is no request to serve")
        self.preempted: deque[tuple[TraceRequest, int]] = deque()  # and how many tokens they have to compute again
        self.running: dict[_Running, None] = {}  # in the order of admission
        self.events: list[tuple[int, int, int, _Running]] = []  # a heap; (step, kind, order, request)
        self.now = self.upcoming.arrival  # seconds
        self.step = 0  # the number of the step to come
        self.num_tokens = 0  # held by all running requests together
        self.num_admissions = self.num_finished = 0
        self.refused = False  # the head of the queue was refused, and no memory has come back since
        self.ledger = Ledger(start=self.now)

    def serve(self) -> bool:
        """Go on to the next event and past it; tell whether there is anything left to do."""
        # 1. Nobody is there: sleep until the next request arrives.
        if not self.running and not self.preempted:
            if self.upcoming is None:
                return False
            if self.upcoming.arrival > self.now:
                self.idle(self.upcoming.arrival)
        # 2. Before the step, whoever is out of room gets more; if there is none, the youngest has to go.
        preempting = self.grow()
        # 3. Whoever waits comes in, in order, while there is room; but not in a step that has just thrown somebody out.
        num_admitted, num_prefilled = (0, 0) if preempting else self.admit()
        num_decoding = len(self.running) - num_admitted  # those just admitted compute their prompts instead
        # 4. Take this step; and if nothing happened at its start, the ones after it too, up to the next event.
        num_steps = 1 if num_admitted or preempting else self.steps_ahead()
        self.num_tokens += num_prefilled
        self.execute(num_steps, num_decoding, num_prefilled)
        # 5. After the step, whoever has computed its last token leaves.
        self.finish()
        if self.upcoming is None and self.ledger.measured is None:
            self.ledger.stop_measuring(self.now, self.num_finished)
        return True

    # ----- the queue: the preempted first, then those that never ran, in the order of their arrival

    def pull(self, earliest: float) -> TraceRequest | None:
        """Take the next request from the workload."""
        number, request = next(self.requests, (0, None))
        if request is not None and not earliest <= request.arrival < math.inf:
            raise ValueError(
                f"request {number} (counted from 0) arrives at {request.arrival} s, the one ahead of it at "
                f"{earliest} s: give times, and sort requests by their arrival"
            )
        return request

    def head(self) -> tuple[TraceRequest, int] | None:
        """The request at the head of the queue, and the tokens that admission would compute."""
        if self.preempted:
            return self.preempted[0]
        if self.upcoming is not None and self.upcoming.arrival <= self.now:
            return self.upcoming, self.upcoming.prompt_len
        return None

    def next_size(self) -> int:
        """How many slots the request needs that waits while a step runs; 0 if nobody does."""
        head = self.head()
        return 0 if head is None else self.allocator.size(*_lengths(*head))

    # ----- memory: who gets more, who loses it, who comes in, who leaves

    def grow(self) -> bool:
        """Give those who need it more memory, oldest first; where there is none, the youngest loses all of its own."""
        preempting = False
        while self.events and self.events[0][:2] == (self.step, _GROW):
            run = heapq.heappop(self.events)[3]
            while not run.preempted and not self.allocator.grow(run.holding):
                self.preempt(next(reversed(self.running)))  # who may be the one that asks
                preempting = True
            if not run.preempted:
                self.schedule(run)
        return preempting

    def preempt(self, run: _Running) -> None:
        """Take a request's memory, and put it at the head of the queue; its event in the heap is dropped later."""
        self.allocator.free(run.holding)
        run.preempted = True
        del self.running[run]
        held = run.first_len + self.step - 1 - run.first_step  # tokens, after the step before this
        self.num_tokens -= held
        self.ledger.preempted(held)
        self.preempted.appendleft((run.request, held + 1))  # the token generated last is not in the cache yet
        self.refused = False

    def admit(self) -> tuple[int, int]:
        """Admit from the head of the queue while there is room: how many requests, and tokens to compute for them."""
        num_admitted = num_prefilled = 0
        while not self.refused and len(self.running) < self.max_num_seqs and (head := self.head()) is not None:
            request, first_len = head
            holding = self.allocator.allocate(*_lengths(request, first_len))
            if holding is None:
                self.refused = True
                break
            run = _Running(request, holding, self.num_admissions, self.step, first_len)
            self.running[run] = None
            self.schedule(run)
            self.num_admissions += 1
            num_admitted += 1
            num_prefilled += first_len
            if self.preempted:
                self.preempted.popleft()
            else:
                self.ledger.admitted_after(self.now - request.arrival)
                self.upcoming = self.pull(request.arrival)
        return num_admitted, num_prefilled

    def finish(self) -> None:
        """Let those go that have computed their last token in the step before."""
        while self.events and self.events[0][:2] == (self.step - 1, _FINISH):
            run = heapq.heappop(self.events)[3]
            if run.preempted:
                continue
            self.allocator.free(run.holding)
            del self.running[run]
            self.num_tokens -= num_kv_tokens(run.request.prompt_len, run.request.output_len)
            self.num_finished += 1
            self.refused = False

    # ----- time

    def schedule(self, run: _Running) -> None:
        """Put a request's next event into the heap; ``order`` lets older requests go first within a step."""
        heapq.heappush(self.events, (*run.next_event(), run.order, run))

    def steps_ahead(self) -> int:
        """How many steps can be taken before anything but lengths changes."""
        while self.events[0][3].preempted:
            heapq.heappop(self.events)
        step, kind = self.events[0][:2]
        num_steps = step - self.step + (kind == _FINISH)  # up to a growth; up to an end, and that step too
        if self.upcoming is None or self.head() is not None:
            return num_steps
        # Somebody may arrive on the way, and waits from the first step after that: find it among the sums of steps.
        arrival = self.upcoming.arrival - self.now
        return 1 + bisect_left(range(1, num_steps), arrival, key=self.seconds_of)

    def seconds_of(self, num_steps: int) -> float:
        """How long so many steps of the running requests will take."""
        return sum_steps(self.step_time, num_steps, self.num_tokens, len(self.running), 0)[0]

    def execute(self, num_steps: int, num_decoding: int, num_prefilled: int) -> None:
        """Let time pass and every decoding request grow by a token in each step."""
        next_size = self.next_size()  # of the request that waits as the first of the steps begins
        seconds, token_seconds = sum_steps(self.step_time, num_steps, self.num_tokens, num_decoding, num_prefilled)
        self.num_tokens += num_steps * num_decoding
        self.now += seconds
        self.step += num_steps
        account = self.allocator.account(self.num_tokens, next_size)
        self.ledger.passed(self.now, seconds, token_seconds, len(self.running), account)

    def idle(self, until: float) -> None:
        """Let time pass with nobody there; the state is written down as it begins."""
        self.ledger.passed(self.now, until - self.now, 0.0, 0, self.allocator.account(0))
        self.now = until

    def report(self) -> Report:
        """Say what became of the workload."""
        return self.ledger.report(self.allocator.num_slots, self.now, self.step, self.num_finished)


def _lengths(request: TraceRequest, first_len: int) -> tuple[int, int]:
    """What an allocator is asked for: tokens to compute at once, and those that then follow."""
    return first_len, request.prompt_len + request.output_len - first_len


def simulate(
    requests: Iterable[TraceRequest],
    allocator: Allocator,
    step_time: StepTime = A100_OPT_13B,
    *,
    max_num_seqs: int | None = None,
    total: int | None = None,
    progress: bool | None = None,
) -> Report:
    """Serve requests, in the order of their arrival, until all are finished.

    The same requests and the same allocator give the same report. Requests are taken as they are needed, so an endless
    workload may be cut with ``itertools.islice`` and never lies in memory as a whole; a million of them take minutes.

    Args:
        requests: what arrives, sorted by arrival.
        allocator: the memory, empty; it is empty again afterwards.
        step_time: how long a step takes.
        max_num_seqs: most requests in one step; by default as many as memory holds.
        total: how many requests there are, if known, for the progress bar.
        progress: whether to show a bar on standard error after a second; by default if that is a terminal, so pass
            ``True`` in a notebook to see one.

    Raises:
        ValueError: memory that is in use already, ``max_num_seqs`` below 1, no request, requests that are not sorted,
            or one that the allocator can never serve.

    Example:
        A strip for 4 requests at most, and blocks of 16 in the same memory:

        >>> from itertools import islice
        >>> from pagedattn_lab import workloads
        >>> from pagedattn_lab.baselines import contiguous
        >>> from pagedattn_lab.baselines.paged import PagedAllocator
        >>> def load():
        ...     return workloads.arrive(islice(workloads.sharegpt(), 200))
        >>> strip = simulate(load(), contiguous.max_length(8192, max_model_len=2048))
        >>> paged = simulate(load(), PagedAllocator(8192, block_size=16))
        >>> strip.mean_running, paged.mean_running > 3 * strip.mean_running
        (4.0, True)
    """
    from tqdm import tqdm

    server = _Server(requests, allocator, step_time, max_num_seqs)
    disable = None if progress is None else not progress
    with tqdm(total=total, unit=" requests", delay=1, disable=disable, leave=False) as bar:
        try:
            while server.serve():
                if server.num_finished - bar.n >= 256:
                    bar.update(server.num_finished - bar.n)
        finally:
            for run in list(server.running):  # an error must not leave the allocator's memory taken
                allocator.free(run.holding)
    return server.report()
