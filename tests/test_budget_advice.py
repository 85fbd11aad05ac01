"""The budget the other way round: what fits, what to change, and what real lengths take."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from itertools import islice

import pytest

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget import (
    Budget,
    BudgetError,
    Estimate,
    Options,
    Users,
    block_size_advice,
    first_change,
    largest_context,
    plan,
    smallest_gpu,
    users,
)  # fmt: skip
from pagedattn_lab.budget.compute import compute
from pagedattn_lab.budget.lengths import BLOCK_SIZES, RISK, Group, decode_in_flight, held_blocks, kept_by
from pagedattn_lab.hardware import COMPUTE_CAPABILITY, GPUS
from pagedattn_lab.workloads import sharegpt

LLAMA = "meta-llama/Llama-3.1-8B"


# --- inverse questions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (LLAMA, {"available_bytes": 3 * GIB}),
        ("google/gemma-2-9b", {"available_bytes": 2 * GIB, "max_num_batched_tokens": 512}),
        ("Qwen3.5-27B", {"available_bytes": 4 * GIB}),
        ("deepseek-ai/DeepSeek-V2-Lite", {"available_bytes": GIB}),
        (LLAMA, {"gpu": "RTX 4090"}),
        (LLAMA, {"available_bytes": [3 * GIB, 2 * GIB], "pipeline_parallel_size": 2}),
    ],
)
def test_largest_context_is_the_largest(model: str, settings: dict) -> None:
    """Catches a context that does not start, and one that leaves room."""
    longest = largest_context(compute(Options(model, **settings)))
    budget = plan(model, max_model_len=longest, **settings)
    assert budget.fit.fits and longest > 1000
    with pytest.raises(BudgetError, match=f"try --max-model-len {longest}, the longest request that fits"):
        plan(model, max_model_len=longest + 1, **settings)


def test_largest_context_is_not_larger_than_the_model() -> None:
    """Catches a context that the model was never made for."""
    assert largest_context(plan(LLAMA, "H100")) == 131_072
    assert largest_context(compute(Options(LLAMA, available_bytes=2**20))) == 0


def test_smallest_gpu() -> None:
    """Catches a GPU that is not enough, and one that is larger than needed."""
    options = Options(LLAMA, max_model_len=8192)
    found = smallest_gpu(options, num_requests=2)
    assert found.max_concurrency >= 2 and found.fit.fits
    memory = found.asked.tensor_parallel_size * GPUS[found.gpu].gib
    for name, sheet in GPUS.items():
        for count in (1, 2, 4, 8):
            if count * sheet.gib < memory:
                other = compute(replace(options, gpu=name, tensor_parallel_size=count))
                assert not other.fit.fits or other.max_concurrency < 2, f"{count} of {name} would do"
    more = smallest_gpu(options, num_requests=40)
    assert more.max_concurrency >= 40 and more.asked.tensor_parallel_size * GPUS[more.gpu].gib > memory
    short = smallest_gpu(options, num_requests=40, lengths=[(100, 100)])
    assert short.max_concurrency < 40, "short requests do with less than the worst case"
    assert users(short, [(100, 100)]).with_risk() >= 40
    with pytest.raises(
        BudgetError, match="no GPU of the table, nor up to 1 of one kind, serves 1,000 requests at once"
    ):
        smallest_gpu(options, num_requests=1_000, most_gpus=1)
    with pytest.raises(BudgetError, match=r"quantisation|quantization"):
        smallest_gpu(replace(options, quantization="nonsense"))


def test_smallest_gpu_that_is_just_enough() -> None:
    """Catches a GPU passed over that serves as many as were asked for and no more, of the longest or of given lengths.

    Blocks for 2 requests of 8,192 tokens are given, so 2.00 fit everywhere. Of short ones a number fits that is whole.
    """
    options = Options(LLAMA, max_model_len=8192, num_gpu_blocks_override=2 * 512)
    found = smallest_gpu(options, num_requests=2)
    assert found.max_concurrency == 2 and found.gpu == smallest_gpu(options).gpu
    with pytest.raises(BudgetError, match="serves 3 requests at once"):
        smallest_gpu(options, num_requests=3)
    lengths, options = [(100, 100)], Options(LLAMA, max_model_len=8192)
    found = smallest_gpu(options, lengths=lengths)
    most = users(found, lengths).with_risk()
    assert smallest_gpu(options, most, lengths) == found != smallest_gpu(options, most + 1, lengths)


# --- what to change first -------------------------------------------------------------------------------------------


def flags(budget: Budget) -> list[str]:
    return [change.flag for change in first_change(budget)]


def test_changes_are_computed_and_in_order() -> None:
    """Catches a figure that is guessed, another order than that of the effect, and GPUs to buy before a flag to set."""
    budget = plan(LLAMA, "RTX 4090", max_model_len=16_384)
    changes = first_change(budget)
    assert {"--kv-cache-dtype fp8", "--quantization fp8", "--gpu-memory-utilization 0.95"} <= {
        change.flag for change in changes
    }
    assert not any("max_model_len" in change.settings for change in changes), "that lets nobody more in"
    assert [change.needs_more_gpus for change in changes] == [False] * (len(changes) - 1) + [True]
    alone = [change.effect for change in changes[:-1]]
    assert alone == sorted(alone, reverse=True) and min(alone) >= 1.02
    for change in changes:
        again = compute(replace(budget.asked, **change.settings))
        assert again.capacity == change.budget.capacity and again.max_concurrency > budget.max_concurrency
        assert change.effect == again.max_concurrency / budget.max_concurrency
        assert f"{again.kv_tokens:,} tokens, {again.max_concurrency:.2f}x" in change.sentence


def test_changes_that_are_not_for_this_server() -> None:
    """Catches advice that is taken already, or that this memory does not depend on."""
    budget = plan(LLAMA, "H100", max_model_len=2048, kv_cache_dtype="fp8", quantization="fp8",
                  gpu_memory_utilization=0.97, max_num_seqs=64, max_num_batched_tokens=2048)  # fmt: skip
    assert flags(budget) == ["--tensor-parallel-size 2"]
    assert flags(plan(LLAMA, kv_cache_memory_bytes=GIB, max_model_len=2048)) == ["--kv-cache-dtype fp8"]
    assert flags(plan(LLAMA, device="cpu", available_bytes="8GiB", max_model_len=2048)) == ["--kv-cache-dtype fp8"]
    assert "--quantization fp8" not in flags(plan("openai/gpt-oss-20b", "H100", max_model_len=8192)), "it has its own"


def test_an_fp8_cache_needs_a_gpu_that_reads_it() -> None:
    """Catches advice that vLLM answers with an error: its Triton backend refuses an fp8 cache below 8.9."""
    assert COMPUTE_CAPABILITY.keys() == GPUS.keys() - {"MI300X"}
    old = {name for name, capability in COMPUTE_CAPABILITY.items() if capability < (8, 9)}
    assert old == {"T4", "A100-40GB", "A100-80GB", "A10", "RTX 3060", "RTX 3090"}
    for gpu in (*GPUS, "24GiB"):
        changes = {change.flag: change.sentence for change in first_change(plan("Qwen3-0.6B", gpu, max_model_len=2048))}
        assert ("--kv-cache-dtype fp8" in changes) == (gpu not in old), gpu
        assert ("capability 8.9 or newer" in changes.get("--kv-cache-dtype fp8", "")) == (gpu == "24GiB"), gpu
        notes = " ".join(plan("Qwen3-0.6B", gpu, max_model_len=2048, kv_cache_dtype="fp8").notes)
        assert ("read no fp8 cache below 8.9" in notes) == (gpu in old), gpu
        assert not plan("Qwen3-0.6B", gpu, max_model_len=2048).notes
        assert ("FlashInfer does" in notes, "FlashInfer needs 8.0" in notes) == (gpu in old - {"T4"}, gpu == "T4")


def test_changes_of_a_hybrid() -> None:
    """Catches a state kept for others that nobody is told of."""
    changes = {change.flag: change for change in first_change(plan("Qwen3.5-27B", "H100", max_model_len=4096))}
    change = changes["--no-enable-prefix-caching"]
    assert change.budget.blocks_per_request < plan("Qwen3.5-27B", "H100", max_model_len=4096).blocks_per_request


def test_changes_where_the_memory_was_given() -> None:
    """Catches a change of weights that leaves what is available as it was, and one that forgets what was given."""
    settings = {"available_bytes": "5.00GiB", "max_model_len": 8192}
    assert flags(plan(LLAMA, **settings)) == ["--kv-cache-dtype fp8"]
    budget = plan(LLAMA, "RTX 4090", **settings)
    change = next(change for change in first_change(budget) if change.flag == "--quantization fp8")
    whole = plan(LLAMA, "RTX 4090", max_model_len=8192)
    saved = plan(LLAMA, "RTX 4090", max_model_len=8192, quantization="fp8").available_bytes - whole.available_bytes
    assert change.budget.available_bytes == budget.available_bytes + saved and saved > 6 * GIB


def test_changes_that_only_help_together() -> None:
    """Catches advice of one setting that is not enough: on 12 GB neither smaller weights nor a shorter context is."""
    budget = compute(Options(LLAMA, "RTX 3060", max_model_len=131_072))
    assert not budget.fit.fits and budget.available_bytes < 0
    changes = first_change(budget)
    assert changes and all(change.budget.fit.fits and math.isinf(change.effect) for change in changes)
    assert changes[0].settings.keys() == {"quantization", "max_model_len"}
    for change in changes:
        longer = compute(replace(budget.asked, **{**change.settings, "max_model_len": change.budget.max_model_len + 1}))
        assert not longer.fit.fits or change.budget.max_model_len == 131_072


# --- the line that starts a server ----------------------------------------------------------------------------------


def test_serve_command() -> None:
    """Catches a flag that is lost, one that only repeats a default, and a short name that the Hub does not know."""
    budget = plan(
        "meta-llama/Llama-3.1-8B-Instruct", "24GiB", max_model_len=8192, kv_cache_dtype="fp8", block_size=32,
        max_num_seqs=16, gpu_memory_utilization=0.95, enable_prefix_caching=False, async_scheduling=False,
    )  # fmt: skip
    assert budget.serve_command() == (
        "vllm serve meta-llama/Llama-3.1-8B-Instruct --max-model-len 8192 --kv-cache-dtype fp8 --block-size 32 "
        "--max-num-seqs 16 --gpu-memory-utilization 0.95 --no-enable-prefix-caching --no-async-scheduling"
    )
    assert plan(LLAMA, "H100").serve_command() == f"vllm serve {LLAMA}"
    assert plan("llama-3.1-8b", "H100").serve_command() == f"vllm serve {LLAMA}"
    drafted = plan(LLAMA, "H100", drafter="meta-llama/Llama-3.2-1B", num_speculative_tokens=3).serve_command()
    words = shlex.split(drafted)
    assert json.loads(words[words.index("--speculative-config") + 1]) == {
        "model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 3,
    }  # fmt: skip


def test_serve_lines_that_start() -> None:
    """Catches what vLLM does not read: a size with our unit, the drafter of a model's own layers as a model's name."""
    for size in ("4GiB", 4 * GIB, Estimate.known(4 * GIB, "given")):
        line = plan(LLAMA, kv_cache_memory_bytes=size, max_model_len=8192).serve_command()
        assert line.endswith("--kv-cache-memory-bytes 4294967296"), size
    words = shlex.split(
        plan(
            "DeepSeek-V3", available_bytes="16GiB", tensor_parallel_size=8, drafter="mtp", num_speculative_tokens=1
        ).serve_command()
    )
    assert json.loads(words[words.index("--speculative-config") + 1]) == {
        "method": "mtp", "num_speculative_tokens": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("gemma-3-12b", "google/gemma-3-12b-it"),
        ("opt-13b-hf", "facebook/opt-13b"),
        ("Qwen3-8B-Instruct", "Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_the_name_that_is_served(given: str, served: str) -> None:
    """Catches an owner put before a name that this owner has no model of; an id that was given in full stays."""
    assert plan(given, available_bytes="64GiB").serve_command() == f"vllm serve {served}"


def test_more_sequences_than_tokens_of_a_step() -> None:
    """Catches a line with more sequences than tokens in a step, which vLLM refuses, and a default that it lowers."""
    budget = plan(LLAMA, "H100", max_model_len=8192, max_num_batched_tokens=512)
    assert (budget.max_num_batched_tokens, budget.max_num_seqs) == (512, 512)
    assert plan(LLAMA, "H100", max_model_len=8192, max_num_batched_tokens=2048).max_num_seqs == 1024
    assert plan(LLAMA, "H100", max_model_len=8192, max_num_batched_tokens=512, max_num_seqs=512).max_num_seqs == 512
    for settings in ({"max_num_batched_tokens": 512, "max_num_seqs": 513}, {"max_num_seqs": 8193}):
        with pytest.raises(BudgetError, match=r"max_num_seqs = \d+ is above max_num_batched_tokens = \d+"):
            plan(LLAMA, "H100", max_model_len=8192, **settings)


def test_serve_command_of_a_quantised_checkpoint() -> None:
    """Catches a line that names weights in 16 bits and a method that vLLM only reads: it does not start."""
    for method in ("awq", "gptq", "nvfp4", "awq_marlin"):
        words = shlex.split(plan(LLAMA, "H100", quantization=method).serve_command())
        assert words[2:] == [f"<{method.upper()} checkpoint of {LLAMA}>", "--quantization", method]
    for method in ("fp8", "bitsandbytes"):
        assert shlex.split(plan(LLAMA, "H100", quantization=method).serve_command())[2] == LLAMA, "while it loads"
    own = plan("openai/gpt-oss-20b", "H100", quantization="mxfp4").serve_command()
    assert own == "vllm serve openai/gpt-oss-20b --quantization mxfp4"


# --- lengths --------------------------------------------------------------------------------------------------------


def test_users_by_hand() -> None:
    """Catches requests counted at their full length or by the longest allowed, and the null block counted as usable.

    A prompt of 16 tokens and an output of 160: at the middle of each eighth of its decoding it has 26, 46, ... 166
    tokens, which are 2, 3, 5, 6, 7, 8, 10, 11 blocks.
    """
    budget = plan(LLAMA, num_gpu_blocks_override=1301, max_model_len=8192)
    load = users(budget, [(16, 160)])
    held = [2, 3, 5, 6, 7, 8, 10, 11]
    assert load.mean_blocks == sum(held) / 8 == 6.5 and load.mean_blocks_at_end == 11
    assert load.deviation == pytest.approx(math.sqrt(sum((each - 6.5) ** 2 for each in held) / 8))
    assert (load.usable_blocks, load.mean, load.at_end) == (1300, 200, 118)
    assert load.with_risk(0.5) == 200 and load.at_end < load.with_risk(0.01) < 200


def test_long_outputs_are_met_more_often() -> None:
    """Catches an average over requests instead of over moments: a request that decodes ten times as long is there ten
    times as long."""
    budget = plan(LLAMA, num_gpu_blocks_override=1001, max_model_len=8192)
    short, long = (users(budget, [(1000, output)]).mean_blocks for output in (10, 100))
    assert users(budget, [(1000, 10), (1000, 100)]).mean_blocks == pytest.approx((10 * short + 100 * long) / 110)


def test_lengths_beyond_the_context() -> None:
    """Catches prompts that no server takes, and outputs that it would cut."""
    budget = plan(LLAMA, num_gpu_blocks_override=1001, max_model_len=2048)
    load = users(budget, [(2048, 1), (3000, 5), (2000, 5000), (100, 100)])
    assert (load.num_requests, load.refused) == (4, 2)
    assert load.mean_blocks_at_end == (48 * 128 + 100 * 13) / 148
    with pytest.raises(BudgetError, match=r"none of 1 requests .* within 2,048 tokens: raise max_model_len"):
        users(budget, [(4000, 1)])


def test_risk_is_kept() -> None:
    """Catches a wrong quantile: draw the sum of many requests' blocks, and count how often it is too much."""
    import random

    load = Users(1, 0, mean_blocks=20.0, deviation=12.0, mean_blocks_at_end=30.0, usable_blocks=3000)
    rng = random.Random(7)
    for risk in (0.1, 0.01):
        number = load.with_risk(risk)
        too_many = sum(sum(rng.choice((8.0, 32.0)) for _ in range(number)) > 3000 for _ in range(4000))
        assert too_many / 4000 == pytest.approx(risk, abs=4 * math.sqrt(risk / 4000) + 0.2 * risk)
    with pytest.raises(ValueError, match=r"risk is 0\.2: use one of 0\.5, 0\.1, 0\.01, 0\.001"):
        load.with_risk(0.2)


def test_risk_counts_whole_requests() -> None:
    """Catches a request lost to rounding: the root of a whole number, squared, may be less than the number."""
    for usable in range(1, 2000):
        for blocks in (1, 2, 3, 7):
            load = Users(3, 0, float(blocks), 0.0, float(blocks), usable)
            assert load.mean == load.at_end == usable // blocks, usable
            assert {load.with_risk(risk) for risk in RISK} == {usable // blocks}, usable
    for number in range(1, 200):  # a mean that is no binary fraction, of which whole requests fill the cache
        load = Users(3, 0, 490 / number, 0.0, 490 / number, 490)
        assert load.mean == load.at_end == number
        spread = RISK[0.01] * 0.5
        blocks = (490 - spread * math.sqrt(number)) / number
        assert Users(3, 0, blocks, 0.5, blocks, 490).with_risk(0.01) == number


def test_fewer_fit_at_the_end_than_on_average() -> None:
    """Catches two averages of different requests: long outputs are most of what runs, at their end as before."""
    budget = plan(LLAMA, num_gpu_blocks_override=1001, max_model_len=8192)
    load = users(budget, [(1000, 4000), *[(10, 10)] * 9])
    assert load.at_end < load.mean
    assert load.mean_blocks_at_end == pytest.approx((4000 * math.ceil(5000 / 16) + 90 * 2) / 4090)


@pytest.mark.parametrize("batch", [512, 8192])
def test_windows_hold_less_of_a_long_request(batch: int) -> None:
    """Catches lengths charged in full behind a window, and a request that decodes charged a whole batch of a prompt.

    At 8,000 tokens two are in flight. Of 7,998 settled ones, 3,903 have left the window of 4,096, which are 243 blocks.
    """
    budget = plan("google/gemma-2-9b", num_gpu_blocks_override=10_001, max_model_len=8192, max_num_batched_tokens=batch)
    assert users(budget, [(7999, 1)]).mean_blocks_at_end == (500 - 243) + 500


def count_token_by_token(group: Group, last: int, steps: int) -> list[int]:
    """Let a request decode to ``last`` tokens with so many steps scheduled ahead; list the blocks after each step.

    Blocks are kept in a set. Before a step takes its block, all go whose every token the next one no longer reads,
    where a token counts as computed when its step has settled.
    """
    kind, size, bound = group
    blocks: set[int] = set()
    held = []
    for tokens in range(1, last + 1):
        settled = max(0, tokens - steps)
        blocks.add((tokens - 1) // size)
        oldest = {"full": 0, "window": settled + 1 - bound, "chunk": settled - settled % max(1, bound)}[kind]
        blocks -= {block for block in blocks if (block + 1) * size <= oldest}
        held.append(len(blocks))
    return held


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("group", [["full", 4, 0], ["window", 4, 5], ["window", 4, 16], ["chunk", 4, 12]], ids=str)
def test_held_blocks_token_by_token(group: Group, steps: int) -> None:
    """Catches a block that is dropped a token early or late, and steps in flight that are not waited for."""
    assert [held_blocks(group, tokens, steps)[0] for tokens in range(1, 100)] == count_token_by_token(group, 99, steps)


@pytest.mark.parametrize("model", ["google/gemma-3-12b-it", "openai/gpt-oss-20b", LLAMA])
def test_users_token_by_token(model: str) -> None:
    """Catches users charged more than a request holds: eight moments of each are at most a block a group off."""
    budget = compute(Options(model, available_bytes="10GiB", max_model_len=8192))
    lengths = [(3000, 1000), (100, 2000), (5000, 50)]
    groups = [kept_by(group.spec, budget.limits) for group in budget.groups]
    held = [sum(each) for each in zip(*(count_token_by_token(group, 5050, 2) for group in groups), strict=True)]
    moments = [held[tokens] for prompt, output in lengths for tokens in range(prompt, prompt + output)]
    assert users(budget, lengths).mean_blocks == pytest.approx(sum(moments) / len(moments), abs=len(groups))


def test_tokens_in_flight_of_one_request() -> None:
    """Catches steps of a pipeline that are charged to each request, and tokens that a drafter guesses left out."""
    options = Options("google/gemma-3-12b-it", "H100", max_model_len=8192)
    for changes, tokens in (
        ({}, 2), ({"async_scheduling": False}, 1), ({"vllm_version": "0.25"}, 1), ({"pipeline_parallel_size": 2}, 2),
        ({"pipeline_parallel_size": 2, "async_scheduling": False}, 1), ({"device": "cpu", "gpu": "64GiB"}, 1),
    ):  # fmt: skip
        assert decode_in_flight(compute(replace(options, **changes))) == tokens, changes
    drafted = Options(LLAMA, "H100", drafter="meta-llama/Llama-3.2-1B", num_speculative_tokens=3)
    assert decode_in_flight(compute(drafted)) == 2 * 4


@pytest.mark.parametrize("backend", BLOCK_SIZES)
def test_block_sizes(backend: str) -> None:
    """Catches waste of another length than the tail, hits that count a partial block, and tables of another size."""
    lengths = list(islice(sharegpt(0), 500))
    rows = block_size_advice(lengths, backend, max_model_len=2048, max_num_seqs=64)
    assert [row.block_size for row in rows] == list(BLOCK_SIZES[backend])
    for row in rows:
        size = row.block_size
        tails = sum(-(prompt + output) % size for prompt, output in lengths)
        tokens = sum(map(sum, lengths))
        assert row.waste == pytest.approx(tails / (tokens + tails))
        hits = sum((prompt - 1) // size * size for prompt, _ in lengths)
        assert row.lost_hits == pytest.approx(1 - hits / sum(prompt for prompt, _ in lengths))
        assert row.table_bytes == 64 * math.ceil(2048 / size) * 4


def test_block_sizes_that_cannot_be() -> None:
    """Catches a backend that nobody has, and a division by no requests."""
    with pytest.raises(BudgetError, match="there is no backend 'flash': use one of flash_attn"):
        block_size_advice([(1, 1)], "flash", max_model_len=10)
    with pytest.raises(BudgetError, match="there are no lengths"):
        block_size_advice([], max_model_len=10)
