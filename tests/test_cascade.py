"""Prefixes that are read once for all sequences that share them: found from the tables, equal to plain attention."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedattn_lab.attention import cascade, cpu
from pagedattn_lab.attention.backends import BACKENDS
from pagedattn_lab.attention.cascade import (
    MAX_QUERIES,
    can_cascade,
    cascade_attention,
    merge_attention,
    plan_cascade,
    prefix_product,
)
from pagedattn_lab.attention.cpu import QUERIES_AT_A_TIME, Caches, Plan
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.attention.reference import reference_attention
from pagedattn_lab.attention.shared_prefix import SharedPrefix, shared_prefixes
from pagedattn_lab.attention.variant import Variant
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from tests.helpers.draws import KERNELS
from tests.helpers.oracle import Batch, assert_matches, dense_attention, ragged_batch, rounds_weights_to


def most_saved(tables: list[list[int]], rows: list[int], min_sequences: int) -> int:
    """Try every group of enough sequences, and give the most blocks that any of them saves."""
    most = 0
    for size in range(min_sequences, len(rows) + 1):
        for group in itertools.combinations(rows, size):
            columns = zip(*(tables[row] for row in group), strict=False)
            common = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
            most = max(most, (size - 1) * len(list(common)))
    return most


@given(st.lists(st.lists(st.integers(1, 3), max_size=4), max_size=7), st.integers(2, 4))
def test_no_group_saves_more(tables: list[list[int]], min_sequences: int) -> None:
    """Catches a group that is not as long or as large as it could be, too small, or has a sequence twice: some group is
    the best of all, and each is the best of those among its sequences and the ones in no group.
    """
    groups = shared_prefixes(tables, min_sequences)
    rows = [row for group in groups for row in group.sequences]
    assert len(rows) == len(set(rows))
    for group in groups:
        assert len(group.sequences) >= min_sequences and list(group.sequences) == sorted(group.sequences)
        assert all(tuple(tables[row][: len(group.block_ids)]) == group.block_ids for row in group.sequences)
    best = most_saved(tables, [*range(len(tables))], min_sequences)
    assert max((group.num_blocks_saved for group in groups), default=0) == best


def test_every_run_is_looked_through() -> None:
    """Catches a search that stops at the first group: what lies before and behind it may hold others."""
    tables = [[2, 2, 2], [1, 5], [3, 7], [2, 2, 2], [1, 5], [3, 7], [9]]
    assert {group.sequences for group in shared_prefixes(tables)} == {(0, 3), (1, 4), (2, 5)}


def test_small_savings_are_left() -> None:
    """Catches a threshold that counts a group's blocks once, or its sequences all."""
    assert shared_prefixes([[1, 2, 3]] * 3, min_blocks=6) == [SharedPrefix((0, 1, 2), (1, 2, 3))]
    assert shared_prefixes([[1, 2, 3]] * 3, min_blocks=7) == []


def test_a_limit_does_not_hide_a_larger_group() -> None:
    """Catches a search that finds two groups of too few, where all together share less and are enough."""
    base = list(range(1, 101))
    tables = [base + list(range(1000 + half * 10, 1010 + half * 10)) + [5000 + i] for half in (0, 1) for i in range(15)]
    [group] = shared_prefixes(tables, min_sequences=16)
    assert len(group.sequences) == 30 and group.block_ids == tuple(base)


def test_chains_are_searched_quickly() -> None:
    """Catches a search that recurses per block, or looks at every pair: chains of 1,500 took minutes, and the stack."""
    chain = [[*range(1, i + 1), 10**6 + i] for i in range(1, 1500)]
    [best, *_] = sorted(shared_prefixes(chain, min_sequences=16), key=lambda group: -group.num_blocks_saved)
    assert best.num_blocks_saved == max((1499 - i) * i for i in range(1, 1500))


def share(batch: Batch, groups: list[list[int]], num_blocks: int) -> None:
    """Let the sequences of each group begin with the first one's blocks, and forget what they held there before."""
    block_size = batch.key_cache.shape[1]
    for first, *others in groups:
        for row in others:
            batch.block_tables[row, :num_blocks] = batch.block_tables[first, :num_blocks]
            for mine, shared in zip(batch.dense[row], batch.dense[first], strict=True):
                mine[: num_blocks * block_size] = shared[: num_blocks * block_size]


def run(batch: Batch, variant: Variant, backend: str = "reference", min_tokens: int = 1) -> torch.Tensor | None:
    """Attend with a cascade, or give ``None`` where none was found."""
    block_size = batch.key_cache.shape[1]
    query_lens = batch.query_start_loc.diff().tolist()
    plan = plan_cascade(
        batch.block_tables.tolist(), batch.seq_lens.tolist(), query_lens, block_size, "cpu", 2, min_tokens
    )
    if plan is None:
        return None
    scale = 1 / math.sqrt(batch.query.shape[2])
    arguments = (batch.query, batch.key_cache, batch.value_cache, plan, batch.query_start_loc, scale, variant)
    if backend == "cpu, planned":
        caches = Caches.of(batch.key_cache, batch.value_cache)
        output = batch.query.new_full((*batch.query.shape[:2], batch.value_cache.shape[3]), math.nan)
        tensors = batch.block_tables, batch.seq_lens, batch.query_start_loc
        Plan(batch.query.shape[1], caches, *tensors, variant, plan).attend(batch.query, caches, scale, output)
        return output
    if backend == "reference":  # an oracle, which by itself does not cascade
        return cascade_attention(reference_attention, prefix_product, *arguments)
    return cascade_attention(BACKENDS[backend].run, BACKENDS[backend].prefix, *arguments)


OPTIONS = [{}, {"softcap": 1.5}, {"sinks": torch.linspace(-3, 9, 6)}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap", "sinks"])
@pytest.mark.parametrize("query_lens", [[1] * 6, [4, 1, 3, 1, 3, 9]], ids=["decode", "mixed"])
@pytest.mark.parametrize(
    ("backend", "tile"),
    [("reference", 4), ("reference", 1024), ("cpu", 1024), ("cpu, planned", 1024), ("triton", 1024)],
)
def test_cascade_matches_oracle(
    options: dict[str, object], query_lens: list[int], backend: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a tail that begins at the wrong block, queries that meet another group's prefix, a sink counted twice,
    pieces of a prefix that are merged without their weights, and reading past a prefix.
    """
    monkeypatch.setattr(cascade, "TOKENS_AT_A_TIME", tile)
    lens = [40, 17, 25, 33, 19, 21]
    batch = ragged_batch(lens, query_lens, block_size=4, head_dim=32, value_dim=24, seed=6)
    share(batch, [[0, 2, 3], [4, 1]], num_blocks=4)
    # Row 1 has 17 tokens, and its query is the first after four blocks: its tail is one token.
    output = run(batch, Variant(**options), backend)
    assert output is not None
    assert_matches(output, dense_attention(batch, **options))


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("flash", [cascade.FLASH, None], ids=["flash", "products"])
def test_scores_kept_in_caches_or_written_out(flash: object, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches log-sum-exps of other rows or in base 2, scores scaled twice, and a causal mask on a prefix."""
    monkeypatch.setattr(cascade, "TOKENS_AT_A_TIME", tile)
    monkeypatch.setattr(cascade, "FLASH", flash)
    batch = ragged_batch([40, 17, 25, 33, 19, 21], [4, 1, 3, 1, 2, 1], block_size=4, head_dim=24, seed=8)
    share(batch, [[0, 2, 3], [4, 1]], num_blocks=4)
    output = run(batch, Variant(), "cpu")
    assert output is not None
    assert_matches(output, dense_attention(batch))


@pytest.mark.parametrize("has_amx", [True, False], ids=["amx", "no amx"])
@pytest.mark.parametrize("backend", ["reference", "cpu, planned"])
def test_bfloat16_is_merged_once_more(backend: str, has_amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches partial results that are merged in bfloat16: only the two parts and their sum may be rounded."""
    monkeypatch.setattr(cascade, "MULTIPLIES_BFLOAT16", has_amx)
    batch = ragged_batch([40, 30, 26], [1, 1, 1], block_size=4, head_dim=32, dtype=torch.bfloat16, seed=7)
    share(batch, [[0, 1, 2]], num_blocks=6)
    output = run(batch, Variant(), backend)
    assert output is not None
    answer, bound = dense_attention(batch, weights_dtype=rounds_weights_to("cpu", torch.bfloat16))
    largest = max(float(value.double().abs().max()) for _, value in batch.dense)
    tail = torch.finfo(torch.bfloat16).eps / 2 * largest  # the parts' results were rounded before they were merged
    assert_matches(output, (answer, bound + tail))


@pytest.mark.parametrize(
    ("most", "allowed"),
    [
        (None, True), ("", True), ("ALL", True), ("default", True), ("AVX512_CORE_AMX", True),
        ("AVX10_1_512_AMX_FP16", True), ("AVX512_CORE_BF16", False), ("avx512_core_fp16", False), ("AVX2", False),
    ],
)  # fmt: skip
def test_matrix_units_that_onednn_may_not_use(most: str | None, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches bfloat16 that is handed over as it is where torch then multiplies it number by number."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    environment = {} if most is None else {"ONEDNN_MAX_CPU_ISA": most}
    assert cascade.multiplies_bfloat16(environment) == allowed
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not cascade.multiplies_bfloat16(environment)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not cascade.multiplies_bfloat16(environment)


def test_a_block_with_queries_is_not_shared() -> None:
    """Catches a prefix that reaches into what a query must not see yet: the step's own tokens lie in the tail."""
    tables, lens = [[1, 2, 3], [1, 2, 3]], [12, 12]
    assert plan_cascade(tables, lens, [1, 1], 4, min_sequences=2, min_tokens=1).seq_lens.tolist() == [4, 4]
    assert plan_cascade(tables, [11, 12], [4, 4], 4, min_sequences=2, min_tokens=1).seq_lens.tolist() == [7, 8]
    assert plan_cascade(tables, [4, 12], [4, 1], 4, min_sequences=2, min_tokens=1) is None


@pytest.mark.parametrize(("device", "num_tokens"), [("cpu", 11), ("meta", 6)])
def test_on_a_gpu_a_prompt_takes_no_part(device: str, num_tokens: int) -> None:
    """Catches a prompt in a group on a GPU, where it reads the prefix once for all its queries as it is, or none in a
    group on a CPU. The device "meta" stands for a GPU: it needs none.
    """
    tables, lens = [[*range(1, 11)]] * 4, [40] * 4
    query_lens = [1, MAX_QUERIES, MAX_QUERIES + 1, 1]
    plan = plan_cascade(tables, lens, query_lens, 4, device, min_sequences=2, min_tokens=1)
    [(tokens, _)] = plan.prefixes
    assert len(tokens) == num_tokens


@pytest.mark.when_changed(*KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flash", [cascade.FLASH, None], ids=["flash", "sdpa"])
@pytest.mark.parametrize("has_amx", [True, False], ids=["amx", "no amx"])
@pytest.mark.parametrize("backend", ["cpu", "cpu, planned"])
@pytest.mark.parametrize("block_size", [4, 16])
def test_prompts_behind_a_prefix(
    block_size: int, backend: str, has_amx: bool, flash: object, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a prompt whose tail begins elsewhere than after the prefix, sees what comes after it, or is merged by
    another token's log-sum-exp. Row 3 has cached tokens in the last, part-filled block before its queries, row 4 behind
    the prefix; row 5 is the prompt that writes the prefix, and shares nothing.
    """
    for module in (cascade, cpu):
        monkeypatch.setattr(module, "FLASH", flash)
    monkeypatch.setattr(cascade, "MULTIPLIES_BFLOAT16", has_amx)
    prefix = 32
    query_lens = [QUERIES_AT_A_TIME + 7, 9, 1, QUERIES_AT_A_TIME, 2 * QUERIES_AT_A_TIME + 1, prefix + 9]
    lens = [prefix + extra + count for extra, count in zip([0, 0, 20, 3, 21, -prefix], query_lens, strict=True)]
    batch = ragged_batch(lens, query_lens, block_size=block_size, head_dim=24, dtype=dtype, seed=9)
    share(batch, [[5, 0, 1, 2, 3, 4]], num_blocks=prefix // block_size)
    output = run(batch, Variant(), backend)
    assert output is not None
    answer, bound = dense_attention(batch, weights_dtype=None if flash is None else rounds_weights_to("cpu", dtype))
    if dtype == torch.bfloat16:  # the parts' results were rounded before they were merged
        bound += torch.finfo(dtype).eps / 2 * max(float(value.double().abs().max()) for _, value in batch.dense)
    assert_matches(output, (answer, bound))


def test_what_stands_behind_a_sequence_does_not_matter() -> None:
    """Catches an entry past a sequence's last block that is looked at, or does not fit int32."""
    tables = [[1, 2, 3, 2**40], [1, 2, 4, -7]]
    plan = plan_cascade(tables, [9, 10], [1, 1], 4, min_sequences=2, min_tokens=1)
    assert plan.block_tables.tolist() == [[3, 0, 0, 0], [4, 0, 0, 0]]


def test_few_sequences_read_for_themselves() -> None:
    """Catches a limit that is off by one, or none."""
    tables, lens = [[*range(1, 40)]] * 3, [300] * 3
    assert plan_cascade(tables, lens, [1] * 3, 8, min_sequences=3, min_tokens=1) is not None
    assert plan_cascade(tables, lens, [1] * 3, 8, min_sequences=4, min_tokens=1) is None


def test_what_no_cascade_can_do() -> None:
    """Catches a window or a slope that is lost: queries do not see a shared prefix alike then."""
    assert not can_cascade(Variant(sliding_window=8))
    assert not can_cascade(Variant(alibi_slopes=torch.ones(6)))


def test_merge_takes_any_scores() -> None:
    """Catches an exponential that overflows, and a part without any weight that yields NaN."""
    one, other = torch.ones(1, 1, 2), torch.full((1, 1, 2), 3.0)
    lse = torch.full((1, 1), 1e4)
    assert merge_attention(one, lse, other, lse)[0].tolist() == [[[2.0, 2.0]]]
    assert merge_attention(one, torch.full((1, 1), -math.inf), other, lse)[0].tolist() == [[[3.0, 3.0]]]


def test_the_null_block_is_no_shared_prefix() -> None:
    """Catches a pass over the null block, which stands before every window that has moved on and which none reads."""
    pool, tables = BlockPool(300, 4), []
    for _ in range(2 * cascade.MIN_SEQUENCES):
        tables.append(BlockTable(pool))
        for _ in range(100):
            tables[-1].append_tokens(40)
            tables[-1].remove_skipped_blocks(tables[-1].num_tokens // 4 - 3)
    assert attention_metadata(tables).cascade is None
    rows = [[0, 0, 5], [0, 0, 6], [7, 8, 9], [7, 8, 10]]
    plan = plan_cascade(rows, [12] * 4, [1] * 4, 4, min_sequences=2, min_tokens=8)
    assert [blocks.tolist() for _, blocks in plan.prefixes] == [[7, 8]]
