"""The command line as a user meets it: what is printed where, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagedattn_lab.cli import main
from pagedattn_lab.kv_shape import KVShape

SMOLLM2 = KVShape(30, 3, 64, "float32")


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
        assert main(["generate", "Hi", "--max-tokens", "3", "--attention", backend, "--json"]) == 0
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


def test_doctor_fails_without_the_model(tmp_path: Path) -> None:
    """Catches a doctor that is content with a machine on which no chapter runs."""
    result = run("doctor", PAGEDATTN_LAB_CACHE=str(tmp_path))
    assert result.returncode == 1
    assert "FAIL default model: not in the cache yet; run make setup" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "required"),
        (["fly"], 2, "invalid choice"),
        (["generate"], 2, "prompt"),
        (["generate", " "], 2, "prompt: it is empty"),
        (["generate", "x", "--model", ""], 2, "--model: it is empty"),
        (["generate", "caf\udce9"], 2, "it is not valid UTF-8"),
        (["generate", "x", "--block-size", "0"], 2, "'0' is not a whole number of at least 1"),
        (["generate", "x", "--max-tokens", "many"], 2, "'many' is not a whole number"),
        (["generate", "x", "--attention", "flash"], 2, "invalid choice"),
        (["generate", "x", "--model", "/no/such/folder"], 1, "there is no folder '/no/such/folder'"),
        (["generate", "x", "--max-tokens", "9000"], 1, "exceed the model's 8192"),
    ],
)
def test_errors_are_one_line(arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture) -> None:
    """Catches tracebacks, errors on standard output, and a wrong exit status."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == status
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
