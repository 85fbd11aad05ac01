"""The CPU backend: values against a dense float64 oracle, what it never reads, threads, forks and a missing numba."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pagedattn_lab.attention import backends, cascade, cpu, paged_attention
from pagedattn_lab.attention.backends import Call, choose
from pagedattn_lab.attention.cpu_kernel import TILE
from pagedattn_lab.attention.cpu_numbers import LANES
from pagedattn_lab.attention.variant import Variant
from tests.helpers.draws import KERNELS, drawn
from tests.helpers.oracle import (
    Batch,
    assert_matches,
    dense_attention,
    ragged_batch,
    rounds_weights_to,
    same_bits,
    spread,
)

DTYPES = (torch.float32, torch.bfloat16)
HEADS = ((4, 4), (8, 2), (9, 3), (5, 1), (32, 8), (16, 1))


def attend(batch: Batch, **options: object) -> torch.Tensor:
    positional, keywords = batch.arguments()
    return paged_attention(*positional, **keywords, backend="cpu", **options)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut even small batches into three parts."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "BYTES_PER_PART", 1)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(32, 48), (64, 64), (80, 80), (96, 33), (256, 128)])
def test_heads_and_widths(head_dim: int, value_dim: int, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    """Catches query heads paired across two KV heads, an odd head lost, and a width that is no multiple of a vector."""
    batch = ragged_batch(
        [1, 3, 70, TILE, 9], [1, 1, 2, 1, 3], block_size=16, head_dim=head_dim, value_dim=value_dim, heads=heads,
        kv_heads=kv_heads, dtype=dtype,
    )  # fmt: skip
    output = attend(batch)
    assert output.dtype == dtype and output.shape == (8, heads, value_dim)
    assert_matches(output, dense_attention(batch, weights_dtype=rounds_weights_to("cpu", dtype)))


def test_the_maximum_is_taken_over_all_of_a_tile() -> None:
    """Catches a maximum that leaves tokens out: the highest score's weight would be infinite."""
    length = TILE + 3
    batch = ragged_batch([length] * length, [1] * length, block_size=16, head_dim=8, heads=2, kv_heads=1)
    batch.query.fill_(1)
    for row, blocks in enumerate(batch.block_tables.tolist()):
        for position in range(length):  # each sequence has its peak elsewhere
            peak = 1000.0 if position == row else 0.0
            batch.key_cache[blocks[position // 16], position % 16] = batch.dense[row][0][position] = peak
    peaks = torch.stack([value[row] for row, (_, value) in enumerate(batch.dense)])  # [length, 1, 8]
    assert_matches(attend(batch), dense_attention(batch))
    torch.testing.assert_close(attend(batch), peaks.expand(-1, 2, -1), rtol=0, atol=0)


@pytest.mark.parametrize("score", [-1e4, -1e29, -7e29, 1e29])
@pytest.mark.parametrize("length", [1, 2, 5, TILE + 1])
def test_equal_scores_weigh_the_same(length: int, score: float) -> None:
    """Catches weight for what fills up a vector, or for the last token again where it fills up a pass."""
    batch = ragged_batch([length], [1], block_size=16, head_dim=8, heads=2, kv_heads=1)
    batch.query.fill_(1)
    for position in range(length):
        slot = batch.block_tables[0, position // 16], position % 16
        batch.key_cache[slot], batch.value_cache[slot] = score / 8**0.5, float(position + 1)
    torch.testing.assert_close(attend(batch), torch.full((1, 2, 8), (length + 1) / 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value_dim", [1, LANES, LANES + 1, 80])
def test_rows_of_sums_hold_whole_vectors(value_dim: int) -> None:
    """Catches a vector written past a row's end: into the sums of another thread, or memory that is somebody else's."""
    batch = ragged_batch([5, 40], [1, 1], block_size=16, head_dim=8, value_dim=value_dim, heads=2, kv_heads=1)
    caches = cpu.Caches.of(batch.key_cache, batch.value_cache)
    sums = cpu.Plan(2, caches, batch.block_tables, batch.seq_lens, batch.query_start_loc)._sums
    assert sums[2].shape[2] % LANES == 0 and sums[2].shape[2] >= value_dim


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 32, 100, 128])
def test_block_sizes_give_the_same_bits(block_size: int, dtype: torch.dtype) -> None:
    """Catches a tile that reads past a block's end, and arithmetic that depends on where tokens lie."""
    lens = [1, block_size, block_size + 1, 3 * TILE, 3 * TILE + 2, 141]
    batch = ragged_batch(lens, [1] * 6, block_size=block_size, head_dim=40, dtype=dtype, seed=1)
    output = attend(batch)
    assert_matches(output, dense_attention(batch))
    other = ragged_batch(lens, [1] * 6, block_size=7, head_dim=40, dtype=dtype, seed=1)
    other.query = batch.query
    for row, (key, value) in enumerate(batch.dense):
        for position in range(lens[row]):
            slot = int(other.block_tables[row, position // 7]), position % 7
            other.key_cache[slot], other.value_cache[slot] = key[position], value[position]
    assert same_bits(attend(other), output)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 1_000}, {"softcap": 4.0}], ids=str)
def test_one_long_sequence_on_three_threads(options: dict, three_threads: None) -> None:
    """Catches parts that overlap, leave a gap, or are merged with the wrong weights; and a window not begun behind."""
    batch = ragged_batch([32_768, 5], [1, 1], block_size=16, head_dim=32, heads=2, kv_heads=1, seed=2)
    assert_matches(attend(batch, **options), dense_attention(batch, **options))


@st.composite
def drawn_batches(draw: st.DrawFn) -> tuple[Batch, dict[str, object]]:
    query_lens = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    seq_lens = [query_len + draw(st.integers(0, 150)) for query_len in query_lens]
    heads, kv_heads = draw(st.sampled_from(HEADS))
    batch = ragged_batch(
        seq_lens,
        query_lens,
        block_size=draw(st.sampled_from([1, 2, 3, 16, 31, 64, 128])),
        head_dim=draw(st.integers(1, 70)),
        value_dim=draw(st.integers(1, 70)),
        heads=heads,
        kv_heads=kv_heads,
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 99)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    options: dict[str, object] = {
        "softcap": draw(st.none() | st.floats(0.5, 50)),
        "sliding_window": draw(st.none() | st.integers(1, 200)),
        "alibi_slopes": draw(st.sampled_from([None, torch.rand(heads, generator=generator)])),
        "sinks": draw(st.sampled_from([None, torch.randn(heads, generator=generator) * 4])),
    }
    return batch, options


@seed(13)
@settings(max_examples=drawn(60), suppress_health_check=list(HealthCheck), database=None)
@given(drawn_batches(), st.integers(1, 7))
def test_drawn_batches(drawn: tuple[Batch, dict[str, object]], threads: int) -> None:
    """Catches what no list of cases thought of: options together, prompts beside decodes, more threads than tiles."""
    batch, options = drawn
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "BYTES_PER_PART", 1)
        torch.set_num_threads(threads)
        try:
            output = attend(batch, **options)
        finally:
            torch.set_num_threads(before)
    weights_dtype = rounds_weights_to("cpu", batch.query.dtype)
    assert_matches(output, dense_attention(batch, **options, weights_dtype=weights_dtype))


@pytest.mark.parametrize("window", [1, 2, 5, TILE, TILE + 1, 60])
def test_what_lies_behind_the_window_is_not_read(window: int) -> None:
    """Catches a window that masks scores but reads the slots: what a freed block holds may be a NaN."""
    batch = ragged_batch([90, 64, 90, 7], [1, 1, 8, 1], block_size=8, head_dim=32, seed=3)
    expected = dense_attention(batch, sliding_window=window)
    query_lens = batch.query_start_loc.diff().tolist()
    for row, (seq_len, query_len) in enumerate(zip(batch.seq_lens.tolist(), query_lens, strict=True)):
        for position in range(max(0, seq_len - query_len + 1 - window)):
            slot = int(batch.block_tables[row, position // 8]), position % 8
            batch.key_cache[slot] = batch.value_cache[slot] = torch.nan
    assert_matches(attend(batch, sliding_window=window), expected)


@pytest.mark.when_changed(*KERNELS)
@pytest.mark.parametrize("flash", [cpu.FLASH, None], ids=["flash", "sdpa"])
@pytest.mark.parametrize("has_amx", [True, False], ids=["amx", "no amx"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 70}, {"alibi_slopes": torch.linspace(0.02, 0.4, 6)}], ids=str
)
def test_long_prompts(
    options: dict[str, object], dtype: torch.dtype, has_amx: bool, flash: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mask that stands one token or one head off, a piece of a prompt that misses keys before it, and
    weights that are rounded though they need not be.
    """
    monkeypatch.setattr(cpu, "FLASH", flash)
    monkeypatch.setattr(cascade, "MULTIPLIES_BFLOAT16", has_amx)
    piece = cpu.QUERIES_AT_A_TIME
    batch = ragged_batch(
        [2 * piece + 5, piece, 150, 30], [2 * piece + 5, piece, piece + 1, 5], block_size=16, head_dim=32, dtype=dtype
    )
    weights_dtype = None if flash is None else rounds_weights_to("cpu", dtype)
    assert_matches(attend(batch, **options), dense_attention(batch, **options, weights_dtype=weights_dtype))


@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
def test_strided_caches(name: str, tmp_path: Path) -> None:
    """Catches a stride taken for another, an offset of 32 bits, and a cache whose numbers lie apart read as if not."""
    batch = ragged_batch([11, 4, 40], [1, 1, 9], block_size=4, head_dim=16, heads=6, kv_heads=3, seed=4)
    expected, cache = dense_attention(batch), getattr(batch, name)
    for way in (cache.contiguous(), cache.transpose(0, 2).contiguous().transpose(0, 2), cache.mT.contiguous().mT):
        setattr(batch, name, way)
        assert_matches(attend(batch), expected)
    # Blocks 2 GiB apart, in the only way to have them: a file of float16 with holes, which holds the bits of bfloat16.
    batch = ragged_batch([11, 4], [1, 1], block_size=4, head_dim=16, heads=6, kv_heads=3, seed=4, dtype=torch.bfloat16)
    expected = dense_attention(batch)
    wide = spread(getattr(batch, name).contiguous().view(torch.float16), 0, tmp_path).view(torch.bfloat16)
    assert wide.stride(0) == 2**30 and same_bits(wide.contiguous(), getattr(batch, name).contiguous())
    setattr(batch, name, wide)
    assert_matches(attend(batch), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (3, 3), (6, 2)])
def test_strided_queries(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    """Catches a query whose numbers lie apart, read as if they did not: by a prompt, where torch does not look."""
    batch = ragged_batch(
        [70, 9, 5], [9, 1, 5], block_size=16, head_dim=64, heads=heads, kv_heads=kv_heads, dtype=dtype, seed=6
    )
    expected = dense_attention(batch, weights_dtype=rounds_weights_to("cpu", dtype))
    for way in (torch.stack([batch.query, batch.query * 7], dim=-1)[..., 0], batch.query.mT.contiguous().mT):
        assert not way.is_contiguous()
        batch.query = way
        assert_matches(attend(batch), expected)


def test_without_torchs_code_for_the_cpus_units() -> None:
    """Catches an error where the CPU has AMX and torch does not use it."""
    source = """
import torch
from pagedattn_lab.attention import paged_attention
key, value = torch.randn(2, 8, 16, 1, 64).bfloat16().unbind(0)
query, table = torch.randn(64, 4, 64).bfloat16(), torch.arange(1, 5, dtype=torch.int32)[None]
starts = torch.tensor([0, 64], dtype=torch.int32)
paged_attention(query, key, value, table, starts[1:], query_start_loc=starts, backend="cpu")
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    ran = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.when_changed(*KERNELS)
def test_on_a_cpu_with_narrow_vectors(tmp_path: Path) -> None:
    """Catches a kernel that only a CPU with AVX-512 compiles, or computes right; this one has neither AVX nor FMA."""
    source = """
import torch
from pagedattn_lab.attention import paged_attention
from pagedattn_lab.attention.cpu_numbers import LANES
from tests.helpers.oracle import assert_matches, dense_attention, ragged_batch
assert LANES == 8
for dtype in (torch.float32, torch.bfloat16):
    for heads, kv_heads, head_dim, value_dim in ((9, 3, 64, 64), (8, 2, 20, 33)):
        shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": value_dim}
        batch = ragged_batch([1, 3, 70, 32], [1, 1, 2, 1], block_size=16, dtype=dtype, seed=3, **shape)
        positional, keywords = batch.arguments()
        assert_matches(paged_attention(*positional, **keywords, backend="cpu"), dense_attention(batch))
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", source]
    ran = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.when_changed(*KERNELS, "pagedattn_lab/models/fused_kernels.py")
def test_what_numba_keeps_on_disk_is_of_this_code(tmp_path: Path) -> None:
    """Catches machine code of before an edit: numba looks at a function's own file, not at what is compiled into it."""
    package = tmp_path / "pagedattn_lab"
    shutil.copytree(Path(cpu.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    source = """
import numpy as np
from pagedattn_lab.models.fused_kernels import silu_and_mul
out = np.empty((1, 1), np.float32)
silu_and_mul(np.ones((1, 2), np.float32), out)
print(out[0, 0])
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}

    def run() -> float:
        command = [sys.executable, "-c", source]
        ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return float(ran.stdout)

    before = run()
    numbers = package / "attention" / "cpu_numbers.py"
    numbers.write_text(numbers.read_text().replace("f32(6.93147181e-1)", "f32(0.9)"))
    assert run() != before


def test_integers_of_64_bits_and_tables_that_are_views() -> None:
    """Catches an int64 table read as int32, a strided one read as if its rows touched, and entries that are garbage."""
    batch = ragged_batch([30, 17, 64, 6], [1, 2, 1, 6], block_size=8, head_dim=64, seed=5, garbage=-1)
    expected = attend(batch)
    assert_matches(expected, dense_attention(batch))
    for name in ("block_tables", "seq_lens", "query_start_loc"):
        setattr(batch, name, getattr(batch, name).long())
    assert same_bits(attend(batch), expected)
    batch.block_tables = batch.block_tables.T.contiguous().T
    assert same_bits(attend(batch), expected)
    batch.query = batch.query.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert same_bits(attend(batch).detach(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_written_but_the_output(dtype: torch.dtype) -> None:
    """Catches a store into a cache, the null block or the query."""
    batch = ragged_batch([30, 17, 9], [1, 1, 7], block_size=8, head_dim=80, seed=6, dtype=dtype)
    before = [tensor.clone() for tensor in batch.arguments()[0]]
    attend(batch)
    for tensor, copy in zip(batch.arguments()[0], before, strict=True):
        assert same_bits(tensor, copy)


def test_a_sequence_of_no_tokens_is_refused() -> None:
    """Catches a division by the sum of no weights."""
    batch = ragged_batch([5, 1], [1, 1], block_size=4, head_dim=32)
    batch.seq_lens[1] = 0
    with pytest.raises(ValueError, match="sequence 1 has seq_len 0"):
        attend(batch)


@pytest.mark.parametrize("variant", [Variant(), Variant(sinks=torch.linspace(-2, 2, 6))], ids=["plain", "sinks"])
@pytest.mark.parametrize("value_dim", [32, 24])
def test_log_sum_exps(value_dim: int, variant: Variant, three_threads: None) -> None:
    """Catches a logarithm in base 2, a scale forgotten or a sink left out: shared prefixes are merged with it."""
    batch = ragged_batch([70, 5, 40, 90], [1, 1, 8, 66], block_size=8, head_dim=32, value_dim=value_dim, seed=7)
    arguments = (*batch.arguments()[0], batch.query_start_loc, 0.2, variant)
    (_, ours), (_, expected) = (
        backends.BACKENDS[name].run(*arguments, return_lse=True) for name in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# --- threads --------------------------------------------------------------------------------------------------------


def test_callers_at_the_same_time(three_threads: None) -> None:
    """Catches scratch memory that callers share, and a pool that two callers can block."""
    batches = [ragged_batch([200, 33], [1, 1], block_size=16, head_dim=64, seed=each) for each in range(6)]
    expected = [attend(batch) for batch in batches]
    with ThreadPoolExecutor(6) as callers:
        for _ in range(5):
            for output, right in zip(callers.map(attend, batches), expected, strict=True):
                assert same_bits(output, right)
    assert torch.get_num_threads() == 3, "a call changed torch's number of threads"


def _attend_in_a_child(batch: Batch, expected: torch.Tensor) -> None:
    os._exit(0 if same_bits(attend(batch), expected) else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_after_a_fork(three_threads: None) -> None:
    """Catches a child that waits for threads which only its parent has."""
    batch = ragged_batch([200, 33], [1, 1], block_size=16, head_dim=64, seed=8)
    expected = attend(batch)  # the parent's threads run now
    child = multiprocessing.get_context("fork").Process(target=_attend_in_a_child, args=(batch, expected))
    child.start()
    child.join(60)
    hung = child.exitcode is None
    child.kill()
    assert not hung and child.exitcode == 0


def test_small_calls_stay_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a thread woken for less work than waking it costs, or more of them than torch may use."""
    used = []
    monkeypatch.setattr(cpu, "run_part", lambda part, parts, *_: used.append(parts))
    monkeypatch.setattr(cpu, "merge", lambda *_: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for seq_len, parts in ((2_000, [1]), (3_000, [2] * 2), (20_000, [4] * 4)):
        attend(ragged_batch([seq_len], [1], block_size=100, head_dim=64, heads=2, kv_heads=1))
        assert used == parts
        used.clear()


# --- who runs it ----------------------------------------------------------------------------------------------------


def test_auto_takes_it_on_a_cpu() -> None:
    """Catches a reader without a GPU left with plain torch, and a call that the kernel has no code for."""
    assert choose("auto", Call("cpu")).name == "cpu"
    assert choose("auto", Call("cpu", prompts=True)).name == "cpu"
    for lacked in (
        Call("cpu", torch.float16, torch.float16),
        Call("cpu", torch.float64, torch.float64),
        Call("cpu", torch.float32, torch.int8, variant=Variant(k_scale=torch.ones(1))),
    ):
        assert choose("auto", lacked).name == "reference"
        with pytest.raises(NotImplementedError, match=r"cpu backend has no (queries|caches) of torch\."):
            choose("cpu", lacked)
    with pytest.raises(NotImplementedError, match="tensors on cuda"):
        choose("cpu", Call("cuda"))


def test_without_numba() -> None:
    """Catches a package that needs numba to be imported, and a traceback that does not say what to install."""
    code = """
import sys, importlib.abc
class NoNumba(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoNumba())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "numba" else found(name)
import torch
from pagedattn_lab.attention import paged_attention
from pagedattn_lab.attention.backends import Call, choose
print(choose("auto", Call("cpu")).name)
cache, one = torch.zeros(2, 1, 1, 4), torch.ones(1, dtype=torch.int32)
try:
    paged_attention(torch.ones(1, 1, 4), cache, cache, one[None], one, backend="cpu")
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name, _, message = result.stdout.partition("\n")
    assert name == "reference", result.stderr
    assert "needs the package numba" in message and "pip install 'pagedattn-lab[cpu]'" in message


def test_choosing_does_not_load_numba() -> None:
    """Catches an import of seconds for somebody who never attends."""
    code = (
        "import sys; from pagedattn_lab.attention.backends import Call, choose; "
        "print(choose('auto', Call('cpu')).name, 'numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "cpu False\n"


def test_warming_up_attends_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches seconds of compiling between two tokens of an answer, a cache that warming up writes to, and an 8-bit
    cache or another backend that stumbles over it.
    """
    from pagedattn_lab.model_runner import ModelRunner
    from tests.helpers.models import tiny

    calls = []
    run_part = cpu.run_part
    monkeypatch.setattr(cpu, "run_part", lambda *arguments: calls.append(arguments) or run_part(*arguments))
    runner = ModelRunner(tiny("llama"), num_blocks=4, block_size=4)
    runner.warm_up()
    assert len(calls) == 1
    assert not any(cache.any() for cache in runner.cache.key_caches + runner.cache.value_caches)
    ModelRunner(tiny("llama"), 4, 4, attention="reference").warm_up()
    ModelRunner(tiny("llama"), 4, 4, kv_cache_dtype="int8").warm_up()
    assert len(calls) == 1


def test_tensors_with_gradients() -> None:
    """Catches memory shared with numpy, which torch refuses while gradients are recorded: sinks are parameters."""
    batch = ragged_batch([30, 9], [6, 1], block_size=4, head_dim=32)
    positional, keywords = batch.arguments()
    sinks = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    output = paged_attention(*positional, **keywords, sinks=sinks, backend="cpu")
    assert not output.requires_grad
    assert_matches(output, dense_attention(batch, sinks=sinks.detach()))
