"""Motion: what moves between two frames, and that every frame ends as it is drawn, however fast a reader steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page
from watch import Watch, freeze, until

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.viz.player import HERE, SCRIPT, Player

MOUNT = """async ([source, recording]) => {
  const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  const { default: { render }, modelOf } = await import(url);
  window.model = modelOf({...recording, step: 0, label: "a"});
  document.body.replaceChildren();
  render({model, el: document.body});
}"""
# Shows frames, one right after the other, and returns for each what moves: its class, and its first and last place.
STEP = """steps => steps.map(to => {
  model.set("step", to);
  return document.querySelector(".pa-stage").getAnimations({subtree: true}).map(({effect}) => {
    const [first, last] = effect.getKeyframes();
    return [effect.target.classList[0] ?? "", first.transform ?? "appears", last.transform ?? ""];
  });
})"""
DRAWN = """() => [...document.querySelector(".pa-stage > svg").children].map(piece => {
  const copy = piece.cloneNode(true);
  copy.removeAttribute("tabindex");
  return copy.outerHTML;
})"""
RUNNING = "() => document.querySelector('.pa-stage').getAnimations({subtree: true}).length"


def recorded() -> dict[str, Any]:
    """A fork, a copy, and two requests that end: the first one's table goes, and the second one's moves up."""
    pool = BlockPool(9, 4)
    recorder = Recorder(pool)
    ada = BlockTable(pool, "Ada")
    ada.append_tokens(6)
    bo = ada.fork("Bo")
    bo.append_tokens(1)
    take_copies([bo])
    ada.release()
    bo.append_tokens(1)
    return Player(recorder, "a fork", step=0).recording


def mounted(page: Page, recording: dict[str, Any]) -> Locator:
    """Show a recording at its first frame."""
    page.goto("about:blank")
    page.add_style_tag(path=HERE / "player.css")
    page.evaluate(MOUNT, [SCRIPT, recording])
    return page.locator(".pa-player")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open an empty page for a reader who has not asked for less motion."""
    with Watch(browser, viewport={"width": 1000, "height": 800}, reduced_motion="no-preference") as watch:
        page = watch.new_page()
        freeze(page)
        yield page
        assert watch.problems == []


def at_rest(page: Page) -> None:
    """Wait until nothing moves any more."""
    until(lambda: page.evaluate(RUNNING) == 0, lambda: "it never ends")


def at(page: Page, block: int) -> str:
    """Say where a block stands, as an animation does."""
    x, y = page.locator(f"[data-block='{block}']").get_attribute("transform")[10:-1].split(",")
    return f"translate({x}px, {y}px)"


def test_what_moves(page: Page) -> None:
    """Catches a copy that does not come from its source, a freed block that jumps into the queue, a table that jumps to
    its new place, and motion that leaves something behind."""
    recording = recorded()
    kinds = [frame["kind"] for frame in recording["frames"]]
    assert kinds == ["start", "append", "fork", "copy-on-write", "append", "free", "append"]
    mounted(page, recording)

    def step(to: int) -> list[list[str]]:
        page.clock.run_for(260)  # nobody steps faster than things move
        at_rest(page)
        [moved] = page.evaluate(STEP, [to])
        return moved

    assert ["pa-entry", "appears", ""] in step(1)
    step(2)
    moved = step(3)
    assert ["pa-block", at(page, 2), at(page, 3)] in moved, "the copy flies from block 2 to block 3"
    at_rest(page)
    assert page.locator(".pa-stage .pa-block").count() == 9, "it has arrived"
    step(4)
    moved = step(5)
    chips = [move for move in moved if move[0] == "pa-entry" and move[1] == at(page, 2)]
    assert len(chips) == 1 and chips[0][2] != at(page, 2), "block 2 walks to its place in the queue"
    slid = step(6)
    assert any(start.startswith("translate") and start != end for _, start, end in slid), "Bo's table moves up"
    at_rest(page)


def test_fast_steps_end_right(page: Page) -> None:
    """Catches a copy on its way that stays, or a piece in the wrong place, when steps come faster than things move."""
    recording = recorded()
    player = mounted(page, recording)
    for walk in ([1, 2, 3], [3, 5, 6, 0, 3], [6, 5, 4, 3, 2]):
        assert page.evaluate(STEP, walk)[-1] == [], "the last of these steps came too soon to move"
        hurried = page.evaluate(DRAWN)
        player = mounted(page, recording)
        page.evaluate(STEP, walk[-1:])
        at_rest(page)
        assert hurried == page.evaluate(DRAWN)
    assert player.get_attribute("data-step") == "2"
    page.clock.run_for(260)
    on_its_way, overtaken = page.evaluate(STEP, [3, 4])
    assert any(kind == "pa-block" for kind, *_ in on_its_way) and overtaken == []
    assert page.locator(".pa-stage .pa-block").count() == 9, "and it is gone"


def test_a_reader_who_wants_less_motion_gets_none(page: Page) -> None:
    """Catches motion for readers whom it makes ill."""
    page.emulate_media(reduced_motion="reduce")
    mounted(page, recorded())
    for step in (1, 5):
        page.clock.run_for(260)
        assert page.evaluate(STEP, [step]) == [[]]


@pytest.mark.parametrize("width", [390, 1000])
def test_the_height_stays(page: Page, width: int) -> None:
    """Catches a page that jumps below a player: a longer sentence, one table more, a taller picture."""
    page.emulate_media(reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 844})
    pictures = [
        {"sentence": "word " * count, "svg": f'<svg width="{size}" height="{size}" style="max-width: 100%"></svg>'}
        for count, size in ((1, "75pt"), (60, "500pt"), (1, "600"))
    ]
    for recording in (recorded(), {"frames": pictures}):
        player = mounted(page, recording)
        heights = set()
        for step in range(len(recording["frames"])):
            page.evaluate(STEP, [step])
            heights.add(round(player.bounding_box()["height"], 1))
        assert len(heights) == 1, heights
