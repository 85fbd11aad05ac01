"""Charts, strips and drawings follow the theme in the built book and in JupyterLab, and can be read in the dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from contrast import COLOURS, contrast
from jupyter_page import Lab, Notebook
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from playwright.sync_api import Browser, Locator
from watch import Watch, until

from tests.helpers.chapters import CHAPTERS

DRAWN = ":is(.picture, .pa-stage) > svg"
WITH_CHARTS = [path.stem for path in CHAPTERS if not path.stem.startswith("00")]


def corner(picture: Locator) -> float:
    """Take a picture of a picture, and say how light its corner is, from 0 to 255: there is nothing but paper."""
    image = Image.open(io.BytesIO(picture.screenshot(animations="disabled")))
    return image.convert("L").getpixel((image.width - 7, 6))


def test_contrast_is_measured() -> None:
    """Catches a measure that calls everything readable, or that looks through no veil."""
    assert contrast("rgb(0, 0, 0)", [("rgb(255, 255, 255)", 1)]) == pytest.approx(21)
    assert contrast("rgb(255, 255, 255)", [("rgb(0, 114, 178)", 0), ("rgb(255, 255, 255)", 1)]) == pytest.approx(1)


@pytest.mark.parametrize("name", WITH_CHARTS)
def test_pictures_of_the_book_follow_the_theme(browser: Browser, chromium: str, site: Path, name: str) -> None:
    """Catches a picture that stays white in the dark, and letters that cannot be read on what is under them."""
    with Watch(browser, viewport={"width": 1440, "height": 1000}) as watch:
        page = watch.new_page()
        page.goto((site / "chapters" / f"{name}.html").as_uri())
        page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        for scheme in ("light", "dark"):
            page.evaluate("scheme => (document.documentElement.dataset.theme = scheme)", scheme)
            drawn = page.locator(DRAWN)
            assert drawn.count() > 1
            for picture in drawn.all():
                shade, words = corner(picture), picture.get_attribute("aria-label")
                assert shade < 48 if scheme == "dark" else shade > 240, words
                if scheme == "dark":
                    seen = [each for each in picture.evaluate(COLOURS) if each[2]]
                    assert [text for text, *colours in seen if contrast(*colours) < 4.5] == [], words


CELLS = (
    """
from pagedattn_lab.viz.figures import show, subplots
figure, axes = subplots(figsize=(3, 2))
_ = axes.bar([1, 2], [1, 2])
axes.set_title("Two bars")
chart = show(figure, alt="Two bars.")
chart
""",
    """
from pagedattn_lab.exercises.guesses import reconcile
reconcile(None, 2, "bars", shown_by=chart)
""",
    """
from pagedattn_lab.exercises.verdict import Verdict
Verdict(False, "Not yet.", pictures=[("yours", chart)])
""",
    """
from pagedattn_lab.viz.player import Player
Player([chart, chart], "Two charts")
""",
)
SEEN = ".jp-OutputArea img, .pa-picture > svg, .pa-stage > :is(svg, img)"


@pytest.fixture
def notebook(browser: Browser, tmp_path: Path) -> Iterator[Notebook]:
    """Open a notebook with a picture in each of the ways in which JupyterLab gets one."""
    lab = Lab(tmp_path)
    kernel = {"name": "python3", "display_name": "Python 3"}
    cells = [new_code_cell(source.strip()) for source in CELLS]
    lab.write(Path("charts.ipynb"), new_notebook(cells=cells, metadata={"kernelspec": kernel}))
    notebook = lab.open(browser, "charts.ipynb")
    yield notebook
    lab.close(notebook)
    lab.stop()


def test_pictures_in_jupyterlab_follow_the_theme(notebook: Notebook) -> None:
    """Catches a chart, an answer's picture, a verdict's or a player's that stays white in JupyterLab's dark theme."""
    notebook.run_all()
    page = notebook.page
    page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    until(lambda: page.locator(SEEN).count() == len(CELLS), lambda: f"{page.locator(SEEN).count()} pictures")
    for theme, is_dark in (("JupyterLab Dark", True), ("JupyterLab Light", False)):
        page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
        shades = [corner(picture) for picture in page.locator(SEEN).all()]
        assert all(shade < 48 if is_dark else shade > 240 for shade in shades), (theme, shades)
