"""Start-up logs of vLLM: every wording, whatever stands before the messages, and texts that are no such logs."""

import re
from pathlib import Path

import pytest

from pagedattn_lab.vllm_log import StartUpLog, read_log
from pagedattn_lab.vllm_log.meanings import EXPLAINERS
from pagedattn_lab.vllm_log.words import GIB, KINDS

LOGS = Path(__file__).parent / "vllm_logs"

PREFIXES = [
    "",
    "INFO 11-28 10:00:00 [gpu_worker.py:298] ",
    "INFO 11-28 10:00:00 [v1/worker/gpu_worker.py:298] ",
    "(EngineCore_DP0 pid=123) INFO 11-28 10:00:00 [gpu_worker.py:298] ",
    "INFO 02-13 15:01:07 gpu_model_runner.py:872] ",
    "INFO:     2026-11-28 10:00:00,123 gpu_worker.py:298] ",
    "(VllmWorkerProcess pid=4711) INFO 02-13 15:01:07 worker.py:267] ",
    "(VllmWorker rank=1 pid=12) INFO 05-01 01:02:03 [gpu_worker.py:298] ",
    "(RayWorkerWrapper pid=77, ip=10.0.0.2) INFO 05-01 01:02:03 [gpu_worker.py:298] ",
    "\x1b[0;36m(EngineCore_DP0 pid=123)\x1b[0;0m INFO 11-28 10:00:00 [gpu_worker.py:298] ",
    "vllm-1  | 2026-11-28T10:00:00.123Z (Worker_TP0_EP0 pid=9) \x1b[32mINFO\x1b[0m 11-28 10:00:00 [gpu_worker.py:298] ",
    "      ",
]


def log_of(name):
    return read_log((LOGS / name).read_text(encoding="utf-8"))


def figures(log):
    """What the log gave, without its lines."""
    return {name: value for name, value in vars(log).items() if value not in (None, ()) and name != "lines"}


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_line_of_a_fixture_has_its_sentences(path):
    """A kind of line without a meaning, a sentence without its stop, a figure that was not filled in."""
    log = read_log(path.read_text(encoding="utf-8"))
    assert log.lines and log.num_starts == 1
    for line in log.lines:
        for sentence in (line.meaning, line.follows_from, line.change or "None needed."):
            assert sentence.endswith(".")
            assert not re.search(r"\.\.|None(?! needed)|nan|  |\{", sentence), sentence
        assert line.text in path.read_text(encoding="utf-8").split("\n")[line.number - 1]


def test_every_kind_of_line_has_its_meaning():
    """A pattern added without words for it: a KeyError at the reader's."""
    assert EXPLAINERS.keys() == KINDS.keys()


def test_a_log_of_two_ranks_of_0_11():
    """A field that is taken from the wrong line: each is compared with what the log prints."""
    log = log_of("seed-oss-36b-tp2-v0.11.txt")
    assert (log.version, log.model, log.architecture) == (
        "0.11.2", "ByteDance-Seed/Seed-OSS-36B-Instruct", "SeedOssForCausalLM",
    )  # fmt: skip
    assert (log.dtype, log.kv_cache_dtype, log.tensor_parallel_size, log.pipeline_parallel_size) == (
        "bfloat16", "auto", 2, 1,
    )  # fmt: skip
    assert (log.max_model_len, log.max_num_batched_tokens, log.max_num_seqs) == (131072, 8192, 1)
    assert log.attention_backend == "FLASH_ATTN" and log.enforce_eager is True and log.device == "cuda"
    assert log.weights_bytes == round(33.7942 * GIB) and log.available_bytes == round(35.99 * GIB)
    assert log.available_by_rank == (("Worker_TP0", log.available_bytes),)
    assert (log.kv_tokens, log.max_concurrency) == (294_816, 2.25)
    assert log.failed is None and log.block_size is None


def test_padding_layers_and_tokens_that_are_not_the_concurrency_times_the_length():
    """A reader left to wonder why tokens over length are not the printed concurrency."""
    log = log_of("gemma-3-1b-v0.13.txt")
    assert (log.padding_layers, log.padding_waste_percent, log.gpu_memory_utilization) == (2, 9.09, 0.95)
    assert log.captured_bytes == -round(0.22 * GIB)
    (capacity,) = [line for line in log.lines if line.what == "capacity"]
    assert "464.29, not 461.21" in capacity.follows_from and "no rate here" in capacity.follows_from


def test_a_plain_model_has_a_rate():
    """The remark about windows and states at a model without any, whose bytes a token are a rate."""
    (capacity,) = [line for line in log_of("qwen3-8b-graphs-v0.21.txt").lines if line.what == "capacity"]
    assert "about 147,510 bytes a token" in capacity.follows_from and "no rate" not in capacity.follows_from
    assert "would be" not in capacity.follows_from


def test_a_card_without_room_in_the_words_of_v0():
    """A sign that is lost, which would make a cache of what is missing."""
    log = log_of("qwen2.5-7b-8gb-v0.txt")
    assert log.total_bytes == 8 * GIB and log.requested_bytes == round(5.6 * GIB)
    assert log.available_bytes == -round(1.05 * GIB) and log.peak_activation_bytes == round(1.42 * GIB)
    assert (log.num_blocks, log.max_concurrency, log.max_model_len, log.gpu_memory_utilization) == (0, 0.0, 4096, 0.7)


def test_a_shorter_length_is_no_gain() -> None:
    """Advice to lower the length of a server that runs, which changes this figure and lets nobody more in."""
    fits, does_not = (
        read_log(f"Maximum concurrency for 8,192 tokens per request: {times}x").lines[0].change for times in (2.5, 0.9)
    )
    assert "--max-model-len" not in fits and "budget --workload" in fits and "--gpu-memory-utilization" in fits
    assert does_not.startswith("Lower --max-model-len, or make more room")


def test_a_length_that_does_not_fit_in_the_words_of_v0():
    """The error's tokens, which are the blocks' times 16, and that there is no server after it."""
    log = log_of("llama-3.1-8b-29k-v0.6.txt")
    assert (log.num_blocks, log.kv_tokens, log.max_model_len, log.failed) == (1478, 1478 * 16, 29_000, "too small")
    assert log.available_bytes == round(2.89 * GIB) and log.total_bytes == round(23.58 * GIB)
    assert "--max-model-len to 23,648" in log.lines[-1].change


def test_a_length_that_does_not_fit_in_the_words_of_v1():
    """The estimate left unread, and lines of the traceback, which show the source, taken for errors of their own."""
    log = log_of("glm-4.7-pp8-too-small.txt")
    assert [line.what for line in log.lines] == ["too small"] == [log.failed]
    assert (log.max_model_len, log.estimated_max_model_len) == (202_752, 81_392)
    assert (log.needed_bytes, log.available_bytes) == (round(71.16 * GIB), round(28.57 * GIB))


def test_a_hybrid_says_why_its_hit_rate_is_zero():
    """A reader who looks for a fault in prefix caching where the block is longer than the prompts."""
    log = log_of("qwen3.6-27b-tp2-mtp.txt")
    assert (log.block_size, log.padding_layers, log.kv_tokens) == (1600, 3, 619_202)
    running = log.lines[-1]
    assert running.what == "running" and "2 requests run and 3 wait" in running.meaning
    assert "must fill a block of 1,600 tokens" in running.change


def test_a_line_with_both_figures():
    """The words of today, which put the concurrency on the line of the tokens."""
    log = log_of("awq-48gb-one-line.txt")
    assert (log.kv_tokens, log.max_model_len, log.max_concurrency) == (268_560, 2048, 131.13)
    assert log.cuda_graph_bytes == round(0.42 * GIB) and log.captured_bytes == round(0.22 * GIB)
    assert (log.free_bytes, log.total_bytes) == (round(46.99 * GIB), round(47.37 * GIB))
    assert log.weights_bytes is None and log.consumed_bytes == round(2.81 * GIB)


def test_a_start_on_a_cpu():
    """The machine's memory taken for a card's, or the block size of the options for none."""
    log = log_of("smollm2-cpu-v0.32.txt")
    assert (log.version, log.model, log.device) == ("0.32.0", "HuggingFaceTB/SmolLM2-135M-Instruct", "cpu")
    assert (log.available_bytes, log.total_bytes) == (GIB, round(23.54 * GIB))
    assert (log.block_size, log.kv_tokens, log.max_concurrency, log.max_num_seqs) == (32, 46_592, 22.75, 16)
    assert log.kv_tokens == GIB // (32 * 30 * 2 * 3 * 64 * 2) * 32
    (available,) = [line for line in log.lines if line.what == "available"]
    assert "VLLM_CPU_KVCACHE_SPACE" in available.follows_from + available.change
    (capacity,) = [line for line in log.lines if line.what == "capacity"]
    assert "utilization" not in capacity.change


SUMS = [
    (  # 0.8 to 0.30: the estimate for graphs is taken off besides
        "Free memory on device (78.00/79.19 GiB) on startup. Desired GPU memory utilization is (0.9, 71.27 GiB). "
        "Actual usage is 15.00 GiB for weight, 1.50 GiB for peak activation, 0.25 GiB for non-torch memory, and 0.50 "
        "GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=1`",
        "0.60",
        "53.92",
        "71.27 GiB asked for, less 15.0 GiB weights, 0.25 GiB outside of torch, 1.5 GiB peak activation: 54.52 GiB, "
        "less 0.6 GiB for CUDA graphs: 53.92 GiB.",
    ),
    (  # from 0.31 on, the peak has it in it
        "Free memory on device (46.99/47.37 GiB) on startup. Desired GPU memory utilization is (0.85, 40.27 GiB). "
        "Actual usage is 2.81 GiB for consumed memory (weight and others), 0.57 GiB for peak activation, and 0.22 GiB "
        "for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=1`",
        "0.42",
        "36.89",
        "40.27 GiB asked for, less 2.81 GiB weights and the like, 0.57 GiB peak activation: 36.89 GiB.",
    ),
]


@pytest.mark.parametrize(("line", "graphs", "available", "said"), SUMS, ids=["0.8", "0.31"])
def test_the_sum_by_which_memory_is_left(line, graphs, available, said):
    """CUDA graphs taken off twice, or not at all: from 0.31 on the peak has their estimate in it, before it has not."""
    lines = [f"Estimated CUDA graph memory: {graphs} GiB total", f"Available KV cache memory: {available} GiB", line]
    assert read_log("\n".join(lines)).lines[1].follows_from == said
    off = f"{float(available) - 1:.2f}"
    lines[1] = f"Available KV cache memory: {off} GiB"
    assert f"; the log says {off} GiB, " in read_log("\n".join(lines)).lines[1].follows_from


def test_an_error_does_not_change_what_was_available():
    """A block less than there was: from 0.31 or so on, the error prints what is left without the null block."""
    error = (LOGS / "glm-4.7-pp8-too-small.txt").read_text(encoding="utf-8")
    assert read_log("Available KV cache memory: 28.60 GiB\n" + error).available_bytes == round(28.6 * GIB)


def test_lines_are_counted_as_editors_count_them():
    """Numbers that are off by the progress bars above, which end in carriage returns, or by a form feed."""
    (line,) = read_log("0%\r50%\r100%\x0c\x85\u2028\nUsing max model len 8").lines
    assert line.number == 2


def test_several_starts_in_one_file():
    """Figures of a start that failed, kept for the one that did not; and lines that come before every version."""
    start = "vLLM API server version 0.{0}.0\nnon-default args: {{'model': 'a/m{0}'}}\n"
    first = start.format(11) + "GPU KV cache size: 1,600 tokens\nCUDA out of memory. Tried to allocate 2.00 GiB\n"
    stray = "Chunked prefill is enabled with max_num_batched_tokens=2048.\n"
    log = read_log(first + stray + start.format(12) + "GPU KV cache size: 3,200 tokens\n")
    assert (log.num_starts, log.version, log.model, log.kv_tokens, log.failed) == (2, "0.12.0", "a/m12", 3200, None)
    assert log.lines[0].number == 6
    assert read_log(stray + start.format(12)).num_starts == 1


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_stands_before_a_message_does_not_matter(prefix):
    """A log through Docker, a terminal or another version, of which nothing is recognised."""
    messages = [
        "Model loading took 5.2032 GiB memory and 1.3 seconds",
        "Available KV cache memory: 6.51 GiB",
        "GPU KV cache size: 42,656 tokens",
        "Maximum concurrency for 32,768 tokens per request: 1.30x",
    ]
    log = read_log("\n".join(prefix + message for message in messages))
    assert [line.text for line in log.lines] == messages
    assert [line.what for line in log.lines] == ["weights", "available", "capacity", "concurrency"]
    assert (log.available_bytes, log.kv_tokens) == (round(6.51 * GIB), 42_656)
    assert (log.max_model_len, log.max_concurrency) == (32_768, 1.3)


@pytest.mark.parametrize(
    ("prefix", "rank"),
    [
        ("(EngineCore_DP0 pid=123) ", "EngineCore_DP0"),
        ("(VllmWorker rank=1 pid=12) ", "VllmWorker 1"),
        ("(VllmWorkerProcess pid=4711) ", "VllmWorkerProcess 4711"),
        ("(Worker_TP0_EP0 pid=9) ", "Worker_TP0_EP0"),
        ("", ""),
    ],
)
def test_which_rank_said_it(prefix, rank):
    """Ranks taken for one, so that the least of what they have left is not found."""
    assert read_log(prefix + "INFO 11-28 10:00:00 [a.py:1] Available KV cache memory: 1.0 GiB").lines[0].rank == rank


@pytest.mark.parametrize("name", ["(Worker_TP{0} pid=1{0}) ", "(VllmWorkerProcess pid=10{0}) ", ""])
def test_the_least_of_the_ranks_counts(name):
    """The last rank's memory in place of the least: more blocks than the cache has."""
    sizes = ["9.84", "9.12", "9.50"]
    lines = [name.format(rank) + f"Available KV cache memory: {size} GiB" for rank, size in enumerate(sizes)]
    log = read_log("\n".join(lines))
    assert log.available_bytes == round(9.12 * GIB) and len(log.available_by_rank) == 3
    assert all("The least of the ranks counts: 9.12 GiB" in line.meaning for line in log.lines)


def test_tokens_of_several_ranks_are_the_least():
    """0.8 printed tokens for every rank, and made the cache as large as the smallest."""
    ranks = [f"GPU KV cache size: {tokens} tokens\nMaximum concurrency for 4,096 tokens per request: {times}x"
             for tokens, times in (("81,920", "20.00"), ("40,960", "10.00"), ("61,440", "15.00"))]  # fmt: skip
    log = read_log("\n".join(ranks))
    assert (log.kv_tokens, log.max_concurrency) == (40_960, 10.0)


@pytest.mark.parametrize(
    ("line", "what", "expected"),
    [
        ("# GPU blocks: 36184, # CPU blocks: 2340", "blocks", {"num_blocks": 36_184}),
        ("# cuda blocks: 7,448, # CPU blocks: 655", "blocks", {"num_blocks": 7_448}),
        ("# CPU blocks: 1", "", {}),
        ("CPU KV cache size: 93,184 tokens, Maximum concurrency for 2,048 tokens per request: 45.50x", "capacity",
         {"kv_tokens": 93_184, "max_concurrency": 45.5, "max_model_len": 2048, "device": "cpu"}),
        ("Explicitly set (2.0/15.5) GiB for KV cache on node 0.", "available",
         {"available_bytes": 2 * GIB, "device": "cpu"}),
        ("Initial free memory 70.1 GiB, reserved 10.00 GiB memory for KV Cache as specified by kv_cache_memory_bytes "
         "config and skipped memory profiling.", "available", {"available_bytes": 10 * GIB}),
        ("Auto-fit max_model_len: reduced from 131072 to 38992 to fit in available GPU memory (4.77 GiB available for "
         "KV cache)", "auto-fit",
         {"max_model_len": 38_992, "original_max_model_len": 131_072, "available_bytes": round(4.77 * GIB)}),
        ("Auto-fit max_model_len: full model context length 40960 fits in available GPU memory", "auto-fit",
         {"max_model_len": 40_960}),
        ("Overriding num_gpu_blocks=7000 with num_gpu_blocks_override=512", "override", {"num_blocks": 512}),
        ("Using AttentionBackendEnum.FLASHINFER backend.", "backend", {"attention_backend": "FLASHINFER"}),
        ("Using Flash Attention backend on V1 engine.", "backend", {"attention_backend": "Flash Attention"}),
        ("Using Triton MLA backend on V1 engine.", "backend", {"attention_backend": "Triton MLA"}),
        ("Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'FLASHINFER']", "backend",
         {"attention_backend": "FLASH_ATTN"}),
        ("Using XFormers backend.", "backend", {"attention_backend": "XFormers"}),
        ("Setting kv cache block size to 32 for FlashInfer backend.", "block size", {"block_size": 32}),
        ("Setting attention block size to 784 tokens to ensure that attention page size is >= mamba page size.",
         "block of a hybrid", {"block_size": 784}),
        ("Using fp8_e5m2 data type to store kv cache. It reduces the GPU memory footprint", "cache dtype",
         {"kv_cache_dtype": "fp8_e5m2"}),
        ("Hybrid KV cache manager is disabled for this hybrid model, This means we do not", "windows charged in full",
         {"windows_charged_in_full": True}),
        ("Free memory on device cuda:0 (1.59/23.56 GiB) on startup is less than desired GPU memory utilization (0.9, "
         "21.2 GiB). Decrease", "card in use", {"failed": "card in use", "gpu_memory_utilization": 0.9}),
        ("Free memory on device (1.59/23.56 GiB) on startup is less than desired GPU memory utilization (0.9, 21.2 "
         "GiB).", "card in use", {"free_bytes": round(1.59 * GIB), "total_bytes": round(23.56 * GIB)}),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity",
         "out of memory", {"failed": "out of memory"}),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
         "nothing left", {"failed": "nothing left"}),
        ("Sequence group cmpl-1 is preempted by PreemptionMode.RECOMPUTE mode because there is not enough KV cache "
         "space.", "preempted", {}),
        ("Engine 000: Avg prompt throughput: 1.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 1.5%, "
         "Prefix cache hit rate: 35.1%", "running", {}),
        ("Avg prompt throughput: 1.0 tokens/s, Running: 1 reqs, Swapped: 0 reqs, Pending: 0 reqs, GPU KV cache usage: "
         "1.5%, CPU KV cache usage: 0.0%.", "running", {}),
        ("vLLM server version 0.33.0, serving model Qwen/Qwen3-8B", "version",
         {"version": "0.33.0", "model": "Qwen/Qwen3-8B"}),
        ("Initializing an LLM engine (v0.6.4.post1) with config: model='facebook/opt-125m', speculative_config=None, "
         "dtype=torch.float16, max_seq_len=2048, quantization=None, kv_cache_dtype=auto, device_config=cuda",
         "configuration", {"version": "0.6.4.post1", "model": "facebook/opt-125m", "dtype": "float16",
                           "max_model_len": 2048, "kv_cache_dtype": "auto", "quantization": None, "device": "cuda"}),
        ("non-default args: {'model': 'a/b', 'max_model_len': -1, 'gpu_memory_utilization': 0.5}", "arguments",
         {"model": "a/b", "max_model_len": None, "gpu_memory_utilization": 0.5}),
        ("args: Namespace(host=None, model='a/b', max_model_len=512, block_size=None, enforce_eager=True)", "arguments",
         {"model": "a/b", "max_model_len": 512, "block_size": None, "enforce_eager": True}),
    ],
)  # fmt: skip
def test_a_line(line, what, expected):
    """A wording that is not recognised, or a figure of it in the wrong field."""
    log = read_log("(EngineCore_DP0 pid=1) INFO 11-28 10:00:00 [x.py:1] " + line)
    assert [found.what for found in log.lines] == [what][: len(what)]
    assert {name: getattr(log, name) for name in expected} == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n   \n",
        "\x00\x01\x02\ufffd",
        "INFO:     Uvicorn running on http://0.0.0.0:8000\nINFO:     Application startup complete.",
        "llama_kv_cache: size = 1024.00 MiB (4096 cells, 32 layers)\nllama_init: n_ctx = 4096",
        "[2026-11-28] KV Cache is allocated. #tokens: 438000, K size: 26.7 GB, V size: 26.7 GB",
        "GPU KV cache size: tokens",
        "GPU KV cache size: many tokens",
        "GPU KV cache size: 4,0",
        "Available KV cache memory: GiB",
        "Available KV cache memory: 1.2.3 GiB",
        "Available KV cache memory: 1e5 GiB",
        "Available KV cache memory: 5.98 G",
        "Available KV cache memory: nan GiB",
        "Maximum concurrency for  tokens per request: x",
        "Maximum concurrency for 4,096 tokens per request: 1.3",
        "# GPU blocks: , # CPU blocks: ",
        "Model loading took",
        '    raise ValueError("No available memory for the cache blocks. "',
        "GPU KV cache size: " + "9" * 5000 + " tokens",
        "GPU KV cache size: " + "9," * 5000 + "9 tokens",
        "Available KV cache memory: " + "9" * 400 + " GiB",
        "Available KV cache memory: 1." + "9" * 400 + " GiB",
        "Available \x1b]0;KV cache memory: 1.0 GiB",
        "x" * 200_000 + "Available KV cache memory: 1.0 GiB",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_no_such_log_gives_none(text):
    """A crash, or a figure made of half a line: a number cut out of a longer one is worse than none."""
    log = read_log(text)
    assert log == StartUpLog() and figures(log) == {"num_starts": 0}


def test_a_log_that_is_cut_anywhere_is_read_as_far_as_it_goes():
    """An exception at a line that ends early, or a figure that differs from that of the whole line."""
    text = (LOGS / "gemma-3-1b-v0.13.txt").read_text(encoding="utf-8")
    whole = read_log(text)
    for end in range(0, len(text), 7):
        cut = text[:end]
        for name, value in figures(read_log(cut[: cut.rfind("\n") + 1])).items():
            assert name in ("num_starts", "model", "available_by_rank") or value == getattr(whole, name), name
        read_log(cut)


@pytest.mark.parametrize("digits", [18, 21, 60])
def test_huge_numbers(digits):
    """An overflow, or Python's refusal to read thousands of digits, from a line that is not to be trusted."""
    log = read_log(f"GPU KV cache size: {'9' * digits} tokens")
    assert log.kv_tokens in (None, int("9" * digits))
    log = read_log(f"Using max model len {'9' * digits}")
    assert log.max_model_len in (None, int("9" * digits))
    log = read_log("Available KV cache memory: 999999999999.99 GiB\nGPU KV cache size: 1 tokens")
    assert log.kv_tokens == 1 and "GiB" in log.lines[0].meaning


def test_lines_of_many_patterns_are_read_in_no_time():
    """A pattern that tries all ways to split a long line: minutes for one line that nobody wrote."""
    nasty = [
        "(Worker" * 2000,
        "Free memory on device (" * 2000,
        "[a.py:1" * 3000,
        "Running: 1 reqs, Waiting: 1 reqs " * 800,
    ]
    nasty += [
        "CUDA graph memory profiling is disabled " * 1000,
        "non-default args: {" + "'model': " * 5000,
        "1," * 9000,
    ]
    for line in nasty:
        read_log(line)
