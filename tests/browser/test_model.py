"""Pool, tables and recorder in JavaScript: whatever happens, the same frames as in Python."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from calculators import differences
from playwright.sync_api import Browser, Page
from watch import Watch

from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import FullAttentionSpec, SlidingWindowSpec
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.request import Request
from pagedattn_lab.viz.book import book_source
from pagedattn_lab.viz.grid import unpack
from pagedattn_lab.viz.player import MIME
from tests.helpers.calculator_facts import sample
from tests.helpers.chapters import CHAPTERS
from tools import notebooks

HISTORIES = 150
KINDS = (
    "new", "grow", "grow", "grow", "fork", "end", "hit", "note", "add", "hash", "hash", "forget",
    "pool", "touch", "give",
)  # fmt: skip
LOAD = "source => { window.model = new Function(source + '; return { replay, unpack, shownAt };')(); }"
# The histories whose frames differ, and of the first one what came out instead.
DIFFERENT = """text => {
  const histories = JSON.parse(text); // in one piece: Playwright takes long over many small values
  const made = histories.map(([operations]) => JSON.stringify(model.replay(operations)));
  const wrong = [...histories.keys()].filter((index) => made[index] !== histories[index][1]);
  return [wrong, made[wrong[0]] ?? null];
}"""
# What a lesson shows at all positions, summed up as grid.digest does.
SUM_UP = """async packed => {
  const stored = await model.unpack(packed), text = [];
  for (let index = 0; index < stored.shown.length; index++)
    text.push(JSON.stringify(stored.shown[index].error ? null : model.shownAt(stored, index).frames));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`[${text}]`));
  const letters = [...new Uint8Array(digest)].map(byte => byte.toString(16).padStart(2, "0")).join("");
  return [text.length, letters.slice(0, 16)];
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Open an empty page that has loaded the model."""
    with Watch(browser) as watch:
        page = watch.new_page()
        empty = tmp_path_factory.mktemp("page") / "page.html"
        empty.write_text("<!doctype html><title>a</title>")
        page.goto(empty.as_uri())  # on about:blank there are no digests
        page.evaluate(LOAD, book_source())
        yield page
        assert watch.problems == []


def as_json(made: dict[str, Any]) -> str:
    """Write a recording as JavaScript would."""
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"))


def of_tables(rng: random.Random) -> Recorder:
    """Let tables grow, fork, find cached blocks and end, and somebody use the pool and give hashes by hand."""
    pool, tables, by_hand = BlockPool(rng.randint(2, 16), rng.randint(1, 8)), [], []
    recorder = Recorder(pool) if rng.random() < 0.7 else None  # some begin to watch when much has happened
    for turn in range(rng.randint(1, 40)):
        table = rng.choice(tables) if tables else None
        kind = rng.choice(KINDS)
        try:
            if kind == "new":
                tables.append(BlockTable(pool, rng.choice([None, "Ada", "Bo", "Ann", "request 7", "ü 12"])))
            elif kind == "pool":
                by_hand += pool.get_new_blocks(rng.choice([0, 1, 2, pool.num_free_blocks]))
            elif kind == "touch" and by_hand:
                pool.touch([rng.choice(by_hand)])
                by_hand = [block for block in pool.blocks for _ in range(block.ref_cnt - held(tables, block))]
            elif kind == "give" and by_hand:
                pool.free_blocks(by_hand[: rng.randint(1, 3)])
                by_hand = [block for block in pool.blocks for _ in range(block.ref_cnt - held(tables, block))]
            elif kind == "hash":
                used = [block for block in pool.blocks[1:] if block.ref_cnt] or pool.blocks[:1]
                rng.choice(used).block_hash = rng.choice([b"\xca\xfe" * 16, f"hash {turn}", 7])
            elif kind == "forget":
                rng.choice(pool.blocks).block_hash = None
            elif kind == "hit":
                tables.append(BlockTable(pool, rng.choice([None, "Cy"])))
                cached = [block for block in pool.blocks[1:] if block.block_hash is not None]
                tables[-1].adopt(rng.sample(cached, rng.randint(0, len(cached))))
            elif kind == "note" and recorder is not None:
                recorder.note("look", rng.sample(range(pool.num_blocks), rng.randint(0, 2)))
            elif table is None:
                continue
            elif kind == "grow":
                table.append_tokens(rng.choice([0, 1, 1, 1, 2, 5, 13, 90]))
                take_copies(tables)
            elif kind == "fork":
                tables.append(table.fork(rng.choice([None, "Cy", "Ada"])))
            elif kind == "end":
                table.release()
            elif kind == "add" and recorder is not None:
                with suppress(ValueError):  # the table has a name, or another one has this
                    recorder.add(rng.choice(["Eve", "Ada", "9"]), table)
        except NoFreeBlocksError as error:
            if recorder is not None:
                recorder.note(f"Refused: {error}.")
        if recorder is None and rng.random() < 0.2:
            shown = rng.sample(tables, rng.randint(0, len(tables)))
            recorder = Recorder(pool, {f"table {index}": table for index, table in enumerate(shown)})
    return recorder or Recorder(pool)


def held(tables: list[BlockTable], block: Any) -> int:
    return sum(table.blocks.count(block) for table in tables)


def of_a_manager(rng: random.Random) -> Recorder:
    """Serve requests that begin alike from a small prefix cache."""
    manager = KVCacheManager(rng.randint(2, 20), rng.randint(1, 5))
    recorder, running = Recorder(manager.block_pool), []
    for turn in range(rng.randint(1, 30)):
        kind = rng.choice(["admit", "admit", "grow", "free", "reset"])
        if kind == "admit":
            request = Request(f"r{turn % 7}", rng.choices([0, 0, 1], k=rng.randint(1, 14)))
            blocks, num_hit = manager.get_computed_blocks(request)
            if request.request_id in manager.tables:
                continue
            if manager.allocate_slots(request, request.num_tokens - num_hit, computed_blocks=blocks) is not None:
                request.num_computed_tokens = request.num_tokens
                running.append(request)
        elif kind == "reset":
            manager.reset_prefix_cache()
        elif running:
            request = rng.choice(running)
            if kind == "free":
                manager.free(request)
                running.remove(request)
            else:
                request.append_token(rng.choice([0, 1]))
                if manager.allocate_slots(request, 1) is None:
                    manager.free(request)
                    running.remove(request)
                else:
                    request.num_computed_tokens = request.num_tokens
    return recorder


def of_windows(rng: random.Random) -> Recorder:
    """Serve requests from groups of layers of which some have windows: tables give their first blocks back."""
    block_size = rng.randint(1, 4)
    specs = [
        FullAttentionSpec(block_size, 1, 8, "float32"),
        SlidingWindowSpec(block_size, 1, 8, "float32", sliding_window=rng.randint(2, 9)),
    ]
    groups = [KVCacheGroup((f"layers.{number}",), (spec,)) for number, spec in enumerate(specs)]
    manager = GroupedKVCacheManager(groups, rng.randint(5, 30))
    recorder, running = Recorder(manager.block_pool), []
    for turn in range(rng.randint(1, 20)):
        if not running or rng.random() < 0.4:
            request = Request(f"r{turn}", [0] * rng.randint(1, 14))
            blocks, num_hit = manager.get_computed_blocks(request)
            num_new = rng.randint(1, request.num_tokens - num_hit)
            if manager.allocate_slots(request, num_new, blocks) is not None:
                request.num_computed_tokens = num_hit + num_new
                running.append(request)
            continue
        request = rng.choice(running)
        request.append_token(0)
        num_new = rng.randint(1, request.num_tokens - request.num_computed_tokens)
        if rng.random() < 0.3 or manager.allocate_slots(request, num_new) is None:
            manager.free(request)
            running.remove(request)
        else:
            request.num_computed_tokens += num_new
    return recorder


def given_and_lost() -> Recorder:
    """Give a free block a hash by hand, and hand it out before any frame has shown that."""
    pool = BlockPool(4, 2)
    recorder = Recorder(pool)
    pool.blocks[1].block_hash = "abcd"
    pool.get_new_blocks(1)
    assert [frame.kind for frame in recorder.frames] == ["start", "evict", "allocate"]
    return recorder


def test_the_same_frames_in_both_languages(page: Page) -> None:
    """Catches a page without a kernel that shows other blocks, counts, colours, sentences or contents than Python's."""
    rng = random.Random(5)
    recorders = [make(rng) for _ in range(HISTORIES) for make in (of_tables, of_a_manager)]
    recorders += [of_windows(rng) for _ in range(HISTORIES // 3)]
    recorders.append(given_and_lost())
    kinds = {frame.kind for recorder in recorders for frame in recorder.frames}
    assert kinds == {
        "start",
        "append",
        "copy-on-write",
        "fork",
        "hit",
        "skip",
        "free",
        "note",
        "allocate",
        "evict",
        "touch",
    }
    told = [recorder.ops for recorder in recorders]
    made = [{k: v for k, v in recorder.to_dict().items() if k != "format"} for recorder in recorders]
    histories = [[ops, as_json(one)] for ops, one in zip(told, made, strict=True)]
    wrong, instead = page.evaluate(DIFFERENT, json.dumps(histories))
    if wrong:
        assert json.loads(instead) == made[wrong[0]], told[wrong[0]]
    assert wrong == []


def lessons() -> dict[str, dict[str, Any]]:
    """Return what each lesson of each chapter has stored, by chapter and label."""
    found = {}
    for path in CHAPTERS:
        for cell in notebooks.code_cells(notebooks.read(path)):
            for output in cell.outputs:
                data = output.get("data", {})
                if "".join(data.get("text/plain", "")).startswith("Lesson("):
                    found[f"{path.stem[:2]} {data[MIME]['label']}"] = data[MIME] | output.metadata.get(MIME, {})
    return found


def test_every_lesson_shows_the_same_in_both_languages(page: Page) -> None:
    """Catches a control in the book that leads to something else than the chapter's own Python, at any position."""
    stored = lessons()
    made = {path.stem[:2] for path in CHAPTERS for cell in notebooks.read(path).cells if " = Lesson(" in cell.source}
    assert {name[:2] for name in stored} >= made and len(made) > 8  # a calculator is a lesson too
    for name, data in stored.items():
        assert "grid" in data, f"{name}: its controls do nothing without a kernel"
        if facts := unpack(data["recordings"]).get("calculator"):
            wrong, shown, wanted = differences(page, facts, sample(facts, 6, 200))  # too many for all
            assert (shown, wrong) == (wanted, []), name
            continue
        controls, digest = data["grid"]["controls"], data["grid"]["digest"]
        count = math.prod(len(control["options"]) for control in controls)
        assert page.evaluate(SUM_UP, data["recordings"]) == [count, digest], name
