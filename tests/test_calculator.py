"""The calculator: numbers are the budget's and vLLM's, the picture is to scale, and every position has an answer."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from typing import Any

import pytest
from traitlets import TraitError

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.budget import BudgetError, Options, users
from pagedattn_lab.budget.compute import compute
from pagedattn_lab.budget.lengths import held_blocks
from pagedattn_lab.kv_cache_specs import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)
from pagedattn_lab.viz import calculator, grid
from pagedattn_lab.viz.calculator import Calculator, draw
from pagedattn_lab.viz.concurrency import Point, draw_concurrency, place
from pagedattn_lab.viz.fit import layout_of, most_blocks, tell, times, work_out
from pagedattn_lab.viz.player import MIME
from pagedattn_lab.viz.vram import ALARM, Memory, gib, memory_of, show_vram, spread_labels
from tests.helpers.calculator_facts import made_up, sample

FACTS = made_up()
LABEL = re.compile(r'<text x="(\d+)" y="(\d+)" text-anchor="middle" fill="[^"]+"(?: font-weight="bold")?>([^<]+)<')


def boxes(svg: str) -> list[tuple[str, int, int]]:
    """Read the parts of the bar: fill, left edge and width."""
    found = re.findall(r'<rect x="(\d+)" y="56" width="(\d+)" height="30" fill="([^"]+)" stroke="#555"', svg)
    return [(fill, int(left), int(width)) for left, width, fill in found]


def positions_by_answer() -> dict[str, list[int]]:
    """Find a position for each kind of answer."""
    found: dict[str, list[int]] = {}
    for at in sample(FACTS, 1, 500):
        answer = work_out(FACTS, at)
        kind = "no room" if answer.room[0] <= 0 else "too long" if answer.largest_context < answer.context else "waits"
        if kind == "waits" and answer.running == answer.users:
            kind = "fits"
        found.setdefault(kind, at)
    return found


BY_ANSWER = positions_by_answer()


def test_every_kind_of_answer_occurs() -> None:
    """Catches tests below that look at one kind of answer only."""
    assert set(BY_ANSWER) == {"no room", "too long", "waits", "fits"}


@pytest.mark.parametrize("at", list(sample(FACTS, 2, 100))[::3], ids=str)
def test_every_position_has_an_answer(at: list[int]) -> None:
    """Catches a division by nothing, memory that does not add up, and a negative number in a picture."""
    answer, picture = work_out(FACTS, at), draw(FACTS, at)
    memory = answer.memory
    ElementTree.fromstring(picture.svg)
    parts = (memory.used, memory.tail, memory.free, memory.overrun)
    assert min(parts) >= 0
    if answer.room[0] > 0:
        assert memory.weights + memory.other[1] + sum(parts[:3]) == memory.limit
    assert not re.search(r'"-\d|NaN|nan|inf', picture.svg.split(">", 1)[1])
    lacking = memory.overrun > 0
    assert lacking == ("too much" in picture.alt) == ('stroke-dasharray="5 3"' in picture.svg)
    assert lacking == any(word in picture.caption for word in ("does not start", "missing"))
    assert picture.caption in picture.alt


@pytest.fixture(scope="module")
def gathered() -> dict[str, Any]:
    """Gather the facts of real models and GPUs."""
    return dict(calculator.gather())


def test_numbers_are_the_budgets(gathered: dict[str, Any]) -> None:
    """Catches facts of another model, GPU, dtype or block size, and a number that is not the budget's."""
    seen = set()
    for at in list(sample(gathered, 5, 0))[::4]:
        answer = work_out(gathered, at)
        options = Options(
            **calculator.MODELS[gathered["models"][at[0]]["name"]],
            gpu=gathered["gpus"][at[1]]["name"],
            max_model_len=answer.context,
            kv_cache_dtype=gathered["dtypes"][at[3]],
            block_size=gathered["block_sizes"][at[4]],
        )
        budget = compute(options)
        assert (answer.num_blocks[0], *answer.num_blocks[1:]) == (budget.num_blocks, *budget.num_blocks_range), options
        assert answer.blocks_per_request == budget.blocks_per_request, options
        assert (answer.block_size, answer.bytes_per_block) == (budget.block_size, budget.bytes_per_block), options
        assert answer.memory.limit == math.ceil(budget.total.likely * budget.gpu_memory_utilization)
        assert (answer.largest_context >= answer.context) == budget.fit.fits, options
        if answer.tokens > 1:
            held = users(budget, [(answer.tokens - 1, 1)]).mean_blocks
            assert answer.held == held, "the budget's users hold what the calculator's do"
        if budget.fit.fits:
            assert f"vLLM logs {budget.kv_tokens:,} tokens, {budget.max_concurrency:,.2f}x at" in tell(answer)
        else:
            assert answer.largest_context == budget.fit.largest_model_len
        seen.add((at[0], budget.fit.fits))
    assert len(seen) > len(gathered["models"]), "some fit, and some do not"


def test_models_of_every_kind(gathered: dict[str, Any]) -> None:
    """Catches a calculator without one of the kinds that the chapter is about, and GPUs of one size."""
    kinds = {group[0] for model in gathered["models"] for group in model["layouts"][0][0][0][2]}
    assert kinds >= {"full", "window", "state"}
    totals = [gpu["total"] / GIB for gpu in gathered["gpus"]]
    assert totals == sorted(totals) and totals[0] < 8 and totals[-1] > 130


def test_last_blocks_are_seldom_full(gathered: dict[str, Any]) -> None:
    """Catches lengths that are multiples of a block, at which no slot is ever empty."""
    assert [
        (tokens, size) for tokens in gathered["tokens"] for size in gathered["block_sizes"] if tokens % size == 0
    ] == []


def test_an_fp8_cache_that_a_gpu_may_not_read(gathered: dict[str, Any]) -> None:
    """Catches a cache that fits, and that vLLM refuses: in fp8, below compute capability 8.9."""
    said = {}
    for at, gpu in enumerate(gathered["gpus"]):
        auto, fp8 = (tell(work_out(gathered, [3, at, 0, dtype, 0, 0, 0])) for dtype in (0, 1))
        assert "compute capability" not in auto
        said[gpu["name"]] = re.findall(r"At compute capability ([0-9.]+), not every", fp8)
    assert {name: found for name, found in said.items() if found} == {"RTX 3060": ["8.6"], "T4": ["7.5"]}


def test_nothing_to_choose_is_refused() -> None:
    """Catches a page with an empty list."""
    with pytest.raises(BudgetError, match="at least one model, one GPU and one dtype"):
        calculator.gather(models={})


def test_numbers_of_a_log() -> None:
    """Catches a formula that is not vLLM's: Llama-3.1-8B, gemma-2-9b and gemma-3-27b came out so in logs."""
    limit = 75 * GIB

    def logged(room: float, width: int, groups: list[list[Any]]) -> str:
        weights = limit - int(room * GIB)
        facts = FACTS | {
            "gpus": [{"name": "x", "total": 80 * GIB, "limit": limit, "in_flight": 8192, "decode_in_flight": 2}],
            "models": [
                {
                    "name": "x",
                    "max_model_len": 8192,
                    "memory": [[weights, 0, 0, 0, limit - weights, limit - weights]],
                    "layouts": [[[[16, width, groups]]]],
                    "layout_of": [0],
                }
            ],
            "contexts": [8192],
        }
        return tell(work_out(facts, [0, 0, 0, 0, 0, 0, 0]))

    # Available memory is printed to a hundredth of a GiB; these are within it and give the tokens that were logged.
    full, window = ["full", 16, 0], ["window", 16, 4096]
    assert "476,016 tokens, 58.11x at 8,192" in logged(29751 * 2**21 / GIB, 2**21, [full])
    gemma_2 = 21 * 16 * 8 * 256 * 2 * 2
    assert "20.60x at 8,192" in logged(54.12, gemma_2, [full, window])
    gemma_3 = 10 * 16 * 16 * 128 * 2 * 2
    assert "4.46x at 8,192" in logged(19.53, gemma_3, [full, *[["window", 16, 1024]] * 6])


def test_blocks_that_are_held() -> None:
    """Catches a window that keeps too much or too little: counted block by block instead."""
    for kind, bound in (("full", 0), ("window", 5), ("window", 16), ("chunk", 12)):
        for tokens in range(1, 70):
            first = {"full": 0, "window": max(0, tokens - bound), "chunk": (tokens - 1) // max(bound, 1) * bound}[kind]
            held = {token // 4 for token in range(first, tokens)}
            assert held_blocks([kind, 4, bound], tokens, 1) == (len(held), 4 * len(held) - (tokens - first))
            assert len(held) <= most_blocks([kind, 4, bound], tokens, 1)
    assert held_blocks(["state", 544, 2], 9, 1) == (2, 0) and most_blocks(["state", 544, 2], 9, 1) == 2


def test_blocks_that_a_request_has_at_most() -> None:
    """Catches a term of a window or a chunk that is one too many or too few: the specs' own formulas are compared."""
    page = {"num_kv_heads": 1, "head_size": 8, "dtype": "bfloat16"}
    specs = {
        "full": FullAttentionSpec(16, **page),
        "window": SlidingWindowSpec(16, **page, sliding_window=100),
        "chunk": ChunkedLocalAttentionSpec(16, **page, attention_chunk_size=64),
    }
    for tokens in range(1, 400):
        for in_flight in (1, 13, 16, 64):
            for kind, spec in specs.items():
                expected = spec.max_blocks_per_request(RequestLimits(tokens, in_flight))
                bound = {"full": 0, "window": 100, "chunk": 64}[kind]
                assert most_blocks([kind, 16, bound], tokens, in_flight) == expected, (kind, tokens, in_flight)


def test_ratios_are_written_as_python_writes_them() -> None:
    """Catches a rounding of halves away from even, which vLLM's log does not have."""
    for of in (1, 7, 8, 16, 40, 3590):
        for number in range(0, 9 * of, max(1, of // 16)):
            assert times(number, of) == f"{number / of:,.2f}"
    assert [gib(size) for size in (0, GIB // 200, GIB // 200 + 1, 1234 * GIB)] == ["0.00", "0.00", "0.01", "1,234.00"]


def test_the_longest_context_fits_and_no_longer_one() -> None:
    """Catches advice that vLLM refuses, or that leaves memory unused."""
    at = BY_ANSWER["too long"]
    answer = work_out(FACTS, at)
    _, _, groups = layout_of(FACTS, at)

    def reserved(length: int) -> int:
        return sum(most_blocks(group, length, 4096) for group in groups)

    assert reserved(answer.largest_context) <= answer.usable < reserved(answer.largest_context + 1)
    assert f"The longest context that fits is {answer.largest_context:,}." in tell(answer)


def test_the_bar_is_to_scale() -> None:
    """Catches parts that overlap, leave a gap or stand for another size: a pixel is less than half a percent."""
    memory = Memory("x", 100 * GIB, 90 * GIB, "0.9", 40 * GIB, (5 * GIB, 10 * GIB, 20 * GIB), 15 * GIB, tail=5 * GIB,
                    free=20 * GIB)  # fmt: skip
    drawn = boxes(show_vram(memory).svg)
    wanted = [376 * size / 100 for size in (40, 10, 15, 5, 20, 10)]
    assert [width for _, _, width in drawn] == pytest.approx(wanted, abs=1)
    assert all(left + width == following for (_, left, width), (_, following, _) in pairwise(drawn))
    assert len({fill for fill, _, _ in drawn}) == 6
    whisker = re.search(r'd="M(\d+),\d+v10M\d+,\d+H(\d+)M', show_vram(memory).svg)
    assert whisker and [int(x) for x in whisker.groups()] == pytest.approx([12 + 376 * 0.45, 12 + 376 * 0.60], abs=1)


@pytest.mark.parametrize("overrun", [1, 5, 11, 60, 1000])
def test_what_is_too_much_runs_over(overrun: int) -> None:
    """Catches an overrun that is not seen, hides the GPU's end, or leaves the picture."""
    memory = Memory("x", 100 * GIB, 90 * GIB, "0.9", 40 * GIB, (GIB, GIB, GIB), overrun=overrun * GIB)
    svg = show_vram(memory).svg
    (left, width) = map(int, re.search(r'<rect x="(\d+)" y="52" width="(\d+)"[^>]+dasharray', svg).groups())
    shown = min(max(100, 90 + overrun), 160)
    assert left == pytest.approx(12 + 376 * 90 / shown, abs=1)
    assert left + width == pytest.approx(12 + 376 * min(90 + overrun, shown) / shown, abs=1)
    end = int(re.search(r'<path d="M(\d+),51v40"', svg)[1])
    assert end == pytest.approx(12 + 376 * 100 / shown, abs=1)
    assert (f'l8,8l-8,8z" fill="{ALARM}"' in svg) == (90 + overrun > 160), "an arrow says that there is more"
    assert f">{overrun:,}.00<" in svg


@pytest.mark.parametrize("at", BY_ANSWER.values(), ids=BY_ANSWER)
def test_labels_keep_clear_of_each_other(at: list[int]) -> None:
    """Catches labels over one another or cut off at an edge."""
    rows: dict[int, list[tuple[int, int]]] = {}
    for x, y, words in LABEL.findall(draw(FACTS, at).svg.split("<g transform")[0]):
        half = 7 * len(words.replace("&amp;", "&")) // 2
        rows.setdefault(int(y), []).append((int(x) - half, int(x) + half))
    for row in rows.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(row)))
        assert min(left for left, _ in row) >= 0 and max(right for _, right in row) <= 400 + 8


def test_labels_are_spread() -> None:
    """Catches labels that push one another out of the picture."""
    placed = spread_labels([380, 384, 390, 396], [70, 60, 50, 80])
    edges = [(x - width // 2, x + width // 2) for x, width in zip(placed, [70, 60, 50, 80], strict=True)]
    assert edges[0][0] >= 0 and edges[-1][1] <= 400
    assert all(before[1] < after[0] for before, after in pairwise(edges))


def test_the_curve_is_to_scale() -> None:
    """Catches an axis on which twice as much is not the same way everywhere."""
    xs = [place(2**power, (1, 1))[0] for power in range(4, 18)]
    assert {after - before for before, after in pairwise(xs)} == {26}
    ys = [place(64, (2**power, 4))[1] for power in range(19)]
    assert {before - after for before, after in pairwise(ys)} == {9}
    assert place(16, (1, 1)) == (48, 26 + 9 * 16)
    assert place(1, (0, 5)) == place(16, (1, 4)) and place(64, (2**30, 1)) == place(64, (2**16, 1))
    assert place(3000, (5, 3))[0] == 48 + math.floor(26 * (math.log2(3000) - 4) + 0.5)


def test_points_and_their_labels() -> None:
    """Catches two labels in one place, and one that leaves the plot."""
    flat = [(3, 1)] * 27
    for tokens in (16, 1000, 131_072):
        points = [Point(tokens, (3, 1), label) for label in ("58.11x at 131,072", "52,997 fit at 100", "20 wanted")]
        drawn = "".join(draw_concurrency(flat, flat, *points))
        frames = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="12"', drawn)
        spans = [(int(x), int(y), int(x) + int(width), int(y) + 12) for x, y, width in frames]
        assert len(spans) == 3
        for left, top, right, bottom in spans:
            assert left >= 48 and right <= 394 and top >= 26 and bottom <= 188
        for number, first in enumerate(spans):
            for second in spans[:number]:
                assert first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]


def test_a_models_own_limit() -> None:
    """Catches a context that the model cannot read, and one user of more tokens than a request may have."""
    at = next(at for at in sample(FACTS, 3, 900) if at[0] == 1 and at[2] == 3 and at[5] == 3 and at[1] == 2)
    answer = work_out(FACTS, at)
    assert (answer.context, answer.tokens, answer.is_cut) == (5000, 5000, True)
    assert "x at 5,000, the most that this model takes." in tell(answer)


def test_the_lesson_moves() -> None:
    """Catches a control that is wired to another value, and a move that the picture does not follow."""
    lesson = Calculator(FACTS, model="model & window", users=7)
    assert lesson.values["gpu"] == "tiny" and lesson.values["users"] == 7
    lesson.set(gpu="large", max_model_len=131_072, kv_cache_dtype="fp8", block_size=64, tokens=100_000, users=300)
    assert lesson.player.picture == draw(FACTS, [1, 2, 3, 1, 1, 3, 2])
    assert lesson.at(gpu="tiny", users=1) == draw(FACTS, [1, 0, 3, 1, 1, 3, 0])
    assert lesson.player.picture == draw(FACTS, [1, 2, 3, 1, 1, 3, 2])
    assert "users=300): model &" in repr(lesson).replace("&amp;", "&")


def test_bad_values_are_refused() -> None:
    """Catches a calculator that begins somewhere else than it was told."""
    with pytest.raises(KeyError, match="no control 'context': it has model, gpu, max_model_len"):
        Calculator(FACTS, context=4096)
    with pytest.raises(TraitError):
        Calculator(FACTS, users=8)


def test_facts_are_stored() -> None:
    """Catches a page that knows other facts than the lesson, and facts that change without a sign in the notebook."""
    lesson = Calculator(FACTS, users=7)
    data, metadata = lesson._repr_mimebundle_()
    assert grid.unpack(metadata[MIME]["recordings"]) == {"calculator": FACTS}
    stored = data[MIME]["grid"]
    assert [control["label"] for control in stored["controls"]] == list(calculator.CONTROLS.values())
    assert [control["of"] for control in stored["controls"]] == [len(c["options"]) for c in stored["controls"]]
    assert stored["controls"][2]["options"][3] == "131,072" and stored["controls"][6]["index"] == 1
    assert Calculator(FACTS, users=7)._repr_mimebundle_()[0][MIME] == data[MIME]
    changed = FACTS | {"users": [1, 7, 301]}
    assert Calculator(changed, users=7)._repr_mimebundle_()[0][MIME]["grid"]["digest"] != stored["digest"]


def test_the_bar_of_a_budget() -> None:
    """Catches a bar that shows another budget, and one that hides what does not fit."""
    options = {"model": "meta-llama/Llama-3.1-8B", "gpu": "RTX 4090"}
    fits, too_long = (memory_of(compute(Options(**options, max_model_len=size))) for size in (8192, 131_072))
    no_room = memory_of(compute(Options(**options | {"gpu": "RTX 4060"}, max_model_len=8192)))
    budget = compute(Options(**options, max_model_len=8192))
    assert fits.free == budget.available_bytes and (fits.used, fits.overrun) == (0, 0)
    assert fits.weights + fits.other[1] + fits.free == fits.limit
    assert fits.title == "Llama-3.1-8B on RTX 4090" and fits.utilization == "0.92"
    # 16 GiB, and a block that is set aside, are more than what is left by so much.
    assert too_long.overrun == 16 * GIB + 2**21 - budget.available_bytes
    assert (too_long.used, too_long.used_by, too_long.free) == (fits.free, "one request", 0)
    assert no_room.overrun == no_room.weights + no_room.other[1] - no_room.limit > 0
    assert no_room.used == no_room.free == 0


def test_the_bar_of_a_log() -> None:
    """Catches an estimate beside a figure that was measured; and weights of nothing, or more than the GPU has."""

    def bar(available: str, gpu: str | None) -> Memory:
        return memory_of(
            compute(Options("meta-llama/Llama-3.1-8B", gpu, max_model_len=8192, available_bytes=available))
        )

    memory = bar("5GiB", "RTX 4090")
    assert memory.free == 5 * GIB and memory.other == (memory.limit - memory.weights - 5 * GIB,) * 3
    with pytest.raises(ValueError, match="plan it with gpu"):
        bar("5GiB", None)
    with pytest.raises(ValueError, match=r"weights of 14.99 GiB and a cache of 9.00 are more than the 21.75 GiB that"):
        bar("9GiB", "RTX 4090")
