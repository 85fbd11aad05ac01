"""Bytes per token, from counts and from published configurations."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, FalconConfig, GPT2Config, GPTNeoXConfig, LlamaConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.utils import logging

from pagedattn_lab.kv_shape import KVShape


def test_paper_example() -> None:
    """Catches a missing factor: OPT-13B takes 800 KB per token in half precision (Kwon et al. 2023, section 3)."""
    assert KVShape(40, 40, 128, torch.float16).bytes_per_token == 2 * 5120 * 40 * 2 == 800 * 1024


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(num_key_value_heads=8, dtype="bfloat16"), KVShape(32, 8, 128, "bfloat16")),
        (LlamaConfig(head_dim=96, num_key_value_heads=4), KVShape(32, 4, 96, "float32")),
        (GPT2Config(), KVShape(12, 12, 64, "float32")),
        (
            {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "dtype": "float16"},
            KVShape(2, 4, 16, "float16"),
        ),
        (GPTNeoXConfig(is_decoder=False), KVShape(44, 64, 96, "float32")),  # causal whatever this says
        (FalconConfig(), KVShape(32, 1, 64, "float32")),
        (FalconConfig(new_decoder_architecture=True, num_kv_heads=8), KVShape(32, 8, 64, "float32")),
        ({"n_layer": 2, "n_embd": 64, "n_head": 4, "multi_query": True}, KVShape(2, 1, 16, "float32")),
        ({"text_config": {"n_layer": 3, "n_embd": 60, "n_head": 5}}, KVShape(3, 5, 12, "float32")),
        (
            {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
             "layer_types": ["linear_attention", "full_attention", "linear_attention", "sliding_attention"]},
            KVShape(2, 4, 16, "float32"),
        ),
    ],
)  # fmt: skip
def test_from_config(config: object, expected: KVShape) -> None:
    """Catches a misread name, a head dimension derived where one is given, or layers without a cache counted."""
    named = config.get("dtype") if isinstance(config, dict) else config.dtype
    assert KVShape.from_config(config, dtype=named or "float32") == expected


def test_dtype_comes_from_the_configuration_unless_given() -> None:
    """Catches an 8-bit cache priced as a 16-bit one, and a guess where nothing is known."""
    config = LlamaConfig(dtype="bfloat16")
    assert KVShape.from_config(config).dtype == "bfloat16"
    assert (
        KVShape.from_config(config, dtype="float8_e4m3fn").bytes_per_token * 2
        == KVShape.from_config(config).bytes_per_token
    )
    with pytest.raises(ValueError, match="names no dtype"):
        KVShape.from_config({"n_layer": 3, "n_embd": 60, "n_head": 5})


def test_reading_an_object_prints_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Catches transformers' warning about torch_dtype, which would stand in the output of every chapter."""
    logging.get_logger("transformers.configuration_utils").warning_once.cache_clear()
    with pytest.raises(ValueError, match="names no dtype"):
        KVShape.from_config(LlamaConfig())
    assert not caplog.records


def test_latents_are_counted_once() -> None:
    """Catches DeepSeek's compressed cache priced as if it held keys and values per head, or twice."""
    shape = KVShape.from_config(AutoConfig.for_model("deepseek_v3"), "bfloat16")
    assert shape == KVShape(61, 1, 512 + 64, "bfloat16", value_dim=512, latent=True)
    assert shape.bytes_per_token == 576 * 61 * 2
    assert shape.bytes_per_block(64) == 64 * 576 * 61 * 2
    assert eval(repr(shape)) == shape


def test_values_may_be_of_another_width() -> None:
    """Catches values counted as wide as keys, and a width that is printed or compared though it is the usual one."""
    config = AutoConfig.for_model("mimo_v2_flash", num_hidden_layers=2, layer_types=["full_attention"] * 2)
    shape = KVShape.from_config(config, "float16")
    assert shape == KVShape(2, 4, 192, "float16", value_dim=128)
    assert shape.bytes_per_token == 2 * 4 * (192 + 128) * 2
    assert repr(shape) == "KVShape(num_layers=2, num_kv_heads=4, head_dim=192, dtype='float16', value_dim=128)"
    assert KVShape(2, 4, 8, "float16", value_dim=8) == KVShape(2, 4, 8, "float16") != shape
    assert repr(KVShape(2, 4, 8, "float16", 8)) == "KVShape(num_layers=2, num_kv_heads=4, head_dim=8, dtype='float16')"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Bamba-9B: 3 of its 32 layers have attention.
        (
            {"model_type": "bamba", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
             "num_key_value_heads": 8, "attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128, "mamba_d_head": 64},
            KVShape(3, 8, 128, "bfloat16"),
        ),
        # Nemotron-H: one layer of each kind.
        (
            {"model_type": "nemotron_h", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
             "head_dim": 128, "layers_block_type": ["mamba", "moe", "attention", "mlp"]},
            KVShape(1, 8, 128, "bfloat16"),
        ),
        # Gemma-3-12B: hidden_size / num_attention_heads is 240, the class says 256; only the top names the dtype.
        (
            {"model_type": "gemma3", "torch_dtype": "bfloat16",
             "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 48, "hidden_size": 3840,
                             "num_attention_heads": 16, "num_key_value_heads": 8}},
            KVShape(48, 8, 256, "bfloat16"),
        ),
        # The same text model under a type that is not transformers' own.
        (
            {"model_type": "my_pictures", "torch_dtype": "bfloat16",
             "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 48, "hidden_size": 3840,
                             "num_attention_heads": 16, "num_key_value_heads": 8}},
            KVShape(48, 8, 256, "bfloat16"),
        ),
        # ChatGLM2-6B, of no transformers class: kv_channels is the width of a head.
        (
            {"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32,
             "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2},
            KVShape(28, 2, 128, "bfloat16"),
        ),
        (
            {"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32,
             "kv_channels": 64, "multi_query_attention": False, "multi_query_group_num": 1},
            KVShape(28, 32, 64, "bfloat16"),
        ),
        # Infinity as transformers writes it into config.json.
        (
            {"model_type": "falcon_h1", "num_hidden_layers": 2, "hidden_size": 4096, "num_attention_heads": 32,
             "num_key_value_heads": 8, "time_step_limit": [0.0, {"__float__": "Infinity"}]},
            KVShape(2, 8, 128, "bfloat16"),
        ),
        # One number for each layer, and all the same.
        (
            {"num_hidden_layers": 2, "num_key_value_heads_per_layer": [4, 4], "head_dim": 8},
            KVShape(2, 4, 8, "bfloat16"),
        ),
    ],
)  # fmt: skip
def test_what_a_file_leaves_out_is_its_class_default(config: dict, expected: KVShape) -> None:
    """Catches layers without a cache counted, a width derived where the class states it, and a dtype not seen."""
    named = config.get("torch_dtype")
    assert KVShape.from_config(config, dtype=None if named else "bfloat16") == expected


def test_a_type_of_unknown_defaults_must_state_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a guess at what only a model's class knows, where that class is not at hand."""
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 48, "hidden_size": 3840, "num_attention_heads": 16,
             "num_key_value_heads": 8, "dtype": "bfloat16"}  # fmt: skip
    with pytest.raises(ValueError, match=r"no head_dim.*'mystery'"):
        KVShape.from_config(gemma | {"model_type": "mystery"})
    with pytest.raises(ValueError, match=r"no head_dim.*'mystery'"):
        KVShape.from_config({"model_type": "mystery", "text_config": gemma | {"model_type": None}})
    assert KVShape.from_config(gemma | {"model_type": "mystery", "head_dim": 256}) == KVShape(48, 8, 256, "bfloat16")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"no head_dim.*'gemma3_text'"):
        KVShape.from_config(gemma)
    del gemma["num_key_value_heads"]
    with pytest.raises(ValueError, match=r"no num_key_value_heads.*'gemma3_text'"):
        KVShape.from_config(gemma | {"head_dim": 256})


def test_a_configuration_that_its_class_refuses_is_named() -> None:
    """Catches another library's error type reaching the reader."""
    with pytest.raises(ValueError, match="cannot read this configuration of type 'llama'"):
        KVShape.from_config({"model_type": "llama", "num_hidden_layers": "many"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MllamaTextConfig(), "cross_attention_layers"),
        (AutoConfig.for_model("mimo_v2_flash"), "a sliding window have twice the KV heads"),
        (AutoConfig.for_model("deepseek_v32"), "indexed_attention"),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
          "index_head_dim": 8}, "index_head_dim = 8 and caches index keys"),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "kv_lora_rank": 16}, "has no qk_rope_head_dim"),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "v_head_dim": 6, "swa_v_head_dim": 8},
         "swa_v_head_dim = 8 beside v_head_dim = 6"),
        (AutoConfig.for_model("inkling_text"), "swa_num_key_value_heads = 16 beside num_key_value_heads = 8"),
        (AutoConfig.for_model("gemma4_text"), "layer 5 another head_dim"),
        (AutoConfig.for_model("gemma3n_text"), "num_kv_shared_layers = 15"),
        (AutoConfig.for_model("deepseek_v4"), "compressed_sparse_attention"),
        (AutoConfig.for_model("t5gemma"), "is_encoder_decoder"),
        (AutoConfig.for_model("mamba"), "none of the configuration's layers has attention"),
        (AutoConfig.for_model("xlstm"), "no num_attention_heads"),
        (AutoConfig.for_model("xlm"), "sets causal = False"),
        (BertConfig(), "is_decoder = False"),
        (BertConfig(is_decoder=True, add_cross_attention=True), "add_cross_attention"),
        # OpenELM, DeciLM-7B and Nemotron-NAS, whose classes are not transformers' own.
        ({"model_type": "openelm", "num_transformer_layers": 3, "num_kv_heads": [3, 4, 5], "head_dim": 64,
          "num_hidden_layers": 3}, "num_key_value_heads differs from layer to layer"),
        ({"model_type": "deci", "num_hidden_layers": 3, "num_key_value_heads_per_layer": [4, 4, 1], "head_dim": 8},
         "num_key_value_heads differs from layer to layer"),
        ({"model_type": "nemotron-nas", "num_hidden_layers": 1, "block_configs": [{"attention": {"no_op": True}}]},
         "block_configs"),
        ({"model_type": "llama", "num_hidden_layers": 4, "per_layer_config": {"1": {"num_key_value_heads": 2}}},
         "layer 1 another num_key_value_heads"),
        ({"model_type": "llama", "num_hidden_layers": 4, "per_layer_config": {"1": {"skip": ["self_attn"]}}},
         "layer 1 another skip"),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "layer_types": ["full_attention"]},
         "1 layer kinds for num_hidden_layers = 3"),
    ],
)  # fmt: skip
def test_a_cache_of_another_form_is_refused_by_name(config: object, message: str) -> None:
    """Catches one figure for layers that differ, or for what is not keys and values of one width per token."""
    with pytest.raises(ValueError, match=message):
        KVShape.from_config(config, "bfloat16")


@pytest.mark.parametrize(
    "extra",
    [{"full_attention_interval": 4}, {"attn_layer_period": 8}, {"num_kv_shared_layers": 15},
     {"attn_layer_indices": [9, 18]}, {"hybrid_override_pattern": "M-M*"}],
)  # fmt: skip
def test_layers_that_do_not_all_cache_alike_are_refused(extra: dict[str, Any]) -> None:
    """Catches a hybrid model priced as if each of its layers kept every token."""
    config = {"num_hidden_layers": 48, "hidden_size": 64, "num_attention_heads": 4, "dtype": "float16"}
    with pytest.raises(ValueError, match=next(iter(extra))):
        KVShape.from_config(config | extra)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1, 1, "float16"), "num_layers is 0"), ((1, 1.5, 1, "float16"), "num_kv_heads is 1.5"),
     ((1, 1, True, "float16"), "head_dim is True"), ((1, 1, 1, "int3"), "dtype 'int3'"),
     ((1, 1, 1, "float16", 0), "value_dim is 0"), ((1, 2, 4, "float16", 2, True), "latents of 2 KV heads"),
     ((1, 1, 4, "float16", 5, True), "4 elements wide with values of 5")],
)  # fmt: skip
def test_impossible_shapes_are_refused(arguments: tuple, message: str) -> None:
    """Catches a shape that would make every later figure nonsense."""
    with pytest.raises(ValueError, match=message):
        KVShape(*arguments)
    with pytest.raises(ValueError, match="block_size is 0"):
        KVShape(1, 1, 1, "float16").bytes_per_block(0)
    with pytest.raises(ValueError, match="has no num_attention_heads"):
        KVShape.from_config({"num_hidden_layers": 2})
