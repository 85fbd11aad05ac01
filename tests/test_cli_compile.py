"""``compile`` as a user meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pagedattn_lab.cli import main
from pagedattn_lab.compile_report import TARGETS, compile_kernel
from tests.helpers.cli import assert_one_line, report_of, strictly
from tests.helpers.draws import COMPILER

pytestmark = pytest.mark.when_changed(*COMPILER)

FIELDS = {
    "kernel", "function", "target", "dtype", "head_dim", "heads", "block_size", "num_warps", "registers", "spill_bytes",
    "shared_bytes", "occupancy", "blocks_per_multiprocessor", "limited_by", "mma", "fma", "exp2", "global_loads",
    "global_loads_128", "async_copies", "async_copies_128", "kv_loads", "kv_loads_narrow", "loop_instructions",
    "loop_mma", "loop_fma", "kv_bytes_per_instruction",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that was compiled before counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_json(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a field renamed or dropped, an option forgotten on the way, and JSON mixed with other output."""
    options = ["--target", target, "--dtype", "fp16", "--head-dim", "64", "--heads", "9/3", "--block-size", "32"]
    report, said = report_of(capsys, "compile", *options)
    assert said == "" and set(report) == FIELDS
    made, _ = compile_kernel("decode", target, "float16", 64, 9, 3, 32)
    expected = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(made).items()}
    layer = {"kernel": "decode", "dtype": "float16", "head_dim": 64, "heads": "9/3", "block_size": 32}
    assert report == layer | expected


def test_the_loop_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a loop of another kernel, or marks that the counts do not share."""
    report, _ = report_of(capsys, "compile", "--loop")
    loop = report["loop"]
    assert len(loop) == report["loop_instructions"] and sum(each["is_kv"] for each in loop) == report["kv_loads"]
    assert sum(each["kind"] == "fma" for each in loop) == report["loop_fma"]
    assert {each["file"] for each in loop} == {"triton_decode.py", "standard.py"}


@pytest.mark.parametrize("target", TARGETS)
def test_text_says_what_json_says(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a figure in the wrong row, a sentence that is not true of it, and lines too wide."""
    report, _ = report_of(capsys, "compile", "--target", target)
    assert main(["compile", "--target", target]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    head, table = printed.split("\n\n")
    assert " ".join(head.split()).startswith(f"paged_decode_kernel on {target} (")
    assert "bfloat16, head_dim 128, 32/8 heads, blocks of 16; 4 warps a thread block" in " ".join(head.split())
    rows = {line[:22].strip(): line[22:].split()[0] for line in table.splitlines() if line[:22].strip()}
    assert rows["registers"] == str(report["registers"])
    assert rows["spilled"] == str(report["spill_bytes"])
    assert rows["occupancy"] == f"{report['occupancy']:.1%}"
    assert rows["tensor-core"] == str(report["mma"]) == "0" and "one by one on FMA units" in table
    assert rows["multiply-add"] == str(report["fma"])
    assert rows["global loads"] == str(report["global_loads"])
    assert rows["loads of K and V"] == str(report["kv_loads"]) and "all of 128 bits" in table
    assert rows["inner loop"] == str(report["loop_instructions"])
    assert rows["K and V read"] == f"{report['kv_bytes_per_instruction']:.1f}"
    assert ("registers suffice" in table) == (report["spill_bytes"] == 0)


@pytest.mark.parametrize(("target", "load"), [("sm_90", "LDG.E.128"), ("gfx942", "buffer_load_dwordx4")])
def test_the_loop_as_text(target: str, load: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches lines too wide, instructions left out, and loads of keys and values that are not marked."""
    report, _ = report_of(capsys, "compile", "--target", target)
    assert main(["compile", "--target", target, "--loop"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    listing = printed[printed.index("line         what for      instruction") :]
    assert len(re.findall(rf"^decode:\d+ +K/V load +(?:@!?P\d )?{load} ", listing, re.MULTILINE)) == report["kv_loads"]
    assert len(re.findall(r"^\S+ +fma  ", listing, re.MULTILINE)) == report["loop_fma"]
    assert "one multiplication and addition a lane" in listing and "\n.L" in listing


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--target", "sm_91"], 2, "invalid choice: 'sm_91': did you mean sm_90?"),
        (["--kernel", "decoder"], 2, "invalid choice: 'decoder': did you mean decode?"),
        (["--kernel", "x"], 2, "invalid choice: 'x': choose from decode"),
        (["--dtype", "bfloat"], 2, "invalid choice: 'bfloat': did you mean bfloat16?"),
        (["--dtype", "int"], 2, "invalid choice: 'int': choose from bfloat16, float16, float32"),
        (["--heads", "32/0"], 2, "'32/0' is not a number of heads: write 32/8"),
        (["--heads", "a/b"], 2, "'a/b' is not a number of heads"),
        (["--heads", "9/2"], 2, "9 query heads cannot share 2 KV heads evenly"),
        (["--head-dim", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--block-size", "x"], 2, "'x' is not a whole number of at least 1"),
        (["--lop"], 2, "there is no option --lop: did you mean --loop?"),
        (["--head-dim", "9000"], 1, "head_dim is 9000: the triton kernel takes at most 8192"),
    ],
)
def test_errors_are_one_line(options: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches tracebacks, errors on standard output, and a wrong exit status."""
    assert_one_line(capsys, ["compile", *options], status, message)


def test_one_number_of_heads_is_mha(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a layer without grouped queries taken for one with."""
    report, _ = report_of(capsys, "compile", "--target", "sm_80", "--heads", "4", "--head-dim", "64")
    assert report["heads"] == "4/4"


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules[{module!r}] = None; from pagedattn_lab.cli import main; sys.exit(main({arguments!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)


def test_without_triton() -> None:
    """Catches a traceback, or advice to install what is not published, on macOS and Windows."""
    result = without("triton", "compile", "--json")
    assert (result.returncode, result.stdout) == (1, "") and result.stderr.count("\n") == 1
    assert result.stderr.startswith("pagedattn-lab compile: compiling needs the package triton, which is published for")


def test_help_needs_neither_torch_nor_triton() -> None:
    """Catches seconds of imports before a page of help, and a target that it does not name."""
    for module in ("torch", "triton"):
        result = without(module, "compile", "--help")
        assert result.returncode == 0 and all(target in result.stdout for target in TARGETS), result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches NaN, and a report printed twice."""
    assert main(["compile", "--target", "sm_80", "--json"]) == 0
    assert strictly(capsys.readouterr().out)["kernel"] == "decode"
