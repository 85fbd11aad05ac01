"""A player on a page of its own: a thousand blocks, every width and theme, and time that the test controls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import players
import pytest
from accessibility import violations
from playwright.sync_api import Browser, Locator, expect
from watch import Watch, until

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.trace import Trace
from pagedattn_lab.viz.book import PlayerRenderer, book_script
from pagedattn_lab.viz.player import HERE, MIME, Player

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
    trace = Trace(pool)
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
    watch = Watch(browser, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield watch
    watch.context.close()


@pytest.fixture
def mount(watch: Watch, tmp_path: Path, serve: Callable[[Path], str]) -> Callable[..., tuple[Locator, dict[str, Any]]]:
    """Return a function that shows a player as the book does; it returns the player and its recording."""

    def show(player: Player, theme: str = "light", frozen: bool = False) -> tuple[Locator, dict[str, Any]]:
        data = SimpleNamespace(mime_type=MIME, content=player.bundle()[MIME])
        (node,) = PlayerRenderer.handle_mime(None, data, inline=False)
        style = (HERE / "player.css").read_text(encoding="utf-8")
        head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{style}</style>"
        body = f"<main><h1>a</h1>{node.astext()}</main><script>{book_script()}</script>"
        style = f"background: {'#fff' if theme == 'light' else '#121212'}; margin: 8px"
        html = f"<!doctype html><html lang=en data-theme={theme}><title>a</title>{head}<body style='{style}'>{body}"
        (tmp_path / "index.html").write_text(html, encoding="utf-8")
        page = watch.new_page()
        if frozen:
            page.clock.install()
        page.goto(serve(tmp_path))
        page.locator(".pa-player").wait_for()
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
