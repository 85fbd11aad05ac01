"""Groups, blocks, tokens and fits against vLLM's own: what was recorded there comes out here."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest

from pagedattn_lab import kv_cache_specs
from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget.versions import padding_lines
from pagedattn_lab.kv_cache_groups import (
    KVCacheCapacity,
    KVCacheGroup,
    UnknownLayoutError,
    bytes_per_block,
    capacity,
    fit_check,
    kv_cache_groups,
    project_groups,
)
from pagedattn_lab.kv_cache_specs import KVCacheSpec, RequestLimits
from tests.record_vllm_budget import RECORDED

RUNS = json.loads(RECORDED.read_text())["runs"]


def specs_of(run: dict) -> dict[str, KVCacheSpec]:
    kinds = []
    for kind in run["kinds"]:
        fields = dict(kind)
        kinds.append(getattr(kv_cache_specs, fields.pop("spec"))(**fields))
    return {f"layers.{number}": kinds[kind] for number, kind in enumerate(run["layers"])}


def groups_of(run: dict) -> list[KVCacheGroup]:
    return kv_cache_groups(specs_of(run), hybrid_kv_cache_manager=run["hybrid_kv_cache_manager"])


def ranks_of(run: dict, groups: list[KVCacheGroup]) -> list[list[KVCacheGroup]]:
    ranges = [range(first, last) for first, last in pairwise(run["bounds"])]
    return [project_groups(groups, {f"layers.{number}" for number in numbers}) for numbers in ranges]


def limits_of(run: dict, max_model_len: int) -> RequestLimits:
    return RequestLimits(max_model_len, run["max_in_flight_tokens"], run["mamba_cache_mode"])


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_as_vllm_plans(number: int) -> None:
    """Catches a group, a padding layer, a byte, a block or a token that vLLM 0.33.0 counts otherwise."""
    run = RUNS[number]
    if "refused" in run:
        with pytest.raises(UnknownLayoutError):
            groups_of(run)
        return
    groups = groups_of(run)
    assert [[int(name.removeprefix("layers.")) for name in group.layers] for group in groups] == run["groups"]
    assert [group.block_size for group in groups] == run["block_sizes"]
    assert padding_lines(groups) == run["padding"]

    ranks = ranks_of(run, groups)
    widths = [bytes_per_block(rank) for rank in ranks]
    assert widths == run["bytes_per_block"]
    memory = run["available_bytes"] if run["override"] is None else [width * run["override"] for width in widths]

    limits = limits_of(run, run["max_model_len"])
    checks = [fit_check(rank, available, limits) for rank, available in zip(ranks, memory, strict=True)]
    longest = min(check.largest_model_len for check in checks)
    planned, auto = run["planned"], run["auto"]
    refusing = next((check for check in checks if not check.fits), None)
    if refusing is None:
        same(capacity(ranks, memory, limits), planned)
    else:
        numbers = (str(round(number / GIB, 2)) for number in (refusing.needed_bytes, refusing.available_bytes))
        expected = [*numbers, refusing.largest_model_len] if refusing.available_bytes > 0 else None
        assert planned["too_small"] == expected

    if longest:
        assert longest == auto["max_model_len"]
        same(capacity(ranks, memory, limits_of(run, longest)), auto)
    else:
        assert auto["too_small"] is None


def same(ours: KVCacheCapacity, theirs: dict) -> None:
    assert ours.num_blocks == theirs["num_blocks"]
    assert ours.max_concurrency == theirs["max_concurrency"]  # one division of the same numbers: equal to the last bit
    assert ours.kv_tokens == theirs["kv_tokens"]


def test_the_runs_are_telling() -> None:
    """Catches a recording in which the cases that differ do not occur."""
    seen = Counter()
    for run in RUNS:
        seen[run.get("refused", "planned")] += 1
        if "refused" in run:
            continue
        seen["several groups"] += len(run["groups"]) > 1
        seen["padding layers"] += bool(run["padding"])
        seen["longer blocks"] += len(set(run["block_sizes"])) > 1
        seen["pipeline"] += len(run["bounds"]) > 2
        seen["too small"] += "too_small" in run["planned"]
        seen["shortened"] += "num_blocks" in run["auto"] and run["auto"]["max_model_len"] < run["max_model_len"]
        kinds = {kind["spec"] for kind in run["kinds"]}
        seen["latents without their windows"] += kinds == {"MLAAttentionSpec", "SlidingWindowSpec"} and (
            len(run["groups"]) == 1 and run["hybrid_kv_cache_manager"]
        )
    assert min(seen.values()) >= 3 and len(seen) == 10, seen
