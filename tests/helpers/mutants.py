"""Changed copies of a kernel's module, for tests of the tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def load(source: str, folder: Path) -> ModuleType:
    """Import a copy of a kernel's module from its text; Triton needs a file to read it from."""
    file = folder / "mutant.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("mutant", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
