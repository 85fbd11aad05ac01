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
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pagedattn_lab.baselines.contiguous import Account, num_kv_tokens
from pagedattn_lab.hardware import A100_OPT_13B, StepTime
from pagedattn_lab.kv_shape import at_least_one
from pagedattn_lab.workloads import TraceRequest

MOST_SAMPLES = 1024
"""How many states a :class:`Report` keeps at most."""

_GROW, _FINISH = 0, 1


class Holding(Protocol):
    """What one running request has of an allocator's memory."""

    @property
    def capacity(self) -> int:
        """Tokens that fit without asking for more memory."""


class Allocator(Protocol):
    """What :func:`simulate` asks of memory; :class:`pagedattn_lab.baselines.contiguous.ContiguousAllocator` is one."""

    @property
    def num_slots(self) -> int:
        """Slots in all."""

    def size(self, prompt_len: int, output_len: int) -> int:
        """How many slots a request takes when it is admitted; an error if it can never be served."""

    def allocate(self, prompt_len: int, output_len: int) -> Any:
        """Admit a request: what it holds, or ``None``, and nothing has changed."""

    def grow(self, holding: Any) -> bool:
        """Make room for one more token, or return ``False``, and nothing has changed."""

    def free(self, holding: Any) -> None:
        """Take everything back."""

    def account(self, num_tokens: int, next_size: int = 0) -> Account:
        """Say where every slot is; see :meth:`pagedattn_lab.baselines.contiguous.ContiguousAllocator.account`."""


class Sample(NamedTuple):
    """The state after one step.

    Attributes:
        seconds: since the first arrival.
        num_running: requests that computed a token in the step.
        account: where every slot was.
    """

    seconds: float
    num_running: int
    account: Account


@dataclass(frozen=True)
class Report:
    """What became of a workload.

    Shares, ``mean_running`` and ``requests_per_second`` are averages over time, from the first arrival until the last
    request has been admitted; what comes after is only the load draining away.

    Attributes:
        token_states, reservation, internal, external, free, rounding: shares of memory, see
            :class:`pagedattn_lab.baselines.contiguous.Account`.
        mean_running: requests that compute a token in a step.
        requests_per_second: requests finished per second.
        num_finished: requests finished in all.
        num_steps: steps in all.
        seconds: time in all, as the roofline has it.
        num_preemptions: how often a request lost its memory.
        num_recomputed: tokens whose keys and values were lost, and computed again.
        mean_wait, max_wait: seconds between arrival and first admission.
        samples: states over the whole time, at most :data:`MOST_SAMPLES`, evenly chosen among the steps at which
            something happened.
    """

    token_states: float
    reservation: float
    internal: float
    external: float
    free: float
    rounding: float
    mean_running: float
    requests_per_second: float
    num_finished: int
    num_steps: int
    seconds: float
    num_preemptions: int
    num_recomputed: int
    mean_wait: float
    max_wait: float
    samples: list[Sample] = field(repr=False)


class _Running:
    """A request in the batch.

    Attributes:
        request: which.
        holding: its memory.
        order: grows with every admission.
        first_step: the step that admitted it.
        first_len: tokens computed in that step: the prompt, and after a preemption what had been generated.
        preempted: it has lost its memory.
    """

    __slots__ = ("first_len", "first_step", "holding", "order", "preempted", "request")

    def __init__(self, request: TraceRequest, holding: Holding, order: int, first_step: int, first_len: int) -> None:
        self.request, self.holding, self.order = request, holding, order
        self.first_step, self.first_len = first_step, first_len
        self.preempted = False

    def next_event(self) -> tuple[int, int]:
        """The step that needs more memory, or at whose end the request is finished; and which of the two it is."""
        full = self.first_step + self.holding.capacity - self.first_len + 1
        last = self.first_step + self.request.prompt_len + self.request.output_len - 1 - self.first_len
        return (full, _GROW) if full <= last else (last, _FINISH)


class _Server:
    """The state of a simulation. Between two events only lengths change, so the steps between them are summed up."""

    def __init__(
        self, requests: Iterable[TraceRequest], allocator: Allocator, step_time: StepTime, max_num_seqs: int | None
    ) -> None:
        if any(allocator.account(0)[:3]):
            raise ValueError(f"the allocator's memory is in use already: {allocator.account(0)}")
        self.max_num_seqs = math.inf if max_num_seqs is None else at_least_one("max_num_seqs", max_num_seqs)
        self.requests, self.allocator, self.step_time = iter(requests), allocator, step_time
        self.num_waited = 0  # requests that were admitted, each counted once
        self.upcoming = self.pull(-math.inf)  # the next to be admitted of those that never were
        if self.upcoming is None:
            raise ValueError("there is no request to serve")
        self.preempted: deque[tuple[TraceRequest, int]] = deque()  # and how many tokens they have to compute again
        self.running: dict[_Running, None] = {}  # in the order of admission
        self.events: list[tuple[int, int, int, _Running]] = []  # a heap; (step, kind, order, request)
        self.start = self.now = self.upcoming.arrival
        self.step = self.num_tokens = self.num_admissions = 0
        self.refused = False  # the head of the queue was refused, and no memory has come back since
        self.num_finished = self.num_preemptions = self.num_recomputed = 0
        self.total_wait = self.max_wait = 0.0
        self.integrals = [0.0] * 7  # over time: the account's entries, and running requests
        self.measured: tuple[float, int] | None = None  # seconds, and requests finished, when the last was admitted
        self.samples: list[Sample] = []
        self.num_passes, self.stride = 0, 1

    def serve(self) -> bool:
        """Go on to the next event and past it; tell whether there is anything left to do."""
        if not self.running and not self.preempted:
            if self.upcoming is None:
                return False
            if self.upcoming.arrival > self.now:
                self.idle(self.upcoming.arrival)
        preempting = self.grow()
        num_admitted, num_computed = (0, 0) if preempting else self.admit()
        num_decoding = len(self.running) - num_admitted
        num_steps = 1 if num_admitted or preempting else self.steps_ahead()
        self.num_tokens += num_computed
        self.execute(num_steps, num_decoding, num_computed)
        self.finish()
        if self.upcoming is None and self.measured is None:
            self.measured = self.now - self.start, self.num_finished
        return True

    def head(self) -> tuple[TraceRequest, int] | None:
        """The request at the head of the queue, and the tokens that admission would compute."""
        if self.preempted:
            return self.preempted[0]
        if self.upcoming is not None and self.upcoming.arrival <= self.now:
            return self.upcoming, self.upcoming.prompt_len
        return None

    def grow(self) -> bool:
        """Give those who need it more memory, oldest first; where there is none, the youngest loses all of its own."""
        preempting = False
        while self.events and self.events[0][:2] == (self.step, _GROW):
            run = heapq.heappop(self.events)[3]
            while not run.preempted and not self.allocator.grow(run.holding):
                self.preempt(next(reversed(self.running)))
                preempting = True
            if not run.preempted:
                heapq.heappush(self.events, (*run.next_event(), run.order, run))
        return preempting

    def preempt(self, run: _Running) -> None:
        self.allocator.free(run.holding)
        run.preempted = True
        del self.running[run]
        held = run.first_len + self.step - 1 - run.first_step
        self.num_tokens -= held
        self.num_preemptions += 1
        self.num_recomputed += held
        self.preempted.appendleft((run.request, held + 1))  # the token generated last is not in the cache yet
        self.refused = False

    def admit(self) -> tuple[int, int]:
        """Admit from the head of the queue while there is room: how many requests, and tokens to compute for them."""
        num_admitted = num_computed = 0
        while not self.refused and len(self.running) < self.max_num_seqs and (head := self.head()) is not None:
            request, first_len = head
            output_len = request.prompt_len + request.output_len - first_len
            holding = self.allocator.allocate(first_len, output_len)
            if holding is None:
                self.refused = True
                break
            run = _Running(request, holding, self.num_admissions, self.step, first_len)
            self.running[run] = None
            heapq.heappush(self.events, (*run.next_event(), run.order, run))
            self.num_admissions += 1
            num_admitted += 1
            num_computed += first_len
            if self.preempted:
                self.preempted.popleft()
            else:
                self.advance(request)
        return num_admitted, num_computed

    def advance(self, admitted: TraceRequest) -> None:
        """Note how long a new request waited, and look at the one behind it."""
        wait = self.now - admitted.arrival
        self.num_waited += 1
        self.total_wait += wait
        self.max_wait = max(self.max_wait, wait)
        self.upcoming = self.pull(admitted.arrival)

    def pull(self, earliest: float) -> TraceRequest | None:
        """Take the next request from the workload."""
        request = next(self.requests, None)
        if request is not None and not earliest <= request.arrival < math.inf:
            raise ValueError(
                f"request {self.num_waited} (counted from 0) arrives at {request.arrival} s, the one ahead of it at "
                f"{earliest} s: give times, and sort requests by their arrival"
            )
        return request

    def steps_ahead(self) -> int:
        """How many steps can be taken before anything but lengths changes."""
        while self.events[0][3].preempted:
            heapq.heappop(self.events)
        step, kind = self.events[0][:2]
        num_steps = step - self.step + (kind == _FINISH)
        if self.upcoming is None or self.head() is not None:
            return num_steps
        arrival = self.upcoming.arrival - self.now  # somebody waits from the first step after that
        return 1 + bisect_left(range(1, num_steps), arrival, key=lambda n: self.sums(n, len(self.running), 0)[0])

    def sums(self, num_steps: int, num_decoding: int, num_prefilled: int) -> tuple[float, float]:
        """Sum up steps with one set of requests: their seconds, and seconds times tokens held."""
        n, grow, tokens = num_steps, num_decoding, self.num_tokens
        fixed = self.step_time.seconds(0, num_decoding + num_prefilled)
        first_powers, second_powers = n * (n + 1) // 2, n * (n + 1) * (2 * n + 1) // 6
        held = n * tokens + grow * first_powers  # tokens + grow + (tokens + 2 grow) + ...
        held_squared = n * tokens * tokens + 2 * tokens * grow * first_powers + grow * grow * second_powers
        read = self.step_time.read
        return n * fixed + read * held, fixed * held + read * held_squared

    def execute(self, num_steps: int, num_decoding: int, num_prefilled: int) -> None:
        """Let time pass and every decoding request grow by a token in each step."""
        next_size = self.next_size()
        seconds, token_seconds = self.sums(num_steps, num_decoding, num_prefilled)
        self.num_tokens += num_steps * num_decoding
        self.now += seconds
        self.step += num_steps
        account = self.note(len(self.running), next_size)
        if self.measured is None:
            integrals = self.integrals
            integrals[0] += token_seconds
            integrals[1] += (account.token_states + account.reservation) * seconds - token_seconds
            for index in range(2, 6):
                integrals[index] += account[index] * seconds
            integrals[6] += len(self.running) * seconds

    def idle(self, until: float) -> None:
        """Let time pass with nobody there."""
        account, seconds = self.note(0, 0), until - self.now
        self.now = until
        if self.measured is None:
            for index, slots in enumerate(account):
                self.integrals[index] += slots * seconds

    def next_size(self) -> int:
        """How many slots the request needs that waits while a step runs; 0 if nobody does."""
        head = self.head()
        return 0 if head is None else self.allocator.size(head[1], head[0].prompt_len + head[0].output_len - head[1])

    def note(self, num_running: int, next_size: int) -> Account:
        """Check the account of this moment, and keep every so many of them."""
        account = self.allocator.account(self.num_tokens, next_size)
        if self.num_passes % self.stride == 0:
            if len(self.samples) == MOST_SAMPLES:
                del self.samples[1::2]
                self.stride *= 2
            if self.num_passes % self.stride == 0:
                self.samples.append(Sample(self.now - self.start, num_running, account))
        self.num_passes += 1
        return account

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

    def report(self) -> Report:
        seconds, num_finished = self.measured
        # A reservation of nothing is a difference of two equal sums, which rounding may leave below zero.
        shares = [max(0.0, integral) / seconds / self.allocator.num_slots for integral in self.integrals[:6]]
        return Report(
            *shares,
            mean_running=self.integrals[6] / seconds,
            requests_per_second=num_finished / seconds,
            num_finished=self.num_finished,
            num_steps=self.step,
            seconds=self.now - self.start,
            num_preemptions=self.num_preemptions,
            num_recomputed=self.num_recomputed,
            mean_wait=self.total_wait / self.num_waited,
            max_wait=self.max_wait,
            samples=self.samples,
        )


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
        progress: whether to show a bar on standard error after two seconds; by default if that is a terminal, so pass
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
    with tqdm(total=total, unit=" requests", delay=2, disable=disable, leave=False) as bar:
        try:
            while server.serve():
                if server.num_finished - bar.n >= 256:
                    bar.update(server.num_finished - bar.n)
        finally:
            for run in list(server.running):  # an error must not leave the allocator's memory taken
                allocator.free(run.holding)
    return server.report()
