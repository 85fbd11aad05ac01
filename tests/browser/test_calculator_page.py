"""The calculator in a browser: numbers, words and lines as in Python, both ends of every control, every theme."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calculators
import players
import pytest
from accessibility import violations
from contrast import COLOURS, contrast
from controls import Driver
from jupyter_page import Lab, Notebook
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Page, expect
from watch import PATIENCE, Watch, until

from pagedattn_lab.viz.book import PlayerRenderer, book_script
from pagedattn_lab.viz.calculator import Calculator, draw, gather
from pagedattn_lab.viz.player import HERE, MIME
from tests.helpers.calculator_facts import counts, made_up, sample
from tests.helpers.cells import result
from tools import notebooks

SIDEWAYS = "() => document.documentElement.scrollWidth - window.innerWidth"
LETTERS = """svg => Math.min(...[...svg.querySelectorAll("text")].map(
  text => parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b)))"""
CELL = """
from pagedattn_lab.viz.calculator import Calculator, gather

lesson = Calculator(gather(), model="Llama-3.1-8B", gpu="RTX 4090", max_model_len=8192, tokens=2010, users=20)
lesson
"""


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Open a window of a test's own."""
    with Watch(browser, viewport={"width": 1280, "height": 900}, color_scheme="light") as watch:
        yield watch
        assert watch.problems == []


Show = Callable[..., tuple[Page, dict[str, Any]]]


@pytest.fixture
def show(watch: Watch, tmp_path: Path, serve: Callable[[Path], str]) -> Show:
    """Return a function that shows a calculator as the book does; it returns the page and what is stored there."""

    def show(lesson: Calculator, theme: str = "light", width: int = 1280) -> tuple[Page, dict[str, Any]]:
        bundle, metadata = lesson._repr_mimebundle_()
        data = SimpleNamespace(mime_type=MIME, content=bundle[MIME], output_metadata=metadata)
        (node,) = PlayerRenderer.handle_mime(None, data, inline=False)
        sheets = "".join((HERE / name).read_text(encoding="utf-8") for name in ("player.css", "pictures.css"))
        head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{sheets}</style>"
        body = f"<main><h1>a</h1>{node.astext()}</main><script>{book_script()}</script>"
        style = f"background: {'#fff' if theme == 'light' else '#121212'}; margin: 8px 16px"
        html = f"<!doctype html><html lang=en data-theme={theme}><title>a</title>{head}<body style='{style}'>{body}"
        (tmp_path / "index.html").write_text(html, encoding="utf-8")
        page = watch.new_page()
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(serve(tmp_path))
        page.locator(".pa-player").wait_for()
        return page, bundle[MIME] | metadata[MIME]

    return show


@pytest.mark.parametrize(("facts", "number"), [(made_up(), 1000), (gather(), 400)], ids=["made up", "models"])
def test_the_same_in_both_languages(watch: Watch, facts: dict[str, Any], number: int) -> None:
    """Catches a page without a kernel that computes, says or draws something else than Python, be it one letter."""
    wrong, shown, wanted = calculators.differences(watch.new_page(), facts, sample(facts, 4, number))
    assert shown == wanted
    assert wrong == []


def test_a_difference_is_noticed(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a comparison that finds everything alike."""
    facts = made_up()
    other = json.loads(json.dumps(facts))
    other["gpus"][2]["total"] += 2**30  # a line of the bar is elsewhere, and one number another
    page, at = watch.new_page(), [0, 2, 2, 0, 0, 2, 1]
    assert draw(other, at).caption == draw(facts, at).caption
    monkeypatch.setattr(calculators, "draw", lambda _, at: draw(other, at))
    wrong, shown, wanted = calculators.differences(page, facts, [at])
    assert len(wrong) == 1 and shown != wanted


def test_controls_answer_in_the_book(show: Show) -> None:
    """Catches a control of the page that has no name, no effect, or another one than in Python, at either end."""
    lesson = Calculator(gather(), model="Llama-3.1-8B", gpu="RTX 4090", max_model_len=8192, tokens=2010, users=20)
    page, stored = show(lesson)
    player = page.locator(".pa-player")

    def follows(player: Any, recording: dict[str, Any]) -> Callable[..., None]:
        def check(step: int, text: bool = False) -> None:
            state = players.expected(players.at_step(recording, step), text)
            until(lambda: players.shown(player) == state, lambda: f"{players.shown(player)}, not {state}")

        return check

    follows(player, stored)(0)
    players.move_controls(player, stored, follows)
    sentence = player.locator(".pa-sentence")
    assert sentence.get_attribute("aria-live") == "polite"
    # It ended at the first option of each: what Python draws there.
    expect(sentence).to_have_text(draw(gather(), [0] * len(counts(gather()))).caption)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_read(show: Show, theme: str, width: int) -> None:
    """Catches letters too small, colours too weak, a page that scrolls sideways, or more than a phone's screen."""
    facts = made_up()
    for at in ([0, 0, 3, 0, 0, 2, 1], [1, 2, 2, 0, 0, 2, 2]):
        names = ("models", "gpus", "contexts", "dtypes", "block_sizes", "tokens", "users")
        chosen = [facts[name][index] for name, index in zip(names, at, strict=True)]
        values = [one["name"] if isinstance(one, dict) else one for one in chosen]
        page, _ = show(
            Calculator(facts, **dict(zip(Calculator(facts).values, values, strict=True))), theme=theme, width=width
        )
        assert page.evaluate(SIDEWAYS) <= 0
        stage = page.locator(".pa-stage")
        assert stage.evaluate("stage => stage.scrollWidth - stage.clientWidth") <= 1
        assert stage.locator("svg").evaluate(LETTERS) >= 9.5
        assert violations(page, include="main") == []
        drawn = [each for each in stage.locator("svg").evaluate(COLOURS) if each[2]]
        assert len(drawn) > 20 and [text for text, *colours in drawn if contrast(*colours) < 4.5] == []
        mount = page.locator(".pa-mount").bounding_box()
        assert mount and mount["height"] <= 844


def test_forced_colours_leave_it_readable(browser: Browser, show: Show, watch: Watch) -> None:
    """Catches dark letters on the dark page that a reader's own colours make: the picture brings its paper."""
    page, _ = show(Calculator(made_up(), gpu="large"))
    page.emulate_media(forced_colors="active", color_scheme="dark")
    colours = page.locator(".pa-stage svg").evaluate(
        "svg => [svg.querySelector('rect'), svg.querySelector('text')].map(part => getComputedStyle(part).fill)"
    )
    assert colours == ["rgb(255, 255, 255)", "rgb(34, 34, 34)"]


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab with a notebook that holds the calculator, run by nobody and signed by nobody."""
    lab = Lab(tmp_path_factory.mktemp("calculator"))
    cell = new_code_cell(CELL.strip(), outputs=[result(CELL, {})], execution_count=1, id="calculator")
    notebook = new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    (lab.root / "calculator.ipynb").write_text(notebooks.to_text(notebooks.normalise(notebook)), encoding="utf-8")
    yield lab
    lab.stop()


@pytest.fixture(scope="module")
def notebook(lab: Lab, browser: Browser) -> Iterator[Notebook]:
    """Open it."""
    notebook = lab.open(browser, "calculator.ipynb")
    yield notebook
    lab.close(notebook)


def test_it_answers_in_jupyterlab_before_a_run(notebook: Notebook) -> None:
    """Catches a calculator that waits for a kernel, in a notebook that JupyterLab does not trust."""
    page = notebook.page
    player = page.locator(".jp-Notebook .pa-player")
    expect(player).to_have_count(1, timeout=1000 * PATIENCE)
    facts = gather()
    page.get_by_label("GPU", exact=True).select_option(index=0)
    at = [0, 0, facts["contexts"].index(8192), 0, 0, facts["tokens"].index(2010), facts["users"].index(20)]
    picture = draw(facts, at)
    expect(player.locator(".pa-sentence")).to_have_text(picture.caption)
    expect(player.locator(".pa-stage img")).to_have_attribute("alt", picture.alt)


def test_it_answers_in_jupyterlab(notebook: Notebook) -> None:
    """Catches a control that is not wired, stops short of an end, or raises, with a kernel."""
    notebook.run_all()
    assert notebook.run_errors == []
    driver = Driver(notebook)
    assert set(driver.drive_controls(every_way=False)) == driver.controls and len(driver.controls) == 7
    assert violations(notebook.page, include=".jp-Notebook :is(.pa-lesson, .pa-player)") == []
    assert notebook.watch.problems == []
