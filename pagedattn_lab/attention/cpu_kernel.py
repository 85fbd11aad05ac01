"""The decode kernel of the CPU backend, compiled by numba (chapter 08).

A step of decode reads every key and value once and does little with each, so the order of reading decides. The kernel
takes a tile of tokens, looks up where they lie, and goes through memory as it lies there: all KV heads of a token
before the next token, and each row of a key or a value once for two or three query heads. Threads share the work by
tiles: each takes an equal run of all sequences' tiles in a row, and partial softmaxes are merged at the end. So one
long sequence keeps all threads busy, as split-KV does on a GPU. The functions have no type hints: numba infers types
from a call's arguments, and compiles once for each kind; see :mod:`pagedattn_lab.attention.cpu_numbers`.

Source: Milakov and Gimelshein 2018, arXiv 1805.02867, for the online softmax; Flash-Decoding (Dao et al. 2023,
https://pytorch.org/blog/flash-decoding), for cutting one sequence into parts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from pagedattn_lab.attention.cpu_numbers import (
    LANES,
    exp2,
    f32,
    fma,
    inlined,
    jit,
    lanes,
    larger,
    largest_of,
    load,
    prefetch_line,
    rounded,
    spread,
    store,
    store_sums,
    u64,
    vector,
)

TILE = 32
"""Tokens between two rescalings of the running sums; a multiple of 16, so of whole vectors and of passes of four."""

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


# --- one tile -------------------------------------------------------------------------------------------------------


@inlined
def _look_up(at, position, n, table, cache):
    """Find where ``n`` tokens begin in memory. Four share a pass, so the last is repeated to a multiple of four."""
    for t in range(n):
        block, slot = table[u64(position + t) // cache.block_size], u64(position + t) % cache.block_size
        at[t] = u64(block) * cache.block_stride + slot * cache.slot_stride
    for t in range(n, (n + 3) // 4 * 4):
        at[t] = at[n - 1]


@inlined
def _rows(at, t, first):
    """Say where four tokens' rows of one head begin, whose first number is ``first`` behind a token's."""
    return at[t] + first, at[t + 1] + first, at[t + 2] + first, at[t + 3] + first


@inlined
def _ask_for(cache, at, t, kv_head):
    """Prefetch one KV head's rows of four tokens: what is needed next comes while this is computed."""
    i, j, k, m = _rows(at, t, u64(kv_head) * cache.head_stride)
    for d in range(u64(0), cache.head_dim, u64(64 // cache.memory.itemsize)):
        prefetch_line(cache.memory, i + d)
        prefetch_line(cache.memory, j + d)
        prefetch_line(cache.memory, k + d)
        prefetch_line(cache.memory, m + d)


# Two query heads share a pass, or three where that leaves none alone. The only head of a group shares its pass with a
# spare row, the last, that nobody reads. Rows of queries and of sums have zeros up to a whole number of vectors.


@inlined
def _score(scores, query, key, at, n, group, value, values_at):
    """Multiply the keys of ``n`` tokens with all query heads."""
    spare, none = query.shape[0] - 1, spread(f32(0))
    for t in range(0, n, 4):
        for kv_head in range(spare // group):
            _ask_for(value, values_at, t, kv_head)
            i, j, k, m = _rows(at, t, u64(kv_head) * key.head_stride)
            head, end = kv_head * group, (kv_head + 1) * group
            if group % 2 and group > 1:
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = none
                for d in range(u64(0), key.head_dim, u64(LANES)):
                    left = key.head_dim - d
                    a, b, c = vector(query, (head, d)), vector(query, (head + 1, d)), vector(query, (head + 2, d))
                    w, x = lanes(key.memory, i + d, left), lanes(key.memory, j + d, left)
                    y, z = lanes(key.memory, k + d, left), lanes(key.memory, m + d, left)
                    a0, a1, a2, a3 = fma(a, w, a0), fma(a, x, a1), fma(a, y, a2), fma(a, z, a3)
                    b0, b1, b2, b3 = fma(b, w, b0), fma(b, x, b1), fma(b, y, b2), fma(b, z, b3)
                    c0, c1, c2, c3 = fma(c, w, c0), fma(c, x, c1), fma(c, y, c2), fma(c, z, c3)
                store_sums(scores, (head, t), a0, a1, a2, a3)
                store_sums(scores, (head + 1, t), b0, b1, b2, b3)
                store_sums(scores, (head + 2, t), c0, c1, c2, c3)
                head += 3
            while head < end:
                other = head + 1 if head + 1 < end else spare
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = none
                for d in range(u64(0), key.head_dim, u64(LANES)):
                    left = key.head_dim - d
                    a, b = vector(query, (head, d)), vector(query, (other, d))
                    w, x = lanes(key.memory, i + d, left), lanes(key.memory, j + d, left)
                    y, z = lanes(key.memory, k + d, left), lanes(key.memory, m + d, left)
                    a0, a1, a2, a3 = fma(a, w, a0), fma(a, x, a1), fma(a, y, a2), fma(a, z, a3)
                    b0, b1, b2, b3 = fma(b, w, b0), fma(b, x, b1), fma(b, y, b2), fma(b, z, b3)
                store_sums(scores, (head, t), a0, a1, a2, a3)
                store_sums(scores, (other, t), b0, b1, b2, b3)
                head += 2


@inlined
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


@inlined
def _softmax(scores, n, top, total, acc):
    """Turn the scores of ``n`` tokens into weights, and scale what was summed before to the new maximum."""
    for head in range(len(top)):
        for t in range(n, (n + LANES - 1) // LANES * LANES):
            scores[head, t] = LOW  # up to a whole vector
        highest_of_each = spread(top[head])
        for t in range(u64(0), u64(n), u64(LANES)):
            highest_of_each = larger(highest_of_each, vector(scores, (head, t)))
        highest, added = largest_of(highest_of_each), f32(0)
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


@inlined
def _add(acc, scores, value, at, n, group, key, next_at):
    """Add the values of ``n`` tokens, each times its weight."""
    spare = acc.shape[0] - 1
    for t in range(0, n, 4):
        for kv_head in range(spare // group):
            _ask_for(key, next_at, t, kv_head)
            i, j, k, m = _rows(at, t, u64(kv_head) * value.head_stride)
            head, end = kv_head * group, (kv_head + 1) * group
            if group % 2 and group > 1:
                a0, a1, a2, a3 = _weights(scores, head, t)
                b0, b1, b2, b3 = _weights(scores, head + 1, t)
                c0, c1, c2, c3 = _weights(scores, head + 2, t)
                for d in range(u64(0), value.head_dim, u64(LANES)):
                    left = value.head_dim - d
                    w, x = lanes(value.memory, i + d, left), lanes(value.memory, j + d, left)
                    y, z = lanes(value.memory, k + d, left), lanes(value.memory, m + d, left)
                    a, b, c = vector(acc, (head, d)), vector(acc, (head + 1, d)), vector(acc, (head + 2, d))
                    store(acc, (head, d), fma(a3, z, fma(a2, y, fma(a1, x, fma(a0, w, a)))))
                    store(acc, (head + 1, d), fma(b3, z, fma(b2, y, fma(b1, x, fma(b0, w, b)))))
                    store(acc, (head + 2, d), fma(c3, z, fma(c2, y, fma(c1, x, fma(c0, w, c)))))
                head += 3
            while head < end:
                other = head + 1 if head + 1 < end else spare
                a0, a1, a2, a3 = _weights(scores, head, t)
                b0, b1, b2, b3 = _weights(scores, other, t)
                for d in range(u64(0), value.head_dim, u64(LANES)):
                    left = value.head_dim - d
                    w, x = lanes(value.memory, i + d, left), lanes(value.memory, j + d, left)
                    y, z = lanes(value.memory, k + d, left), lanes(value.memory, m + d, left)
                    a, b = vector(acc, (head, d)), vector(acc, (other, d))
                    store(acc, (head, d), fma(a3, z, fma(a2, y, fma(a1, x, fma(a0, w, a)))))
                    store(acc, (other, d), fma(b3, z, fma(b2, y, fma(b1, x, fma(b0, w, b)))))
                head += 2


@inlined
def _weights(scores, head, t):
    """Spread one head's weights of four tokens."""
    w, x = spread(scores[head, t]), spread(scores[head, t + 1])
    y, z = spread(scores[head, t + 2]), spread(scores[head, t + 3])
    return w, x, y, z


# --- a thread's share, and the sum of all ---------------------------------------------------------------------------


@inlined
def _share(part, parts, starts, row):
    """Which tiles of a row, from the first to before the last, are part ``part`` of ``parts`` equal runs of all."""
    lo, hi = starts[-1] * part // parts, starts[-1] * (part + 1) // parts
    return max(lo, starts[row]) - starts[row], min(hi, starts[row + 1]) - starts[row]


@jit
def run_part(part, parts, rows, starts, query, key, value, tables, group, scale, softcap, slopes, tops, totals, accs):
    """Compute one thread's tiles: see :class:`pagedattn_lab.attention.cpu.Plan`."""
    num_heads, head_dim = query.shape[1:]
    width = (head_dim + LANES - 1) // LANES * LANES
    scaled, scores = np.zeros((num_heads + 1, width), f32), np.zeros((num_heads + 1, TILE), f32)
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
            _score(scores, scaled, key, keys_at, n, group, value, values_at)
            if softcap > 0 or len(slopes):
                _cap_and_bias(scores, n, end - 1 - position, softcap, slopes)
            _softmax(scores, n, top, total, acc)
            if tile + 1 < last_tile:
                _look_up(keys_at, position + TILE, min(TILE, end - position - TILE), tables[sequence], key)
            _add(acc, scores, value, values_at, n, group, key, keys_at)


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
