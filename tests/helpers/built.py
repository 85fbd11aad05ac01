"""What is costly and made once for a whole test run: the built book, for those who read it and for browsers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


def build_book(target: Path) -> None:
    """Build the book into a folder as ``make book`` does; a warning fails the build."""
    recipe = re.search(r"-m (sphinx .+) build/book$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe and " -W -n " in recipe[1], "make book must be strict"
    command = [sys.executable, "-m", *recipe[1].split(), str(target)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def built_once(worker_folder: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder that all workers of a test run share; the first to ask has it built, others wait.

    A build that fails leaves nothing behind: Sphinx would not say twice what it warned of.

    Args:
        worker_folder: where pytest keeps this worker's temporary folders; without workers, those of the run.
        name: of the folder.
        build: fills a folder that is there and empty.
    """
    shared = worker_folder.parent if "PYTEST_XDIST_WORKER" in os.environ else worker_folder
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            target = Path(tempfile.mkdtemp(prefix="building-", dir=shared))
            build(target)
            target.rename(folder)
    return folder
