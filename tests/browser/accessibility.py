"""axe-core's verdict on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

BLOCKING = ("serious", "critical")
COLOUR_RULES = ("color-contrast", "link-in-text-block")  # the rules whose verdict depends on colours


def violations(page: Page, include: str | None = None, rules: Sequence[str] = ()) -> list[str]:
    """Return the serious and critical violations, one line per element: rule, selector, what is wrong.

    Args:
        page: a loaded page.
        include: a CSS selector; only what lies within its matches is judged.
        rules: the rules to judge by; none means all.
    """
    return [
        f"{found['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for found in judged(page, include, rules, "violations")["violations"]
        if found["impact"] in BLOCKING
        for node in found["nodes"]
    ]


def judged(page: Page, include: str | None, rules: Sequence[str], *verdicts: str) -> dict[str, Any]:
    """Return axe's report, which lists every element for the verdicts named: passes, violations, incomplete."""
    page.add_style_tag(content="* { transition: none !important }")  # colours are judged when they have arrived
    # preload would fetch style sheets once more, from addresses that do not exist
    options: dict[str, Any] = {"resultTypes": verdicts, "preload": False}
    if rules:
        options["runOnly"] = {"type": "rule", "values": list(rules)}
    return Axe().run(page, context=include, options=options).response
