"""From a model, a GPU and settings to blocks, tokens and concurrency, step by step as vLLM goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pagedattn_lab.budget import memory
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.layers import layer_specs, pipeline_ranks
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.result import Budget, Rank
from pagedattn_lab.budget.versions import Version, find_version
from pagedattn_lab.budget.weights import weight_bytes
from pagedattn_lab.kv_cache_groups import KVCacheGroup, bytes_per_block, capacity, kv_cache_groups, project_groups
from pagedattn_lab.kv_cache_specs import MambaSpec, RequestLimits

Parts = tuple[tuple[str, Estimate], ...]


def compute(options: Options) -> Budget:
    """Compute a budget, whether or not it holds a request of full length.

    Raises:
        BudgetError: model, GPU or version are unknown, or there is no layout for these settings.
    """
    version = find_version(options.vllm_version)
    config = load_config(options.model)
    gpu, total = (None, None) if options.gpu is None else memory.gpu_memory(options.gpu)
    layers = layer_specs(
        config,
        block_size=options.block_size,
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        tensor_parallel_size=options.tensor_parallel_size,
        enable_prefix_caching=options.enable_prefix_caching,
        num_speculative_tokens=options.num_speculative_tokens,
        drafter=options.drafter,
        block_size_multiple=32 if options.device == "cpu" else 16,
    )
    groups = kv_cache_groups(layers.specs)
    if not groups:
        raise BudgetError(f"{_name(config)} has no layer that keeps a cache: there are no blocks to count")
    ranks = pipeline_ranks(layers.specs, options.pipeline_parallel_size)
    groups_of_ranks = [tuple(project_groups(groups, rank)) for rank in ranks]
    ...
