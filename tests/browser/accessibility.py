"""axe-core's verdict on a page.

Judging contrast is most of the cost, and most texts of a page are alike. So each kind of text is judged once: a text's
kind is what the verdict depends on, its own colour, size and weight and whatever its ancestors paint behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

BLOCKING = ("serious", "critical")
MILD = "blocking => axe._audit.rules.filter(({impact}) => impact && !blocking.includes(impact)).map(rule => rule.id)"
COLOUR_RULES = ("color-contrast", "link-in-text-block")  # the rules whose verdict depends on colours
SAMPLE = "data-tests-sample"  # marks a text that stands for its kind
SAMPLES = 3  # of each kind on a page: axe cannot judge a text that something overlaps, and does not say so aloud
PAGES = 4  # on which a kind is asked for; after them it is one that axe cannot judge, such as a link off the screen

# A link is compared with the text around it, if there is any. What is turned, faded, moved or over something is a kind
# of its own. Axe judges neither what is disabled, nor a single character, nor texts of drawings.
MARK = """([mark, most, judged]) => {
  const known = new Set(judged), samples = new Map(), painted = new Map();
  const plain = "rgba(0, 0, 0, 0)|none|1|none|normal|static|none|visible|none|auto|false";
  const fields = "input:not([type=range]), select, textarea";  // their text is no node
  const behind = element => {
    if (element === null) return "";
    if (!painted.has(element)) {
      const s = getComputedStyle(element);
      const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter, s.mixBlendMode, s.position, s.float,
                   s.overflow, s.transform, s.zIndex, s.margin.includes("-")].join("|");
      painted.set(element, behind(element.parentElement) + (own === plain ? "" : ">" + own));
    }
    return painted.get(element);
  };
  const text = element => {
    const s = getComputedStyle(element);
    return [s.color, s.fontSize, s.fontWeight, s.textShadow, s.textDecorationLine, s.borderBottomStyle,
            s.webkitTextFillColor, s.webkitTextStroke].join("|");
  };
  const disabled = element =>
    element.closest(":disabled, [aria-disabled=true]") !== null || element.closest("label")?.control?.disabled;
  const around = link => {
    const parent = link.parentElement;
    return parent.textContent.trim() === link.textContent.trim() ? "alone" : text(parent);
  };
  document.querySelectorAll(`[${mark}]`).forEach(element => element.removeAttribute(mark));
  for (const element of document.querySelectorAll("body *:not(svg *)")) {
    const own = [...element.childNodes].filter(node => node.nodeType === Node.TEXT_NODE).map(node => node.data.trim());
    if (own.join("").length < 2 && !element.matches(fields)) continue;
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    const link = element.closest("a[href]");
    const kind = [text(element), behind(element), disabled(element), link ? around(link) : ""].join("||");
    if (known.has(kind)) continue;
    if (!samples.has(kind)) samples.set(kind, 0);
    if (samples.get(kind) === most) continue;
    samples.set(kind, samples.get(kind) + 1);
    element.setAttribute(mark, [...samples.keys()].indexOf(kind));
    if (link && link !== element) link.setAttribute(mark, "");
  }
  return [...samples.keys()];
}"""
NUMBER = re.compile(rf'{SAMPLE}="(\d+)"')


def violations(page: Page, include: str | None = None) -> list[str]:
    """Return the serious and critical violations, one line per element: rule, selector, what is wrong.

    Args:
        page: a loaded page.
        include: a CSS selector; only what lies within its matches is judged.
    """
    return _lines(judged(page, include, {}, "violations"))


def structure_violations(page: Page) -> list[str]:
    """Return the violations of a page that do not depend on colours; see :func:`colour_violations` for the others."""
    page.evaluate(Axe().axe_script)
    mild = page.evaluate(MILD, BLOCKING)  # what these find is left out of the report below: half of the work
    without = {"rules": {rule: {"enabled": False} for rule in (*COLOUR_RULES, *mild)}}
    return _lines(judged(page, None, without, "violations"))


def colour_violations(page: Page, known: set[str], asked: Counter[str]) -> list[str]:
    """Return the violations of a page's texts whose kind is not among those known; once it is judged, it is.

    ``asked`` counts the pages on which each kind was to be judged; after ``PAGES`` of them it is known to be none that
    axe can judge.
    """
    kinds = page.evaluate(MARK, [SAMPLE, SAMPLES, sorted(known)])
    if not kinds:
        return []
    report = judged(page, f"[{SAMPLE}]", only(*COLOUR_RULES), "passes", "violations")
    for rule in report["passes"] + report["violations"]:
        numbers = [NUMBER.search(node["html"]) for node in rule["nodes"]]
        known.update(kinds[int(number[1])] for number in numbers if number)
    asked.update(kinds)
    known.update(kind for kind in kinds if asked[kind] == PAGES)
    return _lines(report)


def only(*rules: str) -> dict[str, Any]:
    """Return the options by which axe judges by these rules."""
    return {"runOnly": {"type": "rule", "values": list(rules)}}


def judged(page: Page, include: str | None, options: dict[str, Any], *verdicts: str) -> dict[str, Any]:
    """Return axe's report, which lists every element for the verdicts named: passes, violations, incomplete."""
    page.add_style_tag(content="* { transition: none !important }")  # colours are judged when they have arrived
    # preload would fetch style sheets once more, from addresses that do not exist
    always = {"resultTypes": verdicts, "preload": False}
    return Axe().run(page, context=include, options=always | options).response


def _lines(report: dict[str, Any]) -> list[str]:
    return [
        f"{found['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for found in report["violations"]
        if found["impact"] in BLOCKING
        for node in found["nodes"]
    ]
