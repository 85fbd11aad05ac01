"""Metrics of an engine: every interval where it should begin and end, and what others are told of it."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from pagedattn_lab.engine.metrics import FinishedRequestStats, Metrics, StepStats, json_lines
from pagedattn_lab.engine.progress import ProgressDisplay
from pagedattn_lab.engine.prometheus import PrometheusStatLogger
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request, RequestStatus

BLOCK_SIZE = 4


class Clock:
    """A second hand that only the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Toy:
    """An engine without a model: every token takes a second, and is a 7."""

    def __init__(self, num_blocks: int = 11, **options: object) -> None:
        self.clock = Clock()
        self.metrics = Metrics(self.clock)
        self.seen: list[StepStats | FinishedRequestStats] = []
        self.metrics.loggers.append(self.seen.append)
        self.scheduler = Scheduler(KVCacheManager(num_blocks, BLOCK_SIZE), **options)

    def add(self, name: str, num_tokens: int, max_tokens: int, first: int = 0) -> Request:
        request = Request(name, range(first, first + num_tokens), max_tokens=max_tokens)
        self.scheduler.add_request(request)
        self.metrics.on_arrival(request, max_tokens=max_tokens)
        return request

    def step(self) -> None:
        started = self.clock()
        output = self.scheduler.schedule()
        self.clock.now += output.total_num_scheduled_tokens
        self.scheduler.update(output)
        sampled = [request for request in output.requests if request.num_computed_tokens == request.num_tokens]
        for request in sampled:
            request.append_token(7)
        ends = [request for request in sampled if request.num_output_tokens == request.max_tokens]
        for request in ends:
            self.scheduler.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)
        self.metrics.on_step(output, self.scheduler, sampled, started)
        for request in ends:
            self.metrics.on_finished(request, "length")

    def run(self) -> None:
        while self.scheduler.has_unfinished:
            self.step()

    @property
    def steps(self) -> list[StepStats]:
        return [stats for stats in self.seen if isinstance(stats, StepStats)]

    @property
    def finished(self) -> dict[str, FinishedRequestStats]:
        return {stats.request_id: stats for stats in self.seen if isinstance(stats, FinishedRequestStats)}


def test_every_interval_of_a_request() -> None:
    """Catches an interval that begins or ends at another event: Bo waits for Ada's first step, then for a chunk."""
    toy = Toy(max_num_batched_tokens=6)
    toy.add("Ada", 6, 3)
    toy.clock.now += 2
    toy.add("Bo", 8, 2, first=50)
    toy.step()  # 102 to 108: Ada's prompt
    toy.clock.now += 10
    toy.step()  # 118 to 124: Ada 1, Bo 5
    toy.step()  # 124 to 128: Ada 1 and done, Bo 3
    toy.step()  # 128 to 129: Bo 1 and done
    ada, bo = toy.finished["Ada"], toy.finished["Bo"]
    assert (ada.queued_time_s, ada.ttft_s, ada.prefill_time_s) == (2, 8, 6)
    assert (ada.decode_time_s, ada.tpot_s, ada.inference_time_s, ada.e2e_latency_s) == (20, 10, 26, 28)
    assert (bo.queued_time_s, bo.ttft_s, bo.prefill_time_s) == (16, 26, 10)
    assert (bo.decode_time_s, bo.tpot_s, bo.inference_time_s, bo.e2e_latency_s) == (1, 1, 11, 27)
    assert (bo.num_prompt_tokens, bo.num_generation_tokens, bo.max_tokens_param, bo.n_param) == (8, 2, 2, 1)
    assert [step.time_to_first_tokens_s for step in toy.steps] == [(8,), (), (26,), ()]
    assert [step.inter_token_latencies_s for step in toy.steps] == [(), (16,), (4,), (1,)]
    assert [step.num_prompt_tokens for step in toy.steps] == [6, 0, 8, 0]
    assert [step.num_generation_tokens for step in toy.steps] == [1, 1, 2, 1]
    assert [step.num_scheduled_tokens for step in toy.steps] == [6, 6, 4, 1]
    assert [step.time_s for step in toy.steps] == [8, 24, 28, 29]


def test_who_runs_waits_and_holds_blocks() -> None:
    """Catches counts of another moment than the end of the step, and usage that counts the null block."""
    toy = Toy(num_blocks=11, max_num_seqs=1)
    toy.add("Ada", 9, 2)
    toy.add("Bo", 3, 1, first=50)
    toy.run()
    assert [(step.num_running_reqs, step.num_waiting_reqs) for step in toy.steps] == [(1, 1), (0, 1), (0, 0)]
    assert [step.kv_cache_usage for step in toy.steps] == [0.3, 0, 0]


def test_preemptions_and_hits() -> None:
    """Catches preemptions or hits that are counted twice, or of every step so far instead of this one."""
    toy = Toy(num_blocks=7)
    toy.add("Ada", 8, 9)
    toy.add("Bo", 8, 9, first=50)
    toy.run()
    preempted = sum(step.num_preempted_reqs for step in toy.steps)
    assert preempted == toy.finished["Bo"].num_preemptions >= 1 and toy.finished["Ada"].num_preemptions == 0
    stats = toy.scheduler.manager.stats
    before = stats.queries, stats.hits
    assert sum(step.prefix_cache_queries for step in toy.steps) == stats.queries == 16  # of Bo the first time only
    toy.add("Cleo", 8, 1)
    toy.step()
    assert toy.steps[-1].prefix_cache_queries == 8 and toy.steps[-1].prefix_cache_hits == stats.hits - before[1] == 4
    for name, num_tokens in (("Dora", 6), ("Ed", 7)):  # the second looks up more than had been counted
        assert toy.scheduler.manager.reset_prefix_cache()
        toy.add(name, num_tokens, 1)
        toy.step()
        assert (toy.steps[-1].prefix_cache_queries, toy.steps[-1].prefix_cache_hits) == (num_tokens, 0)
    summary = toy.metrics.summary()
    assert summary["preemptions"] == preempted
    assert summary["hit_rate"] == sum(step.prefix_cache_hits for step in toy.steps) / (before[0] + 21)


def test_summary() -> None:
    """Catches a rate over another time than from the first arrival on, and means over something else than tokens."""
    toy = Toy()
    assert set(toy.metrics.summary().values()) == {None, 0}
    toy.clock.now += 50  # nobody is there yet
    toy.add("Ada", 6, 3)
    toy.run()  # 6 seconds to the first token, then one each
    assert toy.metrics.summary() == {
        "output_tokens_per_s": 3 / 8, "total_tokens_per_s": 9 / 8, "ttft_s": 6, "tpot_s": 1, "preemptions": 0,
        "hit_rate": 0,
    }  # fmt: skip


def test_what_is_given_up_has_no_times_that_it_did_not_reach() -> None:
    """Catches an abort of a request that never ran, which must neither fail nor invent a first token."""
    toy = Toy(max_num_seqs=1)
    ada, bo = toy.add("Ada", 6, 3), toy.add("Bo", 6, 3)
    toy.step()
    for request in (ada, bo):
        toy.scheduler.finish(request, RequestStatus.FINISHED_ABORTED)
        toy.metrics.on_finished(request, "abort")
    assert (toy.finished["Ada"].ttft_s, toy.finished["Ada"].tpot_s) == (6, None)
    assert toy.finished["Bo"].queued_time_s is None and toy.finished["Bo"].ttft_s is None
    assert toy.finished["Bo"].e2e_latency_s == 6


def test_json_lines() -> None:
    """Catches a line that a strict reader of JSON refuses, or an event that is not written."""
    toy, file = Toy(), io.StringIO()
    toy.metrics.loggers.append(json_lines(file))
    toy.add("Ada", 6, 2)
    toy.run()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "request"]
    assert lines[0]["time_to_first_tokens_s"] == [6] and lines[2]["tpot_s"] == 1


# Of vLLM 0.33.0, as its /metrics shows them; those of features that this engine does not have are left out.
GAUGES = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"}
COUNTERS = {
    "prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total",
    "generation_tokens_total", "request_success_total", "external_prefix_cache_hits_total",
}  # fmt: skip
HISTOGRAMS = {
    "iteration_tokens_total", "time_to_first_token_seconds", "inter_token_latency_seconds", "request_prompt_tokens",
    "request_generation_tokens", "request_params_max_tokens", "request_params_n", "request_num_preemptions",
    "request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
    "request_inference_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
}  # fmt: skip
SAMPLE = re.compile(r"^(vllm:\w+)\{(.*)\} (\S+)$")


def samples(text: str) -> dict[tuple[str, str], float]:
    found = [SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#")]
    return {(match[1], match[2]): float(match[3]) for match in found if match}


def test_prometheus_has_vllms_names_and_values() -> None:
    """Catches a metric that a dashboard for vLLM would not find, and one that counts something else."""
    toy = Toy(num_blocks=11, max_num_seqs=1)
    logger = PrometheusStatLogger("toy", toy.scheduler, 100)
    toy.metrics.loggers.append(logger)
    toy.add("Ada", 6, 3)
    toy.add("Bo", 3, 1, first=50)
    toy.step()
    toy.step()
    label = 'engine="0",model_name="toy"'
    now = samples(logger.text())
    assert now["vllm:num_requests_running", label] == 1 and now["vllm:num_requests_waiting", label] == 1
    assert now["vllm:kv_cache_usage_perc", label] == 0.2
    toy.run()
    end = samples(logger.text())
    names = {name for name, _ in end} - {name for name, _ in end if name.endswith("_created")}
    parts = {f"{name}{part}" for name in HISTOGRAMS for part in ("_bucket", "_count", "_sum")}
    assert names == {f"vllm:{name}" for name in GAUGES | COUNTERS | parts}
    facts = (
        'block_size="4",enable_prefix_caching="True",engine="0",kv_cache_max_concurrency="0.44",'
        'kv_cache_size_tokens="44",num_gpu_blocks="11"'
    )
    assert end.pop(("vllm:cache_config_info", facts)) == 1
    assert all('model_name="toy"' in labels and 'engine="0"' in labels for _, labels in end)
    expected = {
        "num_requests_running": 0, "num_requests_waiting": 0, "kv_cache_usage_perc": 0, "prompt_tokens_total": 9,
        "generation_tokens_total": 4, "prefix_cache_queries_total": 9, "prefix_cache_hits_total": 0,
        "time_to_first_token_seconds_sum": 6 + 11, "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_sum": 2, "request_prompt_tokens_sum": 9, "iteration_tokens_total_sum": 11,
        "e2e_request_latency_seconds_sum": 8 + 11, "request_queue_time_seconds_sum": 8,
        "request_time_per_output_token_seconds_count": 1, "request_params_max_tokens_sum": 4,
        "num_preemptions_total": 0, "external_prefix_cache_hits_total": 0,
    }  # fmt: skip
    assert {name: end[f"vllm:{name}", label] for name in expected} == expected
    assert end["vllm:request_success_total", 'engine="0",finished_reason="length",model_name="toy"'] == 2
    assert end["vllm:time_to_first_token_seconds_bucket", 'engine="0",le="7.5",model_name="toy"'] == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(is_terminal: bool) -> None:
    """Catches a display that lags, stays in the list of loggers, or writes into a file."""
    toy = Toy(max_num_seqs=1)
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
    before = list(toy.metrics.loggers)
    toy.add("Ada", 6, 3)
    toy.add("Bo", 3, 1, first=50)
    with pytest.raises(KeyboardInterrupt), ProgressDisplay(toy.metrics, 2, console):
        toy.run()
        raise KeyboardInterrupt
    assert toy.metrics.loggers == before
    shown = console.file.getvalue()
    assert ("2/2" in shown and "0 run, 0 wait, 0% KV" in shown) if is_terminal else shown.strip() == ""
    assert max(map(len, re.sub(r"\033\[[\d;?]*[A-Za-z]", "", shown).splitlines()), default=0) <= 80
