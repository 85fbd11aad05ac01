"""Layers and weights against vLLM 0.33.0's own, which built the models; see ``record_vllm_layers.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.layers import layer_specs
from pagedattn_lab.budget.models import known_models, load_config
from pagedattn_lab.budget.weights import weight_bytes
from pagedattn_lab.kv_cache_specs import KVCacheSpec

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "vllm_layers.json").read_text())
BLOCK_SIZES = {False: (128, 32), True: (16, 16)}
"""Of vLLM's CPU backends, without and with latents: the size, and what it is a multiple of. States are in float32."""
RUNS = [
    pytest.param(name, settings, outcome, id=f"{name} {settings}")
    for name, model in RECORDED.items()
    for settings, outcome in model["runs"]
    if "layers" in outcome
]


def told(name: str, spec: KVCacheSpec) -> list[Any]:
    """Write a spec as the recording does."""
    fields = ("sliding_window", "attention_chunk_size", "num_prefill_checkpoint_blocks")
    more = {field: value for field in fields if (value := getattr(spec, field, None))}
    return [int(name.split(".")[2]), type(spec).__name__, spec.block_size, spec.page_size_bytes, more]


def config_of(name: str) -> Any:
    return name if name in known_models() else RECORDED[name]["config"]


@pytest.mark.parametrize(("name", "settings", "outcome"), RUNS)
def test_layers_are_vllms(name: str, settings: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Catches a window that vLLM ignores, heads not shared out as it does, another block or page of a hybrid."""
    block_size, multiple = BLOCK_SIZES["kv_lora_rank" in RECORDED[name]["config"]]
    given = {"block_size": block_size, **settings, **({"block_size": 16} if multiple == 16 else {})}
    found = layer_specs(
        config_of(name), block_size_multiple=multiple, max_model_len=2048, mamba_ssm_cache_dtype="float32", **given
    )
    # Falcon-H1 counts its state layers on from the last attention layer
    recorded = [[index % found.num_layers, *rest] for index, *rest in outcome["layers"]]
    assert [told(*item) for item in found.specs.items()] == recorded


@pytest.mark.parametrize(
    ("name", "settings", "outcome"), [run for run in RUNS if run.values[1].keys() <= {"tensor_parallel_size"}]
)
def test_weights_are_vllms(name: str, settings: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Catches a part that is not split among GPUs, split though every GPU keeps it, padded or counted twice."""
    (found,) = weight_bytes(config_of(name), **settings)
    assert found.low <= outcome["bytes"] <= found.high
    if "kv_lora_rank" not in RECORDED[name]["config"]:  # copies of projections are made after loading
        close = 0.001 if name in known_models() else 0.025  # biases, which may be split, matter in small models only
        assert found.likely == pytest.approx(outcome["bytes"], rel=close)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (name, settings)
        for name, model in RECORDED.items()
        for settings, outcome in model["runs"]
        if "divi" in outcome.get("error", "") or outcome.get("error") == ""  # some assertions have no words
    ],
)
def test_what_vllm_does_not_divide(name: str, settings: dict[str, Any]) -> None:
    """Catches heads or groups that vLLM refuses to share out, shared out all the same."""
    with pytest.raises(BudgetError, match="divide among"):
        layer_specs(config_of(name), **settings)


def test_enough_was_recorded() -> None:
    """Catches a recording in which vLLM refused so much that the tests above compare little."""
    assert len(RUNS) > 200
    assert {RECORDED[run.values[0]]["config"]["model_type"] for run in RUNS} >= {
        "llama", "mistral", "qwen2", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v2", "qwen3_next",
        "granitemoehybrid", "nemotron_h", "falcon_h1", "jamba", "lfm2",
    }  # fmt: skip
    assert load_config("facebook/opt-13b")["name"] in RECORDED
