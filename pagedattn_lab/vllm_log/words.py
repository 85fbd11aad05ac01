"""The words by which a line of vLLM's log is known, from V0's (0.6) to those of 0.33, and the figures in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

GIB = 2**30

_WHOLE = r"(?<![\d.,])-?\d[\d,]{0,20}(?![\d,]*\d)"
_DECIMAL = r"(?<![\d.,])-?\d{1,12}(?:\.\d{1,12})?(?!\d)"
_SHAPES = {"gib": _DECIMAL, "int": _WHOLE, "float": _DECIMAL, "word": r"[^\s,;)'\"]{1,200}"}
"""What a figure looks like: bounded in length, so that no number is too long to be read."""

_SLOT = re.compile(r"\{(gib|int|float|word):(\w+)\}")

KINDS: dict[str, tuple[str, ...]] = {
    "version": (
        r"vLLM (?:API server|server) version {word:version}(?:, serving model {word:model})?",
        r"█\s+version\s+{word:version}",
        r"█\s+model\s+{word:model}\s*$",
    ),
    "configuration": (r"Initializing an? (?:V\d )?LLM engine \(v{word:version}\) with config:",),
    "arguments": (r"non-default args: \{", r"args: Namespace\("),
    "architecture": (r"Resolved architecture: {word:architecture}",),
    "model length": (r"Using max model len {int:max_model_len}",),
    "batch": (
        r"Chunked prefill is enabled with max_num_batched_tokens={int:max_num_batched_tokens}",
        r"(?:Setting|Defaulting) max_num_batched_tokens to {int:max_num_batched_tokens} for",
    ),
    "requests at once": (r"Defaulting max_num_seqs to {int:max_num_seqs} for",),
    "async scheduling": (r"Asynchronous scheduling is {word:async_scheduling}",),
    "model runner": (r"Using V2 Model Runner",),
    "backend ruled out": (
        r"--block-size {int:block_size} precluded higher-priority backend\(s\) (?P<ruled_out>[\w, ]+)\. "
        r"Using {word:attention_backend} instead",
    ),
    "backend": (
        r"Using (?:AttentionBackendEnum\.)?(?P<attention_backend>\w*(?:_ATTN|MLA|FLASHINFER|FLEX_ATTENTION|TRITON_ATTN"
        r"|XFORMERS|TORCH_SDPA)\w*|Flash ?Attention|Flash-Attention|FlashInfer|FlashMLA|XFormers|Torch SDPA|Triton"
        r"|Triton MLA|Cutlass MLA)(?: attention)? backend\b",
    ),
    "block size": (
        r"(?:Setting|Forcing) kv cache block size to {int:block_size} for (?P<for_backend>[\w/ ]+?) backend",
    ),
    "block of a hybrid": (r"Setting attention block size to {int:block_size} tokens",),
    "state padding": (r"Padding mamba page size by {float:state_padding_percent}%",),
    "state prefix caching": (r"Prefix caching in Mamba cache '{word:mamba_cache_mode}' mode is currently enabled",),
    "cache dtype": (r"Using {word:kv_cache_dtype} data type to store kv cache",),
    "weights": (
        r"Model loading took {gib:weights_bytes} GiB",
        r"Loading model weights took {gib:weights_bytes} GB",
    ),
    "graph estimate": (r"Estimated CUDA graph memory: {gib:cuda_graph_bytes} GiB",),
    "graph estimate counted": (
        r"current --gpu-memory-utilization={float:gpu_memory_utilization} is equivalent to "
        r"--gpu-memory-utilization={float:without_graphs} without CUDA graph memory profiling\. To maintain the same "
        r"effective KV cache size as before, increase --gpu-memory-utilization to {float:as_before}",
    ),
    "graph estimate left out": (
        r"CUDA graph memory profiling is disabled .*--gpu-memory-utilization from {float:gpu_memory_utilization} to "
        r"{float:with_graphs}",
        r"CUDA graph memory profiling will be enabled by default .*--gpu-memory-utilization from "
        r"{float:gpu_memory_utilization} to {float:with_graphs}",
    ),
    "profile of V0": (
        r"total_gpu_memory \({gib:total_bytes}GiB\) x gpu_memory_utilization \({float:gpu_memory_utilization}\) = "
        r"{gib:requested_bytes}GiB",
        r"model weights take {gib:weights_bytes}GiB; non_torch_memory takes {gib:non_torch_bytes}GiB; PyTorch "
        r"activation peak memory takes {gib:peak_activation_bytes}GiB; the rest of the memory reserved for KV Cache is "
        r"{gib:available_bytes}GiB",
        r"total_gpu_memory={gib:total_bytes}GiB.*non_torch_memory={gib:non_torch_bytes}GiB.*"
        r"kv_cache_size={gib:available_bytes}GiB.*gpu_memory_utilization={float:gpu_memory_utilization}",
    ),
    "available": (
        r"Available KV cache memory: {gib:available_bytes} GiB",
        r"(?P<how>Explicitly|Auto) set \({gib:available_bytes}/{gib:total_bytes}\) GiB for KV cache on node",
        r"reserved {gib:available_bytes} GiB memory for KV Cache as specified by (?P<how>kv_cache_memory_bytes)",
    ),
    "layout": (r"Using {word:kv_cache_layout} KV cache layout",),
    "padding": (
        r"Add {int:padding_layers} padding layers, may waste at most {float:padding_waste_percent}% KV cache memory",
    ),
    "windows charged in full": (
        r"Hybrid KV cache manager is disabled for this hybrid model",
        r"Turning off hybrid kv cache manager",
        r"latency regression when using chunked local attention with the hybrid KV cache manager",
        r"KV cache page sizes cannot be unified; treating sliding-window layers as full attention",
    ),
    "override": (r"Overriding num_gpu_blocks={int:profiled_blocks} with num_gpu_blocks_override={int:num_blocks}",),
    "auto-fit": (
        r"Auto-fit max_model_len: reduced from {int:original_max_model_len} to {int:max_model_len} to fit in available "
        r"(?:GPU|KV cache) memory \({gib:limiting_bytes} GiB",
        r"Auto-fit max_model_len: full model context length {int:max_model_len} fits in available",
    ),
    "capacity": (
        r"(?P<pool>[A-Z]+) KV cache size: {int:kv_tokens} tokens(?:, Maximum concurrency for {int:max_model_len} "
        r"tokens per request: {float:max_concurrency}x)?",
    ),
    "concurrency": (r"Maximum concurrency for {int:max_model_len} tokens per request: {float:max_concurrency}x",),
    "blocks": (
        r"# (?P<pool>GPU|cuda|cpu) blocks: {int:num_blocks}(?:, # CPU blocks: {int:cpu_blocks})?",
        r"cache_config_info with initialization after num_gpu_blocks is: {int:num_blocks}",
    ),
    "too small": (
        r"To serve at least one request with the models?'s max seq len \({int:max_model_len}\), \(?"
        r"{gib:needed_bytes} GiB KV cache is needed, which is larger than the available KV cache memory "
        r"\({gib:available_bytes} GiB\)(?:.{0,80}?estimated maximum model length is {int:estimated_max_model_len})?",
        r"model's max seq len \({int:max_model_len}\) is larger than the maximum number of tokens that can be stored "
        r"in KV cache \({int:kv_tokens}\)",
    ),
    "nothing left": (r"(?:Error|ERROR).*: No available memory for the cache blocks", r"Cannot auto-fit max_model_len"),
    "card in use": (
        r"Free memory on device .{0,40}?\({gib:free_bytes}/{gib:total_bytes} GiB\) on startup is less than desired GPU "
        r"memory utilization \({float:gpu_memory_utilization}, {gib:requested_bytes} GiB\)",
    ),
    "out of memory": (r"CUDA out of memory\. Tried to allocate {float:tried} (?P<tried_unit>[GM]iB)",),
    "sum of memory": (
        r"Free memory on device \({gib:free_bytes}/{gib:total_bytes} GiB\) on startup\. Desired GPU memory utilization "
        r"is \({float:gpu_memory_utilization}, {gib:requested_bytes} GiB\)\. Actual usage is {gib:consumed_bytes} GiB "
        r"for (?P<consumed>weight|consumed memory).{0,40}?, {gib:peak_activation_bytes} GiB for peak activation,"
        r"(?: {gib:non_torch_bytes} GiB for non-torch memory,)? and {gib:captured_bytes} GiB for CUDAGraph memory"
        r"(?:.{0,60}?--kv-cache-memory={int:suggested_bytes})?",
    ),
    "graphs captured": (
        r"CUDA graph pool memory: {gib:captured_bytes} GiB \(actual\), {gib:cuda_graph_bytes} GiB \(estimated\)",
        r"Graph capturing finished in {float:seconds} secs, took {gib:captured_bytes} GiB",
    ),
    "ready": (r"init engine \(profile, create kv cache, warmup model\) took {float:seconds}",),
    "running": (
        r"Running: {int:running} reqs,(?: Swapped: \d+ reqs,)? (?:Waiting|Pending): {int:waiting} reqs.{0,200}?"
        r"KV cache usage: {float:usage_percent}%(?:.{0,60}?Prefix cache hit rate: {float:hit_rate_percent}%)?",
    ),
    "preempted": (r"is preempted by PreemptionMode\.{word:mode}.*because there is not enough KV cache space",),
}
"""What a line is, and the patterns that know it; ``{gib:name}`` stands for a figure in GiB, and so on."""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_SLOT.sub(lambda slot: f"(?P<{slot[2]}__{slot[1]}>{_SHAPES[slot[1]]})", pattern))


_PATTERNS = [(what, _compiled(pattern)) for what, patterns in KINDS.items() for pattern in patterns]

_SETTINGS = {
    "model": str, "dtype": str, "kv_cache_dtype": str, "quantization": str, "max_seq_len": int, "max_model_len": int,
    "tensor_parallel_size": int, "pipeline_parallel_size": int, "block_size": int, "gpu_memory_utilization": float,
    "max_num_batched_tokens": int, "max_num_seqs": int, "num_spec_tokens": int, "num_speculative_tokens": int,
    "kv_cache_memory_bytes": int, "num_gpu_blocks_override": int, "enforce_eager": bool, "enable_prefix_caching": bool,
    "device_config": str,
}  # fmt: skip
"""What is taken from the configuration and the arguments, which one line spells out."""

_NAMES = {"max_seq_len": "max_model_len", "num_spec_tokens": "num_speculative_tokens", "device_config": "device"}


def recognise(text: str) -> tuple[str, dict[str, Any]] | None:
    """Say what a line is and which figures it holds, sizes in bytes; None for a line that says nothing of memory.

    Example:
        >>> recognise("INFO 11-28 [gpu_worker.py:298] Available KV cache memory: 2.5 GiB")
        ('available', {'available_bytes': 2684354560})
        >>> recognise("GPU KV cache size: 4,096 tokens")[1]["kv_tokens"], recognise("Application startup complete.")
        (4096, None)
    """
    for what, pattern in _PATTERNS:
        found = pattern.search(text)
        if found is None:
            continue
        figures = {}
        for group, value in found.groupdict().items():
            if value is not None:
                name, _, shape = group.partition("__")
                figures[name] = _READ[shape](value)
        if what in ("configuration", "arguments"):
            figures |= _settings(text[found.end() - 1 :])
        return what, figures
    return None


def _settings(text: str) -> dict[str, Any]:
    """Settings that a line spells out, as ``name=value`` or ``'name': value``; those set to None are left out."""
    found: dict[str, Any] = {}
    for name, kind in _SETTINGS.items():
        match = re.search(rf"(?<![\w]){name}'?\s*[=:]\s*('[^']*'|[^,\s'}}\])]+)", text)
        value = match[1].strip("'") if match else "None"
        if value == "None":
            continue
        if kind is bool:
            found[name] = value == "True"
        elif kind is str:
            found[_NAMES.get(name, name)] = value.removeprefix("torch.")
        elif re.fullmatch(r"-?\d{1,20}(\.\d{1,12})?", value):
            found[_NAMES.get(name, name)] = kind(value)
    drafter = re.search(
        r"speculative_config'?\s*[=:]\s*(?:SpeculativeConfig\(|\{)[^)}]{0,400}?method['\"]?\s*[=:]\s*\W?(\w+)", text
    )
    if drafter:
        found["speculative_method"] = drafter[1]
    if found.get("max_model_len", 1) < 1:
        del found["max_model_len"]  # -1: to be fitted
    return found


_READ: dict[str, Callable[[str], Any]] = {
    "": str.strip,
    "word": lambda value: value.rstrip(".").removeprefix("AttentionBackendEnum."),
    "int": lambda value: int(value.replace(",", "")),
    "float": float,
    "gib": lambda value: round(float(value) * GIB),
}
