"""Paged attention against a dense float64 oracle: values, masking, memory safety, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pagedattn_lab.attention import paged_attention
from pagedattn_lab.attention.triton_decode import triton_attention
from tests.helpers.draws import KERNELS, pairwise
from tests.helpers.oracle import (
    assert_matches,
    dense_attention,
    quantized,
    ragged_batch,
    rounds_weights_to,
    same_bits,
    spread,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
BLOCK_SIZES = (1, 8, 16, 32, 64, 128)
BACKENDS = ("reference", "triton_decode", "triton")


def lengths(block_size: int) -> list[int]:
    """One token, a block less one, a full block, and several blocks with the last partly filled."""
    return sorted({1, max(1, block_size - 1), block_size, 2 * block_size + 3, 141})


@pytest.mark.when_changed(*KERNELS)
@pytest.mark.parametrize(("head_dim", "block_size", "dtype"), pairwise(HEAD_DIMS, BLOCK_SIZES, DTYPES), ids=str)
def test_decode_matches_oracle(head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    """Catches a wrong mask, stride, rescale, look-up, or head mapping in either backend, for every supported shape."""
    seq_lens = lengths(block_size)
    batch = ragged_batch(
        seq_lens, [1] * len(seq_lens), block_size=block_size, head_dim=head_dim, heads=4, kv_heads=2, dtype=dtype
    )
    positional, _ = batch.arguments()
    for backend in BACKENDS:
        output = paged_attention(*positional, backend=backend)
        assert output.dtype == dtype
        assert_matches(output, dense_attention(batch, weights_dtype=rounds_weights_to(backend, dtype)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 1), (6, 2), (3, 3), (8, 2)])
def test_ragged_prefill_is_causal(backend: str, heads: int, kv_heads: int) -> None:
    """Catches a query that sees a token after itself, and prompts, chunks and decodes mixed up in one batch."""
    batch = ragged_batch(
        [9, 33, 1, 20], [9, 2, 1, 7], block_size=8, head_dim=32, heads=heads, kv_heads=kv_heads, seed=1
    )
    positional, keywords = batch.arguments()
    assert_matches(paged_attention(*positional, **keywords, backend=backend), dense_attention(batch))


def test_scale_is_used() -> None:
    """Catches a backend that ignores the caller's scale."""
    batch = ragged_batch([12, 5], [1, 1], block_size=4, head_dim=32, seed=2)
    positional, _ = batch.arguments()
    for backend in BACKENDS:
        assert_matches(paged_attention(*positional, scale=0.03, backend=backend), dense_attention(batch, scale=0.03))


@pytest.mark.parametrize(("softcap", "window"), [(2.0, None), (None, 1), (None, 5), (1.5, 7)])
def test_softcap_and_window(softcap: float | None, window: int | None) -> None:
    """Catches a cap applied after the mask, and a window one token too wide or too narrow."""
    batch = ragged_batch([9, 23, 3], [9, 4, 1], block_size=4, head_dim=32, seed=3)
    positional, keywords = batch.arguments()
    options = {"softcap": softcap, "sliding_window": window}
    for backend in ("reference", "triton", "auto"):
        output = paged_attention(*positional, **keywords, **options, backend=backend)
        assert_matches(output, dense_attention(batch, **options))
    with pytest.raises(NotImplementedError, match='use backend="reference"'):
        paged_attention(*positional, **keywords, **options, backend="triton_decode")


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_blocks_lie_does_not_matter(backend: str) -> None:
    """Catches any dependence on physical placement: moving every block must not change one bit."""
    batch = ragged_batch([30, 17, 64], [1, 1, 1], block_size=8, head_dim=64, seed=4, garbage=0)
    before = paged_attention(*batch.arguments()[0], backend=backend)
    moved = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(len(batch.key_cache) - 1) + 1])
    batch.key_cache[moved], batch.value_cache[moved] = batch.key_cache.clone(), batch.value_cache.clone()
    batch.block_tables = moved[batch.block_tables.long()].int()
    assert torch.equal(paged_attention(*batch.arguments()[0], backend=backend), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_written(backend: str, dtype: torch.dtype) -> None:
    """Catches a store outside the output row: a slot without a token must stay NaN, to the bit."""
    batch = ragged_batch([30, 17], [1, 1], block_size=8, head_dim=80, seed=5, dtype=dtype)
    before = [tensor.clone() for tensor in batch.arguments()[0]]
    paged_attention(*batch.arguments()[0], backend=backend)
    for tensor, copy in zip(batch.arguments()[0], before, strict=True):
        assert same_bits(tensor, copy)


@pytest.mark.parametrize("value", [0.0, -0.0, -math.nan])
def test_same_bits_tells_apart_what_equal_does_not(value: float) -> None:
    """Catches a comparison of bits that takes a stray zero, or another NaN, for the NaN that was there."""
    slots = torch.full((3,), math.nan)
    stray = slots.clone()
    assert same_bits(slots, stray)
    stray[1] = value
    assert not same_bits(slots, stray)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("query", 0), ("query", 1)] + [(name, dim) for name in ("key_cache", "value_cache") for dim in range(3)],
)
def test_offsets_past_32_bits(name: str, dim: int, tmp_path: Path) -> None:
    """Catches an offset computed in 32 bits: along tokens, heads, blocks or slots, wherever the stride is wide."""
    batch = ragged_batch(
        [11, 4, 6], [2, 1, 1], block_size=4, head_dim=16, heads=6, kv_heads=3, dtype=torch.float16, seed=6
    )
    expected = {backend: dense_attention(batch, weights_dtype=rounds_weights_to(backend, torch.float16))
                for backend in BACKENDS}  # fmt: skip
    setattr(batch, name, spread(getattr(batch, name), dim, tmp_path))
    positional, keywords = batch.arguments()
    for backend in BACKENDS:
        assert_matches(paged_attention(*positional, **keywords, backend=backend), expected[backend])


def slopes(heads: int) -> torch.Tensor:
    """Different for each head, as ALiBi's are, and not in the proportions that its formula gives."""
    return torch.linspace(0.02, 0.9, heads)


@pytest.mark.parametrize("value_dim", [16, 48])
@pytest.mark.parametrize("options", [{"alibi_slopes": slopes(6)}, {"sinks": torch.linspace(-3, 9, 6)},
                                     {"softcap": 1.5, "sliding_window": 7, "alibi_slopes": slopes(6),
                                      "sinks": torch.linspace(9, -3, 6)}])  # fmt: skip
def test_options_of_a_layer(options: dict[str, object], value_dim: int) -> None:
    """Catches a slope or sink of another head, a bias added before the cap, a sink that keeps its weight or is lost
    behind a window, and values that are taken for as wide as keys.
    """
    batch = ragged_batch([9, 23, 3], [9, 4, 1], block_size=4, head_dim=32, value_dim=value_dim, seed=3)
    positional, keywords = batch.arguments()
    for backend in ("reference", "triton"):
        output = paged_attention(*positional, **keywords, **options, backend=backend)
        assert_matches(output, dense_attention(batch, **options))
    with pytest.raises(NotImplementedError, match='use backend="reference"'):
        paged_attention(*positional, **keywords, **options, backend="triton_decode")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("per_token", [False, True])
def test_8_bit_caches(dtype: torch.dtype, per_token: bool) -> None:
    """Catches scales of another token or head, keys' scales used for values, and a scale that is read for a slot that
    holds no token.
    """
    batch = ragged_batch([9, 23, 3], [9, 4, 1], block_size=4, head_dim=32, seed=4)
    scales = quantized(batch, dtype, (per_token, per_token))
    positional, keywords = batch.arguments()
    for backend in ("reference", "triton"):
        output = paged_attention(*positional, **keywords, **scales, backend=backend)
        assert_matches(output, dense_attention(batch))


def test_values_inside_latents() -> None:
    """Catches a backend that takes the value cache for a tensor of its own: with latent attention it is a view of the
    keys, one head that all query heads share.
    """
    batch = ragged_batch([9, 23, 3], [9, 4, 1], block_size=4, head_dim=40, heads=5, kv_heads=1, seed=5)
    batch.value_cache = batch.key_cache[..., :32]
    batch.dense = [(key, key[..., :32]) for key, _ in batch.dense]
    positional, keywords = batch.arguments()
    for backend in ("reference", "triton"):
        output = paged_attention(*positional, **keywords, scale=0.2, backend=backend)
        assert output.shape == (14, 5, 32)
        assert_matches(output, dense_attention(batch, scale=0.2))


def _arguments() -> dict[str, object]:
    batch = ragged_batch([5, 3], [1, 1], block_size=4, head_dim=8)
    names = ("query", "key_cache", "value_cache", "block_tables", "seq_lens")
    return dict(zip(names, batch.arguments()[0], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"sinks": torch.zeros(5)}, r"sinks is torch.float32 of shape \(5,\)"),
        ({"alibi_slopes": torch.zeros(6, dtype=torch.int64)}, "alibi_slopes is torch.int64"),
        ({"sinks": torch.zeros(6, device="meta")}, "sinks is on meta"),
        ({"k_scale": torch.ones(1)}, "k_scale has no meaning"),
        (
            {"key_cache": torch.zeros(6, 4, 2, 8).char(), "value_cache": torch.zeros(6, 4, 2, 8).char()},
            "k_scale is needed",
        ),
        (
            {
                "key_cache": torch.zeros(6, 4, 2, 8).char(),
                "value_cache": torch.zeros(6, 4, 2, 8).char(),
                "k_scale": torch.ones(1),
                "v_scale": torch.ones(4),
            },
            "v_scale is torch.float32 of shape",
        ),
        ({"value_cache": torch.zeros(6, 4, 2, 0)}, "value_cache has shape"),
        ({"query": torch.zeros(2, 6, 8, dtype=torch.int32)}, "floating-point"),
        ({"key_cache": torch.zeros(3, 4, 0, 8), "value_cache": torch.zeros(3, 4, 0, 8)}, "at least 1"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown"),
        ({"query": torch.zeros(2, 6)}, "query has shape"),
        ({"query": torch.zeros(2, 6, 16)}, "head_dim 16"),
        ({"query": torch.zeros(2, 5, 8)}, "5 query heads"),
        ({"query": torch.zeros(2, 6, 8, dtype=torch.float16)}, "one dtype"),
        ({"value_cache": torch.zeros(3, 4, 2, 8)}, "value_cache"),
        ({"seq_lens": torch.tensor([5, 3, 2])}, "seq_lens"),
        ({"seq_lens": torch.tensor([5.0, 3.0])}, "int32"),
        ({"seq_lens": torch.tensor([5, 0])}, "sequence 1 has seq_len 0"),
        ({"seq_lens": torch.tensor([13, 3])}, "sequence 0 has seq_len 13"),
        ({"query_start_loc": torch.tensor([0, 1])}, "query_start_loc has shape"),
        ({"query_start_loc": torch.tensor([0, 2, 2])}, "query_start_loc is"),
        ({"block_tables": torch.tensor([[1, 0], [2, 0]])}, r"block_tables\[0, 1\] is 0"),
        ({"block_tables": torch.tensor([[1, 2], [99, 0]])}, r"block_tables\[1, 0\] is 99"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    """Catches silent garbage: each wrong argument must raise an error that names it."""
    with pytest.raises(ValueError, match=message):
        paged_attention(**(_arguments() | change))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    """Catches a scale of the whole cache that turns every number into 0, NaN or its opposite without a word."""
    caches = {"key_cache": torch.zeros(6, 4, 2, 8).char(), "value_cache": torch.zeros(6, 4, 2, 8).char()}
    with pytest.raises(ValueError, match=r"v_scale is .*: give a finite number above 0"):
        paged_attention(**(_arguments() | caches), k_scale=torch.ones(1), v_scale=torch.tensor([scale]))


def test_triton_refuses_tables_past_int32() -> None:
    """Catches a position that wraps: 2**27 blocks of 16 hold one token more than int32 counts."""
    arguments = _arguments() | {"key_cache": torch.zeros(3, 16, 2, 8), "value_cache": torch.zeros(3, 16, 2, 8)}
    tables = torch.ones(2, 1, dtype=torch.int32).expand(2, 2**27)
    with pytest.raises(ValueError, match="2147483648 tokens"):
        triton_attention(**(arguments | {"block_tables": tables}), query_start_loc=torch.arange(3), scale=1.0)


def test_triton_refuses_float64_and_strided_rows() -> None:
    """Catches a kernel run on memory that it would misread."""
    arguments = _arguments()
    doubles = {name: arguments[name].double() for name in ("query", "key_cache", "value_cache")}
    with pytest.raises(ValueError, match="float64"):
        paged_attention(**(arguments | doubles), backend="triton_decode")
    with pytest.raises(NotImplementedError, match="float64"):
        paged_attention(**(arguments | doubles), backend="triton")
    strided = torch.zeros(2, 6, 16)[..., ::2]
    for backend in ("triton_decode", "triton"):
        with pytest.raises(ValueError, match="query has stride 2"):
            paged_attention(**(arguments | {"query": strided}), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("name", ["seq_lens", "block_tables", "query_start_loc"])
def test_short_integers_are_refused(name: str, dtype: torch.dtype, backend: str) -> None:
    """Catches a dtype in which lengths, table entries or the sums made of them wrap."""
    cache = torch.zeros(3, 60, 2, 8)
    arguments = {
        "block_tables": torch.tensor([[1, -1]]),
        "seq_lens": torch.tensor([100]),
        "query_start_loc": torch.tensor([0, 1]),
    }
    arguments[name] = arguments[name].to(dtype)
    with pytest.raises(ValueError, match=f"{name} is {dtype}: int32"):
        paged_attention(torch.zeros(1, 6, 8), cache, cache, **arguments, backend=backend)


@pytest.mark.parametrize(
    ("dtype", "block_size", "seq_len"), [(torch.int8, 60, 100), (torch.uint8, 120, 200)], ids=["int8", "uint8"]
)
def test_wrapped_length_does_not_hide_an_entry(dtype: torch.dtype, block_size: int, seq_len: int) -> None:
    """Catches seq_len + block_size - 1 in 8 bits: no entry seems in use, and the -1 is read."""
    cache = torch.zeros(3, block_size, 2, 8)
    lens = torch.tensor([seq_len]).to(dtype)
    with pytest.raises(ValueError, match=r"seq_lens is|block_tables"):
        paged_attention(torch.zeros(1, 6, 8), cache, cache, torch.tensor([[1, -1]]), lens, backend="reference")
