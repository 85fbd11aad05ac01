"""Highlighted code: half of a page's elements, all alike. Each kind is judged once, on a page of its own.

A kind is a piece of text within a block of code, named by tag and class of every element around it: what a style
sheet can tell apart.
"""

from __future__ import annotations

import json

from accessibility import judged, only
from playwright.sync_api import Page

ARTICLE = "article.bd-article"
CONTRAST = "color-contrast"
KINDS = """() => {
  const kinds = new Set();
  for (const span of document.querySelectorAll(".highlight pre span")) {
    if (![...span.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim())) continue;
    const path = [];
    for (let at = span; at && at.localName !== "article"; at = at.parentElement) {
      path.unshift([at.localName, at.className]);
    }
    kinds.add(JSON.stringify(path));
  }
  return [...kinds];
}"""
# What has more than a class (a link's place, a name for screen readers) stays.
FLATTEN = """() => {
  for (const code of document.querySelectorAll(".highlight pre")) {
    for (const span of code.querySelectorAll("span")) {
      if ([...span.attributes].every(({name}) => name === "class")) span.replaceWith(...span.childNodes);
    }
    code.normalize();
  }
}"""
SHOW = """([article, kinds]) => {
  const page = document.querySelector(article);
  page.replaceChildren();
  const made = new Map();
  for (const kind of kinds) {
    let at = page;
    JSON.parse(kind).forEach(([tag, classes], depth, path) => {
      const place = JSON.stringify(path.slice(0, depth + 1));
      if (!made.has(place)) {
        const element = document.createElement(tag);
        element.className = classes;
        if (tag === "details") element.open = true;
        at.append(element);
        made.set(place, element);
      }
      at = made.get(place);
    });
    at.append("sample ");
  }
}"""


def kinds_of(page: Page) -> set[str]:
    """Return the kinds of highlighted text on a page."""
    return set(page.evaluate(KINDS))


def classes_of(kinds: set[str]) -> set[str]:
    """Return the classes of the innermost elements of some kinds."""
    return {json.loads(kind)[-1][1] for kind in kinds}


def flatten(page: Page) -> None:
    """Leave of each block of highlighted code one element with its text."""
    page.evaluate(FLATTEN)


def show(page: Page, kinds: set[str]) -> None:
    """Replace the article of a page of the book by a sample of each kind."""
    page.evaluate(SHOW, [ARTICLE, sorted(kinds)])


def contrast(page: Page) -> tuple[list[str], int]:
    """Return what axe cannot read, or cannot judge, in the article of a page; and how many elements it could read."""
    report = judged(page, ARTICLE, only(CONTRAST), "passes", "violations", "incomplete")
    found = {
        verdict: [node for rule in report[verdict] for node in rule["nodes"]]
        for verdict in ("passes", "violations", "incomplete")
    }
    unread = [f"{node['html']}: {node['failureSummary']}" for node in found["violations"] + found["incomplete"]]
    return unread, len(found["passes"])
