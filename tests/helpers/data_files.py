"""What pip copies beside the library: the files that pyproject.toml names for share/jupyter."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from tests.helpers.chapters import REPO


def data_files() -> dict[str, Path]:
    """Return where each file goes, relative to the environment, and where it lies in the checkout.

    Raises:
        AssertionError: a pattern that no file matches.
    """
    table = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["data-files"]
    found = {}
    for folder, patterns in table.items():
        for pattern in patterns:
            paths = sorted(REPO.glob(pattern))
            assert paths, f"pyproject.toml names {pattern}, which is no file"
            found |= {f"{folder}/{path.name}": path for path in paths}
    return found


def place_data_files(prefix: Path) -> Path:
    """Copy them into a folder as pip would into an environment, and return it."""
    for target, source in data_files().items():
        path = prefix / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    return prefix
