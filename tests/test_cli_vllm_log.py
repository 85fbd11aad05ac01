"""``vllm-log`` as a user meets it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pagedattn_lab.cli import main
from pagedattn_lab.vllm_log import read_log
from tests.helpers.cli import assert_one_line, in_terminal, report_of

LOGS = Path(__file__).parent / "vllm_logs"
CPU = LOGS / "smollm2-cpu-v0.32.txt"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["vllm-log", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_json_says_what_the_log_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a figure left out or renamed, JSON mixed with other output, and what JSON does not have."""
    report, said = report_of(capsys, "vllm-log", str(path))
    log = read_log(path.read_text(encoding="utf-8"))
    assert said == ""
    assert report["lines"] == [vars(line) for line in log.lines]
    apart = ("lines", "available_by_rank")
    assert {name: report[name] for name in vars(log) if name not in apart} == {
        name: value for name, value in vars(log).items() if name not in apart
    }
    assert [(each["rank"], each["bytes"]) for each in report["available_by_rank"]] == list(log.available_by_rank)
    assert report.keys() - vars(log).keys() == {"check"}
    assert report["check"].keys() == {"comes_out", "said", "figures", "assumed"}


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_text_says_what_json_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a sentence that is not printed, and lines too wide: words of the log are cut, ours are wrapped."""
    report, _ = report_of(capsys, "vllm-log", str(path))
    text = printed(capsys, str(path))
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for line in report["lines"]:
        assert f" {line['number']} {' '.join(line['text'][:40].split())}" in flat or line["rank"]
        assert all(sentence in flat for sentence in (line["meaning"], line["follows_from"], line["change"]))
    assert report["check"]["said"] in flat
    assert all(sentence in flat for sentence in report["check"]["assumed"])


def test_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a check that is not made, a model that is not passed on, and a verdict without its range."""
    assert "It comes out: 1.0 GiB make 46,368 to 46,816 tokens" in printed(capsys, str(CPU))
    unnamed = str(LOGS / "qwen3-8b-graphs-v0.21.txt")
    assert "Not computed again. The log does not name the model" in printed(capsys, unnamed)
    assert "It comes out: 6.37 GiB make 46,336 to 46,416" in " ".join(
        printed(capsys, unnamed, "--model", "Qwen3-8B").split()
    )
    differs = " ".join(printed(capsys, unnamed, "--model", "Qwen3-14B").split())
    assert "It does not come out: 6.37 GiB make 41," in differs and "46,368, 11.0% more." in differs
    report, _ = report_of(capsys, "vllm-log", unnamed, "--model", "Qwen3-14B")
    assert report["check"]["comes_out"] is False and report["check"]["figures"][0]["comes_out"] is False


def test_lines_that_are_alike_are_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Catches a page a rank, and a page for every ten seconds that a server has run."""
    running = "INFO 11-28 10:00:0{0} [loggers.py:259] Running: {0} reqs, Waiting: 0 reqs, GPU KV cache usage: {0}.5%"
    lines = [f"(Worker_TP{rank} pid=1{rank}) INFO 11-28 10:00:00 [a.py:1] Using FLASH_ATTN backend." for rank in (0, 1)]
    (tmp_path / "log").write_text("\n".join(lines + [running.format(number) for number in range(1, 10)]))
    text = printed(capsys, str(tmp_path / "log"))
    assert text.count("Using FLASH_ATTN backend. (2 such lines)") == text.count("FLASH_ATTN, which decides") == 1
    assert text.count("requests run") == 1 and "9 requests run" in text and "(9 such lines)" in text
    assert "    11  Running: 9 reqs" in text and "11 lines about memory" in text
    report, _ = report_of(capsys, "vllm-log", str(tmp_path / "log"))
    assert len(report["lines"]) == 11


def test_several_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Catches figures of an earlier start shown as those of the last, without a word."""
    start = "vLLM API server version {}\nGPU KV cache size: {} tokens\n"
    (tmp_path / "log").write_text(start.format("0.11.0", 1600) + start.format("0.12.0", 3200))
    text = printed(capsys, str(tmp_path / "log"))
    assert text.startswith("vLLM 0.12.0: 2 lines about memory; the last of 2 starts\n") and "1,600" not in text


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"], ids=["plain", "BOM", "PowerShell", "little"]
)
def test_standard_input_and_encodings(
    encoding: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a pipe that is not read, one read in the terminal's encoding, and PowerShell's UTF-16."""
    text = CPU.read_text(encoding="utf-8").replace("\n", "\r\n")
    content = text.encode(encoding) if encoding != "utf-16-le-bom" else b"\xff\xfe" + text.encode("utf-16-le")
    pipe(monkeypatch, content)
    assert printed(capsys, "-") == printed(capsys, str(CPU))


def test_bytes_that_are_no_text_spoil_their_own_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a log that is refused for one byte of a model's name."""
    pipe(monkeypatch, b"non-default args: {'model': 'caf\xe9'}\nAvailable KV cache memory: 6.51 GiB\n")
    assert "6.51 GiB are left for keys and values" in printed(capsys, "-")


def test_control_characters_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a log that sets the terminal's title, or moves its cursor."""
    pipe(
        monkeypatch,
        b"non-default args: {'model': 'a\x1b]0;title\x07\x1b[2Jb'}\r\x08\x08\n\x1b[32mUsing max model len 8\x1b[0m",
    )
    text = printed(capsys, "-")
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert "Using max model len 8\n" in text


def test_colours_only_on_a_terminal() -> None:
    """Catches escapes in a pipe, lines wider than the terminal, and an error that looks like any other line."""
    status, sent, _ = in_terminal("vllm-log", str(LOGS / "glm-4.7-pp8-too-small.txt"))
    assert status == 0 and "\033[31mValueError: To serve" in sent
    status, sent, _ = in_terminal("vllm-log", str(LOGS / "glm-4.7-pp8-too-small.txt"), NO_COLOR="1")
    assert status == 0 and "\033[31m" not in sent and "To serve" in sent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no line that vLLM prints about its cache"),
        (b"\n\n", "has no line that vLLM prints about its cache"),
        (b"llama_kv_cache: size = 1024.00 MiB\n", "with its INFO lines"),
        (bytes(range(256)) * 8, "has no line that vLLM prints about its cache"),
        (b"\xff\xfe", "has no line that vLLM prints about its cache"),
    ],
)
def test_what_is_no_such_log(
    content: bytes, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches a traceback, an empty answer that looks like a good one, and a message that does not name the file."""
    pipe(monkeypatch, content)
    assert_one_line(capsys, ["vllm-log", "-"], 1, "standard input " + ("has" if "has" in message else ""))
    (tmp_path / "log").write_bytes(content)
    assert_one_line(capsys, ["vllm-log", str(tmp_path / "log"), "--json"], 1, message)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["no/such.log"], 1, "'no/such.log' cannot be read: No such file or directory"),
        (["."], 1, "'.' cannot be read: Is a directory"),
        ([], 2, "the following arguments are required: FILE"),
        ([""], 2, "it is empty"),
        (["a", "b"], 2, "'b' is one word too many"),
        (["a", "--modle", "x"], 2, "there is no option --modle: did you mean --model?"),
        ([str(CPU), "--model", ""], 2, "it is empty"),
    ],
)
def test_errors_are_one_line(options: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches tracebacks, errors on standard output, and a wrong exit status."""
    assert_one_line(capsys, ["vllm-log", *options], status, message)


def test_a_model_that_cannot_be_read_is_said_behind_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an error in place of all that the log says, because of the check at its end."""
    text = printed(capsys, str(CPU), "--model", "no/such/config.json")
    assert "CPU KV cache size: 46,592 tokens" in text and "there is no no/such/config.json" in " ".join(text.split())


def test_help_needs_no_heavy_package_and_fits() -> None:
    """Catches seconds of imports before a page of help, and one that is wider than a terminal."""
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, numpy=None); "
        "from pagedattn_lab.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["--help"], [str(CPU)]):
        result = subprocess.run(
            [sys.executable, "-c", code, "vllm-log", *arguments], capture_output=True, text=True, env=os.environ
        )
        assert result.returncode == 0, result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_reader_of_a_pipe_may_leave(tmp_path: Path) -> None:
    """Catches a traceback behind head."""
    if shutil.which("head") is None:
        pytest.skip("there is no head here")
    (tmp_path / "log").write_text("".join(f"# GPU blocks: {number}, # CPU blocks: 2\n" for number in range(20_000)))
    command = f'"{sys.executable}" -m pagedattn_lab vllm-log "{tmp_path / "log"}" | head -1'
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith("vLLM") and "Traceback" not in result.stderr
