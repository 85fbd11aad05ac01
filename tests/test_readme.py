"""The README: its picture is drawn by the library, its commands and links exist, its example runs."""

from __future__ import annotations

import re
from pathlib import Path

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import load
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.memory import show_memory

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PICTURE = ROOT / "book" / "_static" / "block-table.svg"


def block_table_picture() -> Picture:
    """Draw two requests whose blocks interleave. Run this file to write the picture anew."""
    pool = BlockPool(num_blocks=8, block_size=8)
    ada, bob = BlockTable(pool), BlockTable(pool)
    ada.append_tokens(13)
    bob.append_tokens(12)
    ada.append_tokens(8)
    return show_memory(pool, {"Ada": ada, "Bob": bob})


def test_picture_is_current() -> None:
    """Catches a picture, or a text in its place, that no longer shows what the library does."""
    assert f"![{block_table_picture().alt}](book/_static/block-table.svg)" in README
    assert PICTURE.read_text() == block_table_picture().svg + "\n"


def test_links_lead_somewhere() -> None:
    """Catches a file that was moved or renamed, and chapters that the README forgets or lists out of order."""
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert [target for target in targets if not (ROOT / target).exists()] == []
    chapters = [target for target in targets if target.endswith(".ipynb")]
    assert chapters == sorted(f"chapters/{path.name}" for path in (ROOT / "chapters").glob("*.ipynb"))


def test_make_targets_exist() -> None:
    """Catches a command that the Makefile does not have."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)) <= targets
    assert {"lab", "test"} <= targets


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
