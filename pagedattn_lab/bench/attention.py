"""What attention through a page table costs in a decode step, beside the speed at which memory is read (chapter 08).

Time is the clock on the wall, since several threads work. All ways to compute one case take turns, so that whatever
else the machine does falls on all of them; medians are given. SDPA is torch's own attention. It stands on keys and
values that lie contiguously, in three layouts: what a server without a page table would have. Gather + SDPA is what a
page table costs without a kernel of its own.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numba
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.attention.backends import BACKENDS
from pagedattn_lab.bench.timing import no_collection, turns

BLOCK_SIZE = 16
"""Tokens per block."""


@dataclass(frozen=True)
class Case:
    """A decode step: one query token for each sequence."""

    what: str
    seq_lens: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values that the step has to read."""
        return 2 * sum(self.seq_lens) * self.num_kv_heads * self.head_dim * dtype.itemsize


CASES = {
    "a": Case("32 sequences of 1,024 tokens, 32/8 heads of 128", (1024,) * 32, 32, 8, 128),
    "c": Case(
        "64 sequences of 30 to 900 tokens, 9/3 heads of 64",
        tuple(random.Random("bench attention").choices(range(30, 901), k=64)),
        *(9, 3, 64),
    ),
    "d": Case("one sequence of 32,768 tokens, 32/8 heads of 128", (32_768,), 32, 8, 128),
}
"""A batch as a large model serves it, a ragged one of the book's own model, and a single long one."""


@dataclass(frozen=True)
class Tensors:
    """One case in memory: paged, and the same tokens contiguous, ``[num_seqs, longest, num_kv_heads, head_dim]``."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def tensors(case: Case, dtype: torch.dtype, device: str = "cpu") -> Tensors:
    """Make a case's tensors: random numbers, in blocks that lie in random order.

    Example:
        >>> made = tensors(Case("", (5, 20), 4, 2, 8), torch.float32)
        >>> list(made.key_cache.shape), made.block_tables.shape
        ([4, 16, 2, 8], torch.Size([2, 2]))
    """
    torch.manual_seed(0)
    counts, longest = [cdiv(seq_len, BLOCK_SIZE) for seq_len in case.seq_lens], max(case.seq_lens)
    caches = torch.randn(2, sum(counts) + 1, BLOCK_SIZE, case.num_kv_heads, case.head_dim, device=device).to(dtype)
    order = torch.randperm(sum(counts), device=device) + 1
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    contiguous = caches.new_zeros(2, len(counts), longest, case.num_kv_heads, case.head_dim)
    for row, (blocks, seq_len) in enumerate(zip(order.split(counts), case.seq_lens, strict=True)):
        tables[row, : len(blocks)] = blocks
        contiguous[:, row, :seq_len] = caches[:, blocks].flatten(1, 2)[:, :seq_len]
    query = torch.randn(len(counts), case.num_heads, case.head_dim, device=device).to(dtype)
    seq_lens = torch.tensor(case.seq_lens, dtype=torch.int32, device=device)
    return Tensors(query, caches[0], caches[1], tables, seq_lens, contiguous[0], contiguous[1])


def paged(backend: str, made: Tensors) -> Callable[[], torch.Tensor]:
    """Attend with one backend, as a model's layers call it: nothing is checked."""
    starts = torch.arange(len(made.query) + 1, dtype=torch.int32, device=made.query.device)
    scale, run = made.query.shape[2] ** -0.5, BACKENDS[backend].run
    arguments = (made.query, made.key_cache, made.value_cache, made.block_tables, made.seq_lens, starts, scale)
    return lambda: run(*arguments)


def contiguous_ways(case: Case, made: Tensors) -> dict[str, Callable[[], torch.Tensor]]:
    """SDPA on contiguous keys and values: all sequences in one call if they are equally long, else one by one.

    ``head_major`` is ``[sequence, head, token, dim]``. ``token_major`` is how a cache lies: a token's heads together.
    ``rows`` is head-major with a group's queries as rows of one matrix.
    """
    equal = len(set(case.seq_lens)) == 1
    rows = [slice(None)] if equal else [slice(row, row + 1) for row in range(len(case.seq_lens))]
    lens = case.seq_lens[:1] if equal else case.seq_lens
    cut = [
        [tensor[row, :seq_len].contiguous().transpose(1, 2) for tensor in (made.key, made.value)]
        for row, seq_len in zip(rows, lens, strict=True)
    ]
    head_major = [[tensor.contiguous() for tensor in pair] for pair in cut]
    grouped = made.query.unflatten(1, (case.num_kv_heads, -1))  # [num_seqs, num_kv_heads, group, head_dim]

    def each(pairs: list[list[torch.Tensor]]) -> torch.Tensor:
        parts = [sdpa(made.query[row, :, None], *pair, enable_gqa=True) for row, pair in zip(rows, pairs, strict=True)]
        return torch.cat(parts)[:, :, 0]

    def as_rows() -> torch.Tensor:
        return torch.cat([sdpa(grouped[row], *pair) for row, pair in zip(rows, head_major, strict=True)]).flatten(1, 2)

    return {"head_major": lambda: each(head_major), "token_major": lambda: each(cut), "rows": as_rows}


def gather_sdpa(case: Case, made: Tensors) -> Callable[[], torch.Tensor]:
    """Copy each sequence out of its blocks, then SDPA on the copy."""
    tables = made.block_tables.long()

    def run() -> torch.Tensor:
        parts = []
        for row, seq_len in enumerate(case.seq_lens):
            blocks = tables[row, : cdiv(seq_len, BLOCK_SIZE)]
            key, value = (
                cache[blocks].flatten(0, 1)[None, :seq_len].transpose(1, 2)
                for cache in (made.key_cache, made.value_cache)
            )
            parts.append(sdpa(made.query[row, None, :, None], key, value, enable_gqa=True))
        return torch.cat(parts)[:, :, 0]

    return run


@numba.njit(nogil=True)
def _read(words):
    """Look at all of an array and do next to nothing with it."""
    seen = np.uint32(0)
    for i in range(len(words)):
        seen = np.uint32(seen ^ words[i])
    return seen


def reading(made: Tensors, num_threads: int, pool: ThreadPoolExecutor) -> Callable[[], None]:
    """Read keys and values from end to end, each thread its share: as fast as memory goes."""
    shares = [
        [words[len(words) * part // num_threads : len(words) * (part + 1) // num_threads] for words in both]
        for both in [[cache.view(torch.uint32).flatten().numpy() for cache in (made.key_cache, made.value_cache)]]
        for part in range(num_threads)
    ]

    def share(part: int) -> None:
        for words in shares[part]:
            _read(words)

    def run() -> None:
        others = [pool.submit(share, part) for part in range(1, num_threads)]
        share(0)
        for other in others:
            other.result()

    return run


def take_turns(ways: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Time some ways to do a thing, each time another one first; the first call of each is not counted.

    Returns:
        Seconds on the wall, repetition by repetition.

    Example:
        >>> times = take_turns({"short": lambda: None, "long": lambda: sum(range(10**5))}, repetitions=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'short': 3, 'long': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    with no_collection():
        for repetition in range(repetitions):
            for name in turns(list(ways), repetition):
                start = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_case(case: Case, dtype: torch.dtype, num_threads: int, repetitions: int) -> dict[str, Any]:
    """Measure one case on the CPU; all ways must agree before any is timed.

    Returns:
        Medians under ``read_gb_s``; ``kernel_gb_s`` and ``kernel_ms`` of the backend ``cpu``; ``sdpa_ms``, of SDPA in
        its best layout, which ``sdpa_layout`` names; ``sdpa_layouts_ms``, of each; ``gather_sdpa_ms``. And
        ``kernel_of_read``, the median over repetitions of the kernel's speed over that of reading.
    """
    made, before = tensors(case, dtype), torch.get_num_threads()
    layouts = contiguous_ways(case, made)
    ways: dict[str, Callable[[], Any]] = {"kernel": paged("cpu", made), "gather": gather_sdpa(case, made), **layouts}
    torch.set_num_threads(num_threads)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            results = {name: way().float() for name, way in ways.items()}
            for name, result in results.items():
                difference = (result - results["kernel"]).abs().max().item()
                if not difference < (0.05 if dtype.itemsize < 4 else 1e-4):
                    raise RuntimeError(f"{name} and the kernel differ by {difference:.2g}: a time would mean nothing")
            seconds = take_turns({"read": reading(made, num_threads, pool), **ways}, repetitions)
    finally:
        torch.set_num_threads(before)
    ms = {name: 1000 * median(row) for name, row in seconds.items()}
    best, kv_bytes = min(layouts, key=lambda name: ms[name]), case.kv_bytes(dtype)
    read_bytes = made.key_cache.nbytes + made.value_cache.nbytes
    ratios = [
        kv_bytes / kernel * read / read_bytes for kernel, read in zip(seconds["kernel"], seconds["read"], strict=True)
    ]
    return {
        "read_gb_s": read_bytes / ms["read"] / 1e6,
        "kernel_gb_s": kv_bytes / ms["kernel"] / 1e6,
        "kernel_of_read": median(ratios),
        "kernel_ms": ms["kernel"],
        "sdpa_ms": ms[best],
        "sdpa_layout": best,
        "sdpa_layouts_ms": {name: ms[name] for name in layouts},
        "gather_sdpa_ms": ms["gather"],
    }


def measure(cases: Mapping[str, Case] = CASES, *, repetitions: int = 9, progress: bool | None = None) -> dict[str, Any]:
    """Measure every case in float32 and bfloat16, on one thread and on all.

    Args:
        cases: by name.
        repetitions: how often each way is timed.
        progress: whether to show a bar on standard error after a second; by default if that is a terminal.

    Returns:
        The machine and the settings, and ``cases``: what :func:`measure_case` gives for each, with ``case``, ``what``,
        ``dtype`` and ``threads``.

    Raises:
        ValueError: fewer than 2 repetitions.

    Example:
        >>> report = measure({"tiny": Case("three tokens", (3,), 2, 1, 8)}, repetitions=2)
        >>> {(row["case"], row["dtype"]) for row in report["cases"]} == {("tiny", "float32"), ("tiny", "bfloat16")}
        True
    """
    from tqdm import tqdm

    if repetitions < 2:
        raise ValueError(f"repetitions is {repetitions}: give at least 2 repetitions")
    all_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = [
        (name, dtype, num_threads)
        for name in cases
        for dtype in (torch.float32, torch.bfloat16)
        for num_threads in sorted({1, all_threads})
    ]
    rows = []
    with torch.inference_mode():
        for name, dtype, num_threads in tqdm(
            settings, unit=" cases", delay=1, leave=False, disable=None if progress is None else not progress
        ):
            labels = {"case": name, "what": cases[name].what, "dtype": str(dtype)[6:], "threads": num_threads}
            rows.append(labels | measure_case(cases[name], dtype, num_threads, repetitions))
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
        "block_size": BLOCK_SIZE,
        "repetitions": repetitions,
        "cases": rows,
    }


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured.

    Example:
        >>> report = measure({"tiny": Case("three tokens", (3,), 2, 1, 8)}, repetitions=2)
        >>> print(describe(report).splitlines()[0])
        One decode step's attention in one layer, blocks of 16 tokens.
    """
    lines = [
        f"One decode step's attention in one layer, blocks of {report['block_size']} tokens.",
        f"Medians of {report['repetitions']} runs in turns, wall clock.",
        "SDPA: torch's, on contiguous keys and values in its best layout.",
        "",
        f"{'case':<5}{'dtype':<9}threads  read   kernel GB/s       ms SDPA ms gather + SDPA ms",
    ]
    for row in report["cases"]:
        speed = f"{row['kernel_gb_s']:.1f} ({row['kernel_of_read']:.0%} of read)"
        lines.append(
            f"{row['case']:<5}{row['dtype']:<9}{row['threads']:>7}{row['read_gb_s']:>6.1f}{speed:>20}"
            f"{row['kernel_ms']:>8.2f}{row['sdpa_ms']:>9.2f}{row['gather_sdpa_ms']:>16.2f}"
        )
    lines += [""] + [f"{name}: {what}" for name, what in dict((r["case"], r["what"]) for r in report["cases"]).items()]
    return "\n".join(lines)
