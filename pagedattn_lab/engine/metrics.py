"""What a step and a request have cost: counts, waiting, first token, time per token (chapter 09).

The engine tells :class:`Metrics` what happens. It keeps totals, and hands every step and every finished request
to whoever listens: a list, a file of JSON lines, Prometheus (:mod:`pagedattn_lab.engine.prometheus`), a display
(:mod:`pagedattn_lab.engine.progress`).

Source: vLLM's ``vllm/v1/metrics/stats.py``, release 0.33.0, for the names and for where each interval begins and ends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TextIO

from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.prefix_cache import PrefixCacheStats
from pagedattn_lab.request import Request

if TYPE_CHECKING:
    from pagedattn_lab.engine.scheduler import Scheduler
    from pagedattn_lab.engine.scheduler_output import SchedulerOutput


@dataclass(frozen=True)
class StepStats:
    """One step (vLLM: ``SchedulerStats`` and ``IterationStats``), as things stand when it has been carried out.

    Attributes:
        step: how many came before.
        time_s: when it ended, in seconds since the metrics were made.
        num_running_reqs: requests that hold blocks and go on.
        num_waiting_reqs: requests that wait for their turn, preempted ones among them.
        kv_cache_usage: share of the blocks that requests hold, from 0 to 1.
        num_scheduled_tokens: tokens computed in the step, of prompts and of outputs.
        num_prompt_tokens: tokens of the prompts that were through in this step.
        num_generation_tokens: tokens chosen.
        num_preempted_reqs: requests that lost their blocks.
        prefix_cache_queries: tokens of the requests that were looked up.
        prefix_cache_hits: how many of these were found in blocks of the device.
        external_prefix_cache_hits: how many were found in host memory and copied back.
        time_to_first_tokens_s: of each request that got its first token, seconds since it arrived.
        inter_token_latencies_s: of each that got another one, seconds since the one before.
    """

    step: int
    time_s: float
    num_running_reqs: int
    num_waiting_reqs: int
    kv_cache_usage: float
    num_scheduled_tokens: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_preempted_reqs: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    external_prefix_cache_hits: int
    time_to_first_tokens_s: tuple[float, ...]
    inter_token_latencies_s: tuple[float, ...]


@dataclass(frozen=True)
class FinishedRequestStats:
    """One request, when it has ended. Times are in seconds; one that was not reached is ``None``.

    Attributes:
        request_id: its name.
        finish_reason: ``"stop"``, ``"length"``, ``"abort"`` or ``"error"``.
        num_prompt_tokens: tokens of the prompt.
        num_generation_tokens: tokens of the output.
        num_preemptions: how often it lost its blocks.
        max_tokens_param: how many tokens its output could have had; ``None`` if nobody said.
        n_param: how many outputs its client asked for.
        e2e_latency_s: from arrival to end.
        queued_time_s: from arrival to its first step.
        ttft_s: from arrival to its first token.
        prefill_time_s: from its first step to its first token.
        decode_time_s: from its first token to its last one.
        inference_time_s: from its first step to its last token.
        tpot_s: time per output token after the first; ``None`` of fewer than two.
    """

    request_id: str
    finish_reason: str
    num_prompt_tokens: int
    num_generation_tokens: int
    num_preemptions: int
    max_tokens_param: int | None
    n_param: int
    e2e_latency_s: float
    queued_time_s: float | None
    ttft_s: float | None
    prefill_time_s: float | None
    decode_time_s: float | None
    inference_time_s: float | None
    tpot_s: float | None


StatLogger = Callable[[StepStats | FinishedRequestStats], None]
"""Whoever is told of every step and of every finished request, on the thread that runs the engine."""


@dataclass
class Totals:
    """Sums since the metrics were made; the first and the last moment at which anything happened."""

    num_steps: int = 0
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_preempted_reqs: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    external_prefix_cache_hits: int = 0
    num_first_tokens: int = 0
    num_decode_tokens: int = 0
    ttft_s: float = 0.0
    decode_time_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0


@dataclass
class _RequestState:
    """When what has happened to a request that has not ended (vLLM: ``RequestStateStats``)."""

    arrival: float
    max_tokens: int | None
    n: int
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass
class Metrics:
    """Counts and times of one engine. The engine calls the three methods; everyone else reads, or adds a logger.

    Args:
        clock: seconds from any moment on; it never goes back.

    Attributes:
        loggers: told of every step and of every finished request.
        totals: sums over both.

    Example:
        >>> seconds = iter(range(10))
        >>> metrics, seen = Metrics(clock=lambda: float(next(seconds))), []
        >>> metrics.loggers.append(seen.append)
        >>> request = Request("Ada", [5, 6, 7])
        >>> metrics.on_arrival(request, max_tokens=1)
        >>> request.append_token(8)
        >>> metrics.on_finished(request, "length")
        >>> seen[0].e2e_latency_s, seen[0].num_generation_tokens, metrics.totals.num_requests
        (1.0, 1, 1)
    """

    clock: Callable[[], float] = time.monotonic
    loggers: list[StatLogger] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._states: dict[str, _RequestState] = {}
        self._seen = PrefixCacheStats(), (0, 0, 0)  # of the manager, with what it had counted when the last step ended

    def on_arrival(
        self, request: Request, *, max_tokens: int | None = None, n: int = 1, arrival_time: float | None = None
    ) -> None:
        """A request has been taken in.

        Args:
            request: one sequence; a client that asks for n outputs sends n of them.
            max_tokens: how many tokens its output may have.
            n: how many outputs the client asked for.
            arrival_time: by :attr:`clock`; now by default.
        """
        now = self.clock() if arrival_time is None else arrival_time
        self._states[request.request_id] = _RequestState(now, max_tokens, n)
        if self.totals.first_s is None:
            self.totals.first_s = now - self._start

    def on_step(
        self, output: SchedulerOutput, scheduler: Scheduler, sampled: Sequence[Request], started: float
    ) -> None:
        """A step has been carried out; those that end with it have given their blocks back, and are not finished yet.

        Args:
            output: what was scheduled.
            scheduler: as it is now.
            sampled: the requests that got a token.
            started: when the step began, by :attr:`clock`.
        """
        now, states = self.clock(), self._states
        for request in output.requests:
            state = states[request.request_id]
            if state.scheduled is None:
                state.scheduled = started
        first, latencies, num_prompt_tokens = [], [], 0
        for request in sampled:
            state = states[request.request_id]
            if state.first_token is None:
                state.first_token = now
                first.append(now - state.arrival)
                num_prompt_tokens += request.num_prompt_tokens
            else:
                assert state.last_token is not None
                latencies.append(now - state.last_token)
            state.last_token = now
        queries, hits, external_hits = self._look_ups(scheduler.manager)
        totals = self.totals
        stats = StepStats(
            step=totals.num_steps,
            time_s=now - self._start,
            num_running_reqs=len(scheduler.running),
            num_waiting_reqs=num_waiting_reqs(scheduler),
            kv_cache_usage=kv_cache_usage(scheduler.manager),
            num_scheduled_tokens=output.total_num_scheduled_tokens,
            num_prompt_tokens=num_prompt_tokens,
            num_generation_tokens=len(sampled),
            num_preempted_reqs=len(output.preempted),
            prefix_cache_queries=queries,
            prefix_cache_hits=hits,
            external_prefix_cache_hits=external_hits,
            time_to_first_tokens_s=tuple(first),
            inter_token_latencies_s=tuple(latencies),
        )
        totals.num_steps += 1
        totals.num_prompt_tokens += num_prompt_tokens
        totals.num_generation_tokens += len(sampled)
        totals.num_preempted_reqs += stats.num_preempted_reqs
        totals.prefix_cache_queries += queries
        totals.prefix_cache_hits += hits
        totals.external_prefix_cache_hits += external_hits
        totals.num_first_tokens += len(first)
        totals.ttft_s += sum(first)
        totals.num_decode_tokens += len(latencies)
        totals.decode_time_s += sum(latencies)
        totals.last_s = stats.time_s
        self._tell(stats)

    def on_finished(self, request: Request, finish_reason: str) -> None:
        """A request has ended, or was given up: ``"stop"``, ``"length"``, ``"abort"`` or ``"error"``."""
        state = self._states.pop(request.request_id)
        now, num_tokens = self.clock(), request.num_output_tokens
        decode_time = _between(state.first_token, state.last_token)
        self.totals.num_requests += 1
        self.totals.last_s = now - self._start
        self._tell(
            FinishedRequestStats(
                request_id=request.request_id,
                finish_reason=finish_reason,
                num_prompt_tokens=request.num_prompt_tokens,
                num_generation_tokens=num_tokens,
                num_preemptions=request.num_preemptions,
                max_tokens_param=state.max_tokens,
                n_param=state.n,
                e2e_latency_s=now - state.arrival,
                queued_time_s=_between(state.arrival, state.scheduled),
                ttft_s=_between(state.arrival, state.first_token),
                prefill_time_s=_between(state.scheduled, state.first_token),
                decode_time_s=decode_time,
                inference_time_s=_between(state.scheduled, state.last_token),
                tpot_s=None if decode_time is None or num_tokens < 2 else decode_time / (num_tokens - 1),
            )
        )

    def summary(self) -> dict[str, float | int | None]:
        """Give the figures that serving engines are compared by, from the first arrival to the last event.

        Returns:
            ``output_tokens_per_s``, ``total_tokens_per_s`` (with prompts), ``ttft_s`` and ``tpot_s`` (means over
            first and over later tokens), ``preemptions``, ``hit_rate`` (tokens found over tokens looked up); what
            cannot be said yet is ``None``.
        """
        totals = self.totals
        seconds = totals.last_s - (totals.first_s or 0.0)

        def over(amount: float, whole: float) -> float | None:
            return amount / whole if whole > 0 else None

        return {
            "output_tokens_per_s": over(totals.num_generation_tokens, seconds),
            "total_tokens_per_s": over(totals.num_generation_tokens + totals.num_prompt_tokens, seconds),
            "ttft_s": over(totals.ttft_s, totals.num_first_tokens),
            "tpot_s": over(totals.decode_time_s, totals.num_decode_tokens),
            "preemptions": totals.num_preempted_reqs,
            "hit_rate": over(totals.prefix_cache_hits + totals.external_prefix_cache_hits, totals.prefix_cache_queries),
        }

    def _look_ups(self, manager: KVCacheManager | GroupedKVCacheManager) -> tuple[int, int, int]:
        """Tokens looked up, found, and found on the host, since the last call; a cache that was reset starts again."""
        stats = manager.stats
        queries, hits, external_hits = stats.queries, stats.hits, stats.external_hits
        counted, old = self._seen
        if stats is not counted:  # the cache was reset
            old = 0, 0, 0
        self._seen = stats, (queries, hits, external_hits)
        return queries - old[0], hits - old[1], external_hits - old[2]

    def _tell(self, stats: StepStats | FinishedRequestStats) -> None:
        for logger in self.loggers:
            logger(stats)


def kv_cache_usage(manager: KVCacheManager | GroupedKVCacheManager) -> float:
    """Give the share of the blocks that requests hold, the null block not counted.

    Example:
        >>> manager = KVCacheManager(num_blocks=5, block_size=4)
        >>> _ = manager.allocate_slots(Request("Ada", range(3)), 3)
        >>> kv_cache_usage(manager)
        0.25
    """
    pool = manager.block_pool
    return pool.num_used_blocks / (pool.num_used_blocks + pool.num_free_blocks)


def num_waiting_reqs(scheduler: Scheduler) -> int:
    """Count the requests that wait for blocks, those whose own are on the host among them."""
    return len(scheduler.waiting) + len(scheduler.swapped)


def json_lines(file: TextIO) -> StatLogger:
    """Make a logger that writes each step and each finished request as one line of JSON, with its ``"kind"`` first.

    Example:
        >>> import io
        >>> file, metrics = io.StringIO(), Metrics()
        >>> metrics.loggers.append(json_lines(file))
        >>> request = Request("Ada", [5, 6, 7])
        >>> metrics.on_arrival(request); metrics.on_finished(request, "abort")
        >>> line = json.loads(file.getvalue())
        >>> line["kind"], line["request_id"], line["finish_reason"], line["ttft_s"]
        ('request', 'Ada', 'abort', None)
    """

    def write(stats: StepStats | FinishedRequestStats) -> None:
        kind = "step" if isinstance(stats, StepStats) else "request"
        file.write(json.dumps({"kind": kind} | asdict(stats), allow_nan=False) + "\n")

    return write


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
