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


def test_a_record_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Catches a traceback, and a broken record that counts as nothing solved."""
    (folder / "exercises.json").write_text("[]x")
    assert_one_line(capsys, ["exercises"], 1, "exercises.json is not a record of exercises")
