"""Keys and values in 8 bits: how far off they are, whose scale is whose, and a model that runs on them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.attention.quantize import LARGEST, quantize, token_head_scales
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.cli import main
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.sampling import generate_greedily
from pagedattn_lab.kv_cache import CACHE_DTYPES, PagedKVCache
from pagedattn_lab.kv_shape import KV_CACHE_DTYPES, KVShape
from pagedattn_lab.model_runner import ModelRunner
from tests.helpers.engine import requests_of
from tests.helpers.models import tiny

EPSILON = torch.finfo(torch.float32).eps
PER_TENSOR = {"float8_e4m3fn": {"k_scale": 0.05, "v_scale": 0.5}, "int8": {"k_scale": 0.04, "v_scale": 0.08}}
EVERY_8_BIT = {**PER_TENSOR, "fp8_per_token_head": {}, "int8_per_token_head": {}}


def error_bound(rows: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bound what quantising and reading back may change of rows none of which is too large for its scale.

    The nearest of equal steps is half a step off at most. Those of int8 are a scale. Those of float8_e4m3fn are an
    eighth of the power of two below the number, so half of one is a sixteenth of the number at most; below 2**-6 scales
    they stay 2**-9 scales. Three roundings of float32 come on top: of the scale, the quotient and the product.
    """
    rows, scale = rows.double().abs(), scale.double()
    half_step = scale / 2 if dtype == torch.int8 else torch.maximum(rows / 16, scale * 2**-10)
    return half_step + 3 * EPSILON * rows


def rows_of_many_sizes() -> torch.Tensor:
    """``[num_tokens, num_kv_heads, head_dim]``; rows and elements within a row differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    of_rows = 10.0 ** torch.linspace(-30, 30, 600).reshape(200, 3, 1)
    within = 2.0 ** -(20 * torch.rand(200, 3, 64, generator=generator))
    return of_rows * within * torch.randn(200, 3, 64, generator=generator)


@pytest.mark.parametrize("dtype", LARGEST)
def test_error_of_a_row_with_its_own_scale(dtype: torch.dtype) -> None:
    """Catches a scale too large, which wastes bits, or too small, which cuts the largest element, and a rounding that
    is not to nearest: some error must come near its bound.
    """
    rows = rows_of_many_sizes()
    scale = token_head_scales(rows, dtype)[..., None]
    error = (quantize(rows, scale, dtype).float() * scale - rows).double().abs()
    used = (error / error_bound(rows, scale, dtype)).max()
    assert 0.98 < used <= 1
    assert quantize(rows, scale, dtype).float().abs().amax(dim=-1).eq(LARGEST[dtype]).all()


@pytest.mark.parametrize("scale", [2.0**-6, 0.37])
@pytest.mark.parametrize("dtype", LARGEST)
def test_error_under_a_common_scale(dtype: torch.dtype, scale: float) -> None:
    """Catches the same for a scale that no row chose: rows far below it, where float8 has fewer bits, count too."""
    generator = torch.Generator().manual_seed(1)
    sizes = 2.0 ** -(25 * torch.rand(4000, 1, 1, generator=generator))
    rows = LARGEST[dtype] * scale * sizes * (2 * torch.rand(4000, 2, 16, generator=generator) - 1)
    error = (quantize(rows, torch.tensor(scale), dtype).float() * scale - rows).double().abs()
    assert 0.98 < (error / error_bound(rows, torch.tensor(scale), dtype)).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "numbers", "expected"),
    [
        (torch.int8, [0.5, 1.5, 2.5, -2.5, -3.5, 126.6, 127.4, 1e9, -1e9, math.inf],
         [0, 2, 2, -2, -4, 127, 127, 127, -127, 127]),
        (torch.float8_e4m3fn, [17.0, 19.0, -17.0, 2**-10, 3 * 2**-10, 432.0, 460.0, 465.0, -1e9, math.inf],
         [16.0, 20.0, -16.0, 0.0, 2**-8, 448.0, 448.0, 448.0, -448.0, 448.0]),
    ],
)  # fmt: skip
def test_ties_go_to_even_and_what_is_too_large_saturates(
    dtype: torch.dtype, numbers: list[float], expected: list[float]
) -> None:
    """Catches ties rounded up, integers that wrap round, and the NaN that a cast to float8 may give past 464."""
    assert quantize(torch.tensor(numbers), torch.tensor(1.0), dtype).float().tolist() == expected


@pytest.mark.parametrize("dtype", LARGEST)
def test_rows_of_zeros_tiny_rows_and_nan(dtype: torch.dtype) -> None:
    """Catches 0 / 0, a scale that underflows, and a NaN that int8 would read back as a number."""
    rows = torch.zeros(4, 1, 8)
    rows[1, 0, 3], rows[2, 0, 2], rows[3, 0, 5] = -1e-44, 1e-37, math.nan
    scale = token_head_scales(rows, dtype)
    assert scale[:3].gt(0).all()
    back = quantize(rows, scale[..., None], dtype).float() * scale[..., None]
    assert back[:2].eq(0).all() and back[3].isnan().all()
    assert ((back[2] - rows[2]).abs() <= error_bound(rows[2], scale[2], dtype)).all()


# --- the cache --------------------------------------------------------------------------------------------------------


def cache_of(dtype: str, **scales: float) -> PagedKVCache:
    cache = PagedKVCache(KVShape(2, 3, 16, dtype), num_blocks=6, block_size=4, **scales)
    for tensor in cache.key_caches + cache.value_caches:
        tensor.fill_(math.nan if tensor.is_floating_point() else -128)  # what quantize never gives
    if dtype.endswith("_per_token_head"):
        for tensor in cache.k_scales + cache.v_scales:
            tensor.fill_(math.nan)
    return cache


def tokens(count: int, size: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(count, 3, 16, generator=generator)


def rounded(rows: torch.Tensor, dtype: str, of_all: float | None) -> torch.Tensor:
    """What a cache must read back: each row by itself, quantised and multiplied out."""
    small = CACHE_DTYPES[dtype]
    scale = token_head_scales(rows, small)[..., None] if of_all is None else torch.tensor(of_all)
    return quantize(rows, scale, small).float() * scale


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", EVERY_8_BIT)
def test_write_then_gather(dtype: str, source: torch.dtype) -> None:
    """Catches scales of another slot, layer or head, those of keys for values, a skipped token, and bits changed where
    nothing was written.
    """
    scales = EVERY_8_BIT[dtype]
    cache = cache_of(dtype, **scales)
    key, value = tokens(4).to(source), tokens(4, 7.0, seed=1).to(source)
    cache.write(1, key, value, [9, -1, 4, 23])
    kept = [0, 2, 3]
    read_key, read_value = cache.gather(1, [9, 4, 23])
    assert read_key.dtype == torch.float32
    assert torch.equal(read_key, rounded(key, dtype, scales.get("k_scale"))[kept])
    assert torch.equal(read_value, rounded(value, dtype, scales.get("v_scale"))[kept])
    untouched = torch.ones(24, dtype=torch.bool)
    untouched[[9, 4, 23]] = False
    for layer, slots in ((0, slice(None)), (1, untouched)):
        for tensor in (cache.key_caches[layer], cache.value_caches[layer]):
            rows = tensor.float().flatten(0, 1)[slots]
            assert (rows.isnan() | rows.eq(-128)).all()
        if dtype.endswith("_per_token_head"):
            for tensor in (cache.k_scales[layer], cache.v_scales[layer]):
                assert tensor.flatten(0, 1)[slots].isnan().all()


@pytest.mark.parametrize("dtype", ["fp8_per_token_head", "int8_per_token_head"])
def test_a_fork_that_writes_takes_its_scales_along(dtype: str) -> None:
    """Catches a copy on write that leaves the scales behind: the copy would read its first tokens with no scale, or the
    two tables would share one scale for their last slots.
    """
    cache, table = cache_of(dtype), BlockTable(BlockPool(6, 4))
    prompt, ours, theirs = tokens(6), tokens(1, 0.01, seed=1), tokens(1, 100.0, seed=2)

    def write(of: BlockTable, rows: torch.Tensor) -> None:
        slots = of.slot_mapping(of.num_tokens - len(rows), of.num_tokens)
        for layer in range(2):
            cache.write(layer, rows * (layer + 1), -rows * (layer + 1), slots)

    table.append_tokens(6)
    write(table, prompt)
    fork = table.fork()
    for each, rows in ((fork, theirs), (table, ours)):
        each.append_tokens(1)
        cache.copy_blocks(take_copies([each]))
        write(each, rows)
    assert table.block_ids[0] == fork.block_ids[0] and table.block_ids[1] != fork.block_ids[1]
    for each, last in ((table, ours), (fork, theirs)):
        for layer in range(2):
            expected = rounded(torch.cat([prompt, last]) * (layer + 1), dtype, None)
            key, value = cache.gather(layer, each.slot_mapping(0, 7))
            assert torch.equal(key, expected) and torch.equal(value, -expected)


def test_bytes_count_the_scales() -> None:
    """Catches a cache that takes more than its shape says, in particular for the scales of its tokens."""
    for dtype, scales in EVERY_8_BIT.items():
        cache = cache_of(dtype, **scales)
        assert cache.num_bytes == 6 * cache.shape.bytes_per_block(4)
        assert cache.shape.bytes_per_token == 2 * 2 * 3 * (16 + 4 * dtype.endswith("_per_token_head"))
    assert cache.k_scales[0].shape == (6, 4, 3) and cache_of("float8_e4m3fn").k_scales[1].tolist() == [1.0]


@pytest.mark.parametrize(
    ("dtype", "scales", "message"),
    [
        ("int8", {}, "a cache of int8 needs k_scale"),
        ("int8", {"k_scale": 1.0}, "a cache of int8 needs v_scale"),
        ("bfloat16", {"k_scale": 1.0}, "k_scale = 1.0 has no meaning for a cache of bfloat16"),
        ("int8_per_token_head", {"v_scale": 1.0}, "v_scale = 1.0 has no meaning"),
        ("float8_e4m3fn", {"k_scale": 0.0}, "k_scale is 0.0"),
        ("float8_e4m3fn", {"v_scale": math.nan}, "v_scale is nan"),
    ],
)
def test_scales_that_cannot_be_meant_are_refused(dtype: str, scales: dict[str, float], message: str) -> None:
    """Catches integers that would lose every fraction, scales ignored in silence, and a division by zero."""
    with pytest.raises(ValueError, match=message):
        PagedKVCache(KVShape(1, 1, 4, dtype), 2, 4, **scales)


# --- a model on it ----------------------------------------------------------------------------------------------------

ASKED = [name for name in KV_CACHE_DTYPES if name not in ("auto", "int8_per_token_head")]


def with_rounded_keys(model: PreTrainedModel, num_blocks: int, block_size: int, kv_cache_dtype: str) -> ModelRunner:
    """A runner whose float32 cache is given, and holds, what an 8-bit cache stands for: attention over dequantised keys
    and values, without any 8-bit tensor.
    """
    runner = ModelRunner(model, num_blocks, block_size, attention="reference")  # which is what attends in 8 bits
    dtype = KV_CACHE_DTYPES[kv_cache_dtype]
    of_all = 1.0 if kv_cache_dtype == "fp8" else None
    shape = KVShape.from_config(model.config, "float32")
    runner.cache = cache = PagedKVCache(shape, num_blocks, block_size)
    store = cache.store
    cache.store = lambda layer, key, value, slots: store(
        layer, rounded(key, dtype, of_all), rounded(value, dtype, of_all), slots
    )
    return runner


def logits_of(runner: ModelRunner, prompts: list[list[int]], following: list[list[int]]) -> torch.Tensor:
    """Compute prompts in one ragged step, then given tokens one by one: ``[steps, num_seqs, vocab_size]`` logits."""
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    tables = [BlockTable(pool) for _ in prompts]
    steps = []
    for step in [prompts, *([[token] for token in row] for row in zip(*following, strict=True))]:
        for table, row in zip(tables, step, strict=True):
            table.append_tokens(len(row))
        token_ids = [token for row in step for token in row]
        steps.append(runner.execute(token_ids, attention_metadata(tables, [len(row) for row in step])))
    return torch.stack(steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("kv_cache_dtype", ASKED)
def test_a_model_attends_over_what_its_cache_stands_for(kv_cache_dtype: str, kind: str, dtype: torch.dtype) -> None:
    """Catches a layer that reads with another's scales or none, and queries quantised along with the keys: the logits
    must equal, to the bit, those over a cache of dequantised numbers.
    """
    model = tiny(kind).to(dtype)
    prompts, following = [[5, 9, 2, 44, 17, 8, 3, 61, 12, 7, 30], [4]], [[9, 8, 7], [70, 71, 72]]
    logits = logits_of(ModelRunner(model, 40, 4, kv_cache_dtype=kv_cache_dtype), prompts, following)
    assert torch.equal(logits, logits_of(with_rounded_keys(model, 40, 4, kv_cache_dtype), prompts, following))
    plain = logits_of(ModelRunner(model, 40, 4), prompts, following)
    assert not torch.equal(logits, plain), "nothing was quantised"


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "int8"])
def test_real_model_attends_over_what_its_cache_stands_for(kv_cache_dtype: str) -> None:
    """Catches the same where keys have outliers, as random weights do not: other tokens than those over a cache of
    dequantised numbers.
    """
    model, tokenizer = models.load()
    prompts = [models.encode_prompt(tokenizer, text) for text in ("What is a page table?", "List three colours.")]
    runner = ModelRunner(model, 20, kv_cache_dtype=kv_cache_dtype)
    runners = runner, with_rounded_keys(model, 20, 16, kv_cache_dtype)
    first, second = (generate_greedily(EngineCore(runner), requests_of(prompts), 4) for runner in runners)
    assert first == second and len(set(map(tuple, first))) == 2


def test_generate_in_8_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an option that is read and not used, and bytes that forget the scales."""
    arguments = ["generate", "Hi", "--max-tokens", "2", "--json"]
    reports = []
    for more in ([], ["--kv-cache-dtype", "int8"]):
        assert main([*arguments, *more]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    wide, narrow = reports
    assert wide.keys() == narrow.keys() and wide["blocks_used"] == narrow["blocks_used"]
    assert narrow["bytes"] * 4 * 64 == wide["bytes"] * (64 + 4)  # 64 numbers of 4 bytes; of 1 byte, and a scale
    with pytest.raises(ValueError, match="kv_cache_dtype 'int4' is unknown: use one of auto, fp8"):
        ModelRunner(tiny("llama"), 8, 4, kv_cache_dtype="int4")


def test_a_backend_that_cannot_read_the_cache_is_refused_first() -> None:
    """Catches a refusal in the middle of a step, when keys have been written, or one that names the query."""
    with pytest.raises(NotImplementedError, match=r"the cpu backend has no caches of torch.float8_e4m3fn"):
        ModelRunner(tiny("llama"), num_blocks=4, attention="cpu", kv_cache_dtype="fp8")
