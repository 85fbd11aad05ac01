"""From layers to groups, blocks and requests: the rules one by one, and what must hold of any model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.kv_cache_groups import (
    KVCacheGroup,
    UnknownLayoutError,
    blocks_per_request,
    bytes_per_block,
    capacity,
    fit_check,
    kv_cache_groups,
    largest_model_len,
    project_groups,
)
from pagedattn_lab.kv_cache_pages import equal_pages, kept_as_full_attention
from pagedattn_lab.kv_cache_specs import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)
from tests.helpers.draws import drawn

FULL = FullAttentionSpec(16, 8, 128, "bfloat16")
WINDOW = SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=1024)
CHUNK = ChunkedLocalAttentionSpec(16, 8, 128, "bfloat16", attention_chunk_size=8192)
STATE = MambaSpec(16, FULL.page_size_bytes - 10, FULL.page_size_bytes)
LATENT = MLAAttentionSpec(16, 576, "bfloat16")


def layers(*specs: KVCacheSpec) -> dict[str, KVCacheSpec]:
    return {f"layers.{number}": spec for number, spec in enumerate(specs)}


def sizes(groups: list[KVCacheGroup]) -> list[tuple[int, int]]:
    return [(len(group.layers), group.padding_layers) for group in groups]


# --- the rules ------------------------------------------------------------------------------------------------------


def test_one_kind_is_one_group() -> None:
    """Catches a plain model that is cut up."""
    [group] = kv_cache_groups(layers(*[FULL] * 32))
    assert len(group.layers) == 32 and group.padding_layers == 0
    assert bytes_per_block([group]) == 32 * FULL.page_size_bytes


def test_one_kind_of_different_widths_is_one_group() -> None:
    """Catches a drafter of other heads that is put apart: it reads the same table, and its page is added."""
    narrow = FullAttentionSpec(16, 5, 64, "bfloat16")
    [group] = kv_cache_groups(layers(*[FULL] * 32, narrow))
    assert bytes_per_block([group]) == 32 * FULL.page_size_bytes + narrow.page_size_bytes


@pytest.mark.parametrize(
    ("full", "windows", "expected"),
    [
        (10, 20, [(10, 0)] * 3),
        (10, 52, [(10, 0), (9, 1), (9, 1), (9, 1), (9, 1), (8, 2), (8, 2)]),  # gemma-3-27b: 8 padding layers
        (13, 12, [(13, 0), (12, 1)]),  # gpt-oss-20b with a drafter: 13 < 1.5 x 12, so 13 decides
        (12, 17, [(12, 5), (17, 0)]),
        (12, 18, [(12, 0), (9, 3), (9, 3)]),  # 18 is 1.5 x 12, not less
        (1, 3, [(1, 0)] * 4),
    ],
)
def test_how_buckets_are_cut(full: int, windows: int, expected: list) -> None:
    """Catches another size of groups than vLLM's rule has, at the edge of 1.5 too."""
    assert sizes(kv_cache_groups(layers(*[FULL] * full, *[WINDOW] * windows))) == expected


def test_older_rules_of_the_size() -> None:
    """Catches a rule of today in a release of yesterday: before 0.12 the smallest bucket alone decided."""
    model = layers(*[FULL] * 13, *[WINDOW] * 12)
    assert sizes(kv_cache_groups(model, near=1.0)) == [(7, 5), (6, 6), (12, 0)]
    assert sizes(kv_cache_groups(layers(*[FULL] * 17, *[WINDOW] * 12), near=1.25)) == [(9, 3), (8, 4), (12, 0)]


def test_groups_take_every_nth_layer() -> None:
    """Catches groups of neighbours, with which a pipeline rank would have groups without layers."""
    groups = kv_cache_groups(layers(FULL, WINDOW, WINDOW, FULL, WINDOW, WINDOW))
    assert [group.layers for group in groups] == [
        ("layers.0", "layers.3"),
        ("layers.1", "layers.4"),
        ("layers.2", "layers.5"),
    ]
    ranks = [project_groups(groups, {f"layers.{number}" for number in numbers}) for numbers in ((0, 1, 2), (3, 4, 5))]
    assert [[len(group.layers) for group in rank] for rank in ranks] == [[1, 1, 1], [1, 1, 1]]


def test_two_windows_are_two_kinds() -> None:
    """Catches windows of different widths in one table: one would drop what the other reads."""
    narrow = replace(WINDOW, sliding_window=512)
    assert len(kv_cache_groups(layers(WINDOW, narrow))) == 2


def test_a_window_that_is_kept_whole_is_full_attention() -> None:
    """Catches full attention told apart by a window that only its computation has, or two such taken for one."""
    wide, narrow = replace(FULL, sliding_window=4096), replace(FULL, sliding_window=512)
    groups = kv_cache_groups(layers(FULL, wide, narrow, STATE))
    assert [(group.layers, group.bucket) for group in groups] == [
        (("layers.0",), 0),
        (("layers.1",), 0),
        (("layers.2",), 1),
        (("layers.3",), 2),
    ]


def test_states_beside_attention() -> None:
    """Catches a state's page that is not padded to the attention's, or that sizes the block alone."""
    groups = kv_cache_groups(layers(*[STATE] * 3, FULL, *[STATE] * 3, FULL))
    assert [group.spec.kind for group in groups] == ["state space"] * 3 + ["full attention"]
    assert bytes_per_block(groups) == 2 * FULL.page_size_bytes


# --- pages of different widths --------------------------------------------------------------------------------------


def test_narrow_pages_have_longer_blocks_if_that_comes_out_even() -> None:
    """Catches padding where none is needed."""
    narrow = replace(WINDOW, num_kv_heads=2)
    assert equal_pages(layers(FULL, narrow))["layers.1"] == replace(narrow, block_size=64)


def test_narrow_pages_are_padded_if_it_does_not() -> None:
    """Catches a block of a length that holds no whole number of tokens."""
    narrow = replace(WINDOW, num_kv_heads=3)
    assert equal_pages(layers(FULL, narrow))["layers.1"] == replace(narrow, page_size_padded=FULL.page_size_bytes)


def test_states_are_padded_even_where_it_comes_out_even() -> None:
    """Catches a state that is given a longer block: its size does not depend on it."""
    half = MambaSpec(16, FULL.page_size_bytes // 2)
    assert equal_pages(layers(FULL, half))["layers.1"] == replace(half, page_size_padded=FULL.page_size_bytes)


def test_latents_are_never_padded() -> None:
    """Catches padding that vLLM's kernels for latents could not read, guessed and not refused by name."""
    with pytest.raises(UnknownLayoutError, match=r"layers\.0: its page of 18,432 bytes .* latent attention"):
        kv_cache_groups(layers(LATENT, CHUNK))


def test_latents_beside_windows_give_up_the_windows() -> None:
    """Catches a refusal of a drafter with windows beside latents, which vLLM serves by keeping every token."""
    [group] = kv_cache_groups(layers(LATENT, LATENT, WINDOW))
    assert group.spec is LATENT and group.specs[-1].kind == "full attention"


def test_a_padded_page_is_not_given_a_longer_block() -> None:
    """Catches a page whose padding would be kept while its content doubles: vLLM stops there."""
    padded = replace(WINDOW, num_kv_heads=3, page_size_padded=FULL.page_size_bytes // 2)
    with pytest.raises(UnknownLayoutError, match="whose page is padded"):
        equal_pages(layers(FULL, padded))


# --- without the manager of several groups --------------------------------------------------------------------------


@pytest.mark.parametrize("local", [WINDOW, CHUNK])
def test_without_several_groups_all_tokens_are_kept(local: KVCacheSpec) -> None:
    """Catches a window that still saves memory though its manager is off."""
    model = layers(FULL, local, local)
    [group] = kv_cache_groups(model, hybrid_kv_cache_manager=False)
    limits = RequestLimits(131072, 2048)
    assert blocks_per_request([group], limits) == 8192
    assert blocks_per_request(kv_cache_groups(model), limits) != 8192


@pytest.mark.parametrize(
    "model", [[FULL, STATE], [FULL, WINDOW, replace(WINDOW, sliding_window=512)], [WINDOW, CHUNK], [LATENT, STATE]]
)
def test_what_cannot_be_kept_in_one_group_is_refused(model: list) -> None:
    """Catches a model that vLLM refuses, counted all the same; windows are kept whole only beside full attention."""
    with pytest.raises(UnknownLayoutError, match="--disable-hybrid-kv-cache-manager"):
        kv_cache_groups(layers(*model), hybrid_kv_cache_manager=False)


def test_a_window_alone_stays_a_window() -> None:
    """Catches a model of windows alone that is kept like full attention: one group is enough for it."""
    assert kept_as_full_attention(layers(WINDOW, WINDOW)) == layers(WINDOW, WINDOW)


def test_a_promoted_window_takes_the_full_layers_block() -> None:
    """Catches a table for two sizes of block."""
    longer = replace(WINDOW, block_size=32, page_size_padded=2 * FULL.page_size_bytes)
    promoted = kept_as_full_attention(layers(FULL, longer))["layers.1"]
    assert promoted.block_size == 16 and promoted.page_size_bytes == 2 * FULL.page_size_bytes
    padded = replace(WINDOW, page_size_padded=FULL.page_size_bytes + 8)
    promoted = kept_as_full_attention(layers(replace(FULL, block_size=32), padded))["layers.1"]
    assert promoted.block_size == 32 and promoted.page_size_bytes == 2 * FULL.page_size_bytes


# --- capacity -------------------------------------------------------------------------------------------------------


def test_the_poorest_rank_decides() -> None:
    """Catches ranks that are summed or averaged, or the first taken for all."""
    groups = kv_cache_groups(layers(*[FULL] * 3))
    ranks = [project_groups(groups, {"layers.0", "layers.1"}), project_groups(groups, {"layers.2"})]
    page = FULL.page_size_bytes
    assert capacity(ranks, [100 * 2 * page, 70 * page], RequestLimits(16, 16)).num_blocks == 70
    assert capacity(ranks, [100 * 2 * page - 1, 700 * page], RequestLimits(16, 16)).num_blocks == 99


def test_a_rank_keeps_the_tables_it_has_no_layers_of() -> None:
    """Catches a request that needs fewer blocks on a rank without windows: tables are the same everywhere."""
    groups = kv_cache_groups(layers(FULL, FULL, WINDOW, WINDOW))
    [first, second] = project_groups(groups, {"layers.0", "layers.1"})
    assert second.layers == () and second.spec == WINDOW and first.layers == groups[0].layers
    limits = RequestLimits(8192, 2048)
    assert blocks_per_request([first, second], limits) == blocks_per_request(groups, limits)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda groups: capacity([], [], RequestLimits(1, 1)), "0 ranks with 0"),
        (lambda groups: capacity([groups], [1, 2], RequestLimits(1, 1)), "1 ranks with 2"),
        (lambda groups: capacity([[]], [1], RequestLimits(1, 1)), "rank 0 has no layer"),
        (lambda groups: capacity([groups, project_groups(groups, ())], [1, 1], RequestLimits(1, 1)), "rank 1 has no"),
        (lambda groups: capacity([groups], [1], RequestLimits(1, 1), formula="0.33"), "formula is '0.33'"),
        (lambda groups: KVCacheGroup((), ()), "without layers"),
        (lambda groups: KVCacheGroup(("a",), ()), "1 layers with 0 specs"),
    ],
)
def test_what_has_no_answer_is_refused(call, says: str) -> None:
    """Catches a division by zero, or a zip that cuts."""
    with pytest.raises(ValueError, match=says):
        call(kv_cache_groups(layers(FULL)))


def test_nothing_cached_has_no_groups() -> None:
    """Catches a crash on a model without attention."""
    assert kv_cache_groups({}) == [] and bytes_per_block([]) == 0


# --- what holds of any model ----------------------------------------------------------------------------------------


@st.composite
def models(draw: st.DrawFn) -> dict[str, KVCacheSpec]:
    """Layers of a few kinds, by turns or by chance: alike, windows, chunks, states, a drafter of another width."""
    block_size = draw(st.sampled_from([16, 32, 784]))
    heads = draw(st.sampled_from([1, 2, 3, 8]))
    full = FullAttentionSpec(block_size, heads, 128, "bfloat16")
    others = [
        SlidingWindowSpec(block_size, heads, 128, "bfloat16", sliding_window=1024),
        SlidingWindowSpec(block_size, heads, 128, "bfloat16", sliding_window=300),
        SlidingWindowSpec(block_size, 5, 64, "bfloat16", sliding_window=1024),
        ChunkedLocalAttentionSpec(block_size, heads, 128, "bfloat16", attention_chunk_size=2048),
        MambaSpec(block_size, full.page_size_bytes // 2 + 1),
        FullAttentionSpec(block_size, 2, 64, "float8_e4m3fn"),
    ]
    kinds = [full, *draw(st.lists(st.sampled_from(others), unique=True, max_size=3))]
    return layers(*draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=30)))


LIMITS = st.builds(
    RequestLimits,
    st.integers(1, 40000),
    st.sampled_from([512, 2048, 16384]),
    st.sampled_from(["none", "align"]),
)


@given(models())
def test_every_layer_is_in_one_group_of_its_kind(model: dict[str, KVCacheSpec]) -> None:
    """Catches a layer that is lost, kept twice, or reads a table that drops its blocks."""
    groups = kv_cache_groups(model)
    assert sorted(name for group in groups for name in group.layers) == sorted(model)
    for group in groups:
        assert len({spec.table_key for spec in group.specs}) == 1
        assert {spec.kind for spec in group.specs} == {model[name].kind for name in group.layers}


@given(models())
def test_a_block_holds_any_group(model: dict[str, KVCacheSpec]) -> None:
    """Catches a block smaller than its widest group, and padding that does not fill the others up to it."""
    groups = kv_cache_groups(model)
    block = bytes_per_block(groups)
    assert block == max(group.page_size_bytes for group in groups)
    for group in groups:
        assert group.page_size_bytes <= block
        if len(groups) > 1:
            assert group.page_size_bytes + group.padding_layers * group.spec.page_size_bytes == block


@given(models(), st.data())
def test_ranks_divide_the_layers_among_them(model: dict[str, KVCacheSpec], data: st.DataObject) -> None:
    """Catches a layer that no rank has, or two have, and ranks that need another number of blocks."""
    cut = data.draw(st.integers(0, len(model)))
    names = list(model)
    groups = kv_cache_groups(model)
    ranks = [project_groups(groups, part) for part in (names[:cut], names[cut:])]
    for group, first, second in zip(groups, *ranks, strict=True):
        assert sorted(first.layers + second.layers) == sorted(group.layers)
    limits = RequestLimits(9000, 2048)
    assert {blocks_per_request(rank, limits) for rank in ranks} == {blocks_per_request(groups, limits)}


@given(models(), LIMITS, st.integers(0, 2**34), st.integers(0, 2**30))
def test_more_memory_never_holds_less(
    model: dict[str, KVCacheSpec], limits: RequestLimits, memory: int, more: int
) -> None:
    """Catches a capacity that falls when memory is added."""
    groups = kv_cache_groups(model)
    for formula in ("request", "groups", "block size"):
        less, greater = (
            capacity([groups], [available], limits, formula=formula) for available in (memory, memory + more)
        )
        assert less.num_blocks <= greater.num_blocks and less.kv_tokens <= greater.kv_tokens
        assert less.max_concurrency <= greater.max_concurrency


@settings(max_examples=drawn(200))
@given(models(), LIMITS, st.integers(-2, 3), st.integers(-1, 1))
def test_the_check_agrees_with_the_capacity(
    model: dict[str, KVCacheSpec], limits: RequestLimits, spare: int, rest: int
) -> None:
    """Catches a check that lets a server start on which one request cannot run, or the other way round.

    One block is the null block: a request fits if all others are enough for it.
    """
    groups = kv_cache_groups(model)
    needed = blocks_per_request(groups, limits)
    memory = max(0, (needed + spare) * bytes_per_block(groups) + rest)
    found = capacity([groups], [memory], limits)
    assert fit_check(groups, memory, limits).fits == (found.num_blocks - 1 >= needed)
    assert fit_check(groups, memory, limits, null_block=False).fits == (found.max_concurrency >= 1)


@given(models(), LIMITS, st.integers(0, 2**28))
def test_the_longest_request_is_the_longest(model: dict[str, KVCacheSpec], limits: RequestLimits, memory: int) -> None:
    """Catches a search that ends one token early or late."""
    groups = kv_cache_groups(model)
    longest = largest_model_len(groups, memory, limits)
    assert 0 <= longest <= limits.max_model_len
    if longest:
        assert fit_check(groups, memory, replace(limits, max_model_len=longest)).fits
    if longest < limits.max_model_len:
        assert not fit_check(groups, memory, replace(limits, max_model_len=longest + 1)).fits


@given(st.integers(1, 64), st.integers(1, 1000), st.integers(0, 10**6))
def test_formulas_agree_on_a_plain_model(num_layers: int, blocks_each: int, num_blocks: int) -> None:
    """Catches a formula that differs where there is nothing to differ about: one group, whole blocks."""
    groups = kv_cache_groups(layers(*[FULL] * num_layers))
    limits = RequestLimits(blocks_each * 16, 2048)
    memory = [num_blocks * bytes_per_block(groups)]
    request, by_groups, by_size = (
        capacity([groups], memory, limits, formula=formula) for formula in ("request", "groups", "block size")
    )
    assert by_groups.kv_tokens == by_size.kv_tokens == num_blocks * 16
    assert request.kv_tokens in (num_blocks * 16, num_blocks * 16 - 1)  # one float division, cut to a whole number
    assert request.max_concurrency == by_groups.max_concurrency == pytest.approx(by_size.max_concurrency, rel=1e-15)
