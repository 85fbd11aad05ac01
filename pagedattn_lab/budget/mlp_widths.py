"""How wide the layers between attention are, which GPUs that share a layer divide among them as they do its heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pagedattn_lab.budget.errors import BudgetError

_EXPERTS_ONLY = {"qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text"}
"""Model types whose layers all have experts, so that no layer is as wide as ``intermediate_size`` says."""


def refuse_uneven_widths(fields: Mapping[str, Any], tensor_parallel_size: int) -> None:
    """Refuse a number of GPUs that does not divide the width of a model's MLP, or of its experts.

    Raises:
        BudgetError: a width that does not divide, with the sizes that do.

    Example:
        >>> fields = {"model_type": "llama", "num_attention_heads": 9, "intermediate_size": 1536}
        >>> refuse_uneven_widths(fields, 9)
        Traceback (most recent call last):
        pagedattn_lab.budget.errors.BudgetError: intermediate_size = 1536 does not divide among \
tensor_parallel_size = 9, 6 are left over: use one of 1, 3

    Source: vLLM 0.33.0, ``divide`` in ``vllm/distributed/utils.py``, which its parallel linear layers call, and
    ``FusedMoEConfig`` in ``vllm/model_executor/layers/fused_moe/config.py``.
    """
    heads, widths = fields["num_attention_heads"], list(_widths(fields))
    for name, width in widths:
        if rest := width % tensor_parallel_size:
            sizes = [n for n in range(1, heads + 1) if not heads % n and not any(each % n for _, each in widths)]
            raise BudgetError(
                f"{name} = {width} does not divide among tensor_parallel_size = {tensor_parallel_size}, {rest} "
                f"{'is' if rest == 1 else 'are'} left over: use one of {', '.join(map(str, sizes))}"
            )


def _widths(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Give the widths that a configuration names; where it names none, its class knows, and nothing is refused."""
    of_experts = fields.get("moe_intermediate_size")
    has_experts_only = of_experts and fields.get("model_type") in _EXPERTS_ONLY
    for name in ("moe_intermediate_size",) if has_experts_only else ("intermediate_size", "moe_intermediate_size"):
        value = fields.get(name)
        for width in value if isinstance(value, list | tuple) else [value]:
            if isinstance(width, int) and width > 0:
                yield name, width
