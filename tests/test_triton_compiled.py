"""The fast Triton kernels, compiled for GPUs that are not here: do they use what the GPU has, and nothing too much?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedattn_lab.attention.launch import Launch, kept_launches
from pagedattn_lab.attention.triton_prefill import prefill_attention
from pagedattn_lab.attention.triton_split import decode_attention
from pagedattn_lab.attention.variant import Variant
from pagedattn_lab.compile_report import TARGETS, Report, compile_kernel, compile_launch, read
from pagedattn_lab.kernels import Batch
from tests.helpers.draws import COMPILER

pytestmark = pytest.mark.when_changed(*COMPILER)

LAYER = (128, 32, 8, 16)
"""head_dim, heads, KV heads, tokens per block."""


@pytest.mark.parametrize("target", TARGETS)
def test_split_kernel_for_every_target(target: str) -> None:
    """Catches a kernel that only the interpreter accepts, matrix units left idle, narrow loads of keys and values, and
    registers that run out. Triton 3.7 has no tensor cores for Turing (sm_75), which has no bfloat16 either.
    """
    report, _ = compile_kernel("split", target, "float16" if target == "sm_75" else "bfloat16", *LAYER)
    assert report.spill_bytes == 0
    assert report.kv_loads > report.kv_loads_narrow == 0
    assert (report.mma == 0) == (target == "sm_75")
    if target not in ("sm_75", "gfx942"):
        assert report.registers <= 80
        assert report.async_copies == report.async_copies_128 == report.kv_loads


def kept(batch: Batch, variant: Variant, splits: int | None) -> tuple[Launch, ...]:
    """What the library launches for a batch, decoded in so many splits, or as prompts."""
    tensors = (batch.query, batch.key_cache, batch.value_cache, batch.block_tables, batch.seq_lens)
    with kept_launches() as launches:
        if splits is None:
            prefill_attention(*tensors, batch.query_start_loc, batch.scale, variant)
        else:
            decode_attention(*tensors, batch.scale, variant, splits)
    return tuple(launches)


def report_of(launch: Launch, target: str, batch: Batch) -> Report:
    return read(launch, compile_launch(launch, target), target, batch)[0]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_prefill_kernel_with_every_option(target: str) -> None:
    """Catches a prefill kernel that the compiler refuses, one that spills, or one that leaves matrix units idle."""
    batch, ones = Batch.of("bfloat16", *LAYER), torch.ones(32)
    (launch,) = kept(batch, Variant(softcap=30.0, sliding_window=100, alibi_slopes=ones, sinks=ones), None)
    report = report_of(launch, target, batch)
    assert report.spill_bytes == 0 < report.mma
    assert report.kv_loads > report.kv_loads_narrow == 0


def test_8_bit_and_the_merge() -> None:
    """Catches a conversion of 8 bits that the compiler refuses, and a merge that spills."""
    batch = Batch.of("bfloat16", *LAYER)
    batch = replace(
        batch,
        key_cache=batch.key_cache.to(torch.float8_e4m3fn),
        value_cache=batch.value_cache.to(torch.float8_e4m3fn),
    )
    scales = torch.ones(2, 16, 8)
    split, merge = (
        report_of(each, "sm_90", batch) for each in kept(batch, Variant(k_scale=scales, v_scale=scales), 64)
    )
    assert split.spill_bytes == merge.spill_bytes == 0 < split.mma
    assert split.kv_loads > split.kv_loads_narrow == 0


@pytest.mark.parametrize("splits", [1, None])
def test_strides_past_32_bits_compile(splits: int | None) -> None:
    """Catches a stride that must fit into 32 bits, which Triton would otherwise pass as 64, and one row as 32."""
    (launch,) = kept(Batch.of("bfloat16", *LAYER), Variant(), splits)
    named = zip(launch.kernel.arg_names, launch.args, strict=False)
    wide = launch._replace(args=tuple(2**33 if "_stride_" in name else arg for name, arg in named))
    signature = compile_launch(wide, "sm_90").asm["ttir"].splitlines()
    assert any("key_stride_block: i64" in line for line in signature)
