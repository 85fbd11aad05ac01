"""What the lines about memory mean: weights, graphs, what is left, blocks, tokens, concurrency."""

from __future__ import annotations

from typing import Any

from pagedattn_lab.vllm_log.settings import Explainer, Sentences
from pagedattn_lab.vllm_log.start_up_log import StartUpLog
from pagedattn_lab.vllm_log.words import GIB

ROUNDING = GIB // 200
"""A size in GiB to two places may be this many bytes off."""


def gib(num_bytes: int) -> str:
    """Write a size as vLLM does, to two places.

    Example:
        >>> gib(7 * 2**29), gib(-(2**30))
        ('3.5 GiB', '-1.0 GiB')
    """
    return f"{round(num_bytes / GIB, 2)} GiB"


def _weights(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"The weights take {gib(figures['weights_bytes'])} on this rank.",
        "From the number of parameters, their dtype or quantisation, and how many ranks share them.",
        "Use a quantised model, or more ranks (--tensor-parallel-size), to leave more to the cache.",
    )


def _graph_estimate(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"CUDA graphs will take about {gib(figures['cuda_graph_bytes'])}.",
        "From capturing the largest few and reckoning for the others.",
        "Lower --max-num-seqs or --max-cudagraph-capture-size for fewer graphs; --enforce-eager has none, at the cost "
        "of speed.",
    )


def _graph_estimate_counted(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    share = figures["gpu_memory_utilization"] - figures["without_graphs"]
    return (
        f"The graphs' memory is taken off what is left for the cache: {share:.2%} of the card.",
        "From the estimate over the card's memory.",
        f"Raise --gpu-memory-utilization to {figures['as_before']:g} to have the cache that versions before 0.21 made, "
        "if the card has as much free.",
    )


def _graph_estimate_left_out(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "The graphs' memory is not taken off what is left for the cache: it must fit into what the utilization leaves.",
        "From the version (before 0.21), or from VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0.",
        "If memory runs out while graphs are captured, lower --gpu-memory-utilization.",
    )


def _profile_of_v0(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    if "weights_bytes" not in figures:
        return (
            f"The card has {gib(figures['total_bytes'])}; the server may use a share of "
            f"{figures['gpu_memory_utilization']:g} of them.",
            "From the driver, and from --gpu-memory-utilization.",
            "Raise --gpu-memory-utilization if nothing else uses the card.",
        )
    return (
        f"{gib(figures['available_bytes'])} are left for keys and values.",
        f"The share above, less {gib(figures['weights_bytes'])} of weights, {gib(figures['non_torch_bytes'])} outside "
        f"of torch and {gib(figures['peak_activation_bytes'])} at the peak of a profiling run.",
        "The peak gets lower with --max-num-batched-tokens and --max-num-seqs. Other programs on the card count too.",
    )


def _available(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    said = f"{gib(figures['available_bytes'])} are left for keys and values"
    if figures.get("how") in ("Auto", "Explicitly"):
        return (
            said + ", in the memory of the machine.",
            "From VLLM_CPU_KVCACHE_SPACE or --kv-cache-memory-bytes."
            if figures["how"] == "Explicitly"
            else "A share of the machine's memory (--gpu-memory-utilization, despite its name), less what the process "
            "has.",
            "Set VLLM_CPU_KVCACHE_SPACE, in GiB.",
        )
    if figures.get("how"):
        return (
            said + ", as was asked for; nothing was measured.",
            "From --kv-cache-memory-bytes.",
            "If memory runs out later, lower it: --gpu-memory-utilization has no say here.",
        )
    change = "Raise --gpu-memory-utilization, quantise the weights, or lower --max-num-batched-tokens."
    if figures["available_bytes"] <= 0:
        said, change = (
            "Nothing is left for keys and values: weights and activations need more than the share",
            ("Quantise the weights, use more ranks, or raise --gpu-memory-utilization. " + change),
        )
    if log.available_by_rank[1:]:
        said += f". The least of the ranks counts: {gib(min(size for _, size in log.available_by_rank))}"
    return said + ".", _sum(log), change


def _sum(log: StartUpLog) -> str:
    """How what is available comes from the other figures of the log, as far as it names them."""
    requested = log.requested_bytes
    if requested is None and log.total_bytes and log.gpu_memory_utilization:
        requested = round(log.total_bytes * log.gpu_memory_utilization)
    least = "The card's memory times --gpu-memory-utilization, less weights, activations at their peak, and CUDA graphs"
    if requested is None:
        return least + "; the log does not say how large the card is."
    parts = [
        (size, name)
        for size, name in (
            (log.consumed_bytes or log.weights_bytes, "weights and the like" if log.consumed_bytes else "weights"),
            (log.non_torch_bytes, "outside of torch"),
            (log.peak_activation_bytes, "peak activation"),
        )
        if size is not None
    ]
    if log.available_bytes is None or log.peak_activation_bytes is None:
        return least + f"; the share is {gib(requested)}."
    left = requested - sum(size for size, _ in parts)
    listed = ", ".join(f"{gib(size)} {name}" for size, name in parts)
    rounding = ROUNDING * (len(parts) + 2)
    said = f"{gib(requested)} asked for, less {listed}: {gib(left)}"
    if abs(left - log.available_bytes) <= rounding:
        return said + "."
    graphs = log.cuda_graph_bytes or 0
    if graphs and abs(left - graphs - log.available_bytes) <= rounding:
        return said + f", less {gib(graphs)} for CUDA graphs: {gib(left - graphs)}."
    return said + f"; the log says {gib(log.available_bytes)}, {gib(left - log.available_bytes)} less."


def _layout(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"Blocks lie in memory as {figures['kv_cache_layout'].rstrip('.')}: which dimension changes fastest.",
        "From the backends, and from KV connectors, which may want another.",
        "",
    )


def _padding(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"{figures['padding_layers']:,} layers that do not exist are charged, so that all groups of layers have as "
        f"many: up to {figures['padding_waste_percent']:g} % of one kind's memory is wasted.",
        "Layers of one kind are grouped by the number of the scarcest kind, or of the most frequent if that is less "
        "than half as many again.",
        "A draft model can change the scarcest kind: compare this line with and without it.",
    )


def _windows_charged_in_full(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "Layers with a sliding window or chunks keep keys and values of the whole request, as full attention does.",
        "From --disable-hybrid-kv-cache-manager, a KV connector that needs it, chunked attention, or pages of sizes "
        "that do not go together.",
        "If a KV connector is the cause and you can do without, leave --kv-transfer-config away: more requests fit.",
    )


def _override(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"There will be {figures['num_blocks']:,} blocks, instead of the {figures['profiled_blocks']:,} that fit.",
        "From --num-gpu-blocks-override.",
        "Leave it away outside of tests.",
    )


def _auto_fit(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    length = figures["max_model_len"]
    if "original_max_model_len" not in figures:
        return f"All {length:,} tokens that the model allows fit into the cache.", "From --max-model-len auto.", ""
    return (
        f"A request may have {length:,} tokens, not the model's {figures['original_max_model_len']:,}: so many fit "
        f"into the {gib(figures['limiting_bytes'])} of the rank that has the least.",
        "From --max-model-len auto.",
        "One such request fills the cache: expect others to wait. Raise --gpu-memory-utilization or use an 8-bit "
        "cache for more.",
    )


def _capacity(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    tokens, length = figures["kv_tokens"], figures.get("max_model_len", log.max_model_len)
    concurrency = figures.get("max_concurrency", log.max_concurrency)
    said = f"The cache holds {tokens:,} tokens"
    if length and concurrency:
        said += f", or {concurrency:g} requests at their longest of {length:,}"
    source = "From what is available over the bytes of a block, for the rank that has the fewest."
    if log.available_bytes and log.available_bytes > 0 and tokens > 0:
        source += (
            f" {gib(log.available_bytes)} over {tokens:,} are about {log.available_bytes / tokens:,.0f} bytes a token"
        )
        source += "" if _is_rate(log, tokens) else "; no rate here, since some layers keep the same whatever the length"
        source += "."
    if length and concurrency and abs(tokens / length - concurrency) > 0.006 + 0.001 * concurrency:
        source += (
            f" {tokens:,} over {length:,} would be {tokens / length:.2f}, not {concurrency:g}: with several groups of "
            "layers, versions before 0.20 or so divided the blocks by the groups here; the concurrency is right."
        )
    return said + ".", source, _more_tokens(log)


def _is_rate(log: StartUpLog, tokens: int) -> bool:
    """Whether every layer keeps the same for every token: then tokens are whole blocks, and no group was padded."""
    size = log.block_size or 16
    return tokens % size == 0 and not log.padding_layers and size <= 256


def _more_tokens(log: StartUpLog) -> str:
    if log.device == "cpu":
        return "For more: VLLM_CPU_KVCACHE_SPACE, as long as the machine has the memory."
    fp8 = ", --kv-cache-dtype fp8 (compute capability 8.9 or newer)"
    dtype = fp8 if (log.kv_cache_dtype or "auto") in ("auto", "bfloat16", "float16") else ""
    return f"For more: --gpu-memory-utilization, quantised weights, more ranks{dtype}."


def _concurrency(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    number = figures["max_concurrency"]
    return (
        f"{number:g} requests of {figures['max_model_len']:,} tokens fit at once, the worst case: more of shorter ones."
        if number >= 1
        else f"Not even one request of {figures['max_model_len']:,} tokens fits.",
        "The blocks over the blocks of one such request.",
        "Nothing, if requests are shorter: more of them fit already, and budget --workload computes how many. "
        + _more_tokens(log)
        if number >= 1
        else "Lower --max-model-len, or make more room: " + _more_tokens(log)[len("For more: ") :],
    )


def _blocks(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    size = log.block_size or 16
    number = figures["num_blocks"]
    known = "" if log.block_size else ", if a block has 16"
    return (
        f"The cache has {number:,} blocks, {number * size:,} tokens{known}.",
        "From what is left for keys and values over the bytes of a block; one block is never handed out in V1.",
        _more_tokens(log),
    )


EXPLAINERS: dict[str, Explainer] = {
    "weights": _weights,
    "graph estimate": _graph_estimate,
    "graph estimate counted": _graph_estimate_counted,
    "graph estimate left out": _graph_estimate_left_out,
    "profile of V0": _profile_of_v0,
    "available": _available,
    "layout": _layout,
    "padding": _padding,
    "windows charged in full": _windows_charged_in_full,
    "override": _override,
    "auto-fit": _auto_fit,
    "capacity": _capacity,
    "concurrency": _concurrency,
    "blocks": _blocks,
}
"""For each kind of line in :mod:`~pagedattn_lab.vllm_log.words` that is about memory: what says its meaning."""
