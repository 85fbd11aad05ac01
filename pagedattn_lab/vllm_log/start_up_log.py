"""What a start-up log says: the figures in it, and its lines with what they mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogLine:
    """A line that says something of memory for keys and values.

    Args:
        number: which line of the text, from 1 on.
        text: the line without what stands before the message: colours, ranks, time, file.
        what: the kind of line, a key of :data:`~pagedattn_lab.vllm_log.words.KINDS`.
        meaning: what it says.
        follows_from: what its figures come from.
        change: what to change if it is not as wished; empty where nothing is.
        rank: which process said it, such as ``"Worker_TP0"``; empty if the line does not name one.
    """

    number: int
    text: str
    what: str
    meaning: str
    follows_from: str
    change: str
    rank: str = ""


@dataclass(frozen=True)
class StartUpLog:
    """The figures of a log; each is None if the log lacks it. Sizes are in bytes, rounded where the log rounds.

    Of several ranks that print what is available, ``available_bytes`` is the least: it bounds all. Everything is of the
    last start in the text; ``num_starts`` counts them.
    """

    version: str | None = None
    model: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    num_speculative_tokens: int | None = None
    speculative_method: str | None = None
    enable_prefix_caching: bool | None = None
    enforce_eager: bool | None = None
    async_scheduling: str | None = None
    device: str | None = None
    attention_backend: str | None = None
    block_size: int | None = None
    mamba_cache_mode: str | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    requested_bytes: int | None = None
    weights_bytes: int | None = None
    consumed_bytes: int | None = None
    non_torch_bytes: int | None = None
    peak_activation_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    captured_bytes: int | None = None
    available_bytes: int | None = None
    available_by_rank: tuple[tuple[str, int], ...] = ()
    padding_layers: int | None = None
    padding_waste_percent: float | None = None
    windows_charged_in_full: bool | None = None
    num_blocks: int | None = None
    kv_tokens: int | None = None
    max_concurrency: float | None = None
    needed_bytes: int | None = None
    estimated_max_model_len: int | None = None
    original_max_model_len: int | None = None
    failed: str | None = None
    num_starts: int = 0
    lines: tuple[LogLine, ...] = ()
