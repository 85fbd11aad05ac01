"""Every chapter in JupyterLab, in a real browser: all cells run, every control answers, and both sides agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import watch
from accessibility import violations
from controls import MOVES, ONE_OF_EACH, Driver
from jupyter_page import Lab, Notebook
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, expect

from tests.helpers.built import built_once
from tests.helpers.chapters import CHAPTERS
from tests.helpers.stand_in import build_stand_in

WITHOUT_GRIDS = "from pagedattn_lab.viz import lesson\nlesson.make_grid = lambda *_: None\ndel lesson"
# A long page is painted again at each cell that ends, though nobody looks before all have.
UNSEEN = ".jp-Notebook { visibility: hidden }"
OURS = ".jp-Notebook :is(.pa-lesson, .pa-player)"

# Beside the chapters, a notebook with one of everything that this folder can move.
TOUR = (
    """
import ipywidgets as widgets

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.player import Player


def draw(tokens, block_size, order):
    pool = BlockPool(num_blocks=12, block_size=block_size)
    trace = Recorder(pool)
    tables = {name: trace.add(name, BlockTable(pool)) for name in order.split(", ")}
    for table in tables.values():
        table.append_tokens(tokens)
    tables["Bo"].release()
    return trace

"""
    + ONE_OF_EACH,
    """
def square(side):
    return f'<svg width="40" height="40"><rect width="{side}" height="{side}"/></svg>'


Player([Picture(square(side), alt=f"a square of {side}") for side in (10, 20, 30)], "Squares")
""",
    """
Lesson(lambda side: Picture(square(side), alt=f"side {side}"), "One square",
       side=widgets.IntSlider(3, min=1, max=30, description="side"))
""",
)


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab on a copy of the chapters; stop it and every kernel at the end.

    What the model says, and what lessons store for pages without a kernel, is compared where chapters run under nbval:
    here a stand-in will do for the one, and for the other nothing.
    """
    cache = built_once(tmp_path_factory.getbasetemp(), "stand-in", build_stand_in)
    lab = Lab(tmp_path_factory.mktemp("lab"), environment={"PAGEDATTN_LAB_CACHE": str(cache)}, startup=WITHOUT_GRIDS)
    lab.add_folder(CHAPTERS[0].parent)
    write(lab, "tour.ipynb", *TOUR)
    yield lab
    lab.stop()


def write(lab: Lab, name: str, *sources: str) -> None:
    kernel = {"name": "python3", "display_name": "Python 3"}
    cells = [new_code_cell(source.strip()) for source in sources]
    lab.write(Path(name), new_notebook(cells=cells, metadata={"kernelspec": kernel}))


@pytest.fixture(scope="module")
def window(lab: Lab, browser: Browser) -> Iterator[watch.Watch]:
    """Open the window, and with the first chapter the JupyterLab, in which chapters are opened one after the other."""
    with lab.window(browser) as window:
        yield window


@pytest.fixture(scope="module", params=["tour.ipynb", *(f"chapters/{path.name}" for path in CHAPTERS)])
def chapter(request: pytest.FixtureRequest, lab: Lab, window: watch.Watch) -> Iterator[Notebook]:
    """Open a chapter and run all its cells."""
    notebook = lab.open_in(window, request.param)
    unseen = notebook.add_style(UNSEEN)
    notebook.run_all()
    unseen.evaluate("style => style.remove()")
    yield notebook
    lab.close_in_window(notebook)


def test_every_cell_runs(chapter: Notebook) -> None:
    """Catches an error output, or a widget that does not appear, in what a reader sees after "Run All Cells"."""
    assert chapter.run_errors == [] and chapter.kernel.errors == []
    assert all(cell["executed"] or cell["empty"] for cell in chapter.code_cells())
    shown = chapter.page.locator(".jp-Notebook .jp-Cell-outputArea")
    for model_id in chapter.shown_by():
        chapter.output(model_id).locator(".jupyter-widgets, .pa-player").first.wait_for()
    assert shown.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert shown.get_by_text("Error displaying widget").count() == 0


def test_every_control_answers(chapter: Notebook) -> None:
    """Catches a control that is not wired, stops short of an end, or raises; and a lesson that no cell shows."""
    before, driver, is_tour = chapter.cells(), Driver(chapter), chapter.name == "tour"
    driven = driver.drive_controls(every_way=is_tour)
    assert set(driven) == driver.controls
    assert not is_tour or set(driven.values()) == set(MOVES)  # elsewhere each place is reached in one way
    assert chapter.page.locator(".jp-Notebook .widget-inline-hbox").count() == len(driver.controls)
    assert chapter.cells() == before


def test_every_player_answers(chapter: Notebook) -> None:
    """Catches a button, a key or a block that does not answer, and a step that page and library do not share."""
    before, driver = chapter.cells(), Driver(chapter)
    live = chapter.page.locator(".jp-Notebook .lm-Widget > .pa-player")  # a still has no kernel to agree with
    assert driver.drive_players(every_way=chapter.name == "tour") == live.count()
    assert chapter.cells() == before


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_lessons_are_accessible(chapter: Notebook, theme: str) -> None:
    """Catches a control without a name, and a colour that cannot be read on one of the themes."""
    chapter.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    chapter.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
    if chapter.page.locator(OURS).count():
        assert violations(chapter.page, include=OURS) == []


def test_chapter_is_quiet(chapter: Notebook) -> None:
    """Catches an error on the console, and a request to another machine, in everything done above."""
    assert chapter.watch.problems == []


CLEAN = """
from ipywidgets import Widget
Widget.close_all()
"""
SQUARES = """
import ipywidgets as widgets
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.player import Player

def draw(side):
    return [Picture("<svg></svg>", alt=f"{side}, {step}") for step in range(4)]

lesson = Lesson(draw, "Squares", side=widgets.IntSlider(3, min=1, max=9, description="side"))
lesson
"""
BROKEN = {
    "a callback that raises": (
        "def draw(side):\n    return Picture('<svg></svg>', alt=str(1 / (side - 9)))\nlesson._draw = draw",
        "Python raised .*ZeroDivisionError",
    ),
    "a control that is not wired": ("lesson._controls['side'].unobserve_all()", "moved to last: .*the picture is old"),
    "a control that Python does not hear": (
        "lesson._controls['side'].keys.remove('value')",
        "moved to last: the library has .*'position': 3.* the page shows .*'position': 9",
    ),
    "a lesson that no cell shows": (
        "hidden = Lesson(draw, 'x', side=widgets.IntSlider(1, 1, 2, description='side'))",
        "no cell shows",
    ),
    "a control of an unknown kind": (
        "lesson.children = (); text = widgets.Text(description='side'); lesson._controls['side'] = text;"
        "lesson.children = (text, lesson.player)",
        "nothing here can move a Text",
    ),
}
BROKEN_PLAYERS = {
    "a step that Python does not hear": (
        "lesson.player.keys.remove('step')",
        "player at step 0: the library has .*'step': 3.* the page shows .*'step': 0",
    ),
    "a page that stays behind": (
        "lesson.player.send_state = lambda *a, **k: None\nfrom ipywidgets import Widget\n"
        "lesson.player._should_send_property = lambda *a: False",
        "player at step",
    ),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return a function after which nobody waits long for what will not come."""
    patience = watch.PATIENCE

    def wait_no_longer() -> None:
        monkeypatch.setattr(watch, "PATIENCE", 4)
        expect.set_options(timeout=4000)

    yield wait_no_longer
    expect.set_options(timeout=1000 * patience)


# What the page still asks of a lesson with a fault must not raise in the next test.
HARMLESS = "lesson._draw = lambda side: Picture('<svg></svg>', alt='')"

FAULTS = [(Driver.drive_controls, *fault) for fault in BROKEN.values()]
FAULTS += [(Driver.drive_players, *fault) for fault in BROKEN_PLAYERS.values()]  # driven as chapters are


@pytest.fixture(scope="module")
def squares(lab: Lab, browser: Browser) -> Iterator[Notebook]:
    """Open a notebook with one lesson, which every run of its cells makes anew."""
    write(lab, "squares.ipynb", CLEAN, SQUARES)
    notebook = lab.open(browser, "squares.ipynb")
    yield notebook
    lab.close(notebook)


@pytest.mark.parametrize(("drive", "source", "message"), FAULTS, ids=[*BROKEN, *BROKEN_PLAYERS])
def test_faults_are_noticed(squares: Notebook, impatient: Callable, drive: Callable, source: str, message: str) -> None:
    """Catches a driver that reports nothing whatever a lesson or a player does."""
    squares.run_all()
    squares.kernel.errors.clear()  # those of the fault before
    squares.kernel.run(source)
    impatient()
    with pytest.raises(AssertionError, match=message):
        drive(Driver(squares), every_way=False)
    squares.kernel.run(HARMLESS)


def test_a_lesson_without_faults_passes(squares: Notebook) -> None:
    """Catches a notebook in which a fault goes on after its test, so that the next one tests nothing."""
    squares.run_all()
    squares.kernel.errors.clear()  # those of the fault before
    driver = Driver(squares)
    assert set(driver.drive_controls()) == driver.controls and len(driver.controls) == 1
    assert driver.drive_players() == 1


def test_noise_is_noticed(lab: Lab, browser: Browser) -> None:
    """Catches a watch that hears nothing in JupyterLab: an error in a cell, a request to another machine."""
    picture = "from IPython.display import HTML\nHTML('<img src=https://example.org/a.png>')"
    write(lab, "noise.ipynb", picture, "1 / 0", "2")
    notebook = lab.open(browser, "noise.ipynb")
    try:
        notebook.run_all()
        assert notebook.run_errors == notebook.kernel.errors == ["ZeroDivisionError: division by zero"]
        request = "request to another machine: https://example.org/a.png"
        watch.until(lambda: request in [*notebook.page.evaluate("[]"), *notebook.watch.problems], lambda: "not noticed")
    finally:
        lab.close(notebook)
