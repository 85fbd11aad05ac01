"""Reading a model's configuration, wherever it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pagedattn_lab.budget import models
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.models import known_models, load_config
from pagedattn_lab.kv_shape import KVShape
from tests.helpers.draws import SHAPES

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}


def test_wherever_it_is(tmp_path: Path) -> None:
    """Catches a way to name a model that reads other figures than the rest."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    read = [load_config(source) for source in (LLAMA, tmp_path, str(tmp_path), file, str(file))]
    assert {(config["num_key_value_heads"], config["head_dim"]) for config in read} == {(4, 16)}
    assert read[0]["published"] == LLAMA


def test_a_configuration_of_transformers() -> None:
    """Catches an object whose figures are read as a mapping's, without what its class knows."""
    from transformers import MistralConfig

    assert load_config(MistralConfig())["sliding_window"] == 4096


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.1-70B"),
        ("google/gemma-3-27b", "google/gemma-3-27b-it"),
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ],
)
def test_names(name: str, known: str) -> None:
    """Catches a well-known model that is not found under a usual name, or found as another."""
    assert load_config(name)["name"] == known


def test_another_owner_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a fine-tuned or quantised model taken for the one it was made of: it may have other figures."""
    asked = []
    monkeypatch.setattr(models, "_look_up", lambda name: asked.append(name) or LLAMA)
    load_config("somebody/Llama-3.1-8B")
    load_config("meta-llama/Llama-3.1-8B-FP8")
    assert asked == ["somebody/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-FP8"]


def test_well_known_models_need_nothing_else() -> None:
    """Catches transformers or torch behind a well-known model: a browser's Python has neither."""
    code = (
        "import sys; from pagedattn_lab.budget.layers import layer_specs; from pagedattn_lab.budget.models import *;"
        "from pagedattn_lab.budget.weights import weight_bytes;"
        "[(layer_specs(model), weight_bytes(model)) for model in known_models()];"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Llama-3.1-8B", (32, 8, 128)), ("Llama-3.2-1B", (16, 8, 64)), ("Qwen3-30B-A3B", (48, 4, 128)),
        ("gemma-3-4b-it", (34, 4, 256)), ("opt-175b", (96, 96, 128)), ("SmolLM2-135M", (30, 3, 64)),
        ("DeepSeek-V3", (61, 1, 576)), ("Qwen3.5-27B", (16, 4, 256)), ("gpt-oss-120b", (36, 8, 64)),
    ],
)  # fmt: skip
def test_well_known_figures(name: str, shape: tuple[int, int, int]) -> None:
    """Catches a wrong figure in the file, and a well-known model that a KVShape cannot be made of."""
    made = KVShape.from_config(load_config(name))
    assert (made.num_layers, made.num_kv_heads, made.head_dim) == shape


WRITTEN = ["Llama-3.2-1B", "Qwen2.5-7B", "SmolLM2-135M", "gemma-2-2b", "opt-125m"]


@pytest.fixture(scope="module")
def written() -> dict[str, object]:
    """What the script makes of some models, one after another, in a process of its own."""
    names = [known for known in known_models() if known.endswith(tuple(WRITTEN))]
    code = f"import known_models as k, json; print(json.dumps({{name: k.entry(name) for name in {names!r}}}))"
    tools = Path(__file__).parents[1] / "tools"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tools, check=True)
    return json.loads(made.stdout)


@pytest.mark.when_changed("pagedattn_lab/budget/", "tools/known_models.py", *SHAPES)
@pytest.mark.parametrize("name", WRITTEN)
def test_the_file_is_what_the_script_writes(name: str, written: dict[str, object]) -> None:
    """Catches figures that were edited in the file, and a count that a newer transformers makes otherwise."""
    known = next(known for known in known_models() if known.endswith(name))
    assert written[known] == models._known()[known]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (7, "a int is no model"),
        ("/nowhere/config.json", "there is no /nowhere/config.json: give the folder"),
        ("no-such-model", "'no-such-model' is not one of the 36 models known here"),
    ],
)
def test_no_model(model: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a trace of transformers' instead of one sentence that says what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BudgetError, match=message) as raised:
        load_config(model)
    assert "\n" not in str(raised.value)


def test_files_that_hold_no_configuration(tmp_path: Path) -> None:
    """Catches an error of json's, or a list taken for a configuration."""
    file = tmp_path / "config.json"
    for text, message in (("[1]", "holds a list"), ("{", "cannot be read")):
        file.write_text(text)
        with pytest.raises(BudgetError, match=message):
            load_config(file)
