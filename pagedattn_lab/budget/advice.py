"""The budget the other way round: the longest context, the smallest GPU, and what to change first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget.compute import compute, model_max_len
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.lengths import users
from pagedattn_lab.budget.memory import capability_without_fp8
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.result import Budget
from pagedattn_lab.budget.serve_command import FLAGS
from pagedattn_lab.hardware import GPUS
from pagedattn_lab.kv_cache_specs import MambaSpec

LEAST_EFFECT = 1.02
"""By how much a change must raise the concurrency to be worth a line."""

FULL_SHARE = 0.95
"""The share of a GPU that a server can use if it is alone on it: the driver and a desktop need some."""


LEAVE_MEMORY = {"max_model_len", "kv_cache_dtype", "enable_prefix_caching"}
"""Settings that leave the memory for the cache as it is."""


def largest_context(budget: Budget, memory: Literal["low", "likely", "high"] = "likely") -> int:
    """Find the longest request that the cache of a budget holds, up to what the model itself can do; 0 if none.

    Args:
        budget: the server.
        memory: which end of what may be available to count on.

    Example:
        >>> from pagedattn_lab.budget.compute import compute
        >>> largest_context(compute(Options("meta-llama/Llama-3.1-8B", available_bytes="8GiB")))
        65520
    """
    limits = replace(budget.limits, max_model_len=model_max_len(budget.config, budget.version))
    checks = (budget.version.fit_check(rank.groups, getattr(rank.available, memory), limits) for rank in budget.ranks)
    return min(check.largest_model_len for check in checks)


def smallest_gpu(
    options: Options, num_requests: int = 1, lengths: Sequence[tuple[int, int]] | None = None, most_gpus: int = 8
) -> Budget:
    """Find the least hardware of the table that serves a load: of those with enough, the one with the least memory.

    Memory alone is counted. Whether a GPU computes in the model's dtype (a T4 has no bfloat16) and how fast is not.

    Args:
        options: the model and its settings; ``gpu`` and ``tensor_parallel_size`` are what is looked for.
        num_requests: requests at once.
        lengths: tokens of their prompts and outputs; by default all are as long as ``max_model_len`` allows.
        most_gpus: GPUs that share each layer: 1, 2, 4 … up to this.

    Raises:
        BudgetError: none is enough.
    """
    counts = [2**power for power in range(most_gpus.bit_length()) if 2**power <= most_gpus]
    machines = [(count * sheet.gib, count, name) for name, sheet in GPUS.items() for count in counts]
    refusals = []
    for _, count, name in sorted(machines):
        try:
            budget = compute(replace(options, gpu=name, tensor_parallel_size=count))
        except BudgetError as error:
            refusals.append(str(error))
            continue
        if not budget.fit.fits:
            continue
        served = budget.max_concurrency if lengths is None else users(budget, lengths).with_risk()
        if served >= num_requests:
            return budget
    if len(refusals) == len(machines):
        raise BudgetError(refusals[0])
    raise BudgetError(
        f"no GPU of the table, nor up to {most_gpus} of one kind, serves {num_requests:,} requests at once: ask for "
        "fewer, or for shorter ones"
    )


@dataclass(frozen=True)
class Change:
    """One setting changed, or two, and what becomes of the budget.

    Attributes:
        settings: what is changed, by the names of :class:`~pagedattn_lab.budget.options.Options`.
        why: what it does.
        budget: with it.
        effect: how many times as many requests of full length fit as before; infinite if none did.
    """

    settings: Mapping[str, Any]
    why: str
    budget: Budget
    effect: float

    @property
    def flag(self) -> str:
        """What to add to the command."""
        return " ".join(
            "--no-enable-prefix-caching" if name == "enable_prefix_caching" else f"{FLAGS[name]} {value}"
            for name, value in self.settings.items()
        )

    @property
    def needs_more_gpus(self) -> bool:
        """Whether a setting is not enough."""
        return "tensor_parallel_size" in self.settings

    @property
    def sentence(self) -> str:
        """Say it with its figure."""
        return f"{self.flag}: {self.why}; {self.budget.kv_tokens:,} tokens, {self.budget.max_concurrency:.2f}x"


def first_change(budget: Budget) -> tuple[Change, ...]:
    """Try one change after the other, and give those that let more requests in, best first.

    Each is computed like the budget itself; what needs more GPUs comes last. Where the memory for the cache was given,
    a change that touches the memory is computed from the difference that the estimates make. If no request of full
    length fits, only changes are given that make one fit; if no single one does, then together with a shorter context.

    Example:
        >>> budget = compute(Options("meta-llama/Llama-3.1-8B", "H100-80GB", kv_cache_memory_bytes="20GiB"))
        >>> for change in first_change(budget):
        ...     print(change.sentence)
        --kv-cache-dtype fp8: keys and values take one byte a number; 327,680 tokens, 2.50x
    """
    before = budget.max_concurrency if budget.fit.fits else 0.0
    changes = [change for why, settings in _candidates(budget) if (change := _try(budget, before, why, settings))]
    if not changes:
        for why, settings in _candidates(budget):
            if "max_model_len" in settings:
                continue
            longest = _longest_with(budget, settings)
            shorter = f"{why}, and the longest request that fits then"
            if longest and (change := _try(budget, before, shorter, {**settings, "max_model_len": longest})):
                changes.append(change)
        changes.sort(key=lambda change: -change.budget.max_model_len)
    else:
        changes.sort(key=lambda change: -change.budget.max_concurrency)
    return tuple(sorted(changes, key=lambda change: change.needs_more_gpus))


def _try(budget: Budget, before: float, why: str, settings: dict[str, Any]) -> Change | None:
    """Compute a change; nothing if it is not for this model, or not worth a line."""
    try:
        after = _again(budget, settings)
    except ValueError:  # a dtype, a number of GPUs or a quantization that this model does not take
        return None
    if not after.fit.fits:
        return None
    effect = after.max_concurrency / before if before else math.inf
    return Change(settings, why, after, effect) if effect >= LEAST_EFFECT else None


def _longest_with(budget: Budget, settings: dict[str, Any]) -> int:
    try:
        return min(largest_context(_again(budget, settings)), budget.max_model_len)
    except ValueError:
        return 0


def _candidates(budget: Budget) -> Iterator[tuple[str, dict[str, Any]]]:
    options = budget.asked
    # Where a request of full length fits, a shorter length changes the log's figure and lets nobody more in.
    if not budget.fit.fits and (longest := largest_context(budget)):
        yield "the longest request that fits", {"max_model_len": longest}
    if options.kv_cache_dtype == "auto" and not capability_without_fp8(budget.gpu):
        is_known = budget.gpu in GPUS or options.device == "cpu"
        condition = "" if is_known else ", on a GPU of compute capability 8.9 or newer (Ada, Hopper, Blackwell)"
        yield f"keys and values take one byte a number{condition}", {"kv_cache_dtype": "fp8"}
    has_states = any(isinstance(spec, MambaSpec) for group in budget.groups for spec in group.specs)
    if has_states and options.enable_prefix_caching:
        yield "no state is kept for others, so nobody finds a prompt", {"enable_prefix_caching": False}
    if options.device == "cpu" or options.kv_cache_memory_bytes is not None or options.num_gpu_blocks_override:
        return
    if options.quantization is None and not budget.config.get("quantization_config"):
        yield "weights take one byte a number", {"quantization": "fp8"}
        if not budget.fit.fits:
            yield "weights of a checkpoint in 4 bits", {"quantization": "awq"}
    if budget.gpu_memory_utilization < FULL_SHARE:
        yield "if nothing else needs the GPU", {"gpu_memory_utilization": FULL_SHARE}
    if budget.max_num_seqs > 128:
        yield "fewer rows of logits at the peak", {"max_num_seqs": 128}
    if budget.max_num_batched_tokens > 2048:
        yield "smaller steps: less memory at the peak and in flight", {"max_num_batched_tokens": 2048}
    gpus = 2 * options.tensor_parallel_size
    yield f"weights and heads on {gpus} GPUs", {"tensor_parallel_size": gpus}


def _again(budget: Budget, settings: dict[str, Any]) -> Budget:
    options = replace(budget.asked, **settings)
    if options.available_bytes is None or not {*settings} - LEAVE_MEMORY:
        return compute(options)
    if options.gpu is None:
        raise BudgetError("give gpu: without it nothing says how much a change of memory makes")
    was, becomes = (compute(replace(each, available_bytes=None)).available.likely for each in (budget.asked, options))
    shift = becomes - was
    given = [
        Estimate(size.low + shift, size.high + shift, size.likely + shift, False, size.source)
        for size in budget.asked.per_rank("available_bytes") or ()
    ]
    return compute(replace(options, available_bytes=tuple(given)))


def refusal(budget: Budget) -> str:
    """Say in a sentence by how much a request of full length does not fit, and what to change."""
    fit, name = budget.fit, budget.config["name"]
    if budget.available.likely <= 0 and budget.total is not None:
        taken = ", ".join(f"{part} {size.likely / GIB:.2f}" for part, size in budget.parts)
        share = budget.total.likely * budget.gpu_memory_utilization / GIB
        text = (
            f"{name} leaves no memory for a cache on {budget.gpu}: {taken} GiB are "
            f"{-budget.available.likely / GIB:.2f} GiB more than the {share:.2f} GiB that a share of "
            f"{budget.gpu_memory_utilization:g} gives it"
        )
    else:
        left = max(0, fit.available_bytes)
        text = (
            f"one request of {budget.max_model_len:,} tokens needs {fit.needed_bytes / GIB:.2f} GiB of cache, "
            f"{(fit.needed_bytes - left) / GIB:.2f} GiB more than the {left / GIB:.2f} GiB that are left for {name}"
        )
    changes = first_change(budget)
    if not changes:
        return f"{text}: {_more_hardware(budget.asked)}"
    shorter = [change for change in changes if change.settings.keys() == {"max_model_len"}]
    others = [change for change in changes if change.settings.keys() != {"max_model_len"}]
    tries = [f"{change.flag}, {change.why}" for change in shorter] + [change.sentence for change in others[:1]]
    return f"{text}: try {', or '.join(tries)}"


def _more_hardware(options: Options) -> str:
    try:
        found = smallest_gpu(options)
    except ValueError:
        return "no setting makes room, nor does a GPU of the table"
    count = found.asked.tensor_parallel_size
    which = found.gpu if count == 1 else f"--tensor-parallel-size {count} on {count} of {found.gpu}"
    return f"no setting makes room; the least hardware that does is {which}, with {found.max_concurrency:.2f}x"
