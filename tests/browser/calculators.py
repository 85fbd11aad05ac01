"""Compare a calculator's JavaScript with Python, position by position."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from playwright.sync_api import Page

from pagedattn_lab.viz.book import book_source
from pagedattn_lab.viz.calculator import draw
from tests.helpers.calculator_facts import index_of

# The positions at which the page draws or says something else, and of the first one what.
DIFFERENT = """([source, text]) => {
  const { shownAt } = new Function(source + "; return { shownAt };")(), [calculator, wanted] = JSON.parse(text);
  const wrong = wanted.filter(([index, frame]) => JSON.stringify(shownAt({ calculator }, index).frames) !== frame);
  return [wrong.map(([index]) => index), wrong.length ? shownAt({ calculator }, wrong[0][0]).frames[0] : null];
}"""


def differences(page: Page, facts: dict[str, Any], positions: Iterable[list[int]]) -> tuple[list[int], Any, Any]:
    """Return the positions at which page and library differ, and for the first one what each of them shows."""
    frames = {}
    for at in positions:
        picture = draw(facts, at)
        frames[index_of(facts, at)] = {"sentence": picture.caption, "alt": picture.alt, "svg": picture.svg}
    texts = [[index, json.dumps([frame], ensure_ascii=False, separators=(",", ":"))] for index, frame in frames.items()]
    wrong, shown = page.evaluate(DIFFERENT, [book_source(), json.dumps([facts, texts])])
    return wrong, shown, frames[wrong[0]] if wrong else None
