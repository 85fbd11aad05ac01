"""Occupancy against values that were computed by hand from the guides' tables."""

from __future__ import annotations

import pytest

from pagedattn_lab.compile_report import TARGETS
from pagedattn_lab.occupancy import MULTIPROCESSORS, occupancy

KIB = 1024


@pytest.mark.parametrize(
    ("target", "registers", "shared_bytes", "num_warps", "blocks", "share", "limited_by"),
    [
        # 65,536 registers / (80 x 32 a warp) = 25.6 warps, in whole fours 24, so 6 blocks of 4.
        ("sm_90", 80, 2 * KIB, 4, 6, 24 / 64, {"registers"}),
        ("sm_75", 80, 2 * KIB, 4, 6, 24 / 32, {"registers"}),
        # 33 registers count as 40: 256 a warp is the unit. 65,536 / 1,280 = 51.2, in whole fours 48.
        ("sm_80", 33, 0, 4, 12, 48 / 64, {"registers"}),
        # 120: 65,536 / 3,840 = 17.07, in whole fours 16, one block of 16. In one pool it would be 17.
        ("sm_80", 120, 0, 1, 16, 16 / 64, {"registers"}),
        ("sm_100", 255, 0, 4, 2, 8 / 64, {"registers"}),
        # Each block's 40 KiB and the system's 1 KiB: 164 / 41 = 4. Without the system's it would be 4.1.
        ("sm_80", 32, 40 * KIB, 4, 4, 16 / 64, {"shared memory"}),
        # 32 KiB and 1: 164 / 33 = 4.97; without the system's it would be 5.125.
        ("sm_80", 32, 32 * KIB, 4, 4, 16 / 64, {"shared memory"}),
        ("sm_90", 32, 227 * KIB, 4, 1, 4 / 64, {"shared memory"}),
        ("sm_90", 32, 227 * KIB + 1, 4, 0, 0, {"shared memory"}),  # it fits a multiprocessor, but no block may have it
        ("sm_80", 32, 163 * KIB + 1, 4, 0, 0, {"shared memory"}),
        # 21,845 bytes are a third of 64 KiB, but are handed out as 86 x 256 = 22,016: two.
        ("sm_75", 32, 21_845, 4, 2, 8 / 32, {"shared memory"}),
        # Blocks of one warp: 16 blocks are all that compute capability 7.5 holds, 32 the later ones.
        ("sm_75", 16, 0, 1, 16, 16 / 32, {"blocks"}),
        ("sm_90", 16, 0, 1, 32, 32 / 64, {"blocks"}),
        ("sm_90", 32, 0, 4, 16, 1, {"registers", "warps"}),
        ("sm_90", 16, 0, 4, 16, 1, {"warps"}),
        ("sm_90", 168, 100 * KIB, 8, 1, 8 / 64, {"registers"}),  # 512 // 168 = 3 on each quarter: 12 warps
        ("sm_90", 200, 0, 16, 0, 0, {"registers"}),  # 8 warps have registers for this, not 16
        # 512 VGPRs a lane on each of four SIMDs. 69 are handed out as 72: 7 wavefronts each, 28 of 32.
        ("gfx942", 69, 2 * KIB, 4, 7, 28 / 32, {"registers"}),
        ("gfx942", 64, 0, 4, 8, 1, {"registers", "warps"}),
        ("gfx942", 65, 0, 4, 7, 28 / 32, {"registers"}),
        ("gfx942", 512, 0, 4, 1, 4 / 32, {"registers"}),
        # 64 KiB of LDS and no reserve: two blocks of 32 KiB, one of a byte more.
        ("gfx942", 32, 32 * KIB, 4, 2, 8 / 32, {"shared memory"}),
        ("gfx942", 32, 32 * KIB + 1, 4, 1, 4 / 32, {"shared memory"}),
    ],
)
def test_by_hand(
    target: str, registers: int, shared_bytes: int, num_warps: int, blocks: int, share: float, limited_by: set[str]
) -> None:
    """Catches a limit that is another's, a unit in which nothing is handed out, and a cause that is not the cause."""
    found = occupancy(target, registers, shared_bytes, num_warps)
    assert (found.blocks, found.warps, found.share) == (blocks, blocks * num_warps, share)
    assert set(found.limited_by) == limited_by


def test_every_target_has_its_limits_and_their_source() -> None:
    """Catches a target of the compiler without a row, and a row that says nothing of where it is from."""
    assert set(MULTIPROCESSORS) == set(TARGETS)
    assert all("Guide" in each.source and each.gpus for each in MULTIPROCESSORS.values())


@pytest.mark.parametrize(
    "arguments", [("sm_999", 1, 0, 1), ("sm_90", -1, 0, 1), ("sm_90", 1, -1, 1), ("sm_90", 1, 0, 0)]
)
def test_what_no_kernel_has_is_refused(arguments: tuple[str, int, int, int]) -> None:
    """Catches a share computed from nonsense."""
    with pytest.raises(ValueError, match=r"use one of|give at least"):
        occupancy(*arguments)
