"""Memory in huge pages, where Linux has them: a processor has a page table, too, and looks entries up in it.

What a step reads lies far apart, in caches and in weights, so nearly each page of 4 KiB would need an entry that is not
at hand. A page of 2 MiB is one entry for 512 of those. All of this is a request that the system may turn down.

Source: Linux' manual, ``madvise(2)``, and ``Documentation/admin-guide/mm/transhuge.rst``.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress

HUGE_PAGE = 2**21
"""Bytes of a huge page on x86-64, and on most of arm64."""

_COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1, which Python's mmap does not name


def take(num_bytes: int) -> mmap.mmap | None:
    """Take memory, all zero, in huge pages if the system gives them.

    Args:
        num_bytes: at least one.

    Returns:
        ``None`` where less than a huge page is asked for, where one cannot ask for them, or where there is not so much
        memory.

    Example:
        >>> take(100) is None
        True
    """
    if num_bytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        return None
    with suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def collapse(address: int, num_bytes: int) -> int:
    """Have memory that somebody else took put into huge pages now; what stands in it stays.

    The system copies it: about a second for each GiB.

    Args:
        address, num_bytes: where it is. What shares its first and last huge page moves along, unless nobody took all of
            that page: then it stays as it is.

    Returns:
        How many of its huge pages are such now.

    Example:
        >>> collapse(0, 0)
        0
    """
    if sys.platform != "linux":
        return 0
    madvise = ctypes.CDLL(None).madvise
    pages = range(address // HUGE_PAGE, -(-(address + num_bytes) // HUGE_PAGE))
    size, advice = ctypes.c_size_t(HUGE_PAGE), ctypes.c_int(_COLLAPSE)
    return sum(madvise(ctypes.c_void_p(page * HUGE_PAGE), size, advice) == 0 for page in pages)
