"""What a running server says of itself, and which of its limits nobody can read.

Source: vLLM's ``vllm/config/cache.py`` (the labels of ``vllm:cache_config_info``) and ``vllm/engine/arg_utils.py`` (the
defaults of limits), releases 0.32.0 and 0.33.0.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
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
        notes: what it said beside the point, so that it was left out, a sentence each.
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
    notes: tuple[str, ...] = ()


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

    What it need not say, ``/server_info`` and ``/version``, is left out if it cannot be read: older releases answer
    with a text.

    Args:
        client: of the server.
        snapshot: what its metrics say.
        model: which of its models; by default the first.

    Raises:
        ServerError: it does not answer, has no such model, or does not say what its cache is like.
    """
    card = _card(client, model)
    told = _Optional()
    version = told.of("/version", told.object("/version", client.get_if_there("/version")), "version", _is_text)
    root = told.of("/v1/models", card, "root", _is_text)
    info = told.object("/server_info", client.get_if_there("/server_info?config_format=json"))
    info = told.part(info, "vllm_config")
    model_config, device_config = told.part(info, "model_config"), told.part(info, "device_config")
    parallel_config, scheduler_config = told.part(info, "parallel_config"), told.part(info, "scheduler_config")
    labels = {name: value for name, value in snapshot.cache_config.items() if value != "None"}
    for name in ("block_size", "num_gpu_blocks", "enable_prefix_caching"):
        if name not in labels:
            raise ServerError(f"vllm:cache_config_info at {client.url}/metrics does not say {name}: update the server")
    max_model_len = card.get("max_model_len") or told.of("/server_info", model_config, "max_model_len", _is_positive)
    if max_model_len is None:
        raise ServerError(f"{client.url}/v1/models does not say max_model_len of {card['id']!r}: update the server")
    if not _is_positive(max_model_len):
        raise ServerError(
            f"{client.url}/v1/models says that max_model_len of {card['id']!r} is {reprlib.repr(max_model_len)}, not a "
            "whole number from 1: is this a vLLM server?"
        )
    dtype = told.of("/server_info", model_config, "dtype", _is_text)
    device = told.of("/server_info", device_config, "device", _is_text)
    return Server(
        url=client.url,
        version=version,
        model=card["id"],
        root=root,
        max_model_len=max_model_len,
        block_size=_number(labels, "block_size", 1),
        num_blocks=_number(labels, "num_gpu_blocks", 2),  # the null block, and one that holds something
        enable_prefix_caching=labels["enable_prefix_caching"] == "True",
        kv_tokens=_optional(labels, "kv_cache_size_tokens"),
        max_concurrency=_ratio(labels, "kv_cache_max_concurrency"),
        num_gpu_blocks_override=_optional(labels, "num_gpu_blocks_override"),
        kv_cache_memory_bytes=_optional(labels, "kv_cache_memory_bytes"),
        cache_dtype=labels.get("cache_dtype", "auto"),
        dtype=None if dtype is None else dtype.removeprefix("torch."),
        device=None if device is None else "cpu" if device == "cpu" else "gpu",
        tensor_parallel_size=told.of("/server_info", parallel_config, "tensor_parallel_size", _is_positive),
        scheduler_config={
            name: told.of("/server_info", scheduler_config, name, fits) for name, fits in _SCHEDULER_CONFIG.items()
        },
        notes=tuple(told.notes),
    )


def scheduler_limits(
    server: Server, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None
) -> SchedulerLimits:
    """Find what the server's scheduler keeps to: what is given, else what it tells, else a default.

    Raises:
        ServerError: it serves by priority, which a replay in order of arrival says nothing of.
    """
    told = server.scheduler_config
    if told.get("policy") not in (None, "fcfs"):
        raise ServerError(f"{server.url} schedules by {told['policy']}: this check knows first come, first served")
    limits: dict[str, int] = {}
    sources: dict[str, Source] = {}
    for name, given in (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens)):
        for value, source in ((given, "given"), (told.get(name), "told by the server"), (DEFAULTS[name], "default")):
            if value is not None:
                limits[name], sources[name] = value, source
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
    listed = client.get("/v1/models").get("data")
    listed = listed if isinstance(listed, list) else []
    cards = [card for card in listed if isinstance(card, dict) and _is_text(card.get("id"))]
    if not cards:
        raise ServerError(f"{client.url}/v1/models lists no model: is this an OpenAI server?")
    for card in cards:
        if model in (None, card["id"]):
            return card
    names = ", ".join(card["id"] for card in cards)
    raise ServerError(f"{client.url} has no model {model!r}: it has {names}")


class _Optional:
    """What a server may say or not: what has another form than vLLM gives it is left out, and noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def of(self, path: str, parent: Mapping[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
        """Take one field; ``None`` if it is not there."""
        return self._take(f"{name} of {path}", parent.get(name), fits)

    def part(self, parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """Take fields that ``/server_info`` has in one object; an empty one if it is not there."""
        return self.of("/server_info", parent, name, _is_object) or {}

    def object(self, path: str, answer: Any) -> Mapping[str, Any]:
        """Take an answer; an empty one if there is none."""
        return self._take(f"What {path} answers", answer, _is_object) or {}

    def _take(self, what: str, value: Any, fits: Callable[[Any], bool]) -> Any:
        if value is None or fits(value):
            return value
        self.notes.append(f"{what} is {reprlib.repr(value)}: this check cannot read that, and goes on without it.")
        return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0  # True is an int too


_SCHEDULER_CONFIG: dict[str, Callable[[Any], bool]] = {
    "max_num_seqs": _is_positive,
    "max_num_batched_tokens": _is_positive,
    "policy": _is_text,
    "watermark": lambda value: type(value) in (int, float) and 0 <= value < 1,
    "long_prefill_token_threshold": lambda value: type(value) is int and value >= 0,
    "async_scheduling": lambda value: isinstance(value, bool),
}
"""What is read of a scheduler's configuration, and what each must be."""


def _number(labels: Mapping[str, str], name: str, least: int) -> int:
    try:
        number = int(labels[name])
    except ValueError:
        number = least - 1
    if number < least:
        raise _wrong(labels, name, f"a whole number from {least}")
    return number


def _optional(labels: Mapping[str, str], name: str) -> int | None:
    return _number(labels, name, 0) if name in labels else None


def _ratio(labels: Mapping[str, str], name: str) -> float | None:
    try:
        ratio = float(labels[name]) if name in labels else None
    except ValueError:
        ratio = math.nan
    if ratio is not None and not 0 <= ratio < math.inf:
        raise _wrong(labels, name, "a number from 0")
    return ratio


def _wrong(labels: Mapping[str, str], name: str, right: str) -> ServerError:
    shown = reprlib.repr(labels[name])
    return ServerError(f"{name} of vllm:cache_config_info is {shown}, not {right}: is this a vLLM server?")
