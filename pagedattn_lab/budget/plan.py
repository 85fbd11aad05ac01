"""The one call that makes a budget, and refuses what vLLM would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget.advice import largest_context, refusal
from pagedattn_lab.budget.compute import compute, longer_than_model
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.result import Budget


def plan(model: str | Path | Mapping[str, Any], gpu: str | int | None = None, **settings: Any) -> Budget:
    """Say what a GPU's memory becomes when vLLM serves a model on it.

    Blocks, tokens and concurrency follow exactly from the memory that is available for the cache. How much that is no
    configuration can tell: it is estimated, unless ``available_bytes`` says what vLLM printed.

    Args:
        model: an id, a folder, a ``config.json``, or what such a file says.
        gpu: a name of :data:`pagedattn_lab.hardware.GPUS`, or the memory that its driver reports.
        settings: of the server, named as in :class:`~pagedattn_lab.budget.options.Options`.

    Raises:
        BudgetError: a request of full length does not fit, with by how much and what to change; or it is longer than
            the model allows; or model, GPU, version or a setting are unknown.
        UnknownLayoutError: vLLM lays the model's layers out in a way that is not known here.

    Example:
        Llama-3.1-8B on an H100. vLLM 0.19 printed 58.11 GiB, 476,016 tokens and 58.11x. The two decimals leave a few
        blocks open:

        >>> budget = plan("meta-llama/Llama-3.1-8B", max_model_len=8192, max_num_batched_tokens=8192,
        ...               available_bytes="58.11GiB", vllm_version="0.19")
        >>> budget.bytes_per_token, budget.num_blocks_range
        (131072, (29749, 29754))
        >>> low, high = budget.kv_tokens_range
        >>> low <= 476_016 <= high, f"{budget.max_concurrency:.2f}x"
        (True, '58.11x')
    """
    budget = compute(Options(model, gpu, **settings))
    if too_long := longer_than_model(budget.asked, budget.config):
        raise BudgetError(too_long)
    if not budget.fit.fits:
        raise BudgetError(refusal(budget))
    return budget


def plan_longest(options: Options) -> tuple[Budget, str]:
    """Make a budget; where no length was asked for and the model's own does not fit, for the longest that does.

    Returns:
        The budget, and a sentence that says so; empty if it is the budget that was asked for.

    Raises:
        BudgetError: as :func:`plan`, of a length that was asked for, or if not even a short request fits.

    Example:
        >>> budget, said = plan_longest(Options("meta-llama/Llama-3.1-8B", available_bytes="8GiB"))
        >>> budget.max_model_len, said.split(": ")[1]
        (65520, '--max-model-len 65520.')
    """
    budget = compute(options)
    longest = 0 if options.max_model_len or budget.fit.fits else largest_context(budget)
    if not longest:
        return plan(**vars(options)), ""
    missing = (budget.fit.needed_bytes - budget.fit.available_bytes) / GIB
    return plan(**vars(replace(options, max_model_len=longest))), (
        f"{budget.model} takes {budget.max_model_len:,} tokens, but a request of that length needs {missing:.2f} GiB "
        f"more than there is, and vLLM would not start. This is the budget for the longest that fits: --max-model-len "
        f"{longest}."
    )
