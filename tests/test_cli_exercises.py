"""``exercises``: the list of what is solved, as text and as JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagedattn_lab.cli import main
from pagedattn_lab.exercises import catalogue, record
from tests.helpers.cli import assert_one_line, report_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the record of whoever runs these tests out of them."""
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", str(tmp_path))
    return tmp_path


def test_every_exercise_is_listed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Catches an exercise that is missing, a line too wide for a terminal, and a list that creates a file."""
    assert main(["exercises"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-2]] == [exercise.number for exercise in catalogue()]
    assert lines[-2:] == [f"0 of {len(catalogue())} exercises solved.", f"Kept in {folder / 'exercises.json'}"]
    assert max(map(len, lines[:-1])) <= 80
    assert list(folder.iterdir()) == []


def test_json_tells_each_standing(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a report without the counts, or one that is no JSON."""
    record.keep("03.1", 12, 67)
    record.keep("03.2", 55, 55)
    report, _ = report_of(capsys, "exercises")
    standings = {exercise["number"]: exercise for exercise in report["exercises"]}
    assert report["solved"] == 1 and len(standings) == len(catalogue())
    assert standings["03.1"] == {
        "number": "03.1", "title": "One step of admission", "status": "tried", "attempts": 1, "right": 12, "cases": 67,
    }  # fmt: skip
    assert standings["03.2"]["status"] == "solved" and standings["00.1"]["status"] == "not attempted"


@pytest.mark.parametrize("chapter", ["3", "03", "ch03", "CH3", "chapter-3"])
def test_a_chapter_is_listed_however_it_is_written(chapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a chapter that is taken for a word too many, and exercises of another one."""
    record.keep("04.1", 55, 55)
    assert main(["exercises", chapter]) == 0
    lines = capsys.readouterr().out.splitlines()
    mine = [exercise.number for exercise in catalogue() if exercise.number.startswith("03.")]
    assert [line.split()[1] for line in lines[:-2]] == mine
    assert lines[-2] == f"0 of {len(mine)} exercises solved."
    report, _ = report_of(capsys, "exercises", chapter)
    assert report["solved"] == 0 and [exercise["number"] for exercise in report["exercises"]] == mine


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("ch33", ": did you mean ch03?"),
        ("03.1", ": did you mean 03?"),
        ("12", ": choose from 00 to 11"),
        ("blocks", ": choose from 00 to 11"),
    ],
)
def test_another_word_is_answered(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches advice to put a text into quotes, where no text is asked for."""
    assert_one_line(capsys, ["exercises", word], 2, f"{word!r} has no exercises{said}")


def test_what_cannot_be_read_is_said(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Catches a wrong type in the record that ends the command, or that nobody hears of."""
    (folder / "exercises.json").write_text('{"03.1": {"solved": true, "attempts": null}, "03.2": 7}')
    assert main(["exercises"]) == 0
    printed = capsys.readouterr().out
    assert "03.1 has attempts null: it counts as 0." in printed and "03.2 is 7, and no entry" in printed
    assert f"\n1 of {len(catalogue())} exercises solved.\n" in printed


def test_a_record_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Catches a traceback, and a broken record that counts as nothing solved."""
    (folder / "exercises.json").write_text("[]x")
    assert_one_line(capsys, ["exercises"], 1, "exercises.json is not a record of exercises")
