"""Make ``.venv`` and the default model ready; return at once when they are. ``make`` calls this before everything else.

Each thing that can be wrong with a machine has a small function here, and ends in one sentence on stderr.
The file stays within the syntax of Python 3.6, so that an old Python can still read it and say what is missing.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up-complete"
OLDEST = (3, 11)
NEWER_NAMES = ("python3.13", "python3.12", "python3.11")
REQUIREMENTS = ("-c", "constraints.txt", "-e", ".[lab,test,book]")

# Measured: 2.5 GB installed with a CPU build of torch, plus downloads and the model. On Linux pip may pick the CUDA
# build instead, whose libraries unpack to several GB more. With torch already there, the rest is small.
GB_LINUX, GB_ELSEWHERE, GB_WITH_TORCH = 8, 4, 1

NETWORK_SIGNS = (
    "NewConnectionError",
    "Failed to establish a new connection",
    "Failed to resolve",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Connection refused",
    "Connection broken",
    "ProxyError",
    "SSLError",
)


class SetupError(Exception):
    """One sentence for the reader: what is wrong, and what to do."""


class NothingInstalled(SetupError):
    """pip did not find everything; it fetches all packages before it changes one, so ``.venv`` is as it was."""


def newer_python() -> "str | None":
    """Return the first Python on PATH that is new enough and really starts (a shim may only pretend)."""
    test = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    for path in filter(None, map(shutil.which, NEWER_NAMES)):
        if subprocess.call([path, "-c", test], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def check_python(version: "tuple[int, ...]", chosen: "str | None") -> "str | None":
    """Return None if ``version`` will do, else the path of a Python to start instead; ``chosen`` is make's PYTHON."""
    if version >= OLDEST:
        return None
    found = f"Python {version[0]}.{version[1]} is too old, this book needs 3.11 or newer"
    if chosen:
        raise SetupError(f"PYTHON={chosen}: {found}; name another one with make PYTHON=..., or leave PYTHON out.")
    other = newer_python()
    if other is None:
        raise SetupError(f"{found}: install one (3.12 is a good choice), then run the same command again.")
    return other


def check_venv_module() -> None:
    """Refuse a Python that cannot make virtual environments: Debian and Ubuntu package that part separately."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(
            f"{sys.executable} has no venv module: install it (Debian, Ubuntu: sudo apt install {package}), "
            "then run the same command again."
        )


def check_disk() -> None:
    """Refuse to begin an installation that the disk cannot hold."""
    needed = GB_LINUX if sys.platform.startswith("linux") else GB_ELSEWHERE
    if any(VENV.glob("lib/python*/site-packages/torch/version.py")):
        needed = GB_WITH_TORCH
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < needed:
        raise SetupError(
            f"The installation needs {needed} GB of free disk space and {ROOT} has {free:.1f} GB: "
            "free some space or move the book to a larger disk, then run the same command again."
        )


def check_cache() -> None:
    """Refuse a cache that would be another folder for chapters, which run in a folder of their own."""
    chosen = os.environ.get("PAGEDATTN_LAB_CACHE")
    if chosen and not os.path.isabs(os.path.expanduser(chosen)):
        raise SetupError(
            f"PAGEDATTN_LAB_CACHE is {chosen!r}, which means another folder in each place: give an absolute path, "
            f"such as {os.path.abspath(chosen)}."
        )


def copied_files() -> "dict[str, Path]":
    """Name what pip copies where it links to the rest: the files of JupyterLab's extension, by their place in .venv."""
    import tomllib  # an old Python has none, and must still say what is missing

    with (ROOT / "pyproject.toml").open("rb") as file:
        try:
            table = tomllib.load(file)["tool"]["setuptools"]["data-files"]
        except ValueError as error:
            raise SetupError(
                f"pyproject.toml cannot be read ({error}): undo the last change to it, then try again."
            ) from error
    paths = [(folder, path) for folder, patterns in table.items() for each in patterns for path in ROOT.glob(each)]
    return {f"{folder}/{path.name}": path for folder, path in paths}


def copy_files(prefix: Path) -> None:
    """Copy those of them that changed, as pip would: this needs neither pip nor the network, which an edit must not."""
    for name, source in copied_files().items():
        target = prefix / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(source), str(target))


def fingerprint() -> str:
    """Name what pip's part depends on: these files, where the checkout lies, and which Python it uses."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{ROOT}\n{os.path.realpath(str(VENV_PYTHON))}".encode())
    return digest.hexdigest()


def venv_settings() -> "dict[str, str]":
    """Read ``.venv/pyvenv.cfg``; empty if there is none."""
    path = VENV / "pyvenv.cfg"
    lines = path.read_text().splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def wrong_version(chosen: "str | None") -> bool:
    """Tell whether ``.venv`` has another Python than the one asked for; unasked, it keeps the one it has."""
    running = f"{sys.version_info[0]}.{sys.version_info[1]}."
    return chosen is not None and not venv_settings().get("version", "").startswith(running)


def up_to_date(chosen: "str | None" = None) -> bool:
    """Tell, without starting a process, whether the last installation finished and nothing changed since."""
    if not (STAMP.exists() and VENV_PYTHON.exists()) or wrong_version(chosen):
        return False
    return STAMP.read_text() == fingerprint()


def usable_venv(chosen: "str | None" = None) -> bool:
    """Tell whether pip can go on in the ``.venv`` that is there: not moved, not half made, its Python still there."""
    made_here = venv_settings().get("command", "").endswith(f"-m venv {VENV}")
    if not made_here or not VENV_PYTHON.exists() or wrong_version(chosen):
        return False
    return subprocess.call([str(VENV_PYTHON), "-c", "import pip"], stderr=subprocess.DEVNULL) == 0


def make_venv() -> None:
    """Create ``.venv`` afresh."""
    if VENV.exists() or VENV.is_symlink():
        print("set-up: .venv is unfinished, was moved or lost its Python; making it anew", flush=True)
        VENV.unlink() if VENV.is_symlink() else shutil.rmtree(str(VENV))
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode:
        raise explain(made.stdout.decode(errors="replace"), f"{sys.executable} -m venv", made.returncode)


def explain(output: str, what: str, status: int) -> SetupError:
    """Turn what a failed command wrote into one sentence that says what to do."""
    again = "then run the same command again; it goes on where it stopped."
    if "No space left on device" in output or "Errno 28" in output:
        return SetupError(f"The disk is full: free some space, {again}")
    if any(sign in output for sign in NETWORK_SIGNS):
        return NothingInstalled(f"The package index cannot be reached: check the network connection or proxy, {again}")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if "[end of output]" in lines:  # pip quotes a build that failed; its last line says more than pip's own
        lines = lines[: lines.index("[end of output]")]
    else:
        lines = [line for line in lines if line.startswith("ERROR:")] or lines
    last = lines[-1] if lines else "it wrote nothing"
    kind = NothingInstalled if "No matching distribution found" in output else SetupError
    return kind(f"{what} failed with status {status} ({last}): put that right, {again}")


def install() -> None:
    """Run pip: progress goes to the terminal, stderr is kept to find the reason if it fails."""
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *REQUIREMENTS]
    done = subprocess.run(command, cwd=str(ROOT), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise explain(done.stderr.decode(errors="replace"), "pip install", done.returncode)
    # Matplotlib announces on stderr when it lists the fonts for the first time; in a chapter that would be an output.
    subprocess.run([str(VENV_PYTHON), "-c", "import matplotlib.font_manager"], stderr=subprocess.DEVNULL, check=True)


def fetch_model() -> int:
    """Fetch the default model unless it is there; the library reports on it and explains its own failures."""
    return subprocess.call([str(VENV_PYTHON), "-m", "pagedattn_lab.models"], cwd=str(ROOT))


def set_up(chosen: "str | None") -> None:
    """Create or repair ``.venv``; the stamp comes last."""
    check_disk()
    before = None
    if STAMP.exists():
        before = STAMP.read_text()
        STAMP.unlink()  # an interrupted update must not pass for the installation before it
    if not usable_venv(chosen):
        check_venv_module()
        make_venv()
        before = None
    try:
        install()
    except NothingInstalled:
        if before is not None:
            STAMP.write_text(before)  # it is still that installation: an edit undone wants no pip
        raise
    STAMP.write_text(fingerprint())


def main() -> int:
    """Set up what is missing; return the exit status."""
    chosen = os.environ.get("PYTHON")  # make passes it on only if the reader set it
    try:
        other = check_python(sys.version_info, chosen)
        if other is not None:
            os.execv(other, [other, __file__])
        check_cache()
        if not up_to_date(chosen):
            with (ROOT / "constraints.txt").open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # started in two terminals at once, the second one waits
                if not up_to_date(chosen):
                    set_up(chosen)
        copy_files(VENV)
        return fetch_model()
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
    except OSError as error:
        print(f"set-up: {error.filename or ROOT}: {error.strerror}; put that right, then try again.", file=sys.stderr)
    except KeyboardInterrupt:
        print("set-up: interrupted; run the same command again and it goes on where it stopped.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
