"""The built book, for the tests that read it and for those that open it in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build_book(target: Path) -> Path:
    """Build the book into a folder as ``make book`` does, and return the folder; a warning fails the build."""
    recipe = re.search(r"-m (sphinx .+) build/book$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe and " -W -n " in recipe[1], "make book must be strict"
    command = [sys.executable, "-m", *recipe[1].split(), str(target)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return target
