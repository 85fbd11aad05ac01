"""What a fleet was like: figures of all replicas, and of each (chapter 11)."""

from __future__ import annotations

import math
from dataclasses import dataclass

GROWTH = 1.01
"""How much wider each bucket of a histogram is than the one before it."""


class LogHistogram:
    """Durations, counted in buckets whose bounds grow by 1 %, so that memory does not grow with their number.

    The mean is exact. A quantile is the middle of its bucket, within half a percent of the duration it stands for.

    Example:
        >>> histogram = LogHistogram()
        >>> for milliseconds in range(1, 1001):
        ...     histogram.add(milliseconds / 1000)
        >>> histogram.mean, abs(histogram.quantile(0.99) / 0.99 - 1) < 0.005
        (0.5005, True)
    """

    __slots__ = ("_counts", "_total", "count")

    def __init__(self) -> None:
        self.count, self._total = 0, 0.0
        self._counts: dict[int, int] = {}

    def add(self, seconds: float, *, _log: float = math.log(GROWTH)) -> None:
        """Count a duration of at least 0; all below a nanosecond are one bucket."""
        bucket = math.floor(math.log(seconds if seconds > 1e-9 else 1e-9) / _log)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._total += seconds
        self.count += 1

    @property
    def mean(self) -> float:
        """Of all durations; 0 if there are none."""
        return self._total / self.count if self.count else 0.0

    def quantile(self, level: float) -> float:
        """Find the shortest duration that so large a part is no longer than; 0 if there are none."""
        rank, seen = math.ceil(level * self.count), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return 2 * GROWTH ** (bucket + 1) / (1 + GROWTH)
        return 0.0


@dataclass
class ReplicaReport:
    """What one replica did.

    Attributes:
        num_requests: requests that it took to their end.
        prompt_tokens: tokens that it looked up.
        hit_tokens: those that it found.
        busy_s: seconds in which it worked.
        evictions: blocks that lost their contents to make room.
        most_load: most requests that waited and ran on it at once.
        num_failures: how often it failed.
    """

    num_requests: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    busy_s: float = 0.0
    evictions: int = 0
    most_load: int = 0
    num_failures: int = 0

    @property
    def hit_rate(self) -> float:
        """Tokens found over tokens looked for."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True)
class FleetReport:
    """What became of the requests.

    Each request ends once: ``num_requests`` is the sum of ``num_finished``, ``num_refused`` and ``num_lost``.

    Attributes:
        router: its name.
        num_replicas: how many.
        num_requests: requests that arrived.
        num_finished: those that got their last token.
        num_refused: those whose prompts have more blocks than a cache has. They go to no replica; their tokens count
            as looked for and not found.
        num_lost: those that had nowhere to go, for every replica had failed and none came back.
        num_sent_again: how often a request was sent again because its replica had failed.
        prompt_tokens: tokens looked for, by requests that were sent again more than once.
        hit_tokens: tokens found in full blocks.
        seconds: from the first arrival to the last token.
        ttft_mean_s: seconds from arrival to the first token, on average.
        ttft_p99_s: 99 % of the requests had their first token by then; within half a percent.
        latency_mean_s: seconds from arrival to the last token, on average.
        latency_p99_s: 99 % had their last token by then; within half a percent.
        replicas: what each of them did.
    """

    router: str
    num_replicas: int
    num_requests: int
    num_finished: int
    num_refused: int
    num_lost: int
    num_sent_again: int
    prompt_tokens: int
    hit_tokens: int
    seconds: float
    ttft_mean_s: float
    ttft_p99_s: float
    latency_mean_s: float
    latency_p99_s: float
    replicas: tuple[ReplicaReport, ...]

    @property
    def hit_rate(self) -> float:
        """Tokens found over tokens looked for."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def requests_per_s(self) -> float:
        """Requests finished per second."""
        return self.num_finished / self.seconds if self.seconds else 0.0

    @property
    def imbalance(self) -> float:
        """How long the busiest replica worked, over the mean of all; 1 if all work alike.

        A replica works as long as it has any request, so in a busy fleet this stays near 1, whoever has the most to do:
        see :attr:`computed_imbalance`.
        """
        return _most_over_mean([replica.busy_s for replica in self.replicas])

    @property
    def computed_imbalance(self) -> float:
        """Tokens of prompts that one replica had to compute, at most, over the mean of all; 1 if all have alike."""
        return _most_over_mean([replica.prompt_tokens - replica.hit_tokens for replica in self.replicas])

    @property
    def utilization(self) -> float:
        """Part of the time in which a replica works, on average."""
        return sum(replica.busy_s for replica in self.replicas) / (len(self.replicas) * self.seconds or 1.0)


def _most_over_mean(values: list[float] | list[int]) -> float:
    return max(values) * len(values) / sum(values) if any(values) else 1.0
