"""Compile a Triton kernel for a GPU that is not here, and read what became of it (chapter 08).

Triton brings the whole compiler, down to NVIDIA's assembler and AMD's. So this machine can say how many registers a
kernel takes on an H100, whether its loads are 128 bits wide, and whether it uses the tensor cores. How fast it is only
the GPU can say.

What is compiled is what would run. :mod:`pagedattn_lab.kernels` calls the function that launches a kernel and keeps the
launch, and Triton's own code decides what it may assume about each argument, such as a stride that is divisible by 16.
Without that assumption loads would be narrow.

Source: ``JITFunction.run`` in ``triton/runtime/jit.py`` (Triton 3.7), whose steps :func:`compile_launch` takes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedattn_lab.assembly import Listing, lines_that_load, read_amdgcn, read_sass
from pagedattn_lab.kernels import Batch, keep_launch, need_triton
from pagedattn_lab.occupancy import MULTIPROCESSORS, occupancy

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel

    from pagedattn_lab.attention.launch import Launch

TARGETS = tuple(MULTIPROCESSORS)
"""GPUs that a kernel can be compiled for, by architecture."""


@dataclass(frozen=True)
class Report:
    """What a compiler made of a kernel. Counts are static: an instruction in a loop counts once.

    Attributes:
        function, target: what was compiled, and for what.
        num_warps: warps (on AMD wavefronts) of a block of threads.
        registers: of a thread, of 32 bits; on AMD vector registers, accumulation registers included.
        spill_bytes: that a thread stores because registers ran out.
        shared_bytes: of shared memory (on AMD LDS) for a block.
        occupancy: share of the warps which a multiprocessor can hold that this kernel lets it hold, predicted by
            :func:`pagedattn_lab.occupancy.occupancy`.
        blocks_per_multiprocessor: at a time, predicted.
        limited_by: what occupancy is limited by.
        mma: tensor-core instructions.
        fma: instructions that multiply and add, one product a lane (some do two).
        exp2: powers of two.
        global_loads: instructions that load from global memory into registers.
        global_loads_128: those that load 128 bits for each lane.
        async_copies: instructions that copy global memory to shared memory in the background.
        async_copies_128: those that copy 128 bits for each lane.
        kv_loads: loads and copies of keys and values.
        kv_loads_narrow: those that are neither asynchronous nor 128 bits wide.
        loop_instructions: of the loop that reads keys and values; 0 without one.
        loop_mma, loop_fma: of these, the tensor-core and the multiply-add instructions.
        kv_bytes_per_instruction: bytes of keys and values that a warp reads, over the instructions that it takes for
            it: both of that loop run once, with no lane masked. ``None`` without such a loop, or where a copy does
            not say how much it copies.
    """

    function: str
    target: str
    num_warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float
    blocks_per_multiprocessor: int
    limited_by: tuple[str, ...]
    mma: int
    fma: int
    exp2: int
    global_loads: int
    global_loads_128: int
    async_copies: int
    async_copies_128: int
    kv_loads: int
    kv_loads_narrow: int
    loop_instructions: int
    loop_mma: int
    loop_fma: int
    kv_bytes_per_instruction: float | None


def compile_launch(launch: Launch, target: str, **options: Any) -> CompiledKernel:
    """Compile a kept launch for a GPU, as that GPU's Triton would.

    Nothing of this process changes, and no GPU is needed. Triton keeps the result in its own cache on disk.

    Args:
        launch: from :func:`pagedattn_lab.kernels.keep_launch` or :func:`pagedattn_lab.attention.launch.kept_launches`.
        target: one of :data:`TARGETS`.
        options: of Triton's compiler, beside those of the launch.

    Raises:
        ValueError: an unknown target, or a kernel that was decorated while ``TRITON_INTERPRET`` was set.
        ImportError: Triton is not installed.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown: use one of {', '.join(TARGETS)}")
    need_triton()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    from pagedattn_lab.attention.launch import one_at_a_time

    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(
            f"{kernel.__name__} was made for Triton's interpreter, since TRITON_INTERPRET is set: unset it to compile"
        )
    is_amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if is_amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = bind(*launch.args, **launch.constexprs, **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialization, given)
    with one_at_a_time:  # an interpreted launch exchanges parts of Triton meanwhile
        return triton.compile(ASTSource(kernel, signature, constants, attributes), gpu, vars(parsed))


def disassemble(compiled: CompiledKernel) -> Listing:
    """List the instructions of a compiled kernel: SASS for NVIDIA, amdgcn for AMD.

    Raises:
        ValueError: they do not say which lines they come from.
        RuntimeError: NVIDIA's disassembler failed.
    """
    if "amdgcn" in compiled.asm:
        listing = read_amdgcn(compiled.asm["amdgcn"])
    else:
        listing = read_sass(_nvidia_tool("nvdisasm", compiled.asm["cubin"], "-c", "-g"))
    if not any(each.place for each in listing.instructions):
        raise ValueError("the instructions do not say which lines they come from: unset TRITON_DISABLE_LINE_INFO")
    return listing


def read(launch: Launch, compiled: CompiledKernel, target: str, batch: Batch) -> tuple[Report, Listing]:
    """Say what became of a launch.

    Args:
        launch: what was compiled.
        compiled: what it became.
        target: what for.
        batch: whose keys and values it reads.

    Returns:
        The report, and all instructions, those that load keys and values marked.
    """
    caches = {batch.key_cache.data_ptr(), batch.value_cache.data_ptr()}
    pointers = [
        name
        for name, argument in zip(launch.kernel.arg_names, launch.args, strict=False)
        if hasattr(argument, "data_ptr") and argument.data_ptr() in caches
    ]
    listing = disassemble(compiled).with_kv(lines_that_load(compiled.asm["ttir"], pointers))
    if "amdgcn" in compiled.asm:
        metadata = dict(re.findall(r"^\s+\.(\w+):\s+(\d+)$", compiled.asm["amdgcn"], re.MULTILINE))
        registers, spill_bytes = int(metadata["vgpr_count"]), 4 * int(metadata["vgpr_spill_count"])
    else:
        usage = _nvidia_tool("cuobjdump", compiled.asm["cubin"], "--dump-resource-usage")
        registers = int(re.findall(r"REG:(\d+)", usage)[0])
        stores = [each for each in listing.instructions if each.kind == "spill" and "STL" in each.text]
        spill_bytes = sum(each.width for each in stores)
    num_warps, shared_bytes = compiled.metadata.num_warps, compiled.metadata.shared
    predicted = occupancy(target, registers, shared_bytes, num_warps)
    loop = listing.inner_loop()
    says_how_much = loop is not None and all(each.width for each in loop.kv_loads)
    lanes = MULTIPROCESSORS[target].lanes
    report = Report(
        function=launch.kernel.__name__,
        target=target,
        num_warps=num_warps,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=shared_bytes,
        occupancy=predicted.share,
        blocks_per_multiprocessor=predicted.blocks,
        limited_by=predicted.limited_by,
        mma=listing.count("mma"),
        fma=listing.count("fma"),
        exp2=listing.count("exp2"),
        global_loads=listing.count("global load"),
        global_loads_128=listing.count("global load", width=16),
        async_copies=listing.count("async copy"),
        async_copies_128=listing.count("async copy", width=16),
        kv_loads=len(listing.kv_loads),
        kv_loads_narrow=sum(each.kind == "global load" and each.width != 16 for each in listing.kv_loads),
        loop_instructions=len(loop.instructions) if loop else 0,
        loop_mma=loop.count("mma") if loop else 0,
        loop_fma=loop.count("fma") if loop else 0,
        kv_bytes_per_instruction=lanes * loop.kv_bytes / len(loop.instructions) if loop and says_how_much else None,
    )
    return report, listing


def compile_kernel(
    kernel: str = "decode",
    target: str = "sm_90",
    dtype: str = "bfloat16",
    head_dim: int = 128,
    num_heads: int = 32,
    num_kv_heads: int = 8,
    block_size: int = 16,
) -> tuple[Report, Listing]:
    """Compile one of the library's kernels for a GPU, and read what became of it.

    Args:
        kernel: one of :data:`pagedattn_lab.kernels.KERNELS`.
        target: one of :data:`TARGETS`.
        dtype: one of :data:`pagedattn_lab.kernels.DTYPES`.
        head_dim, num_heads, num_kv_heads, block_size: of the attention layer.

    Returns:
        The report, and all instructions of the kernel.

    Raises:
        ValueError: something unknown, or a shape that the kernel refuses.
        ImportError: Triton is not installed.

    Example:
        The kernel of chapter 07 multiplies without tensor cores, and reads keys and values 16 bytes a lane:

        >>> report, listing = compile_kernel("decode", "sm_80")
        >>> report.mma, report.kv_loads > 0, report.kv_loads_narrow
        (0, True, 0)
    """
    need_triton()
    batch = Batch.of(dtype, head_dim, num_heads, num_kv_heads, block_size)
    launch = keep_launch(kernel, batch)
    return read(launch, compile_launch(launch, target), target, batch)


def _nvidia_tool(name: str, cubin: bytes, *options: str) -> str:
    """Run one of the tools that Triton's wheel brings on a compiled kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [getattr(knobs.nvidia, name).path, *options, str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr.strip() or result.returncode}")
    return result.stdout
