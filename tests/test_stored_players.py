"""Players under nbval: what a stored chapter shows is compared when it runs again, though scripts draw it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from pagedattn_lab.viz.player import MIME
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
