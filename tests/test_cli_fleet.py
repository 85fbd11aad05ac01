"""``fleet``: what it prints, and for whom; where its simulations run; and what it refuses."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagedattn_lab.cli import fleet, main
from pagedattn_lab.studies.fleet import ROUTERS
from pagedattn_lab.studies.fleet.cluster import Cluster
from pagedattn_lab.studies.fleet.sweep import Point, run_point
from pagedattn_lab.studies.hit_rates import measure
from pagedattn_lab.workloads import load_trace
from tests.helpers.cli import AZURE, MOONCAKE, assert_one_line, in_terminal, report_of, strictly

SETTINGS = ["router", "num_replicas", "num_blocks", "block_size", "rate", "seed"]
ROW = [*SETTINGS, "num_requests", "num_refused", *fleet.FIGURES]
FEW = ("--requests", "120")
ALL = ["router=prefix-events,random", "blocks=50,unlimited", "replicas=2", "block-size=16,32", "rate=1.5,20", "seed=7"]


def test_json_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a field that was renamed or dropped, and an option that is read and then forgotten."""
    report, said = report_of(capsys, "fleet", *FEW)
    assert list(report) == ["log", *ROW] and said == ""
    assert [report[name] for name in ("log", *SETTINGS)] == ["chat", "prefix-load", 8, 1000, 16, None, 0]
    assert report["num_requests"] == 120 and fleet.FIGURES == (
        "hit_rate", "requests_per_s", "ttft_mean_s", "ttft_p99_s", "imbalance"
    )  # fmt: skip
    options = shlex.split("--router two-choices --replicas 3 --blocks unlimited --block-size 32 --rate 5 --seed 4")
    report, _ = report_of(capsys, "fleet", "chat", *FEW, *options)
    assert [report[name] for name in SETTINGS] == ["two-choices", 3, None, 32, 5.0, 4]
    expected = run_point(Point("two-choices", 3, None, 32, 5.0, 4), num_requests=120)
    assert [report[name] for name in fleet.FIGURES] == [getattr(expected, name) for name in fleet.FIGURES]


def test_a_log_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches another hit rate than that of ``hits``, where one replica has the whole log."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(MOONCAKE.splitlines(keepends=True)[:3]))  # hits wants ids for the rest of all or of none
    report, _ = report_of(capsys, "fleet", str(path), "--replicas", "1")
    expected = measure(load_trace(path), 1000, 512)
    assert (report["log"], report["block_size"], report["num_requests"]) == (str(path), 512, 3)
    assert report["hit_rate"] == expected.hit_rate > 0
    report, _ = report_of(capsys, "fleet", str(path), "--requests", "2", "--sweep", "seed=0,1")
    assert [row["num_requests"] for row in report["points"]] == [2, 2]


def test_a_sweep_is_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches points that are missing, out of order, or not what the same options give by themselves."""
    report, said = report_of(
        capsys, "fleet", *FEW, "--replicas", "4", "--sweep", "router=random,prefix", "blocks=9,500"
    )
    assert list(report) == ["log", "points"] and said == ""
    assert [(row["router"], row["num_blocks"]) for row in report["points"]] == [
        ("random", 9), ("random", 500), ("prefix", 9), ("prefix", 500)
    ]  # fmt: skip
    for row in report["points"]:
        assert list(row) == ROW and row["num_replicas"] == 4
        options = ["--replicas", "4", "--router", row["router"], "--blocks", str(row["num_blocks"])]
        alone, _ = report_of(capsys, "fleet", *FEW, *options)
        assert alone == {"log": "chat"} | row


def test_workers_and_a_cluster_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches figures that depend on who computes them, and messages of a cluster's among the JSON or beside it."""
    sweep = ("fleet", *FEW, "--sweep", "router=random,prefix-load", "seed=0,1")
    here = report_of(capsys, *sweep)
    assert report_of(capsys, *sweep, "--workers", "2") == here
    with Cluster(workers=1) as cluster:
        assert report_of(capsys, *sweep, "--scheduler", cluster.address) == here


def test_the_text_says_what_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a figure under another's name, and units that differ."""
    row, _ = report_of(capsys, "fleet", *FEW)
    assert main(["fleet", *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].split() == ["log", "chat,", "120", "requests"]
    assert "cache of each         1,000 blocks of 16 tokens" in lines
    printed = " ".join(" ".join(lines).split())
    assert f"hit rate {row['hit_rate']:.1%} requests per second {row['requests_per_s']:.2f} " in printed
    assert f"{row['ttft_mean_s']:.3f} s on average {row['ttft_p99_s']:.3f} s for 99 in 100 imbalance" in printed
    assert printed.endswith(f"{row['imbalance']:.2f}")


def cells(report: dict[str, Any], names: list[str]) -> list[list[str]]:
    """What a table says of each point."""
    return [
        [
            *("unlimited" if row[name] is None else str(row[name]) for name in names),
            f"{row['hit_rate']:.1%}", f"{row['requests_per_s']:,.2f}",
            f"{row['ttft_mean_s']:,.3f}", f"{row['ttft_p99_s']:,.3f}", f"{row['imbalance']:.2f}",
        ]
        for row in report["points"]
    ]  # fmt: skip


def test_a_table_of_points(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a column that is missing or under the wrong heading, and a table wider than a terminal."""
    arguments = ["fleet", *FEW, "--sweep", "router=random,prefix", "blocks=9,unlimited"]
    report, _ = report_of(capsys, *arguments)
    assert main(arguments) == 0
    first, head, *lines = capsys.readouterr().out.splitlines()
    assert first == "chat, 120 requests, 4 points"
    assert re.split(r"  +", head) == [
        "router", "blocks", "hit rate", "requests/s", "TTFT s", "99% s", "imbalance"
    ]  # fmt: skip
    assert [line.split() for line in lines] == cells(report, ["router", "num_blocks"])
    assert len({len(line) for line in (head, *lines)}) == 1 and len(head) <= 80


def test_too_many_settings_for_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a line that a terminal breaks, and a value that goes missing with the table."""
    arguments = ["fleet", *FEW, "--sweep", *ALL]
    report, _ = report_of(capsys, *arguments)
    assert len(report["points"]) == 16
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    printed = " ".join(" ".join(lines).split())
    for row in cells(report, ["router", "num_blocks", "num_replicas", "block_size", "rate", "seed"]):
        names = ("router", "blocks", "replicas", "block-size", "rate", "seed", "hit rate")
        assert ", ".join(f"{name} {value}" for name, value in zip(names, row, strict=False)) in printed


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--router", "prefx"], 2, "argument --router: there is no router 'prefx': did you mean prefix?"),
        (["--router", "fastest"], 2, f"there is no router 'fastest': choose from {', '.join(ROUTERS)}"),
        (["--blocks", "0"], 2, "'0' is not a whole number of at least 1, nor unlimited"),
        (["--replicas", "many"], 2, "argument --replicas: 'many' is not a whole number"),
        (["--rate", "inf"], 2, "argument --rate: 'inf' is not a finite number above 0"),
        (["--rate", "-1"], 2, "argument --rate: '-1' is not a finite number above 0"),
        (["caht"], 2, "'caht' is neither a file nor one of chat: did you mean chat?"),
        (["--sweep"], 2, "argument --sweep: expected at least one argument"),
        (
            ["--sweep", "chat"],
            2,
            "'chat' is not a setting with its values, such as blocks=100,200; a log stands before",
        ),
        (["--sweep", "bloks=1"], 2, "there is no setting 'bloks': did you mean blocks?"),
        (["--sweep", "x=1"], 2, "'x': choose from router, replicas, blocks, block-size, rate, seed"),
        (["--sweep", "blocks=1,"], 2, "argument --sweep: blocks: '' is not a whole number of at least 1"),
        (["--sweep", "router=random,prefx"], 2, "router: there is no router 'prefx': did you mean prefix?"),
        (["--sweep", "seed=1", "--sweep", "seed=2"], 2, "--sweep has seed twice: give all its values at once"),
        (["--seed", "1", "--sweep", "seed=2"], 2, "seed has a value of --seed and others of --sweep: leave one out"),
        (["--workers", "0"], 2, "argument --workers: '0' is not a whole number of at least 1"),
        (["--workers", "2", "--scheduler", "tcp://ada:8786"], 2, "not allowed with argument"),
        (["--scheduler", "ada"], 2, "'ada' is not an address such as tcp://ada:8786"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a mistake that is found late, answered with a traceback, or with the wrong exit status."""
    assert_one_line(capsys, ["fleet", *arguments], status, message)


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback where a log, a cluster or a package is not what it must be."""
    for name, content, said in (
        ("log.csv", AZURE, "request 2 has no hash_ids, which tell prompts that begin alike"),
        ("empty", "", "empty"),
    ):
        path = tmp_path / name
        path.write_text(content)
        assert_one_line(capsys, ["fleet", str(path)], 1, said)
        swept = ["fleet", str(path), "--sweep", "seed=3,4"]
        assert_one_line(capsys, swept, 1, "the point router=prefix-load num_replicas=8 num_blocks=1000")
    monkeypatch.setattr("pagedattn_lab.studies.fleet.cluster.CONNECTING", 1)
    refused = ["fleet", "--sweep", "seed=1", "--scheduler", "tcp://127.0.0.1:1"]
    assert_one_line(capsys, refused, 1, "no Dask scheduler answers at tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert_one_line(capsys, ["fleet", "--workers", "2"], 1, "of the extra pagedattn-lab[cluster]")


def test_progress_is_on_standard_error() -> None:
    """Catches a bar among the JSON, and a line that a terminal breaks."""
    arguments = ("fleet", *FEW, "--sweep", "seed=1,2", "--json")
    status, sent, printed = in_terminal(*arguments, only_stderr=True, seconds=1.0)
    assert status == 0 and len(strictly(printed)["points"]) == 2 and "{" not in sent
    status, sent, _ = in_terminal("fleet", *FEW, "--sweep", *ALL, seconds=1.0)
    assert status == 0 and " points" in sent and [line for line in re.split(r"[\r\n]", sent) if len(line) > 80] == []


def test_nothing_heavy_is_loaded() -> None:
    """Catches numpy, torch or a cluster's packages behind a simulation that runs here."""
    code = (
        "import sys; from pagedattn_lab.cli import main; main(['fleet', '--requests', '50', '--json'])\n"
        "print(sorted({'torch', 'numpy', 'distributed'} & set(sys.modules)), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "[]\n"
