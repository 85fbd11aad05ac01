"""From a model, a GPU and settings to blocks, tokens and concurrency, step by step as vLLM goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget import memory, versions
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.layers import layer_specs, pipeline_ranks
from pagedattn_lab.budget.models import load_config
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.result import Budget, Rank
from pagedattn_lab.budget.weights import weight_bytes
from pagedattn_lab.kv_cache_groups import KVCacheGroup, bytes_per_block, capacity, kv_cache_groups, rank_groups
from pagedattn_lab.kv_cache_specs import RequestLimits


def compute(options: Options) -> Budget:
    """Compute a budget, whether or not a request fits: :attr:`Budget.shortage` says.

    Raises:
        BudgetError: the model, the GPU or the version is unknown, or there is no layout for these settings.
    """
    version = versions.version(options.vllm_version)
    config = load_config(options.model)
    name, total = (None, None) if options.gpu is None else memory.gpu_memory(options.gpu)
    batch = versions.batch_defaults(version, None if total is None else total.likely, name, options.usage)
    ...
