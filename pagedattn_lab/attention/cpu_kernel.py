"""The decode kernel of the CPU backend, compiled by numba (chapter 08).

A step of decode reads every key and value once and does little with each, so the order of reading decides. The kernel
takes a tile of tokens, looks up where they lie, and goes through memory as it lies there: all KV heads of a token
before the next token, and each row of a key or a value once for two or three query heads. Threads share the work by
tiles: each takes an equal run of all sequences' tiles in a row, and partial softmaxes are merged at the end. So one
long sequence keeps all threads busy, as split-KV does on a GPU. The functions have no type hints: numba infers types
from a call's arguments, and compiles once for each kind.

Source: Milakov and Gimelshein 2018, arXiv 1805.02867, for the online softmax; Flash-Decoding (Dao et al. 2023,
https://pytorch.org/blog/flash-decoding), for cutting one sequence into parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

TILE = 32
"""Tokens between two rescalings of the running sums; a multiple of four, since four tokens share a pass."""

f32, u32, u64 = np.float32, np.uint32, np.uint64

LOW = f32(-1e30)
"""In place of minus infinity: under fastmath the compiler may assume that there is none, and no NaN either."""

LOG2_E = math.log2(math.e)
"""Scores are kept times this, for a softmax in base 2."""


class Cache(NamedTuple):
    """One of the two caches as the kernel sees it: a row of numbers, and how far apart things lie in it.

    Offsets are uint64 throughout: a signed index may be negative, which numba would test for at each number.
    """

    memory: np.ndarray
    block_stride: np.uint64
    slot_stride: np.uint64
    head_stride: np.uint64
    head_dim: np.uint64
    block_size: np.uint64

    @classmethod
    def of(cls, cache: torch.Tensor) -> Cache:
        """View a cache of any strides, without a copy; the numbers of one head lie next to each other."""
        span = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
        return cls(
            as_array(cache.as_strided((span,), (1,))), *map(u64, (*cache.stride()[:3], cache.shape[3], cache.shape[1]))
        )


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """View a tensor as numpy does, without a copy; numpy has no bfloat16, and gets its bits as uint16."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and keep the result on disk where that is possible.

    numba writes beside this file, or else into the user's cache.
    """
    options = {"fastmath": True, "nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # it can write to neither
        return numba.njit(function, **options)


# --- numbers --------------------------------------------------------------------------------------------------------


def load(x):
    """Widen a number from memory to float32."""


@overload(load)
def _load_of(x):
    if isinstance(x, types.Float):
        return lambda x: x
    return lambda x: u32(u32(x) << u32(16)).view(f32)  # a bfloat16 is the upper half of a float32


def rounded(x, array):
    """Round a float32 to what the array holds: to nearest, ties to even."""


@overload(rounded)
def _rounded_of(x, array):
    if isinstance(array.dtype, types.Float):
        return lambda x, array: x

    def upper_half(x, array):
        bits = f32(x).view(u32)
        return (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)

    return upper_half


@jit
def exp2(x):
    """2**x for x <= 0 by a polynomial, which becomes vector instructions; np.exp2 would be a call for each number."""
    x = max(x, f32(-126))
    whole = np.floor(x + f32(0.5))
    rest, power = x - whole, f32(1.5403530e-4)
    for c in (
        f32(1.33335581e-3),
        f32(9.61812911e-3),
        f32(5.55041087e-2),
        f32(2.40226507e-1),
        f32(6.93147181e-1),
        f32(1),
    ):
        power = power * rest + c
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(f32)  # 2**whole, by its bits


@intrinsic
def _prefetch(typing, array, index):
    """Ask for the cache line of ``array[index]`` without waiting for it."""

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, arguments[0])
        where = cgutils.get_item_pointer(context, builder, kind, data, [arguments[1]])
        i32 = ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [where.type, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        builder.call(prefetch, [where, i32(0), i32(2), i32(1)])  # to read, into the second-level cache, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), code


@jit
def prefetch(array, first, size):
    """Ask for the cache lines of ``array[first : first + size]``, of one dimension, without waiting for them."""
    for i in range(u64(first), u64(first) + u64(size), u64(64 // array.itemsize)):
        _prefetch(array, i)


# --- one tile -------------------------------------------------------------------------------------------------------


@jit
def _look_up(at, position, n, table, cache):
    """Find where ``n`` tokens begin in memory. Four share a pass, so the last is repeated to a multiple of four."""
    for t in range(n):
        block, slot = table[u64(position + t) // cache.block_size], u64(position + t) % cache.block_size
        at[t] = u64(block) * cache.block_stride + slot * cache.slot_stride
    for t in range(n, (n + 3) // 4 * 4):
        at[t] = at[n - 1]


@jit
def _ask_for(cache, at, t, kv_head):
    """Prefetch one KV head's rows of four tokens: what is needed next comes while this is computed."""
    first = u64(kv_head) * cache.head_stride
    i, j, k, m = at[t] + first, at[t + 1] + first, at[t + 2] + first, at[t + 3] + first
    for d in range(u64(0), cache.head_dim, u64(64 // cache.memory.itemsize)):
        _prefetch(cache.memory, i + d)
        _prefetch(cache.memory, j + d)
        _prefetch(cache.memory, k + d)
        _prefetch(cache.memory, m + d)


# Two query heads share a pass, or three where that leaves none alone. The only head of a group shares its pass with a
# spare row, the last, that nobody reads.


@jit
def _score(scores, query, key, at, t, group, value, values_at):
    """Multiply the keys of four tokens with all query heads."""
    spare = query.shape[0] - 1
    for kv_head in range(spare // group):
        _ask_for(value, values_at, t, kv_head)
        first = u64(kv_head) * key.head_stride
        i, j, k, m = at[t] + first, at[t + 1] + first, at[t + 2] + first, at[t + 3] + first
        head, end = kv_head * group, (kv_head + 1) * group
        if group % 2 and group > 1:
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = f32(0)
            for d in range(key.head_dim):
                a, b, c = query[head, d], query[head + 1, d], query[head + 2, d]
                w, x = load(key.memory[i + d]), load(key.memory[j + d])
                y, z = load(key.memory[k + d]), load(key.memory[m + d])
                a0, a1, a2, a3 = a0 + a * w, a1 + a * x, a2 + a * y, a3 + a * z
                b0, b1, b2, b3 = b0 + b * w, b1 + b * x, b2 + b * y, b3 + b * z
                c0, c1, c2, c3 = c0 + c * w, c1 + c * x, c2 + c * y, c3 + c * z
            scores[head, t], scores[head, t + 1], scores[head, t + 2], scores[head, t + 3] = a0, a1, a2, a3
            head += 1
            scores[head, t], scores[head, t + 1], scores[head, t + 2], scores[head, t + 3] = b0, b1, b2, b3
            head += 1
            scores[head, t], scores[head, t + 1], scores[head, t + 2], scores[head, t + 3] = c0, c1, c2, c3
            head += 1
        while head < end:
            other = head + 1 if head + 1 < end else spare
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = f32(0)
            for d in range(key.head_dim):
                a, b = query[head, d], query[other, d]
                w, x = load(key.memory[i + d]), load(key.memory[j + d])
                y, z = load(key.memory[k + d]), load(key.memory[m + d])
                a0, a1, a2, a3 = a0 + a * w, a1 + a * x, a2 + a * y, a3 + a * z
                b0, b1, b2, b3 = b0 + b * w, b1 + b * x, b2 + b * y, b3 + b * z
            scores[head, t], scores[head, t + 1], scores[head, t + 2], scores[head, t + 3] = a0, a1, a2, a3
            scores[other, t], scores[other, t + 1], scores[other, t + 2], scores[other, t + 3] = b0, b1, b2, b3
            head += 2


@jit
def _cap_and_bias(scores, n, distance, softcap, slopes):
    """Cap the scores of ``n`` tokens, the first ``distance`` behind the query; then add ALiBi's bias."""
    for head in range(scores.shape[0] - 1):
        if softcap > 0:
            for t in range(n):
                shrunk = exp2(f32(-2 * LOG2_E) * abs(scores[head, t]) / softcap)
                capped = softcap * (f32(1) - shrunk) / (f32(1) + shrunk)  # softcap * tanh(|score| / softcap)
                scores[head, t] = capped if scores[head, t] > 0 else -capped
        if len(slopes):
            for t in range(n):
                scores[head, t] += slopes[head] * f32(t - distance)


@jit
def _softmax(scores, n, top, total, acc):
    """Turn the scores of ``n`` tokens into weights, and scale what was summed before to the new maximum."""
    for head in range(len(top)):
        highest, added = top[head], f32(0)
        for t in range(n):
            highest = max(highest, scores[head, t])
        for t in range(n):
            scores[head, t] = exp2(scores[head, t] - highest)
            added += scores[head, t]
        for t in range(n, (n + 3) // 4 * 4):
            scores[head, t] = f32(0)  # a repeated token counts once
        if highest > top[head]:
            rescale = exp2(top[head] - highest)
            top[head], total[head] = highest, total[head] * rescale
            for d in range(acc.shape[1]):
                acc[head, d] *= rescale
        total[head] += added


@jit
def _add(acc, scores, value, at, t, group, key, next_at):
    """Add the values of four tokens, each times its weight."""
    spare = acc.shape[0] - 1
    for kv_head in range(spare // group):
        _ask_for(key, next_at, t, kv_head)
        first = u64(kv_head) * value.head_stride
        i, j, k, m = at[t] + first, at[t + 1] + first, at[t + 2] + first, at[t + 3] + first
        head, end = kv_head * group, (kv_head + 1) * group
        if group % 2 and group > 1:
            second, third = head + 1, head + 2
            a0, a1, a2, a3 = scores[head, t], scores[head, t + 1], scores[head, t + 2], scores[head, t + 3]
            b0, b1, b2, b3 = scores[second, t], scores[second, t + 1], scores[second, t + 2], scores[second, t + 3]
            c0, c1, c2, c3 = scores[third, t], scores[third, t + 1], scores[third, t + 2], scores[third, t + 3]
            for d in range(value.head_dim):
                w, x = load(value.memory[i + d]), load(value.memory[j + d])
                y, z = load(value.memory[k + d]), load(value.memory[m + d])
                acc[head, d] += a0 * w + a1 * x + a2 * y + a3 * z
                acc[second, d] += b0 * w + b1 * x + b2 * y + b3 * z
                acc[third, d] += c0 * w + c1 * x + c2 * y + c3 * z
            head += 3
        while head < end:
            other = head + 1 if head + 1 < end else spare
            a0, a1, a2, a3 = scores[head, t], scores[head, t + 1], scores[head, t + 2], scores[head, t + 3]
            b0, b1, b2, b3 = scores[other, t], scores[other, t + 1], scores[other, t + 2], scores[other, t + 3]
            for d in range(value.head_dim):
                w, x = load(value.memory[i + d]), load(value.memory[j + d])
                y, z = load(value.memory[k + d]), load(value.memory[m + d])
                acc[head, d] += a0 * w + a1 * x + a2 * y + a3 * z
                acc[other, d] += b0 * w + b1 * x + b2 * y + b3 * z
            head += 2


# --- a thread's share, and the sum of all ---------------------------------------------------------------------------


@jit
def _share(part, parts, starts, row):
    """Which tiles of a row, from the first to before the last, are part ``part`` of ``parts`` equal runs of all."""
    lo, hi = starts[-1] * part // parts, starts[-1] * (part + 1) // parts
    return max(lo, starts[row]) - starts[row], min(hi, starts[row + 1]) - starts[row]


@jit
def run_part(part, parts, rows, starts, query, key, value, tables, group, scale, softcap, slopes, tops, totals, accs):
    """Compute one thread's tiles: see :class:`pagedattn_lab.attention.cpu.Plan`."""
    num_heads, head_dim = query.shape[1:]
    scaled, scores = np.zeros((num_heads + 1, head_dim), f32), np.zeros((num_heads + 1, TILE), f32)
    keys_at, values_at = np.empty(TILE, u64), np.empty(TILE, u64)
    for row in range(len(rows)):
        first_tile, last_tile = _share(part, parts, starts, row)
        if first_tile >= last_tile:
            continue
        token, sequence, begin, end = rows[row, 0], rows[row, 1], rows[row, 2], rows[row, 3]
        top, total, acc = tops[row + part], totals[row + part], accs[row + part]  # no two pieces have the same sum
        top[:], total[:], acc[:] = LOW, f32(0), f32(0)
        for head in range(num_heads):
            for d in range(head_dim):
                scaled[head, d] = load(query[token, head, d]) * scale
        position = begin + first_tile * TILE
        _look_up(keys_at, position, min(TILE, end - position), tables[sequence], key)
        for tile in range(first_tile, last_tile):
            position = begin + tile * TILE
            n = min(TILE, end - position)
            _look_up(values_at, position, n, tables[sequence], value)
            for t in range(0, n, 4):
                _score(scores, scaled, key, keys_at, t, group, value, values_at)
            if softcap > 0 or len(slopes):
                _cap_and_bias(scores, n, end - 1 - position, softcap, slopes)
            _softmax(scores, n, top, total, acc)
            if tile + 1 < last_tile:
                _look_up(keys_at, position + TILE, min(TILE, end - position - TILE), tables[sequence], key)
            for t in range(0, n, 4):
                _add(acc, scores, value, values_at, t, group, key, keys_at)


@jit
def merge(parts, rows, starts, sinks, tops, totals, accs, output, lse):
    """Add up the pieces of each row, each scaled to the row's maximum."""
    num_heads, value_dim = output.shape[1:]
    summed = np.empty(value_dim, f32)
    for row in range(len(rows)):
        for head in range(num_heads):
            top, total = (sinks[head], f32(1)) if len(sinks) else (LOW, f32(0))
            summed[:] = f32(0)
            for part in range(parts):
                first_tile, last_tile = _share(part, parts, starts, row)
                if first_tile < last_tile:
                    highest = max(top, tops[row + part, head])
                    before, added = exp2(top - highest), exp2(tops[row + part, head] - highest)
                    top, total = highest, total * before + totals[row + part, head] * added
                    for d in range(value_dim):
                        summed[d] = summed[d] * before + accs[row + part, head, d] * added
            for d in range(value_dim):
                output[rows[row, 0], head, d] = rounded(summed[d] / total, output)
            lse[rows[row, 0], head] = (top + np.log2(total)) / f32(LOG2_E)


@jit
def merge_range(tokens, other, other_lse, output, lse):
    """Merge into some tokens' outputs what they found in another range of keys, weighed by the log-sum-exps of both.

    ``other`` is ``[len(tokens), group, num_kv_heads, value_dim]``, ``other_lse`` without the last.
    """
    group, num_kv_heads = other_lse.shape[1:]
    for row in range(len(tokens)):
        token = tokens[row]
        for head in range(num_kv_heads * group):
            i, kv_head = head % group, head // group
            mine, theirs = lse[token, head] * f32(LOG2_E), other_lse[row, i, kv_head] * f32(LOG2_E)
            top = max(mine, theirs)
            mine, theirs = exp2(mine - top), exp2(theirs - top)
            total = mine + theirs
            mine, theirs = mine / total, theirs / total
            for d in range(output.shape[2]):
                both = load(output[token, head, d]) * mine + load(other[row, i, kv_head, d]) * theirs
                output[token, head, d] = rounded(both, output)
