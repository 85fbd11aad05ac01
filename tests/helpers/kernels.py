"""Kernels that use what Triton's interpreter knows, each with inputs: run by ``launch`` and by Triton on its own.

Run as a script under ``TRITON_INTERPRET=1``, it saves what Triton's own interpreter computes to the file named.
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from tests.helpers import kernel_parts
from tests.helpers.kernel_parts import larger, scaled, scaled_twice

FACTOR = tl.constexpr(2.0)


@triton.jit
def imported_helper(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, scaled(tl.load(x_ptr + i)) + FACTOR)


@triton.jit
def helper_of_a_helper(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, scaled_twice(tl.load(x_ptr + i)) + FACTOR)


@triton.jit
def helper_of_a_module(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, kernel_parts.scaled_twice(tl.load(x_ptr + i)) + kernel_parts.scaled(FACTOR))


@triton.jit
def tensor_methods(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    table = x.reshape(N // 4, 4)
    y = x.cumsum(0) + x.sum(0) * x.max(axis=0) + x.argmax(0) + x.sigmoid()
    tl.store(out_ptr + i, y + x.softmax() + tl.broadcast_to(table.sum(axis=1, keep_dims=True), (N // 4, 4)).reshape(N))


@triton.jit
def random_numbers(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.rand(7, i) + tl.random.rand(8, i) + tl.randn(9, i) + (tl.randint(3, i) % 16))


@triton.jit
def sorting(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, tl.sort(x) + 100 * tl.sort(x, descending=True) + tl.flip(x, 0))


@triton.jit
def _keep_larger(a_value, a_index, b_value, b_index):
    second = b_value > a_value
    return tl.where(second, b_value, a_value), tl.where(second, b_index, a_index)


@triton.jit
def own_reduce(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    value, index = tl.reduce((x, i), 0, _keep_larger)
    tl.store(out_ptr + i, value + index + tl.reduce(x, 0, larger))


@triton.jit
def _decayed_sum(a, b):
    return a * 0.5 + b


@triton.jit
def own_scan(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    scanned = tl.associative_scan(x, 0, _decayed_sum) + tl.associative_scan(x, 0, larger, reverse=True)
    tl.store(out_ptr + i, scanned)


KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        imported_helper, helper_of_a_helper, helper_of_a_module, tensor_methods, random_numbers, sorting,
        own_reduce, own_scan,
    )
}  # fmt: skip


def numbers() -> torch.Tensor:
    """Give 16 numbers, no two alike, in no order."""
    return torch.randn(16, generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    outputs = {name: torch.empty(16) for name in KERNELS}
    for name, kernel in KERNELS.items():
        kernel[(1,)](numbers(), outputs[name], N=16)
    torch.save(outputs, sys.argv[1])
