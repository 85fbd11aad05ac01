"""A log's figures are computed again: those that come out do, those that do not say by how much."""

from pathlib import Path

import pytest

from pagedattn_lab.vllm_log import read_log
from pagedattn_lab.vllm_log.check import check, settings

LOGS = Path(__file__).parent / "vllm_logs"

GEMMA_3_1B = {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 26, "hidden_size": 1152,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
    "sliding_window_pattern": 6, "vocab_size": 262144, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}  # fmt: skip
PLAIN = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 151552, "intermediate_size": 12288,
    "max_position_embeddings": 524288, "torch_dtype": "bfloat16", "hidden_size": 5120, "num_key_value_heads": 8,
    "head_dim": 128,
}  # fmt: skip
SEED_OSS_36B = PLAIN | {"num_hidden_layers": 64, "num_attention_heads": 80}
GLM_4_7 = PLAIN | {"num_hidden_layers": 92, "num_attention_heads": 80}

LOGGED = """(EngineCore_DP0 pid=1) INFO 10-10 13:01:02 [core.py:77] Initializing a V1 LLM engine (v{version}) with \
config: model='{model}', dtype=torch.bfloat16, max_seq_len={length}, tensor_parallel_size={tp}, kv_cache_dtype=auto
(EngineCore_DP0 pid=1) INFO 10-10 13:02:10 [gpu_worker.py:298] Available KV cache memory: {available} GiB
(EngineCore_DP0 pid=1) INFO 10-10 13:02:10 [kv_cache_utils.py:864] GPU KV cache size: {tokens} tokens
(EngineCore_DP0 pid=1) INFO 10-10 13:02:10 [kv_cache_utils.py:868] Maximum concurrency for {length} tokens per \
request: {concurrency}x
"""


TOO_SMALL = """ValueError: To serve at least one request with the model's max seq len (262144), 16.80 GiB KV cache is \
needed, which is larger than the available KV cache memory (4.00 GiB). Based on the available memory, the estimated \
maximum model length is 1."""


def logged(**given):
    """A log of Qwen3-14B, with what is given in place of its own."""
    usual = {"version": "0.11.0", "model": "Qwen/Qwen3-14B", "length": 32768, "tp": 1, "available": "6.51"}
    return read_log(LOGGED.format(**usual | {"tokens": "42,656", "concurrency": "1.30"} | given))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("smollm2-cpu-v0.32", None),
        ("qwen3-8b-graphs-v0.21", "Qwen3-8B"),
        ("llama-3.1-8b-29k-v0.6", "Llama-3.1-8B"),
        ("qwen2.5-7b-8gb-v0", "Qwen2.5-7B"),
        ("gemma-3-1b-v0.13", GEMMA_3_1B),
        ("seed-oss-36b-tp2-v0.11", SEED_OSS_36B),
        ("glm-4.7-pp8-too-small", GLM_4_7),
    ],
)
def test_other_peoples_logs_come_out(name, model):
    """A setting of the log that does not reach the budget: ranks, blocks of a CPU, a version's formula, an error."""
    found = check(read_log((LOGS / f"{name}.txt").read_text(encoding="utf-8")), model)
    assert found.comes_out is True and found.said.startswith("It comes out: "), found
    assert found.figures and all(figure.comes_out and figure.off_by == 0 for figure in found.figures)


def test_all_that_can_be_compared_is():
    """A figure that nobody looks at: the error's estimate, the blocks of V0."""
    names = {
        name: [figure.name for figure in check(read_log((LOGS / name).read_text(encoding="utf-8")), model).figures]
        for name, model in (
            ("glm-4.7-pp8-too-small.txt", GLM_4_7),
            ("llama-3.1-8b-29k-v0.6.txt", "Llama-3.1-8B"),
        )
    }
    assert names["glm-4.7-pp8-too-small.txt"] == ["needed_bytes", "estimated_max_model_len"]
    assert names["llama-3.1-8b-29k-v0.6.txt"] == ["kv_tokens", "num_blocks", "max_concurrency"]


@pytest.mark.parametrize("tokens", ["42,608", "42,704", "21,328", "85,312"])
def test_one_block_beyond_what_the_decimals_allow_does_not_come_out(tokens):
    """A tolerance so wide that anything passes: 6.51 GiB make 42,624 to 42,688 tokens, no more and no less."""
    found = check(logged(tokens=tokens))
    assert found.comes_out is False
    assert "6.51 GiB make 42,624 to 42,688 tokens, and the log says " + tokens in found.said
    off = int(tokens.replace(",", "")) - (42_624 if tokens < "42,624" else 42_688)
    assert ("less" if off < 0 else "more") in found.said


@pytest.mark.parametrize(
    ("concurrency", "comes_out"), [("1.30", True), ("1.29", False), ("1.31", False), ("3.10", False), ("0.65", False)]
)
def test_a_concurrency_that_does_not_follow_does_not_come_out(concurrency, comes_out):
    """A tolerance wider than two decimals: 42,624 to 42,688 tokens are 1.3008 to 1.3027 times 32,768, so 1.30."""
    found = check(logged(concurrency=concurrency))
    assert found.comes_out is comes_out
    assert [figure.name for figure in found.figures if not figure.comes_out] == ["max_concurrency"] * (not comes_out)
    assert comes_out or f"requests at once, and the log says {concurrency}, " in found.said


def test_by_how_much_and_why():
    """A difference in percent of the wrong figure, and a likely cause that is not named."""
    half = check(logged(tokens="21,312"))
    assert "21,312, 50.0% less." in half.said and "rank" not in half.said and half.figures[0].off_by == -0.5
    ranks = check(logged(tokens="80,000", tp=2, concurrency="2.44"))
    assert "not the memory of every rank" in ranks.said
    assert "every rank" not in check(logged(tokens="90,000", tp=2, concurrency="2.75")).said
    assert "8-bit cache" in check(logged(tokens="85,312", concurrency="2.60")).said


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-14B", "Qwen/Qwen3-14B-AWQ", "/models/Qwen3-14B-FP8", "qwen3-14b", "x/Qwen3-14B-w4a16-G128"]
)
def test_a_model_by_another_name(name):
    """A quantised model, or a folder of it, whose cache is as the model's own; and that this is said."""
    found = check(logged(model=name))
    assert found.comes_out is True
    assert (found.assumed == ()) == (name == "Qwen/Qwen3-14B")


def test_what_the_log_does_not_say_is_said():
    """Defaults taken in silence."""
    log = "non-default args: {'model': 'Qwen/Qwen3-14B'}\nAvailable KV cache memory: 6.51 GiB\n"
    found = check(read_log(log + "GPU KV cache size: 42,656 tokens"))
    said = " ".join(found.assumed)
    assert found.comes_out is True
    assert "vLLM 0.99.1 is newer than" in check(logged(version="0.99.1")).assumed[0]
    assert all(word in said for word in ("version", "max_model_len", "cache's dtype", "ranks share a layer"))


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (logged(model="Somebody/Own-7B"), "Somebody/Own-7B is not among the "),
        (read_log("Available KV cache memory: 6.51 GiB"), "does not say what the cache holds"),
        (read_log("GPU KV cache size: 42,656 tokens"), "does not say how much memory"),
        (read_log("Available KV cache memory: 6.51 GiB\nGPU KV cache size: 42,656 tokens"), "does not name the model"),
        (read_log(LOGGED.format(version="0.11.0", model="Qwen/Qwen3-14B", length=32768, tp=1, available="6.51",
                                tokens="1", concurrency="1.0") + "Hybrid KV cache manager is disabled for this hybrid "
                  "model"), "Windows are charged in full"),
        (logged(tp=3), "cannot be computed: "),
        (logged(model="Qwen/Qwen3-14B', speculative_config=SpeculativeConfig(method='eagle', model='x', "
                      "num_spec_tokens=3), x='"), "draft model (eagle) are not known"),
    ],
)  # fmt: skip
def test_what_is_not_enough(log, said):
    """A guess where the log is silent, a look-up on the network, or an exception."""
    found = check(log)
    assert found.comes_out is None and said in found.said and found.said.endswith(".")


def test_ranks_of_a_pipeline_have_their_own_memory():
    """The least of all ranks taken for each: of 40 layers on three ranks, the one in the middle has 14."""
    lines = "".join(
        f"(Worker_PP{rank} pid=1{rank}) INFO 10-10 13:02:10 [gpu_worker.py:298] Available KV cache memory: {size} GiB\n"
        for rank, size in enumerate(("2.12", "2.30", "2.12"))
    )
    head = logged().lines[0].text.replace("tensor_parallel_size=1", "tensor_parallel_size=1, pipeline_parallel_size=3")
    found = check(read_log(f"{head}\n{lines}GPU KV cache size: 42,736 tokens"))
    assert found.comes_out is True, found.said


def test_an_error_alone_prints_what_is_left_without_the_null_block():
    """The block that 0.33 sets aside before it prints the error, taken off twice; a hybrid has large blocks."""
    head = logged(version="0.33.0", model="Qwen/Qwen3.5-27B", length=262_144).lines[0].text
    longest = check(read_log(f"{head}\n{TOO_SMALL}")).figures[-1]
    other = check(read_log(f"{head}\nAvailable KV cache memory: 4.00 GiB\n{TOO_SMALL}")).figures[-1]
    assert longest.name == other.name == "estimated_max_model_len"
    assert longest.low > other.low


@pytest.mark.parametrize(
    ("version", "length", "comes_out"),
    [
        ("0.11.0", 26_240, True), ("0.11.0", 26_256, False), ("0.11.0", 26_160, False),
        ("0.33.0", 26_160, True), ("0.33.0", 26_240, False), ("0.33.0", 26_144, False),
    ],
)  # fmt: skip
def test_auto_fit(version, length, comes_out):
    """The length that was fitted taken for the one that was asked for; a block set aside in the wrong versions."""
    first, *others = logged(
        version=version, available="4.00", tokens=f"{length:,}", length=length, concurrency="1.00"
    ).lines
    fitted = (
        f"Auto-fit max_model_len: reduced from 40960 to {length} to fit in available GPU memory (4.00 GiB available)"
    )
    found = check(read_log("\n".join([first.text, fitted, *(line.text for line in others)])))
    ends = "26,176 to 26,240" if version == "0.11.0" else "26,160 to 26,224"
    assert found.comes_out is comes_out and f"4.0 GiB make {ends} tokens of the longest request" in found.said


def test_a_cpu_is_said_to_be_one():
    """A card's block size of 16 where a CPU's is 128, if the log does not say which."""
    log = read_log((LOGS / "smollm2-cpu-v0.32.txt").read_text(encoding="utf-8").replace("'block_size': 32, ", ""))
    said = settings(log, "SmolLM2-135M", "0.32")
    assert said["device"] == "cpu" and "block_size" not in said


def test_a_huge_cache_is_computed_all_the_same():
    """An overflow from a figure that no machine has."""
    assert check(logged(available="999999999999.99")).comes_out is False
