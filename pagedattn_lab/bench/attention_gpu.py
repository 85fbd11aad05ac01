"""The same cases on a GPU: the Triton backend beside torch's SDPA and its FlexAttention, compiled (chapter 08).

Keys and values of SDPA and FlexAttention are contiguous and padded to the longest sequence. What memory can do is
measured by a copy, which reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from pagedattn_lab.bench.attention import CASES, Case, Tensors, paged, tensors
from pagedattn_lab.bench.timing import turns

COPIED_BYTES = 2**30
"""Bytes of the tensor that is copied: far more than a cache holds."""


def ways_of(case: Case, made: Tensors) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to compute one case; all give ``[num_seqs, num_heads, head_dim]``."""
    num_seqs, longest = made.key.shape[:2]
    query = made.query[:, :, None]  # [num_seqs, num_heads, 1, head_dim]
    key, value = (tensor.transpose(1, 2).contiguous() for tensor in (made.key, made.value))
    ragged, lens = len(set(case.seq_lens)) > 1, made.seq_lens
    mask = (torch.arange(longest, device=lens.device) < lens[:, None])[:, None, None] if ragged else None
    block_mask = create_block_mask(lambda b, h, q, kv: kv < lens[b], num_seqs, None, 1, longest, lens.device)
    compiled = torch.compile(flex_attention)
    return {
        "kernel": paged("triton", made),
        "sdpa": lambda: sdpa(query, key, value, mask, enable_gqa=True)[:, :, 0],
        "flex": lambda: compiled(query, key, value, block_mask=block_mask, enable_gqa=True)[:, :, 0],
    }


def take_turns(ways: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Time each way on the device, each time another one first; give medians in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in [*ways.values()] * 3:  # compiled and warm
        way()
    for repetition in range(repetitions):
        for name in turns(list(ways), repetition):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            ways[name]()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: median(row) for name, row in times.items()}


def measure(cases: Mapping[str, Case] = CASES, *, repetitions: int = 15) -> dict[str, Any]:
    """Measure every case in float16 and bfloat16 on the current GPU, if there is one.

    Returns:
        Under ``gpu`` ``None``, or the ``device``; ``copy_gb_s``, bytes read and written by a copy each second; and
        ``cases``, with ``kernel_ms``, ``kernel_gb_s``, ``kernel_of_copy``, ``sdpa_ms`` and ``flex_ms`` for each.
    """
    if not torch.cuda.is_available():
        return {"gpu": None}
    both = torch.ones(2, COPIED_BYTES // 4, device="cuda")
    copy_ms = take_turns({"copy": partial(both[0].copy_, both[1])}, repetitions)["copy"]
    copy_gb_s = 2 * COPIED_BYTES / copy_ms / 1e6
    rows = []
    for name, case in cases.items():
        for dtype in (torch.float16, torch.bfloat16):
            ways = ways_of(case, tensors(case, dtype, "cuda"))
            results = {way: run().float() for way, run in ways.items()}
            for way, result in results.items():
                difference = (result - results["kernel"]).abs().max().item()
                if not difference < 0.05:
                    raise RuntimeError(f"{way} and the kernel differ by {difference:.2g}: a time would mean nothing")
            ms = take_turns(ways, repetitions)
            speed = case.kv_bytes(dtype) / ms["kernel"] / 1e6
            rows.append(
                {"case": name, "dtype": str(dtype)[6:], "kernel_gb_s": speed, "kernel_of_copy": speed / copy_gb_s}
                | {f"{way}_ms": duration for way, duration in ms.items()}
            )
    return {"gpu": {"device": torch.cuda.get_device_name(), "copy_gb_s": copy_gb_s, "cases": rows}}


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured.

    Example:
        >>> describe({"gpu": None})
        'No GPU here.'
    """
    report = report["gpu"]
    if report is None:
        return "No GPU here."
    lines = [
        f"{report['device']}: a copy reads and writes {report['copy_gb_s']:,.0f} GB/s.",
        f"{'case':<5}{'dtype':<9}{'kernel GB/s':>20}{'ms':>8}{'SDPA ms':>9}{'FlexAttention ms':>17}",
    ]
    for row in report["cases"]:
        speed = f"{row['kernel_gb_s']:,.0f} ({row['kernel_of_copy']:.0%} of copy)"
        lines.append(
            f"{row['case']:<5}{row['dtype']:<9}{speed:>20}{row['kernel_ms']:>8.3f}{row['sdpa_ms']:>9.3f}"
            f"{row['flex_ms']:>17.3f}"
        )
    return "\n".join(lines)
