"""Executing and normalising chapters: neither chance nor a failure reaches the repository."""

import json
import os
import platform
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.helpers.draws import ANY
from tools import notebooks

pytestmark = pytest.mark.when_changed("tools/", *ANY)

TIMING = """import time
time.perf_counter_ns()"""


def write(path: Path, *cells: nbformat.NotebookNode) -> Path:
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], cwd=folder, check=True)


def executed(source: str, outputs: list[nbformat.NotebookNode], **fields: object) -> nbformat.NotebookNode:
    return new_code_cell(source, outputs=outputs, execution_count=7, **fields)


def test_streams_merge() -> None:
    """Catches stored outputs that depend on when the kernel flushed, and merging across another output."""
    chunks = [new_output("stream", name="stdout", text=text) for text in ("a", "b", "c")]
    error = new_output("stream", name="stderr", text="!")
    merged = notebooks.merge_streams([chunks[0], chunks[1], error, chunks[2]])
    assert [(output.name, output.text) for output in merged] == [("stdout", "ab"), ("stderr", "!"), ("stdout", "c")]


def test_normal_form() -> None:
    """Catches anything that differs between two machines or two runs: versions, counts, times, widget ids and state."""
    view = new_output("execute_result", {notebooks.WIDGET_VIEW: {"model_id": "random"}}, execution_count=9)
    cell = executed("slider", [view], id="slider", metadata={"execution": {"iopub.status.busy": "2026"}, "tags": ["x"]})
    notebook = new_notebook(
        cells=[new_code_cell("", id="empty"), cell],
        metadata={
            "kernelspec": {"name": "mine", "display_name": "Mine"},
            "language_info": {"name": "python", "version": "3.11.2"},
            "widgets": {"state": {}},
        },
    )
    notebooks.normalise(notebook)
    assert notebook.metadata == {"kernelspec": notebooks.KERNELSPEC, "language_info": {"name": "python"}}
    assert cell.metadata == {"tags": ["x"]} and cell.id == "slider"
    assert cell.execution_count == cell.outputs[0].execution_count == 1
    first = notebooks.to_text(notebook)
    view["data"][notebooks.WIDGET_VIEW]["model_id"] = "another"
    cell.execution_count = 12
    assert notebooks.to_text(notebooks.normalise(notebook)) == first
    assert '"random"' not in first and first.endswith("}\n") and not first.endswith("\n\n")


def test_widget_ids_differ_from_each_other() -> None:
    """Catches two views with one id, which a page would draw as one widget."""
    cell = executed("x", [new_output("display_data", {notebooks.WIDGET_VIEW: {"model_id": "r"}}) for _ in range(2)])
    notebooks.normalise_outputs(cell, 1)
    first, second = (output["data"][notebooks.WIDGET_VIEW]["model_id"] for output in cell.outputs)
    assert first != second


def test_executing_twice_changes_nothing(tmp_path: Path) -> None:
    """Catches a `make notebooks` that dirties git: timings renewed for no reason, or kept after their cell changed."""
    timing = new_code_cell(TIMING, id="timing", metadata={"tags": [notebooks.TIMING_TAG]})
    path = write(
        tmp_path / "99_try.ipynb",
        new_markdown_cell("# Try"),
        new_code_cell("import sys\nfor i in range(3):\n    print(i, flush=True)", id="loop"),
        timing,
        new_code_cell("from pathlib import Path\nPath('99_try.ipynb').exists()", id="folder"),
    )
    assert notebooks.main([str(path)]) == 0
    first = path.read_text()
    assert notebooks.problems(path) == []
    loop, _, folder = notebooks.code_cells(notebooks.read(path))
    assert loop.outputs[0].text == "0\n1\n2\n" and folder.outputs[0].data["text/plain"] == "True"

    git(tmp_path, "init", "-q")
    git(tmp_path, "add", path.name)
    git(tmp_path, "commit", "-qm", "first")
    assert notebooks.main([str(path)]) == 0
    assert path.read_text() == first

    edited = notebooks.read(path)
    notebooks.code_cells(edited)[1].source += " + 0"
    nbformat.write(edited, path)
    old = notebooks.code_cells(edited)[1].outputs[0].data["text/plain"]
    assert notebooks.main([str(path)]) == 0
    assert notebooks.code_cells(notebooks.read(path))[1].outputs[0].data["text/plain"] != old


@pytest.mark.parametrize("refresh", [False, True])
def test_refresh_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh: bool) -> None:
    """Catches a --refresh-timings without effect, times in the book that a plain run changes, and a chapter's lost."""
    book = tmp_path / "execution.json"
    before = '{"00_other": {"seconds": 1.5}, "98_gone": {"seconds": 2}}'
    book.write_text(before)
    monkeypatch.setattr(notebooks, "EXECUTION", book)
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path)
    write(tmp_path / "00_other.ipynb")
    stored = executed(TIMING, [new_output("execute_result", {"text/plain": "old"}, execution_count=1)], id="timing")
    stored.metadata["tags"] = [notebooks.TIMING_TAG]
    path = write(tmp_path / "99_try.ipynb", stored)
    monkeypatch.setattr(notebooks, "committed_sources", lambda path: {"timing": TIMING})
    assert notebooks.main([str(path)] + ["--refresh-timings"] * refresh) == 0
    assert ('"old"' in path.read_text()) is not refresh
    assert (book.read_text() == before) is not refresh
    if refresh:
        records = json.loads(book.read_text())
        assert list(records) == ["00_other", "99_try"] and records["00_other"] == {"seconds": 1.5}
        new = records["99_try"]
        assert new["seconds"] > 0 and new["python"] == platform.python_version() and new["cores"] == os.cpu_count()
        assert "torch" in new["packages"]


def test_times_of_a_failed_chapter_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a book that gives the time of a run that did not reach the end."""
    monkeypatch.setattr(notebooks, "EXECUTION", tmp_path / "execution.json")
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path)
    write(tmp_path / "98_breaks.ipynb", new_code_cell("1 / 0"))
    write(tmp_path / "99_try.ipynb", new_code_cell("1"))
    assert notebooks.main(["--refresh-timings"]) == 1
    assert list(json.loads(notebooks.EXECUTION.read_text())) == ["99_try"]


def test_only_timing_cells_keep_outputs() -> None:
    """Catches an untagged result that is never renewed, and an error or an empty output that stays for ever."""

    def cell(text: str, tags: list[str], error: bool = False) -> nbformat.NotebookNode:
        shown = new_output("error", ename=text, evalue="", traceback=[]) if error else None
        outputs = [shown or new_output("stream", name="stdout", text=text)] if text else []
        return executed("f()", outputs, id="a", metadata={"tags": tags})

    def kept(stored: nbformat.NotebookNode, tags: list[str]) -> bool:
        new = new_notebook(cells=[cell("new", tags)])
        notebooks.keep_timings(new, new_notebook(cells=[stored]), {"a": "f()"})
        return new.cells[0].outputs == stored.outputs

    tag = [notebooks.TIMING_TAG]
    assert kept(cell("old", tag), tag)
    assert not kept(cell("old", []), [])
    assert not kept(cell("", tag), tag)
    assert not kept(cell("old", tag, error=True), tag)


@pytest.mark.parametrize("tags", [[], ["raises-exception"]])
def test_a_failing_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str], tags: list[str]) -> None:
    """Catches a broken chapter being stored, or a report that does not say where to look."""
    path = write(
        tmp_path / "99_try.ipynb",
        new_markdown_cell("# Try"),
        new_code_cell("x = 1", id="fine"),
        new_code_cell("raise ValueError('first\\nsecond')", id="broken", metadata={"tags": tags}),
        new_code_cell("x", id="after"),
    )
    before = path.read_text()
    assert notebooks.main([str(path)]) == 1
    assert capsys.readouterr().err == "99_try.ipynb, cell 3 (id broken): ValueError: first\n"
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["99_try.ipynb"]


def test_a_hanging_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches the cell after the hanging one being blamed."""
    monkeypatch.setattr(notebooks, "CELL_SECONDS", 1)
    path = write(
        tmp_path / "99_try.ipynb", new_code_cell("import time\ntime.sleep(60)", id="hangs"), new_code_cell("1")
    )
    assert notebooks.main([str(path)]) == 1
    assert capsys.readouterr().err.startswith("99_try.ipynb, cell 1 (id hangs): ")


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a --check that lets an unexecuted, failed or freshly saved chapter through."""
    good = new_notebook(cells=[executed("1", [new_output("execute_result", {"text/plain": "1"}, execution_count=7)])])
    path = tmp_path / "99_try.ipynb"
    text = notebooks.to_text(notebooks.normalise(good))
    path.write_text(text)
    assert notebooks.main(["--check", str(path)]) == 0

    path.write_text(text.replace('"execution_count": 1,\n   "id"', '"execution_count": null,\n   "id"'))
    assert notebooks.main(["--check", str(path)]) == 1
    assert "has not been executed" in capsys.readouterr().err

    good.cells[0].outputs = [new_output("error", ename="E", evalue="", traceback=[])]
    path.write_text(notebooks.to_text(good))
    assert notebooks.main(["--check", str(path)]) == 1
    assert "holds an error" in capsys.readouterr().err

    path.write_text(text.rstrip("\n"))
    assert notebooks.main(["--check", str(path)]) == 1
    assert capsys.readouterr().err == "99_try.ipynb: not in normal form: run make notebooks\n"
