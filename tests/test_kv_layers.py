"""From a configuration to the specs of layers: as the budget has them, and as the model reads; and their places."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from pagedattn_lab.budget import layers as budget_layers
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.models import known_models, load_config
from pagedattn_lab.kv_cache_groups import KVCacheGroup, UnknownLayoutError, kv_cache_groups
from pagedattn_lab.kv_cache_specs import SlidingWindowSpec
from pagedattn_lab.kv_layers import layer_places, layer_specs
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.models.fused_decoder import window_of
from tests.helpers.models import SMALL, SPECIAL, tiny

MIXED = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}


@pytest.mark.parametrize("block_size", [16, 48])
@pytest.mark.parametrize("kind", [*SPECIAL, "mixtral", "cohere2", "exaone4", "starcoder2", "olmo3"])
def test_specs_are_those_of_the_budget(kind: str, block_size: int) -> None:
    """Catches a window that the budget counts and the runner does not keep, or the other way round, other heads, and
    another width of values.
    """
    special = SPECIAL.get(kind, {"sliding_window": 7})
    config = AutoConfig.for_model(kind, **(SMALL | special | {"dtype": "bfloat16"}))
    try:
        expected = budget_layers.layer_specs(config, block_size=block_size)
    except UnknownLayoutError:
        assert kind in ("minicpm3", "mimo_v2_flash", "gpt_neox", "qwen2_moe"), "the budget knows this one"
        return
    assert list(layer_specs(config, block_size).items()) == list(expected.specs.items())


KNOWN_BY_BOTH = 20


def test_specs_of_known_models_are_those_of_the_budget() -> None:
    """Catches what holds for small models and not for those that people serve."""
    compared = 0
    for name in known_models():
        config = load_config(name)
        try:
            ours = layer_specs(config, 16, "bfloat16")
        except ValueError:
            continue  # states, or layers of unlike shapes: no model runner has them
        assert ours == budget_layers.layer_specs(config, dtype="bfloat16", kv_cache_dtype="bfloat16").specs, name
        compared += 1
    assert compared >= KNOWN_BY_BOTH


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "qwen2", "qwen3"])
def test_what_is_kept_is_what_is_read(kind: str) -> None:
    """Catches a window of the configuration that the model's layers do not have, or have otherwise."""
    model = tiny(kind, **(MIXED if kind.startswith("qwen") else {}))
    specs = layer_specs(model, 4).values()
    kept = [spec.sliding_window if isinstance(spec, SlidingWindowSpec) else None for spec in specs]
    assert kept == [window_of(layer.self_attn) for layer in model.model.layers] and any(kept)


def test_where_vllm_refuses_or_ignores_a_window_the_model_still_reads_one() -> None:
    """Catches specs that follow vLLM where transformers computes otherwise: Qwen3 with windows in some layers only."""
    qwen = AutoConfig.for_model("qwen3", **(SMALL | {"head_dim": 16, "dtype": "bfloat16"} | MIXED))
    with pytest.raises(BudgetError, match="window in some layers only"):
        budget_layers.layer_specs(qwen)
    assert [spec.kind for spec in layer_specs(qwen, 4).values()] == ["full attention"] * 2 + ["sliding window"] * 2


def groups_of(**changes: Any) -> tuple[list[KVCacheGroup], KVShape]:
    config = AutoConfig.for_model("gemma2", **(SMALL | SPECIAL["gemma2"] | {"dtype": "float32"} | changes))
    return kv_cache_groups(layer_specs(config, 4)), KVShape.from_config(config)


def test_layers_of_one_group_never_meet() -> None:
    """Catches two layers of one group in one tensor, where they would write over each other, and more tensors than the
    largest group has layers.
    """
    kinds = ["sliding_attention"] * 11 + ["full_attention"] * 2
    groups, shape = groups_of(num_hidden_layers=13, layer_types=kinds)
    places = layer_places(groups, shape, 4)
    assert len({(place.group, place.tensor) for place in places}) == len(places) == 13
    assert {place.tensor for place in places} == {0, 1} and sum(group.padding_layers for group in groups) == 1
    assert [place.window for place in places] == [7] * 11 + [None] * 2


def test_groups_of_another_model_are_refused() -> None:
    """Catches a layer without a place, and pages of another size than the cache's."""
    groups, shape = groups_of()
    for wrong, block_size, reason in (
        (groups[:1], 4, r"the groups have layers \[0, 2\]: give each of 0 to 3 once"),
        ([*groups, groups[0]], 4, r"layers \[0, 0, 1, 2, 2, 3\]"),
        (groups, 8, "pages of 4 tokens and 1,024 bytes, and the cache has 8 and 2,048"),
        (groups_of(head_dim=8)[0], 4, "pages of 4 tokens and 512 bytes"),
    ):
        with pytest.raises(ValueError, match=reason):
            layer_places(wrong, shape, block_size)


def test_other_layers_are_refused_by_name() -> None:
    """Catches a state or a chunk taken for a window."""
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "dtype": "float32"}
    for kind in ("chunked_attention", "linear_attention"):
        with pytest.raises(ValueError, match=f"layers of kind {kind} keep another cache"):
            layer_specs(config | {"layer_types": ["full_attention", kind]}, 16)
