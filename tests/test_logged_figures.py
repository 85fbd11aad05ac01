"""Figures from other people's start-up logs: each names its source, and the plain ones come out by hand."""

import json
import math
from pathlib import Path

import pytest

FIGURES = json.loads((Path(__file__).parent / "logged_figures.json").read_text(encoding="utf-8"))["figures"]
BLOCK = 16


def plain(figure):
    """Whether one rank's cache is so many equal layers of keys and values, or latents, in blocks of 16."""
    return figure["layout"] is not None and not {"block_size", "groups"} & figure["layout"].keys()


def bytes_per_block(layout):
    elements = layout["latent"] if "latent" in layout else 2 * layout["kv_heads_per_rank"] * layout["head_size"]
    return BLOCK * layout["layers"] * elements * layout["bytes_per_element"]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure["id"])
def test_a_figure_names_its_source_and_what_it_lacks(figure):
    """A figure without a source, or without a word on what is missing, is hearsay."""
    assert figure["source"].startswith("https://")
    assert figure["log"] and isinstance(figure["unknown"], list)
    assert figure["comes_out"] is not False or figure["why"], "say why it does not come out"
    assert figure["model"] or "model" in figure["unknown"]


@pytest.mark.parametrize("figure", [f for f in FIGURES if plain(f) and f["comes_out"]], ids=lambda figure: figure["id"])
def test_plain_layouts_come_out_within_the_rounding_of_the_log(figure):
    """A misread digit: the blocks must lie between those of the printed GiB less and plus half its last place."""
    log, block = figure["log"], bytes_per_block(figure["layout"])
    low, high = (max(0, int((log["available_gib"] + half) * 2**30 // block)) for half in (-0.005, 0.005))
    tokens = ("kv_tokens", "error_tokens", "estimated_max_model_len", "auto_fit_to")
    blocks = [log[name] / BLOCK for name in tokens if name in log]
    blocks += [log["num_blocks"]] if "num_blocks" in log else []
    assert blocks or "needed_gib" in log
    assert all(low <= number <= high for number in blocks)
    length = figure["settings"].get("max_model_len")
    if "needed_gib" in log:
        needed = math.ceil(length / BLOCK) * block / 2**30
        assert needed == pytest.approx(log["needed_gib"], abs=0.005 + 1e-9)
    if "max_concurrency" in log and blocks:
        assert blocks[0] * BLOCK / length == pytest.approx(log["max_concurrency"], abs=0.005 + 1e-9)


def test_windows_come_out_with_one_window_more_than_a_step_slides():
    """A window charged with its own tokens alone, or tokens that are not divided by the groups, as 0.13 did."""
    (figure,) = [figure for figure in FIGURES if "sliding_window" in (figure["layout"] or {})]
    layout, settings, log = figure["layout"], figure["settings"], figure["log"]
    block = BLOCK * 2 * layout["kv_heads_per_rank"] * layout["head_size"] * layout["bytes_per_element"]
    length, groups = settings["max_model_len"], layout["groups"]
    window = min(layout["sliding_window"] - 1 + settings["max_num_batched_tokens"], length)
    blocks_per_request = length // BLOCK + (groups - 1) * (math.ceil(window / BLOCK) + 1)
    block *= layout["full_layers"]
    low, high = (int((log["available_gib"] + half) * 2**30 // block) for half in (-0.005, 0.005))
    assert low // groups <= log["kv_tokens"] / BLOCK <= high // groups
    assert low / blocks_per_request <= log["max_concurrency"] <= high / blocks_per_request


def test_they_cover_what_a_reader_meets():
    """A list of one kind only: dense models alone would not show a wrong rule for the others."""
    layouts = [figure["layout"] or {} for figure in FIGURES]
    settings = [figure["settings"] for figure in FIGURES]
    assert len(FIGURES) >= 20
    assert any("latent" in layout for layout in layouts), "MLA"
    assert any("sliding_window" in layout for layout in layouts), "windows"
    assert any("mamba_layers" in layout for layout in layouts), "hybrids"
    assert any(setting.get("tensor_parallel_size", 1) > 1 for setting in settings)
    assert any(setting.get("pipeline_parallel_size", 1) > 1 for setting in settings)
    assert any("fp8" in setting.get("kv_cache_dtype", "") for setting in settings)
    assert any("num_blocks" in figure["log"] for figure in FIGURES), "the V0 wording"
    assert any("RTX" in (figure["gpu"] or "") for figure in FIGURES), "consumer cards"
    assert any("needed_gib" in figure["log"] for figure in FIGURES), "one that does not fit"
