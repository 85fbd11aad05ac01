"""The chapters, and where the repository says that it lies."""

from __future__ import annotations

import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
REPOSITORY_URL = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


CHAPTERS = sorted((REPO / "chapters").glob("*.ipynb"))
