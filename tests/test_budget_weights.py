"""Bytes of weights; what vLLM's own models hold stands in ``test_vllm_layers.py``."""

from __future__ import annotations

from typing import Any

import pytest

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.budget.parameters import Parameters, count_parameters
from pagedattn_lab.budget.quantization import QUANTIZATIONS, quantization_of
from pagedattn_lab.budget.weights import weight_bytes

GIB = 2**30
SMALL = {
    "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
    "num_attention_heads": 8, "num_key_value_heads": 2, "dtype": "bfloat16", "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "settings", "logged"),
    [
        ("Llama-3.1-8B", {}, 14.99),
        ("Llama-3.1-8B", {"tensor_parallel_size": 2}, 7.51),
        ("Llama-3.1-8B", {"pipeline_parallel_size": 2}, 7.51),
        ("gemma-2-9b", {}, 17.22),
        ("gemma-3-27b-it", {}, 51.45),
        ("gpt-oss-20b", {}, 13.64),
        ("DeepSeek-V2-Lite", {}, 29.43),
    ],
)
def test_logged_model_loading(model: str, settings: dict[str, int], logged: float) -> None:
    """Catches a range that a real server falls out of, or a likely figure more than 0.6 % away from it.

    Logged by vLLM 0.19 on an H100 (llm-d-planner, accuracy/results).
    """
    for found in weight_bytes(model, **settings):
        assert found.low / GIB <= logged <= found.high / GIB
        assert found.likely / GIB == pytest.approx(logged, rel=0.006)


def test_bitsandbytes_as_logged() -> None:
    """Catches scales of nf4 that are left out: 0.9786 GiB for a Llama-3.2-1B (oumi-ai/oumi pull request 1223)."""
    (found,) = weight_bytes("Llama-3.2-1B", quantization="bitsandbytes")
    assert found.low / GIB <= 0.9786 <= found.high / GIB
    assert found.likely / GIB == pytest.approx(0.9786, rel=0.01)


@pytest.mark.parametrize(
    ("published", "bits"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4 + 8.125 / 64),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, 8),
        ({"quant_method": "modelopt_fp4"}, 4.5),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
            "num_bits": 4, "type": "int", "group_size": 128, "symmetric": True}}}}, 4 + 16 / 128),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
            "num_bits": 8, "type": "float", "group_size": None}}}}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
            "num_bits": 4, "type": "float", "group_size": 16}}}}, 4.5),
        (None, 16),
    ],
)  # fmt: skip
def test_bits_of_a_matrix(published: dict[str, Any] | None, bits: float) -> None:
    """Catches a checkpoint's settings read wrongly, or scales that are not counted."""
    assert quantization_of(published).bytes_per_parameter("linear", 2)[0] * 8 == bits


def test_what_a_method_leaves() -> None:
    """Catches an embedding or a norm that is quantised, and gpt-oss' attention taken for mxfp4."""
    layer = {"linear": 1000, "kv": 100, "small": 10}
    parameters = Parameters(640, 640, 5, 7, [layer]).to_json()
    config = load_config({**SMALL, "num_hidden_layers": 1, "vocab_size": 64, "rope_parameters": None})
    config["parameters"] = parameters
    config["rope_parameters"] = None
    (found,) = weight_bytes(config, quantization="fp8")
    assert found.low == 1100 + 2 * (10 + 640 + 640 + 5 + 7)
    (found,) = weight_bytes(config, quantization="mxfp4")
    assert found.low == 2 * (1110 + 640 + 640 + 5 + 7)


def test_a_checkpoint_that_leaves_matrices() -> None:
    """Catches a narrow range where a checkpoint keeps its attention in bfloat16, and a wide one for lm_head alone."""
    own = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}
    assert not quantization_of(own).partial
    own["modules_to_not_convert"].append("model.layers.0.self_attn.q_proj")
    assert quantization_of(own).bytes_per_parameter("linear", 2) == (1, 2)


def test_an_asked_for_method_wins() -> None:
    """Catches a checkpoint's settings applied to another method, or a method that a synonym hides."""
    published = {"quant_method": "awq", "bits": 4, "group_size": 64}
    assert quantization_of(published, "fp8") == QUANTIZATIONS["fp8"]
    assert quantization_of(published, "awq_marlin").group_size == 64
    assert quantization_of(published, "none") == QUANTIZATIONS["none"]
    with pytest.raises(BudgetError, match="quantization 'aqlm' is not known here: use one of none, fp8"):
        quantization_of({"quant_method": "aqlm"})


def test_ranks_add_up() -> None:
    """Catches a layer on two ranks or none, and a tied embedding that the last rank does not have."""
    whole = count_parameters(SMALL).total * 2
    assert sum(found.low for found in weight_bytes(SMALL, pipeline_parallel_size=3)) == whole + 2 * (128 - 100) * 64 * 2
    tied = {**SMALL, "tie_word_embeddings": True}
    (alone,), (first, last) = weight_bytes(tied), weight_bytes(tied, pipeline_parallel_size=2)
    assert first.low + last.low == alone.low + 128 * 64 * 2


def test_a_drafter_loads_on_the_last_rank() -> None:
    """Catches a drafter whose weights are forgotten, or counted on every rank."""
    alone, guessed = (weight_bytes(SMALL, pipeline_parallel_size=2, drafter=drafter) for drafter in (None, SMALL))
    assert guessed[0] == alone[0]
    assert guessed[1].low - alone[1].low == weight_bytes(SMALL)[0].low


def test_parts_by_name() -> None:
    """Catches experts, routers or latents counted as another part, which tensor parallelism treats otherwise."""
    deepseek = {
        **SMALL, "model_type": "deepseek_v2", "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8,
        "head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "num_key_value_heads": 8,
    }  # fmt: skip
    dense, mixture, _ = count_parameters(deepseek).layers
    assert dense["replicated"] == mixture["replicated"] == 64 * 24 + 64 * (16 + 4)
    assert mixture["experts"] == 4 * 3 * 64 * 32
    assert mixture["small"] - dense["small"] == 4 * 64  # the router
    fused = count_parameters({**SMALL, "model_type": "phi3", "pad_token_id": 0})
    assert fused.layers[0]["kv"] == 2 * 2 * 8 * 64


def test_what_cannot_be_counted() -> None:
    """Catches transformers' own error instead of what to do."""
    with pytest.raises(BudgetError, match=r"does not know model type 'unheard', .*give weights_bytes"):
        weight_bytes({**SMALL, "model_type": "unheard", "head_dim": 8})
    with pytest.raises(BudgetError, match=r"cannot build a model of type 'ministral' .*: give weights_bytes"):
        weight_bytes({**SMALL, "model_type": "ministral"})  # its class leaves head_dim out, and then needs it
    with pytest.raises(ValueError, match="'intermediate_size' expected int") as raised:
        weight_bytes({**SMALL, "intermediate_size": "wide"})
    assert "\n" not in str(raised.value)
