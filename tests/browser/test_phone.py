"""Wide pictures on a phone: they fit, or say that they scroll, to the eye and to the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accessibility import violations
from playwright.sync_api import Browser, expect
from watch import Watch, until

from tests.helpers.chapters import CHAPTERS

BOXES = ".picture, .pa-stage"
BOX = """box => {
  const svg = box.querySelector("svg"), scale = (text) => Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);
  const size = (text) => parseFloat(getComputedStyle(text).fontSize) * scale(text);
  const sizes = [...svg.querySelectorAll("text")].map(size);
  return {
    scrolls: box.scrollWidth > box.clientWidth + 1, more: box.dataset.more ?? "", reached: box.tabIndex === 0,
    role: box.getAttribute("role"), faded: getComputedStyle(box).maskImage !== "none", least: Math.min(...sizes),
  };
}"""


def says_what_it_does(seen: dict[str, Any]) -> bool:
    """Whether a picture says that it scrolls if it does, and only then. It learns of its size after it has it."""
    said = {"more": "right" if seen["scrolls"] else "", "reached": seen["scrolls"], "faded": seen["scrolls"]}
    return {name: seen[name] for name in said} == said


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_wide_pictures_say_that_they_scroll(browser: Browser, chromium: str, site: Path, path: Path) -> None:
    """Catches a chart cut off without a sign, one that no key scrolls, a sign on what fits, and letters too small."""
    with Watch(browser, viewport={"width": 390, "height": 844}) as watch:
        page = watch.new_page()
        page.goto((site / "chapters" / f"{path.stem}.html").as_uri())
        page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        for box in page.locator(BOXES).all():
            until(lambda box=box: says_what_it_does(box.evaluate(BOX)), lambda box=box: box.inner_text()[:80])
            seen = box.evaluate(BOX)
            assert seen["role"] in ({"region", "group"} if seen["scrolls"] else {None, "group"})
            assert seen["least"] >= 9 - 0.01, box.inner_text()[:80]
        assert violations(page, include=".bd-article :is(.picture, .pa-player)") == []


def test_arrow_keys_scroll_a_wide_picture(browser: Browser, chromium: str, site: Path) -> None:
    """Catches a player that takes the keys of a picture that has the focus, and a faded edge where nothing follows."""
    with Watch(browser, viewport={"width": 390, "height": 844}) as watch:
        page = watch.new_page()
        page.goto((site / "chapters" / "01_the_kv_cache.html").as_uri())
        stage = page.locator(".pa-stage").first
        expect(stage).to_have_attribute("data-more", "right")
        player = stage.locator("xpath=ancestor::*[contains(@class, 'pa-player')]")
        stage.focus()
        step = player.get_attribute("data-step")
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        expect(stage).to_have_attribute("data-more", "left")
        assert player.get_attribute("data-step") == step
        page.set_viewport_size({"width": 1440, "height": 844})
        expect(stage).to_have_attribute("data-more", "")
        assert stage.get_attribute("tabindex") is None
