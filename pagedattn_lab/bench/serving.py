"""What serving engines are compared by: one load for all of them, and the figures of a run (chapter 09).

Source: the figures are those of vLLM's ``vllm bench serve``: throughput, time to first token, time per output token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from pagedattn_lab.workloads.lengths import lognormal

MEAN_LENGTHS = (165, 110)
"""Tokens in a prompt and in an output, on average over all that the load is drawn from."""

LONGEST = 512
"""Most tokens of a request's own, prompt and output together."""

SEED = 2
"""Of the lengths: 64 requests of this seed have 168 tokens in and 108 out on average."""


@dataclass(frozen=True)
class Load:
    """Requests that are all there from the beginning.

    Attributes:
        prompts: token ids of each.
        output_lens: tokens that each must generate, whatever they are.
    """

    prompts: tuple[tuple[int, ...], ...]
    output_lens: tuple[int, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens in all prompts."""
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        """Tokens in all outputs."""
        return sum(self.output_lens)


def make_load(
    num_requests: int, *, shared_prefix: int = 0, vocab_size: int = 49_152, most_output: int = LONGEST
) -> Load:
    """Draw requests of ragged length, the same every time.

    Which tokens a prompt has does not change what it costs, so they are drawn by chance.

    Args:
        num_requests: how many.
        shared_prefix: tokens that all prompts begin with, in front of their own.
        vocab_size: token ids are below.
        most_output: outputs are cut to this many tokens.

    Example:
        >>> load = make_load(64)
        >>> load.num_prompt_tokens, load.num_output_tokens, max(load.output_lens)
        (10751, 6924, 365)
    """
    rng = random.Random(f"bench engine {SEED}")
    # The first ids of a vocabulary are often special.
    prefix = tuple(rng.choices(range(100, vocab_size), k=shared_prefix))
    lengths = list(islice(lognormal(MEAN_LENGTHS, longest=LONGEST, seed=SEED), num_requests))
    return Load(
        tuple(prefix + tuple(rng.choices(range(100, vocab_size), k=prompt_len)) for prompt_len, _ in lengths),
        tuple(min(output_len, most_output) for _, output_len in lengths),
    )


@dataclass(frozen=True)
class Served:
    """One run of a load.

    Attributes:
        seconds: from the first request's arrival to the last one's end, by the clock on the wall.
        cpu_seconds: CPU time of the engine's process meanwhile; where it is much less, something else was in the way.
        first_token_s: of each request, from its arrival to its first token.
        last_token_s: to its last one.
        preemptions: how often a request lost its blocks; ``None`` if the engine does not say.
        hit_rate: share of the prompts' tokens that a prefix cache gave; ``None`` if the engine does not say.
    """

    seconds: float
    cpu_seconds: float
    first_token_s: Sequence[float]
    last_token_s: Sequence[float]
    preemptions: int | None = None
    hit_rate: float | None = None

    def figures(self, load: Load) -> dict[str, Any]:
        """Give what engines are compared by.

        Returns:
            ``seconds``, ``cpu_seconds``, ``output_tokens_per_s``, ``total_tokens_per_s`` (prompts included),
            ``ttft_s`` (median over requests of the time to the first token), ``tpot_s`` (median of the time per output
            token after the first; ``None`` if there is none), ``preemptions`` and ``hit_rate``.

        Example:
            >>> served = Served(2.0, 1.9, [0.5, 1.0], [1.5, 2.0])
            >>> figures = served.figures(Load(((7,), (8, 9)), (3, 5)))
            >>> figures["output_tokens_per_s"], figures["total_tokens_per_s"], figures["ttft_s"], figures["tpot_s"]
            (4.0, 5.5, 0.75, 0.375)
        """
        intervals = [
            (last - first) / (output_len - 1)
            for first, last, output_len in zip(self.first_token_s, self.last_token_s, load.output_lens, strict=True)
            if output_len > 1
        ]
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "output_tokens_per_s": load.num_output_tokens / self.seconds,
            "total_tokens_per_s": (load.num_prompt_tokens + load.num_output_tokens) / self.seconds,
            "ttft_s": median(self.first_token_s),
            "tpot_s": median(intervals) if intervals else None,
            "preemptions": self.preemptions,
            "hit_rate": self.hit_rate,
        }


Serve = Callable[[Load], Served]
"""An engine, as a comparison sees it: it serves a load to its end, with a prefix cache that was empty before."""
