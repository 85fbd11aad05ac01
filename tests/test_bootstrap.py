"""Setting up: every way in which a machine can be wrong ends in one sentence, and the next call goes on correctly."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.draws import ANY
from tools.bootstrap import copied_files

pytestmark = pytest.mark.when_changed("tools/bootstrap.py", "setup.py", "labextension/", "Makefile", *ANY)

REPO = Path(__file__).resolve().parent.parent
DiskUsage = namedtuple("DiskUsage", "total used free")

# Stands in for .venv/bin/python: writes down what it is asked to do; pip and the model fail if a file says so.
STUB = """#!/bin/sh
cd "$(dirname "$0")/../.."
echo "$@" >> calls
case "$*" in
  *"pip install"*)
    if [ -f pip-slow ]; then sleep 1; fi
    if [ -f pip-fails ]; then cat pip-fails >&2; exit 1; fi ;;
  *pagedattn_lab.models*) if [ -f model-fails ]; then exit 1; fi ;;
esac
"""
NO_NETWORK = """WARNING: Retrying (Retry(total=0, connect=None, read=None)) after connection broken by \
'NewConnectionError("HTTPSConnection: Failed to establish a new connection: [Errno -2] Name or service not known")'
ERROR: Could not find a version that satisfies the requirement setuptools>=77 (from versions: none)
ERROR: No matching distribution found for setuptools>=77
"""
DISK_FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
OTHER = "WARNING: something else\nERROR: No matching distribution found for torch==2.13.0\n\n"
BUILD = """  error: subprocess-exited-with-error
  ╰─> [2 lines of output]
      Traceback (most recent call last):
      ValueError: invalid pyproject.toml
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
"""


def load(checkout: Path) -> ModuleType:
    """Import the bootstrap that lies in ``checkout``, so that it works on that folder."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", checkout / "tools" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_checkout(folder: Path) -> Path:
    (folder / "tools").mkdir(parents=True)
    shutil.copy(REPO / "tools" / "bootstrap.py", folder / "tools")
    shutil.copy(REPO / "constraints.txt", folder)
    shutil.copy(REPO / "pyproject.toml", folder)
    shutil.copy(REPO / "setup.py", folder)
    for source in copied_files().values():
        (folder / source.relative_to(REPO)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / source.relative_to(REPO))
    return folder


def add_venv(checkout: Path) -> None:
    """Put a ``.venv`` there whose Python is a link to the stub, as it would be to the system's Python."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    version = ".".join(map(str, sys.version_info[:3]))
    (checkout / ".venv" / "pyvenv.cfg").write_text(
        f"version = {version}\ncommand = /some/python3 -m venv {checkout}/.venv\n"
    )
    stub = checkout.with_name("stub")
    stub.write_text(STUB)
    stub.chmod(0o755)
    (checkout / ".venv" / "bin" / "python").symlink_to(stub)


def pip_calls(checkout: Path) -> int:
    return (checkout / "calls").read_text().count("pip install") if (checkout / "calls").exists() else 0


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(100e9, 0, 100e9))
    folder = make_checkout(tmp_path.resolve() / "a book")
    add_venv(folder)
    return folder


def sentence(capfd: pytest.CaptureFixture[str]) -> str:
    """Return what was written to stderr: exactly one line."""
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith("set-up: "), error
    return error


def test_old_python_can_read_it() -> None:
    """Catches syntax newer than 3.6, with which an old Python would print a SyntaxError instead of the sentence."""
    ast.parse((REPO / "tools" / "bootstrap.py").read_text(), feature_version=(3, 6))


def test_old_python_alone(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches going on with a Python that is too old, or a sentence without the version needed."""
    monkeypatch.setenv("PATH", str(checkout))
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert load(checkout).main() == 1
    message = sentence(capfd)
    assert "3.10" in message and "3.11 or newer" in message


def test_old_python_with_a_newer_one_on_path(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a refusal although a newer Python is there, and trust in a shim that does not start."""
    shim = checkout / "python3.13"
    shim.write_text("#!/bin/sh\necho 'python3.13: command not found' >&2\nexit 127\n")
    good = checkout / "python3.11"
    good.write_text("#!/bin/sh\nexit 0\n")
    for path in (shim, good):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(checkout))
    module = load(checkout)
    assert module.check_python((3, 9, 2), None) == str(good)
    assert module.check_python((3, 11, 0), None) is None


def test_old_python_chosen_by_the_reader(checkout: Path) -> None:
    """Catches silently replacing the Python that the reader named with PYTHON=."""
    module = load(checkout)
    with pytest.raises(module.SetupError, match=r"PYTHON=python3\.9: Python 3\.9 is too old"):
        module.check_python((3, 9, 2), "python3.9")


def test_no_venv_module(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches Debian's Python without python3-venv ending in ensurepip's own output or a traceback."""
    shutil.rmtree(checkout / ".venv")
    module = load(checkout)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name))
    assert module.main() == 1
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in sentence(capfd)
    assert not (checkout / ".venv").exists()


def test_little_disk(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches starting an installation that cannot fit, and asking for all the space again once torch is there."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(100e9, 98e9, 2e9))
    assert load(checkout).main() == 1
    message = sentence(capfd)
    assert "has 2.0 GB" in message and "GB of free disk space" in message
    assert pip_calls(checkout) == 0
    torch = checkout / ".venv" / "lib" / "python3.11" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").touch()
    assert load(checkout).main() == 0


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (NO_NETWORK, "package index cannot be reached"),
        (DISK_FULL, "disk is full"),
        (OTHER, "(ERROR: No matching distribution found for torch==2.13.0)"),
        (BUILD, "(ValueError: invalid pyproject.toml)"),
        ("", "(it wrote nothing)"),
    ],
)
def test_pip_fails(checkout: Path, capfd: pytest.CaptureFixture[str], stderr: str, expected: str) -> None:
    """Catches pip's own many lines, one reason taken for another, and a stamp in spite of a failure."""
    (checkout / "pip-fails").write_text(stderr)
    module = load(checkout)
    assert module.main() == 1
    assert expected in sentence(capfd)
    assert not module.up_to_date()


def test_unreachable_index(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches a pip whose words about a dead network are not recognised: real venv, real pip, nobody answers."""
    shutil.rmtree(checkout / ".venv")
    for name in os.environ:
        if name.lower().startswith(("pip_", "http", "all_proxy")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    module = load(checkout)
    assert module.main() == 1
    assert "package index cannot be reached" in sentence(capfd)
    assert module.usable_venv() and not module.up_to_date()


def test_resume_after_a_failure(checkout: Path) -> None:
    """Catches a second call that trusts a half-finished installation, starts from nothing, or never becomes quick."""
    (checkout / "pip-fails").write_text(NO_NETWORK)
    (checkout / ".venv" / "already-downloaded").touch()
    assert load(checkout).main() == 1
    (checkout / "pip-fails").unlink()
    assert load(checkout).main() == 0
    assert (checkout / ".venv" / "already-downloaded").exists()
    assert pip_calls(checkout) == 2
    assert load(checkout).main() == 0
    assert pip_calls(checkout) == 2


def test_interrupted_update(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches an old stamp that survives an interrupted update and fits again once the edit is undone."""
    module = load(checkout)
    assert module.main() == 0
    pins = (checkout / "constraints.txt").read_text()
    (checkout / "constraints.txt").write_text(pins + "extra==1\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "install", interrupt)
    assert module.main() == 1
    assert "interrupted" in sentence(capfd)
    (checkout / "constraints.txt").write_text(pins)
    assert not module.up_to_date()


def test_two_terminals_at_once(checkout: Path) -> None:
    """Catches two set-ups of one checkout that install into the same .venv at the same time."""
    (checkout / "pip-slow").touch()
    torch = checkout / ".venv" / "lib" / "python3.11" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").touch()  # so that the real disk needs only 1 GB
    command = [sys.executable, str(checkout / "tools" / "bootstrap.py")]
    both = [subprocess.Popen(command), subprocess.Popen(command)]
    assert [process.wait() for process in both] == [0, 0]
    assert pip_calls(checkout) == 1


def test_up_to_date_starts_no_process(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a slow second call: whether all is installed must be seen from a few small files alone."""
    module = load(checkout)
    assert module.main() == 0

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("started a process")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert module.up_to_date()


@pytest.mark.parametrize("not_found", [NO_NETWORK, OTHER])
@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "constraints.txt"])
def test_an_edit_installs_again(checkout: Path, name: str, not_found: str) -> None:
    """Catches a new dependency or pin that an existing .venv never gets, and, where it is not to be had, a .venv that
    is given up although the edit is undone.
    """
    assert load(checkout).main() == 0
    before = (checkout / name).read_text()
    (checkout / name).write_text(before + "# an edit\n")
    (checkout / "pip-fails").write_text(not_found)
    assert load(checkout).main() == 1 and pip_calls(checkout) == 2
    (checkout / name).write_text(before)
    assert load(checkout).main() == 0 and pip_calls(checkout) == 2
    (checkout / name).write_text(before + "# an edit\n")
    (checkout / "pip-fails").unlink()
    assert load(checkout).main() == 0 and pip_calls(checkout) == 3


def test_an_edit_of_the_extension_wants_no_network(checkout: Path) -> None:
    """Catches an old player that stays in JupyterLab, and pip called, which wants an index, where a copy will do."""
    assert load(checkout).main() == 0
    for name, source in copied_files().items():
        source, target = checkout / source.relative_to(REPO), checkout / ".venv" / name
        assert target.read_bytes() == source.read_bytes()
        source.write_text("// an edit\n")
    (checkout / "pip-fails").write_text(NO_NETWORK)
    (checkout / "labextension" / "new.js").touch()
    assert load(checkout).main() == 0 and pip_calls(checkout) == 1
    assert {(checkout / ".venv" / name).read_text() for name in copied_files()} == {"// an edit\n"}
    static = checkout / ".venv" / "share" / "jupyter" / "labextensions" / "pagedattn-lab" / "static"
    assert (static / "new.js").exists()


def test_broken_pyproject(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches a traceback where the table of copied files cannot be read."""
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("[tool\n")
    assert load(checkout).main() == 1
    assert "pyproject.toml cannot be read" in sentence(capfd)


def test_moved_checkout(checkout: Path) -> None:
    """Catches going on with a .venv whose scripts and editable installation point to the old place."""
    assert load(checkout).main() == 0
    moved = checkout.rename(checkout.with_name("moved"))
    module = load(moved)
    assert not module.up_to_date() and not module.usable_venv()


def test_python_gone(checkout: Path) -> None:
    """Catches a .venv that outlived the Python it was made with."""
    assert load(checkout).main() == 0
    checkout.with_name("stub").unlink()
    module = load(checkout)
    assert not module.up_to_date() and not module.usable_venv()


def test_python_upgraded_in_place(checkout: Path) -> None:
    """Catches /usr/bin/python3 having become another Python, for which nothing in .venv is installed."""
    assert load(checkout).main() == 0
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(shutil.copy(checkout.with_name("stub"), checkout.with_name("newer")))
    assert not load(checkout).up_to_date()


def test_another_python_is_chosen(checkout: Path) -> None:
    """Catches PYTHON= without effect on an existing .venv, and a .venv remade because python3 means another one."""
    assert load(checkout).main() == 0
    config = checkout / ".venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("version = 3", "version = 4"))
    module = load(checkout)
    assert module.up_to_date() and not module.up_to_date("python3.12") and not module.usable_venv("python3.12")


def test_relative_cache(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches an installation of minutes before the model's folder is refused."""
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", "models")
    assert load(checkout).main() == 1
    assert "PAGEDATTN_LAB_CACHE is 'models'" in sentence(capfd)
    assert pip_calls(checkout) == 0
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", "~/models")
    assert load(checkout).main() == 0


def test_model_cannot_be_fetched(checkout: Path) -> None:
    """Catches success reported although the default model is missing; the next call tries only the model again."""
    (checkout / "model-fails").touch()
    assert load(checkout).main() == 1
    (checkout / "model-fails").unlink()
    assert load(checkout).main() == 0
    assert pip_calls(checkout) == 1


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a reader would; under `make test` it would otherwise take over the outer make's options."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    return subprocess.run(["make", *arguments], cwd=REPO, env=clean, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_python() -> None:
    """Catches the shell's 'not found' in place of a sentence where Python is missing altogether."""
    done = run_make("PYTHON=no-such-python", "setup")
    assert done.returncode != 0
    assert done.stderr.startswith("set-up: no-such-python is not installed: install Python 3.11 or newer")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_lab_stays_on_this_machine() -> None:
    """Catches a JupyterLab that others can reach or use without its token, or that ignores LAB_ARGS."""
    commands = run_make("-n", "lab", "LAB_ARGS=--no-browser --port 8890").stdout
    assert "--ServerApp.ip=127.0.0.1" in commands and "/lab/tree/chapters/00_start_here.ipynb" in commands
    assert "token" not in commands and "password" not in commands
    assert commands.rstrip().endswith("--no-browser --port 8890")
