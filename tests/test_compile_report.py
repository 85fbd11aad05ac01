"""Kernels compiled for GPUs that are not here, and what is said of them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

from pagedattn_lab import attention
from pagedattn_lab.assembly import Listing
from pagedattn_lab.attention.launch import kept_launches, launch
from pagedattn_lab.compile_report import TARGETS, Report, compile_kernel, compile_launch, read
from pagedattn_lab.kernels import KERNELS, Batch, keep_launch
from pagedattn_lab.occupancy import MULTIPROCESSORS
from tests.helpers.draws import COMPILER
from tests.helpers.triton_state import attributes

pytestmark = pytest.mark.when_changed(*COMPILER)

CUDA = [target for target in TARGETS if target.startswith("sm_")]
LAYER = ("bfloat16", 128, 32, 8, 16)
"""dtype, head_dim, heads, KV heads, tokens per block."""


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that was compiled before counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


compiled_once = lru_cache(compile_kernel)


def compile_function(kernel: Any, target: str, batch: Batch, *args: Any, **constexprs: Any) -> tuple[Report, Listing]:
    """Launch a kernel of the tests', and read what it becomes."""
    with kept_launches() as launches:
        launch(kernel, (1,), *args, **{name: value for name, value in constexprs.items() if name != "maxnreg"})
    options = {name: value for name, value in constexprs.items() if name == "maxnreg"}
    return read(launches[0], compile_launch(launches[0], target, **options), target, batch)


@pytest.mark.parametrize("target", TARGETS)
def test_the_first_kernel(target: str) -> None:
    """Catches a target that does not compile, loads miscounted or of the wrong lines, and bytes of another tile."""
    report, listing = compiled_once("decode", target, *LAYER)
    assert (report.function, report.target, report.num_warps) == ("paged_decode_kernel", target, 4)
    assert 32 <= report.registers <= 128 and report.spill_bytes <= 8 and report.shared_bytes > 0
    assert report.mma == 0 < report.loop_fma <= report.fma and report.exp2 > 0
    assert report.async_copies == report.async_copies_128 == 0
    # Keys and values of 64 tokens, in loads of 16 bytes, by every lane of four warps.
    lanes = 4 * MULTIPROCESSORS[target].lanes
    assert report.kv_loads == 2 * 64 * 128 * 2 // 16 // lanes and report.kv_loads_narrow == 0
    assert report.global_loads > report.global_loads_128 >= report.kv_loads, "the table is read in pieces of 4 bytes"
    loop = listing.inner_loop()
    assert loop is not None and loop.kv_loads == listing.kv_loads and len(loop.instructions) == report.loop_instructions
    tile = 2 * 64 * 128 * 2
    assert report.kv_bytes_per_instruction == pytest.approx(tile / 4 / report.loop_instructions)
    assert report.occupancy == report.blocks_per_multiprocessor * 4 / MULTIPROCESSORS[target].warps > 0


@pytest.mark.parametrize(
    ("dtype", "head_dim", "heads", "block_size"),
    [("float32", 64, (8, 2), 32), ("float16", 80, (9, 3), 1), ("bfloat16", 256, (4, 4), 128)],
)
def test_other_layers(dtype: str, head_dim: int, heads: tuple[int, int], block_size: int) -> None:
    """Catches an option that is read and then forgotten, and a shape that the batch gets wrong."""
    report, _ = compiled_once("decode", "sm_80", dtype, head_dim, *heads, block_size)
    padded = 2 ** (head_dim - 1).bit_length()
    tile = 2 * min(128, 8192 // padded) * padded * (4 if dtype == "float32" else 2)
    assert report.kv_loads == tile // 16 // 128 and report.kv_loads_narrow == 0
    assert report.kv_bytes_per_instruction == pytest.approx(tile / 4 / report.loop_instructions)


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape and strides, one element further in memory: no longer at a multiple of 16 bytes."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_loads_are_as_wide_as_addresses_allow(target: str) -> None:
    """Catches a report that assumes of arguments what a launch does not find, or does not assume what it finds."""
    batch = Batch.of("float32", *LAYER[1:])
    odd = replace(batch, key_cache=shifted(batch.key_cache), value_cache=shifted(batch.value_cache))
    kept = keep_launch("decode", odd)
    report, listing = read(kept, compile_launch(kept, target), target, odd)
    assert {each.width for each in listing.kv_loads} == {4}
    even, _ = compiled_once("decode", target, "float32", *LAYER[1:])
    assert report.kv_loads_narrow == report.kv_loads == 4 * even.kv_loads > 0 == even.kv_loads_narrow


def test_strides_count_as_well_as_addresses() -> None:
    """Catches divisibility set for pointers alone: rows of two more numbers begin anywhere."""
    batch = Batch.of(*LAYER)
    storage = torch.empty(2, 2, 16, 8, 130, dtype=torch.bfloat16)[..., :128]
    odd = replace(batch, key_cache=storage[0], value_cache=storage[1])
    kept = keep_launch("decode", odd)
    report, listing = read(kept, compile_launch(kept, "gfx942"), "gfx942", odd)
    assert report.kv_loads_narrow == report.kv_loads and {each.width for each in listing.kv_loads} == {2}


@triton.jit
def _rows(pointer, positions, stride, DIM: tl.constexpr):
    return tl.load(pointer + positions[:, None] * stride + tl.arange(0, DIM)[None, :])


@triton.jit
def _tile_kernel(
    key_ptr, value_ptr, query_ptr, out_ptr, num_tokens, stride, TILE: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr
):
    """Products of tiles, loads in a function of their own, and a pointer that the loop carries on."""
    rows, dims = tl.arange(0, M), tl.arange(0, DIM)
    query = tl.load(query_ptr + rows[:, None] * DIM + dims[None, :])
    acc = tl.zeros([M, DIM], dtype=tl.float32)
    positions = tl.arange(0, TILE)
    for _ in range(0, num_tokens, TILE):
        scores = tl.dot(query, _rows(key_ptr, positions, stride, DIM).trans())
        acc = tl.dot(tl.exp2(scores).to(query.dtype), _rows(value_ptr, positions, stride, DIM), acc)
        key_ptr += TILE * stride
        value_ptr += TILE * stride
    tl.store(out_ptr + rows[:, None] * DIM + dims[None, :], acc)


def tiles(target: str, **options: int) -> tuple[Report, Listing]:
    batch = Batch.of(*LAYER)
    query, out = torch.empty(16, 128, dtype=torch.bfloat16), torch.empty(16, 128)
    return compile_function(
        _tile_kernel, target, batch, batch.key_cache, batch.value_cache, query, out, 4096, 1024, TILE=64, DIM=128, M=16,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_tiles_run_on_tensor_cores(target: str) -> None:
    """Catches tensor-core instructions or asynchronous copies that go unseen, and loads lost in a helper or a loop."""
    report, _ = tiles(target)
    if target == "sm_75":  # Triton 3.7 has no products of tiles for it, of any dtype
        assert report.mma == report.loop_mma == 0 < report.loop_fma
    else:
        assert report.mma >= report.loop_mma > 0
    assert report.kv_loads > 0 == report.kv_loads_narrow
    assert (report.kv_bytes_per_instruction or 0) > 0
    if target in ("sm_75", "gfx942"):
        assert report.async_copies == 0
    else:
        assert report.async_copies == report.async_copies_128 == report.kv_loads > 0


def test_options_of_a_launch_reach_the_compiler() -> None:
    """Catches num_warps or num_stages dropped between a launch and its report."""
    few, many = tiles("sm_80", num_warps=2)[0], tiles("sm_80", num_warps=8)[0]
    assert (few.num_warps, many.num_warps) == (2, 8) and few.kv_loads == 4 * many.kv_loads
    one, three = tiles("sm_80", num_stages=1)[0], tiles("sm_80", num_stages=3)[0]
    assert one.async_copies == 0 < three.async_copies and one.shared_bytes < three.shared_bytes


def assembler_says(ptx: str, target: str, *options: str) -> tuple[int, int]:
    """Registers and bytes of spill stores, by the assembler's own account."""
    tool = knobs.nvidia.ptxas_blackwell if target == "sm_100" else knobs.nvidia.ptxas
    arch = target + ("a" if target in ("sm_90", "sm_100") else "")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [tool.path, "-v", "-lineinfo", "--regAllocOptLevel=2", f"--gpu-name={arch}", "kernel.ptx", *options]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    (registers,), (stores,) = re.findall(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill stores", said)
    return int(registers), int(stores)


@pytest.mark.parametrize("target", CUDA)
@pytest.mark.parametrize("most", [None, 48])
def test_registers_and_spills_are_the_assemblers(target: str, most: int | None) -> None:
    """Catches a spill unseen, or something taken for one: with 48 registers the kernel must spill."""
    batch = Batch.of(*LAYER)
    kept = keep_launch("decode", batch)
    compiled = compile_launch(kept, target, **({"maxnreg": most} if most else {}))
    report, _ = read(kept, compiled, target, batch)
    assert (report.registers, report.spill_bytes) == assembler_says(compiled.asm["ptx"], target)
    if most:
        assert report.registers <= most and report.spill_bytes > 8


def test_spills_on_amd() -> None:
    """Catches a spill unseen: eight wavefronts on each SIMD leave 64 registers, and a tile of this size needs more."""
    batch = Batch.of("float32", 256, 4, 4, 16)
    kept = keep_launch("decode", batch)
    free, _ = read(kept, compile_launch(kept, "gfx942"), "gfx942", batch)
    tight, listing = read(kept, compile_launch(kept, "gfx942", waves_per_eu=8), "gfx942", batch)
    assert free.spill_bytes == 0 and free.registers > 64 >= tight.registers
    assert tight.spill_bytes > 0 and listing.count("spill") > 0


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_occupancy_on_amd_is_the_compilers(head_dim: int) -> None:
    """Catches a rule for AMD's registers that LLVM, which prints its own prediction, does not share."""
    batch = Batch.of("bfloat16", head_dim, 32, 8, 16)
    kept = keep_launch("decode", batch)
    compiled = compile_launch(kept, "gfx942")
    (wavefronts,) = re.findall(r"^; Occupancy: (\d+)", compiled.asm["amdgcn"], re.MULTILINE)
    assert read(kept, compiled, "gfx942", batch)[0].occupancy == int(wavefronts) / 8


def test_every_kernel_of_the_library_can_be_compiled() -> None:
    """Catches a new kernel that is launched somewhere and missing from the table."""
    launched = {
        node.args[0].id
        for path in Path(attention.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "launch"
        and isinstance(node.args[0], ast.Name)
    }
    assert launched == {kernel.name for kernel in KERNELS.values()}
    for name in KERNELS:
        assert keep_launch(name, Batch.of(*LAYER)).kernel.__name__ == KERNELS[name].name


def test_nothing_else_changes() -> None:
    """Catches a Triton, an environment or a folder left otherwise, after which an interpreted launch would fail."""
    before = attributes(), dict(os.environ), os.getcwd()
    compile_kernel("decode", "sm_80", "float16", 64, 2, 1, 16)
    assert (attributes(), dict(os.environ), os.getcwd()) == before
    x = torch.arange(4.0)
    launch(_double, (2,), x, BLOCK=2)
    assert torch.equal(x, 2 * torch.arange(4.0))
    report, _ = compile_kernel("decode", "sm_80", "float16", 64, 2, 1, 16)
    assert report.kv_loads > 0, "compiled after an interpreted launch"


@triton.jit
def _double(x_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets) * 2)


def test_a_kernel_that_reads_no_keys() -> None:
    """Catches figures for a loop that is not there."""
    report, listing = compile_function(_double, "sm_80", Batch.of(*LAYER), torch.zeros(64), BLOCK=32)
    assert report.kv_loads == report.loop_instructions == 0 and report.kv_bytes_per_instruction is None
    assert listing.inner_loop() is None and report.global_loads > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decod", "sm_80"), "kernel 'decod' is unknown: use one of decode"),
        (("decode", "sm_81"), "target 'sm_81' is unknown: use one of sm_75, "),
        (("decode", "sm_80", "int4"), "dtype 'int4' is unknown: use one of bfloat16"),
        (("decode", "sm_80", "float16", 0), "head_dim is 0"),
        (("decode", "sm_80", "float16", 64, 9, 2), "9 heads cannot share 2 KV heads"),
        (("decode", "sm_80", "float16", 16384), "head_dim is 16384: the triton kernel takes at most 8192"),
    ],
)
def test_what_cannot_be_compiled_is_named(arguments: tuple[Any, ...], message: str) -> None:
    """Catches a traceback from within Triton, or a report about something else."""
    with pytest.raises(ValueError, match=re.escape(message)):
        compile_kernel(*arguments)


def test_a_kernel_made_for_the_interpreter() -> None:
    """Catches a traceback from within Triton where its interpreter was asked for."""
    command = [sys.executable, "-m", "pagedattn_lab", "compile", "--json"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("pagedattn-lab compile: ")
    assert "since TRITON_INTERPRET is set: unset it to compile" in result.stderr


def test_instructions_without_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a report in which no load is one of keys or values, where the compiler was told to leave lines out."""
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    for target in ("sm_80", "gfx942"):
        with pytest.raises(ValueError, match="unset TRITON_DISABLE_LINE_INFO"):
            compile_kernel("decode", target, *LAYER)
