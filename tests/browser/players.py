"""Work every part of a player, and compare what it shows with the frames that it plays.

`SHOWN` is the one place that reads the page; `expected` says the same of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, expect
from watch import until

from pagedattn_lab.viz.book import book_source

SHOWN = r"""player => {
  const part = name => player.querySelector(`.pa-${name}`);
  const svg = player.querySelector('.pa-stage > svg');
  const tables = {};
  for (const entry of svg.querySelectorAll('[data-request]'))
    (tables[entry.dataset.request] ??= [])[Number(entry.dataset.logical)] = Number(entry.dataset.blockOf);
  const state = {
    step: Number(player.dataset.step), last: Number(player.dataset.last), label: player.getAttribute('aria-label'),
    scrub: [Number(part('scrub').value), Number(part('scrub').max)],
    sentence: part('sentence').textContent, error: part('error').hidden ? '' : part('error').textContent,
  };
  if (svg.ariaLabel !== null) return {...state, picture: svg.ariaLabel};
  const rows = [...part('text').querySelectorAll('tbody')].map(
    body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent)));
  return {
    ...state, tables,
    free: [...svg.querySelectorAll('[data-free]')].map(chip => chip.dataset.free),
    blocks: [...svg.querySelectorAll('[data-block]')].map(block => Number(block.dataset.block)),
    text: part('text').hidden ? null : {tables: rows[0].map(row => [row[0], row[2]]), free: rows[1][0][0]},
  };
}"""


def expected(player: dict[str, Any], text: bool = False) -> dict[str, Any]:
    """Return what a page should show.

    Args:
        player: label, error, step and last, and the frame at that step.
        text: whether the tables that hold the same as text are open.
    """
    frame = player["frame"]
    state = {name: player[name] for name in ("step", "last", "label", "error")}
    state |= {"scrub": [player["step"], player["last"]], "sentence": frame["sentence"]}
    if "svg" in frame:
        return state | {"picture": frame.get("alt", frame["sentence"])}
    state["tables"] = {table["name"]: table["block_ids"] for table in frame["tables"] if table["block_ids"]}
    state |= {"free": frame["free"], "blocks": list(range(len(frame["ref_cnt"]))), "text": None}
    if text:
        rows = [[table["name"], ", ".join(map(str, table["block_ids"])) or "–"] for table in frame["tables"]]
        state["text"] = {"tables": rows or [["none", ""]], "free": ", ".join(map(str, frame["free"])) or "empty"}
    return state


def shown(player: Locator) -> dict[str, Any]:
    """Read what a player shows; runs of free blocks that stand in one chip ("3–7") are counted out."""
    state = player.evaluate(SHOWN)
    if "free" in state:
        ends = [[int(number) for number in chip.split("–")] for chip in state["free"]]
        state["free"] = [block for chip in ends for block in range(chip[0], chip[-1] + 1)]
    return state


def at_step(recording: dict[str, Any], step: int) -> dict[str, Any]:
    """Return a player's state at one step of a recording that is stored in a page."""
    frames = recording["frames"]
    return {"label": recording["label"], "error": "", "step": step, "last": len(frames) - 1, "frame": frames[step]}


Check = Callable[..., None]  # check(step, text=False) waits until page, and library if there is one, stand at step


def step_through(player: Locator, check: Check) -> None:
    """Work every button, the scrubber and the keys of a player with more than one frame.

    Raises:
        AssertionError: from ``check``, or a part does not answer.
    """
    page, scrub = player.page, player.locator(".pa-scrub")
    last = int(player.get_attribute("data-last"))
    for name, step in (("first", 0), ("next", 1), ("last", last), ("previous", last - 1)):
        player.locator(f".pa-{name}").click()
        check(step)
    scrub.scroll_into_view_if_needed()
    for share, step in ((0.0, 0), (1.0, last), (0.5, None)):
        track = scrub.bounding_box()
        at = min(max(share * track["width"], 3), track["width"] - 3)
        page.mouse.click(track["x"] + at, track["y"] + track["height"] / 2)
        check(int(scrub.input_value()) if step is None else step)
    assert last < 3 or 0 < int(scrub.input_value()) < last
    for target in (scrub, player):
        target.focus()
        for key, step in (("End", last), ("Home", 0), ("ArrowRight", 1), ("ArrowLeft", 0)):
            page.keyboard.press(key)
            check(step)
    player.locator(".pa-speed").select_option("8")
    player.locator(".pa-play").click()
    expect(player).to_have_attribute("data-playing", "false", timeout=1000 * (30 + last))
    check(last)
    player.locator(".pa-speed").select_option("0.5")  # so slow that it is seen before it has ended
    player.focus()
    page.keyboard.press("Space")
    expect(player).to_have_attribute("data-playing", "true")
    page.keyboard.press("Space")
    expect(player).to_have_attribute("data-playing", "false")
    page.keyboard.press("Home")
    check(0)


def step_to_the_ends(player: Locator, check: Check) -> None:
    """Work a button and a key of a player with more than one frame.

    Raises:
        AssertionError: from ``check``, or a part does not answer.
    """
    player.locator(".pa-first").click()
    check(0)
    player.focus()
    player.page.keyboard.press("End")
    check(int(player.get_attribute("data-last")))


def read_as_text(player: Locator, check: Check) -> None:
    """Open the tables that hold the same state as text, step with them open, and close them."""
    toggle, last = player.locator(".pa-text-toggle"), int(player.get_attribute("data-last"))
    if not toggle.is_visible():  # a picture has its sentence
        return
    toggle.click()
    for name, step in (("last", last), ("first", 0)):
        if last:
            player.locator(f".pa-{name}").click()
        check(step, text=True)
    toggle.click()
    check(0)


def answer(player: Locator) -> None:
    """Point at table entries and blocks, by mouse and by focus: each lights the other.

    Raises:
        AssertionError: what lights up is not the block and all entries that name it.
    """
    entries = player.locator(".pa-stage [data-request]")
    if not entries.count():
        return
    lit = (
        "root => [...root.querySelectorAll('.pa-lit')].map(g => g.dataset.block ?? g.dataset.blockOf ?? g.dataset.free)"
    )

    def check(block: str, cause: str) -> None:
        names = player.locator(f"[data-block='{block}'], [data-block-of='{block}'], [data-free='{block}']").count()
        assert names >= 2
        until(
            lambda: player.evaluate(lit) == [block] * names,
            lambda: f"{cause}: {names} groups should be lit for block {block}, lit are {player.evaluate(lit)}",
        )

    for entry in (entries.first, entries.last):
        block = entry.get_attribute("data-block-of")
        physical = player.locator(f"[data-block='{block}']")
        for target, name in ((entry, "entry"), (physical, "block")):
            target.hover()
            check(block, f"mouse over {name}")
            player.locator(".pa-detail").hover()
            until(lambda: player.evaluate(lit) == [], lambda: "the mouse is gone, but a block is still lit")
            target.focus()
            check(block, f"focus on {name}")
            player.focus()


# What a lesson's controls lead to, by the model that a test of its own compares with Python's.
SHOWN_AT = """async ([source, packed, index]) => {
  const model = new Function(source + "; return { unpack, shownAt };")();
  return model.shownAt(await model.unpack(packed), index);
}"""


def move_controls(
    player: Locator, recording: dict[str, Any], follows: Callable[[Locator, dict[str, Any]], Check]
) -> None:
    """Move each control of a lesson without a kernel to both ends, by keyboard or list.

    Args:
        player: stands beside the controls.
        recording: what the lesson stores.
        follows: makes of a recording a check that the player shows it.

    Raises:
        AssertionError: a control without its name, value or effect.
    """
    page, mount, grid = player.page, player.locator(".."), recording["grid"]
    places = [control["index"] for control in grid["controls"]]
    for number, control in enumerate(grid["controls"]):
        last = len(control["options"]) - 1
        if not last:  # the page says that the slider needs a kernel
            expect(mount.get_by_text(f"{control['label']} at {control['options'][0]} only")).to_be_visible()
            continue
        for place in (last, 0):
            places[number] = place
            if control["kind"] == "list":
                mount.get_by_label(control["label"], exact=True).select_option(index=place)
            else:
                slider = mount.get_by_role("slider", name=control["label"], exact=True)
                slider.focus()
                page.keyboard.press("End" if place else "Home")
                expect(slider).to_have_attribute("aria-valuetext", control["options"][place])
                expect(slider.locator("xpath=../output")).to_have_text(control["options"][place])
            index = 0
            for at, each in zip(places, grid["controls"], strict=True):
                index = index * len(each["options"]) + at
            made = page.evaluate(SHOWN_AT, [book_source(), recording["recordings"], index])
            check, end = follows(player, made | {"label": recording["label"]}), len(made["frames"]) - 1
            step = int(player.get_attribute("data-step"))
            check(step)
            assert step <= end and int(player.get_attribute("data-last")) == end


def recording_of(mount: Locator) -> dict[str, Any]:
    """Return the recording that the book stores beside a player."""
    return mount.locator("script[type='application/json']").evaluate("script => JSON.parse(script.textContent)")
