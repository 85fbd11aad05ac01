"""Which model types vLLM lays out how, and which layouts are not known here.

Read in vLLM 0.33.0: ``vllm/model_executor/models/`` for each type, ``vllm/config/model.py`` and ``engine/arg_utils.py``
for windows, ``vllm/transformers_utils/model_arch_config_convertor.py`` for latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagedattn_lab.budget.state_layers import STATE_FAMILIES
from pagedattn_lab.kv_cache_groups import UnknownLayoutError
from pagedattn_lab.kv_config import OTHER_CACHES, VARIANTS, required

TRANSFORMERS_BACKEND = {
    "glm", "gpt_bigcode", "gpt_neox", "olmo", "olmo2", "olmo3", "phi", "smollm3", "starcoder2",
}  # fmt: skip
"""Types that vLLM runs through transformers' own code."""

BY_LAYER = TRANSFORMERS_BACKEND | {
    "llama", "mistral", "ministral", "ministral3", "phi3", "gemma2", "gemma3", "gemma3_text", "gpt_oss", "cohere2",
    "exaone4", "apertus", "granite", "granitemoe", "llama4", "llama4_text",
}  # fmt: skip
"""Types whose windows are those that ``layer_types`` gives; without such a list, one window holds for all layers."""

ONE_FOR_ALL = {
    "mixtral", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3", "qwen3_moe",
    "qwen3_vl_text", "qwen3_vl_moe_text", "phimoe", "opt", "gpt2", "gptj", "bloom", "falcon", "gemma", "stablelm",
    "cohere", "olmoe", "nemotron", "internlm2", "glm4", "glm4_moe", "chatglm", "ernie4_5", "ernie4_5_moe", "exaone",
    "granitemoeshared", "solar", "orion", "minicpm",
}  # fmt: skip
"""Types whose window, if any, holds for all layers or for none: a window that only some layers have is not used."""

MODEL_DTYPE_ONLY = {"falcon"}
"""Types whose class does not hand ``kv_cache_dtype`` on, so that their cache stays in the model's dtype."""

NO_MIXED_WINDOWS = {"qwen2", "qwen3", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl_text"}
"""Types that vLLM refuses to load with a window in some layers only (``max_window_layers``)."""

LATENT = {"deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite"}
"""Types whose latents vLLM keeps as such. Others that have latents expand them to keys and values of every head."""

_NO_CACHE = {"mamba", "mamba2", "falcon_mamba"}

_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def refuse_unknown_layout(fields: Mapping[str, Any]) -> None:
    """Refuse a configuration whose layout in vLLM is not known here.

    Raises:
        UnknownLayoutError: names the model type and what is unknown about it.
    """
    model_type = fields["model_type"]
    called = f"model type {model_type!r}"
    for name, reason in OTHER_CACHES.items():
        if fields[name]:
            raise UnknownLayoutError(
                f"{called} sets {name} = {fields[name]}, and {reason}: its layout is not known here"
            )
    if fields["index_topk"] or fields["index_head_dim"]:
        raise UnknownLayoutError(f"{called} caches index keys beside its latents: their layout is not known here")
    if "reuse" in (fields["kv_sharing_modes"] or ()):
        raise UnknownLayoutError(f"{called} has layers that read the cache of others: their layout is not known here")
    for variant, name in VARIANTS.items():
        if fields[variant] and fields[variant] != fields[name]:
            raise UnknownLayoutError(
                f"{called} sets {variant} = {fields[variant]} beside {name} = {fields[name]}: heads that differ from "
                "layer to layer are not known here"
            )
    if model_type in _NO_CACHE:
        raise UnknownLayoutError(f"{called} has no attention, so it has no KV cache whose size could be planned")
    if fields["kv_lora_rank"] and model_type not in LATENT:
        raise UnknownLayoutError(
            f"{called} has latents, and how vLLM keeps them for this type is not known here: known are "
            f"{', '.join(sorted(LATENT))}"
        )
    known = model_type is None or model_type in BY_LAYER | ONE_FOR_ALL | LATENT | STATE_FAMILIES.keys()
    if not known:
        raise UnknownLayoutError(
            f"{called} is not one whose layout in vLLM is known here: if every layer keeps full keys and values, pass "
            "the mapping of its config.json with model_type 'llama'"
        )


def attention_kinds(fields: Mapping[str, Any]) -> list[str] | None:
    """List the kind of each layer in transformers' words, or give ``None`` where all have attention and nothing more.

    Raises:
        UnknownLayoutError: a hybrid that does not say which of its layers are which.
    """
    kinds = fields["layer_types"]
    pattern = fields["hybrid_override_pattern"]
    if not kinds and pattern:
        kinds = [_PATTERN.get(letter, letter) for letter in pattern]
    if not kinds and fields["attn_layer_period"]:
        period, offset = fields["attn_layer_period"], fields["attn_layer_offset"] or 0
        number = required(fields, "num_hidden_layers")
        kinds = ["attention" if index % period == offset else "mamba" for index in range(number)]
    if kinds and fields["num_hidden_layers"] not in (None, len(kinds)):
        raise ValueError(
            f"{len(kinds)} layer kinds for num_hidden_layers = {fields['num_hidden_layers']}: give as many"
        )
    if not kinds and fields["model_type"] in STATE_FAMILIES:
        raise UnknownLayoutError(
            f"model type {fields['model_type']!r} mixes attention and states, and the configuration has no "
            "layer_types: add them, or install transformers, whose class knows them"
        )
    return list(kinds) if kinds else None
