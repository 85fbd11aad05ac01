"""``@triton.jit`` functions that the kernels of ``tests/helpers/kernels.py`` import from here: another module."""

from __future__ import annotations

import triton
import triton.language as tl

FACTOR = tl.constexpr(10.0)  # kernels.py has a FACTOR of its own


@triton.jit
def scaled(x):
    return x * FACTOR


@triton.jit
def scaled_twice(x):
    return scaled(scaled(x))


@triton.jit
def larger(a, b):
    return tl.maximum(a, scaled(b) / FACTOR)
