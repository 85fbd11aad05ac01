"""What a page must not do: report an error on its console, or ask another machine for anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebError, WebSocket, expect

PATIENCE = 120  # seconds; for conditions that take a second on an idle machine and much longer on a shared one
expect.set_options(timeout=PATIENCE * 1000)  # by default 5 seconds, whatever the timeout of its page
LOCAL_SCHEMES = ("about", "blob", "chrome", "data", "devtools", "file")


def is_local(url: str) -> bool:
    """Tell whether a request for this address stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname == "127.0.0.1"


def until(condition: Callable[[], bool], failure: Callable[[], str], patience: float | None = None) -> None:
    """Wait for a condition, ``PATIENCE`` seconds unless told otherwise.

    Raises:
        AssertionError: it did not come true; ``failure`` says what was seen instead.
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(failure())
        time.sleep(0.05)


def freeze(page: Page) -> None:
    """Let no time pass in a page any more, except what ``page.clock.run_for`` is told.

    A clock that is only installed goes on. What the browser moves by itself, such as an animation, always does.
    """
    page.clock.install(time=0)
    page.clock.pause_at(3600)


class Watch:
    """A browser context, and everything that went wrong in it. That it reaches this machine only, the browser sees to.

    Players do not move in it, unless a test asks for that: it takes time.

    ``problems`` grows while pages load and work; a test asserts that it is empty.
    """

    def __init__(self, browser: Browser, **options: object) -> None:
        self.problems: list[str] = []
        options = {"reduced_motion": "reduce", "service_workers": "block", **options}
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE * 1000)
        self.context.on("request", self._request)  # routes, which could refuse one, would also turn the cache off
        self.context.on("console", self._console)
        self.context.on("weberror", self._error)
        self.context.on("page", self._page)

    def __enter__(self) -> Watch:
        """Watch until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every page."""
        self.context.close()

    def new_page(self) -> Page:
        """Open an empty page under watch."""
        return self.context.new_page()

    def _request(self, request: Request) -> None:
        if not is_local(request.url):
            self.problems.append(f"request to another machine: {request.url}")

    def _page(self, page: Page) -> None:
        page.on("websocket", self._socket)

    def _socket(self, socket: WebSocket) -> None:
        if not is_local(socket.url):
            self.problems.append(f"socket to another machine: {socket.url}")

    def _console(self, message: ConsoleMessage) -> None:
        # A browser asks each server for this by itself, once, for whichever page comes first.
        if message.type == "error" and urlsplit(message.location["url"]).path != "/favicon.ico":
            self.problems.append(f"console: {message.text} ({message.location['url']})")

    def _error(self, error: WebError) -> None:
        self.problems.append(f"uncaught: {error.error}")
