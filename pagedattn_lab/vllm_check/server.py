"""What a running server says of itself, and which of its limits nobody can read.

Source: vLLM's ``vllm/config/cache.py`` (the labels of ``vllm:cache_config_info``) and ``vllm/engine/arg_utils.py`` (the
defaults of limits), releases 0.32.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.vllm_check.client import Client, ServerError, Snapshot

DEFAULTS = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
"""Limits of ``vllm serve`` on a GPU with less than 70 GiB, and of this book's ``serve``."""

Source = str
"""Who says what a limit is: ``"given"``, ``"told by the server"`` or ``"default"``."""


@dataclass(frozen=True)
class Server:
    """What one server says of itself; ``None`` where it does not say.

    Attributes:
        url: where it is.
        version: vLLM's.
        model: the name that requests must give.
        root: where the model came from, an id or a folder on the server's machine.
        max_model_len: most tokens of a request.
        block_size: tokens per block.
        num_blocks: blocks in all, the null block included.
        enable_prefix_caching: whether blocks are shared.
        kv_tokens: what its log calls the size of the cache.
        max_concurrency: requests of ``max_model_len`` tokens that fit, as in its log.
        num_gpu_blocks_override: blocks that somebody has asked for.
        kv_cache_memory_bytes: memory for keys and values that somebody has asked for.
        cache_dtype: of keys and values, ``"auto"`` for the model's own.
        dtype: the model's own.
        device: ``"cpu"`` or ``"gpu"``.
        tensor_parallel_size: GPUs that share each layer.
        scheduler_config: what the scheduler was told; empty unless the server has ``/server_info``.
    """

    url: str
    version: str | None
    model: str
    root: str | None
    max_model_len: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool
    kv_tokens: int | None
    max_concurrency: float | None
    num_gpu_blocks_override: int | None
    kv_cache_memory_bytes: int | None
    cache_dtype: str
    dtype: str | None
    device: str | None
    tensor_parallel_size: int | None
    scheduler_config: Mapping[str, Any]


@dataclass(frozen=True)
class SchedulerLimits:
    """What a scheduler keeps to, and who says so.

    Attributes:
        max_num_seqs: requests that run at most.
        max_num_batched_tokens: tokens of a step at most.
        watermark: share of the blocks that stays free when a request is admitted.
        long_prefill_token_threshold: most tokens of one request in a step; 0 for any number.
        async_scheduling: whether a step is planned before the one before it has ended; ``None`` if nobody says.
        sources: for ``max_num_seqs`` and ``max_num_batched_tokens``, who says so.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    watermark: float
    long_prefill_token_threshold: int
    async_scheduling: bool | None
    sources: Mapping[str, Source]


def read_server(client: Client, snapshot: Snapshot, model: str | None = None) -> Server:
    """Ask a server what it is.

    Args:
        client: of the server.
        snapshot: what its metrics say.
        model: which of its models; by default the first.

    Raises:
        ServerError: it does not answer, has no such model, or does not say what its cache is like.
    """
    card = _card(client, model)
    info = client.get_if_there("/server_info?config_format=json").get("vllm_config") or {}
    model_config = info.get("model_config") or {}
    labels = {name: value for name, value in snapshot.cache_config.items() if value != "None"}
    for name in ("block_size", "num_gpu_blocks", "enable_prefix_caching"):
        if name not in labels:
            raise ServerError(f"vllm:cache_config_info at {client.url}/metrics does not say {name}: update the server")
    max_model_len = card.get("max_model_len") or model_config.get("max_model_len")
    if not isinstance(max_model_len, int):
        raise ServerError(f"{client.url}/v1/models does not say max_model_len of {card['id']!r}: update the server")
    dtype, device = model_config.get("dtype"), (info.get("device_config") or {}).get("device")
    return Server(
        url=client.url,
        version=client.get_if_there("/version").get("version"),
        model=card["id"],
        root=card.get("root"),
        max_model_len=max_model_len,
        block_size=_number(labels, "block_size"),
        num_blocks=_number(labels, "num_gpu_blocks"),
        enable_prefix_caching=labels["enable_prefix_caching"] == "True",
        kv_tokens=_number(labels, "kv_cache_size_tokens") if "kv_cache_size_tokens" in labels else None,
        max_concurrency=float(labels["kv_cache_max_concurrency"]) if "kv_cache_max_concurrency" in labels else None,
        num_gpu_blocks_override=_optional(labels, "num_gpu_blocks_override"),
        kv_cache_memory_bytes=_optional(labels, "kv_cache_memory_bytes"),
        cache_dtype=labels.get("cache_dtype", "auto"),
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else None,
        device=None if device is None else "cpu" if device == "cpu" else "gpu",
        tensor_parallel_size=(info.get("parallel_config") or {}).get("tensor_parallel_size"),
        scheduler_config=info.get("scheduler_config") or {},
    )


def scheduler_limits(
    server: Server, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None
) -> SchedulerLimits:
    """Find what the server's scheduler keeps to: what is given, else what it tells, else a default.

    Raises:
        ServerError: it serves by priority, which a replay in order of arrival says nothing of.
    """
    told = server.scheduler_config
    if told.get("policy", "fcfs") != "fcfs":
        raise ServerError(f"{server.url} schedules by {told['policy']}: this check knows first come, first served")
    limits: dict[str, int] = {}
    sources: dict[str, Source] = {}
    for name, given in (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens)):
        for value, source in ((given, "given"), (told.get(name), "told by the server"), (DEFAULTS[name], "default")):
            if value is not None:
                limits[name], sources[name] = int(value), source
                break
    return SchedulerLimits(
        **limits,
        watermark=told.get("watermark") or 0.0,
        long_prefill_token_threshold=told.get("long_prefill_token_threshold") or 0,
        async_scheduling=told.get("async_scheduling"),
        sources=sources,
    )


def _card(client: Client, model: str | None) -> Mapping[str, Any]:
    """What the server says of one model."""
    cards = [card for card in client.get("/v1/models").get("data") or [] if isinstance(card, dict) and "id" in card]
    if not cards:
        raise ServerError(f"{client.url}/v1/models lists no model: is this an OpenAI server?")
    for card in cards:
        if model in (None, card["id"]):
            return card
    names = ", ".join(str(card["id"]) for card in cards)
    raise ServerError(f"{client.url} has no model {model!r}: it has {names}")


def _number(labels: Mapping[str, str], name: str) -> int:
    try:
        return int(labels[name])
    except ValueError:
        raise ServerError(f"{name} of vllm:cache_config_info is {labels[name]!r}, not a whole number") from None


def _optional(labels: Mapping[str, str], name: str) -> int | None:
    return _number(labels, name) if name in labels else None
