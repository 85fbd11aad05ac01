"""What a start-up log says, as the arguments of a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget import BudgetError, Estimate, Options, first_change
from pagedattn_lab.budget.compute import compute
from pagedattn_lab.cli.terminal import say


def with_log(log_text: str, given: dict[str, Any]) -> dict[str, Any]:
    """Add what a log says to the arguments of a budget that are given, which win.

    Memory stays as open as the log's two decimals leave it.

    Raises:
        BudgetError: nothing was left for the cache, with by how much and what to change first.
        ValueError: the log does not say what was left.
    """
    from pagedattn_lab.vllm_log import read_log
    from pagedattn_lab.vllm_log.check import settings

    model = given["model"]
    log = read_log(log_text)
    if log.model and Path(log.model).name.lower() != Path(model).name.lower():
        say(f"the log is of {log.model}, and its memory is taken for {model}", "budget")
    said = settings(log, model, log.version or Options.vllm_version)
    if log.available_bytes is None and log.num_gpu_blocks_override is None:
        raise ValueError("the log does not say how much memory is available for the cache: give its start, up to there")
    if log.weights_bytes is not None:
        said["weights_bytes"] = _open(log.weights_bytes)
    if "available_bytes" in given:
        return said | given
    if log.kv_cache_memory_bytes is None and log.available_bytes is not None and log.available_bytes <= 0:
        gpu = {} if log.total_bytes is None else {"gpu": log.total_bytes}
        raise BudgetError(_nothing_left(log.available_bytes, gpu | said | given))
    if "available_bytes" in said:
        sizes = said["available_bytes"]
        said["available_bytes"] = [_open(size) for size in sizes] if isinstance(sizes, list) else _open(sizes)
    return said | given


def _nothing_left(available_bytes: int, options: dict[str, Any]) -> str:
    """Say by how much a start failed, and what to change first, computed from what the log says is missing."""
    missing = Estimate.known(available_bytes, "the log")
    said = (
        f"the log says that nothing was left for the cache: what else takes memory needs {-available_bytes / GIB:.2f} "
        "GiB more than the share that vLLM may use"
    )
    if "gpu" not in options:
        return f"{said}. Give --gpu, and what to change first is computed"
    # The weights' size that was measured is of these weights: a change of dtype or GPUs has to count others.
    options = {name: value for name, value in options.items() if name != "weights_bytes"}
    changes = first_change(compute(Options(**options | {"available_bytes": missing})))
    return f"{said}: try {changes[0].sentence}" if changes else f"{said}, and no setting makes room: use a larger GPU"


def _open(size: Estimate | int) -> Estimate:
    """Give back what rounding to two decimals of a GiB took."""
    middle = size if isinstance(size, int) else size.likely
    return Estimate.printed(f"{middle / GIB:.2f}GiB", "the log")
