"""The picture of page tables of several groups: entries, windows and counts as an account of single tokens has them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.kv_cache_groups import kv_cache_groups
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, SlidingWindowSpec
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.request import Request
from pagedattn_lab.viz import windows as view
from pagedattn_lab.viz.player import Player
from pagedattn_lab.viz.windows import GroupTables, GroupView, group_views, read_tables, show_groups, windows
from tests.helpers.draws import drawn

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[GroupTables], list[GroupView], int]:
    """A prompt, and then a token a step; blocks come from a shuffled pool, and go back when no token will read them."""
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    sizes = draw(st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=4))
    groups = [GroupView(f"group {number}", window) for number, window in enumerate(sizes)]
    prompt, num_steps = draw(st.integers(1, 6 * block_size)), draw(st.integers(0, 6))
    free = draw(st.permutations(range(1, 160)))
    tables: list[list[int]] = [[] for _ in groups]
    steps, done = [], 0
    for new in [prompt, *[1] * num_steps]:
        for table, group in zip(tables, groups, strict=True):
            for logical, block_id in enumerate(table):
                read = {
                    key
                    for query in range(done, done + new)
                    for key in range(query + 1)
                    if group.window is None or query - key < group.window
                }
                if block_id and not read & set(range(logical * block_size, (logical + 1) * block_size)):
                    free.append(block_id)
                    table[logical] = 0
            while len(table) * block_size < done + new:
                table.append(free.pop(0))
        done += new
        steps.append(GroupTables(tuple(map(tuple, tables)), done, new))
    return steps, groups, block_size


def rows_of(svg: str, num_groups: int) -> list[tuple[list[str], list[str], tuple[int, int], list[str]]]:
    """Read each row: its entries, its logical numbers, the bracket's ends in pixels, and the words around."""
    root = ET.fromstring(svg)
    texts = [(int(e.get("x")), int(e.get("y")), e.text) for e in root.iter(f"{SVG}text")]
    rows = []
    for number in range(num_groups):
        y = view._TOP + view._ROW * number
        at = {height: [text for _, where, text in sorted(texts) if where == y + height] for height in (14, 30, 49, 78)}
        (bracket,) = re.findall(rf'd="M(\d+),{y + 60}v5H(\d+)v-5"', svg)
        rows.append((at[49], at[30], (int(bracket[0]), int(bracket[1])), at[14] + at[78]))
    return rows


@given(histories())
@settings(deadline=None, max_examples=drawn(80))
def test_pictures_show_the_tables(history: tuple[list[GroupTables], list[GroupView], int]) -> None:
    """Catches an entry in another's place, one behind the window that looks held, and a bracket round other tokens."""
    steps, groups, block_size = history
    columns = max(len(ids) for step in steps for ids in step.block_ids)
    cell = max(24, min(44, (400 - 20) // columns))
    for picture, step in zip(windows(steps, groups, block_size), steps, strict=True):
        rows = rows_of(picture.svg, len(groups))
        for (entries, logical, bracket, words), ids, group in zip(rows, step.block_ids, groups, strict=True):
            assert entries == [str(block_id) if block_id else "null" for block_id in ids]
            assert logical == [str(number) for number in range(len(ids))]
            queries = range(step.num_tokens - step.num_new_tokens, step.num_tokens)
            read = [
                key
                for key in range(step.num_tokens)
                if any(key <= q and (group.window is None or q - key < group.window) for q in queries)
            ]
            assert bracket[0] == pytest.approx(10 + cell * read[0] / block_size, abs=0.6)
            assert bracket[1] == pytest.approx(10 + cell * (read[-1] + 1) / block_size, abs=0.6)
            first, last = read[0] + 1, read[-1] + 1
            assert words[-1] == (f"reads tokens {first}–{last}" if first < last else f"reads token {first}")
            assert f"holds {sum(block_id > 0 for block_id in ids)} of {len(ids)}" in words
        held = sum(block_id > 0 for ids in step.block_ids for block_id in ids)
        full = len(groups) * -(-step.num_tokens // block_size)
        assert f">{held} block{'s' * (held != 1)} held; without a window {full}<" in picture.svg


@given(histories())
@settings(deadline=None, max_examples=drawn(80))
def test_words_hold_the_tables(history: tuple[list[GroupTables], list[GroupView], int]) -> None:
    """Catches alt text of another step, and a caption that hides a block which came or went."""
    steps, groups, block_size = history
    before = None
    for picture, step in zip(windows(steps, groups, block_size), steps, strict=True):
        for ids, group in zip(step.block_ids, groups, strict=True):
            width = "" if group.window is None else f", {group.window} token{'s' * (group.window != 1)}"
            listed = ", ".join(str(block_id) if block_id else "null" for block_id in ids)
            assert f"{group.name.capitalize()}{width}: blocks {listed}; reads" in picture.alt
        if before is not None:
            for old, new, group in zip(before.block_ids, step.block_ids, groups, strict=True):
                gone = [block_id for block_id in old if block_id and block_id not in new]
                came = [block_id for block_id in new if block_id and block_id not in old]
                clause = re.search(rf"{group.name} ([^;.]*)", picture.caption)
                said = clause[1] if clause else ""
                told = {verb: re.findall(r"\d+", part) for verb, part in re.findall(r"(gives|takes)([^gt]*)", said)}
                if not set(gone) & set(came):
                    assert list(map(int, told.get("takes", []))) == came
                    assert bool(gone) == ("gives back" in said)
                    assert all(re.search(rf"\b{block_id}\b", said) for block_id in gone)
            quiet = before.block_ids == tuple(ids[: len(old)] for ids, old in zip(step.block_ids, before.block_ids))  # noqa: B905
            quiet &= all(len(a) == len(b) for a, b in zip(before.block_ids, step.block_ids, strict=True))
            assert ("no block changes hands" in picture.caption) == quiet
        before = step


@given(
    st.integers(1, 9),
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 20),
)
@settings(deadline=None, max_examples=drawn(80))
def test_a_manager_keeps_what_the_picture_brackets(window: int, block_size: int, news: list[int], others: int) -> None:
    """Catches a bracket that begins elsewhere than what the manager keeps: a step never reads the null block."""
    full = FullAttentionSpec(block_size, num_kv_heads=1, head_size=8, dtype="float32")
    narrow = SlidingWindowSpec(block_size, 1, 8, "float32", sliding_window=window)
    groups = kv_cache_groups({"layer 0": full, "layer 1": narrow})
    manager = GroupedKVCacheManager(groups, num_blocks=200)
    if others:
        assert manager.allocate_slots(Request("Bo", [1] * others), others) is not None
    ada = Request("Ada", range(sum(news)))
    with pytest.raises(ValueError, match="'Ada' holds no blocks"):
        read_tables(manager, ada)
    steps = []
    for new in news[: next((at for at in range(len(news)) if sum(news[: at + 1]) > 32 * block_size), None)] or [1]:
        assert manager.allocate_slots(ada, new) is not None
        steps.append(read_tables(manager, ada))
        ada.num_computed_tokens += new
    pictures = windows(steps, group_views(groups), block_size)
    for picture, step in zip(pictures, steps, strict=True):
        for (entries, *_), view_of, ids in zip(
            rows_of(picture.svg, 2), group_views(groups), step.block_ids, strict=True
        ):
            first = 0 if view_of.window is None else max(0, step.num_tokens - step.num_new_tokens - window + 1)
            assert entries.count("null") == first // block_size, "all behind the window, and nothing else"
            assert len(entries) == len(ids) == -(-step.num_tokens // block_size)


GROUPS = [GroupView("full attention"), GroupView("window", window=4)]
STEPS = [GroupTables(((1, 3), (2, 4)), 8, 8), GroupTables(((1, 3, 5), (0, 4, 6)), 9)]


def test_a_changed_entry_is_framed() -> None:
    """Catches a change that only the caption tells."""
    first, second = windows(STEPS, GROUPS, block_size=4)
    assert 'stroke-width="3"' not in first.svg
    framed = [path for path in re.findall(r"<path[^>]*>", second.svg) if 'stroke-width="3"' in path]
    assert sum(path.count("z") for path in framed) == 3, "block 5, block 6, and the entry that is null now"
    assert sum("stroke-dasharray" in path for path in framed) == 1


def test_null_is_told_by_more_than_colour() -> None:
    """Catches an entry behind the window that looks like another to who sees no colours."""
    svg = windows(STEPS, GROUPS, block_size=4)[1].svg
    (hatching,) = re.findall(r'<path d="([^"]+)" fill="none" stroke="#d9d9d9"/>', svg)
    left, top = 11, view._TOP + view._ROW + 34
    lines = [tuple(map(int, found)) for found in re.findall(r"M(\d+),(\d+)l(\d+),-(\d+)", hatching)]
    assert len(lines) == hatching.count("M") >= 6
    for x, y, right, up in lines:
        assert right == up > 0
        assert left <= x < x + right <= left + 42 and top <= y - up < y <= top + 22, "a line leaves its box"
    assert svg.count(">null<") == 1


def test_groups_of_a_model_are_named() -> None:
    """Catches two groups of one name, and a window that the manager of one group keeps like full attention."""
    full = FullAttentionSpec(block_size=4, num_kv_heads=1, head_size=8, dtype="float32")
    window = SlidingWindowSpec(4, 1, 8, "float32", sliding_window=6)
    specs = {f"layer {number}": full if number % 3 == 2 else window for number in range(6)}
    assert group_views(kv_cache_groups(specs)) == [
        GroupView("sliding window 1", 6, 2), GroupView("sliding window 2", 6, 2), GroupView("full attention", None, 2),
    ]  # fmt: skip
    [only] = group_views(kv_cache_groups(specs, hybrid_kv_cache_manager=False))
    assert only == GroupView("full attention", None, 6)


def test_names_are_text() -> None:
    """Catches a name that becomes markup."""
    name = '<b>&"x'
    picture = show_groups(STEPS[1], [GroupView(name), GroupView("w", 4, num_layers=1)], block_size=4)
    root = ET.fromstring(picture.svg)
    assert root.get("aria-label") == picture.alt and name in picture.alt
    assert not list(root.iter(f"{SVG}b"))


def test_same_tables_same_bytes_and_few() -> None:
    """Catches a picture that differs from run to run, ids, letters no theme knows, and more than 80 kB for 15 steps."""
    steps = [GroupTables((tuple(range(1, 13)), (0,) * 9 + (20, 21, 22)), 45 + more % 4) for more in range(15)]
    bundles = [
        json.dumps(Player(windows(steps, GROUPS, 4), "Two groups").bundle(), ensure_ascii=False) for _ in range(2)
    ]
    assert bundles[0] == bundles[1]
    assert len(bundles[0].encode()) <= 80_000
    svg = windows(steps, GROUPS, 4)[0].svg
    assert " id=" not in svg and "url(" not in svg
    assert set(re.findall(r'<text [^>]*?fill="([^"]+)"', svg)) <= {"#000", "#fff", "#222"}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (GroupTables(((1, 2),), 8), "1 tables for 2 groups"),
        (GroupTables(((1, 2), (3, 4)), 8, 9), "computes 9 of 8 tokens"),
        (GroupTables(((1, 2), (3, 4)), 9), "full attention: a table of 2 for 9 tokens: give 3 to 32 entries"),
        (GroupTables(((1,) * 33, (3,) * 33), 9), "a table of 33 for 9 tokens"),
        (GroupTables(((1, 2), (3, 0)), 8), "window: the step reads logical block 1"),
        (GroupTables(((0, 2), (0, 4)), 8), "full attention: the step reads logical block 0"),
    ],
)
def test_what_cannot_be_is_refused(tables: GroupTables, words: str) -> None:
    """Catches a picture of tables of another model, or of a step that would read the null block."""
    for draw in (lambda: show_groups(tables, GROUPS, 4), lambda: windows([STEPS[0], tables], GROUPS, 4)):
        with pytest.raises(ValueError, match=words):
            draw()


def test_no_step_is_refused() -> None:
    """Catches a player of nothing."""
    with pytest.raises(ValueError, match="at least one"):
        windows([], GROUPS, 4)
