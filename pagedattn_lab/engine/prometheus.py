"""Metrics as Prometheus reads them, under vLLM's names, so that dashboards made for vLLM show this engine (chapter 09).

Source: names, meanings and buckets are those of vLLM's ``vllm/v1/metrics/loggers.py`` and ``buckets.py``, release
0.33.0; left out is what this engine does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.engine.metrics import FinishedRequestStats, StepStats, kv_cache_usage, num_waiting_reqs

if TYPE_CHECKING:
    from pagedattn_lab.engine.scheduler import Scheduler
    from pagedattn_lab.kv_manager import KVCacheManager

LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
               640, 2560)  # fmt: skip
BETWEEN_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
PARAMS_N = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
FINISH_REASONS = ("stop", "length", "abort", "error")


class PrometheusStatLogger:
    """A logger for :class:`pagedattn_lab.engine.metrics.Metrics` that can be asked for Prometheus' text at any time.

    Args:
        model_name: label of every metric.
        scheduler: asked who runs and who waits, and for the blocks in use, whenever the text is.
        max_model_len: most tokens of a sequence; the largest bucket of token counts.
        engine: label of every metric; one process with one engine has number 0.

    Example:
        >>> from pagedattn_lab.engine.metrics import Metrics
        >>> from pagedattn_lab.request import Request
        >>> metrics, logger = Metrics(), PrometheusStatLogger("toy", scheduler=None, max_model_len=100)
        >>> metrics.loggers.append(logger)
        >>> request = Request("Ada", [5, 6, 7])
        >>> metrics.on_arrival(request, max_tokens=9); metrics.on_finished(request, "abort")
        >>> [line for line in logger.text().splitlines() if "success" in line and line.endswith(" 1.0")]
        ['vllm:request_success_total{engine="0",finished_reason="abort",model_name="toy"} 1.0']
    """

    def __init__(self, model_name: str, scheduler: Scheduler | None, max_model_len: int, engine: int = 0) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": str(engine)}
        tokens = _one_two_five(max_model_len)
        if scheduler is not None:
            self._gauge("num_requests_running", "Requests in batches of model execution.").set_function(
                lambda: len(scheduler.running)
            )
            self._gauge("num_requests_waiting", "Requests that wait to be processed.").set_function(
                lambda: num_waiting_reqs(scheduler)
            )
            self._gauge("kv_cache_usage_perc", "KV cache in use; 1 means 100 percent.").set_function(
                lambda: kv_cache_usage(scheduler.manager)
            )
            self._describe_cache(scheduler.manager, max_model_len, engine)
        self._of_steps = {
            "prefix_cache_queries": self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache."),
            "prefix_cache_hits": self._counter("prefix_cache_hits", "Tokens found in the prefix cache."),
            "external_prefix_cache_hits": self._counter(
                "external_prefix_cache_hits", "Tokens found in host memory and copied back."
            ),
            "num_preempted_reqs": self._counter("num_preemptions", "Preemptions so far."),
            "num_prompt_tokens": self._counter("prompt_tokens", "Tokens of prompts processed."),
            "num_generation_tokens": self._counter("generation_tokens", "Tokens generated."),
        }
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens per step.", STEP_TOKENS)
        self._first_token = self._histogram("time_to_first_token_seconds", "From arrival to first token.", FIRST_TOKEN)
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens.", BETWEEN_TOKENS)
        success = Counter(
            "vllm:request_success", "Finished requests.", [*self._labels, "finished_reason"], registry=self.registry
        )
        self._success = {reason: success.labels(**self._labels, finished_reason=reason) for reason in FINISH_REASONS}
        self._of_requests = {
            "num_prompt_tokens": self._histogram("request_prompt_tokens", "Tokens of a prompt.", tokens),
            "num_generation_tokens": self._histogram("request_generation_tokens", "Tokens of an output.", tokens),
            "max_tokens_param": self._histogram("request_params_max_tokens", "max_tokens of a request.", tokens),
            "n_param": self._histogram("request_params_n", "n of a request.", PARAMS_N),
            "num_preemptions": self._histogram("request_num_preemptions", "Preemptions of a request.", PREEMPTIONS),
            "tpot_s": self._histogram(
                "request_time_per_output_token_seconds", "Time per output token after the first.", BETWEEN_TOKENS
            ),
            "e2e_latency_s": self._histogram("e2e_request_latency_seconds", "From arrival to end.", LATENCY),
            "queued_time_s": self._histogram("request_queue_time_seconds", "Waiting to be scheduled.", LATENCY),
            "inference_time_s": self._histogram("request_inference_time_seconds", "Running.", LATENCY),
            "prefill_time_s": self._histogram("request_prefill_time_seconds", "Computing the prompt.", LATENCY),
            "decode_time_s": self._histogram("request_decode_time_seconds", "From first to last token.", LATENCY),
        }

    def __call__(self, stats: StepStats | FinishedRequestStats) -> None:
        """Count a step or a finished request."""
        if isinstance(stats, StepStats):
            for name, counter in self._of_steps.items():
                counter.inc(getattr(stats, name))
            self._step_tokens.observe(stats.num_scheduled_tokens)
            for seconds in stats.time_to_first_tokens_s:
                self._first_token.observe(seconds)
            for seconds in stats.inter_token_latencies_s:
                self._between.observe(seconds)
            return
        self._success[stats.finish_reason].inc()
        for name, histogram in self._of_requests.items():
            value = getattr(stats, name)
            if value is not None:
                histogram.observe(value)

    def text(self) -> str:
        """Give all metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def _describe_cache(self, manager: KVCacheManager, max_model_len: int, engine: int) -> None:
        """Say what the cache is like: a gauge that is always 1, with the facts as its labels."""
        num_blocks, block_size = len(manager.block_pool.blocks), manager.block_pool.block_size
        concurrency = num_blocks / cdiv(max_model_len, block_size)
        facts = {
            "block_size": block_size,
            "num_gpu_blocks": num_blocks,
            "kv_cache_size_tokens": int(concurrency * max_model_len),
            "kv_cache_max_concurrency": concurrency,
            "enable_prefix_caching": manager.prefix_cache is not None,
            "engine": engine,
        }
        info = Gauge("vllm:cache_config_info", "The KV cache's configuration.", list(facts), registry=self.registry)
        info.labels(**facts).set(1)

    def _gauge(self, name: str, what: str) -> Gauge:
        return self._labelled(Gauge, name, what)

    def _counter(self, name: str, what: str) -> Counter:
        return self._labelled(Counter, name, what)

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> Histogram:
        return self._labelled(Histogram, name, what, buckets=buckets)

    def _labelled(self, kind: Any, name: str, what: str, **settings: Any) -> Any:
        metric = kind(f"vllm:{name}", what, list(self._labels), registry=self.registry, **settings)
        return metric.labels(**self._labels)


def _one_two_five(most: int) -> list[int]:
    """Buckets at 1, 2, 5 times the powers of 10, as far as ``most``.

    Example:
        >>> _one_two_five(100)
        [1, 2, 5, 10, 20, 50, 100]
    """
    return [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5) if digit * 10**power <= most]
