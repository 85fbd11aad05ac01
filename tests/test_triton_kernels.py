"""The fast Triton kernels, interpreted, against the dense float64 oracle: decode, splits, prompts and mixtures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.attention import paged_attention, triton_grouped, triton_split
from pagedattn_lab.attention.triton_prefill import prefill_attention
from pagedattn_lab.attention.triton_split import decode_attention
from pagedattn_lab.attention.variant import EIGHT_BIT, Variant
from tests.helpers.draws import KERNELS, drawn
from tests.helpers.oracle import Batch, assert_matches, dense_attention, quantized, ragged_batch, same_bits, spread

pytestmark = pytest.mark.when_changed(*KERNELS)

HEADS = ((4, 4), (8, 2), (9, 3), (5, 1), (32, 8), (16, 1))
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


def check(
    batch: Batch, *, splits: int | None = None, scales: dict[str, torch.Tensor] | None = None, **options: object
) -> None:
    """Run the decode kernel in so many splits, or the prefill kernel if ``None``, and compare."""
    query, key_cache, value_cache, tables, seq_lens = batch.arguments()[0]
    variant, scale = Variant(**options, **(scales or {})), 1 / math.sqrt(query.shape[2])
    if splits is None:
        output = prefill_attention(
            query, key_cache, value_cache, tables, seq_lens, batch.query_start_loc, scale, variant
        )
    else:
        output = decode_attention(query, key_cache, value_cache, tables, seq_lens, scale, variant, splits)
    assert output.dtype == query.dtype and output.shape == (*query.shape[:2], value_cache.shape[3])
    short = BF16 if key_cache.dtype in EIGHT_BIT else query.dtype  # what weights are rounded to beside short queries
    weights_dtype = None if query.dtype == FP32 else short
    assert_matches(output, dense_attention(batch, **options, weights_dtype=weights_dtype))


def slopes(heads: int) -> torch.Tensor:
    """Different for each head, as ALiBi's are, and not in the proportions that its formula gives."""
    return torch.linspace(0.02, 0.9, heads)


def options_of(heads: int, softcap: float | None, window: int | None, alibi: bool, sinks: bool) -> dict[str, object]:
    return {
        "softcap": softcap,
        "sliding_window": window,
        "alibi_slopes": slopes(heads) if alibi else None,
        "sinks": torch.linspace(-3, 9, heads) if sinks else None,
    }


@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "dtype"),
    [
        ((4, 4), 64, 1, FP32),
        ((8, 2), 80, 16, BF16),
        ((9, 3), 96, 32, FP16),
        ((5, 1), 128, 64, BF16),
        ((32, 8), 64, 16, FP16),
        ((16, 1), 256, 128, FP32),
        ((4, 4), 512, 16, BF16),
        ((8, 2), 16, 3, FP32),
        ((5, 1), 8, 5, FP32),
    ],
)
def test_every_shape(heads: tuple[int, int], head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    """Catches a wrong mask, stride, rescale, look-up, head mapping or part of a head in any of the three kernels."""
    shape = {"block_size": block_size, "head_dim": head_dim, "heads": heads[0], "kv_heads": heads[1], "dtype": dtype}
    decode = ragged_batch([1, block_size, 71], [1, 1, 1], seed=1, **shape)
    check(decode, splits=1)
    check(decode, splits=3)
    check(ragged_batch([1, 33, 71], [1, 33, 2], seed=2, **shape))


@settings(max_examples=drawn(30), derandomize=True)
@given(data=st.data())
def test_drawn_combinations(data: st.DataObject) -> None:
    """Catches what goes wrong only together: a feature, a layout and a length that no list has side by side."""
    heads, kv_heads = data.draw(st.sampled_from(HEADS), "heads")
    head_dim = data.draw(st.sampled_from((32, 64, 80, 96, 128, 256)), "head_dim")
    block_size = data.draw(st.sampled_from((1, 3, 16, 32, 64, 128)), "block_size")
    dtype = data.draw(st.sampled_from((FP32, FP16, BF16)), "dtype")
    seq_lens = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=3), "seq_lens")
    splits = data.draw(st.sampled_from((None, 1, 2, 5)), "splits")
    longest = 40 if heads < 16 else 6
    query_lens = [1 if splits else data.draw(st.integers(1, min(length, longest)), "query_len") for length in seq_lens]
    batch = ragged_batch(
        seq_lens, query_lens, block_size=block_size, head_dim=head_dim, heads=heads, kv_heads=kv_heads, dtype=dtype,
        value_dim=data.draw(st.sampled_from((head_dim, 48)), "value_dim"), seed=data.draw(st.integers(0, 99), "seed"),
    )  # fmt: skip
    scales = None
    cache_dtype = data.draw(st.sampled_from((None, *EIGHT_BIT)), "cache dtype")
    if cache_dtype is not None:
        scales = quantized(batch, cache_dtype, data.draw(st.tuples(st.booleans(), st.booleans()), "per token"))
    options = options_of(
        heads,
        data.draw(st.sampled_from((None, 1.5, 30.0)), "softcap"),
        data.draw(st.one_of(st.none(), st.integers(1, 100)), "window"),
        data.draw(st.booleans(), "alibi"),
        data.draw(st.booleans(), "sinks"),
    )
    check(batch, splits=splits, scales=scales, **options)


@pytest.mark.parametrize("splits", [1, 16, None])
def test_long_sequences(splits: int | None) -> None:
    """Catches sums that lose digits over 125 tiles, and splits that leave out or repeat tokens between them."""
    batch = ragged_batch([4000, 15, 1], [1, 1, 1], block_size=16, head_dim=64, heads=5, kv_heads=1, seed=3)
    check(batch, splits=splits)


@pytest.mark.parametrize("window", [None, 7, 33])
@pytest.mark.parametrize("splits", [2, 7, 64])
def test_splits_without_a_token(splits: int, window: int | None) -> None:
    """Catches NaN from a split that has nothing to read, a sink counted once a split, and a window cut at a split."""
    batch = ragged_batch([1, 130, 70], [1, 1, 1], block_size=8, head_dim=32, heads=6, kv_heads=2, seed=4)
    check(batch, splits=splits, **options_of(6, None, window, False, True))


@pytest.mark.parametrize("heads", [(9, 3), (5, 1), (6, 6)])
@pytest.mark.parametrize("window", [None, 5, 40])
def test_mixed_batches(heads: tuple[int, int], window: int | None) -> None:
    """Catches a tile given to the wrong sequence, one that begins in the middle of a token's heads, keys of the future
    seen or left out at a tile's edge, and decodes beside a chunk: a prompt, decodes, a chunk, a chunk's last token.
    """
    batch = ragged_batch(
        [70, 9, 130, 33, 1, 64], [70, 1, 50, 1, 1, 64], block_size=16, head_dim=32, heads=heads[0], kv_heads=heads[1],
        seed=5,
    )  # fmt: skip
    check(batch, **options_of(heads[0], None, window, True, False))


def test_one_sequence() -> None:
    """Catches a search for a tile's sequence that needs two to choose from."""
    check(ragged_batch([90], [45], block_size=16, head_dim=32, heads=4, kv_heads=2, seed=6))


def test_prompts_keep_a_tile_for_each_sequence() -> None:
    """Catches tiles counted too few: many short sequences take one each, however little of it they fill."""
    lens = [1 + index % 7 for index in range(40)]
    check(ragged_batch(lens, lens, block_size=4, head_dim=16, heads=5, kv_heads=1, seed=7))


def latents(heads: int, value_dim: int, dtype: torch.dtype, query_lens: list[int]) -> Batch:
    """A batch of latent attention as DeepSeek has it: one KV head of 576 elements, whose first are the value."""
    batch = ragged_batch([40, 3], query_lens, block_size=16, head_dim=576, heads=heads, kv_heads=1, dtype=dtype, seed=8)
    batch.value_cache = batch.key_cache[..., :value_dim]
    batch.dense = [(key, key[..., :value_dim]) for key, _ in batch.dense]
    return batch


@pytest.mark.parametrize("value_dim", [512, 256])
@pytest.mark.parametrize(("heads", "dtype"), [(16, BF16), (40, FP32)])
def test_latent_attention(heads: int, dtype: torch.dtype, value_dim: int) -> None:
    """Catches the last 64 elements of a key left out of the scores, values taken from another part of the key, and
    heads lost where a group takes several tiles.
    """
    check(latents(heads, value_dim, dtype, [1, 1]), splits=1)
    check(latents(heads, value_dim, dtype, [1, 1]), splits=2)
    check(latents(heads, value_dim, dtype, [5, 3]))


def test_values_in_keys_are_told_by_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches latents read twice, and another tensor of the same shape taken for the keys."""
    told = []
    monkeypatch.setattr(triton_grouped, "launch", lambda *_, **constexprs: told.append(constexprs["VALUE_IN_KEY"]))
    batch = latents(16, 512, BF16, [1, 1])
    positional = batch.arguments()[0]
    decode_attention(*positional, 1.0)
    decode_attention(*positional[:2], positional[2].clone(), *positional[3:], 1.0)
    decode_attention(*positional[:2], positional[1][..., 64:], *positional[3:], 1.0)
    assert told == [True, False, False]


@pytest.mark.parametrize("dtype", EIGHT_BIT)
@pytest.mark.parametrize("query_dtype", [FP16, BF16])
@pytest.mark.parametrize("per_token", [(False, False), (True, True), (False, True)])
def test_8_bit_caches_with_short_queries(
    per_token: tuple[bool, bool], query_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """Catches weights that a small scale pushes below what float16 can hold, and scales of one kind read as another."""
    batch = ragged_batch([60, 3], [1, 1], block_size=16, head_dim=32, seed=9, dtype=query_dtype)
    batch.value_cache *= 2e-4
    scales = quantized(batch, dtype, per_token)
    check(batch, splits=2, scales=scales, sinks=torch.linspace(-3, 9, 6))


@pytest.mark.parametrize(
    ("name", "dim"),
    [("query", 0), ("query", 1)] + [(name, dim) for name in ("key_cache", "value_cache") for dim in range(3)],
)
def test_offsets_past_32_bits(name: str, dim: int, tmp_path: Path) -> None:
    """Catches an offset of the decode kernel in 32 bits; tests/test_attention.py has the prefill kernel's."""
    batch = ragged_batch([11, 4, 6], [1, 1, 1], block_size=4, head_dim=16, heads=6, kv_heads=3, dtype=FP16, seed=10)
    setattr(batch, name, spread(getattr(batch, name), dim, tmp_path))
    check(batch, splits=2)


@pytest.mark.parametrize("dim", range(3))
@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
def test_offsets_of_scales_past_32_bits(name: str, dim: int, tmp_path: Path) -> None:
    """Catches an offset in 32 bits on the way to a token's scale."""
    batch = ragged_batch([11, 4, 6], [1, 1, 1], block_size=4, head_dim=16, heads=6, kv_heads=3, seed=11)
    scales = quantized(batch, torch.int8, (True, True))
    scales[name] = spread(scales[name], dim, tmp_path)
    check(batch, splits=1, scales=scales)


def test_nothing_but_the_output_is_written() -> None:
    """Catches a store outside the output: every input keeps its bits, the slots that hold no token included."""
    batch = ragged_batch([30, 17], [1, 1], block_size=8, head_dim=80, seed=12)
    before = [tensor.clone() for tensor in batch.arguments()[0]]
    check(batch, splits=3)
    check(batch)
    for tensor, copy in zip(batch.arguments()[0], before, strict=True):
        assert same_bits(tensor, copy)


def test_splits_are_chosen_by_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a choice that nobody asks, one that ignores the window, and the interpreter made to merge for nothing."""
    batch = ragged_batch([700, 9], [1, 1], block_size=16, head_dim=32, seed=13)
    query, key_cache, value_cache, tables, seq_lens = batch.arguments()[0]
    grids = []

    def noted(kernel: object, grid: tuple[int, ...], *args: object, **constexprs: object) -> None:
        grids.append(grid)
        launch(kernel, grid, *args, **constexprs)

    launch = triton_grouped.launch
    monkeypatch.setattr(triton_grouped, "launch", noted)
    expected = dense_attention(batch, scale=0.2)
    for multiprocessors, window in ((0, None), (132, None), (132, 100)):
        monkeypatch.setattr(triton_split, "_multiprocessors", lambda _, count=multiprocessors: count)
        output = decode_attention(query, key_cache, value_cache, tables, seq_lens, 0.2, Variant(sliding_window=window))
        assert_matches(output, expected if window is None else dense_attention(batch, 0.2, sliding_window=window))
    assert grids == [(2, 2, 1), (2, 2, 3), (2, 2, 1)]


def _arguments() -> list[torch.Tensor]:
    return list(ragged_batch([5, 3], [1, 1], block_size=4, head_dim=16).arguments()[0])


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("query_lens", [[1, 1], [2, 1]])
def test_strided_rows_are_refused(which: int, query_lens: list[int]) -> None:
    """Catches a kernel run on rows that it would misread, whichever kernel it is."""
    batch = ragged_batch([5, 3], query_lens, block_size=4, head_dim=16)
    arguments = list(batch.arguments()[0])
    arguments[which] = torch.stack([arguments[which]] * 2, dim=-1)[..., 0]
    name = ("query", "key_cache", "value_cache")[which]
    with pytest.raises(ValueError, match=f"{name} has stride 2 along head_dim"):
        paged_attention(*arguments, query_start_loc=batch.query_start_loc, backend="triton")


def test_what_does_not_fit_is_refused() -> None:
    """Catches positions that wrap, float64 cut to float32, more splits than a merge takes, and heads without room."""
    query, key_cache, value_cache, tables, seq_lens = _arguments()
    wide = tables[:, :1].expand(2, 2**29)
    for attend, starts in ((decode_attention, ()), (prefill_attention, (torch.arange(3),))):
        with pytest.raises(ValueError, match="2147483648 tokens"):
            attend(query, key_cache, value_cache, wide, seq_lens, *starts, 1.0)
        with pytest.raises(ValueError, match=r"not torch\.float64"):
            attend(query.double(), key_cache.double(), value_cache.double(), tables, seq_lens, *starts, 1.0)
    for splits in (0, 65):
        with pytest.raises(ValueError, match=f"splits is {splits}"):
            decode_attention(query, key_cache, value_cache, tables, seq_lens, 1.0, splits=splits)
    cache = torch.zeros(9, 4, 2, 1040)
    with pytest.raises(NotImplementedError, match="1024 elements"):
        paged_attention(torch.zeros(2, 6, 1040), cache, cache, tables, seq_lens, backend="triton")
