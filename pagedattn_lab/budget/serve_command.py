"""The line that starts a server with the settings of a budget."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.quantization import needs_checkpoint

FLAGS = {
    "max_model_len": "--max-model-len",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "block_size": "--block-size",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_num_seqs": "--max-num-seqs",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "kv_cache_memory_bytes": "--kv-cache-memory-bytes",
    "num_gpu_blocks_override": "--num-gpu-blocks-override",
}
"""vLLM's flag for each option that has one."""


def serve_command(options: Options, known_as: str = "", quantization_config: Mapping[str, Any] | None = None) -> str:
    """Write the line, with a flag for everything that is not vLLM's default.

    Args:
        options: the server's.
        known_as: the model's full id in the table, taken where a name without an owner was given: that such a name
            with an owner before it exists, nobody can know.
        quantization_config: of the model's checkpoint. Where another is needed, its name is left to the reader.

    Example:
        >>> serve_command(Options("meta-llama/Llama-3.1-8B", max_model_len=8192, enable_prefix_caching=False))
        'vllm serve meta-llama/Llama-3.1-8B --max-model-len 8192 --no-enable-prefix-caching'
    """
    model = _name(options.model)
    if isinstance(options.model, str) and "/" in known_as and "/" not in model and not Path(model).exists():
        model = known_as
    if needs_checkpoint(quantization_config, options.quantization):
        model = f"<{str(options.quantization).upper()} checkpoint of {model}>"
    words = ["vllm", "serve", model]
    for name, flag in FLAGS.items():
        value = getattr(options, name)
        if name == "kv_cache_memory_bytes" and value is not None:  # vLLM does not read all units that we do
            value = min(size.likely for size in options.per_rank(name) or ())
        if value != getattr(Options, name):
            words += [flag, str(value)]
    if not options.enable_prefix_caching:
        words.append("--no-enable-prefix-caching")
    if options.async_scheduling is not None:
        words.append("--async-scheduling" if options.async_scheduling else "--no-async-scheduling")
    if options.drafter is not None:
        drafter = {"method": "mtp"} if options.drafter == "mtp" else {"model": _name(options.drafter)}
        words.append("--speculative-config")
        words.append(json.dumps({**drafter, "num_speculative_tokens": options.num_speculative_tokens}))
    return shlex.join(words)


def _name(model: str | Path | Mapping[str, object]) -> str:
    if isinstance(model, Mapping):
        return str(model.get("_name_or_path") or "MODEL")
    path = Path(model)
    return str(path.parent if path.name == "config.json" else model)
