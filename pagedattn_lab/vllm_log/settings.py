"""What the lines about settings mean: model, batch, backend, sizes of blocks, dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagedattn_lab.vllm_log.start_up_log import StartUpLog

Sentences = tuple[str, str, str]
"""What a line means, what it follows from, what to change."""

Explainer = Callable[[dict[str, Any], StartUpLog], Sentences]


def _version(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    if "version" not in figures:
        return f"The server answers for {figures['model']}.", "From --model.", ""
    return (
        f"This is vLLM {figures['version']}. What the lines below are computed with differs between versions.",
        "From the package that is installed.",
        "",
    )


def _configuration(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    said = [
        f"{name} {figures[key]}"
        for key, name in (
            ("dtype", "weights in"),
            ("kv_cache_dtype", "KV cache in"),
            ("tensor_parallel_size", "tensor parallel"),
            ("pipeline_parallel_size", "pipeline parallel"),
            ("num_speculative_tokens", "speculative tokens"),
            ("quantization", "quantised by"),
        )
        if key in figures
    ]
    return (
        "The settings as the engine took them, defaults filled in" + (": " + ", ".join(said) if said else "") + ".",
        "From the options, then the model's configuration; auto for the KV cache means the dtype of the weights.",
        "",
    )


def _arguments(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "The options that were given; all others have their defaults.",
        "From the command line.",
        "Check here first that an option arrived as it was meant.",
    )


def _architecture(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"{figures['architecture']} decides what each layer keeps: all keys and values, a window of them, a latent, or "
        "a state of fixed size.",
        "From architectures in the model's config.json.",
        "",
    )


def _model_length(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"A request may have {figures['max_model_len']:,} tokens, prompt and output together.",
        "From --max-model-len, or the most that the model's configuration allows.",
        "Lower --max-model-len where vLLM does not start, since one such request does not fit into the cache. "
        "Otherwise it lets nobody more in: a request takes blocks for the tokens that it has.",
    )


def _batch(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"A step computes at most {figures['max_num_batched_tokens']:,} tokens; a longer prompt takes several steps.",
        "From --max-num-batched-tokens, or a default by the card's memory and by how vLLM is run.",
        "Lower it to leave more memory to the cache: the profiling run computes this many tokens, and a sliding window "
        "is charged with them. Raise it for shorter waits on long prompts.",
    )


def _requests_at_once(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"At most {figures['max_num_seqs']:,} requests run at once, whatever the cache would hold.",
        "From --max-num-seqs, or a default by the card's memory.",
        "Lower it if memory runs out while CUDA graphs are captured; raise it if requests wait while blocks are free.",
    )


def _async_scheduling(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"The next step is scheduled while this one runs: {figures['async_scheduling'].rstrip('.')}.",
        "From --async-scheduling; on by default where the backend can.",
        "From 0.26 on, two batches in flight are charged to every sliding window. Without it, one is."
        if figures["async_scheduling"].startswith("enabled")
        else "",
    )


def _model_runner(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "The second model runner is at work.",
        "From the version, and from VLLM_USE_V2_MODEL_RUNNER.",
        "With pipeline parallelism it keeps one batch more in flight than there are ranks, which windows are charged "
        "with.",
    )


def _backend(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"Attention is computed by {figures['attention_backend']}, which decides the block sizes that are possible.",
        "From the card, the dtype of the cache, the size of the heads and --block-size; or from --attention-backend.",
        "",
    )


def _backend_ruled_out(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"A block of {figures['block_size']:,} tokens rules out {figures['ruled_out'].strip()}, which would be faster.",
        "From --block-size.",
        "Leave --block-size away unless you need it.",
    )


def _block_size(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"A block has {figures['block_size']:,} tokens, as {figures['for_backend']} wants it.",
        "16 where every backend of the model can; else the least common size of all of them.",
        "A request leaves half a block empty on average, and only whole blocks are found again by another request.",
    )


def _block_of_a_hybrid(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    size = figures["block_size"]
    return (
        f"The model mixes attention with recurrent layers. All pages have one size, so that a page of keys and values "
        f"covers a recurrent layer's whole state: {size:,} tokens a block.",
        "The state's bytes over the bytes of a token in one attention layer, rounded up: an 8-bit cache, of half the "
        "bytes, makes the block twice as long.",
        f"Prefix caching finds whole blocks: a shared prompt of less than {size:,} tokens gives a hit rate of 0 %. Let "
        "shared prompts be longer, or expect no hits.",
    )


def _state_padding(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        f"{figures['state_padding_percent']:g} % of a recurrent layer's page is left empty, to make it as large as a "
        "page of keys and values.",
        "From rounding the block up.",
        "",
    )


def _state_prefix_caching(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    return (
        "States of recurrent layers are kept at the ends of blocks, so that a prefix can be found again.",
        "From --enable-prefix-caching in a model with recurrent layers.",
        "A request then holds one state more in each group of such layers: without prefix caching more requests fit.",
    )


def _cache_dtype(figures: dict[str, Any], log: StartUpLog) -> Sentences:
    dtype = figures["kv_cache_dtype"]
    less = "a little over a quarter" if dtype == "nvfp4" else "half"
    return (
        f"Keys and values are kept as {dtype}: {less} of the bytes of 16-bit ones, so that more tokens fit.",
        "From --kv-cache-dtype.",
        "Compare your task's answers with and without it: scales of 1.0 lose some accuracy.",
    )


EXPLAINERS: dict[str, Explainer] = {
    "version": _version,
    "configuration": _configuration,
    "arguments": _arguments,
    "architecture": _architecture,
    "model length": _model_length,
    "batch": _batch,
    "requests at once": _requests_at_once,
    "async scheduling": _async_scheduling,
    "model runner": _model_runner,
    "backend": _backend,
    "backend ruled out": _backend_ruled_out,
    "block size": _block_size,
    "block of a hybrid": _block_of_a_hybrid,
    "state padding": _state_padding,
    "state prefix caching": _state_prefix_caching,
    "cache dtype": _cache_dtype,
}
"""For each kind of line in :mod:`~pagedattn_lab.vllm_log.words` that is about a setting: what says its meaning."""
