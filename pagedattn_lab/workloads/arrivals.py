"""When requests arrive, and which of them a server takes (chapter 02)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class TraceRequest(NamedTuple):
    """One request as a trace tells it.

    Attributes:
        arrival: seconds after the first request of the trace.
        prompt_len: tokens in the prompt.
        output_len: tokens that will be generated.
        hash_ids: one id per block of the prompt, equal where whole prefixes are; the last block, if it is not full, may
            have one or none. Empty if the trace has no ids.
    """

    arrival: float
    prompt_len: int
    output_len: int
    hash_ids: tuple[int, ...] = ()


def arrive(lengths: Iterable[tuple[int, int]], rate: float = math.inf, seed: int = 0) -> Iterator[TraceRequest]:
    """Let requests arrive: as a Poisson process, or, at an infinite rate, all at once.

    Args:
        lengths: pairs of prompt and output length.
        rate: requests per second on average.
        seed: same seed, same arrivals.

    Raises:
        ValueError: a rate that is not above 0.

    Example:
        >>> list(arrive([(4, 2), (3, 3)]))
        [TraceRequest(arrival=0.0, prompt_len=4, output_len=2, hash_ids=()), TraceRequest(arrival=0.0, prompt_len=3, output_len=3, hash_ids=())]
        >>> last = list(arrive([(4, 2)] * 10_000, rate=5.0))[-1]
        >>> round(10_000 / last.arrival)
        5
    """  # noqa: E501
    if not rate > 0:
        raise ValueError(f"a rate of {rate} requests per second: give one above 0, or infinity for all at once")
    return _arrive(lengths, rate, random.Random(f"arrivals {seed}"))


def _arrive(lengths: Iterable[tuple[int, int]], rate: float, rng: random.Random) -> Iterator[TraceRequest]:
    now = 0.0
    for prompt_len, output_len in lengths:
        yield TraceRequest(now, prompt_len, output_len)
        if rate < math.inf:
            now += rng.expovariate(rate)


class Fit:
    """Requests as a server takes them: too long a prompt is refused, an output ends at the model's maximum.

    Args:
        requests: what arrives.
        max_model_len: most tokens in prompt and output together.

    Attributes:
        refused: requests whose prompt leaves no room for an output, so far.
        cut: requests whose output was cut, so far.

    Raises:
        ValueError: ``max_model_len`` below 2.

    Example:
        >>> requests = Fit(arrive([(4, 2), (30, 1), (10, 30)]), max_model_len=16)
        >>> [(request.prompt_len, request.output_len) for request in requests], requests.refused, requests.cut
        ([(4, 2), (10, 6)], 1, 1)
    """

    def __init__(self, requests: Iterable[TraceRequest], max_model_len: int) -> None:
        if max_model_len < 2:
            raise ValueError(f"max_model_len is {max_model_len}: a prompt and an output need at least 2 tokens")
        self._requests, self._max_model_len = requests, max_model_len
        self.refused = self.cut = 0

    def __iter__(self) -> Iterator[TraceRequest]:
        for request in self._requests:
            room = self._max_model_len - request.prompt_len
            if room < 1:
                self.refused += 1
            elif request.output_len > room:
                self.cut += 1
                yield request._replace(output_len=room)
            else:
                yield request
