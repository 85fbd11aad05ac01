"""A player on a page of its own: a thousand blocks, every width and theme, and time that the test controls."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import players
import pytest
from accessibility import violations
from contrast import COLOURS, contrast
from playwright.sync_api import Browser, Locator, expect
from watch import Watch, freeze, until

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.viz.book import PlayerRenderer, book_script
from pagedattn_lab.viz.fleet import fleet_player
from pagedattn_lab.viz.player import HERE, MIME, Player
from pagedattn_lab.viz.windows import GroupTables, GroupView, windows
from tests.helpers.fleets import BLOCK_SIZE, SmallFleet

# Steps a player on and waits until the browser has drawn it; returns milliseconds per step.
TIMED_STEPS = """async player => {
  const times = [], next = player.querySelector('.pa-next');
  for (let step = 0; step < 60; step++) {
    const start = performance.now();
    next.click();
    player.querySelector('.pa-stage > svg').getBoundingClientRect();
    times.push(performance.now() - start);
    await new Promise(requestAnimationFrame);
  }
  return times;
}"""
SIDEWAYS = "() => document.documentElement.scrollWidth - window.innerWidth"


def recorded(num_blocks: int, requests: int, rounds: int) -> Player:
    """Let requests of different lengths arrive, grow in turn, and every other one leave."""
    pool = BlockPool(num_blocks=num_blocks, block_size=16)
    trace = Recorder(pool)
    tables = [trace.add(f"request {number}", BlockTable(pool)) for number in range(1, requests + 1)]
    for number, table in enumerate(tables):
        table.append_tokens(40 + 37 * number % 150)
    for _ in range(rounds):
        for table in tables[:20]:
            table.append_tokens(9)
    for table in tables[::2]:
        table.release()
    return Player(trace, f"{requests} requests on {num_blocks} blocks", step=0)


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Open a window of a test's own."""
    with Watch(browser, viewport={"width": 1280, "height": 900}, color_scheme="light") as watch:
        yield watch


@pytest.fixture
def mount(watch: Watch, tmp_path: Path, serve: Callable[[Path], str]) -> Callable[..., tuple[Locator, dict[str, Any]]]:
    """Return a function that shows a player as the book does; it returns the player and its recording."""

    def show(player: Player, theme: str = "light", frozen: bool = False) -> tuple[Locator, dict[str, Any]]:
        data = SimpleNamespace(mime_type=MIME, content=player.bundle()[MIME], output_metadata={})
        (node,) = PlayerRenderer.handle_mime(None, data, inline=False)
        style = "".join((HERE / name).read_text(encoding="utf-8") for name in ("player.css", "pictures.css"))
        head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{style}</style>"
        body = f"<main><h1>a</h1>{node.astext()}</main><script>{book_script()}</script>"
        style = f"background: {'#fff' if theme == 'light' else '#121212'}; margin: 8px"
        html = f"<!doctype html><html lang=en data-theme={theme}><title>a</title>{head}<body style='{style}'>{body}"
        (tmp_path / "index.html").write_text(html, encoding="utf-8")
        page = watch.new_page()
        page.goto(serve(tmp_path))
        page.locator(".pa-player").wait_for()
        if frozen:
            freeze(page)
        return page.locator(".pa-player"), data.content

    return show


def test_a_thousand_blocks(mount: Callable, capsys: pytest.CaptureFixture) -> None:
    """Catches blocks or requests that a large drawing leaves out; prints the median time of a step."""
    player, recording = mount(recorded(num_blocks=1024, requests=64, rounds=1))
    times = player.evaluate(TIMED_STEPS)
    with capsys.disabled():
        print(f"\n1,024 blocks, 64 requests: {statistics.median(times):.1f} ms per step (median of {len(times)})")
    last = len(recording["frames"]) - 1
    for step in (60, last):
        if step == last:
            player.locator(".pa-last").click()
        state = players.expected(players.at_step(recording, step))
        until(lambda state=state: players.shown(player) == state, lambda step=step: f"step {step}: not as recorded")
        assert state["blocks"] == list(range(1024))
    assert max(len(frame["tables"]) for frame in recording["frames"]) == 64


@pytest.mark.parametrize("width", [390, 1920])
@pytest.mark.parametrize(("num_blocks", "requests"), [(24, 3), (1024, 64)])
def test_player_fits(mount: Callable, width: int, num_blocks: int, requests: int) -> None:
    """Catches a player that makes its page scroll sideways on a phone or a projector."""
    player, _ = mount(recorded(num_blocks, requests, rounds=0))
    player.page.set_viewport_size({"width": width, "height": 900})
    player.locator(".pa-last").click()
    player.locator(".pa-text-toggle").click()
    assert player.page.evaluate(SIDEWAYS) <= 0


SMALLEST_LETTERS = """svg => Math.min(...[...svg.querySelectorAll('text')].map(
  text => parseFloat(text.closest('[font-size]')?.getAttribute('font-size') ?? '12') * svg.getScreenCTM().a))"""


def turns() -> Player:
    """Three requests on 15 blocks of 4 tokens, as in chapter 03: the largest board that a chapter steps through."""
    pool = BlockPool(num_blocks=16, block_size=4)
    trace = Recorder(pool)
    tables = [BlockTable(pool, name) for name in ("Ada", "Bo", "Cleo")]
    for table in tables * 6:
        table.append_tokens(3)
    return Player(trace, "Three requests take turns", step=0)


def test_a_phone_shows_picture_buttons_and_queue_at_once(mount: Callable) -> None:
    """Catches a player that is taller than a phone or grows when it is pointed at, and letters that are too small."""
    player, _ = mount(turns())
    player.page.set_viewport_size({"width": 390, "height": 844})
    player.locator(".pa-last").click()
    height = player.bounding_box()["height"]
    assert height <= 844
    player.locator("[data-request]").last.hover()
    expect(player.locator(".pa-detail")).to_contain_text("logical block")
    assert player.bounding_box()["height"] == height
    assert player.locator(".pa-stage > svg").evaluate(SMALLEST_LETTERS) >= 10


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1920])
def test_player_is_accessible(mount: Callable, width: int, theme: str) -> None:
    """Catches a part of the player without a name, and a colour that cannot be read on one of the themes."""
    player, _ = mount(recorded(24, 3, rounds=0), theme)
    player.page.set_viewport_size({"width": width, "height": 900})
    player.locator(".pa-text-toggle").click()
    assert violations(player.page) == []


def test_plays_and_pauses(mount: Callable, watch: Watch) -> None:
    """Catches a speed that changes nothing, and a pause after which the player goes on."""
    player, recording = mount(recorded(24, 3, rounds=0), frozen=True)
    clock, last = player.page.clock, len(recording["frames"]) - 1
    assert last > 4
    player.locator(".pa-play").click()
    clock.run_for(2100)
    expect(player).to_have_attribute("data-step", "2")
    player.locator(".pa-play").click()
    clock.run_for(60_000)
    expect(player).to_have_attribute("data-step", "2")
    player.locator(".pa-first").click()
    player.locator(".pa-speed").select_option("2")
    player.locator(".pa-play").click()
    clock.run_for(1100)
    expect(player).to_have_attribute("data-step", "2")
    player.locator(".pa-previous").click()
    clock.run_for(60_000)
    expect(player).to_have_attribute("data-step", "1")
    assert watch.problems == []


FOCUS = "() => document.activeElement.dataset.block ?? document.activeElement.className"


def grown() -> Player:
    """A request that grows by a block, beside one that leaves: the board changes its height, and pieces go."""
    pool = BlockPool(num_blocks=12, block_size=4)
    ada, bo = BlockTable(pool), BlockTable(pool)
    trace = Recorder(pool, {"Ada": ada, "Bo": bo})
    for _ in range(8):
        ada.append_tokens(4)
    bo.append_tokens(8)
    ada.release()
    return Player(trace, "One grows, one leaves", step=0)


@pytest.mark.parametrize("width", [420, 1000])
def test_focus_stays_while_frames_change(mount: Callable, width: int) -> None:
    """Catches a focus that a new frame drops, after which keys go to the page around the player."""
    player, recording = mount(grown())
    page, last = player.page, len(recording["frames"]) - 1
    page.set_viewport_size({"width": width, "height": 900})
    player.locator("[data-block='1']").focus()
    for step in range(1, last + 1):
        player.locator(".pa-next").evaluate("button => button.click()")
        expect(player).to_have_attribute("data-step", str(step))
        assert page.evaluate(FOCUS) == "1"
    player.locator(".pa-previous").evaluate("button => button.click()")
    player.locator("[data-request='Ada'][data-logical='0']").focus()
    page.keyboard.press("Space")  # play: Ada leaves, and the entry with her
    expect(player).to_have_attribute("data-step", str(last))
    assert page.evaluate(FOCUS) == "pa-player"
    page.keyboard.press("Home")
    expect(player).to_have_attribute("data-step", "0")


def test_keys_reach_blocks_and_entries(mount: Callable) -> None:
    """Catches table entries that only a mouse reaches, and a block that does not answer them."""
    player, _ = mount(grown())
    page = player.page
    player.locator(".pa-scrub").fill("9")
    player.locator(".pa-text-toggle").focus()
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS) == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUS) == "2"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.dataset.blockOf") == "1"
    page.keyboard.press("End")
    entry = page.evaluate("() => ({...document.activeElement.dataset})")
    assert entry == {"request": "Bo", "logical": "1", "blockOf": "10"}
    expect(player.locator("[data-block='10']")).to_have_class(re.compile("pa-lit"))
    expect(player.locator(".pa-detail")).to_have_text(
        "block 10: Bo's logical block 1; reference count 1; 4 of 4 slots filled"
    )
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUS) == "2", "each kind remembers its place"


def test_a_run_of_free_blocks_answers(mount: Callable) -> None:
    """Catches a large board on which the free queue and its blocks do not find each other."""
    player, _ = mount(recorded(200, 3, rounds=0))
    run = player.locator("[data-free*='–']").first
    low, high = map(int, run.get_attribute("data-free").split("–"))
    player.locator(f"[data-block='{low + 1}']").hover()
    expect(run).to_have_class(re.compile("pa-lit"))
    run.hover()
    expect(player.locator(".pa-block.pa-lit")).to_have_count(high - low + 1)


def test_ends_when_it_has_ended(mount: Callable) -> None:
    """Catches a player that still runs on its last frame, and starts again when its speed is changed."""
    player, recording = mount(grown(), frozen=True)
    last = len(recording["frames"]) - 1
    player.locator(".pa-speed").select_option("8")
    player.locator(".pa-play").click()
    player.page.clock.run_for(125 * last + 10)
    expect(player).to_have_attribute("data-step", str(last))
    expect(player).to_have_attribute("data-playing", "false")
    player.locator(".pa-speed").select_option("0.5")
    player.page.clock.run_for(10_000)
    expect(player).to_have_attribute("data-step", str(last))


def test_keys_of_the_page_are_left_to_it(mount: Callable) -> None:
    """Catches a player that swallows the keys with which a reader searches, runs a cell, or goes on."""
    player, _ = mount(grown())
    player.page.evaluate("() => { window.heard = []; window.onkeydown = event => heard.push(event.key); }")
    player.focus()
    for key in ("Control+k", "Shift+Enter", "m", "ArrowRight"):
        player.page.keyboard.press(key)
    assert player.page.evaluate("heard") == ["Control", "k", "Shift", "Enter"]


def test_tab_leads_through_and_out(mount: Callable) -> None:
    """Catches a keyboard trap: a part of the player that keeps Tab, or from which Shift+Tab does not lead back."""
    player, _ = mount(grown())
    page = player.page
    page.evaluate("() => { const end = document.createElement('button'); end.id = 'end'; document.body.append(end); }")
    player.locator(".pa-text-toggle").click()
    focused = "() => document.activeElement.closest('.pa-player') && document.activeElement.classList[0]"
    ways = []
    for start, key in ((player, "Tab"), (page.locator("#end"), "Shift+Tab")):
        start.focus()
        if key == "Shift+Tab":
            page.keyboard.press(key)
        ways.append([])
        while (name := page.evaluate(focused)) and len(ways[-1]) < 20:
            ways[-1].append(name)
            page.keyboard.press(key)
        assert name is None, f"{key} does not lead out: {ways[-1]}"
    assert ways[0] == ways[1][::-1]
    assert {"pa-first", "pa-scrub", "pa-speed", "pa-text-toggle", "pa-block", "pa-text"} <= set(ways[0])


def fleet() -> Player:
    """Four replicas in all their states: requests that wait, hits, evictions, a failure and a recovery."""
    events = SmallFleet(num_replicas=4, num_blocks=12, num_sessions=5, seed=3).run(26).events
    size = {"num_replicas": 4, "num_blocks": 12, "block_size": BLOCK_SIZE}
    return fleet_player(events, "Four replicas", **size, names={0: "Ada", 1: "Bo", 2: "Cleo"})


def groups() -> Player:
    """Sixteen blocks of full attention, and a window of which three are left."""
    held = [
        GroupTables((tuple(range(1, 17)), (0,) * gone + tuple(range(100 + gone, 116))), 61 + gone) for gone in (2, 3)
    ]
    views = [GroupView("full attention", num_layers=2), GroupView("sliding window", 45, num_layers=2)]
    return Player(windows(held, views, block_size=4), "Two groups", step=0)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("made", [fleet, groups])
def test_pictures_of_chapter_11_play_on_a_phone(
    mount: Callable, watch: Watch, made: Callable[[], Player], theme: str
) -> None:
    """Catches a picture that does not follow its buttons and keys, is too wide, or cannot be read on one theme."""
    player, recording = mount(made(), theme)
    player.page.set_viewport_size({"width": 390, "height": 844})

    def check(step: int, text: bool = False) -> None:
        state = players.expected(players.at_step(recording, step), text)
        until(lambda: players.shown(player) == state, lambda: f"at step {step}: {players.shown(player)}, not {state}")

    if theme == "light":  # buttons answer alike on both
        players.step_through(player, check)
    player.locator(".pa-first").click()
    picture = player.locator(".pa-stage > svg")
    for step in range(len(recording["frames"])):
        check(step)
        assert player.page.evaluate(SIDEWAYS) <= 0
        assert player.locator(".pa-stage").evaluate("stage => stage.scrollWidth - stage.clientWidth") <= 0
        assert picture.evaluate(SMALLEST_LETTERS) >= 9.5
        seen = [each for each in picture.evaluate(COLOURS) if each[2]]
        assert seen and [text for text, *colours in seen if contrast(*colours) < 4.5] == []
        player.locator(".pa-next").evaluate("button => button.click()")
    assert violations(player.page) == []
    assert watch.problems == []
