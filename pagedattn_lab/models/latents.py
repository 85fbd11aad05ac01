"""Layers with latents: how a model hands them over as they are, and what it would make of them (chapter 11).

transformers' classes make keys and values of the latents in a method ``expand_kv``, just before they call the attention
function. While ours is in place, so is a stand-in for that method, and the latents arrive as if they were keys of one
head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pagedattn_lab.models.support import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def latent_layers(model: PreTrainedModel) -> list[Any]:
    """Find the attention of each layer that keeps latents.

    Raises:
        UnsupportedModelError: a layer does not make keys and values by one matrix, which could be split by heads.
    """
    layers = [module for module in model.modules() if hasattr(module, "expand_kv")]
    for layer in layers:
        rows, matrix = layer.qk_nope_head_dim + layer.v_head_dim, layer.kv_b_proj
        if matrix.bias is not None or tuple(matrix.weight.shape) != (layer.num_heads * rows, layer.kv_lora_rank):
            raise UnsupportedModelError(
                f"layer {layer.layer_idx} makes keys and values of its latents by {matrix}, whose weight is of shape "
                f"{tuple(matrix.weight.shape)}: one plain matrix of {rows} rows for each head is needed"
            )
    return layers


def up_projections(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the matrices that make each head's key and value of a latent, as views of the model's weight.

    Returns:
        ``w_uk`` ``[num_heads, nope_dim, rank]`` and ``w_uv`` ``[num_heads, value_dim, rank]``.
    """
    by_head = layer.kv_b_proj.weight.unflatten(0, (layer.num_heads, -1))
    w_uk, w_uv = by_head.split([layer.qk_nope_head_dim, layer.v_head_dim], dim=1)
    return w_uk, w_uv


@contextmanager
def latents_kept(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers call their attention function with latents, in place of the keys and values made of them.

    The key is then ``[1, 1, num_tokens, rank + rope_dim]``, and the value its first ``rank`` elements.

    Args:
        layers: those that :func:`latent_layers` found.
    """
    try:
        for layer in layers:
            layer.expand_kv = _as_they_are  # hides the method of the class
        yield
    finally:
        for layer in layers:
            vars(layer).pop("expand_kv", None)


def _as_they_are(latent: torch.Tensor, rotated_key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([latent, rotated_key], dim=-1), latent
