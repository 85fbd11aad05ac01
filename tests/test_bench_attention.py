"""The attention benchmarks compute what they say: equal results, all bytes counted, times that add up."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from pagedattn_lab.bench import attention, attention_gpu, step
from pagedattn_lab.cli import main
from tests.helpers.draws import BENCH

pytestmark = pytest.mark.when_changed(*BENCH)

SMALL = attention.Case("four sequences", (40, 7, 1, 33), 6, 2, 16)
EQUAL = attention.Case("two equal sequences", (32, 32), 4, 2, 16)


def test_cases_are_those_promised() -> None:
    """Catches a case made smaller than its text says, and bytes counted once where keys and values are read."""
    a, c, d = (attention.CASES[name] for name in "acd")
    assert (len(a.seq_lens), set(a.seq_lens), a.num_heads, a.num_kv_heads, a.head_dim) == (32, {1024}, 32, 8, 128)
    assert (len(c.seq_lens), c.num_heads, c.num_kv_heads, c.head_dim) == (64, 9, 3, 64)
    assert 30 <= min(c.seq_lens) < 100 and 800 < max(c.seq_lens) <= 900
    assert (d.seq_lens, d.num_heads, d.num_kv_heads, d.head_dim) == ((32_768,), 32, 8, 128)
    assert a.kv_bytes(torch.float32) == d.kv_bytes(torch.float32) == 2 * 32 * 1024 * 8 * 128 * 4


@pytest.mark.parametrize("case", [SMALL, EQUAL], ids=lambda case: case.what)
def test_every_way_gives_the_same(case: attention.Case) -> None:
    """Catches a way that is fast because it leaves something out."""
    made = attention.tensors(case, torch.float32)
    assert len(made.block_tables[made.block_tables > 0].unique()) == len(made.key_cache) - 1
    expected = attention.paged("reference", made)()
    ways = {"cpu": attention.paged("cpu", made), "gather": attention.gather_sdpa(case, made)}
    for name, way in (ways | attention.contiguous_ways(case, made)).items():
        torch.testing.assert_close(way(), expected, msg=lambda text, name=name: f"{name}: {text}")


def test_layouts_are_laid_out_as_they_are_called() -> None:
    """Catches a best layout that was never tried, since all three were the same memory."""
    made = attention.tensors(EQUAL, torch.float32)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            attention, "sdpa", lambda query, key, *_, **__: seen.append((query.shape[2], key.is_contiguous())) or query
        )
        for way in attention.contiguous_ways(EQUAL, made).values():
            way()
    assert seen == [(1, True), (1, False), (2, True)]


def test_a_report_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a unit mixed up, a best layout that is not the best, and torch's threads left changed."""
    before = torch.get_num_threads()
    row = attention.measure_case(SMALL, torch.float32, 2, repetitions=3)
    assert torch.get_num_threads() == before
    assert row["kernel_gb_s"] == pytest.approx(SMALL.kv_bytes(torch.float32) / row["kernel_ms"] / 1e6)
    assert row["sdpa_ms"] == row["sdpa_layouts_ms"][row["sdpa_layout"]] == min(row["sdpa_layouts_ms"].values())
    assert min(row["read_gb_s"], row["kernel_of_read"], row["gather_sdpa_ms"]) > 0
    monkeypatch.setattr(attention, "gather_sdpa", lambda case, made: lambda: torch.zeros_like(made.query))
    with pytest.raises(RuntimeError, match="gather and the kernel differ by"):
        attention.measure_case(SMALL, torch.float32, 1, repetitions=3)
    assert torch.get_num_threads() == before


def test_all_that_is_read_is_read() -> None:
    """Catches a read that skips a share, which would make memory look fast."""
    made = attention.tensors(SMALL, torch.bfloat16)
    words = made.key_cache.view(torch.uint32).flatten().numpy()
    seen = 0
    for word in words.tolist():
        seen ^= word
    assert attention._read(words) == seen
    lengths = []
    with pytest.MonkeyPatch.context() as patch, attention.ThreadPoolExecutor(3) as pool:
        patch.setattr(attention, "_read", lambda words: lengths.append(words.nbytes))
        attention.reading(made, 3, pool)()
    assert sum(lengths) == made.key_cache.nbytes + made.value_cache.nbytes and len(lengths) == 6


def test_turns_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one way timed all at once, so that a busy moment falls on it alone, a first call that is counted, and a
    time that is another way's.
    """
    order: list[str] = []
    monkeypatch.setattr("pagedattn_lab.bench.attention.time.perf_counter", lambda: 2.0 ** len(order))
    seconds = attention.take_turns({name: partial(order.append, name) for name in "xyz"}, repetitions=2)
    assert "".join(order) == "xyz" + "xyz" + "yzx"
    assert seconds == {"x": [2**3, 2**8], "y": [2**4, 2**6], "z": [2**5, 2**7]}  # the n-th call takes 2**n seconds


def test_parts_of_a_step_are_all_of_it() -> None:
    """Catches a part counted twice or not at all, hooks left on the model, and a backend left wrapped."""
    from pagedattn_lab import models
    from pagedattn_lab.attention.backends import BACKENDS

    before = dict(BACKENDS)
    report = step.measure(num_seqs=3, seq_len=20, repetitions=2)
    assert before == BACKENDS
    for row in report["backends"].values():
        parts = [row[f"{part}_ms"] for part in step.PARTS]
        assert min(parts) > 0 and 0 < row["other_share"] < 1
        assert sum(parts) == pytest.approx(row["step_ms"], rel=0.2)  # medians, each of its own
    assert report["backends"].keys() == {"reference", "cpu"}
    model, _ = models.load()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert step.describe(report).splitlines()[-1].startswith("cpu")


def test_bench_attention(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that measures something else than the library does, or mixes JSON with other output."""
    monkeypatch.setattr(attention, "measure", partial(attention.measure, {"small": SMALL}, repetitions=2))
    monkeypatch.setattr(attention_gpu, "measure", partial(attention_gpu.measure, {"small": SMALL}, repetitions=2))
    assert main(["bench", "attention", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["dtype"] for row in report["cases"]} == {"float32", "bfloat16"}
    needed = {"case", "threads", "read_gb_s", "kernel_gb_s", "kernel_ms", "sdpa_ms", "gather_sdpa_ms"}
    assert all(needed <= row.keys() and row["case"] == "small" for row in report["cases"])
    assert (report["gpu"] is None) == (not torch.cuda.is_available()) and report["gomp_spincount"]
    assert main(["bench", "attention"]) == 0
    assert "small: four sequences" in capsys.readouterr().out
