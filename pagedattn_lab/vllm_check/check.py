"""One check from beginning to end: ask, predict, replay, compare."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.vllm_check.client import Client, ServerError, Snapshot
from pagedattn_lab.vllm_check.predict import predict_capacity, predict_replay
from pagedattn_lab.vllm_check.report import Check, hit_rate
from pagedattn_lab.vllm_check.server import SchedulerLimits, Server, read_server, scheduler_limits
from pagedattn_lab.vllm_check.workload import make_workload


@dataclass(frozen=True)
class WorkloadOptions:
    """What to send.

    Attributes:
        name: ``"chat"`` or ``"system-prompts"`` (:mod:`pagedattn_lab.workloads.conversations`), or a file in Mooncake's
            format.
        num_requests: how many at most; 0 sends nothing.
        clients: how many are sent at once; ``None`` for all.
        most_output: most tokens of an output.
        seed: of a synthetic workload.
        vocab_size: token ids are below.
    """

    name: str = "chat"
    num_requests: int = 64
    clients: int | None = None
    most_output: int = 128
    seed: int = 0
    vocab_size: int = 30_000


@dataclass(frozen=True)
class ServerOptions:
    """What a server may not say of itself; what is ``None`` is left to it, or to defaults.

    Attributes:
        model: which of its models.
        config: where that model's configuration is, if not where the server has it from.
        dtype: of the model's weights.
        tensor_parallel_size: GPUs that share each layer.
        available_bytes: memory for keys and values, as in its log.
        max_num_seqs: requests that run at most.
        max_num_batched_tokens: tokens of a step at most.
    """

    model: str | None = None
    config: str | Path | Mapping[str, Any] | None = None
    dtype: str | None = None
    tensor_parallel_size: int | None = None
    available_bytes: int | str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


def check_server(client: Client, workload: WorkloadOptions, options: ServerOptions) -> Check:
    """Predict what a running server has room for and what a workload does to it, send that, and compare.

    Nobody else may use the server meanwhile: its counters do not tell whose tokens they count.

    Raises:
        ServerError: the server cannot be asked or is busy, or the replay fails.
        ValueError, OSError: as for :func:`~pagedattn_lab.vllm_check.workload.make_workload`.
    """
    before = client.metrics()
    server = read_server(client, before, options.model)
    limits = scheduler_limits(server, options.max_num_seqs, options.max_num_batched_tokens)
    predicted, num_groups, unknown = _capacity(server, limits, options)
    unknown = (*server.notes, *unknown)
    observed: dict[str, float | None] = {
        "num_blocks": server.num_blocks, "kv_tokens": server.kv_tokens, "max_concurrency": server.max_concurrency,
    }  # fmt: skip
    if not workload.num_requests:
        return Check(server, limits, {}, predicted, observed, unknown)
    sent, counted, expected = _replay(client, before, server, limits, workload)
    observed |= counted | {"hit_rate": hit_rate(counted)}
    if num_groups == 1:
        predicted |= expected | {"hit_rate": hit_rate(expected)}
    else:
        predicted |= {name: expected[name] for name in ("prompt_tokens", "generation_tokens")}
        unknown += (
            f"The layers of this model cache in {num_groups} ways at once, and what is found or preempted then is not "
            "predicted.",
        )
    return Check(server, limits, sent, predicted, observed, unknown)


def _capacity(
    server: Server, limits: SchedulerLimits, options: ServerOptions
) -> tuple[dict[str, float | None], int, tuple[str, ...]]:
    """Blocks, tokens and concurrency, the number of groups of layers, and what cannot be said."""
    model = options.config or server.root or server.model
    try:
        budget, is_known = predict_capacity(
            server,
            limits,
            model,
            dtype=options.dtype,
            available_bytes=options.available_bytes,
            tensor_parallel_size=options.tensor_parallel_size,
        )
    except BudgetError as error:
        hint = "" if options.config else "; --config names the model or its folder"
        return {}, 1, (f"Blocks, tokens and requests of full length are not predicted: {error}{hint}.",)
    unknown = () if is_known else (
        "Blocks follow from the memory that is left once the model is loaded: give it with --available, from the "
        "server's log, to have them predicted.",
    )  # fmt: skip
    figures: dict[str, float | None] = {
        "num_blocks": budget.num_blocks if is_known else None,
        "kv_tokens": budget.kv_tokens,
        "max_concurrency": budget.max_concurrency,
    }
    return figures, len(budget.groups), unknown


def _replay(
    client: Client, before: Snapshot, server: Server, limits: SchedulerLimits, options: WorkloadOptions
) -> tuple[dict[str, Any], dict[str, int], dict[str, int]]:
    """Send a workload; say what was sent, what the server counted, and what was expected."""
    if before.num_unfinished:
        raise ServerError(
            f"{server.url} has {before.num_unfinished} unfinished requests of somebody else: check it while nobody "
            "uses it"
        )
    workload = make_workload(
        options.name,
        options.num_requests,
        longest=min(server.max_model_len, (server.num_blocks - 1) * server.block_size),
        most_output=options.most_output,
        seed=options.seed,
        vocab_size=options.vocab_size,
    )
    load = workload.load
    clients = min(options.clients or len(load.prompts), len(load.prompts))
    expected = predict_replay(server, limits, load, clients)
    client.replay(server.model, load, clients, salt=secrets.token_hex(8))
    counted = client.settle(before, load).since(before)
    sent = {
        "name": Path(options.name).name, "num_requests": len(load.prompts), "num_cut": workload.num_cut,
        "clients": clients, "most_output": options.most_output, "seed": options.seed,
    }  # fmt: skip
    return sent, counted, expected
