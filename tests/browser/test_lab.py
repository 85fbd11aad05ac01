"""Every chapter in JupyterLab, in a real browser: all cells run, every control answers, and both sides agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accessibility import violations
from controls import drive, lessons
from jupyter_page import Lab, Notebook
from playwright.sync_api import Browser

CHAPTERS = sorted((Path(__file__).parents[2] / "chapters").glob("*.ipynb"))


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab on a copy of the chapters; stop it and every kernel at the end."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.add_folder(CHAPTERS[0].parent)
    yield lab
    lab.stop()


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest, lab: Lab, browser: Browser) -> Iterator[Notebook]:
    """Open a chapter and run all its cells."""
    notebook = lab.open(browser, f"chapters/{request.param.name}")
    notebook.run_all()
    yield notebook
    lab.close(notebook)


def test_every_cell_runs(chapter: Notebook) -> None:
    """Catches an error output, or a widget that does not appear, in what a reader sees after "Run All Cells"."""
    assert chapter.run_errors == [] and chapter.kernel.errors == []
    assert all(cell["executed"] or cell["empty"] for cell in chapter.code_cells())
    shown = chapter.page.locator(".jp-Notebook .jp-Cell-outputArea")
    assert shown.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert shown.get_by_text("Error displaying widget").count() == 0
    for cell in chapter.code_cells():
        for model_id in cell["widgets"]:
            chapter.output(model_id).locator(".jupyter-widgets").first.wait_for()


def test_every_control_answers(chapter: Notebook) -> None:
    """Catches a control that is not wired, stops at an extreme, or raises; and a lesson that the page does not show."""
    before = chapter.cells()
    driven = drive(chapter)
    exist = chapter.kernel.evaluate("[[key, name] for key, found in _tests_lessons().items() for name in found.values]")
    assert driven == {tuple(control) for control in exist}
    assert chapter.cells() == before


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_lessons_are_accessible(chapter: Notebook, theme: str) -> None:
    """Catches a control without a name, and a colour that cannot be read on one of the themes."""
    chapter.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    chapter.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
    if lessons(chapter):
        assert violations(chapter.page, include=".jp-Cell-outputArea .widget-vbox") == []


def test_chapter_is_quiet(chapter: Notebook) -> None:
    """Catches an error on the console, and a request to another machine, in everything done above."""
    assert chapter.watch.problems == []
