"""What the lines after the cache is made mean, and those that say why it is not: errors, sums, a server at work."""

from __future__ import annotations

from typing import Any

from pagedattn_lab.vllm_log.memory import gib
from pagedattn_lab.vllm_log.settings import Explainer, Sentences
from pagedattn_lab.vllm_log.start_up_log import StartUpLog


def _too_small(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    length = figures["max_model_len"]
    if "needed_bytes" not in figures:
        return (
            f"The cache holds {figures['kv_tokens']:,} tokens, and a request may have {length:,}: no start.",
            "From the blocks above.",
            f"Set --max-model-len to {figures['kv_tokens']:,} or less, or make more room.",
        )
    needed, available = figures["needed_bytes"], figures["available_bytes"]
    change = f"Make {gib(needed - available)} more room (--gpu-memory-utilization, quantised weights, an 8-bit cache)"
    if "estimated_max_model_len" in figures:
        change = f"Set --max-model-len to {figures['estimated_max_model_len']:,} or less. Or: m{change[1:]}"
    return (
        f"One request of {length:,} tokens needs {gib(needed)}, and {gib(available)} are left: no start.",
        "The blocks of the longest request times the bytes of a block.",
        change + ".",
    )


def _nothing_left(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "Weights and activations fill the share of the card: no room for a single block, no start.",
        "From what was available above, which is not above zero.",
        "Quantise the weights, use more ranks, raise --gpu-memory-utilization, or lower --max-num-batched-tokens and "
        "--max-num-seqs, which set the peak of activations.",
    )


def _card_in_use(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    share = max(0.0, figures["free_bytes"] / figures["total_bytes"]) if figures["total_bytes"] else 0.0
    return (
        f"The card has {gib(figures['free_bytes'])} free, and {gib(figures['requested_bytes'])} were asked for: no "
        "start.",
        "Something else uses the card: another server, a desktop, a process that was not ended.",
        f"End it (nvidia-smi shows it), or set --gpu-memory-utilization below {int(share * 100) / 100:.2f}: it is a "
        "share of the whole card, not of what is free.",
    )


def _out_of_memory(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"An allocation of {figures['tried']:g} {figures['tried_unit']} failed.",
        "While weights were loaded if no line above says what is available; while graphs were captured, or later, if "
        "one does.",
        "Lower --gpu-memory-utilization if the cache was already made; else quantise the weights or use more ranks.",
    )


def _sum_of_memory(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    total, free = figures["total_bytes"], figures["free_bytes"]
    spare = free - figures["requested_bytes"]
    said = f"Of {gib(total)}, {gib(free)} were free at the start and {gib(figures['requested_bytes'])} were asked for"
    said += f"; {gib(max(0, spare))} of the free memory are not used."
    change = "Raise --gpu-memory-utilization if nothing else needs the rest; some hundred MiB are needed beside it."
    if figures.get("consumed") == "consumed memory" and "suggested_bytes" in figures:
        change += (
            " The --kv-cache-memory that the line offers can be below what is in use: where the graphs' estimate is "
            "counted, it is part of the peak here, and the captured graphs are taken off once more."
        )
    return said, "From the driver, from --gpu-memory-utilization, and from what was measured at the start.", change


def _graphs_captured(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    if "cuda_graph_bytes" in figures:
        over = figures["cuda_graph_bytes"] - figures["captured_bytes"]
        change = f"{gib(over)} lie idle: raise --gpu-memory-utilization by that share of the card to use them."
        return (
            f"CUDA graphs took {gib(figures['captured_bytes'])}; {gib(figures['cuda_graph_bytes'])} were set aside.",
            "From capturing them all.",
            change if over > 0 else "",
        )
    less = "; less than nothing, since other memory was given back meanwhile" if figures["captured_bytes"] < 0 else ""
    return (
        f"CUDA graphs took {gib(figures['captured_bytes'])}, captured in {figures['seconds']:g} s{less}.",
        "From the number of batch sizes that are captured.",
        "",
    )


def _ready(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return f"The engine stands, {figures['seconds']:g} s after the weights were loaded.", "From the lines above.", ""


def _running(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    usage, waiting = figures["usage_percent"], figures["waiting"]
    said = f"{figures['running']:,} requests run and {waiting:,} wait; those that run hold {usage:g} % of the blocks"
    rate = figures.get("hit_rate_percent")
    if rate is not None:
        said += f"; {rate:g} % of the last prompts' tokens were found in the cache"
    change = ""
    if waiting and usage > 90:
        change = "The cache is full: shorter requests, more memory or an 8-bit cache let more run at once."
    elif waiting:
        change = "Requests wait though blocks are free: raise --max-num-seqs or --max-num-batched-tokens."
    if rate == 0 and (log.block_size or 0) > 256:
        change += f"{change and ' '}No hits: a shared prompt must fill a block of {log.block_size:,} tokens."
    return (
        said + ".",
        "From the blocks that running requests hold; cached blocks that nobody holds count as free.",
        change,
    )


def _preempted(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "A running request had to give up its blocks; it will be "
        + ("swapped out and in again." if figures["mode"] == "SWAP" else "computed again from its beginning."),
        "The cache was full while every running request needed another block.",
        "Some of it is normal at full load. If throughput suffers, lower --max-num-seqs or make more room.",
    )


EXPLAINERS: dict[str, Explainer] = {
    "too small": _too_small,
    "nothing left": _nothing_left,
    "card in use": _card_in_use,
    "out of memory": _out_of_memory,
    "sum of memory": _sum_of_memory,
    "graphs captured": _graphs_captured,
    "ready": _ready,
    "running": _running,
    "preempted": _preempted,
}
"""For each other kind of line in :mod:`~pagedattn_lab.vllm_log.words`: what says its meaning."""
