"""The command line as a user meets it: what is printed where, and with which exit status."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pagedattn_lab import cli
from pagedattn_lab.bench import allocator, slots
from pagedattn_lab.cli import main
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.studies import memory_shares as waste
from pagedattn_lab.studies.hit_rates import POLICIES
from pagedattn_lab.workloads import WORKLOADS, load_trace
from pagedattn_lab.workloads.conversations import SHARED_WORKLOADS
from tests.helpers.cli import AZURE, MOONCAKE, assert_one_line, report_of, strictly
from tests.helpers.draws import LIBRARY

pytestmark = pytest.mark.usefixtures("loaded_once")
SMOLLM2 = KVShape(30, 3, 64, "float32")
README = Path(__file__).parent.parent / "README.md"
SHARES = ("token_states", "reservation", "internal", "external", "free")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pagedattn_lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_generate_reports_its_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches JSON mixed with other output, and figures that do not follow from one another."""
    assert main(["generate", "Say hello.", "--max-tokens", "7", "--block-size", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"] and 1 <= report["output_tokens"] <= 7
    # The last token was chosen but not computed: its keys and values are not in the cache.
    assert report["cached_tokens"] == report["prompt_tokens"] + report["output_tokens"] - 1
    assert report["blocks_used"] == -(-report["cached_tokens"] // 8)
    assert report["empty_slots"] == report["blocks_used"] * 8 - report["cached_tokens"]
    assert report["bytes"] == report["blocks_used"] * SMOLLM2.bytes_per_block(8)
    assert report["waste"] == report["empty_slots"] / (report["blocks_used"] * 8)


def test_generate_streams_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a stream that drops or repeats a piece, and a block size that changes the words."""
    arguments = ["generate", "Answer with an emoji: 🙂", "--max-tokens", "12"]
    main([*arguments, "--json"])
    text = json.loads(capsys.readouterr().out)["text"]
    assert main([*arguments, "--block-size", "1", "--attention", "reference"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(text + "\n") and "blocks of 1:" in printed


def test_triton_backend_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches the kernel disagreeing with the reference on the real model."""
    texts = []
    for backend in ("reference", "triton"):
        assert main(["generate", "Hi", "--max-tokens", "2", "--attention", backend, "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != ""


def test_doctor() -> None:
    """Catches a check that was skipped, and a report that JSON readers cannot take."""
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0 and report["ok"] and report["model_present"]
    assert {check["name"] for check in report["checks"]} == {"packages", "triton", "default model", "kernel"}
    assert report["triton"] in ("native", "interpreted")
    assert report["versions"]["torch"] and report["versions"]["python"]


def test_doctor_names_a_relative_cache(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, and advice to run make setup, which would refuse the same folder."""
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", "models")
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "" and "models in      no folder" in captured.out
    said = " ".join(captured.out.split())  # it is longer than a line
    assert re.search(r"FAIL default model: PAGEDATTN_LAB_CACHE is 'models'.*: give an absolute path.*", said)
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cache_directory"] is None


@pytest.mark.parametrize("words", [["-hello"], ["--", "-hello"], ["--", "--hello"], ["-h is what?"], ["-5"]])
def test_a_prompt_may_begin_with_a_dash(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a prompt taken for an option, wherever the options stand."""
    for arguments in (["generate", "--max-tokens", "1", "--json", *words], ["generate", *words]):
        assert cli._parser().parse_args(cli._texts_last(arguments)).prompt == words[-1]
    if words[0] != "--":
        assert cli._parser().parse_args(cli._texts_last(["generate", *words, "--json", "--temperature", "-0"])).json
    report, _ = (
        report_of(capsys, "generate", "--max-tokens", "1", "--json", *words) if words == ["-hello"] else ({}, "")
    )
    assert report.get("output_tokens", 1) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    """Catches escapes that JSON does not have, bytes that are no UTF-8, and half a pair of surrogates."""
    for name in ("caf\u00e9 \U0001f642 \u4e00.csv", "caf\udce9.csv"):
        (tmp_path / name).write_text(AZURE)
        result = run("waste", "--workload", str(tmp_path / name), "--json", PYTHONIOENCODING=encoding)
        assert result.stdout.isascii() and strictly(result.stdout)["workload"] == str(tmp_path / name)
    code = f"from pagedattn_lab.cli.output import print_json; print_json({{'text': {name + chr(0x1F642)!r}}})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert strictly(printed) == {"text": name + chr(0x1F642)}
    for command in ("bench", "budget", "compile", "doctor", "fleet", "generate", "hits", "vllm_log", "waste"):
        assert "json.dumps" not in (Path(cli.__file__).parent / f"{command}.py").read_text()


def test_memory_names_the_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an allocator's own words, or advice to lower what is not too large."""
    monkeypatch.setattr(cli.generate, "free_memory", lambda device: 10**6)
    for options, message in (
        ([], "blocks of 16 tokens take 1 GiB, and cpu has 0.0 GiB: lower --max-tokens"),
        (["--n", "3"], "lower --n or --max-tokens"),
        (["--beams", "3"], "lower --beams or --max-tokens"),
        (["--block-size", "4096"], "2 blocks of 4,096 tokens take 1 GiB, and cpu has 0.0 GiB: lower --block-size"),
    ):
        assert_one_line(capsys, ["generate", "x", *options], 1, message)


def test_one_is_singular(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches 1 blocks."""
    arguments = ["generate", "x", "--block-size", "64", "--max-tokens", "2", "--n", "2", "--temperature", "0"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert " cached in 2 blocks of 64: " in printed and not re.search(r"\b1 [a-z]+s\b", printed)
    assert main(["generate", "x", "--block-size", "64", "--max-tokens", "1"]) == 0
    assert " cached in 1 block of 64: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "required: COMMAND (see python -m pagedattn_lab --help)"),
        (["fly"], 2, f"there is no command 'fly': choose from {', '.join(cli.COMMANDS)}"),
        (["generate"], 2, "required: prompt"),
        (["generate", " "], 2, "prompt: it is empty"),
        (["generate", "x", "--model", ""], 2, "--model: it is empty"),
        (["generate", "caf\udce9"], 2, "it is not valid UTF-8"),
        (["generate", "x", "--block-size", "0"], 2, "'0' is not a whole number of at least 1"),
        (["generate", "x", "--max-tokens", "many"], 2, "'many' is not a whole number"),
        (["generate", "x", "--attention", "flash"], 2, "'flash': choose from auto, reference, cpu, triton"),
        (["waste", "--workload", "orca"], 2, "neither a file nor one of sharegpt, alpaca, azure-conv, azure-code"),
        (["waste", "--workload", "."], 2, "neither a file nor one of"),
        (["waste", "--model-len", "1"], 2, "'1' is not a whole number of at least 2"),
        (["waste", "--block-size", "0"], 2, "'0' is not a whole number of at least 1"),
        (["waste", "--requests", "0"], 2, "'0' is not a whole number of at least 1"),
        (["waste", "--seed", "x"], 2, "'x' is not a whole number from 0 to 4294967295"),
        *((["waste", "--requests", number], 2, "is not a whole number") for number in ("5_0", "٣", " 5", "5.0", "")),
        *((["waste", "--rate", number], 2, "above 0 nor inf") for number in ("1_0", "٣")),
        *((["waste", f"--rate={rate}"], 2, "above 0 nor inf") for rate in ("0", "-1", "nan", "-inf", "fast")),
        *(
            (["waste", "--budget", size], 2, "a plain number means GiB")
            for size in ("0", "-1", "0MB", "12 apples", "GiB", "1e3", "inf", "1.2.3", "12PiB", "")
        ),
        (["waste", "--budget", "1"], 1, "max: a region of 2048 slots never fits a strip of 1310"),
        (["waste", "--budget", "1MB"], 1, "976.6 KiB hold 1 token of OPT-13B, less than two blocks of 16"),
        (["waste", "--budget", "12884901888"], 1, "(a plain number means GiB)"),
        (["waste", "--workload", "azure-code", "--model-len", "2"], 1, "all 10,000 requests are refused"),
        (["waste", "--rate", "1e-308"], 1, "arrives at inf s"),
        (["waste", "--requests", "300", "--rate", "1e-305"], 1, "give a higher --rate"),
        (["bench"], 2, "required: {allocator,prefix,attention,step,tier,engine}"),
        (
            ["bench", "sampler"],
            2,
            "there is no command 'sampler': choose from allocator, prefix, attention, step, tier, engine",
        ),
        (["generate", "x", "--model", "/no/such/folder"], 1, "there is no folder '/no/such/folder'"),
        (["generate", "--dogs?"], 2, "no option --dogs?; a text that begins with two dashes goes behind --"),
        (["generate", "x", "-y"], 2, "there is no option -y"),
        (["generate", "x", "--block-size", "1" + 18 * "0"], 1, " GiB: lower --block-size"),
        (["generate", "x", "--block-size", "1" + 400 * "0"], 1, " GiB: lower --block-size"),
        (["generate", "x", "--max-tokens", "9000"], 1, "exceed the model's 8192"),
    ],
)
def test_errors_are_one_line(arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture) -> None:
    """Catches tracebacks, errors on standard output, and a wrong exit status."""
    assert_one_line(capsys, arguments, status, message)


def waste_report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    return report_of(capsys, "waste", *arguments)


@pytest.fixture(scope="module")
def by_default() -> dict[str, Any]:
    """Serve the load once, and print it both ways."""
    served, compare = [], waste.compare

    def once(requests: Any, *sizes: int, **options: int) -> Any:
        served.append((sizes, options, served[0][2] if served else compare(requests, *sizes, **options)))
        assert served[-1][:2] == served[0][:2]
        return served[0][2]

    printed = []
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        patch.setattr(waste, "compare", once)
        for arguments in (["waste", "--json"], ["waste"]):
            with redirect_stdout(io.StringIO()) as out:
                assert main(arguments) == 0
            printed.append(out.getvalue())
    assert said.getvalue() == "" and len(served) == 2
    return strictly(printed[0]) | {"text": printed[1]}


@pytest.mark.when_changed(*LIBRARY)
def test_waste_lands_where_the_paper_did(by_default: dict[str, Any]) -> None:
    """Catches an allocator or a load that no longer shows what the paper saw."""
    rows = by_default["allocators"]
    assert 0.17 <= rows["max"]["token_states"] <= 0.24
    assert 0.23 <= rows["pow2"]["token_states"] <= 0.31
    assert 0.34 <= rows["oracle"]["token_states"] <= 0.43
    assert rows["paged"]["token_states"] >= 0.96
    running = {name: row["mean_running"] for name, row in rows.items()}
    assert running["paged"] >= 2.0 * running["oracle"] and running["paged"] >= 3.9 * running["max"]


def test_waste_json_fields(by_default: dict[str, Any]) -> None:
    """Catches a field that was renamed or dropped, percentages for shares, and shares that leave memory out."""
    settings = {name: value for name, value in by_default.items() if name not in ("allocators", "text")}
    assert settings == {
        "workload": "sharegpt",
        "model_len": 2048,
        "budget_bytes": 12 * 2**30,
        "num_slots": 15_728,
        "block_size": 16,
        "rate": None,
        "arrivals": "saturated",
        "seed": 0,
        "num_requests": 10_000,
        "refused": 0,
        "cut": 0,
    }
    assert list(by_default["allocators"]) == ["max", "pow2", "oracle", "paged"]
    for row in by_default["allocators"].values():
        assert sum(row[kind] for kind in SHARES) == pytest.approx(1, abs=1e-9)
        assert all(-1e-9 <= row[kind] <= 1 for kind in SHARES)
        assert row["num_finished"] == 10_000 and row["requests_per_second"] > 0
        assert isinstance(row["num_preemptions"], int) and "samples" not in row
    assert by_default["allocators"]["max"]["num_preemptions"] == 0


def test_waste_is_the_same_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an order that depends on hashes or clocks, and a seed that changes nothing."""
    first, second = (
        run("waste", "--requests", "500", "--json", PYTHONHASHSEED=hash_seed).stdout for hash_seed in ("1", "2")
    )
    assert first == second
    other, _ = waste_report(capsys, "--requests", "500", "--seed", "1")
    assert other["seed"] == 1 and other["allocators"] != strictly(first)["allocators"]


def test_waste_text_says_what_json_says(by_default: dict[str, Any]) -> None:
    """Catches a column under the wrong heading, bars of unequal length or wrong proportions, and lines too wide."""
    lines = by_default["text"].splitlines()
    assert max(map(len, lines)) <= 80
    assert "10,000 requests" in lines[0] and "15,728" in lines[1]
    heads = next(index for index, line in enumerate(lines) if line.startswith("% of KV memory"))
    assert " ".join(lines[heads].split()[4:]) == "token reser- inter- exter- mean requests preemp-"
    assert " ".join(lines[heads + 1].split()) == "states vation nal nal free running per s tions"
    legend = next(line for line in lines if "token states  " in line)
    characters = re.findall(r"(\S) (?:token states|reservation|internal|external, other|free)", legend)
    assert len(set(characters)) == 5
    for name, row in by_default["allocators"].items():
        label = waste.LABELS[name]
        figures, bar = (line.removeprefix(label).split() for line in lines if line.startswith(label))
        assert [float(figure) for figure in figures[:5]] == [round(100 * row[kind], 1) for kind in SHARES]
        expected = [f"{row['mean_running']:.2f}", f"{row['requests_per_second']:.2f}", f"{row['num_preemptions']:,}"]
        assert figures[5:] == expected
        (drawn,) = bar
        assert drawn[0] == drawn[-1] == "|" and len(drawn) == 62
        assert drawn[1:-1] == "".join(sorted(drawn[1:-1], key=characters.index))
        for kind, character in zip(SHARES, characters, strict=True):
            assert abs(drawn.count(character) - 60 * row[kind]) < 1  # both edges rounded: half a cell each
    assert lines[-1] == "Token states in the paper's Fig. 2, in this order: 20.4%, 26.8%, 38.2%, 96.3%."
    picture = [line for line in lines if "|" in line] + [legend]
    assert "\n".join(picture) in README.read_text()


def test_waste_compares_with_the_paper_in_its_setting_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches the paper's figures beside a run that has nothing to do with them."""
    for changed in (
        ["--workload", "alpaca"], ["--model-len", "2047"], ["--budget", "13"], ["--block-size", "8"], ["--rate", "9"]
    ):  # fmt: skip
        assert main(["waste", "--requests", "30", *changed]) == 0
        assert "paper" not in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_waste_without_block_characters(encoding: str) -> None:
    """Catches escapes, or an error, where a terminal cannot show the picture."""
    result = run("waste", "--requests", "50", PYTHONIOENCODING=encoding)
    assert result.returncode == 0 and result.stdout.isascii() and "\\" not in result.stdout
    bars = re.findall(r"\|(.*)\|", result.stdout)
    assert [len(bar) for bar in bars] == [60] * 4 and set("".join(bars)) <= set("#+-._")
    assert "# token states  + reservation  - internal  . external, other  _ free" in result.stdout


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        ("12", 12 * 2**30),
        ("12.5", 25 * 2**29),
        ("12GiB", 12 * 2**30),
        ("12 gib", 12 * 2**30),
        ("9000MiB", 9000 * 2**20),
        ("12GB", 12 * 10**9),
        ("9000MB", 9 * 10**9),
        ("8.03GB", 8_030_000_000),  # one byte less in floating point
    ],
)
def test_budgets(size: str, num_bytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches units mixed up, and bytes lost to rounding."""
    report, _ = waste_report(capsys, "--budget", size, "--requests", "3")
    assert report["budget_bytes"] == num_bytes and report["num_slots"] == num_bytes // 819_200


def test_waste_options_reach_the_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an option that is read and then forgotten."""
    base, _ = waste_report(capsys, "--requests", "200")
    assert base["num_requests"] == base["allocators"]["max"]["num_finished"] == 200
    short, _ = waste_report(capsys, "--requests", "200", "--model-len", "1024")
    assert short["allocators"]["max"]["mean_running"] > 1.8 * base["allocators"]["max"]["mean_running"]
    coarse, _ = waste_report(capsys, "--requests", "200", "--block-size", "256")
    assert coarse["allocators"]["paged"]["internal"] > 0.05 > base["allocators"]["paged"]["internal"]
    rare, _ = waste_report(capsys, "--requests", "200", "--rate", "0.01")
    assert (rare["rate"], rare["arrivals"]) == (0.01, "poisson")
    assert rare["allocators"]["paged"]["seconds"] == pytest.approx(200 / 0.01, rel=0.3)  # 4 standard deviations of 7 %
    code, _ = waste_report(capsys, "--requests", "200", "--workload", "azure-code", "--budget", "24")
    assert code["allocators"]["oracle"]["reservation"] < 0.1 < base["allocators"]["oracle"]["reservation"]


QUOTED = re.sub(r"[^,\n]+", r'"\g<0>"', AZURE).replace("\n", "\r\n")
ARRAY = f"[{','.join(MOONCAKE.splitlines())}]"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trace.csv", AZURE.encode()),
        ("trace.jsonl", MOONCAKE.encode()),
        ("trace.csv.gz", gzip.compress(QUOTED.encode())),
        ("trace.json", ARRAY.encode("utf-16")),
    ],
)
def test_waste_serves_a_trace(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trace whose arrivals are ignored, that is read more than once, and requests dropped in silence."""
    path = tmp_path / name
    path.write_bytes(content)
    loads = []
    monkeypatch.setattr(cli.waste, "load_trace", lambda path, load=load_trace: loads.append(path) or load(path))
    report, said = waste_report(capsys, "--workload", str(path))
    assert loads == [str(path)]
    assert (report["workload"], report["arrivals"], report["rate"]) == (str(path), "trace", None)
    assert [report[key] for key in ("num_requests", "refused", "cut")] == [4, 1, 1]
    assert said.count("\n") == 1 and "refused 1, cut 1 at 2,048 tokens: raise --model-len" in said
    for row in report["allocators"].values():
        assert row["num_finished"] == 3 and 1_800 < row["seconds"] < 1_810 and row["mean_running"] < 0.1

    report, said = waste_report(capsys, "--workload", str(path), "--model-len", "4096", "--budget", "24")
    assert (report["refused"], report["cut"], said) == (0, 0, "")
    assert report["allocators"]["paged"]["num_finished"] == 4

    report, said = waste_report(capsys, "--workload", str(path), "--model-len", "120", "--requests", "1")
    assert (report["refused"], report["cut"]) == (0, 1) and "refused 0, cut 1 at 120 tokens" in said

    report, _ = waste_report(capsys, "--workload", str(path), "--rate", "inf")
    assert (report["arrivals"], report["rate"]) == ("saturated", None)
    assert report["allocators"]["paged"]["seconds"] < 60

    report, _ = waste_report(capsys, "--workload", str(path), "--rate", "0.5", "--requests", "1")
    assert [report[key] for key in ("arrivals", "rate", "num_requests", "refused")] == ["poisson", 0.5, 1, 0]

    report, said = waste_report(capsys, "--workload", str(path), "--requests", "2")
    assert [report[key] for key in ("arrivals", "num_requests", "refused", "cut")] == ["trace", 2, 1, 0] and said

    assert main(["waste", "--workload", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{name}: 4 requests (1 refused, 1 cut), arriving as in the trace")
    assert "raise --model-len" in captured.err


def test_malformed_trace_names_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a traceback, or a message that leaves the reader searching."""
    path = tmp_path / "trace.csv"
    path.write_text(AZURE.replace(",50\n", ",fifty\n").replace(",10,20", ",10"))
    assert main(["waste", "--workload", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "line 2: GeneratedTokens is 'fifty'" in captured.err and "line 5: 2 values for 3 columns" in captured.err


def test_waste_of_a_trace_that_is_refused_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a message about an empty load for requests that were there."""
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    assert main(["waste", "--workload", str(path), "--model-len", "10"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "all 4 requests are refused" in captured.err and "raise --model-len" in captured.err


@pytest.mark.parametrize(("count", "warns"), [("1", True), ("30", True), ("300", False)])
def test_waste_of_too_few_requests(count: str, warns: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches averages over a single step passed off as those of a server, and a warning that is always there."""
    assert main(["waste", "--requests", count]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"sharegpt: {count} request{'' if count == '1' else 's'} (")
    assert ("raise --requests" in captured.err) is warns


def test_help_is_printed_and_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a percent sign that argparse takes for a placeholder, and a load that nobody hears of."""
    for command in (["waste"], ["hits"], ["generate"], ["bench"], ["bench", "allocator"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        printed = capsys.readouterr().out
        assert stop.value.code == 0 and printed.startswith("usage: python -m pagedattn_lab " + " ".join(command))
        names = {"waste": WORKLOADS, "hits": (*SHARED_WORKLOADS, *POLICIES)}.get(command[0], ())
        assert all(name in printed for name in names)


def test_bench_allocator(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that measures something else than the library does, or mixes JSON with other output."""
    quick = partial(allocator.measure, [1_000, 1_500], num_steps=5, num_calls=5, repetitions=2)
    monkeypatch.setattr(allocator, "measure", quick)
    monkeypatch.setattr(slots, "measure", partial(slots.measure, num_running=2, num_requests=5, repetitions=2))
    assert main(["bench", "allocator", "--json"]) == 0
    report = strictly(capsys.readouterr().out)
    assert [pool["num_blocks"] for pool in report["pools"]] == [1_000, 1_500]
    assert report["flat"] >= 1 and report["append_us"] > 0
    assert report["allocate_slots"]["num_requests"] == 5 and report["allocate_slots"]["cached"]["us"] > 0
    assert main(["bench", "allocator"]) == 0
    captured = capsys.readouterr()
    assert "1,500" in captured.out and "Whole pool" in captured.out and captured.err == ""
    assert captured.out.splitlines()[-2] == "allocate_slots, 2 of 5 requests running:"


def test_light_commands_load_nothing_heavy() -> None:
    """Catches torch behind commands that do arithmetic."""
    code = (
        "import sys; from pagedattn_lab.cli import main; main(['waste', '--requests', '300', '--json'])\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "[]\n"
