"""Predicted beside observed, and why the two can differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.vllm_check.server import SchedulerLimits, Server

Figures = Mapping[str, float | None]
"""Figures by name; ``None`` for what nobody knows."""

CAPACITY = {"num_blocks": "blocks", "kv_tokens": "tokens that fit", "max_concurrency": "requests of full length"}
REPLAY = {
    "prompt_tokens": "tokens in prompts",
    "generation_tokens": "tokens in outputs",
    "prefix_cache_queries": "tokens looked up",
    "prefix_cache_hits": "tokens found",
    "hit_rate": "hit rate",
    "num_preemptions": "preemptions",
}
"""What is compared, by the names of JSON, and as people read it."""


@dataclass(frozen=True)
class Check:
    """One server, and perhaps one workload that it was sent.

    Attributes:
        server: what it says of itself.
        limits: what its scheduler keeps to.
        workload: what was sent, in words and numbers; empty if nothing was.
        predicted: by this book.
        observed: by the server.
        unknown: what the server said that could not be read, and why something could not be predicted, a sentence each.
    """

    server: Server
    limits: SchedulerLimits
    workload: Mapping[str, Any]
    predicted: Figures
    observed: Figures
    unknown: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs, except where the server is: that is nobody else's business."""
        server, limits = self.server, self.limits
        return {
            "version": server.version,
            "model": server.model,
            "max_model_len": server.max_model_len,
            "block_size": server.block_size,
            "enable_prefix_caching": server.enable_prefix_caching,
            "limits": {name: getattr(limits, name) for name in limits.sources},
            "limit_sources": dict(limits.sources),
            "workload": dict(self.workload),
            "predicted": dict(self.predicted),
            "observed": dict(self.observed),
            "reasons": list(self.reasons()),
        }

    def reasons(self) -> Iterator[str]:
        """Say what could not be predicted, what was assumed, and if figures differ, why: a sentence each."""
        yield from self.unknown
        if not self.workload:
            return
        predicted, observed, limits = self.predicted, self.observed, self.limits
        assumed = [
            f"{name} {getattr(limits, name):,}" for name, source in limits.sources.items() if source == "default"
        ]
        if assumed:
            yield (
                f"Nobody said what {' and '.join(assumed)} really {'is' if len(assumed) == 1 else 'are'}, so defaults "
                "were taken: give those that the server was started with."
            )
        if all(observed[name] == predicted.get(name, observed[name]) for name in REPLAY):
            return
        others = (observed["prompt_tokens"] or 0) - (predicted["prompt_tokens"] or 0)
        if others:
            yield (
                f"The server counted {others:+,.0f} tokens of prompts beside those sent: somebody else used it, or its "
                "counters lag."
            )
        elif (observed["prefix_cache_queries"] or 0) > (predicted.get("prefix_cache_queries") or 0) > 0:
            yield (
                "The server looked up more tokens than it was sent: releases before vLLM's pull request 48860 count a "
                "request that waits each time it is tried."
            )
        if self.server.version is not None and limits.async_scheduling is not False:
            yield (
                "With asynchronous scheduling, vLLM's default on GPUs, a step is planned before the one before it has "
                "ended, so blocks come back a step later than predicted."
            )
        yield (
            "Requests come when they come: predicted is that the first step has the first request alone, that all "
            "others of the first clients are in the second, and that one that follows an answer misses a step. One "
            "preempted earlier or later moves what comes after it."
        )


def comparison(predicted: Figures, observed: Figures) -> Iterator[tuple[str, str, str, str]]:
    """Each figure that was observed: its name, predicted, observed, and by how much the second exceeds the first.

    Example:
        >>> list(comparison({"num_blocks": 97}, {"num_blocks": 97, "num_preemptions": 4}))
        [('blocks', '97', '97', '0'), ('preemptions', 'unknown', '4', '')]
    """
    for name, label in (CAPACITY | REPLAY).items():
        if name in observed:
            figures = predicted.get(name), observed[name]
            yield label, _text(name, figures[0]), _text(name, figures[1]), _difference(name, *figures)


def hit_rate(figures: Figures) -> float:
    """Tokens found over tokens looked up; 0 if there were none.

    Example:
        >>> hit_rate({"prefix_cache_queries": 40, "prefix_cache_hits": 32})
        0.8
    """
    queries = figures["prefix_cache_queries"]
    return (figures["prefix_cache_hits"] or 0) / queries if queries else 0.0


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    if name == "hit_rate":
        return f"{value:.1%}"
    return f"{value:.2f}" if name == "max_concurrency" else f"{value:,.0f}"


def _difference(name: str, predicted: float | None, observed: float | None) -> str:
    """By how much: in percent of what was predicted, or in points of a rate.

    Example:
        >>> _difference("num_preemptions", 40, 42), _difference("hit_rate", 0.5, 0.502), _difference("kv_tokens", 9, 9)
        ('+5.0 %', '+0.2 points', '0')
    """
    if predicted is None or observed is None:
        return ""
    if predicted == observed:
        return "0"
    if name == "hit_rate":
        return f"{100 * (observed - predicted):+.1f} points"
    return f"{100 * (observed / predicted - 1):+.1f} %" if predicted else f"{observed:+,.0f}"
