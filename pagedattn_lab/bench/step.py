"""Where the time of a decode step goes: linear layers, attention, everything else (chapter 08).

The real model decodes one token for each sequence of a batch, with attention by the reference and by the CPU kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pagedattn_lab.bench.timing import no_collection, turns

if TYPE_CHECKING:
    from pagedattn_lab.attention.metadata import AttentionMetadata
    from pagedattn_lab.model_runner import ModelRunner

PARTS = ("linears", "attention", "other")


def parts_of_step(runner: ModelRunner, token_ids: Sequence[int], metadata: AttentionMetadata) -> dict[str, float]:
    """Execute one step and say where its time went, in milliseconds; ``step`` is all of it."""
    import torch

    spent = dict.fromkeys(PARTS, 0.0)
    started: list[float] = []

    def begin(*_: Any) -> None:
        started.append(time.perf_counter())

    def end(*_: Any) -> None:
        spent["linears"] += time.perf_counter() - started.pop()

    linears = [module for module in runner.model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [
        hook for each in linears for hook in (each.register_forward_pre_hook(begin), each.register_forward_hook(end))
    ]
    try:
        with _timed_attention(spent):
            start = time.perf_counter()
            runner.execute(token_ids, metadata)
            spent["step"] = time.perf_counter() - start
    finally:
        for hook in hooks:
            hook.remove()
    spent["other"] = spent["step"] - spent["linears"] - spent["attention"]
    return {part: 1000 * seconds for part, seconds in spent.items()}


@contextmanager
def _timed_attention(spent: dict[str, float]) -> Iterator[None]:
    """Add to ``spent`` how long backends take, for a while."""
    from pagedattn_lab.attention.backends import BACKENDS, Backend

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = run(*arguments, **options)
            spent["attention"] += time.perf_counter() - start
            return result

        return wrapper

    def both_timed(backend: Backend) -> Backend:
        prefix = None if backend.prefix is None else timed(backend.prefix)
        return dataclasses.replace(backend, run=timed(backend.run), prefix=prefix)

    with patch.dict(BACKENDS, {name: both_timed(backend) for name, backend in BACKENDS.items()}):
        yield


def measure(
    num_seqs: int = 64, seq_len: int = 300, *, repetitions: int = 9, attention: Sequence[str] = ("reference", "cpu")
) -> dict[str, Any]:
    """Measure decode steps of the default model on one thread, backends in turns.

    What the caches hold does not matter, so no prompt is computed: keys and values are random.

    Args:
        num_seqs, seq_len: how many sequences, and the tokens of each, the one decoded included.
        repetitions: how often each backend makes the step.
        attention: the backends.

    Returns:
        The settings, and under ``backends`` for each the medians ``step_ms``, ``linears_ms``, ``attention_ms``,
        ``other_ms``, and ``other_share``, of the step.

    Raises:
        ValueError: fewer than 2 repetitions.
    """
    import torch

    from pagedattn_lab import models
    from pagedattn_lab.arithmetic import cdiv
    from pagedattn_lab.attention.metadata import attention_metadata
    from pagedattn_lab.block_pool import BlockPool
    from pagedattn_lab.block_table import BlockTable
    from pagedattn_lab.model_runner import ModelRunner

    if repetitions < 2:
        raise ValueError(f"repetitions is {repetitions}: give at least 2 repetitions")
    model, _ = models.load()
    num_blocks, block_size = 1 + num_seqs * cdiv(seq_len, 16), 16
    runner = ModelRunner(model, num_blocks, block_size)
    torch.manual_seed(0)
    for cache in runner.cache.key_caches + runner.cache.value_caches:
        cache.normal_()
    pool = BlockPool(num_blocks, block_size)
    tables = [BlockTable(pool) for _ in range(num_seqs)]
    for table in tables:
        table.append_tokens(seq_len)
    metadata, token_ids = attention_metadata(tables), range(1000, 1000 + num_seqs)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in attention}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with no_collection():
            for repetition in range(repetitions + 1):
                for name in turns(list(attention), repetition):
                    runner.attention = name
                    times[name].append(parts_of_step(runner, token_ids, metadata))
    finally:
        torch.set_num_threads(before)
    report: dict[str, Any] = {"num_seqs": num_seqs, "seq_len": seq_len, "threads": 1, "repetitions": repetitions}
    report["backends"] = {}
    for name, steps in times.items():
        row = {
            f"{part}_ms": median(step[part] for step in steps[1:]) for part in ("step", *PARTS)
        }  # the first is warm-up
        report["backends"][name] = row | {"other_share": median(step["other"] / step["step"] for step in steps[1:])}
    return report


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured."""
    lines = [
        f"A decode step of {report['num_seqs']} sequences of {report['seq_len']} tokens, the book's model, one thread.",
        f"Medians of {report['repetitions']} steps in turns, in milliseconds.",
        "",
        f"{'attention by':<14}{'step':>8}{'linears':>9}{'attention':>11}{'other':>8}{'of the step':>13}",
    ]
    for name, row in report["backends"].items():
        lines.append(
            f"{name:<14}{row['step_ms']:>8.1f}{row['linears_ms']:>9.1f}{row['attention_ms']:>11.1f}"
            f"{row['other_ms']:>8.1f}{row['other_share']:>13.0%}"
        )
    return "\n".join(lines)
