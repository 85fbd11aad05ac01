"""Bytes per token, from counts and from published configurations."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, FalconConfig, GPT2Config, LlamaConfig

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


def test_latent_attention_is_refused() -> None:
    """Catches DeepSeek's compressed cache priced as if it held keys and values per head."""
    with pytest.raises(ValueError, match="latent attention"):
        KVShape.from_config(AutoConfig.for_model("deepseek_v3"))


@pytest.mark.parametrize(
    "extra", [{"full_attention_interval": 4}, {"attn_layer_period": 8}, {"num_kv_shared_layers": 15}]
)
def test_layers_that_do_not_all_cache_alike_are_refused(extra: dict[str, int]) -> None:
    """Catches a hybrid model priced as if each of its layers kept every token."""
    config = {"num_hidden_layers": 48, "hidden_size": 64, "num_attention_heads": 4, "dtype": "float16"}
    with pytest.raises(ValueError, match=next(iter(extra))):
        KVShape.from_config(config | extra)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1, 1, "float16"), "num_layers is 0"), ((1, 1.5, 1, "float16"), "num_kv_heads is 1.5"),
     ((1, 1, True, "float16"), "head_dim is True"), ((1, 1, 1, "int3"), "dtype 'int3'")],
)  # fmt: skip
def test_impossible_shapes_are_refused(arguments: tuple, message: str) -> None:
    """Catches a shape that would make every later figure nonsense."""
    with pytest.raises(ValueError, match=message):
        KVShape(*arguments)
    with pytest.raises(ValueError, match="block_size is 0"):
        KVShape(1, 1, 1, "float16").bytes_per_block(0)
    with pytest.raises(ValueError, match="has no num_attention_heads"):
        KVShape.from_config({"num_hidden_layers": 2})
