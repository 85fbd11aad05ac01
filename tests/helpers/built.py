"""The built book, for the tests that read it and for those that open it in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
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


def built_once(worker_folder: Path) -> Path:
    """Return the folder of the book that all workers of a test run share; the first to ask builds it, others wait.

    A build that fails leaves nothing behind: Sphinx would not say twice what it warned of.

    Args:
        worker_folder: where pytest keeps this worker's temporary folders; without workers, those of the run.
    """
    shared = worker_folder.parent if "PYTEST_XDIST_WORKER" in os.environ else worker_folder
    site = shared / "built-book"
    with FileLock(shared / "built-book.lock"):
        if not site.exists():
            target = Path(tempfile.mkdtemp(prefix="building-", dir=shared))
            build_book(target)
            target.rename(site)
    return site
