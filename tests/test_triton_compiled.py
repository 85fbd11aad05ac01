"""The fast Triton kernels, compiled for GPUs that are not here: do they use what the GPU has, and nothing too much?"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import create_function_from_signature

from pagedattn_lab.attention import triton_grouped, triton_prefill, triton_split
from pagedattn_lab.attention.variant import PLAIN, Variant

TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
Launch = tuple[Any, tuple[int, ...], list[Any], dict[str, Any]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What would have been launched: kernel, grid, arguments, constants and options."""
    kept: list[Launch] = []
    for module in (triton_grouped, triton_split, triton_prefill):
        monkeypatch.setattr(
            module, "launch", lambda kernel, grid, *args, **named: kept.append((kernel, grid, list(args), named))
        )
    return kept


def call(
    splits: int | None, dtype: torch.dtype, variant: Variant = PLAIN, cache_dtype: torch.dtype | None = None
) -> None:
    """Decode 8 sequences in so many splits, or prefill them: 32 query heads and 8 KV heads of 128 elements."""
    cache = torch.empty(2, 2, 16, 8, 128, dtype=cache_dtype or dtype)
    tables, lens = torch.ones(8, 256, dtype=torch.int32), torch.full((8,), 4096, dtype=torch.int32)
    if splits is None:
        starts = torch.arange(0, 513, 64, dtype=torch.int32)
        triton_prefill.prefill_attention(
            torch.empty(512, 32, 128, dtype=dtype), *cache, tables, lens, starts, 0.1, variant
        )
    else:
        triton_split.decode_attention(torch.empty(8, 32, 128, dtype=dtype), *cache, tables, lens, 0.1, variant, splits)


def compiled(launch: Launch, target: str) -> CompiledKernel:
    """Compile a launch as Triton would on that GPU: it decides itself which arguments are multiples of 16."""
    kernel, _, args, named = launch
    backend = make_backend(TARGETS[target])
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = bind(*args, **named)
    options, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialization, given)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), TARGETS[target], vars(options))


def resources(kernel: CompiledKernel, folder: Path) -> tuple[int, int]:
    """Registers and bytes of stack (where what does not fit into registers goes) of a thread."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1])


@pytest.mark.parametrize("target", TARGETS)
def test_split_kernel_for_every_target(target: str, launches: list[Launch], tmp_path: Path) -> None:
    """Catches a kernel that only the interpreter accepts, matrix units left idle, narrow loads of keys and values, and
    registers that run out. Triton 3.7 has no tensor cores for Turing (sm_75), which has no bfloat16 either.
    """
    call(16, torch.float16 if target == "sm_75" else torch.bfloat16)
    kernel = compiled(launches[0], target)
    if target == "gfx942":
        assembly = kernel.asm["amdgcn"]
        assert "v_mfma_f32" in assembly
        assert re.search(r"(global|buffer)_load_dwordx4", assembly)
        assert re.search(r"\.vgpr_spill_count:\s*0\b", assembly)
        return
    ptx, (registers, stack) = kernel.asm["ptx"], resources(kernel, tmp_path)
    assert stack == 0
    if target == "sm_75":
        assert "ld.global.v4" in ptx
    else:
        assert "mma.sync" in ptx
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx)
        assert len(copies) >= 16 and set(copies) == {"0x10"}, "of 128 bits each"
        assert registers <= 80


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_prefill_kernel_compiles(target: str, launches: list[Launch], tmp_path: Path) -> None:
    """Catches a prefill kernel that the compiler refuses, one that spills, or one that leaves matrix units idle."""
    sinks = torch.ones(32)
    call(None, torch.bfloat16, Variant(softcap=30.0, sliding_window=100, alibi_slopes=sinks, sinks=sinks))
    kernel = compiled(launches[0], target)
    if target == "gfx942":
        assert "v_mfma_f32" in kernel.asm["amdgcn"]
    else:
        assert "wgmma.mma_async" in kernel.asm["ptx"]
        assert resources(kernel, tmp_path)[1] == 0


def test_8_bit_and_merge_compile(launches: list[Launch], tmp_path: Path) -> None:
    """Catches a conversion of 8 bits that the compiler refuses, and a merge that spills."""
    scales = torch.ones(2, 16, 8)
    call(64, torch.bfloat16, Variant(k_scale=scales, v_scale=scales), torch.float8_e4m3fn)
    for launch in launches:
        assert resources(compiled(launch, "sm_90"), tmp_path)[1] == 0
    assert "mma.sync" in compiled(launches[0], "sm_90").asm["ptx"]


@pytest.mark.parametrize("splits", [1, None])
def test_strides_past_32_bits_compile(splits: int | None, launches: list[Launch]) -> None:
    """Catches a stride that must fit into 32 bits, which Triton would otherwise pass as 64, and one row as 32."""
    call(splits, torch.bfloat16)
    kernel, grid, args, named = launches[0]
    wide = [2**33 if "_stride_" in name else arg for name, arg in zip(kernel.arg_names, args, strict=False)]
    assert "i64" in compiled((kernel, grid, wide, named), "sm_90").asm["ttir"]
