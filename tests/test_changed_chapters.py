"""Which chapters ``make check`` executes: those that differ from the main branch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import changed_chapters


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a repository with two chapters and a module on its main branch, and a branch beside it."""
    for name in ("chapters/00_a.ipynb", "chapters/01_b.ipynb", "pagedattn_lab/a.py", "README.md"):
        write(tmp_path, name)
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path)
    git(tmp_path, "switch", "-q", "-c", "other")
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=root, check=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a")


def write(root: Path, name: str, text: str = "{}\n") -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)


def test_nothing_changed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a chapter executed for nothing, and a warning about a library that is as it was."""
    write(root, "README.md", "else")
    assert changed_chapters.main(root) == 0
    assert capsys.readouterr() == ("\n", "check: changed chapters, executed and compared: none\n")


def test_changes_of_every_kind(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a chapter passed over whose change is committed or whose file is new, and one that is gone."""
    write(root, "chapters/00_a.ipynb", "else")
    commit(root)
    (root / "chapters/01_b.ipynb").unlink()
    write(root, "chapters/02_c.ipynb")
    assert changed_chapters.main(root) == 0
    assert capsys.readouterr().out == "chapters/00_a.ipynb chapters/02_c.ipynb\n"


def test_main_went_on(root: Path) -> None:
    """Catches a chapter of somebody else's: it differs from the main branch, but not from where this one left it."""
    git(root, "switch", "-q", "main")
    write(root, "chapters/00_a.ipynb", "else")
    commit(root)
    git(root, "switch", "-q", "other")
    assert changed_chapters.changed(root, changed_chapters.CHAPTERS) == []


def test_on_the_main_branch_or_without_one(root: Path) -> None:
    """Catches a change that is overlooked where there is no other branch to compare with."""
    write(root, "chapters/00_a.ipynb", "else")
    for arguments in (("switch", "-q", "main"), ("branch", "-q", "-m", "main", "trunk")):
        git(root, *arguments)
        assert changed_chapters.changed(root, changed_chapters.CHAPTERS) == ["chapters/00_a.ipynb"]


def test_the_library_changed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches silence where a change of the library may have changed any chapter."""
    write(root, "pagedattn_lab/a.py", "else")
    assert changed_chapters.main(root) == 0
    out, error = capsys.readouterr()
    assert out == "\n" and "make test executes them all" in error


def test_no_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a traceback where the sources came as an archive."""
    write(tmp_path, "chapters/00_a.ipynb")
    assert changed_chapters.main(tmp_path) == 0
    assert capsys.readouterr().out == "\n"
