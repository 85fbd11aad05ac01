"""Layers that keep one state instead of keys and values: how many bytes, for which model types.

Each family keeps two states a layer: what a short convolution has last seen, and the recurrent state. Tensor
parallelism splits both. Source: vLLM 0.33.0, ``vllm/model_executor/layers/mamba/mamba_utils.py``, and each model's
``get_mamba_state_shape_from_config`` and ``get_mamba_state_dtype_from_config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.kv_config import required
from pagedattn_lab.kv_shape import DTYPE_BYTES

Shape = tuple[int, ...]


@dataclass(frozen=True)
class State:
    """What one layer keeps on one GPU.

    Attributes:
        shapes: of the convolution's state and, where there is one, of the recurrent state.
        dtypes: of each.

    Example:
        >>> State(((3, 10240), (48, 128, 128)), ("bfloat16", "float32")).num_bytes
        3207168
    """

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(prod(shape) * DTYPE_BYTES[dtype] for shape, dtype in zip(self.shapes, self.dtypes, strict=True))


def _split(what: str, number: int, tp: int) -> int:
    """Give one GPU's share."""
    if number % tp:
        raise BudgetError(
            f"{number} {what} do not divide among {tp} GPUs: set tensor_parallel_size to a divisor of {number}"
        )
    return number // tp


def _gated_delta_net(fields: Mapping[str, Any], tp: int, num_speculative_tokens: int) -> tuple[Shape, ...]:
    """Qwen3-Next, Qwen3.5, OLMo hybrid."""
    key_heads, value_heads = required(fields, "linear_num_key_heads"), required(fields, "linear_num_value_heads")
    key_dim, value_dim = required(fields, "linear_key_head_dim"), required(fields, "linear_value_head_dim")
    width = _split("channels of the convolution", 2 * key_heads * key_dim + value_heads * value_dim, tp)
    rows = required(fields, "linear_conv_kernel_dim") - 1 + num_speculative_tokens
    return (rows, width), (_split("value heads of linear attention", value_heads, tp), value_dim, key_dim)


def _mamba2(
    inner: int, groups: int, heads: int, head_dim: int, state: int, kernel: int, tp: int, speculative: int
) -> tuple[Shape, ...]:
    if groups == 1:  # every GPU needs it for its heads
        groups = tp
    _split("Mamba groups", groups, tp)
    width = _split("channels of the convolution", inner + 2 * groups * state, tp)
    return (kernel - 1 + speculative, width), (_split("Mamba heads", heads, tp), head_dim, state)


def _granite(fields: Mapping[str, Any], tp: int, num_speculative_tokens: int) -> tuple[Shape, ...]:
    inner = required(fields, "mamba_expand") * required(fields, "hidden_size")
    return _mamba2_of_granite(fields, inner, tp, num_speculative_tokens)


def _falcon_h1(fields: Mapping[str, Any], tp: int, num_speculative_tokens: int) -> tuple[Shape, ...]:
    inner = fields["mamba_d_ssm"] or int(required(fields, "mamba_expand") * required(fields, "hidden_size"))
    return _mamba2_of_granite(fields, inner, tp, num_speculative_tokens)


def _mamba2_of_granite(
    fields: Mapping[str, Any], inner: int, tp: int, num_speculative_tokens: int
) -> tuple[Shape, ...]:
    names = ("mamba_n_groups", "mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_d_conv")
    groups, heads, head_dim, state, kernel = (required(fields, name) for name in names)
    return _mamba2(inner, groups, heads, head_dim, state, kernel, tp, num_speculative_tokens)


def _nemotron_h(fields: Mapping[str, Any], tp: int, num_speculative_tokens: int) -> tuple[Shape, ...]:
    names = ("n_groups", "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "conv_kernel")
    groups, heads, head_dim, state, kernel = (required(fields, name) for name in names)
    return _mamba2(heads * head_dim, groups, heads, head_dim, state, kernel, tp, num_speculative_tokens)


def _jamba(fields: Mapping[str, Any], tp: int, num_speculative_tokens: int) -> tuple[Shape, ...]:
    inner = _split("Mamba channels", required(fields, "mamba_expand") * required(fields, "hidden_size"), tp)
    return (required(fields, "mamba_d_conv") - 1, inner), (inner, required(fields, "mamba_d_state"))


def _short_convolution(fields: Mapping[str, Any], tp: int, num_speculative_tokens: int) -> tuple[Shape, ...]:
    """LFM2: the convolution alone, without a recurrent state."""
    width = fields["conv_dim"] or required(fields, "hidden_size")
    return ((required(fields, "conv_L_cache") - 1, _split("channels of the convolution", width, tp)),)


@dataclass(frozen=True)
class StateFamily:
    """How one family of models keeps state.

    Attributes:
        layer: the layer's name in the model.
        shapes: from the figures, the number of GPUs and the number of speculative tokens.
        recurrent_dtype: the setting that names the recurrent state's dtype, and what holds without it; ``None``: the
            convolution's dtype.
        checkpoints: what hands out a state in the middle of a prompt: nothing, every kernel, or only FlashInfer's.
    """

    layer: str
    shapes: Callable[[Mapping[str, Any], int, int], tuple[Shape, ...]]
    recurrent_dtype: tuple[str, str | None] | None = None
    checkpoints: str = "never"

    def state(
        self,
        fields: Mapping[str, Any],
        dtype: str,
        tp: int,
        num_speculative_tokens: int = 0,
        mamba_ssm_cache_dtype: str = "auto",
    ) -> State:
        """Give the state of one layer on one GPU.

        Raises:
            BudgetError: heads or channels that do not divide among the GPUs.
            ValueError: a figure that the configuration lacks.
        """
        shapes = self.shapes(fields, tp, num_speculative_tokens)
        recurrent = None if mamba_ssm_cache_dtype == "auto" else mamba_ssm_cache_dtype
        if recurrent is None and self.recurrent_dtype is not None:
            setting, otherwise = self.recurrent_dtype
            recurrent = fields[setting] or otherwise
        dtypes = (dtype, str(recurrent or dtype).removeprefix("torch."))
        return State(shapes, dtypes[: len(shapes)])


_QWEN3_5 = StateFamily("linear_attn", _gated_delta_net, ("mamba_ssm_dtype", None), "flashinfer")

STATE_FAMILIES = {
    "qwen3_next": StateFamily("linear_attn", _gated_delta_net, None, "flashinfer"),
    "qwen3_5": _QWEN3_5, "qwen3_5_text": _QWEN3_5, "qwen3_5_moe": _QWEN3_5, "qwen3_5_moe_text": _QWEN3_5,
    "olmo_hybrid": StateFamily("linear_attn", _gated_delta_net),
    "granitemoehybrid": StateFamily("mamba", _granite, None, "always"),
    "falcon_h1": StateFamily("mamba", _falcon_h1, None, "always"),
    "nemotron_h": StateFamily("mixer", _nemotron_h, ("mamba_ssm_cache_dtype", "float32"), "always"),
    "jamba": StateFamily("mamba", _jamba),
    "lfm2": StateFamily("short_conv", _short_convolution), "lfm2_moe": StateFamily("short_conv", _short_convolution),
}  # fmt: skip
"""By model type. Any other with layers that keep states is refused."""
