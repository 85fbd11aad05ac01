"""The drawing in JavaScript: the same as Python's, letter by letter, and the same however a frame was reached."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from watch import Watch

from pagedattn_lab.recorder.frame import Contents, Frame, TableState
from pagedattn_lab.viz.board import draw
from pagedattn_lab.viz.player import SCRIPT

WIDTHS = (300, 460, 700, 1400)
NAMES = ("Ada", "B<b>", 'it\'s "quoted" & long enough to be cut', "🐍 snake", "", "request 12", "é", "\u05d0\u05d1")
WORDS = (
    "",
    "the",
    " quick",
    "<b>",
    "line\nbreak",
    "tab\t",
    "🐍🐍🐍🐍🐍🐍🐍",
    "supercalifragilistic",
    "&amp;",
    "\u05d0\u05d1",
)
LOAD = """async source => {
  window.player = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
}"""
# Steps through some frames in one player, and shows the last of them in a fresh one.
WALK = """async ([recording, walk]) => {
  const shown = (start, rest) => {
    const values = {recording, step: start, label: "a", error: ""}, listeners = {};
    const model = {get: name => values[name], on: (name, call) => (listeners[name] = call), off() {}, save_changes() {},
                   set(name, value) { values[name] = value; listeners[`change:${name}`](); }};
    const el = document.createElement("div");
    document.body.replaceChildren(el);
    const stop = player.default.render({model, el});
    for (const step of rest) model.set("step", step);
    const pieces = [...el.querySelector(".pa-stage > svg").children].map(piece => {
      piece.removeAttribute("tabindex");
      return piece.outerHTML;
    });
    stop();
    return pieces;
  };
  return [shown(walk[0], walk.slice(1)), shown(walk.at(-1), [])];
}"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """Open an empty page that has loaded the player."""
    with Watch(browser, viewport={"width": 1000, "height": 800}) as watch:
        page = watch.new_page()
        page.goto("about:blank")
        page.evaluate(LOAD, SCRIPT)
        yield page
        assert watch.problems == []


def any_frame(rng: random.Random, num_blocks: int, block_size: int) -> Frame:
    """Make a state that need not be legal: shared blocks, wrong counts, hashes on blocks in use, empty tables."""
    names = rng.sample(NAMES, rng.randint(0, len(NAMES)))
    tables = []
    for name in names:
        held = rng.randint(0, min(num_blocks - 1, 12))
        tokens = rng.randint(max(0, (held - 1) * block_size + 1), held * block_size) if held else 0
        tables.append(
            TableState(
                name, rng.randint(0, 70), name[:1] or "7", tokens, tuple(rng.choices(range(1, num_blocks), k=held))
            )
        )
    hashed = sorted(rng.sample(range(1, num_blocks), num_blocks // 3))
    return Frame(
        "note",
        f"{rng.choice([*NAMES, 'Ad'])} does {rng.choice(WORDS)}",
        tuple(rng.sample(range(num_blocks), rng.randint(0, min(9, num_blocks)))),
        block_size,
        tuple(tables),
        (0, *(rng.randint(0, 3) for _ in range(num_blocks - 1))),
        {block: rng.choice(("cafebabe", "a<b", "🐍🐍🐍🐍🐍")) for block in hashed},
        tuple(
            rng.sample(range(1, num_blocks), rng.randint(0, num_blocks - 1))
            if rng.random() < 0.5
            else range(1, num_blocks)
        ),
        {
            block: Contents(rng.choice(NAMES), rng.randint(0, 70), "x", rng.randint(0, 3), rng.randint(0, block_size))
            for block in rng.sample(hashed, len(hashed) // 2)
        },
    )


def any_recording(rng: random.Random, frames: int) -> tuple[dict[str, Any], list[Frame]]:
    num_blocks, block_size = rng.choice([(2, 1), (9, 4), (16, 8), (30, 16), (12, 33), (97, 16), (200, 3)])
    made = [any_frame(rng, num_blocks, block_size) for _ in range(frames)]
    recording = {"num_blocks": num_blocks, "block_size": block_size, "frames": [frame.to_dict() for frame in made]}
    if rng.random() < 0.5:
        recording["words"] = {name: rng.choices(WORDS, k=rng.randint(0, 60)) for name in rng.sample(NAMES, 4)}
    return recording, made


@pytest.mark.parametrize("seed", range(12))
def test_both_languages_draw_the_same(page: Page, seed: int) -> None:
    """Catches a picture on GitHub that differs from the one that moves: a letter, a number, an escape, an order."""
    recording, frames = any_recording(random.Random(seed), frames=6)
    drawn = page.evaluate(
        "([made, widths]) => made.frames.map((_, at) => widths.map(width => player.boardText(made, at, width)))",
        [recording, WIDTHS],
    )
    for index, frame in enumerate(frames):
        for width, there in zip(WIDTHS, drawn[index], strict=True):
            assert there == draw(frame, recording.get("words"), width, among=frames), (seed, index, width)


@pytest.mark.parametrize("seed", range(100, 108))
def test_a_frame_looks_the_same_however_reached(page: Page, seed: int) -> None:
    """Catches a piece of an earlier frame that stays, goes missing, or stands where it stood before."""
    rng = random.Random(seed)
    recording, frames = any_recording(rng, frames=8)
    walked, fresh = page.evaluate(WALK, [recording, rng.choices(range(len(frames)), k=12)])
    assert walked == fresh
