"""axe-core's verdict on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

BLOCKING = ("serious", "critical")


def violations(page: Page, include: str | None = None) -> list[str]:
    """Return the serious and critical violations, one line per element: rule, selector, what is wrong.

    Args:
        page: a loaded page.
        include: a CSS selector; only what lies within its matches is judged.
    """
    page.add_style_tag(content="* { transition: none !important }")  # colours are judged when they have arrived
    # preload would fetch style sheets once more, from addresses that do not exist
    result = Axe().run(page, context=include, options={"resultTypes": ["violations"], "preload": False})
    return [
        f"{found['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for found in result.response["violations"]
        if found["impact"] in BLOCKING
        for node in found["nodes"]
    ]
