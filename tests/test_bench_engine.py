"""The comparison of engines serves what it says, in turns, and counts what was asked for."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pagedattn_lab import models
from pagedattn_lab.attention import cascade
from pagedattn_lab.bench import engine, peers
from pagedattn_lab.bench.serving import Load, Served, make_load
from pagedattn_lab.cli import main
from pagedattn_lab.engine.llm_engine import LLMEngine
from tests.helpers.draws import BENCH

pytestmark = pytest.mark.when_changed(*BENCH)

LOAD = Load(((7, 8, 9), (3,), (4, 5), (6, 7, 8, 9, 3)), (5, 2, 1, 3))


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


# --- the load -------------------------------------------------------------------------------------------------------


def test_load_is_ragged_and_always_the_same() -> None:
    """Catches a load that changes from run to run, or is not as long as the text says."""
    load = make_load(64)
    assert load == make_load(64)
    assert mean(map(len, load.prompts)) == pytest.approx(165, rel=0.03)
    assert mean(load.output_lens) == pytest.approx(110, rel=0.03)
    assert len({*map(len, load.prompts)}) > 40 and len(set(load.output_lens)) > 40
    assert len({prompt[0] for prompt in load.prompts}) > 60, "nobody shares a beginning"


def test_shared_prefix_comes_in_front_of_the_same_requests() -> None:
    """Catches a prefix that replaces tokens of the prompts, or is not shared, and outputs that change with it."""
    plain, shared = make_load(20), make_load(20, shared_prefix=100)
    assert len({prompt[:100] for prompt in shared.prompts}) == 1
    assert len({prompt[100] for prompt in shared.prompts}) > 15
    assert [len(prompt) - 100 for prompt in shared.prompts] == [len(prompt) for prompt in plain.prompts]
    assert shared.output_lens == plain.output_lens
    assert make_load(20, most_output=9).output_lens == tuple(min(9, length) for length in plain.output_lens)


# --- the comparison -------------------------------------------------------------------------------------------------


def test_engines_take_turns_and_warm_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a first run that is counted, an order in which one engine is always first, and a load that differs."""
    order: list[str] = []

    def named(name: str) -> Any:
        def serve(load: Load) -> Served:
            order.append(name if load is LOAD else f"{name} warms up")
            return Served(1.0, 1.0, [0.1] * len(load.prompts), [0.2] * len(load.prompts))

        return serve

    engine.compare({name: named(name) for name in "xyz"}, LOAD, 3, on_run=lambda: order.append("|"))
    assert order[:3] == [f"{name} warms up" for name in "xyz"]
    assert "".join(order[3:]) == "x|y|z|" + "y|z|x|" + "z|x|y|"


def test_ratios_are_those_of_one_repetition() -> None:
    """Catches a ratio of medians, which a busy minute moves; a ratio upside down; a mean for a median."""
    seconds = {"one": [9.0, 1.0, 2.0, 9.0], "other": [9.0, 4.0, 2.0, 90.0]}  # the first is warm-up

    def serve(name: str) -> Any:
        def run(load: Load) -> Served:
            now = seconds[name].pop(0)
            return Served(now, 2.0, [now / 2] * len(load.prompts), [now] * len(load.prompts), 3, None)

        return run

    report = engine.compare({name: serve(name) for name in seconds}, LOAD, 3)
    assert report["ratios"] == {"one / other": 4.0, "one / other_quartiles": pytest.approx([2.5, 7.0])}
    assert report["cpu_ratios"]["one / other"] == 1
    one = report["engines"]["one"]
    assert one["seconds"] == 2 and one["ttft_s"] == 1
    assert one["output_tokens_per_s"] == 11 / 2 and one["total_tokens_per_s"] == (11 + 11) / 2
    assert one["tpot_s"] == 0.5, "outputs of 5, 2 and 3 tokens take 1 s in 4, 1 and 2 intervals"
    assert one["preemptions"] == 3 and one["hit_rate"] is None


def test_one_repetition_gives_no_ratio() -> None:
    """Catches quartiles of a single value."""
    with pytest.raises(ValueError, match="at least 2 repetitions"):
        engine.compare({}, LOAD, 1)
    with pytest.raises(ValueError, match="no part 'speed': choose from systems, policies"):
        engine.measure(["speed"])


# --- peers ----------------------------------------------------------------------------------------------------------


def test_static_batches_run_as_long_as_their_longest(tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches padding on the right or without a mask, a batch that ends early or at an end token, and a request that
    has its last token when its batch has.
    """
    asked: list[tuple[list, list]] = []
    generate, forward, num_steps = type(tiny).generate, type(tiny).forward, 0

    def seen(self: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append((input_ids.tolist(), options["attention_mask"].tolist()))
        result = generate(self, input_ids, **options)
        assert result.shape[1] - input_ids.shape[1] == options["max_new_tokens"]
        return result

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(tiny), "generate", seen)
    monkeypatch.setattr(tiny, "forward", counted.__get__(tiny))
    served = peers.static_batches(tiny, LOAD, batch_size=3)
    assert asked == [
        ([[7, 8, 9], [0, 0, 3], [0, 4, 5]], [[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
        ([[6, 7, 8, 9, 3]], [[1] * 5]),
    ]
    assert num_steps == 5 + 3
    first, last = served.first_token_s, served.last_token_s
    assert first[0] == first[1] == first[2] == last[2] < last[1] < last[0] < first[3] < last[3] <= served.seconds


def test_continuous_batching_generates_what_was_asked_for(tiny: LlamaForCausalLM) -> None:
    """Catches outputs cut by an end token, times of other requests, and a model left with another attention."""
    before = tiny.config._attn_implementation
    served = peers.continuous_batching(tiny, LOAD, kv_tokens=256, max_requests=2)
    assert tiny.config._attn_implementation == before
    for first, last, output_len in zip(served.first_token_s, served.last_token_s, LOAD.output_lens, strict=True):
        assert 0 < first <= last <= served.seconds and (first == last) == (output_len == 1)
    assert served.first_token_s[3] > served.first_token_s[0], "two run at once"


FAKE = """
import sys

from timing import MINE

__version__ = "1.2.3"
print("vLLM has much to say")


class SamplingParams:
    def __init__(self, temperature, max_tokens, ignore_eos):
        assert temperature == 0 and ignore_eos
        self.max_tokens = max_tokens


class Thing:
    def __init__(self, **fields):
        self.__dict__ |= fields


class LLM:
    def __init__(self, **options):
        if options.get("model") == "none":
            sys.exit("there is no such model")
        self.llm_engine, self.requests, self.hits, self.queries = self, {}, 50, 100

    def reset_prefix_cache(self):
        print("reset")

    def get_metrics(self):
        yield Thing(name="vllm:num_preemptions", value=7)
        yield Thing(name="vllm:prefix_cache_hits", value=self.hits)
        yield Thing(name="vllm:prefix_cache_queries", value=self.queries)
        yield Thing(name="vllm:histogram", buckets={})

    def add_request(self, name, prompt, params):
        self.requests[name] = [0, params.max_tokens]
        self.queries += len(prompt["prompt_token_ids"])
        self.hits += 1

    def has_unfinished_requests(self):
        return bool(self.requests)

    def step(self):
        outputs = []
        for name, request in list(self.requests.items()):
            request[0] += 1
            finished = request[0] == request[1]
            if finished:
                del self.requests[name]
            outputs.append(Thing(request_id=name, finished=finished, outputs=[Thing(token_ids=[5] * request[0])]))
        return outputs
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that has something in the place of vLLM."""
    (tmp_path / "vllm.py").write_text(FAKE)
    (tmp_path / "timing.py").write_text("MINE = True")  # beside the worker lies a module of this name
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def test_vllm_answers_from_its_own_process(python: Path) -> None:
    """Catches what vLLM prints taken for an answer, counts of an earlier run, and a process that outlives its use."""
    with peers.vllm(python, model="some") as worker:
        assert worker.version == "1.2.3"
        for _ in range(2):
            served = worker.serve(LOAD)
            assert served.preemptions == 0 and served.hit_rate == 4 / 11
            first, last = served.first_token_s, served.last_token_s
            assert first[0] == first[3] == last[2] < last[1] < last[3] < last[0] <= served.seconds
        process = worker._process
        assert process.poll() is None
    assert process.poll() is not None


def test_vllm_that_fails_says_why(python: Path) -> None:
    """Catches a wait without end for an answer that will not come, and a reason that nobody sees."""
    with (
        pytest.raises(RuntimeError, match=r"vLLM ended with 1 and no answer.*\n(.*\n)*there is no such model"),
        peers.vllm(python, model="none"),
    ):
        pass


def test_vllm_gets_one_core_and_no_path_of_ours(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches our own modules found by vLLM's Python, and a vLLM with more threads than the others have."""
    seen: dict[str, Any] = {}
    popen = peers.subprocess.Popen

    def start(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        seen.update(env)
        return popen(command, env=env, **options)

    monkeypatch.setattr(peers.subprocess, "Popen", start)
    monkeypatch.setenv("PYTHONPATH", "/ours")
    with peers.vllm(python):
        pass
    assert "PYTHONPATH" not in seen and seen["OMP_NUM_THREADS"] == "1"
    assert int(seen["VLLM_CPU_OMP_THREADS_BIND"]) in os.sched_getaffinity(0)


# --- the book's engine ----------------------------------------------------------------------------------------------


def test_own_engine_serves_the_load(tiny: LlamaForCausalLM) -> None:
    """Catches prompts found because of the run before, an output cut short, and times of other requests."""
    own = LLMEngine(tiny, None, num_blocks=40, block_size=4, max_num_seqs=2)
    load = Load(tuple((7,) * 8 + prompt for prompt in LOAD.prompts), LOAD.output_lens)
    for _ in range(2):
        served = engine.serve(own, load)
        first, last = served.first_token_s, served.last_token_s
        assert first[0] == first[1] < last[1] < last[0] <= served.seconds and first[2] == last[2] > last[1]
        assert served.preemptions == 0 and served.hit_rate == 3 * 8 / load.num_prompt_tokens
    own.add_request("somebody else", [3])
    own.step()
    with pytest.raises(RuntimeError, match="still holds blocks"):
        engine.serve(own, load)


def test_preemptions_are_those_of_the_run(tiny: LlamaForCausalLM) -> None:
    """Catches a count that goes on from run to run."""
    own = LLMEngine(tiny, None, num_blocks=5, block_size=4, enable_prefix_caching=False)
    load = Load(((7, 8, 9), (3, 4, 5)), (9, 9))
    counts = [engine.serve(own, load).preemptions for _ in range(2)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", ["json", "table"])
def test_bench_engine(
    kind: str, tiny: LlamaForCausalLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that measures something else than it was asked to, lines too wide, and a path in a report."""
    monkeypatch.setattr(models, "load", lambda **_: (tiny, None))
    monkeypatch.setattr(engine.peers, "vllm", lambda python, **options: nullcontext(FakeVLLM(options)))
    small = engine.Setup(num_requests=3, most_output=3, shared_prefix=32, ample_seqs=1, kv_seqs=2, repetitions=2)
    monkeypatch.setattr(engine, "QUICK", small)
    options = ["--vllm-python", sys.executable, "--quick", *(["--json"] if kind == "json" else [])]
    monkeypatch.setattr(engine, "make_load", lambda *_, shared_prefix, most_output: _tiny_load(shared_prefix))
    assert main(["bench", "engine", *options]) == 0
    printed = capsys.readouterr().out
    if kind == "table":
        assert [line for line in printed.splitlines() if len(line) > 80] == []
        assert all(title in printed for title in engine.TITLES.values())
        assert ("without AMX" in printed) != cascade.MULTIPLIES_BFLOAT16
        return
    report = json.loads(printed)
    assert {part: list(row["engines"]) for part, row in report["parts"].items()} == {
        "systems": ["fused", "modules", "vllm"],
        "policies": ["paged", "contiguous-oracle", "contiguous-pow2", "contiguous-max"],
        "transformers": ["fused", "modules", "static batches", "continuous batching"],
        "prefix": ["cached", "not cached", "vllm cached", "vllm not cached"],
    }
    assert report["multiplies_bfloat16"] == cascade.MULTIPLIES_BFLOAT16
    needed = {"output_tokens_per_s", "total_tokens_per_s", "ttft_s", "tpot_s", "preemptions", "hit_rate"}
    assert all(needed <= figures.keys() for row in report["parts"].values() for figures in row["engines"].values())
    prefix = report["parts"]["prefix"]
    assert prefix["engines"]["cached"]["hit_rate"] > 0.5 and prefix["engines"]["not cached"]["hit_rate"] == 0
    assert report["parts"]["policies"]["kv_tokens"] == 2 * engine.MAX_MODEL_LEN and report["vllm_version"] == "1.2.3"
    assert len(prefix["ratios"]) == 2 * 6 and report["repetitions"] == 2 and sys.executable not in printed
    assert torch.get_num_threads() == NUM_THREADS


NUM_THREADS = torch.get_num_threads()


def _tiny_load(shared_prefix: int) -> Load:
    return Load(tuple((7,) * shared_prefix + prompt for prompt in LOAD.prompts), LOAD.output_lens)


class FakeVLLM:
    """In the place of a process with vLLM: it takes as long as it pleases."""

    version = "1.2.3"

    def __init__(self, options: dict[str, Any]) -> None:
        assert options["kv_cache_memory_bytes"] == 1 * engine.MAX_MODEL_LEN * 2 * 2 * 2 * 8 * 4
        self.caches = options["enable_prefix_caching"]

    def serve(self, load: Load) -> Served:
        return Served(1.0, 1.0, [0.1] * len(load.prompts), [0.5] * len(load.prompts), 0, float(self.caches))
