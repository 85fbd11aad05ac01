"""Players under nbval: what a stored chapter shows is compared when it runs again, though scripts draw it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from nbconvert.filters.widgetsdatatypefilter import WidgetsDataTypeFilter
from nbformat.v4 import new_code_cell, new_notebook

from pagedattn_lab.viz import MIME
from tests.helpers.chapters import CHAPTERS
from tools import notebooks

SOURCE = """
import ipywidgets as widgets

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.viz.lesson import Lesson


def draw(block_size):
    pool = BlockPool(8, block_size)
    table = BlockTable(pool)
    trace = Recorder(pool, {"Ada": table})
    table.append_tokens(5)
    table.append_tokens(1)
    return trace


Lesson(draw, "One request", block_size=widgets.IntSlider(4, min=1, max=8, description="block size"))
"""


WIDGET = "application/vnd.jupyter.widget-view+json"


def still(data: dict) -> ElementTree.Element:
    """Read the SVG of an output as a viewer does that runs no script and knows no recording and no widget."""
    kinds = {MIME, "image/svg+xml", "text/plain"} | ({WIDGET} if WIDGET in data else set())  # a still has no widget
    assert kinds == set(data), "another type would win over the picture"
    svg = data["image/svg+xml"]
    return ElementTree.fromstring(svg if isinstance(svg, str) else "".join(svg))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_viewers_without_scripts_get_a_picture(path: Path) -> None:
    """Catches a stored player of which GitHub shows nothing, or a picture that says nothing to who cannot see it."""
    notebook = notebooks.read(path)
    outputs = [output.data for cell in notebooks.code_cells(notebook) for output in cell.outputs if "data" in output]
    for data in outputs:
        if MIME not in data and WIDGET not in data:
            continue
        assert WidgetsDataTypeFilter(notebook_metadata={})(data) == [
            "image/svg+xml"
        ]  # nbconvert's choice, and so nbviewer's
        svg, words = still(data), "".join(data["text/plain"])
        assert svg.attrib["role"] == "img"
        assert len(svg.attrib["aria-label"]) > 20 and words.endswith(svg.attrib["aria-label"])
        assert len(list(svg.iter())) > 10, "there is nothing to see"
        tags = {element.tag.rpartition("}")[2] for element in svg.iter()}
        assert not tags & {"script", "foreignObject", "image"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Execute and store a notebook that shows a lesson, as ``make notebooks`` does."""
    path = tmp_path_factory.mktemp("stored") / "lesson.ipynb"
    path.write_text(notebooks.to_text(new_notebook(cells=[new_code_cell(SOURCE.strip(), id="lesson")])))
    asyncio.run(notebooks.execute(path, refresh_timings=True))
    return path


def nbval_passes(path: Path) -> bool:
    """Run a notebook as ``make test`` does and compare its outputs."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
        str(path),
    ]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0


def test_an_unchanged_player_passes(stored: Path) -> None:
    """Catches an output that differs from run to run, by an object's address for instance."""
    before = stored.read_text()
    asyncio.run(notebooks.execute(stored, refresh_timings=True))
    assert stored.read_text() == before
    assert nbval_passes(stored)


@pytest.mark.parametrize("kind", [MIME, "image/svg+xml", "text/plain"])
def test_a_changed_state_fails(stored: Path, tmp_path: Path, kind: str) -> None:
    """Catches a kind of output that nbval skips: a frame between the ends is in the recording alone."""
    notebook = notebooks.read(stored)
    data = notebook.cells[0].outputs[0].data
    if kind == MIME:
        data[MIME]["frames"][1]["tables"][0]["num_tokens"] = 6
    else:
        text = data[kind] if isinstance(data[kind], str) else "".join(data[kind])
        data[kind] = text.replace("6 tokens", "7 tokens")
        assert data[kind] != text
    changed = tmp_path / "changed.ipynb"
    changed.write_text(json.dumps(notebook))
    assert not nbval_passes(changed)
