"""What one may say of a server: the arguments of a budget, named as vLLM names its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate

Size = int | str | Estimate
"""A number of bytes, a size as it is printed (``"58.11GiB"``), or an estimate."""


@dataclass(frozen=True)
class Options:
    """A model, a GPU, and a server's settings. What is ``None`` is left to vLLM's defaults.

    Attributes:
        model: an id, a folder, a ``config.json``, or what such a file says.
        gpu: a name of :data:`pagedattn_lab.hardware.GPUS`, or the memory that its driver reports.
        max_model_len: most tokens in a request, prompt and output together.
        dtype: of weights and activations.
        kv_cache_dtype: of keys and values; ``"auto"`` means as the model.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: GPUs, or groups of them, that have different layers.
        block_size: tokens per block.
        max_num_batched_tokens: most tokens in a step.
        max_num_seqs: most sequences in a step.
        gpu_memory_utilization: the share of the GPU that the server may use.
        kv_cache_memory_bytes: memory for the cache; vLLM then measures nothing.
        num_gpu_blocks_override: blocks of the cache, whatever memory there is.
        enable_prefix_caching: on unless said; hybrid models keep one more state with it.
        async_scheduling: whether the next step is scheduled while one runs.
        drafter: the configuration of a draft model, as ``model``.
        num_speculative_tokens: tokens that it guesses at a time.
        quantization: of the weights, unless the configuration says so.
        vllm_version: whose formulas, defaults and words to use.
        device: ``"gpu"`` or ``"cpu"``.
        available_bytes: what vLLM says is available for the cache; one for each rank of a pipeline, or one for all.
        weights_bytes: what vLLM says that loading took, likewise.
        peak_activation_bytes: what it says a step takes at its peak.
        non_torch_bytes: what it says is taken outside PyTorch.
        cuda_graph_bytes: what it says that CUDA graphs will take.
        usage: ``"serve"`` or ``"offline"``, which have other defaults.
    """

    model: str | Path | Mapping[str, Any]
    gpu: str | int | None = None
    max_model_len: int | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    block_size: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: Size | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool = True
    async_scheduling: bool | None = None
    drafter: str | Path | Mapping[str, Any] | None = None
    num_speculative_tokens: int = 0
    quantization: str | None = None
    vllm_version: str = "0.33"
    device: Literal["gpu", "cpu"] = "gpu"
    available_bytes: Size | Sequence[Size] | None = None
    weights_bytes: Size | Sequence[Size] | None = None
    peak_activation_bytes: Size | Sequence[Size] | None = None
    non_torch_bytes: Size | Sequence[Size] | None = None
    cuda_graph_bytes: Size | Sequence[Size] | None = None
    usage: Literal["serve", "offline"] = "serve"

    def __post_init__(self) -> None:
        """Refuse counts below 1, shares that are none, and values of another type than what is meant."""
        for name in (
            "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "block_size", "max_num_batched_tokens",
            "max_num_seqs", "num_gpu_blocks_override",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise BudgetError(f"{name} is {value!r}: give a whole number of at least 1")
        share = self.gpu_memory_utilization
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float)):
            raise BudgetError(f"gpu_memory_utilization is {share!r}: give a number above 0, at most 1")
        if share is not None and not 0 < share <= 1:
            meant = f"; did you mean {share / 100:g}?" if 10 <= share <= 100 else ""
            raise BudgetError(f"gpu_memory_utilization is {share!r}: give a share above 0, at most 1{meant}")
        for name, known in (("device", ("gpu", "cpu")), ("usage", ("serve", "offline"))):
            if getattr(self, name) not in known:
                raise BudgetError(f"{name} is {getattr(self, name)!r}: use {' or '.join(map(repr, known))}")
        guessed = self.num_speculative_tokens
        if isinstance(guessed, bool) or not isinstance(guessed, int) or guessed < 0:
            raise BudgetError(f"num_speculative_tokens is {guessed!r}: give a whole number, 0 or more")

    def per_rank(self, name: str) -> list[Estimate] | None:
        """Read a size that may be given once for all ranks of a pipeline or once for each.

        Raises:
            BudgetError: no size, or a number of sizes that is not the number of ranks.
        """
        value = getattr(self, name)
        if value is None:
            return None
        ranks = self.pipeline_parallel_size
        sizes = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * ranks
        if len(sizes) != ranks:
            raise BudgetError(
                f"{name} has {len(sizes)} sizes for {ranks} ranks of the pipeline: give one for each, or one"
            )
        return [_read(name, size) for size in sizes]


def _read(name: str, size: Size) -> Estimate:
    if isinstance(size, Estimate):
        return size
    if isinstance(size, str):
        try:
            return Estimate.printed(size, "given")
        except ValueError as error:
            raise BudgetError(f"{name}: {error}") from None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise BudgetError(f"{name} is {size!r}: give a number of bytes, or a size such as '58.11GiB'")
    return Estimate.known(size, "given")
