"""What the attention tests share: ragged paged batches laid out to hurt, and a dense float64 answer to compare with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pagedattn_lab.attention import cascade


@dataclass
class Batch:
    """Arguments for ``paged_attention``, with the same tokens kept contiguously beside them.

    Every slot that holds no token of a sequence is NaN, null block included, blocks are handed out in random order,
    and table entries past a sequence's end are ``garbage``.
    """

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    dense: list[tuple[torch.Tensor, torch.Tensor]]  # (key, value) per sequence, [seq_len, num_kv_heads, head_dim]

    def arguments(self) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        positional = (self.query, self.key_cache, self.value_cache, self.block_tables, self.seq_lens)
        return positional, {"query_start_loc": self.query_start_loc}


def ragged_batch(
    seq_lens: list[int],
    query_lens: list[int],
    *,
    block_size: int,
    head_dim: int,
    heads: int = 6,
    kv_heads: int = 2,
    dtype: torch.dtype = torch.float32,
    garbage: int | None = 2**30,
    seed: int = 0,
    value_dim: int | None = None,
) -> Batch:
    """Build a batch. ``garbage=None`` fills the unused table entries with a block of NaN that does exist."""
    value_dim = head_dim if value_dim is None else value_dim
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    counts = [-(-seq_len // block_size) for seq_len in seq_lens]
    num_blocks = sum(counts) + 3  # the null block, and two that nobody owns
    # Keys and values lie in memory in different orders, and neither in that of their shape: strides all differ.
    key_storage = torch.full((num_blocks, kv_heads, block_size, head_dim + 8), math.nan, dtype=dtype)
    value_storage = torch.full((num_blocks, 2, block_size, kv_heads, value_dim), math.nan, dtype=dtype)
    key_cache, value_cache = key_storage.transpose(1, 2)[..., :head_dim], value_storage[:, 1]
    order = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    nobodys = order[-1]
    # The rows after the last stay out of the batch: a mutant that strays into them finds entries, not other memory.
    shape = (len(seq_lens) + sum(query_lens), max(counts) + 1)
    tables = torch.full(shape, nobodys if garbage is None else garbage, dtype=torch.int32)[: len(seq_lens)]
    dense = []
    for row, (seq_len, count) in enumerate(zip(seq_lens, counts, strict=True)):
        blocks, order = order[:count], order[count:]
        tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        # Scores grow along the sequence, so the running maximum moves in every tile.
        key = normal(seq_len, kv_heads, head_dim) * torch.linspace(0.5, 2, seq_len)[:, None, None].to(dtype)
        value = normal(seq_len, kv_heads, value_dim)
        for position in range(seq_len):
            slot = blocks[position // block_size], position % block_size
            key_cache[slot], value_cache[slot] = key[position], value[position]
        dense.append((key, value))
    return Batch(
        normal(sum(query_lens), heads, head_dim),
        key_cache,
        value_cache,
        tables,
        torch.tensor(seq_lens, dtype=torch.int32),
        torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32),
        dense,
    )


def quantized(batch: Batch, dtype: torch.dtype, per_token: tuple[bool, bool]) -> dict[str, torch.Tensor]:
    """Put a batch's caches into 8 bits, and what they now stand for into ``batch.dense``.

    ``per_token`` says for keys and for values whether each token and head has a scale of its own. Scales of slots that
    hold no token are NaN, and those of the values are not those of the keys.

    Returns:
        ``k_scale`` and ``v_scale``.
    """
    largest = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}[dtype]
    scales, stands_for = [], []
    for which, name in enumerate(("key_cache", "value_cache")):
        cache = getattr(batch, name).float()
        filled = cache.nan_to_num()
        top = filled.abs().amax(dim=-1) if per_token[which] else filled.abs().max().reshape(1)
        scale = top / largest * (1 + which)  # [num_blocks, block_size, num_kv_heads] or [1]
        broadcast = scale.reshape(*scale.shape, *[1] * (4 - scale.dim()))
        small = filled / broadcast.clamp(min=1e-9)
        small = (small.round() if dtype == torch.int8 else small).clamp(-largest, largest).to(dtype)
        setattr(batch, name, small)
        stands_for.append(small.float() * broadcast)
        scales.append(torch.where(cache[..., 0].isnan(), math.nan, scale) if per_token[which] else scale)
    block_size = batch.key_cache.shape[1]
    for row, seq_len in enumerate(batch.seq_lens.tolist()):
        position = torch.arange(seq_len)
        where = batch.block_tables[row, position // block_size].long(), position % block_size
        batch.dense[row] = stands_for[0][where], stands_for[1][where]
    return dict(zip(("k_scale", "v_scale"), scales, strict=True))


def spread(tensor: torch.Tensor, dim: int, folder: Path) -> torch.Tensor:
    """Copy a tensor so that neighbours along ``dim`` lie 2**30 elements apart.

    From the third neighbour on an offset needs more than 32 bits. The storage is a file with holes, and only the pages
    of the copy itself exist. It reaches 2**31 elements to either side of the first element, so that an offset cut to
    32 bits reads zeros and gives a wrong number rather than a crash.
    """
    rows = tensor.movedim(dim, 0)
    reach, gap = 2**31, 2**30
    size = reach + max(reach, len(rows) * gap) + tensor.numel()
    file = folder / f"{size}.bin"
    storage = torch.from_file(str(file), shared=True, size=size, dtype=tensor.dtype)
    file.unlink()  # the mapping lives on; the name is not needed
    copy = storage.as_strided(rows.shape, (gap, *rows[0].contiguous().stride()), reach)
    return copy.copy_(rows).movedim(0, dim)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Say whether two tensors hold the same bits: a NaN equals itself, and 0.0 is not -0.0."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return first.dtype == second.dtype and torch.equal(first.view(integer), second.view(integer))


def dense_attention(
    batch: Batch,
    scale: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    weights_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in float64, query by query and head by head, over contiguous keys and values.

    ``weights_dtype`` is given for a kernel that rounds each weight to it before the product with the values; its sum of
    weights is that of the weights before.

    Returns:
        The outputs, and for each element a bound on what float32 arithmetic and one final rounding may differ by.
    """
    dtype, (_, heads, head_dim) = batch.query.dtype, batch.query.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    output = torch.empty(*batch.query.shape[:2], batch.value_cache.shape[3], dtype=torch.float64)
    bound = torch.empty_like(output)
    eps = torch.finfo(torch.float32).eps
    for row, (key, value) in enumerate(batch.dense):
        first, last = batch.query_start_loc[row].item(), batch.query_start_loc[row + 1].item()
        for token in range(first, last):
            seen = len(key) - (last - 1 - token)
            begin = 0 if sliding_window is None else max(0, seen - sliding_window)
            for head in range(heads):
                kv_head = head * key.shape[1] // heads
                keys, values = key[begin:seen, kv_head].double(), value[begin:seen, kv_head].double()
                query = batch.query[token, head].double()
                scores = keys @ query * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                distance = torch.zeros(len(scores), dtype=torch.float64)
                if alibi_slopes is not None:
                    distance = torch.arange(begin, seen, dtype=torch.float64) - (seen - 1)
                    scores = scores + alibi_slopes[head].double() * distance
                extra = torch.tensor([-math.inf if sinks is None else sinks[head].item()], dtype=torch.float64)
                top = max(scores.max(), extra)
                weights = torch.exp(scores - top)
                weights = weights / (weights.sum() + torch.exp(extra - top))
                output[token, head] = weights @ values
                # A sum of n products is off by at most n eps times the sum of their sizes; exp turns an absolute
                # error of a score into a relative error of its weight, which counts in the numerator and the sum.
                score_error = (head_dim + 4) * eps * (keys.abs() @ query.abs()).max() * scale
                if softcap is not None:  # tanh is at most 1, and 1 - 2 / (exp(2 x) + 1) is off by a few eps of that
                    score_error += 4 * eps * softcap
                if alibi_slopes is not None:  # one more product and one more sum, of the size of the largest bias
                    score_error += 2 * eps * alibi_slopes[head].abs().double() * distance.abs().max()
                relative = 2 * score_error + 2 * (len(keys) + 8 + (sinks is not None)) * eps
                # Half a unit in the last place, which below the smallest normal number gets no smaller.
                rounding = torch.finfo(dtype).eps / 2 * output[token, head].abs().clamp(min=torch.finfo(dtype).tiny)
                if weights_dtype is not None:  # the same for each weight, which meets its value
                    rounding += torch.finfo(weights_dtype).eps / 2 * (weights @ values.abs())
                bound[token, head] = relative * values.abs().max(dim=0).values + rounding
    return output, bound


def rounds_weights_to(backend: str, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of the weights that meet the values: short ones go to tensor cores, and to AMX, as values are."""
    short = backend == "triton" and dtype != torch.float32
    return dtype if short or (backend == "cpu" and cascade.flash_dtype(dtype) == torch.bfloat16) else None


def assert_matches(output: torch.Tensor, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Fail where an output is further from the float64 answer than the bound, or NaN."""
    answer, bound = expected
    smallest = torch.finfo(torch.float64).tiny  # a bound of 0 is met by equal values
    excess = ((output.double() - answer).abs() / bound.clamp(min=smallest)).nan_to_num(nan=math.inf)
    assert excess.max() <= 1, f"off by {excess.max():.3g} times the rounding bound"
