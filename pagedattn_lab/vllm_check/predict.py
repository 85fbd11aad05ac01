"""What a server should have room for, and do with a workload: by this book's budget, scheduler and manager."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagedattn_lab.bench.serving import Load
from pagedattn_lab.budget.compute import compute
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.result import Budget
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request
from pagedattn_lab.studies.scheduling import serve
from pagedattn_lab.vllm_check.server import SchedulerLimits, Server


def predict_capacity(
    server: Server,
    limits: SchedulerLimits,
    model: str | Path | Mapping[str, Any],
    *,
    dtype: str | None = None,
    available_bytes: int | str | None = None,
    tensor_parallel_size: int | None = None,
) -> tuple[Budget, bool]:
    """Compute a server's budget.

    Blocks follow from memory: from ``available_bytes``, else from what the server was told to take. If neither is
    known, blocks are taken from the server, and only what follows from them is predicted.

    Args:
        server: what it says of itself.
        limits: what its scheduler keeps to.
        model: its configuration: an id, a folder, a ``config.json``, or what such a file says.
        dtype: of the weights; by default what the server or else the configuration says.
        available_bytes: for keys and values, as in the server's log.
        tensor_parallel_size: GPUs that share each layer; by default what the server says, else 1.

    Returns:
        The budget, and whether its blocks are predicted.

    Raises:
        BudgetError, UnknownLayoutError: as for :func:`pagedattn_lab.budget.plan`.
    """
    memory = available_bytes if available_bytes is not None else server.kv_cache_memory_bytes
    is_known = memory is not None or server.num_gpu_blocks_override is not None
    options = Options(
        model,
        max_model_len=server.max_model_len,
        dtype=dtype or server.dtype or "auto",
        kv_cache_dtype=server.cache_dtype,
        tensor_parallel_size=tensor_parallel_size or server.tensor_parallel_size or 1,
        block_size=server.block_size,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        num_gpu_blocks_override=server.num_gpu_blocks_override if is_known else server.num_blocks,
        enable_prefix_caching=server.enable_prefix_caching,
        async_scheduling=limits.async_scheduling,
        device=server.device or "gpu",
        available_bytes=memory,
        **({} if server.version is None else {"vllm_version": server.version}),
    )
    return compute(options), is_known


def predict_replay(server: Server, limits: SchedulerLimits, load: Load, clients: int) -> dict[str, int]:
    """Serve a load from an empty cache like the server's, and count what it would count.

    Which tokens come out decides nothing here: outputs are as long as they are asked to be, and no prompt contains one.

    Args:
        server: its blocks.
        limits: what its scheduler keeps to.
        load: what is sent.
        clients: how many requests are sent at once; the next one arrives when one has ended.

    Returns:
        For each of :data:`~pagedattn_lab.vllm_check.client.COUNTERS`, how far it comes.

    Raises:
        ValueError: a request that does not fit.
    """
    manager = KVCacheManager(server.num_blocks, server.block_size, server.enable_prefix_caching)
    scheduler = Scheduler(
        manager,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        watermark=limits.watermark,
        long_prefill_token_threshold=limits.long_prefill_token_threshold or None,
    )
    requests = (
        Request(f"request {number}", prompt, max_tokens=output_len)
        for number, (prompt, output_len) in enumerate(zip(load.prompts, load.output_lens, strict=True), 1)
    )
    served = serve(scheduler, requests, clients=clients, through_server=True)
    return {
        "prefix_cache_queries": manager.stats.queries,
        "prefix_cache_hits": manager.stats.hits,
        "num_preemptions": served.num_preemptions,
        "prompt_tokens": load.num_prompt_tokens,
        "generation_tokens": load.num_output_tokens,
    }
