"""A decoder of Llama's kind as one loop over its layers, where a serving engine's time goes (chapter 09).

transformers computes a layer as some twenty modules, each a few operations that read and write memory. Here a layer is
four matrix products, with a kernel between one and the next: see :mod:`pagedattn_lab.models.fused_kernels`. Q, K and V
come from one product, gate and up from another. Weights lie as the product reads them, put in that order once.

Source: vLLM's ``vllm/model_executor/models/llama.py`` (``QKVParallelLinear``, ``MergedColumnParallelLinear``), release
0.33.0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from pagedattn_lab import huge_pages
from pagedattn_lab.attention.cpu import Caches, Plan
from pagedattn_lab.attention.cpu_kernel import as_array
from pagedattn_lab.attention.metadata import AttentionMetadata
from pagedattn_lab.attention.variant import Variant
from pagedattn_lab.kv_cache import PagedKVCache
from pagedattn_lab.models.fused_kernels import add_rms_norm, rotate_and_write, silu_and_mul

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Linear = Callable[[torch.Tensor], torch.Tensor]
"""A layer ``[num_rows, in_features]`` to ``[num_rows, out_features]``."""


def reordered(dtype: torch.dtype) -> bool:
    """Say whether this build of torch has oneDNN's own order of weights for a dtype."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fused_linear(parts: Sequence[nn.Linear]) -> Linear:
    """Put several linear layers of one input together: one product, whose columns are theirs in turn.

    Where torch has it, the weight is laid out once as oneDNN computes with it, which ``nn.Linear`` does anew in every
    call. The functions are private, so there is a way without them.
    """
    weight = torch.cat([part.weight.detach() for part in parts])
    biases = [
        torch.zeros(part.out_features, dtype=weight.dtype) if part.bias is None else part.bias.detach()
        for part in parts
    ]
    bias = torch.cat(biases) if any(part.bias is not None for part in parts) else None
    if not reordered(weight.dtype):
        return functools.partial(nn.functional.linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    if hasattr(torch.ops.mkldnn, "data_ptr"):  # a step of few tokens reads weights faster so
        huge_pages.collapse(torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed))
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")  # no function after the product


class _Layer(NamedTuple):
    """One decoder layer: weights of its norms in float32, its products, its cache, and how it attends."""

    attention_norm: np.ndarray
    qkv: Linear
    q_norm: np.ndarray
    k_norm: np.ndarray
    out: Linear
    mlp_norm: np.ndarray
    gate_up: Linear
    down: Linear
    caches: Caches
    key_slots: np.ndarray  # [num_slots, num_kv_heads, head_dim]
    value_slots: np.ndarray
    window: int | None
    group: int


class FusedDecoder:
    """A decoder's weights, ordered for one loop, and the paged cache that the loop writes and attends to.

    Args:
        model: one that :func:`pagedattn_lab.models.support.fused_obstacle` has nothing against. Its weights are copied,
            which takes as much memory again as the model, and later changes of them are not seen. The model's own stay,
            so that it can still run by itself.
        cache: in the model's dtype.
        groups: whose page tables each layer reads, a number for each.
    """

    def __init__(self, model: PreTrainedModel, cache: PagedKVCache, groups: Sequence[int]) -> None:
        config, decoder = model.config, model.model
        first = decoder.layers[0].self_attn
        self._dtype, self._epsilon = model.dtype, np.float32(config.rms_norm_eps)
        self._num_heads, self._head_dim, self._scale = config.num_attention_heads, first.head_dim, float(first.scaling)
        self._embedding, self._rotary = decoder.embed_tokens.weight.detach(), decoder.rotary_emb
        self._norm, self._head = _weight(decoder.norm), fused_linear([model.lm_head])
        self._layers = [
            _layer(*layer_and_caches)
            for layer_and_caches in zip(decoder.layers, cache.key_caches, cache.value_caches, groups, strict=True)
        ]
        self._cos = self._sin = np.empty((0, self._head_dim // 2), np.float32)
        self._buffers = self._make_buffers(0, config.hidden_size, config.intermediate_size)

    @property
    def windows(self) -> list[int | None]:
        """Tokens that each layer reads, itself included; ``None`` for all."""
        return [layer.window for layer in self._layers]

    def warm_up(self) -> None:
        """Have numba compile the kernels, on no tokens; the one of attention is its backend's to compile."""
        self._grow(1, 1)
        x, query, _, activated = (as_array(buffer[:0]) for buffer in self._buffers)
        layer, none = self._layers[0], np.empty(0, np.int64)
        hidden, heads, inner = x.shape[1], query.shape[1] + 2 * layer.key_slots.shape[1], activated.shape[1]
        add_rms_norm(np.empty((0, hidden), np.float32), x, layer.mlp_norm, self._epsilon, x)
        qkv, gate_up = (np.empty((0, width), x.dtype) for width in (heads * self._head_dim, 2 * inner))
        norms = layer.q_norm, layer.k_norm, self._epsilon
        rotate_and_write(qkv, none, none, self._cos, self._sin, *norms, query, layer.key_slots, layer.value_slots)
        silu_and_mul(gate_up, activated)

    def logits(
        self, token_ids: Sequence[int], groups: Sequence[AttentionMetadata], last_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Compute a step.

        Args:
            token_ids: as for :meth:`pagedattn_lab.model_runner.ModelRunner.execute`, checked there.
            groups: the step for each group of layers.
            last_tokens: which tokens' logits are wanted, int64.

        Returns:
            ``[len(last_tokens), vocab_size]``.
        """
        num_tokens, metadata = len(token_ids), groups[0]
        self._grow(num_tokens, metadata.max_seq_len)
        x, query, attended, activated = (buffer[:num_tokens] for buffer in self._buffers)
        x_array, query_array, activated_array = as_array(x), as_array(query), as_array(activated)
        positions, slots = metadata.positions.numpy(), [group.slot_mapping.numpy() for group in groups]
        flat = attended.view(num_tokens, -1)

        ids = torch.from_numpy(np.fromiter(token_ids, np.int64, num_tokens))
        residual = self._embedding[ids].float()
        stream = residual.numpy()
        delta = np.empty((0, stream.shape[1]), x_array.dtype)
        plans: dict[tuple[int, int | None], Plan] = {}
        for layer in self._layers:
            add_rms_norm(stream, delta, layer.attention_norm, self._epsilon, x_array)
            rotate_and_write(
                as_array(layer.qkv(x)), positions, slots[layer.group], self._cos, self._sin, layer.q_norm, layer.k_norm,
                self._epsilon, query_array, layer.key_slots, layer.value_slots,
            )  # fmt: skip
            window = None if layer.window is None or metadata.max_seq_len <= layer.window else layer.window
            way = layer.group, window
            if way not in plans:
                group, variant = groups[layer.group], Variant(sliding_window=window)
                tensors = group.block_tables, group.seq_lens, group.query_start_loc
                plans[way] = Plan(self._num_heads, layer.caches, *tensors, variant, group.cascade)
            plans[way].attend(query, layer.caches, self._scale, attended)
            add_rms_norm(stream, as_array(layer.out(flat)), layer.mlp_norm, self._epsilon, x_array)
            silu_and_mul(as_array(layer.gate_up(x)), activated_array)
            delta = as_array(layer.down(activated))
        add_rms_norm(stream, delta, self._norm, self._epsilon, x_array)
        return self._head(x[last_tokens])

    def _grow(self, num_tokens: int, num_positions: int) -> None:
        """Make buffers and rotary tables as large as a step needs; they are kept, and grow by doubling."""
        if num_tokens > len(self._buffers[0]):
            x, _, _, activated = self._buffers
            self._buffers = self._make_buffers(2 * num_tokens, x.shape[1], activated.shape[1])
        if num_positions > len(self._cos):
            positions = torch.arange(2 * num_positions)[None]
            # In float32, whatever the model's dtype: angles are kept as exact as they are computed.
            cos, sin = self._rotary(torch.empty(0), positions)  # each [1, positions, head_dim], its halves alike
            self._cos, self._sin = (
                np.ascontiguousarray(table[0, :, : self._head_dim // 2].numpy()) for table in (cos, sin)
            )

    def _make_buffers(self, num_tokens: int, hidden_size: int, intermediate_size: int) -> tuple[torch.Tensor, ...]:
        """Make room for a layer's input, its queries, what they attended to, and the MLP's activations."""
        heads = self._num_heads, self._head_dim
        shapes = (hidden_size,), heads, heads, (intermediate_size,)
        return tuple(torch.empty(num_tokens, *shape, dtype=self._dtype) for shape in shapes)


def _weight(norm: nn.Module | None) -> np.ndarray:
    """Give a norm's weights in float32; none of a norm that is not there."""
    return np.empty(0, np.float32) if norm is None else norm.weight.detach().float().numpy()


def _layer(layer: nn.Module, key_cache: torch.Tensor, value_cache: torch.Tensor, group: int) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    slots = [as_array(cache.view(-1, *cache.shape[2:])) for cache in (key_cache, value_cache)]
    return _Layer(
        attention_norm=_weight(layer.input_layernorm),
        qkv=fused_linear([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=_weight(getattr(attention, "q_norm", None)),
        k_norm=_weight(getattr(attention, "k_norm", None)),
        out=fused_linear([attention.o_proj]),
        mlp_norm=_weight(layer.post_attention_layernorm),
        gate_up=fused_linear([mlp.gate_proj, mlp.up_proj]),
        down=fused_linear([mlp.down_proj]),
        caches=Caches.of(key_cache, value_cache),
        key_slots=slots[0],
        value_slots=slots[1],
        window=window_of(attention),
        group=group,
    )


def window_of(attention: nn.Module) -> int | None:
    """Give the window that an attention layer passes to its attention function."""
    if type(attention).__name__ == "MistralAttention":
        return getattr(attention.config, "sliding_window", None)
    return getattr(attention, "sliding_window", None)
