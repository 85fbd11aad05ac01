"""What lies between a decoder layer's matrix products, each in one pass over memory, compiled by numba (chapter 09).

A module for each operation reads its input from memory and writes its output back. Neighbours that are computed
together read and write once: residual sum and RMSNorm; rotary embedding and cache write; SiLU and product. All compute
in float32, on one thread. Numbers of bfloat16 come as their bits, uint16.

Source: vLLM's ``csrc/layernorm_kernels.cu``, ``pos_encoding_kernels.cu`` and ``activation_kernels.cu``, release 0.33.0,
for what is worth computing together.
"""

from __future__ import annotations

import math

import numpy as np

from pagedattn_lab.attention.cpu_numbers import exp2, f32, inlined, jit, load, prefetch, rounded

MINUS_LOG2_E = f32(-math.log2(math.e))

AHEAD = 2
"""How many tokens before it is written a slot is asked for: slots lie anywhere in memory, and a write would wait."""


@jit
def add_rms_norm(residual, delta, weight, epsilon, out):
    """Add ``delta`` to the residual stream; then ``out = residual / rms(residual) * weight``.

    Shapes: ``[num_tokens, hidden_size]``, ``weight`` ``[hidden_size]``. The residual is float32. A ``delta`` of no rows
    adds nothing.
    """
    size = residual.shape[1]
    for token in range(residual.shape[0]):
        squares = f32(0)
        if len(delta):
            for i in range(size):
                x = residual[token, i] + load(delta[token, i])
                residual[token, i] = x
                squares += x * x
        else:
            for i in range(size):
                squares += residual[token, i] * residual[token, i]
        scale = f32(1) / np.sqrt(squares / f32(size) + epsilon)
        for i in range(size):
            out[token, i] = rounded(residual[token, i] * scale * weight[i], out)


@inlined
def _norm_and_rotate(heads, norm, epsilon, cos, sin, wide, out):
    """Rotate one token's heads, after a norm if that has weights. ``wide`` is room for one head in float32.

    Loops over what lies in ``wide`` become vector instructions: nothing else can lie in the same place.
    """
    size, half = out.shape[1], out.shape[1] // 2
    for head in range(len(out)):
        for i in range(size):
            wide[i] = load(heads[head, i])
        if len(norm):
            squares = f32(0)
            for i in range(size):
                squares += wide[i] * wide[i]
            scale = f32(1) / np.sqrt(squares / f32(size) + epsilon)
            for i in range(size):
                wide[i] *= scale * norm[i]
        for i in range(half):
            out[head, i] = rounded(wide[i] * cos[i] - wide[half + i] * sin[i], out)
        for i in range(half):
            out[head, half + i] = rounded(wide[half + i] * cos[i] + wide[i] * sin[i], out)


@jit
def rotate_and_write(qkv, positions, slots, cos, sin, q_norm, k_norm, epsilon, query, key_cache, value_cache):
    """Rotate queries and keys by their positions; keep queries in ``query``, keys and values in the cache.

    Args:
        qkv: ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``, queries before keys before values.
        positions, slots: ``[num_tokens]`` int64.
        cos, sin: ``[max_positions, head_dim // 2]`` float32.
        q_norm, k_norm: ``[head_dim]`` float32, weights of an RMSNorm of each head before the rotation, or empty.
        epsilon: of that norm.
        query: ``[num_tokens, num_heads, head_dim]``.
        key_cache, value_cache: ``[num_slots, num_kv_heads, head_dim]``, contiguous.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[1]
    wide = np.empty(head_dim, f32)
    keys, values, size = key_cache.reshape(-1), value_cache.reshape(-1), num_kv_heads * head_dim
    for token in range(num_tokens):
        if token + AHEAD < num_tokens:
            first = slots[token + AHEAD] * size
            prefetch(keys, first, size)
            prefetch(values, first, size)
        heads = qkv[token].reshape(num_heads + 2 * num_kv_heads, head_dim)
        c, s, slot = cos[positions[token]], sin[positions[token]], slots[token]
        _norm_and_rotate(heads, q_norm, epsilon, c, s, wide, query[token])
        _norm_and_rotate(heads[num_heads:], k_norm, epsilon, c, s, wide, key_cache[slot])
        value_cache[slot] = heads[num_heads + num_kv_heads :]


@jit
def silu_and_mul(gate_up, out):
    """``out = silu(gate) * up``, where a row holds gate before up: ``[num_tokens, 2 * size]`` to ``[..., size]``."""
    size = out.shape[1]
    for token in range(out.shape[0]):
        for i in range(size):
            gate, up = load(gate_up[token, i]), load(gate_up[token, size + i])
            small = exp2(MINUS_LOG2_E * abs(gate))  # of minus the magnitude: it cannot overflow
            top = f32(1) if gate >= f32(0) else small
            out[token, i] = rounded(gate * top / (f32(1) + small) * up, out)
