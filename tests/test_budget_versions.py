"""Releases of vLLM: what each counts and prints, against figures that their logs had."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget.changes import CHANGES, NEWEST, OLDEST, changes_between
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.versions import VLLMVersion, vllm_version
from pagedattn_lab.kv_cache_groups import KVCacheCapacity, UnknownLayoutError, bytes_per_block, project_groups
from pagedattn_lab.kv_cache_specs import (
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)


def layers(*specs: KVCacheSpec) -> dict[str, KVCacheSpec]:
    return {f"layers.{number}": spec for number, spec in enumerate(specs)}


def attention(num_kv_heads: int, head_size: int, window: int | None = None, block_size: int = 16) -> KVCacheSpec:
    if window is None:
        return FullAttentionSpec(block_size, num_kv_heads, head_size, "bfloat16")
    return SlidingWindowSpec(block_size, num_kv_heads, head_size, "bfloat16", sliding_window=window)


LLAMA_8B = layers(*[attention(8, 128)] * 32)
LOGGED = [
    # model, release, GiB a rank, max_model_len, tokens in flight, tokens, concurrency. The first eight:
    # llm-d-incubation/llm-d-planner, commit d3121e0, accuracy/results: an H100 of 79.19 GiB, vLLM 0.19, batch 8,192.
    ("Llama-3.1-8B", LLAMA_8B, "0.19", [58.11], 8192, 8192, 476016, "58.11"),
    ("the same, longer", LLAMA_8B, "0.19", [58.11], 32768, 8192, 476016, "14.53"),
    ("TP 2", layers(*[attention(4, 128)] * 32), "0.19", [63.76], 8192, 8192, 1044688, "127.53"),
    ("PP 2", LLAMA_8B, "0.19", [66.54, 65.63], 8192, 8192, 1075312, "131.26"),
    (
        "gemma-2-9b",
        layers(*[attention(8, 256), attention(8, 256, 4096)] * 21),
        "0.19", [54.12], 8192, 8192, 168880, "20.60",
    ),
    (
        "gemma-3-27b",
        layers(*[attention(16, 128, None if number % 6 == 5 else 1024) for number in range(62)]),
        "0.19", [19.53], 8192, 8192, 36560, "4.46",
    ),
    (
        "gpt-oss-20b",
        layers(*[attention(8, 64), attention(8, 64, 128)] * 12),
        "0.19", [58.47], 8192, 8192, 1277184, "155.75",
    ),
    (
        "DeepSeek-V2-Lite",
        layers(*[MLAAttentionSpec(16, 576, "bfloat16")] * 27),
        "0.19", [43.61], 8192, 8192, 1505552, "183.78",
    ),
    # vllm-project/vllm, issue 19996: Llama-3.1-8B with a drafter of one layer.
    ("EAGLE", layers(*[attention(8, 128)] * 33), "0.9.1", [51.63], 131072, 2048, 410128, "3.13"),
    # vllm-project/vllm, issue 12330: an A100 of 40 GB before V1.
    ("A100", LLAMA_8B, "0.6.6", [11.12], 8192, 8192, 5691 * 16, "11.12"),
    # A CPU build, opt-125m, blocks of 128.
    ("opt-125m", layers(*[attention(12, 64, None, 128)] * 12), "0.32", [8.0], 2048, 4096, 232960, "113.75"),
]  # fmt: skip


@pytest.mark.parametrize("row", LOGGED, ids=lambda row: row[0])
def test_figures_of_logs(row: tuple) -> None:
    """Catches a byte, a block or a rule that is not the release's: tokens and concurrency as they were logged.

    Memory is logged to a hundredth of a GiB, so some amount that rounds to it must give the logged tokens, to the last
    one, and with the same amount the logged concurrency.
    """
    _, specs, release, gib, max_model_len, in_flight, tokens, concurrency = row
    version, limits = vllm_version(release), RequestLimits(max_model_len, in_flight)
    groups = version.kv_cache_groups(specs)
    names, share = list(specs), len(specs) // len(gib)
    ranks = [project_groups(groups, names[rank * share : (rank + 1) * share]) for rank in range(len(gib))]
    possible = set()
    width = bytes_per_block(ranks[-1])
    last = round(gib[-1] * GIB)  # the last rank binds where there are several
    for memory in range(last - GIB // 200, last + GIB // 200 + width, width):
        available = [round(amount * GIB) + GIB // 100 for amount in gib[:-1]] + [memory]
        found = version.capacity(ranks, available, limits)
        possible.add((found.kv_tokens, f"{found.max_concurrency:.2f}"))
    assert (tokens, concurrency) in possible


@pytest.mark.parametrize(
    ("release", "specs", "num_blocks", "max_model_len", "in_flight", "tokens", "concurrency"),
    [
        # pull requests 12569 and 13596; issue 40691's kind of hybrid in a later release
        ("0.7.2", LLAMA_8B, 1381, 2048, 2048, 22096, "10.79"),
        ("0.8.0", LLAMA_8B, 127626, 2048, 2048, 2042016, "997.08"),
        ("0.10.2", LLAMA_8B, 643232 // 16, 40960, 2048, 643232, "15.70"),
        ("0.30", layers(*[attention(8, 64), attention(8, 64, 128)] * 12), 138963, 32768, 4096, 1968672, "60.08"),
        (
            "0.33",  # a hybrid of 784-token blocks: 42 of attention, 2 in each of three groups of states
            layers(*[*[MambaSpec(784, 1000, 784 * 4096)] * 3, attention(4, 256, None, 784)] * 16),
            653, 32768, 16384, 445781, "13.60",
        ),
    ],
)  # fmt: skip
def test_figures_of_logs_with_blocks(
    release: str,
    specs: dict[str, KVCacheSpec],
    num_blocks: int,
    max_model_len: int,
    in_flight: int,
    tokens: int,
    concurrency: str,
) -> None:
    """Catches another formula for tokens or concurrency than the release's, where a log gives the blocks."""
    version = vllm_version(release)
    groups = version.kv_cache_groups(specs)
    limits = RequestLimits(max_model_len, in_flight, "align")
    found = version.capacity([groups], [num_blocks * bytes_per_block(groups)], limits)
    assert (found.num_blocks, found.kv_tokens, f"{found.max_concurrency:.2f}") == (num_blocks, tokens, concurrency)


# --- reading a version ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.33", (0, 33, 0)),
        ("v0.11.2", (0, 11, 2)),
        (" 0.6.4.post1 ", (0, 6, 4)),
        ("0.19.1rc1.dev301+g60995c05b", (0, 19, 1)),
        ("0.10.0+cu126", (0, 10, 0)),
        ("1.2.3", (1, 2, 3)),
    ],
)
def test_versions_are_read(text: str, release: tuple[int, int, int]) -> None:
    """Catches a form in which vLLM prints its version that is not understood."""
    assert vllm_version(text).release == release


@pytest.mark.parametrize("text", ["", "main", "33", "0.33.x", "0.5.4", "0.1.dev20073+g8e685d198"])
def test_what_is_no_known_version_is_refused(text: str) -> None:
    """Catches a guess for a version that is none, or older than what is known."""
    with pytest.raises(BudgetError, match=r"version of vLLM|known from 0\.6"):
        vllm_version(text)


def test_a_newer_release_counts_as_the_newest_known() -> None:
    """Catches a future release that is refused, or counted in silence."""
    newest, newer = vllm_version("0.33.9"), vllm_version("0.34")
    assert (
        newest.note is None and newer.note == "vLLM 0.34.0 is newer than what this book knows: counted as 0.33.0 counts"
    )
    told = {"release", "newer"}
    for field in fields(VLLMVersion):
        assert field.name in told or getattr(newest, field.name) == getattr(newer, field.name)


def test_changes_are_in_order_and_of_real_fields() -> None:
    """Catches a change out of order, before the oldest release, after the newest, or of a field that there is not."""
    sinces = [change.since for change in CHANGES]
    assert sinces == sorted(set(sinces)) and sinces[0] > OLDEST and sinces[-1] <= NEWEST
    names = {field.name for field in fields(VLLMVersion)}
    assert {name for change in CHANGES for name in change.fields} == names - {"release", "newer"}
    assert all(change.what and change.source for change in CHANGES)


def test_a_patch_release_has_only_what_came_before_it() -> None:
    """Catches a change that a release has one too early or too late."""
    assert [change.since for change in changes_between((0, 7, 2), (0, 8, 0))] == [(0, 7, 3), (0, 8, 0)]
    assert not vllm_version("0.19.9").cuda_graphs_subtracted and vllm_version("0.20").cuda_graphs_subtracted
    formulas = [vllm_version(release).formula for release in ("0.9.0", "0.9.1", "0.20.2", "0.21")]
    assert formulas == ["block size", "groups", "groups", "request"]


@pytest.mark.parametrize(
    ("release", "drafted", "sizes"),
    [
        ("0.11.2", 13, [7, 6, 12]),
        ("0.12", 13, [13, 12]),
        ("0.17", 17, [9, 8, 12]),
        ("0.18", 17, [17, 12]),
    ],
)
def test_how_a_release_cuts_gpt_oss_with_a_drafter(release: str, drafted: int, sizes: list[int]) -> None:
    """Catches a rule of groups that came earlier or later: 12 layers with windows, 12 without, and a drafter's."""
    specs = layers(*[attention(8, 64)] * drafted, *[attention(8, 64, 128)] * 12)
    assert [len(group.layers) for group in vllm_version(release).kv_cache_groups(specs)] == sizes


# --- defaults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "gib", "name", "serve", "offline"),
    [
        ("0.33", 24, "RTX 4090", (2048, 256), (8192, 256)),
        ("0.33", 80, "NVIDIA A100-SXM4-80GB", (2048, 256), (8192, 256)),
        ("0.33", 79.19, "NVIDIA H100 80GB HBM3", (8192, 1024), (16384, 1024)),
        ("0.33", 178, "NVIDIA B200", (16384, 1024), (16384, 1024)),
        ("0.27", 178, "NVIDIA B200", (8192, 1024), (16384, 1024)),
        ("0.33", 119, "NVIDIA GB10", (2048, 256), (8192, 256)),
        ("0.32", 119, "NVIDIA GB10", (8192, 1024), (16384, 1024)),
        ("0.8.5", 80, "NVIDIA A100-SXM4-80GB", (8192, 1024), (16384, 1024)),
        ("0.8.4", 80, "NVIDIA A100-SXM4-80GB", (2048, 1024), (8192, 1024)),
        ("0.8.4", 79.19, "NVIDIA H100 80GB HBM3", (8192, 1024), (16384, 1024)),
        ("0.7.3", 80, "NVIDIA H100 80GB HBM3", (8192, 256), (8192, 256)),
    ],
)
def test_batch_defaults(release: str, gib: float, name: str, serve: tuple, offline: tuple) -> None:
    """Catches a default that belongs to another GPU, usage or release."""
    settings = {"total_bytes": int(gib * GIB), "gpu_name": name, "max_model_len": 8192}
    version = vllm_version(release)
    assert version.batch_defaults("serve", **settings) == serve
    assert version.batch_defaults("offline", **settings) == offline


def test_batch_defaults_before_v1_depend_on_the_context() -> None:
    """Catches V1's defaults in V0, which computed a prompt at once unless it was long."""
    old, older = vllm_version("0.7.3"), vllm_version("0.6.4")
    assert old.batch_defaults(max_model_len=1000) == (2048, 256)
    assert old.batch_defaults(max_model_len=131072) == (2048, 256)
    assert older.batch_defaults(max_model_len=131072) == (512, 256)


def test_batch_defaults_of_a_cpu_and_of_short_contexts() -> None:
    """Catches a CPU with a GPU's defaults, and a batch of more tokens than all requests together can have."""
    version = vllm_version("0.33")
    assert version.batch_defaults("serve", device="cpu", world_size=2) == (4096, 256)
    assert version.batch_defaults("offline", device="cpu") == (4096, 256)
    assert version.batch_defaults("serve", max_model_len=4) == (1024, 256)


@pytest.mark.parametrize(
    ("release", "ranks", "asynchronous", "device", "batches"),
    [
        ("0.25", 4, None, "gpu", 1),
        ("0.26", 1, None, "gpu", 2),
        ("0.26", 1, False, "gpu", 1),
        ("0.26", 4, None, "gpu", 4),
        ("0.29", 4, None, "gpu", 5),
        ("0.33", 4, False, "gpu", 4),
        ("0.33", 1, None, "cpu", 1),
    ],
)
def test_steps_in_flight(release: str, ranks: int, asynchronous: bool | None, device: str, batches: int) -> None:
    """Catches a step in flight that is not counted, or counted by a release that did not."""
    version = vllm_version(release)
    assert version.concurrent_batches(ranks, async_scheduling=asynchronous, device=device) == batches  # type: ignore[arg-type]


# --- layouts and fits ------------------------------------------------------------------------------------------------


def test_windows_had_no_groups_once() -> None:
    """Catches windows that save memory in a release that kept every token."""
    specs = layers(*[attention(8, 256), attention(8, 256, 4096)] * 21)
    assert len(vllm_version("0.9.0").kv_cache_groups(specs)) == 1
    assert len(vllm_version("0.9.1").kv_cache_groups(specs)) == 2
    assert len(vllm_version("0.33").kv_cache_groups(specs, hybrid_kv_cache_manager=False)) == 1


@pytest.mark.parametrize(
    ("specs", "unknown", "known"),
    [
        (layers(attention(8, 128), attention(2, 128)), "0.10.2", "0.11"),
        (layers(attention(8, 128), attention(2, 128, 128)), "0.28", "0.29"),
    ],
)
def test_older_layouts_that_are_not_known_are_refused(specs: dict, unknown: str, known: str) -> None:
    """Catches a layout of today claimed for a release that had another."""
    assert vllm_version(known).kv_cache_groups(specs)
    with pytest.raises(UnknownLayoutError, match=rf"16,384 and 65,536 bytes: how vLLM {unknown}"):
        vllm_version(unknown).kv_cache_groups(specs)


def test_the_null_block_is_set_aside_from_029_on() -> None:
    """Catches a server that is said to start on exactly one request's blocks, or said not to by an older release."""
    groups = vllm_version("0.33").kv_cache_groups(LLAMA_8B)
    limits, memory = RequestLimits(8192, 2048), 512 * bytes_per_block(groups)
    assert vllm_version("0.28").fit_check(groups, memory, limits).fits
    found = vllm_version("0.29").fit_check(groups, memory, limits)
    assert not found.fits and found.largest_model_len == 511 * 16


# --- what is printed --------------------------------------------------------------------------------------------------

FOUND = KVCacheCapacity(127626, 128, 127626 * 16 / 2048, 2042016)


@pytest.mark.parametrize(
    ("release", "lines"),
    [
        ("0.6.6", ["# GPU blocks: 127626", "Maximum concurrency for 2048 tokens per request: 997.08x"]),
        ("0.7.2", ["# CUDA blocks: 127626", "Maximum concurrency for 2048 tokens per request: 997.08x"]),
        ("0.7.3", ["# cuda blocks: 127626", "Maximum concurrency for 2048 tokens per request: 997.08x"]),
        ("0.8.0", ["GPU KV cache size: 2,042,016 tokens", "Maximum concurrency for 2,048 tokens per request: 997.08x"]),
        ("0.27", ["GPU KV cache size: 2,042,016 tokens", "Maximum concurrency for 2,048 tokens per request: 997.08x"]),
        ("0.28", ["GPU KV cache size: 2,042,016 tokens, Maximum concurrency for 2,048 tokens per request: 997.08x"]),
    ],
)
def test_lines_of_a_release(release: str, lines: list[str]) -> None:
    """Catches a wording, a comma or a number of lines that the release did not print."""
    assert vllm_version(release).capacity_lines(FOUND, RequestLimits(2048, 2048)) == lines


def test_lines_of_a_cpu() -> None:
    """Catches a log of a CPU that is expected to say CPU before it did."""
    limits = RequestLimits(2048, 2048)
    assert vllm_version("0.29").capacity_lines(FOUND, limits, device="cpu")[0].startswith("GPU KV cache size")
    assert vllm_version("0.30").capacity_lines(FOUND, limits, device="cpu")[0].startswith("CPU KV cache size")


def test_blocks_of_the_swap_space() -> None:
    """Catches the oldest releases' second figure left out."""
    [first, _] = vllm_version("0.6").capacity_lines(FOUND, RequestLimits(2048, 2048), num_cpu_blocks=2048)
    assert first == "# GPU blocks: 127626, # CPU blocks: 2048"


def test_available_memory_is_said_from_091_on() -> None:
    """Catches a line that a release did not print."""
    assert vllm_version("0.9.0").available_lines(GIB) == []
    assert vllm_version("0.9.1").available_lines(GIB) == ["Available KV cache memory: 1.00 GiB"]
    assert vllm_version("0.14").available_lines(GIB) == ["Available KV cache memory: 1.0 GiB"]
