"""JupyterLab's extension: pip brings every file of it, in each way to install the book, and no file is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jupyterlab.commands import get_app_dir

from pagedattn_lab.viz.book import WITHOUT_KERNEL
from pagedattn_lab.viz.player import SCRIPTS
from tests.helpers.chapters import REPO
from tools.bootstrap import copied_files, copy_files

HOME = "share/jupyter/labextensions/pagedattn-lab"
ALSO_BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "pagedattn_lab/__init__.py")


@pytest.mark.parametrize("build", ["build_wheel", "build_editable"])
def test_pip_brings_the_extension(tmp_path: Path, build: str) -> None:
    """Catches an installation without the extension: setuptools leaves data files out of editable ones by itself; and
    an edit that ``make`` would copy to another place than pip.
    """
    checkout, wheels = tmp_path / "checkout", tmp_path / "wheels"
    wheels.mkdir()
    for source in [*copied_files().values(), *(REPO / name for name in ALSO_BUILT_FROM)]:
        target = checkout / source.relative_to(REPO)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    code = f"from setuptools import build_meta; build_meta.{build}({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {
            name.partition(".data/data/")[2]: archive.read(name) for name in archive.namelist() if ".data/data/" in name
        }
    assert held == {target: source.read_bytes() for target, source in copied_files().items()}


def test_jupyterlab_finds_what_the_extension_loads(tmp_path: Path) -> None:
    """Catches a file that a script of the extension asks for by a name that is not there."""
    copy_files(tmp_path)
    home = tmp_path / HOME
    package = json.loads((home / "package.json").read_text())
    assert (home / package["jupyterlab"]["_build"]["load"]).is_file()
    static = home / "static"
    names = set()
    for script in static.glob("*.js"):
        source = script.read_text(encoding="utf-8")
        names |= set(re.findall(r'"(?:\./)?([\w.]+\.(?:js|css|json))"', source))
    sheets = {"extension.css", "player.css", "pictures.css"}
    assert {"extension.js", "runs.js", "recordings.js", "player.js", "execution.json"} | sheets <= names
    assert [name for name in sorted(names) if not (static / name).is_file()] == []


def test_jupyterlab_reads_the_settings() -> None:
    """Catches settings that pip copies to a folder in which JupyterLab does not look."""
    read = Path(get_app_dir()).relative_to(sys.prefix) / "settings" / "overrides.d"
    assert f"{read.as_posix()}/pagedattn-lab.json" in copied_files()


def test_one_source() -> None:
    """Catches a second copy of the player in the repository, and a script that one place lacks."""
    recordings = (REPO / "labextension" / "recordings.js").read_text(encoding="utf-8")
    assert f"const SCRIPTS = {json.dumps(SCRIPTS)};" in recordings
    assert f"const WITHOUT_KERNEL = {json.dumps(WITHOUT_KERNEL)};" in recordings
    copies = [path for name in (*SCRIPTS, "player.css", "pictures.css") for path in (REPO / "labextension").rglob(name)]
    assert copies == []
