"""A budget: what a server's memory becomes, which part of that is exact, and what vLLM would print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.serve_command import serve_command
from pagedattn_lab.budget.versions import VLLMVersion, padding_lines
from pagedattn_lab.kv_cache_groups import FitCheck, KVCacheCapacity, KVCacheGroup, bytes_per_block
from pagedattn_lab.kv_cache_specs import MambaSpec, RequestLimits


@dataclass(frozen=True)
class Rank:
    """One GPU of those that serve a model together.

    Attributes:
        groups: its layers, in the groups of the whole model.
        parts: what takes memory beside the cache, by name; empty if only what is left was given.
        available: what is left for the cache.
    """

    groups: tuple[KVCacheGroup, ...]
    parts: tuple[tuple[str, Estimate], ...]
    available: Estimate

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block on this GPU, over all its layers."""
        return bytes_per_block(self.groups)


@dataclass(frozen=True)
class Budget:
    """What :func:`~pagedattn_lab.budget.plan.plan` computes.

    Figures are those of the *binding* rank, the one with memory for the fewest blocks: every rank gets as many.
    A figure without ``_range`` belongs to ``likely`` of the memory that is available. If that is an estimate, the
    range says what the figure becomes with the least and the most of it.

    Attributes:
        asked: what was asked for, so that it can be asked again with another value.
        model: its name.
        gpu: its name or size, or ``None``.
        version: of vLLM.
        config: the model's configuration.
        dtype: of the model.
        kv_cache_dtype: of keys and values.
        block_size: tokens per block, as resolved; of a hybrid model it is aligned to the states.
        max_num_batched_tokens: most tokens in a step.
        max_num_seqs: most sequences in a step.
        gpu_memory_utilization: the share of the GPU that the server may use.
        total: memory of the GPU, or ``None``.
        groups: layers of the whole model that share a block table.
        ranks: the GPUs of one pipeline, first to last; those that share layers are alike.
        limits: of one request.
        capacity: with what is likely to be available.
        capacity_low: with the least.
        capacity_high: with the most.
        notes: what was derived, a sentence each.
    """

    asked: Options
    model: str
    gpu: str | None
    version: VLLMVersion
    config: Mapping[str, Any]
    dtype: str
    kv_cache_dtype: str
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    gpu_memory_utilization: float
    total: Estimate | None
    groups: tuple[KVCacheGroup, ...]
    ranks: tuple[Rank, ...]
    limits: RequestLimits
    capacity: KVCacheCapacity
    capacity_low: KVCacheCapacity
    capacity_high: KVCacheCapacity
    notes: tuple[str, ...] = ()

    @property
    def binding(self) -> Rank:
        """The rank with memory for the fewest blocks."""
        return min(self.ranks, key=lambda rank: rank.available.likely // rank.bytes_per_block)

    @property
    def parts(self) -> tuple[tuple[str, Estimate], ...]:
        """What takes memory on the binding rank beside the cache, by name."""
        return self.binding.parts

    @property
    def available(self) -> Estimate:
        """Memory that is left for the cache on the binding rank."""
        return self.binding.available

    @property
    def available_bytes(self) -> int:
        """The likely value of that."""
        return self.available.likely

    @property
    def weights_bytes(self) -> int | None:
        """Bytes of weights on the binding rank; ``None`` if they were not needed, since what is left was given."""
        return next((part.likely for name, part in self.parts if name == "weights"), None)

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request."""
        return self.limits.max_model_len

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token leaves behind on a GPU, in all layers that keep every token for a while.

        A window drops them again later. A state takes the same however many tokens there are, and adds nothing here.
        """
        specs = [spec for group in self.binding.groups for spec in group.specs if not isinstance(spec, MambaSpec)]
        return round(sum(spec.page_size_bytes / spec.block_size for spec in specs))

    @property
    def bytes_per_block(self) -> int:
        """Bytes of a block on the binding rank: of the largest group, to which the others are padded."""
        return self.binding.bytes_per_block

    @property
    def num_blocks(self) -> int:
        """Blocks on each GPU, the null block among them."""
        return self.capacity.num_blocks

    @property
    def num_blocks_range(self) -> tuple[int, int]:
        """Fewest and most blocks that the estimates allow."""
        return self.capacity_low.num_blocks, self.capacity_high.num_blocks

    @property
    def blocks_per_request(self) -> int:
        """Blocks that a request of ``max_model_len`` tokens holds, over all groups."""
        return self.capacity.blocks_per_request

    @property
    def kv_tokens(self) -> int:
        """What vLLM prints as the size of the cache, in tokens."""
        return self.capacity.kv_tokens

    @property
    def kv_tokens_range(self) -> tuple[int, int]:
        """Fewest and most tokens that the estimates allow."""
        return self.capacity_low.kv_tokens, self.capacity_high.kv_tokens

    @property
    def max_concurrency(self) -> float:
        """How many requests of ``max_model_len`` tokens fit at once."""
        return self.capacity.max_concurrency

    @property
    def max_concurrency_range(self) -> tuple[float, float]:
        """Fewest and most of them that the estimates allow."""
        return self.capacity_low.max_concurrency, self.capacity_high.max_concurrency

    @property
    def exact(self) -> bool:
        """Whether the number of blocks follows from what was given, with nothing left open."""
        return self.capacity_low.num_blocks == self.capacity_high.num_blocks

    @property
    def fit(self) -> FitCheck:
        """Whether a request of full length fits, on the rank where it is tightest."""
        checks = [self.version.fit_check(rank.groups, rank.available.likely, self.limits) for rank in self.ranks]
        return min(checks, key=lambda check: check.available_bytes - check.needed_bytes)

    def log_lines(self) -> list[str]:
        """What vLLM prints of this at start-up, in its version's words; of a pipeline the first rank's memory."""
        first = self.ranks[0]
        return [
            *self.version.available_lines(first.available.likely),
            *padding_lines(self.groups),
            *self.version.capacity_lines(self.capacity, self.limits, device=self.asked.device),
        ]

    def serve_command(self) -> str:
        """The line that starts such a server."""
        return serve_command(self.asked, self.model, self.config.get("quantization_config"))

    def to_json(self) -> dict[str, Any]:
        """Every figure, in types that JSON has."""
        return {
            "model": self.model,
            "gpu": self.gpu,
            "vllm_version": str(self.version),
            "bytes_per_token": self.bytes_per_token,
            "bytes_per_block": self.bytes_per_block,
            "num_blocks": self.num_blocks,
            "blocks_per_request": self.blocks_per_request,
            "kv_tokens": self.kv_tokens,
            "max_concurrency": self.max_concurrency,
            "weights_bytes": self.weights_bytes,
            "available_bytes": self.available_bytes,
            "exact": self.exact,
            "num_blocks_range": list(self.num_blocks_range),
            "kv_tokens_range": list(self.kv_tokens_range),
            "max_concurrency_range": list(self.max_concurrency_range),
            "dtype": self.dtype,
            "kv_cache_dtype": self.kv_cache_dtype,
            "block_size": self.block_size,
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "max_in_flight_tokens": self.limits.max_in_flight_tokens,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "fits": self.fit.fits,
            "groups": [
                {
                    "kind": group.spec.kind,
                    "layers": len(group.layers),
                    "padding_layers": group.padding_layers,
                    "block_size": group.block_size,
                    "blocks_per_request": group.max_blocks_per_request(self.limits),
                }
                for group in self.groups
            ],
            "parts": {name: _as_json(part) for name, part in (*self.parts, ("available", self.available))},
            "notes": list(self.notes),
        }


def _as_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "low": estimate.low,
        "likely": estimate.likely,
        "high": estimate.high,
        "exact": estimate.exact,
        "source": estimate.source,
    }
