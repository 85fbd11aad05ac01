"""KVShape.from_config against the cache that transformers itself allocates, for every causal model type."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pagedattn_lab.kv_shape import KVShape
from tests.helpers.draws import SHAPES

NUM_TOKENS, NUM_LAYERS = 3, 4

# What these types need, beyond their defaults, to be built at all, or to have a layer with attention.
NEEDED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "cpmant": {"dim_head": 48},
    "dbrx": {
        "d_model": 64, "n_heads": 4, "vocab_size": 64, "ffn_config": {"ffn_hidden_size": 32},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32},
    "granitemoehybrid": {"layer_types": ["full_attention", *["linear_attention"] * 2, "full_attention"]},
    "jamba": {"num_hidden_layers": 8},
    "jetmoe": {"hidden_size": 64, "intermediate_size": 64, "kv_channels": 24, "vocab_size": 64, "num_local_experts": 4},
    "longcat_flash": {
        "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 32, "expert_ffn_hidden_size": 32, "vocab_size": 64,
        "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "num_attention_heads": 4,
    },
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 2},
    "xmod": {"default_language": "en_XX", "hidden_size": 96, "intermediate_size": 64, "vocab_size": 64},
    "zamba": {"num_hidden_layers": 8},
}  # fmt: skip
NO_META_DEVICE = {"dbrx", "jetmoe", "longcat_flash", "xmod"}  # their routing reads numbers back
# Without an attention mask, these look for padding or packed sequences in the numbers.
NEEDS_MASK = {"big_bird", "megatron-bert", "moshi", "rembert", "roformer", "xmod"}

# Types for which there is no cache to compare with, and why.
NOT_MEASURED = {
    "openai-gpt": "transformers computes the first GPT without a cache",
    "gemma4_assistant": "its class refuses its own defaults",
}


ATEN = torch.ops.aten
ELEMENTWISE = {
    ATEN.add.Tensor, ATEN.clamp.default, ATEN.cumsum.default, ATEN.gelu.default, ATEN.mul.Tensor, ATEN.neg.default,
    ATEN.pow.Tensor_Scalar, ATEN.rsqrt.default, ATEN.sub.Tensor, ATEN.tril.default,
}  # fmt: skip


class OnlyShapes(TorchDispatchMode):
    """Gives results on the meta device their shapes; torch has its own way to do this, ten times as slow for these."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].device.type == "meta":
            if func in ELEMENTWISE:
                return _empty(*args[:2])
            if func is ATEN.native_layer_norm.default:
                return _empty(args[0]), None, None
            if func is ATEN.addmm.default:
                return torch.empty((len(args[1]), args[2].shape[1]), dtype=args[0].dtype, device="meta")
        return func(*args, **(kwargs or {}))


def _empty(tensor: torch.Tensor, other: Any = None) -> torch.Tensor:
    """Return what an operation with one or two operands leaves: the broadcast shape, the wider dtype."""
    shape, dtype = tensor.shape, tensor.dtype
    if isinstance(other, torch.Tensor):
        shape, dtype = torch.broadcast_shapes(shape, other.shape), torch.result_type(tensor, other)
    elif isinstance(other, float):
        dtype = torch.result_type(tensor, other)
    return torch.empty(shape, dtype=dtype, device="meta")


def _changes(model_type: str) -> list[dict[str, Any]]:
    """Give changes to a type's defaults, the largest first: not every type can be built with every change."""
    outer = AutoConfig.for_model(model_type)
    text = outer.get_text_config(decoder=True)
    read = text.to_dict()
    is_asked = hasattr(type(text), "is_decoder") and not model_type.startswith("gpt_neox")  # these do not look at it
    needed = NEEDED.get(model_type, {}) | ({"is_decoder": True} if is_asked else {})
    few_layers = {"num_hidden_layers": NUM_LAYERS}
    fewer_heads, wider_heads = {}, {}
    if read.get("num_attention_heads") and "num_key_value_heads" in read:
        fewer_heads = {"num_key_value_heads": read["num_attention_heads"] // 2}
    if "head_dim" in read:
        wider_heads = {"head_dim": 48}
    changes = [few_layers | heads | needed for heads in (fewer_heads | wider_heads, fewer_heads, wider_heads, {})]
    if getattr(outer, "text_config", None) is text:
        changes = [{"text_config": {"model_type": text.model_type} | change} for change in changes]
    return [*changes, needed]


def _cached_elements(model_type: str, config: PreTrainedConfig) -> int:
    """Run a prompt and count the elements of keys and values that each of its tokens leaves in transformers' cache.

    On the meta device shapes are computed and numbers are not, so that models of any size take neither memory nor time.
    """
    device = "cpu" if model_type in NO_META_DEVICE else "meta"
    with torch.device(device), OnlyShapes(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
        accepted = inspect.signature(model.forward).parameters
        inputs = {"input_ids": torch.ones(1, NUM_TOKENS, dtype=torch.long), "use_cache": True}
        if model_type in NEEDS_MASK:
            inputs["attention_mask"] = torch.ones(1, NUM_TOKENS, dtype=torch.long)
        cache = getattr(model(**inputs), "past_key_values", None)
        if cache is None and "past_key_values" in accepted:  # some write a cache and do not hand it out
            cache = DynamicCache(config=config)
            model(**inputs, past_key_values=cache)
    if cache is None:
        return 0
    layers = getattr(cache, "self_attention_cache", cache).layers
    tensors = [tensor for layer in layers for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    kept = [tensor for tensor in tensors if tensor is not None]  # [1, heads, tokens, head_dim] each
    return sum(tensor.numel() // tensor.shape[-2] for tensor in kept)


def _measure(model_type: str) -> tuple[str, str]:
    """Say whether one type's figure is "equal", "wrong", "refused" or "not measured", and the details."""
    result = ("not measured", "no configuration can be built")
    try:
        all_changes = _changes(model_type)
    except Exception as error:  # defaults that the class itself refuses
        return "not measured", str(error)
    for changes in all_changes:
        try:
            config = AutoConfig.for_model(model_type, **changes)
        except Exception as error:
            result = ("not measured", str(error))
            continue
        try:
            shape = KVShape.from_config(config, "bfloat16")
        except ValueError as error:
            result = ("refused", str(error))
            continue
        for use_diff in (False, True):  # as config.json: every key, or only what differs from the class's defaults
            read = KVShape.from_config(json.loads(config.to_json_string(use_diff=use_diff)), "bfloat16")
            if read != shape:
                return "wrong", f"{shape} from the object, {read} from its JSON (use_diff={use_diff})"
        try:
            elements = _cached_elements(model_type, config)
        except Exception as error:  # a type that cannot be built or run with these changes
            result = ("not measured", f"{shape}: {type(error).__name__}: {error}")
            continue
        if elements == 0 and model_type in NOT_MEASURED:
            return "not measured", "no cache"
        equal = shape.bytes_per_token == 2 * elements
        return ("equal" if equal else "wrong"), f"{shape}, and the cache holds {elements} elements per token"
    return result


@pytest.mark.when_changed(*SHAPES)
def test_every_figure_equals_the_cache_of_transformers() -> None:
    """Catches a figure that a model does not have: layers without a cache counted, a width or a head count misread.

    A refusal is right for any type, so the number of figures is held too: refusing everything would not pass.
    """
    results = {model_type: _measure(model_type) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    by_kind: dict[str, dict[str, str]] = {"equal": {}, "wrong": {}, "refused": {}, "not measured": {}}
    for model_type, (kind, details) in results.items():
        by_kind[kind][model_type] = details
    print({kind: len(types) for kind, types in by_kind.items()}, by_kind["refused"], sep="\n")
    assert not by_kind["wrong"]
    assert by_kind["not measured"].keys() == NOT_MEASURED.keys(), by_kind["not measured"]
    assert len(by_kind["equal"]) >= 145  # as with transformers 5.23.0
