"""How many warps of a kernel one multiprocessor can hold, predicted from what each of them takes (chapter 08).

A GPU hides the time that memory takes by having other warps to run meanwhile. Warps stay where they are until they
end, each with registers of its own, so the registers and the shared memory of a multiprocessor say how many there can
be. What is predicted here is that ceiling; how many there are at work depends on the grid too.

AMD's words are wavefront for warp, compute unit for multiprocessor, VGPR for register and LDS for shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagedattn_lab.arithmetic import cdiv

REGISTERS_PER_LANE = 512
"""Registers of 32 bits that one quarter of a multiprocessor has for each lane of a warp. NVIDIA: 65,536 a
multiprocessor, in four quarters of 32 lanes. AMD: 512 on each SIMD, accumulation registers included."""

REGISTER_UNIT = 8
"""A thread's registers are handed out in eights. NVIDIA: 256 a warp of 32. AMD: 8 VGPRs."""


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor has.

    Attributes:
        gpus: that have it, for people.
        warps: that it can hold.
        blocks: of threads that it can hold.
        lanes: threads of a warp.
        shared: bytes of shared memory.
        shared_reserved: bytes of it that the system takes for each block, so that one block may have so much less.
        shared_unit: bytes in whose multiples shared memory is handed out.
        source: where these figures stand.
    """

    gpus: str
    warps: int
    blocks: int
    lanes: int
    shared: int
    shared_reserved: int
    shared_unit: int
    source: str


KIB = 1024
_CUDA = "CUDA C++ Programming Guide, technical specifications per compute capability, and shared memory of {}"
MULTIPROCESSORS = {
    "sm_75": Multiprocessor("T4", 32, 16, 32, 64 * KIB, 0, 256, _CUDA.format("7.5")),
    "sm_80": Multiprocessor("A100", 64, 32, 32, 164 * KIB, KIB, 128, _CUDA.format("8.0")),
    "sm_90": Multiprocessor("H100, H200", 64, 32, 32, 228 * KIB, KIB, 128, _CUDA.format("9.0")),
    "sm_100": Multiprocessor("B200", 64, 32, 32, 228 * KIB, KIB, 128, _CUDA.format("10.0")),
    "gfx942": Multiprocessor(
        "MI300X", 32, 32, 64, 64 * KIB, 0, 512,
        "AMD Instinct MI300 (CDNA3) ISA Reference Guide, register and LDS allocation; at most 8 wavefronts a SIMD",
    ),
}  # fmt: skip
"""By architecture. Units in which shared memory is handed out are those of NVIDIA's occupancy calculator, and of LLVM's
AMDGPU backend."""


@dataclass(frozen=True)
class Occupancy:
    """How full a kernel can make a multiprocessor.

    Attributes:
        blocks: of threads at a time; 0 means that not even one fits, and a launch fails.
        warps: at a time.
        share: ``warps`` over those that the multiprocessor can hold, from 0 to 1.
        limited_by: what there is no more of, of ``"registers"``, ``"shared memory"``, ``"warps"`` and ``"blocks"``.
    """

    blocks: int
    warps: int
    share: float
    limited_by: tuple[str, ...]


def occupancy(target: str, registers: int, shared_bytes: int, num_warps: int) -> Occupancy:
    """Predict how many blocks of a kernel one multiprocessor holds.

    Args:
        target: one of :data:`MULTIPROCESSORS`.
        registers: of a thread; on AMD vector registers, accumulation registers included. AMD's scalar registers are
            left out: a wavefront may have 102, and up to 100 of them limit nothing.
        shared_bytes: of a block.
        num_warps: of a block.

    Raises:
        ValueError: an unknown target, or a number that no kernel has.

    Source: the rules of NVIDIA's CUDA Occupancy Calculator, which AMD's compute units follow with their own numbers.

    Example:
        80 registers: 512 // 80 = 6 warps on each of four quarters.

        >>> occupancy("sm_90", registers=80, shared_bytes=2048, num_warps=4)
        Occupancy(blocks=6, warps=24, share=0.375, limited_by=('registers',))
    """
    if target not in MULTIPROCESSORS:
        raise ValueError(f"target {target!r} is unknown: use one of {', '.join(MULTIPROCESSORS)}")
    if registers < 0 or shared_bytes < 0 or num_warps < 1:
        raise ValueError(
            f"registers={registers}, shared_bytes={shared_bytes}, num_warps={num_warps}: give at least 0, 0 and 1"
        )
    has = MULTIPROCESSORS[target]
    registers = cdiv(max(registers, 1), REGISTER_UNIT) * REGISTER_UNIT
    shared = cdiv(shared_bytes + has.shared_reserved, has.shared_unit) * has.shared_unit
    fits = {
        "registers": 4 * (REGISTERS_PER_LANE // registers) // num_warps,
        "shared memory": has.shared // max(shared, 1),
        "warps": has.warps // num_warps,
        "blocks": has.blocks,
    }
    if not shared:
        del fits["shared memory"]
    blocks = min(fits.values())
    warps = blocks * num_warps
    return Occupancy(blocks, warps, warps / has.warps, tuple(name for name, most in fits.items() if most == blocks))
