"""A chapter's days in JupyterLab: opened from a fresh clone, run, saved, opened again; and what keys do in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import players
import pytest
from accessibility import violations
from controls import ONE_OF_EACH
from jupyter_page import IS_READY, Lab, Notebook
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Browser, Locator, Page, expect
from watch import PATIENCE, until

from pagedattn_lab.viz.grid import pack
from pagedattn_lab.viz.player import MIME
from tests.helpers.cells import result
from tools import notebooks

LONG = 1000 * PATIENCE  # ms
WIDGET = "application/vnd.jupyter.widget-view+json"
NAME = "03_blocks.ipynb"  # a chapter's name: how long that one takes is known
LESSON = """
import ipywidgets as widgets

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.lesson import Lesson


def draw(tokens, block_size, order):
    pool = BlockPool(num_blocks=8, block_size=block_size)
    trace = Recorder(pool)
    for name in order.split(", "):
        trace.add(name, BlockTable(pool)).append_tokens(tokens)
    return trace

"""
LESSON += ONE_OF_EACH
SQUARE = """
Picture('<svg width="40" height="40"><rect width="40" height="40" fill="#0072B2"/></svg>', alt="A blue square.")
"""
SLOW = "import time\n\ntime.sleep(2)"
PLACE = """() => {
  const notebook = jupyterapp.shell.currentWidget.content;
  return [notebook.activeCellIndex, (notebook.outerNode ?? notebook.node).scrollTop];
}"""
GO = """([index, top]) => {
  const notebook = jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = index;
  (notebook.outerNode ?? notebook.node).scrollTop = top;
}"""
RECORDING = f"""() => {{
  const output = jupyterapp.shell.currentWidget.content.model.cells.get(1).outputs.get(0);
  return {{...output.data['{MIME}'], ...output.metadata['{MIME}']}};
}}"""
DIRTY = "() => jupyterapp.shell.currentWidget.context.model.dirty"
SAVE = "() => jupyterapp.shell.currentWidget.context.save()"
STRIP = "() => (document.querySelector('.pa-run')?.innerText ?? '').replaceAll('\\n', ' ')"


def stored() -> str:
    """Return a chapter with its outputs, as the repository holds one."""
    names: dict[str, Any] = {}
    cells = [new_markdown_cell("# A chapter\n\n" + "Some text.\n\n" * 8)]
    for source in (LESSON, SQUARE):
        cells.append(new_code_cell(source.strip(), outputs=[result(source, names)], execution_count=1))
    cells += [new_code_cell(SLOW, execution_count=1), new_markdown_cell("More text.\n\n" * 40)]
    cells.append(new_code_cell("print(lesson.player.step)", execution_count=1))
    cells[-1].outputs = [new_output("stream", name="stdout", text="2\n")]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return notebooks.to_text(notebooks.normalise(new_notebook(cells=cells)))


@dataclass
class Days:
    """One notebook, opened one day after the other; which day it is, the fixtures say."""

    lab: Lab
    browser: Browser
    text: str
    notebook: Notebook | None = None

    @property
    def path(self) -> Path:
        """The notebook's file."""
        return self.lab.root / NAME

    @property
    def page(self) -> Page:
        """The page that shows it."""
        return self.notebook.page

    def open(self) -> None:
        """Open it, with a kernel that has run nothing."""
        self.notebook = self.lab.open(self.browser, NAME)

    def close(self) -> None:
        """Close it and shut its kernel down."""
        self.lab.close(self.notebook)
        self.notebook = None


@pytest.fixture(scope="module")
def days(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Days]:
    """Start JupyterLab with its own defaults, and put a chapter there that nobody has signed."""
    lab = Lab(tmp_path_factory.mktemp("days"), settings={})
    days = Days(lab, browser, stored())
    days.path.write_text(days.text, encoding="utf-8")
    yield days
    lab.stop()


@pytest.fixture(scope="module")
def fresh(days: Days) -> Days:
    """The first day: the chapter of a fresh clone is opened."""
    days.open()
    return days


@pytest.fixture(scope="module")
def ran(fresh: Days) -> Days:
    """The reader, at the lesson, has chosen to run all cells; what the strip says is kept in the page."""
    fresh.page.evaluate(GO, [1, 60])
    fresh.page.evaluate(f"() => {{ window.told = []; setInterval(() => told.push(({STRIP})()), 50); }}")
    fresh.notebook.run_all()
    return fresh


@pytest.fixture(scope="module")
def again(ran: Days) -> Days:
    """The second day: saved, the kernel shut down, opened again."""
    ran.page.evaluate(SAVE)
    ran.close()
    ran.open()
    return ran


def follows(player: Locator, recording: dict[str, Any]) -> players.Check:
    """Return a check that waits until a player shows a step of a recording."""

    def check(step: int, text: bool = False) -> None:
        state = players.expected(players.at_step(recording, step), text)
        until(lambda: players.shown(player) == state, lambda: f"step {step}: {players.shown(player)}, not {state}")

    return check


def scrub(page: Page) -> None:
    """Step through the lesson's recording by mouse and keyboard."""
    player = page.locator(".jp-Notebook .pa-player")
    expect(player).to_have_count(1, timeout=LONG)
    recording = page.evaluate(RECORDING)
    check = follows(player, recording)
    player.scroll_into_view_if_needed()
    for name, step in (("first", 0), ("next", 1), ("last", len(recording["frames"]) - 1)):
        player.locator(f".pa-{name}").click()
        check(step)
    player.locator(".pa-scrub").focus()
    page.keyboard.press("Home")
    check(0)
    players.read_as_text(player, check)


def test_first_opening_shows_what_the_chapter_shows(fresh: Days) -> None:
    """Catches alt text in the place of players and figures, in a notebook that JupyterLab does not trust."""
    page = fresh.page
    assert page.evaluate("() => jupyterapp.shell.currentWidget.content.model.cells.get(1).trusted") is False
    scrub(page)
    expect(page.locator(".jp-OutputArea img")).to_have_attribute("alt", "A blue square.", timeout=LONG)
    assert page.locator(".jp-OutputArea img").evaluate("image => image.naturalWidth") == 40
    assert page.locator(".jp-OutputArea").get_by_text("Lesson(").count() == 0
    assert violations(page, include=".jp-OutputArea") == []


def test_controls_answer_without_a_kernel(fresh: Days) -> None:
    """Catches sliders that are missing, or do nothing, until cells have run; and keys that JupyterLab takes."""
    player = fresh.page.locator(".jp-Notebook .pa-player")
    players.move_controls(player, fresh.page.evaluate(RECORDING), follows)


def test_reading_leaves_the_file_alone(fresh: Days) -> None:
    """Catches a chapter that is changed by being opened: JupyterLab writes its Python's version into it."""
    assert fresh.page.evaluate(DIRTY) is False, "closing it would ask to save what the reader has not changed"
    fresh.page.evaluate(SAVE)
    assert fresh.path.read_text(encoding="utf-8") == fresh.text


def test_no_question_about_news(fresh: Days) -> None:
    """Catches the first thing a reader sees being a question about news of Jupyter."""
    setting = "@jupyterlab/apputils-extension:notification"
    fetched = fresh.page.evaluate("id => jupyterapp.serviceManager.settings.fetch(id)", setting)
    assert fetched["schema"]["properties"]["fetchNews"]["default"] == "false"


# A script in a picture, and scripts where a drawing has numbers and words.
SCRIPT = "\"'><img src=x onerror='window.entered = true'>"
HOSTILE: dict[str, Any] = {
    "label": SCRIPT, "step": 0, "block_size": 2, "words": {SCRIPT: [SCRIPT, SCRIPT]},
    "frames": [
        {
            "sentence": SCRIPT, "alt": SCRIPT,
            "svg": f"<svg width='{SCRIPT}' onload='window.entered = true'></svg>{SCRIPT}",
        },
        {
            "sentence": SCRIPT, "changed": [2], "free": [1], "ref_cnt": [0, 0, SCRIPT],
            "hashes": {"2": SCRIPT, "1": SCRIPT, SCRIPT: SCRIPT},
            "contents": {
                key: {"name": SCRIPT, "mark": SCRIPT, "colour": 1, "logical": SCRIPT, "num_tokens": 2}
                for key in ("1", SCRIPT)
            },
            "tables": [{"name": SCRIPT, "mark": SCRIPT, "colour": 0, "num_tokens": SCRIPT, "block_ids": [2]}],
        },
    ],
}  # fmt: skip
HOSTILE["grid"] = {
    "controls": [{"label": SCRIPT, "kind": "slider", "options": ["1", SCRIPT, SCRIPT], "index": 0, "of": SCRIPT}],
}
HOSTILE_RECORDINGS = pack(
    {
        "pieces": [HOSTILE["frames"][0]["svg"]],
        "shown": [
            {"error": SCRIPT},
            {"frames": [{"sentence": SCRIPT, "svg": [0]}]},
            {"ops": [["start", 3, 2, [[SCRIPT, SCRIPT, [1]]]], ["note", SCRIPT, [1]]], "words": HOSTILE["words"]},
        ],
    }
)


def test_a_strange_notebook_runs_nothing(fresh: Days) -> None:
    """Catches a recording that runs scripts in a notebook that the reader has not trusted."""
    page = fresh.page
    metadata = {MIME: {"recordings": HOSTILE_RECORDINGS}}
    output = {"output_type": "display_data", "metadata": metadata, "data": {MIME: HOSTILE, "text/plain": "x"}}
    page.evaluate("output => jupyterapp.shell.currentWidget.content.model.cells.get(5).outputs.add(output)", output)
    player = page.locator(".jp-Notebook .jp-Cell").nth(5).locator(".pa-player")
    player.locator(".pa-stage img").wait_for()
    player.locator(".pa-next").click()
    player.locator("[data-block]").first.wait_for()
    player.locator(".pa-text-toggle").click()
    assert "NaN" in player.locator(".pa-stage").inner_text(), "the number that is none has not been drawn"
    assert player.locator("img, script").count() == 0
    slider = page.locator(".jp-Notebook .jp-Cell").nth(5).locator(".pa-lesson-controls input")
    slider.press("ArrowRight")
    player.locator(".pa-stage img").wait_for()
    slider.press("ArrowRight")
    player.locator("[data-block]").first.wait_for()
    assert "NaN" in player.locator(".pa-stage").inner_text()
    assert player.locator("img, script").count() == 0
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    expect(player.locator(".pa-error")).to_have_text(SCRIPT)
    page.wait_for_timeout(300)  # an image that cannot be loaded says so by then
    assert page.evaluate("() => window.entered") is None


def test_run_all_keeps_the_place(ran: Days) -> None:
    """Catches a reader taken to the last cell by "Run All Cells"."""
    index, top = ran.page.evaluate(PLACE)
    assert index == 1
    assert abs(top - 60) < 100


def test_run_all_says_how_far_it_is(ran: Days) -> None:
    """Catches a run without a sign of progress, without the time it takes, or without an end."""
    seconds = re.escape(f"{round(usual_seconds())} s")
    expect(ran.page.locator(".pa-run")).to_have_attribute("data-state", "done", timeout=LONG)
    ran.page.wait_for_timeout(100)
    told = list(dict.fromkeys(ran.page.evaluate("told")))
    known = rf"(\d) of 4 cells have run · \d+ s( of about {seconds}|; it took {seconds} where it was measured)"
    counted = [re.match(known, text) for text in told]
    numbers = [int(match[1]) for match in counted if match]
    assert numbers == sorted(numbers) and 2 in numbers
    assert any(re.match(r"All 4 cells have run, in \d+ s\.", text) for text in told)


def usual_seconds() -> float:
    """Return the seconds that the book measured for the chapter of this name."""
    return json.loads(notebooks.EXECUTION.read_text())[NAME.removesuffix(".ipynb")]["seconds"]


# The two commands are counted and not carried out: a cell that runs again makes its controls anew.
COUNT = """() => {
  window.heard = [];
  for (const id of ['docmanager:save', 'notebook:run-cell-and-select-next']) {
    const command = jupyterapp.commands._commands.get(id), execute = command.execute;
    command.execute = () => void heard.push(id);
    (window.mended ??= []).push(() => (command.execute = execute));
  }
}"""
FOCUSED = """() => {
  const element = document.activeElement, lesson = element.closest('.pa-lesson');
  if (!lesson) return null;
  const parts = [...lesson.querySelectorAll('*')];
  return [parts.indexOf(element), element.className.baseVal ?? element.className];
}"""
KINDS = ("noUi-handle", "widget-readout", "pa-player", "pa-first", "pa-scrub", "pa-speed", "pa-text-toggle", "pa-text",
         "pa-block", "pa-entry")  # fmt: skip


def way(page: Page, key: str) -> list[tuple[int, str]]:
    """Press a key until the focus leaves the lesson; return what had it on the way."""
    passed: list[tuple[int, str]] = []
    while focused := page.evaluate(FOCUSED):
        assert tuple(focused) not in passed, f"{key} does not lead on from {focused[1]}"
        passed.append(tuple(focused))
        page.keyboard.press(key)
    return passed


def test_keys_lead_through_a_lesson_and_out(ran: Days) -> None:
    """Catches a keyboard trap: a control or a part of the player that keeps Tab, Ctrl+S or Shift+Enter to itself."""
    page = ran.page
    lesson = page.locator(".pa-lesson")
    lesson.locator(".pa-text-toggle").click()
    lesson.locator("[role=slider]").first.focus()
    forward = way(page, "Tab")
    number = forward[1]
    assert number[1] == "widget-readout"
    lesson.locator(".pa-text").focus()
    assert way(page, "Shift+Tab") == forward[::-1]
    for kind in KINDS:
        assert any(kind in name.split() for _, name in forward), f"{kind} cannot be reached by Tab"
    page.evaluate(COUNT)
    for index, name in forward:
        lesson.evaluate("(lesson, index) => lesson.querySelectorAll('*')[index].focus()", index)
        page.keyboard.press("Control+s")
        page.keyboard.press("Shift+Enter")
        heard = page.evaluate("() => heard.splice(0)")
        runs = [] if (index, name) == number else ["notebook:run-cell-and-select-next"]
        assert heard == ["docmanager:save", *runs], f"{name}: {heard}"
    page.evaluate("() => mended.forEach(mend => mend())")
    field = lesson.locator(".widget-readout").first
    field.fill("7")
    field.press("Shift+Enter")  # ipywidgets takes it for the number typed, as it takes Enter
    expect(lesson.locator("[role=slider]").first).to_have_attribute("aria-valuenow", re.compile("^7"), timeout=LONG)


def test_running_changes_nothing_but_ids(ran: Days) -> None:
    """Catches a chapter that differs all over for git after it has been run and saved."""
    ran.page.evaluate(SAVE)
    drop = re.compile(r'"model_id": "\w+"')
    after = ran.path.read_text(encoding="utf-8")
    assert drop.sub("", after) == drop.sub("", ran.text)


def test_reload_finds_the_widget(ran: Days) -> None:
    """Catches a recording that stays in the place of a lesson whose kernel still runs."""
    page = ran.page
    page.evaluate(SAVE)
    page.reload()
    page.wait_for_function(IS_READY, arg=NAME)
    expect(page.locator(".jp-Notebook [role=slider]")).to_have_count(2, timeout=LONG)
    expect(page.locator(".jp-Notebook .pa-player")).to_have_count(1, timeout=LONG)
    expect(page.locator(".pa-lesson-controls")).to_have_count(0, timeout=LONG)


def test_second_day_shows_the_recording(again: Days) -> None:
    """Catches "Error displaying widget" where a kernel that is gone had the widget."""
    page = again.page
    expect(page.locator(".pa-lesson-controls")).to_have_count(1, timeout=LONG)
    scrub(page)
    assert page.get_by_text("Error displaying widget").count() == 0
    expect(page.locator(".jp-OutputArea img")).to_have_attribute("alt", "A blue square.", timeout=LONG)
    assert again.notebook.watch.problems == []


def test_recording_is_not_thrown_back(again: Days) -> None:
    """Catches a recording that starts anew, under the reader's hands, when the wait for its widget ends."""
    page = again.page
    data = {MIME: page.evaluate(RECORDING), WIDGET: {"model_id": "gone", "version_major": 2, "version_minor": 0}}
    output = {"output_type": "display_data", "metadata": {}, "data": data | {"text/plain": "x"}}
    page.evaluate("output => jupyterapp.shell.currentWidget.content.model.cells.get(5).outputs.add(output)", output)
    player = page.locator(".jp-Notebook .jp-Cell").nth(5).locator(".pa-player")
    player.wait_for(state="attached")
    player.locator(".pa-first").dispatch_event("click")
    page.wait_for_timeout(3000)  # longer than a widget is waited for
    expect(player).to_have_attribute("data-step", "0")


def test_run_that_stops_says_where(again: Days) -> None:
    """Catches an error below the reader's place of which nothing tells, and no way to it."""
    page = again.page
    page.evaluate("() => jupyterapp.shell.currentWidget.content.model.cells.get(3).sharedModel.setSource('1 / 0')")
    page.evaluate(GO, [0, 0])
    again.notebook.run_all()
    strip = page.locator(".pa-run")
    expect(strip).to_have_attribute("data-state", "stopped", timeout=LONG)
    assert page.evaluate(STRIP).startswith("The run stopped at cell 3 of 4: ZeroDivisionError.")
    assert page.evaluate(PLACE)[0] == 0
    assert violations(page, include=".pa-run") == []
    strip.get_by_role("button", name="Go to the cell").click()
    until(lambda: page.evaluate(PLACE)[0] == 3, lambda: f"the reader is at {page.evaluate(PLACE)}")
    expect(page.get_by_text("ZeroDivisionError: division by zero")).to_be_in_viewport(timeout=LONG)
    strip.get_by_role("button", name="Close").click()
    expect(strip).to_be_hidden(timeout=LONG)


def test_restart_and_run_all_keeps_the_place(again: Days) -> None:
    """Catches a strip that counts while JupyterLab still asks, and a reader taken away after the answer."""
    page, strip = again.page, again.page.locator(".pa-run")
    page.evaluate("() => jupyterapp.shell.currentWidget.content.model.cells.get(3).sharedModel.setSource('1')")
    for answer in ("Cancel", "Confirm"):
        page.evaluate(GO, [1, 60])  # JupyterLab moves a little when it closes a dialog
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
        expect(page.get_by_role("dialog")).to_be_visible(timeout=LONG)
        expect(strip).to_be_hidden(timeout=LONG)
        page.get_by_role("dialog").get_by_role("button", name=f"{answer} Kernel Restart").click()
        expect(page.get_by_role("dialog")).to_have_count(0, timeout=LONG)
    expect(strip).to_have_attribute("data-state", "done", timeout=LONG)
    expect(strip.locator(".pa-run-end")).to_have_text(re.compile("^All 4 cells have run"))
    index, top = page.evaluate(PLACE)
    assert index == 1 and abs(top - 60) < 100
    expect(page.locator(".jp-Notebook [role=slider]")).to_have_count(2, timeout=LONG)
    assert again.notebook.watch.problems == []
