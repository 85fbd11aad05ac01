"""From a configuration to the layers' specs; what vLLM makes itself stands in ``test_vllm_layers.py``."""

from __future__ import annotations

from typing import Any

import pytest

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.layers import layer_specs, layers_of_ranks, pipeline_ranks
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.kv_cache_groups import (
    UnknownLayoutError,
    blocks_per_request,
    bytes_per_block,
    capacity,
    kv_cache_groups,
)  # fmt: skip
from pagedattn_lab.kv_cache_specs import MambaSpec, RequestLimits
from pagedattn_lab.kv_config import CompleteConfig

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 100,
    "num_key_value_heads": 2, "dtype": "bfloat16",
}  # fmt: skip
GIB = 2**30


def tokens(model: Any, gib: float, **settings: Any) -> range:
    """Tokens that vLLM before 0.20 may log with memory that it logs as so many GiB, to two decimals."""
    layers = layer_specs(model, **settings)
    groups = kv_cache_groups(layers.specs)
    least, most = (int((gib + half) * GIB) // bytes_per_block(groups) // len(groups) for half in (-0.005, 0.005))
    return range(least * layers.block_size, most * layers.block_size + 1)


@pytest.mark.parametrize(
    ("model", "gib", "settings", "logged"),
    [
        ("Llama-3.1-8B", 58.11, {}, 476_016),
        ("Llama-3.1-8B", 63.76, {"tensor_parallel_size": 2}, 1_044_688),
        ("gemma-2-9b", 54.12, {}, 168_880),
        ("gemma-3-27b-it", 19.53, {}, 36_560),
        ("gpt-oss-20b", 58.47, {}, 1_277_184),
        ("DeepSeek-V2-Lite", 43.61, {}, 1_505_552),
    ],
)
def test_logged_tokens(model: str, gib: float, settings: dict[str, Any], logged: int) -> None:
    """Catches a layer with other heads, windows or bytes than the logged runs had (llm-d-planner, vLLM 0.19)."""
    assert logged in tokens(model, gib, **settings)


def test_a_hybrid_as_logged() -> None:
    """Catches a state of another size: 784 tokens a block, 48 blocks a request, 653 blocks are 445,781 tokens."""
    layers = layer_specs("Qwen3.5-27B")
    groups = kv_cache_groups(layers.specs)
    limits = RequestLimits(32768, 2048, layers.mamba_cache_mode)
    assert (layers.block_size, blocks_per_request(groups, limits)) == (784, 48)
    found = capacity([groups], [653 * bytes_per_block(groups)], limits)
    assert (found.kv_tokens, f"{found.max_concurrency:.2f}") == (445_781, "13.60")


@pytest.mark.parametrize(
    ("settings", "block_size", "more_blocks"),
    [
        ({}, 784, 0),
        ({"kv_cache_dtype": "fp8"}, 1568, 0),
        ({"gdn_prefill_backend": "flashinfer"}, 832, 1),
        ({"gdn_prefill_backend": "flashinfer", "prefill_checkpoints": False}, 784, 0),
        ({"gdn_prefill_backend": "flashinfer", "enable_prefix_caching": False}, 784, 1),
        ({"tensor_parallel_size": 2}, 784, 0),
        ({"tensor_parallel_size": 8}, 400, 0),
        ({"num_speculative_tokens": 2}, 800, 0),
        ({"block_size": 1024}, 1024, 0),
    ],
)
def test_blocks_of_a_hybrid(settings: dict[str, Any], block_size: int, more_blocks: int) -> None:
    """Catches a state whose share, speculative rows or kernel is left out of the block's length."""
    layers = layer_specs("Qwen3.5-27B", **settings)
    state = next(spec for spec in layers.specs.values() if isinstance(spec, MambaSpec))
    assert layers.block_size == block_size
    assert state.num_prefill_checkpoint_blocks == more_blocks
    assert state.num_speculative_blocks == settings.get("num_speculative_tokens", 0)
    assert state.page_size_bytes == next(
        spec.page_size_bytes for name, spec in layers.specs.items() if name.endswith("self_attn")
    )


def test_a_state_without_prefix_caching() -> None:
    """Catches a state kept at every boundary though nobody could start there."""
    layers = layer_specs("Qwen3.5-27B", enable_prefix_caching=False, max_model_len=5000)
    state = next(spec for spec in layers.specs.values() if isinstance(spec, MambaSpec))
    assert (state.block_size, layers.mamba_cache_mode) == (5000, "none")


def test_latents_are_not_split() -> None:
    """Catches tensor parallelism that makes a latent smaller."""
    one, eight = (layer_specs("DeepSeek-V3", tensor_parallel_size=tp) for tp in (1, 8))
    assert one.specs == eight.specs
    assert eight.notes == ("each of the 8 GPUs keeps the whole latents: tensor parallelism does not split them",)


def test_kv_heads_are_kept_twice() -> None:
    """Catches a GPU without a KV head, and a note that miscounts the copies."""
    layers = layer_specs(LLAMA, tensor_parallel_size=8)
    assert next(iter(layers.specs.values())).num_kv_heads == 1  # type: ignore[attr-defined]
    assert layers.notes == ("2 KV heads for 8 GPUs: each is kept 4 times",)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "float8_e4m3fn"),
        ({"quant_method": "compressed-tensors"}, "bfloat16"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "float8_e4m3fn"),
        ({"quant_method": "modelopt_fp4", "quantization": {"kv_cache_quant_algo": "NVFP4"}}, "nvfp4"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}},
         "float8_e4m3fn"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "int"}}, "bfloat16"),
        ({"quant_method": "fp8"}, "bfloat16"),
    ],
)  # fmt: skip
def test_a_checkpoint_may_ask_for_a_dtype(quantization: dict[str, Any], dtype: str) -> None:
    """Catches kv_cache_dtype auto that does not follow a quantised checkpoint, or one that asks for nothing."""
    config = {**LLAMA, "head_dim": 64, "quantization_config": quantization}
    assert layer_specs(config).kv_cache_dtype == dtype
    assert layer_specs(config, kv_cache_dtype="bfloat16").kv_cache_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "page"),
    [
        ("fp8", 2 * 64), ("fp8_e5m2", 2 * 64), ("nvfp4", 72), ("int8_per_token_head", 2 * 68), ("float16", 4 * 64),
    ],
)  # fmt: skip
def test_dtypes_of_a_cache(dtype: str, page: int) -> None:
    """Catches a dtype of vLLM's that is not known, or whose scales are lost."""
    layers = layer_specs({**LLAMA, "head_dim": 64}, kv_cache_dtype=dtype)
    assert next(iter(layers.specs.values())).page_size_bytes == 16 * 2 * page


def test_drafters() -> None:
    """Catches a drafter whose layers keep nothing: an EAGLE head has one, a model's own prediction layer is one too."""
    eagle = {**LLAMA, "num_hidden_layers": 1, "architectures": ["EagleLlamaForCausalLM"], "hidden_size": 4096,
             "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
    assert 410_128 in tokens("Llama-3.1-8B", 51.63, num_speculative_tokens=3, drafter=eagle)
    for model in ("DeepSeek-V3", "Qwen3.5-27B"):
        alone, guessing = layer_specs(model), layer_specs(model, drafter="mtp", num_speculative_tokens=1)
        assert list(guessing.specs)[len(alone.specs) :] == ["drafter.layers.0.self_attn"]
    assert layer_specs("Llama-3.1-8B", num_speculative_tokens=3).specs == layer_specs("Llama-3.1-8B").specs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ({"num_kv_shared_layers": 2, "model_type": None}, "num_kv_shared_layers = 2"),
        ({"index_topk": 2048, "model_type": None}, "caches index keys"),
        ({"model_type": "gemma_99"}, "model type 'gemma_99' is not one whose layout in vLLM is known here"),
        ({"kv_lora_rank": 8, "qk_rope_head_dim": 4}, "model type 'llama' has latents"),
        ({"layer_types": ["full_attention", "wonder"] * 2, "model_type": None}, "layers of kind wonder"),
        ({"layer_types": ["full_attention", "mamba"] * 2, "model_type": None}, "what the states of model type None"),
    ],
)
def test_unknown_layouts_are_named(changes: dict[str, Any], message: str) -> None:
    """Catches a layout that is guessed."""
    config = {name: value for name, value in {**LLAMA, "head_dim": 8, **changes}.items() if value is not None}
    with pytest.raises(UnknownLayoutError, match=message):
        layer_specs(config)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"tensor_parallel_size": 3}, "8 attention heads .* = 3, 2 are left over: use one of 1, 2, 4, 8"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 96}, {"tensor_parallel_size": 6},
         "4 KV heads neither divide"),
        ({}, {"tensor_parallel_size": 0}, "tensor_parallel_size is 0"),
        ({}, {"block_size": 24}, "block_size = 24 is no multiple of 16, .*: use 32"),
        ({}, {"kv_cache_dtype": "fp4"}, "kv_cache_dtype 'fp4' is not known here"),
        ({}, {"dtype": "fp8"}, "dtype 'fp8' is not one a model runs in"),
        ({"model_type": "gemma2", "head_dim": 8}, {"dtype": "float16"}, "vLLM does not run model type 'gemma2'"),
        ({}, {"drafter": "mtp", "num_speculative_tokens": 1}, "has no layers that predict further tokens"),
        ({}, {"drafter": LLAMA}, "num_speculative_tokens is 0"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}, {},
         "with a window in some layers only"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    """Catches a setting that vLLM would refuse, taken all the same; each message says what to change."""
    with pytest.raises(BudgetError, match=message):
        layer_specs({**LLAMA, **changes}, **settings)


@pytest.mark.parametrize(
    ("model", "tp", "message"),
    [
        ("SmolLM2-135M", 9, "intermediate_size = 1536 does not divide .* = 9, 6 are left over: use one of 1, 3$"),
        ("Qwen2.5-7B", 28, "intermediate_size = 18944 .*: use one of 1, 2, 4$"),
        ("Qwen3-14B", 40, "intermediate_size = 17408 .*: use one of 1, 2, 4, 8$"),
    ],
)
def test_widths_that_do_not_divide(model: str, tp: int, message: str) -> None:
    """Catches a number of GPUs that divides the heads and not the MLP: vLLM stops while it builds the model."""
    with pytest.raises(BudgetError, match=message):
        layer_specs(model, tensor_parallel_size=tp)


def test_widths_of_experts() -> None:
    """Catches experts that cannot be shared, and a width refused that no layer has: all layers have experts there."""
    config = load_config("Qwen3-30B-A3B")
    for name, tp in (("moe_intermediate_size", 16), ("intermediate_size", None)):
        changed = CompleteConfig(config | {name: 8 * 97})
        if tp:
            with pytest.raises(BudgetError, match=r"moe_intermediate_size = 776 .*: use one of 1, 2, 4, 8$"):
                layer_specs(changed, tensor_parallel_size=tp)
        else:
            assert layer_specs(changed, tensor_parallel_size=16).specs


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_a_missing_figure(missing: str) -> None:
    """Catches a figure that is made up: no model type, so no class can know it."""
    config = {name: value for name, value in LLAMA.items() if name not in (missing, "model_type")}
    with pytest.raises(ValueError, match=f"no {missing}, .*: add it"):
        layer_specs(config)


@pytest.mark.parametrize(
    ("layers", "ranks", "shares"),
    [(32, 2, [16, 16]), (61, 2, [31, 30]), (62, 4, [15, 16, 16, 15]), (61, 4, [15, 15, 16, 15]), (7, 4, [2, 2, 2, 1])],
)
def test_pipeline_ranks(layers: int, ranks: int, shares: list[int]) -> None:
    """Catches the rest of a division at the wrong ranks; figures from vLLM 0.33.0's ``get_pp_indices``."""
    assert layers_of_ranks(layers, ranks) == shares


def test_layers_that_keep_nothing_count_too() -> None:
    """Catches layers shared out by those that keep a cache, and a drafter on any rank but the last."""
    config = {
        **LLAMA, "model_type": "nemotron_h", "hybrid_override_pattern": "M-*-M-*-", "mamba_num_heads": 4,
        "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 16, "conv_kernel": 4, "head_dim": 8,
    }  # fmt: skip
    config.pop("num_hidden_layers")
    layers = layer_specs(config)
    ranks = pipeline_ranks(layers.specs, 2, [2, 6], num_layers=layers.num_layers)
    assert [list(rank) for rank in ranks] == [
        ["model.layers.0.mixer"],
        ["model.layers.2.self_attn", "model.layers.4.mixer", "model.layers.6.self_attn"],
    ]
    drafted = layer_specs("DeepSeek-V3", drafter="mtp", num_speculative_tokens=1)
    assert "drafter.layers.0.self_attn" in pipeline_ranks(drafted.specs, 2)[1]


@pytest.mark.parametrize(("ranks", "partition"), [(5, None), (2, [1, 2]), (2, [4]), (2, [-1, 5])])
def test_shares_that_do_not_add_up(ranks: int, partition: list[int] | None) -> None:
    """Catches a layer that no rank has."""
    with pytest.raises(BudgetError, match="4 layers"):
        pipeline_ranks(layer_specs(LLAMA).specs, ranks, partition)
