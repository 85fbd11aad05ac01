"""How many parameters a model has, part by part: what is split among GPUs, what each keeps, what is quantised.

Counted without memory: transformers builds the model on torch's "meta" device, where a tensor has a shape and nothing
else. Both are imported only then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.kv_config import read_num_kv_heads, required, text_fields

PARTS = ("linear", "kv", "experts", "replicated", "small")
"""Parts of a layer.

``linear``: matrices that tensor parallelism splits. ``kv``: projections to keys and values, split until each GPU has
one KV head. ``experts``: those of mixtures, split too. ``replicated``: matrices that every GPU keeps, the projections
to latents. ``small``: norms, routers, biases and the like, which every GPU keeps and no method quantises.
"""

Layer = dict[str, int]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        embedding: of the input embedding.
        lm_head: of the output embedding; 0 where it is the input's.
        other: outside the layers: the last norm, learned positions.
        vision: an encoder for images or sound, and what projects its output.
        layers: of each layer, by part; see :data:`PARTS`.
    """

    embedding: int
    lm_head: int
    other: int
    vision: int
    layers: list[Layer] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.lm_head + self.other + self.vision + sum(sum(x.values()) for x in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Write layers that follow one another and are alike once, with their number."""
        runs: list[list[Any]] = []
        for layer in self.layers:
            if runs and runs[-1][1] == layer:
                runs[-1][0] += 1
            else:
                runs.append([1, layer])
        outside = {name: getattr(self, name) for name in ("embedding", "lm_head", "other", "vision")}
        return {**outside, "layers": runs}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> Parameters:
        """Read what :meth:`to_json` wrote.

        Example:
            >>> Parameters.from_json({"embedding": 8, "lm_head": 0, "other": 2, "vision": 0,
            ...                       "layers": [[2, {"linear": 5}]]}).total
            20
        """
        outside = {name: mapping[name] for name in ("embedding", "lm_head", "other", "vision")}
        return cls(**outside, layers=[layer for number, layer in mapping["layers"] for _ in range(number)])


_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_FUSED = re.compile(r"\.(qkv_proj|query_key_value)\.weight$")
_VISION = re.compile(r"(?:^|\.)(?:vision\w*|visual|audio\w*|multi_modal_projector|mm_projector|embed_vision)\.")


def _part(name: str, dimensions: int) -> str:
    """Say to which part of a layer a parameter belongs, by its name and its number of dimensions."""
    if "norm" in name or dimensions < 2 or "conv1d" in name:
        return "small"
    if re.search(r"\.experts\.", name):
        return "small" if name.endswith("bias") else "experts"
    if re.search(r"\.(gate|router|shared_expert_gate)\.|\.router\b", name):
        return "small"
    if re.search(r"\.[kv]_proj\.weight$", name):
        return "kv"
    if re.search(r"\.(q_a_proj|kv_a_proj_with_mqa)\.weight$", name):
        return "replicated"
    return "linear"


def count_parameters(published: Mapping[str, Any]) -> Parameters:
    """Count a model's parameters from the mapping in its ``config.json``.

    Raises:
        BudgetError: torch or transformers is not installed, or does not know the model type.

    Example:
        >>> small = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16,
        ...          "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32}
        >>> counted = count_parameters(small)
        >>> counted.embedding, counted.layers[0]
        (256, {'linear': 512, 'kv': 64, 'small': 16})
    """
    model = _build_on_meta(published)
    kv_share, one_group = _kv_share(published), _one_group(published)
    outside = {"embedding": 0, "lm_head": 0, "other": 0, "vision": 0}
    layers: dict[int, Layer] = {}
    for name, parameter in model.named_parameters():  # a tied output embedding comes once
        found = _LAYER.search(name)
        if _VISION.search(name):
            outside["vision"] += parameter.numel()
        elif found:
            layer, part = layers.setdefault(int(found[1]), {}), _part("." + found[2], parameter.dim())
            in_kv = int(parameter.numel() * kv_share) if part == "linear" and _FUSED.search(name) else 0
            layer["kv"] = layer.get("kv", 0) + in_kv
            kept = one_group if part == "linear" and found[2].endswith(".in_proj.weight") else 0
            layer["replicated"] = layer.get("replicated", 0) + kept
            layer[part] = layer.get(part, 0) + parameter.numel() - in_kv - kept
        elif "lm_head" in name or "embed_out" in name:
            outside["lm_head"] += parameter.numel()
        elif re.search(r"(embed_tokens|embeddings|wte|word_embeddings|embed_in)\.weight$", name):
            outside["embedding"] += parameter.numel()
        else:
            outside["other"] += parameter.numel()
    ordered = [{part: layer[part] for part in PARTS if layer.get(part)} for _, layer in sorted(layers.items())]
    return Parameters(**outside, layers=ordered)


def _kv_share(published: Mapping[str, Any]) -> float:
    """Say which share of a matrix that makes queries, keys and values at once makes the latter two."""
    fields = text_fields(published)
    if fields["kv_lora_rank"]:
        return 0.0
    kv_heads = read_num_kv_heads(fields)
    return 2 * kv_heads / (required(fields, "num_attention_heads") + 2 * kv_heads)


def _one_group(published: Mapping[str, Any]) -> int:
    """Count what of a Mamba layer's input projection every GPU keeps: one group serves all heads."""
    fields = text_fields(published)
    if fields["mamba_n_groups"] != 1:
        return 0
    return 2 * required(fields, "mamba_d_state") * required(fields, "hidden_size")


def _build_on_meta(published: Mapping[str, Any]) -> Any:
    """Build a model of shapes alone."""
    try:
        import torch
        import transformers

        from pagedattn_lab.models.quiet import quiet_transformers
    except ImportError as error:
        raise BudgetError(
            f"counting a model's parameters needs {error.name}: install it, or give weights_bytes as the start-up log "
            "prints it"
        ) from error
    plain = {key: value for key, value in published.items() if key != "quantization_config"}
    model_type = str(plain.get("model_type"))
    if model_type not in transformers.CONFIG_MAPPING:
        raise BudgetError(
            f"transformers {transformers.__version__} does not know model type {model_type!r}, so its parameters "
            "cannot be counted: give weights_bytes as the start-up log prints it"
        )
    config = transformers.CONFIG_MAPPING[model_type].from_dict(plain)
    seeing = getattr(config, "vision_config", None) is not None
    auto = transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM
    try:
        with quiet_transformers(), torch.device("meta"):
            return auto.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise BudgetError(
            f"transformers cannot build a model of type {model_type!r} from this configuration ({error}): give "
            "weights_bytes as the start-up log prints it"
        ) from error
