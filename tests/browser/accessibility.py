"""axe-core's verdict on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

BLOCKING = ("serious", "critical")


def violations(page: Page, include: str | None = None, exclude: tuple[str, ...] = ()) -> list[str]:
    """Return the serious and critical violations, one line per element: rule, selector, what is wrong.

    Args:
        page: a loaded page.
        include: a CSS selector; only what lies within its matches is judged.
        exclude: CSS selectors of what somebody else's program draws around our pages.
    """
    context: dict[str, list[list[str]]] = {"exclude": [[selector] for selector in exclude]}
    if include:
        context["include"] = [[include]]
    result = Axe().run(page, context=context, options={"resultTypes": ["violations"]})
    return [
        f"{found['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for found in result.response["violations"]
        if found["impact"] in BLOCKING
        for node in found["nodes"]
    ]
