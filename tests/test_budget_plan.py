"""A budget's figures are those that vLLM logged, to the last digit."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pagedattn_lab.arithmetic import GIB, cdiv
from pagedattn_lab.budget import Budget, BudgetError, Estimate, Options, load_config, plan, plan_longest
from pagedattn_lab.budget.compute import compute, model_max_len
from pagedattn_lab.budget.memory import DRIVER_SHARES, gpu_memory, memory_kind
from pagedattn_lab.hardware import GPUS
from pagedattn_lab.studies.paper import TABLE_1, Setting

H100 = {"max_num_batched_tokens": 8192, "vllm_version": "0.19"}
"""What the rows from an H100 have in common."""


@dataclass(frozen=True)
class Logged:
    """What vLLM printed once: memory to two decimals, tokens, and requests at once by the length of a context."""

    model: str
    available: str
    tokens: int
    concurrency: dict[int, str]
    settings: dict[str, Any] = field(default_factory=dict)
    blocks_per_request: dict[int, int] = field(default_factory=dict)


LLAMA = "meta-llama/Llama-3.1-8B"
TABLE = {
    "Llama-3.1-8B": Logged(LLAMA, "58.11GiB", 476_016, {8192: "58.11x", 32768: "14.53x"}, H100),
    "tensor parallel": Logged(LLAMA, "63.76GiB", 1_044_688, {8192: "127.53x"}, {**H100, "tensor_parallel_size": 2}),
    "gemma-2-9b": Logged("google/gemma-2-9b", "54.12GiB", 168_880, {8192: "20.60x"}, H100, {8192: 1025}),
    "gemma-3-27b": Logged("google/gemma-3-27b-it", "19.53GiB", 36_560, {8192: "4.46x"}, H100, {8192: 3590}),
    "gpt-oss-20b": Logged("openai/gpt-oss-20b", "58.47GiB", 1_277_184, {8192: "155.75x"}, H100),
    "DeepSeek-V2-Lite": Logged("deepseek-ai/DeepSeek-V2-Lite", "43.61GiB", 1_505_552, {8192: "183.78x"}, H100),
}
"""An H100 of 79.19 GiB, a share of 0.95, vLLM 0.19, batch 8,192: llm-d-incubation/llm-d-planner, accuracy/results,
commit d3121e0."""


def with_blocks(num_blocks: int, logged: Logged, max_model_len: int) -> Budget:
    return plan(logged.model, max_model_len=max_model_len, num_gpu_blocks_override=num_blocks, **logged.settings)


@pytest.mark.parametrize("row", TABLE)
def test_logged_tokens_and_concurrency(row: str) -> None:
    """Catches a formula that is off by one block, a group or a layer too many, and a false exactness: two decimals of a
    GiB leave some blocks open, and the budget must show all of these and no more."""
    logged = TABLE[row]
    for length, printed in logged.concurrency.items():
        budget = plan(logged.model, max_model_len=length, available_bytes=logged.available, **logged.settings)
        fewest, most = budget.num_blocks_range
        assert most - fewest <= math.ceil(0.01 * GIB / budget.bytes_per_block) and not budget.exact
        assert budget.kv_tokens_range[0] <= logged.tokens <= budget.kv_tokens_range[1]
        low, high = (f"{each:.2f}" for each in budget.max_concurrency_range)
        assert float(low) <= float(printed[:-1]) <= float(high)
        fitting = [
            exact for number in range(fewest, most + 1) if (exact := with_blocks(number, logged, length)).kv_tokens
            == logged.tokens
        ]  # fmt: skip
        assert fitting, "no number of blocks within the range gives the logged tokens"
        found = {
            f"{exact.max_concurrency:.2f}x" for exact in fitting
        }  # groups divide: two blocks may give the same tokens
        assert printed in found and len(found) <= 2
        if length in logged.blocks_per_request:
            assert budget.blocks_per_request == logged.blocks_per_request[length]


def test_pipeline_binds_where_memory_is_least() -> None:
    """Catches blocks of the first rank, whose memory vLLM prints: the last one has less, since it samples."""
    ranks = ["66.54GiB", "65.63GiB"]
    settings = {"max_model_len": 8192, "pipeline_parallel_size": 2, **H100}
    budget = plan(LLAMA, available_bytes=ranks, **settings)
    assert budget.available.source.startswith("given") and budget.available_bytes < 66 * GIB
    assert budget.kv_tokens_range[0] <= 1_075_312 <= budget.kv_tokens_range[1]
    exact = plan(LLAMA, num_gpu_blocks_override=1_075_312 // 16, **settings)
    assert budget.num_blocks_range[0] <= exact.num_blocks <= budget.num_blocks_range[1]
    assert (exact.kv_tokens, f"{exact.max_concurrency:.2f}x", exact.exact) == (1_075_312, "131.26x", True)
    with pytest.raises(BudgetError, match="available_bytes has 3 sizes for 2 ranks of the pipeline"):
        plan(LLAMA, available_bytes=[*ranks, "1GiB"], **settings)


@pytest.mark.parametrize(
    ("model", "blocks", "length", "settings", "per_request", "tokens", "concurrency"),
    [
        ("openai/gpt-oss-20b", 138_963, 32_768, {"max_num_batched_tokens": 2048, "vllm_version": "0.30"},
         2_048 + 265, 1_968_672, "60.08x"),
        ("Qwen3.5-27B", 653, 32_768, {}, 48, 445_781, "13.60x"),
        # Before there were groups, tokens were blocks times their size: pull requests 12569, 13596.
        ("facebook/opt-125m", 1381, 2048, {"vllm_version": "0.7"}, 128, 22_096, "10.79x"),
        ("facebook/opt-125m", 127_626, 2048, {"vllm_version": "0.7"}, 128, 2_042_016, "997.08x"),
        ("Qwen/Qwen3-8B", 40_202, 40_960, {"vllm_version": "0.9"}, 2_560, 643_232, "15.70x"),
        ("meta-llama/Llama-3.1-8B", 5_691, 8_192, {"vllm_version": "0.6.6"}, 512, 91_056, "11.12x"),
    ],
)  # fmt: skip
def test_logged_with_the_number_of_blocks(
    model: str, blocks: int, length: int, settings: dict[str, Any], per_request: int, tokens: int, concurrency: str
) -> None:
    """Catches a formula of another version, steps in flight counted once, and a state that is counted per block."""
    budget = plan(model, max_model_len=length, num_gpu_blocks_override=blocks, **settings)
    assert (budget.num_blocks, budget.blocks_per_request, budget.kv_tokens) == (blocks, per_request, tokens)
    assert f"{budget.max_concurrency:.2f}x" == concurrency and budget.exact
    assert budget.num_blocks_range == (blocks, blocks)


def test_hybrid_block_is_aligned_to_its_state() -> None:
    """Catches a block of 16 tokens where a state has to fit: short prompts find nothing in such a model's cache."""
    for gpu, release, sizes in (
        ("A100-80GB", "0.33", [784, 1568]),
        ("H200", "0.32", [784, 1568]),
        ("H200", "0.33", [832, 1600]),  # FlashInfer hands out states every 64 tokens
    ):
        settings = {"max_model_len": 32_768, "vllm_version": release}
        found = [plan("Qwen3.5-27B", gpu, kv_cache_dtype=kind, **settings).block_size for kind in ("auto", "fp8")]
        assert found == sizes, (gpu, release)


def test_a_state_handed_out_in_a_prompt_is_one_more() -> None:
    """Catches the states of one release, or of one kernel, counted for another: 3 groups of state-space layers."""
    blocks = {
        (gpu, release): plan("Qwen3.5-27B", gpu, max_model_len=8_000, vllm_version=release).blocks_per_request
        for gpu in ("A100-80GB", "H200")
        for release in ("0.32", "0.33")
    }
    old = cdiv(8_000, 784) + 3 * 2
    assert blocks == {
        ("A100-80GB", "0.32"): old,
        ("A100-80GB", "0.33"): old,
        ("H200", "0.32"): old,
        ("H200", "0.33"): cdiv(8_000, 832) + 3 * 3,
    }


def test_a_state_adds_nothing_per_token() -> None:
    """Catches states counted as if each token left one: 16 of 64 layers keep keys and values, of 4 heads of 256."""
    assert plan("Qwen3.5-27B", "H200", max_model_len=32_768).bytes_per_token == 16 * 2 * 4 * 256 * 2


def test_drafter_is_a_layer_more() -> None:
    """Catches a draft model that takes no cache: with 33 layers, 51.63 GiB hold 410,128 tokens (pull request 19996)."""
    eagle = {
        "model_type": "llama", "architectures": ["LlamaForCausalLMEagle"], "num_hidden_layers": 1, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "intermediate_size": 14336, "dtype": "bfloat16", "max_position_embeddings": 131072,
    }  # fmt: skip
    settings = {"max_model_len": 131_072, "vllm_version": "0.9", "drafter": eagle, "num_speculative_tokens": 3}
    budget = plan(LLAMA, available_bytes="51.63GiB", **settings)
    assert budget.bytes_per_token == 33 * 2 * 8 * 128 * 2
    assert budget.kv_tokens_range[0] <= 410_128 <= budget.kv_tokens_range[1]
    exact = plan(LLAMA, num_gpu_blocks_override=410_128 // 16, **settings)
    assert (exact.kv_tokens, f"{exact.max_concurrency:.2f}x") == (410_128, "3.13x")
    assert budget.num_blocks_range[0] <= exact.num_blocks <= budget.num_blocks_range[1]


def test_on_a_cpu() -> None:
    """Catches the GPU's block of 16 tokens: a CPU's has 128, and the memory is given, so nothing is left open."""
    budget = plan("facebook/opt-125m", device="cpu", max_model_len=2048, available_bytes="8GiB")
    assert (budget.block_size, budget.num_blocks, budget.kv_tokens) == (128, 1820, 232_960)
    assert f"{budget.max_concurrency:.2f}x" == "113.75x" and budget.exact


def comes_out(figure: dict[str, Any]) -> bool:
    """Whether a figure says what one group of layers made of memory that was there."""
    log, layout = figure["log"], figure["layout"]
    says = log.get("available_gib", -1) > 0 and {"kv_tokens", "num_blocks"} & log.keys()
    return bool(figure["comes_out"] and says and layout and not {"groups", "block_size"} & layout.keys())


LOGGED = json.loads((Path(__file__).parent / "logged_figures.json").read_text(encoding="utf-8"))["figures"]
FIGURES = [figure for figure in LOGGED if comes_out(figure)]
"""Figures of other people's servers, with what a layer of theirs keeps; those with several groups are checked above."""


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure["id"])
def test_logged_by_others(figure: dict[str, Any]) -> None:
    """Catches a plan that is right for the table above only: blocks and tokens of servers that nobody here chose."""
    layout, log = figure["layout"], figure["log"]
    dtype = {1: "fp8", 2: "auto"}[layout["bytes_per_element"]]
    config = {"num_hidden_layers": layout["layers"], "dtype": "bfloat16", "max_position_embeddings": 1 << 20}
    if "latent" in layout:
        config |= {"kv_lora_rank": layout["latent"] - 64, "qk_rope_head_dim": 64, "num_attention_heads": 16}
    else:
        heads = layout["kv_heads_per_rank"]
        config |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": layout["head_size"]}
    config |= {"hidden_size": 1024, "vocab_size": 1024}
    length = figure["settings"].get("max_model_len", 2048)
    version = re.match(r"0\.\d+(?:\.\d+)?", figure["vllm_version"] or "0.33")
    options = Options(
        config, max_model_len=length, kv_cache_dtype=dtype, available_bytes=f"{log['available_gib']:.2f}GiB",
        vllm_version=version[0] if version else "0.33",
    )  # fmt: skip
    budget = compute(options)
    if "kv_tokens" in log:
        assert budget.kv_tokens_range[0] <= log["kv_tokens"] <= budget.kv_tokens_range[1]
    if "num_blocks" in log:
        assert budget.num_blocks_range[0] <= log["num_blocks"] <= budget.num_blocks_range[1]
    if "max_concurrency" in log:
        low, high = (round(each, 2) for each in budget.max_concurrency_range)
        assert low <= log["max_concurrency"] <= high


def test_enough_figures_of_others() -> None:
    """Catches a list that the filter above has emptied."""
    assert len(FIGURES) >= 10 and len({figure["source"] for figure in FIGURES}) >= 8


@pytest.mark.parametrize("setting", TABLE_1, ids=lambda setting: setting.model)
def test_table_1_of_the_paper(setting: Setting) -> None:
    """Catches other bytes per token for OPT than the paper's: slots to the hundred, for memory rounded to GiB."""
    config = {
        "model_type": "opt", "num_hidden_layers": setting.shape.num_layers, "dtype": "float16",
        "hidden_size": setting.shape.num_kv_heads * setting.shape.head_dim, "vocab_size": 50272,
        "num_attention_heads": setting.shape.num_kv_heads, "max_position_embeddings": 2048,
    }  # fmt: skip
    half = GIB // 2
    middle = setting.gib * GIB
    rounded = Estimate(middle - half, middle + half, middle, False, "Table 1, to a GiB")
    budget = plan(config, available_bytes=rounded)
    assert budget.bytes_per_token == setting.shape.bytes_per_token
    low, high = (blocks * 16 for blocks in budget.num_blocks_range)
    assert low - 50 <= setting.slots <= high + 50
    if setting.model != "OPT-66B":  # its 21 GiB are too round: 9.6K slots, and the table says 9.7K
        assert round(budget.num_blocks * 16, -2) == setting.slots


# --- what no configuration tells ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        (LLAMA, 1.89), ("google/gemma-2-9b", 3.65), ("google/gemma-3-27b-it", 3.99),
        ("deepseek-ai/DeepSeek-V2-Lite", 1.93), ("Qwen/Qwen3-14B", 2.23),
    ],
)  # fmt: skip
def test_peak_is_near_what_was_logged(model: str, gib: float) -> None:
    """Catches an activation that is a constant, or scales with the wrong size: an H100's default is 1,024 sequences."""
    budget = plan(model, "H100", max_model_len=8192, gpu_memory_utilization=0.95, max_num_seqs=1024, **H100)
    peak = dict(budget.parts)["peak activation"]
    assert peak.low < gib * GIB < peak.high and not peak.exact
    assert peak.likely == pytest.approx(gib * GIB, rel=0.1)


def test_peak_of_older_versions_was_larger() -> None:
    """Catches one figure for all versions: Qwen3-14B took 5.64 GiB in 0.16, 2.23 from 0.17 on."""
    settings = {"max_model_len": 8192, "max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    old, new = (
        dict(plan("Qwen/Qwen3-14B", "H100", vllm_version=version, **settings).parts)["peak activation"]
        for version in ("0.16", "0.17")
    )
    assert old.low < 5.64 * GIB < old.high and not new.low < 5.64 * GIB < new.high


def test_first_rank_of_a_pipeline_does_not_sample() -> None:
    """Catches logits on every rank: the first had 1.11 GiB at its peak, the last 2.01."""
    budget = plan(
        LLAMA,
        "H100",
        max_model_len=8192,
        pipeline_parallel_size=2,
        max_num_seqs=1024,
        gpu_memory_utilization=0.95,
        **H100,
    )
    first, last = (dict(rank.parts)["peak activation"].likely / GIB for rank in budget.ranks)
    assert first == pytest.approx(1.11, rel=0.1) and last == pytest.approx(2.01, rel=0.1)
    assert budget.binding is budget.ranks[1]


def test_estimate_of_the_whole_holds_what_was_logged() -> None:
    """Catches a part that is added instead of taken away, and a range that leaves out what vLLM found."""
    for logged in TABLE.values():
        budget = plan(
            logged.model, "H100", max_model_len=8192, gpu_memory_utilization=0.95, max_num_seqs=1024, **logged.settings
        )
        assert budget.available.low <= Estimate.printed(logged.available).likely <= budget.available.high
        assert not budget.exact and budget.num_blocks_range[0] < budget.num_blocks < budget.num_blocks_range[1]
        total, share = budget.total, budget.gpu_memory_utilization
        assert budget.available_bytes == math.ceil(total.likely * share) - sum(part.likely for _, part in budget.parts)


@pytest.mark.parametrize(
    ("model", "gpu", "settings", "left"),
    [
        # a batch as long as the context, since prompts were not cut into chunks
        (LLAMA, "23.58GiB", {"max_num_batched_tokens": 20_000, "vllm_version": "0.6.6"}, 3.81),
        (LLAMA, "23.58GiB", {"max_num_batched_tokens": 29_000, "vllm_version": "0.6.6"}, 2.89),
        ("Qwen/Qwen3-8B", "RTX 4090", {"gpu_memory_utilization": 0.9764, "vllm_version": "0.21"}, 6.37),
        ("Qwen/Qwen3-4B", "47.37GiB", {"gpu_memory_utilization": 0.85, "quantization": "awq", "vllm_version": "0.24"},
         36.88),
        ("Qwen/Qwen3-0.6B", "H100", {"gpu_memory_utilization": 0.8, "vllm_version": "0.6.6"}, 61.84),
    ],
)  # fmt: skip
def test_estimates_hold_what_others_logged(model: str, gpu: str, settings: dict[str, Any], left: float) -> None:
    """Catches ranges that are fitted to one GPU only: figures of tests/logged_figures.json, whose batch is known."""
    budget = compute(Options(model, gpu, max_model_len=8192, **{"gpu_memory_utilization": 0.9, **settings}))
    assert budget.available.low <= left * GIB <= budget.available.high


def test_given_parts_replace_estimates() -> None:
    """Catches a figure of the log that is ignored: with all parts given, what is left is what vLLM found."""
    budget = plan(
        LLAMA, "79.19GiB", max_model_len=8192, gpu_memory_utilization=0.95, weights_bytes="14.99GiB",
        peak_activation_bytes="1.89GiB", non_torch_bytes="0.25GiB", **H100,
    )  # fmt: skip
    assert budget.available.low <= 58.11 * GIB <= budget.available.high
    assert budget.available.high - budget.available.low < 0.04 * GIB
    assert budget.weights_bytes == Estimate.printed("14.99GiB").likely


def test_cuda_graphs_are_taken_away_since_0_21() -> None:
    """Catches a part that older versions did not count, and one that newer ones do."""
    names = [
        {name for name, _ in plan(LLAMA, "H100", vllm_version=version, max_model_len=8192).parts}
        for version in ("0.19", "0.33")
    ]
    assert "CUDA graphs" not in names[0] and "CUDA graphs" in names[1]


def test_memory_that_is_said_outright() -> None:
    """Catches kv_cache_memory_bytes that is still reduced by weights or a share."""
    budget = plan(LLAMA, "24GiB", kv_cache_memory_bytes=4 * GIB, max_model_len=8192)
    assert budget.available == Estimate.known(4 * GIB, "given") and budget.num_blocks == 2048 and budget.exact


# --- GPUs -----------------------------------------------------------------------------------------------------------


def test_gpus_by_any_name() -> None:
    """Catches a name that must be written just so, and a driver's total that is the data sheet's."""
    assert {gpu_memory(name)[0] for name in ("rtx4090", "RTX 4090", "NVIDIA GeForce RTX 4090", "rtx-4090")} == {
        "RTX 4090"
    }
    assert gpu_memory("H100")[1].likely == Estimate.printed("79.19GiB").likely
    assert gpu_memory("24GiB")[1] == gpu_memory(24 * GIB)[1] == Estimate.known(24 * GIB, "given")
    for name, sheet in GPUS.items():
        found, total = gpu_memory(name)
        assert found == name and 0.89 * sheet.gib * GIB < total.low <= total.high <= sheet.gib * GIB
        if sheet.driver_gib is not None:  # a report lies in the range that its kind would have without one
            low, _, high = DRIVER_SHARES[memory_kind(name)]
            assert low * sheet.gib <= sheet.driver_gib <= high * sheet.gib


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ("RTX 4099", "there is no GPU 'RTX 4099' in the table; did you mean RTX 4090"),
        ("A100", "'A100' may be A100-40GB or A100-80GB: name one, or give its memory"),
        ("potato", "there is no GPU 'potato' in the table; known: A100-40GB"),
        ("24G", "'24G' leaves open which unit is meant: write 24GiB or 24GB"),
        (0, "gpu is 0 bytes: give the name of a GPU"),
    ],
)
def test_unknown_gpus_are_answered(gpu: str | int, said: str) -> None:
    """Catches a guess, a KeyError, and an answer without the nearest names."""
    with pytest.raises(BudgetError) as refused:
        plan(LLAMA, gpu)
    assert said in str(refused.value)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_weights_larger_than_the_gpu() -> None:
    """Catches a negative number of blocks, and an error that does not say by how much and what to change."""
    with pytest.raises(BudgetError) as refused:
        plan("meta-llama/Llama-3.1-70B", "RTX 4090", max_model_len=8192)
    said = str(refused.value)
    assert "meta-llama/Llama-3.1-70B leaves no memory for a cache on RTX 4090: weights 131" in said
    assert "GiB more than the 21.75 GiB that a share of 0.92 gives it: no setting makes room; the least" in said
    count, name = re.search(r"--tensor-parallel-size (\d+) on \d+ of ([^,]+),", said).groups()
    assert plan("meta-llama/Llama-3.1-70B", name, max_model_len=8192, tensor_parallel_size=int(count)).fit.fits
    with pytest.raises(BudgetError, match=r"try --quantization .* tokens, "):
        plan(LLAMA, "RTX 3060", max_model_len=8192)


@pytest.mark.parametrize(
    "given", [{"gpu": "3090"}, {"available_bytes": "3090"}, {"gpu": "H100", "weights_bytes": "3090"}]
)
def test_no_gpu_has_as_much(given: dict[str, str]) -> None:
    """Catches a name of a GPU taken for its size; with a unit, and up to 1,024, a number is what it says."""
    with pytest.raises(BudgetError, match="'3090' would be 3,090 GiB: did you mean 'RTX 3090'"):
        plan(LLAMA, **given)
    assert plan(LLAMA, "1024").total.likely == 1024 * GIB and plan(LLAMA, "2000GiB").total.likely == 2000 * GIB


def test_contexts_beyond_the_model() -> None:
    """Catches a length that vLLM refuses, whatever memory there is; and a warning of one that it takes.

    A server that runs with such a length all the same is computed, and the budget says what it did."""
    said = "Qwen/Qwen3-8B takes 40,960 tokens, and max_model_len = 40961 is 1 more: vLLM refuses it unless VLLM_ALLOW"
    options = Options("Qwen3-8B", "H200", max_model_len=40_961)
    for refuses in (lambda: plan(**vars(options)), lambda: plan_longest(options)):
        with pytest.raises(BudgetError, match=said) as refused:
            refuses()
        assert str(refused.value).endswith("Use at most 40960")
    (note,) = compute(options).notes
    assert note == str(refused.value)
    assert plan("Qwen3-8B", "H200", max_model_len=40_960).notes == plan("Qwen3-8B", "H200").notes == ()


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16_384),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "model_type": "gemma3_text"}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}, 4096),
    ],
)
def test_stretched_positions(changes: dict[str, Any], length: int) -> None:
    """Catches a model's length without the factor that vLLM multiplies it by, and one multiplied twice."""
    config = {"name": "stretched", "max_position_embeddings": 4096, "model_type": "llama"}
    assert model_max_len(config | changes) == length


@pytest.mark.parametrize(("version", "length"), [("0.9", 131_072), ("0.29", 131_072), ("0.30", 32_768)])
def test_yarn_before_0_30(version: str, length: int) -> None:
    """Catches a factor that older releases multiply by and newer ones do not; Qwen2.5's card says to add this."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    config = dict(load_config("Qwen2.5-7B-Instruct")) | {"rope_parameters": yarn}
    settings = {"available_bytes": 16 * GIB, "vllm_version": version}
    assert plan(config, **settings).max_model_len == length
    assert plan(config, max_model_len=length, **settings).notes == ()
    with pytest.raises(BudgetError, match=f"takes {length:,} tokens"):
        plan(config, max_model_len=length + 1, **settings)


def test_a_stretch_that_costs_something_must_be_asked_for() -> None:
    """Catches longrope's long context by default: vLLM takes the one that the model was trained on first."""
    config = {
        "name": "long", "model_type": "phi3", "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "hidden_size": 128, "head_dim": 64, "torch_dtype": "bfloat16",
        "intermediate_size": 256,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 32},
    }  # fmt: skip
    settings = {"available_bytes": GIB, "vllm_version": "0.33"}
    assert plan(config, **settings).max_model_len == 4096
    asked = plan(config, max_model_len=100_000, **settings)
    assert asked.max_model_len == 100_000 and not asked.notes


@pytest.mark.parametrize(
    ("settings", "block_size"),
    [
        ({"gpu": "H200"}, 16),
        ({"gpu": "H200", "kv_cache_dtype": "fp8"}, 64),
        ({"gpu": "B200"}, 32),
        ({"gpu": "B200", "kv_cache_dtype": "fp8"}, 32),
        ({"gpu": "A100-80GB"}, 16),
        ({"gpu": "RTX 5090"}, 16),
        ({"gpu": "H200", "kv_cache_dtype": "fp8", "block_size": 16}, 16),
        ({"device": "cpu"}, 16),
        ({"gpu": "H200", "vllm_version": "0.17"}, 64),
        ({"gpu": "H200", "vllm_version": "0.18"}, 16),
        ({"gpu": "B200", "vllm_version": "0.10"}, 16),
        ({"gpu": "B200", "vllm_version": "0.14"}, 128),
        ({"gpu": "B200", "vllm_version": "0.17"}, 64),
    ],
)
def test_blocks_of_latents(settings: dict[str, Any], block_size: int) -> None:
    """Catches blocks of latents as long as any others: which kernel reads them, GPU, dtype and release decide."""
    budget = compute(Options("DeepSeek-V3", tensor_parallel_size=8, available_bytes=8 * GIB, **settings))
    assert budget.block_size == block_size
    assert any("latents, in blocks of" in note for note in budget.notes) == (block_size > 16)


def test_blocks_of_latents_of_an_odd_head() -> None:
    """Catches FlashInfer taken for heads that its kernel does not know: CUTLASS has blocks of 128 tokens."""
    config = dict(load_config("DeepSeek-V3")) | {"qk_nope_head_dim": 96}
    assert compute(Options(config, "B200", tensor_parallel_size=8, available_bytes=8 * GIB)).block_size == 128


@pytest.mark.parametrize("gpu", [None, "141GiB", "MI300X"])
def test_blocks_of_latents_on_a_gpu_that_is_not_known(gpu: str | None) -> None:
    """Catches a block size that is guessed and passes for exact."""
    settings = {"tensor_parallel_size": 8, "available_bytes": 8 * GIB}
    assert any("16 tokens are assumed" in note for note in compute(Options("DeepSeek-V3", gpu, **settings)).notes)
    given = compute(Options("DeepSeek-V3", gpu, block_size=64, **settings))
    assert given.block_size == 64 and not any("assumed" in note for note in given.notes)


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (LLAMA, {"gpu": "T4"}, "T4 has compute capability 7.5: vLLM 0.33.0 reads an nvfp4 cache on 8.x, 9.x, 10.x and"),
        (LLAMA, {"gpu": "MI300X"}, "MI300X has no compute capability"),
        (LLAMA, {"gpu": "H200", "vllm_version": "0.31"}, "vLLM 0.31.0 reads an nvfp4 cache on 10.x only"),
        (LLAMA, {"gpu": "RTX 3090"}, ""),
        (LLAMA, {"gpu": "B200", "vllm_version": "0.31"}, ""),
        (LLAMA, {"gpu": "24GiB"}, ""),
        ("openai/gpt-oss-20b", {"gpu": "H200"}, "on H200 vLLM refuses an nvfp4 cache for heads of 64"),
        ("openai/gpt-oss-20b", {"gpu": "B200"}, ""),
        (LLAMA, {"device": "cpu"}, "no nvfp4 cache on a CPU"),
    ],
)
def test_who_reads_nvfp4(model: str, settings: dict[str, Any], said: str) -> None:
    """Catches a cache in four bits for a GPU on which no kernel reads one; and a warning where one does."""
    notes = compute(Options(model, kv_cache_dtype="nvfp4", available_bytes=GIB, **settings)).notes
    found = [note for note in notes if "nvfp4 cache" in note]
    assert len(found) == bool(said) and all(said in note for note in found)


def test_context_that_does_not_fit() -> None:
    """Catches the null block counted as usable: 16 GiB are 8,192 blocks of which 8,191 can be used."""
    with pytest.raises(BudgetError) as refused:
        plan(LLAMA, available_bytes=16 * GIB, max_model_len=131_072)
    assert "131,072 tokens needs 16.00 GiB of cache" in str(refused.value)
    assert ": try --max-model-len 131056, the longest request that fits, or --kv-cache-dtype fp8" in str(refused.value)
    assert plan(LLAMA, available_bytes=16 * GIB, max_model_len=131_056).num_blocks == 8192
    assert plan(LLAMA, available_bytes=16 * GIB + 2 * 2**20, max_model_len=131_072).num_blocks == 8193


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tensor_parallel_size": 3}, "32 attention heads do not divide among tensor_parallel_size = 3"),
        ({"pipeline_parallel_size": 33}, "a rank would have none"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization is 1.1: give a share above 0, at most 1"),
        ({"max_model_len": 0}, "max_model_len is 0: give a whole number of at least 1"),
        ({"available_bytes": "58.11G"}, "available_bytes: '58.11G' leaves open which unit is meant"),
        ({"available_bytes": -1}, "available_bytes is -1: give a number of bytes"),
        ({"device": "tpu"}, "device is 'tpu': use 'gpu' or 'cpu'"),
        ({"usage": "chat"}, "usage is 'chat': use 'serve' or 'offline'"),
        ({"gpu": None}, "nothing says how much memory there is: give gpu"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    """Catches a setting that is taken for another, or passed on to fail where nobody knows its name."""
    with pytest.raises(BudgetError) as refused:
        plan(LLAMA, **{"gpu": "H100", **settings})
    assert said in str(refused.value)


def test_unknown_setting() -> None:
    """Catches a misspelt setting that is swallowed."""
    with pytest.raises(TypeError, match="max_model_length"):
        plan(LLAMA, "H100", max_model_length=8192)


def test_json_has_every_field() -> None:
    """Catches a field that was renamed, or one that JSON cannot hold."""
    budget = plan("google/gemma-3-27b-it", "H100", max_model_len=8192)
    report = json.loads(json.dumps(budget.to_json(), allow_nan=False))
    assert report["bytes_per_token"] == 62 * 2 * 16 * 128 * 2
    for name in (
        "bytes_per_token", "bytes_per_block", "num_blocks", "blocks_per_request", "kv_tokens", "max_concurrency",
        "weights_bytes", "available_bytes",
    ):  # fmt: skip
        assert report[name] == getattr(budget, name)
    assert [group["layers"] + group["padding_layers"] for group in report["groups"]] == [10] * 7
    assert report["parts"]["available"]["low"] < report["available_bytes"] < report["parts"]["available"]["high"]
