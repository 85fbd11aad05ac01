"""How a replica spends its time: continuous batching in a model of time, or one request at a time (chapter 11).

A server says when something happens next on a replica, and the simulation calls it then. Between two such moments lie
as many steps as change nothing but lengths, whose times a formula adds up.
"""

from __future__ import annotations

import math
import random
from bisect import insort
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.hardware import GPUS, StepTime
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.studies.fleet.requests import FleetRequest

LLAMA_3_1_8B = KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype="bfloat16")
"""Llama 3.1 8B: 128 KiB of keys and values per token."""

A100_LLAMA_8B = StepTime.roofline(LLAMA_3_1_8B, num_parameters=8.03e9, gpu=GPUS["A100-80GB"])
"""A step of that model on one A100 of 80 GB, at best."""


class Job:
    """A request on its way through a replica.

    Attributes:
        request: what is asked for.
        number: requests count from 0, as they arrive.
        arrival: when it came, in seconds; as in the request, unless arrivals were made anew.
        first_token: when it got its first token; ``None``: not yet.
        held: tokens in the cache.
        remaining: tokens of the prompt still to be computed, once it has started.
        was_sent: whether a replica has had it before.
    """

    __slots__ = ("arrival", "first_token", "held", "number", "remaining", "request", "was_sent")

    def __init__(self, request: FleetRequest, number: int, arrival: float) -> None:
        self.request, self.number, self.arrival = request, number, arrival
        self.first_token: float | None = None
        self.held = self.remaining = 0
        self.was_sent = False


class Desk(Protocol):
    """What a server tells the simulation about its jobs."""

    def start(self, job: Job, now: float) -> int:
        """A prompt is looked up and cached; returns how many of its tokens were found."""

    def finish(self, job: Job, now: float) -> None:
        """A job has its last token, and its first one in ``first_token``."""


class Line(Protocol):
    """The jobs of one replica."""

    busy_s: float

    def add(self, job: Job, now: float) -> float | None:
        """Take a job, and say when to call :meth:`fire` instead of what was said before; ``None``: as said before."""

    def fire(self, now: float) -> float | None:
        """Do what is due, and say when to be called next; ``None``: when there is a job."""

    def drop(self, now: float) -> list[Job]:
        """Stop at once, and give all jobs back, in the order in which the requests arrived."""


@dataclass(frozen=True)
class Server:
    """Continuous batching with chunked prefill, as vLLM schedules, with room for whatever runs.

    A step gives every running request a token. What its budget has left goes to prompts, in the order of their
    arrival, a part of a prompt if no more fits. The step in which a prompt is complete ends with its first token. A
    step takes as long as ``step_time`` says, for the tokens that it computes and the cached ones that it reads.

    Memory is that of a prefix cache alone: blocks are let go as soon as a prompt is cached, as ``hits`` does it, so
    nothing is preempted, and ``max_num_seqs`` is all that bounds a batch. What is generated is not cached.

    Args:
        step_time: how long a step takes.
        max_num_batched_tokens: most tokens in a step.
        max_num_seqs: most requests that run at once.

    Raises:
        ValueError: a number below 1, or a budget that ``max_num_seqs`` requests exceed.

    Example:
        >>> Server().step_time.seconds(num_cached=0, num_computed=1) > 0.007     # to read the weights of 8e9 parameters
        True
    """

    step_time: StepTime = A100_LLAMA_8B
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        """Refuse a batch that has no room for prompts."""
        at_least_one("max_num_seqs", self.max_num_seqs)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, less than one for each of "
                f"{self.max_num_seqs} requests: raise it, or lower max_num_seqs"
            )

    def line(self, desk: Desk, rng: random.Random) -> Line:
        """Make the jobs of one replica."""
        return _Batch(self, desk)


class _Batch:
    """Jobs of one replica that :class:`Server` schedules.

    The running are kept by the step that computes their last token, counted from the replica's first.

    A step that completes prompts, after which nothing is left to do but to decode, is taken as soon as it begins,
    together with the stretch behind it. What comes before its end undoes that: a job ends the stretch before its first
    step, and a failure takes the first tokens back.
    """

    __slots__ = (
        "_ahead", "_desk", "_first", "_max_num_batched_tokens", "_max_num_seqs", "_num_held", "_partial", "_read",
        "_running", "_start", "_step", "_step_time", "_stretch", "_waiting", "_working", "busy_s",
    )  # fmt: skip

    def __init__(self, server: Server, desk: Desk) -> None:
        self._desk, self._step_time = desk, server.step_time
        self._max_num_batched_tokens, self._max_num_seqs = server.max_num_batched_tokens, server.max_num_seqs
        self._waiting: deque[Job] = deque()
        self._partial: list[Job] = []  # those whose prompts are computed in this step; the last one may not be complete
        self._running: list[tuple[int, int, Job]] = []  # -last step, -number, job: sorted, so the last one ends first
        self._num_held = 0  # tokens held by those
        self._step = 0  # steps with running requests that have been taken
        self._start = 0.0  # when the current stretch of steps began
        self._stretch = 0  # how many steps it has
        self._first = 0.0  # seconds of its first step
        self._read = 0.0  # by how much each step takes longer than the one before
        self._working = False
        self._ahead: tuple[float, float] | None = None  # of a step taken ahead: its beginning, and ``busy_s`` then
        self.busy_s = 0.0

    def add(self, job: Job, now: float) -> float | None:
        """Take a job: an idle replica begins now, one that only decodes ends its stretch with the step it is in."""
        self._waiting.append(job)
        if not self._working:
            self._working, self._start, self._stretch = True, now, 0
            return now
        if (self._stretch > 1 or self._ahead) and len(self._running) < self._max_num_seqs:
            num_steps = self._steps_until(now)
            if num_steps < self._stretch:
                self._stretch = num_steps
                return self._start + self._seconds(num_steps)
        return None

    def fire(self, now: float) -> float | None:
        """End a stretch, and begin the next."""
        running, partial = self._running, self._partial
        if self._stretch:
            self.busy_s += now - self._start
            self._step += self._stretch
            self._num_held += self._stretch * len(running)
            while running and running[-1][0] == -self._step:
                job = running.pop()[2]
                self._num_held -= job.request.prompt_len + job.request.output_len - 1
                self._desk.finish(job, now)
            if partial:
                last = partial[-1] if partial[-1].remaining else None
                for job in partial:
                    if job is not last:
                        self._join(job, now)
                partial.clear()
                if last is not None:
                    partial.append(last)
        return self._begin(now)

    def _join(self, job: Job, now: float) -> None:
        """Let a job whose prompt is complete have its first token."""
        if job.first_token is None:
            job.first_token = now
        if job.request.output_len == 1:
            self._desk.finish(job, now)
        else:
            self._num_held += job.held
            insort(self._running, (1 - self._step - job.request.output_len, -job.number, job))

    def _begin(self, now: float) -> float | None:
        running, partial, waiting = self._running, self._partial, self._waiting
        num_running = len(running)
        room = self._max_num_batched_tokens - num_running
        num_prefilled = num_read = 0
        if partial:
            chunk = min(partial[0].remaining, room)
            partial[0].remaining -= chunk
            partial[0].held += chunk
            num_prefilled, num_read = chunk, partial[0].held
        seats = self._max_num_seqs - num_running - len(partial)
        while waiting and seats and num_prefilled < room:
            job = waiting.popleft()
            job.held = self._desk.start(job, now)
            job.remaining = job.request.prompt_len - job.held
            chunk = min(job.remaining, room - num_prefilled)
            job.remaining -= chunk
            job.held += chunk
            num_prefilled += chunk
            num_read += job.held
            partial.append(job)
            seats -= 1
        self._start, self._ahead = now, None
        time = self._step_time
        if num_prefilled:
            self._stretch = 1
            end = now + time.seconds(self._num_held + num_running + num_read, num_running + num_prefilled)
            if waiting or partial[-1].remaining or (running and running[-1][0] == -self._step - 1):
                return end
            for job in partial:
                if job.request.output_len == 1:
                    return end
            ahead = now, self.busy_s
            again = self.fire(end)
            self._ahead = ahead
            return again
        if not running:
            self._working, self._stretch = False, 0
            return None
        self._stretch = -running[-1][0] - self._step
        self._first = time.seconds(self._num_held + num_running, num_running)
        self._read = time.read * num_running
        return now + self._seconds(self._stretch)

    def _seconds(self, num_steps: int) -> float:
        """How long the first steps of a stretch take in which every request grows by a token a step."""
        return num_steps * self._first + self._read * (num_steps * (num_steps - 1) // 2)

    def _steps_until(self, now: float) -> int:
        """How many steps of the stretch have ended when the one ends that runs now: none if that was taken ahead."""
        if now <= self._start:
            return 0
        elapsed, first, read = now - self._start, self._first, self._read
        if read:
            linear = first - read / 2
            guess = (math.sqrt(linear * linear + 2 * read * elapsed) - linear) / read
        else:
            guess = elapsed / first
        num_steps = max(1, min(int(guess), self._stretch))
        while num_steps < self._stretch and self._start + self._seconds(num_steps) < now:
            num_steps += 1
        while num_steps > 1 and self._start + self._seconds(num_steps - 1) >= now:
            num_steps -= 1
        return num_steps

    def drop(self, now: float) -> list[Job]:
        """Stop at once."""
        if self._ahead and now <= self._start:
            begun, busy_s = self._ahead
            self.busy_s = busy_s + (now - begun)
            for *_, job in self._running:
                if job.first_token == self._start:
                    job.first_token = None
        elif self._stretch:
            self.busy_s += now - self._start
        jobs = sorted([*(job for *_, job in self._running), *self._partial, *self._waiting], key=lambda job: job.number)
        self._running.clear()
        self._partial.clear()
        self._waiting.clear()
        self._num_held = self._step = self._stretch = 0
        self._working, self._ahead = False, None
        return jobs


@dataclass(frozen=True)
class ExponentialServer:
    """One request at a time, for as long as chance says, whatever it asks for: the server of queueing theory.

    With requests that arrive as a Poisson process and are spread by chance, each replica is an M/M/1 queue, whose mean
    time from arrival to end is ``1 / (1 / mean_s - rate)``: Kleinrock 1975, "Queueing Systems", volume 1, chapter 3.

    Args:
        mean_s: seconds per request on average.

    Raises:
        ValueError: a time that is not above 0.
    """

    mean_s: float

    def __post_init__(self) -> None:
        """Refuse a server that needs no time."""
        if not self.mean_s > 0:
            raise ValueError(f"mean_s is {self.mean_s!r}: give a number above 0")

    def line(self, desk: Desk, rng: random.Random) -> Line:
        """Make the jobs of one replica."""
        return _Clerk(self.mean_s, desk, rng)


class _Clerk:
    """Jobs of one replica that are served one by one."""

    __slots__ = ("_desk", "_jobs", "_mean_s", "_rng", "_serving", "_start", "busy_s")

    def __init__(self, mean_s: float, desk: Desk, rng: random.Random) -> None:
        self._mean_s, self._desk, self._rng = mean_s, desk, rng
        self._jobs: deque[Job] = deque()
        self._serving = False  # the first of them
        self._start = self.busy_s = 0.0

    def add(self, job: Job, now: float) -> float | None:
        """Take a job."""
        self._jobs.append(job)
        return now if len(self._jobs) == 1 else None

    def fire(self, now: float) -> float | None:
        """End one, and begin the next."""
        if self._serving:
            self.busy_s += now - self._start
            self._serving = False
            job = self._jobs.popleft()
            if job.first_token is None:
                job.first_token = now
            self._desk.finish(job, now)
        if not self._jobs:
            return None
        self._desk.start(self._jobs[0], now)
        self._serving, self._start = True, now
        return now + self._rng.expovariate(1 / self._mean_s)

    def drop(self, now: float) -> list[Job]:
        """Stop at once."""
        if self._serving:
            self.busy_s += now - self._start
        jobs = sorted(self._jobs, key=lambda job: job.number)
        self._jobs.clear()
        self._serving = False
        return jobs
