"""``budget`` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget import Estimate, Options, first_change, largest_context, plan, users
from pagedattn_lab.budget.compute import compute
from pagedattn_lab.cli import main
from pagedattn_lab.workloads import load_trace
from tests.helpers.cli import AZURE, assert_one_line, report_of

LLAMA = "meta-llama/Llama-3.1-8B"
FIELDS = (
    "bytes_per_token", "bytes_per_block", "num_blocks", "blocks_per_request", "kv_tokens", "max_concurrency",
    "weights_bytes", "available_bytes",
)  # fmt: skip
"""What every budget answers in JSON."""

LOG = """INFO 03-08 16:43:01 [core.py:77] Initializing a V1 LLM engine (v0.19.0) with config: model='org/Llama-3.1-8B'
INFO 03-08 16:44:20 [gpu_model_runner.py:3090] Model loading took 14.99 GiB memory and 5.1 seconds
INFO 03-08 16:44:29 [gpu_worker.py:456] Available KV cache memory: 58.11 GiB
INFO 03-08 16:44:29 [kv_cache_utils.py:1314] GPU KV cache size: 476,016 tokens
INFO 03-08 16:44:29 [kv_cache_utils.py:1319] Maximum concurrency for 8,192 tokens per request: 58.11x
"""


def printed_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["budget", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and max(map(len, captured.out.splitlines())) <= 80
    return captured.out


def test_json_is_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an option that is lost on the way, a field renamed or dropped, and JSON mixed with other output."""
    options = {
        "--max-model-len": "4096", "--kv-dtype": "fp8", "--tp": "2", "--pp": "4", "--block-size": "32",
        "--max-num-batched-tokens": "1024", "--max-num-seqs": "64", "--gpu-memory-utilization": "0.8",
        "--quantization": "fp8", "--vllm-version": "0.30", "--dtype": "float16", "--weights": "1.25GiB",
    }  # fmt: skip
    report, said = report_of(
        capsys, "budget", LLAMA, "--gpu", "24GiB", *(word for pair in options.items() for word in pair)
    )
    budget = plan(
        LLAMA, "24GiB", max_model_len=4096, kv_cache_dtype="fp8", tensor_parallel_size=2, pipeline_parallel_size=4,
        block_size=32, max_num_batched_tokens=1024, max_num_seqs=64, gpu_memory_utilization=0.8, quantization="fp8",
        vllm_version="0.30", dtype="float16", weights_bytes="1.25GiB",
    )  # fmt: skip
    assert said == "" and {*FIELDS} < report.keys()
    assert {name: report[name] for name in budget.to_json() if name != "parts"} == {
        name: value for name, value in json.loads(json.dumps(budget.to_json())).items() if name != "parts"
    }
    assert report["block_size"] == 32 and report["weights_bytes"] == int(1.25 * GIB)
    assert report["log_lines"] == budget.log_lines() and report["serve_command"] == budget.serve_command()
    changes = first_change(budget)
    assert [change["flag"] for change in report["changes"]] == [change.flag for change in changes][:4]


def test_options_by_the_names_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a line of ``vllm serve`` that this command prints and does not take."""
    names = ("--kv-cache-dtype", "fp8", "--tensor-parallel-size", "2", "--pipeline-parallel-size", "4")
    short = ("--kv-dtype", "fp8", "--tp", "2", "--pp", "4")
    ours, theirs = (report_of(capsys, "budget", LLAMA, "--gpu", "H100", *each)[0] for each in (short, names))
    assert ours == theirs and " ".join(names[:2]) in ours["serve_command"]
    words = ours["serve_command"].split()[2:]
    assert report_of(capsys, "budget", *words, "--gpu", "H100")[0] == ours
    with pytest.raises(SystemExit):
        main(["budget", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_as_vllm_logged_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a false exactness: two decimals leave blocks open, and what was logged is among them."""
    options = ["--available", "58.11GiB", "--max-model-len", "8192", "--vllm-version", "0.19"]
    report, _ = report_of(capsys, "budget", LLAMA, *options)
    assert report["kv_tokens_range"][0] <= 476_016 <= report["kv_tokens_range"][1] and not report["exact"]
    text = printed_by(capsys, LLAMA, *options)
    assert re.search(r"^blocks +29,752  29,749 to 29,754$", text, re.MULTILINE)
    assert "what the decimals of the memory leave open" in text
    assert "\n  Maximum concurrency for 8,192 tokens per request: 58.11x\n" in text
    exact = printed_by(capsys, LLAMA, "--available", "8GiB", "--max-model-len", "8192")
    assert re.search(r"^blocks +4,096  exact$", exact, re.MULTILINE) and "range is" not in exact


def test_text_says_what_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a figure in the wrong row, an estimate that passes for exact, and parts that do not add up."""
    arguments = ["google/gemma-3-27b-it", "--gpu", "h100", "--max-model-len", "16384", "--workload", "500/200"]
    report, _ = report_of(capsys, "budget", *arguments)
    text = printed_by(capsys, *arguments)
    rows = {line[:20].strip(): line[20:36].strip() for line in text.splitlines() if len(line) > 36}
    assert rows["bytes per token"] == f"{report['bytes_per_token']:,}"
    assert rows["bytes per block"] == f"{report['bytes_per_block']:,}"
    assert rows["blocks per request"] == f"{report['blocks_per_request']:,}"
    assert rows["blocks"] == f"{report['num_blocks']:,}" and rows["tokens"] == f"{report['kv_tokens']:,}"
    assert rows["requests at once"] == f"{report['max_concurrency']:.2f}x"
    parts = report["parts"]
    for name, part in parts.items():
        row = "for the cache" if name == "available" else f"- {name}"
        assert rows[row] == f"{part['likely'] / GIB:,.2f}", row
        spans = [f"{part['low'] / GIB:,.2f}", f"{part['high'] / GIB:,.2f}"]
        assert re.search(rf"^{re.escape(row)} .*  {spans[0]} to {spans[1]}$", text, re.MULTILINE)
        assert name == "available" or part["source"].split(";")[0] in " ".join(text.split())
    left = float(rows["92% of it"]) - sum(float(rows[f"- {name}"]) for name in parts if name != "available")
    assert left == pytest.approx(float(rows["for the cache"]), abs=0.03)
    assert "7 x" not in text and "6 x " in text and "1 x 1,024 (full attention)" in " ".join(text.split())
    load, words = report["workload"], " ".join(text.split())
    assert "Lengths spread like a lognormal around 500/200, 2,000 requests: at a random moment a request" in words
    assert f" {load['mean_blocks']:,.1f} blocks on average (standard deviation {load['deviation']:,.1f}). " in words
    assert (
        f"{load['users']:,} at once fill the cache on average; with {load['users_with_1_percent_risk']:,}, the cache "
        "is too small in one moment of a hundred."
    ) in words
    assert all(line in " ".join(text.split()) for line in report["log_lines"])
    assert " ".join(text.split()).endswith(report["serve_command"])


def test_the_longest_that_fits_if_nobody_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a newcomer's first command that ends without a budget, and a line that does not start."""
    longest = largest_context(compute(Options(LLAMA, "24GiB")))
    text = " ".join(printed_by(capsys, LLAMA, "--gpu", "24GiB").split())
    assert text.startswith(f"{LLAMA} takes 131,072 tokens, but a request of that length needs ")
    assert f"This is the budget for the longest that fits: --max-model-len {longest}." in text
    assert text.endswith(f"vllm serve {LLAMA} --max-model-len {longest}")
    report, _ = report_of(capsys, "budget", LLAMA, "--gpu", "24GiB")
    assert report["fits"] and report["max_model_len"] == longest and str(longest) in report["shortened"]
    assert report_of(capsys, "budget", LLAMA, "--gpu", "H100")[0]["shortened"] is None


def test_least_that_may_be_available_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a plan that works in the middle of its range only, without a word."""
    text = printed_by(capsys, "Qwen3-0.6B", "--gpu", "rtx 4060")
    (longest,) = re.findall(r"vLLM would not start; with --max-model-len (\d+) it would", " ".join(text.split()))
    low = plan("Qwen3-0.6B", "rtx 4060").available.low
    assert plan("Qwen3-0.6B", available_bytes=low, max_model_len=int(longest)).fit.fits
    with pytest.raises(ValueError, match="one request of"):
        plan("Qwen3-0.6B", available_bytes=low, max_model_len=int(longest) + 1)


def test_a_log_of_a_start_that_left_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a failed start whose log is called unreadable: it says how much is missing, and what mends that."""
    (tmp_path / "failed.log").write_text(LOG.replace("58.11 GiB", "-5.12 GiB").rsplit("INFO", 2)[0])
    line = ["budget", LLAMA, "--log", str(tmp_path / "failed.log"), "--max-model-len", "8192"]
    said = "nothing was left for the cache: what else takes memory needs 5.12 GiB more than the share"
    assert_one_line(capsys, line, 1, f"{said} that vLLM may use. Give --gpu")
    assert_one_line(capsys, [*line, "--gpu", "A10"], 1, f"{said} that vLLM may use: try --quantization")
    assert main([*line, "--available", "20GiB"]) == 0


def test_a_log_instead_of_estimates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a log's figure that is not taken, one that beats what was given, and rounding that passes for exact."""
    (tmp_path / "start.log").write_text(LOG)
    report, said = report_of(capsys, "budget", LLAMA, "--log", str(tmp_path / "start.log"))
    assert said == "" and report["vllm_version"] == "0.19.0" and report["max_model_len"] == 8192
    assert report["kv_tokens_range"][0] <= 476_016 <= report["kv_tokens_range"][1] and not report["exact"]
    assert report["weights_bytes"] == Estimate.printed("14.99GiB").likely
    given, _ = report_of(
        capsys, "budget", LLAMA, "--log", str(tmp_path / "start.log"), "--available", "20GiB", "--vllm-version", "0.33"
    )
    assert (given["available_bytes"], given["vllm_version"], given["max_model_len"]) == (20 * GIB, "0.33.0", 8192)
    _, said = report_of(capsys, "budget", "Qwen3-8B", "--log", str(tmp_path / "start.log"))
    assert "the log is of org/Llama-3.1-8B, and its memory is taken for Qwen3-8B" in said
    (tmp_path / "start.log").write_text(LOG.splitlines()[0])
    assert_one_line(capsys, ["budget", LLAMA, "--log", str(tmp_path / "start.log")], 1, "does not say how much memory")


def test_workloads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches lengths of another workload, and a trace that is not read to its end."""
    (tmp_path / "trace.csv").write_text(AZURE)
    options = [LLAMA, "--gpu", "24GiB", "--max-model-len", "4096"]
    report, _ = report_of(capsys, "budget", *options, "--workload", str(tmp_path / "trace.csv"))
    lengths = [(request.prompt_len, request.output_len) for request in load_trace(tmp_path / "trace.csv")]
    load = users(plan(LLAMA, "24GiB", max_model_len=4096), lengths)
    assert report["workload"]["num_requests"] == len(lengths) and report["workload"]["users"] == load.mean
    assert report["workload"]["mean_blocks"] == load.mean_blocks
    names = ("sharegpt", "alpaca", "161/338")
    found = [report_of(capsys, "budget", *options, "--workload", name)[0]["workload"] for name in names]
    assert found[1]["users"] > found[0]["users"] == pytest.approx(found[2]["users"], rel=0.1)
    assert report_of(capsys, "budget", *options)[0]["workload"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "required: MODEL"),
        ([LLAMA], 2, "nothing says how much memory there is: give --gpu, --available or --log"),
        ([LLAMA, "--gpu", "RTX 4099"], 2, "there is no GPU 'RTX 4099' in the table; did you mean RTX 4090"),
        ([LLAMA, "--gpu", "a100"], 2, "'a100' may be A100-40GB or A100-80GB"),
        ([LLAMA, "--gpu", "3090"], 2, "'3090' would be 3,090 GiB: did you mean 'RTX 3090'?"),
        ([LLAMA, "--gpu", "4060"], 2, "did you mean 'RTX 4060' or 'RTX 4060 Ti 16GB'?"),
        ([LLAMA, "--available", "637000"], 2, "'637000' would be 637,000 GiB: give its unit, such as 637000MiB"),
        ([LLAMA, "--gpu", "24G"], 2, "leaves open which unit is meant"),
        ([LLAMA, "--available", "much"], 2, "'much' is not a size above 0"),
        ([LLAMA, "--gpu", "H100", "--kv-dtype", "fp9"], 2, "invalid choice: 'fp9': did you mean fp8"),
        ([LLAMA, "--gpu", "H100", "--tp", "0"], 2, "'0' is not a whole number of at least 1"),
        ([LLAMA, "--gpu", "H100", "--vllm-version", "0.2"], 2, "from 0.6 on"),
        ([LLAMA, "--gpu", "H100", "--vllm-version", "new"], 2, "'new' is not a version of vLLM"),
        ([LLAMA, "--gpu", "H100", "--workload", "sharegp"], 2, "did you mean sharegpt?"),
        ([LLAMA, "--gpu", "H100", "--workload", "0/5"], 2, "neither a file, nor mean tokens such as 500/200"),
        ([LLAMA, "--gpu", "H100", "--log", "missing.log"], 2, "'missing.log' cannot be read"),
        ([LLAMA, "--gpu", "H100", "--tp", "3"], 1, "32 attention heads do not divide among tensor_parallel_size = 3"),
        ([LLAMA, "--gpu", "H100", "--gpu-memory-utilization", "2"], 1, "give a share above 0, at most 1"),
        ([LLAMA, "--gpu", "H100", "--gpu-memory-utilization", "92"], 1, "at most 1; did you mean 0.92?"),
        (["Llama3.1-8B", "--gpu", "24GiB"], 1, "; did you mean meta-llama/Llama-3.1-8B or "),
        (["meta-llama/Lama-3.1-8B", "--gpu", "24GiB"], 1, "; did you mean meta-llama/Llama-3.1-8B or "),
        (["Llama-3.1-70B", "--gpu", "24GiB"], 1, "leaves no memory for a cache on 24GiB: weights 131"),
        (
            [LLAMA, "--gpu", "24GiB", "--max-model-len", "131072"],
            1,
            f": try --max-model-len {largest_context(compute(Options(LLAMA, '24GiB')))}, the longest request that "
            "fits, or --tensor-parallel-size 2",
        ),
        (
            [LLAMA, "--gpu", "24GiB", "--max-model-len", "4096", "--workload", "4096/9"],
            1,
            "a --max-model-len of 4096 leaves no room for lengths around 4096/9: raise it, or give shorter means",
        ),
        (["no/such-model", "--gpu", "24GiB"], 1, "'no/such-model' is not one of the"),
        (["/no/such/folder", "--gpu", "24GiB"], 1, "/no/such/folder"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches tracebacks, errors on standard output, and a wrong exit status."""
    assert_one_line(capsys, ["budget", *arguments], status, message)


def test_layouts_that_are_not_known_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a guess for a model whose cache nobody here knows."""
    config: dict[str, Any] = {
        "model_type": "gemma3n", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
        "dtype": "float16", "num_kv_shared_layers": 2, "max_position_embeddings": 2048, "vocab_size": 100,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_one_line(capsys, ["budget", str(tmp_path), "--available", "1GiB"], 1, "gemma3n")


def test_nothing_heavy_is_loaded() -> None:
    """Catches torch or transformers behind a well-known model's figures."""
    code = (
        "import sys; from pagedattn_lab.cli import main; main(['budget', 'Qwen3-8B', '--gpu', 'H100', '--json'])\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "[]\n"
