"""What a server should do with a workload, by this book's scheduler and manager, without a model."""

from __future__ import annotations

from pagedattn_lab.bench.serving import Load
from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request
from pagedattn_lab.studies.scheduling import serve
from pagedattn_lab.vllm_check.server import SchedulerLimits, Server


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
