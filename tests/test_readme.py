"""The README: its pictures are drawn by the library, its commands and links exist, its examples and samples are run."""

from __future__ import annotations

import csv
import re
import shlex
import sys
import sysconfig
import tomllib
import xml.etree.ElementTree as ET
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

from pagedattn_lab import models
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.cli import main
from pagedattn_lab.recorder import load
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.board import draw
from pagedattn_lab.viz.memory import show_memory
from tests.helpers.chapters import markdown
from tests.helpers.draws import LIBRARY
from tools import bootstrap, moving_picture, notebooks

pytestmark = pytest.mark.usefixtures("loaded_once")
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PICTURE = ROOT / "book" / "_static" / "block-table.svg"
SAMPLES = re.findall(r"^\$ \.venv/bin/pagedattn-lab (.*)\n((?:(?!```).*\n)*)", README, flags=re.MULTILINE)


def block_table_picture() -> Picture:
    """Draw two requests whose blocks interleave. Run this file to write the picture anew."""
    pool = BlockPool(num_blocks=8, block_size=8)
    ada, bo = BlockTable(pool), BlockTable(pool)
    ada.append_tokens(13)
    bo.append_tokens(12)
    ada.append_tokens(8)
    return show_memory(pool, {"Ada": ada, "Bo": bo})


def test_picture_is_current() -> None:
    """Catches a still picture, shown on the book's front page, that is not what the library draws."""
    assert PICTURE.read_text() == block_table_picture().svg + "\n"


def texts(elements: list[ET.Element]) -> list[str]:
    """What is written in parts of a picture, in alphabetical order: where they stand is the drawing's business."""
    found = ("".join(text.itertext()) for each in elements for text in each.iter(f"{moving_picture.SVG}text"))
    return sorted(found)


def test_moving_picture_is_current() -> None:
    """Catches a moving picture, or a text in its place, that lags behind what the library draws: write it anew with
    ``python -m tools.moving_picture``.
    """
    frames = moving_picture.recorded()
    assert f"![{moving_picture.alt(frames)}](book/_static/paging.svg)" in README
    assert moving_picture.FILE.read_text() == moving_picture.film(frames)
    assert moving_picture.FILE.stat().st_size < 200_000
    assert README.index("paging.svg") < README.index("|---"), "first what moves, then tables"


def test_moving_picture_follows_the_players_colours() -> None:
    """Catches a dark style of the picture's own, or one without a kind of part that the player's has."""
    dark = moving_picture.dark()
    for kind in (
        "pa-ink",
        "pa-paper",
        "pa-empty",
        "pa-free",
        "pa-null",
        "pa-changed",
        "pa-arrow-line",
        "pa-arrow-head",
    ):
        assert f".{kind}" in dark, kind
    assert ".pa-ink{fill:#ececec}" in dark
    first, *_, last = moving_picture.recorded()
    assert [table.name for table in first.tables] == [] and len(last.tables) == 2, "each appears when it arrives"


def test_moving_picture_shows_every_frame() -> None:
    """Catches a part that appears a frame early or stays a frame late, and, for those who asked for less motion, a
    picture that moves, is empty, or mixes two frames.
    """
    frames = moving_picture.recorded()
    picture = ET.fromstring(moving_picture.film(frames))
    style = picture.findtext(f"{moving_picture.SVG}style")
    moving = style.index("@media(prefers-reduced-motion:no-preference)")
    assert "animation" not in style[:moving] and style.startswith(".part{opacity:0}.still{opacity:1}")
    seconds = float(re.search(r"\.part\{animation:([\d.]+)s step-end infinite\}", style)[1])
    assert seconds / len(frames) >= 1.5, "a sentence wants time to be read"

    def shown(part: ET.Element, percent: float) -> bool:
        """As a browser computes it where nothing fades: what the last stop before says."""
        if "part" not in part.get("class", ""):
            return True
        name = part.get("class").split()[0]
        stops = re.search(rf"@keyframes {name}\{{((?:[\d.]+%\{{opacity:[01]\}})+)\}}", style)[1]
        stops = [(float(at), opacity) for at, opacity in re.findall(r"([\d.]+)%\{opacity:(.)\}", stops)]
        assert stops == sorted(stops) and stops[0][0] == 0
        return [opacity for at, opacity in stops if at <= percent][-1] == "1"

    for number, frame in enumerate(frames):
        board = ET.fromstring(draw(frame, moving_picture.WORDS, moving_picture.WIDTH, among=frames))
        drawn = [part for part in board if "pa-soft" not in part.get("class", "")]  # without the legend
        parts = [part for part in picture if shown(part, 100 * (number + 0.5) / len(frames))]
        captions = [text for text in texts(parts) if text in frame.sentence]
        assert {*frame.sentence.split()} <= {*" ".join(captions).split()}, number
        assert texts(drawn) and [each for each in texts(parts) if each not in captions] == [
            each for each in texts(drawn) if each not in captions
        ], number
        still = [part for part in picture if "part" not in part.get("class", "") or "still" in part.get("class", "")]
        assert (texts(still) == texts(parts)) is (number == moving_picture.STILL)


def test_links_lead_somewhere() -> None:
    """Catches a file that was moved or renamed, and chapters that the README forgets or lists out of order."""
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert [target for target in targets if not (ROOT / target).exists()] == []
    chapters = [target for target in targets if target.endswith(".ipynb")]
    assert chapters == sorted(f"chapters/{path.name}" for path in (ROOT / "chapters").glob("*.ipynb"))


@pytest.mark.parametrize("page", ["README.md", "book/index.md", "book/map.md", "chapters/00_start_here.ipynb"])
def test_what_is_in_preparation_is_said(page: str) -> None:
    """Catches a page that promises a chapter as if it were written, or holds one back that is."""
    text = (ROOT / page).read_text()
    if page.endswith(".ipynb"):
        text = markdown(notebooks.read(ROOT / page).cells)
    if page not in ("README.md", "book/index.md"):
        said = re.findall(r"^\| (\d\d) .*\*\(in preparation\)\*", text, flags=re.MULTILINE)
    else:
        said = re.findall(r"\b\d\d\b", " ".join(re.findall(r"[Ii]n preparation: ([^.]*)\.", text)))
    written = {path.name[:2] for path in (ROOT / "chapters").glob("*.ipynb")}
    assert said == [number for number in (f"{each:02}" for each in range(12)) if number not in written]


def test_make_targets_exist() -> None:
    """Catches a command that the Makefile does not have."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)) <= targets
    assert {"lab", "test"} <= targets


def test_clone_line() -> None:
    """Catches an address that is not the repository's, and a folder of another name."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert f"\ngit clone {address}\ncd {address.rpartition('/')[2]}\nmake lab\n" in README


def test_set_up_needs_what_it_says() -> None:
    """Catches a promise of less disk than the set-up asks for, and of another size than it has.

    A package's own list gives its size, so that not each of 60,000 files is asked for its own. These lists leave out
    what Python compiles, a tenth of the whole.
    """
    asked = f"{bootstrap.GB_LINUX} GB of free disk on Linux, {bootstrap.GB_ELSEWHERE} elsewhere"
    assert asked in " ".join(README.split())
    if sys.prefix == sys.base_prefix or torch.version.cuda is not None:
        pytest.skip("what is said was measured in an environment of its own, with PyTorch for the CPU")
    packages = distributions(path=[sysconfig.get_path("purelib")])
    lists = ((package.read_text("RECORD") or "").splitlines() for package in packages)
    num_bytes = sum(int(size or 0) for lines in lists for _, _, size in csv.reader(lines))
    num_bytes += sum(file.lstat().st_size for file in models.cache_directory().rglob("*"))
    (said,) = re.findall(r"which take ([0-9.]+) GB on disk", README)
    assert num_bytes / 1e9 == pytest.approx(0.9 * float(said), rel=0.1)


def test_samples_are_those_of_every_kind() -> None:
    """Catches samples that the pattern below no longer finds."""
    assert sorted(command.split()[0] for command, _ in SAMPLES) == ["budget", "generate", "generate", "hits", "waste"]


@pytest.mark.when_changed("README.md", *LIBRARY)
@pytest.mark.parametrize(("command", "expected"), SAMPLES, ids=[command for command, _ in SAMPLES])
def test_samples_are_what_is_printed(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a sample that the command does not print; ``...`` leaves lines out, and long lines are folded."""
    assert main(shlex.split(command)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    parts = [" ".join(part.split()) for part in re.split(r"^\.\.\.$", expected, flags=re.MULTILINE)]
    assert max(map(len, expected.splitlines())) <= 80 and any(parts)
    assert re.fullmatch(".*".join(map(re.escape, parts)), printed)


def test_examples_run(capsys, tmp_path, monkeypatch) -> None:
    """Catches an example that has fallen behind the library."""
    monkeypatch.chdir(tmp_path)
    generation, player = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(generation, "README.md", "exec"), {})
    lines = capsys.readouterr().out.strip()
    assert "Hello" in lines and "page table" in lines
    exec(compile(player, "README.md", "exec"), {})
    assert len(load(tmp_path / "recording.json")["frames"]) == 4


if __name__ == "__main__":
    PICTURE.write_text(block_table_picture().svg + "\n")
    print(f"wrote {PICTURE}: {block_table_picture().alt}")
