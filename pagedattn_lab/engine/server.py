"""A server that speaks OpenAI's API, for clients on this machine (chapter 09).

Source: ``vllm/entrypoints/openai/api_server.py``, release 0.33.0, for what is answered where. Unlike that server, this
one listens to nobody else unless told: it is bound to 127.0.0.1, and a web page cannot use it, since it sends no CORS
headers, reads JSON only, and refuses requests for another host than it knows (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from socket import socket
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pagedattn_lab.engine.async_llm import AsyncLLM
from pagedattn_lab.engine.protocol import ApiError, explain
from pagedattn_lab.engine.serving import Serving

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
"""Hosts that a server is asked for by programs on its own machine."""


def create_app(serving: Serving, *, allowed_hosts: Sequence[str] = THIS_MACHINE, api_key: str | None = None) -> FastAPI:
    """Make the application, for :class:`ApiServer` or another ASGI server.

    Args:
        serving: its endpoints.
        allowed_hosts: names without ports that requests may be for; ``"*"`` for any.
        api_key: what clients must send, if anything.
    """
    app = FastAPI(title="pagedattn-lab", docs_url=None, redoc_url=None)  # those pages load scripts from other hosts
    app.post("/v1/completions", response_model=None)(serving.completions)
    app.post("/v1/chat/completions", response_model=None)(serving.chat_completions)
    app.get("/v1/models")(serving.models)
    app.get("/v1/models/{name:path}")(serving.model)
    app.get("/health")(serving.health)
    app.get("/metrics")(serving.metrics)
    app.add_middleware(_Gate, allowed_hosts=allowed_hosts, api_key=api_key)

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        return _refusal(explain(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def on_http_error(http: Request, error: HTTPException) -> Response:
        return _refusal(ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def on_fault(_: Request, error: Exception) -> Response:  # the traceback is in the server's log
        return _refusal(ApiError(500, "the server failed: see its log"))

    return app


class _Gate:
    """Refuses who may not come in, before anything of a request is read."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str], api_key: str | None) -> None:
        self._app = app
        self._allowed_hosts = {host.lower().strip("[]") for host in allowed_hosts}
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        await (self._app if error is None else _refusal(error))(scope, receive, send)

    def _error(self, headers: Headers, path: str) -> ApiError | None:
        host = headers.get("host", "")
        if "*" not in self._allowed_hosts and _name_of(host) not in self._allowed_hosts:
            return ApiError(403, f"this server does not serve {host!r}: start it with --allowed-host to have it do so")
        if self._api_key is not None and path.startswith("/v1/"):
            sent = headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(sent.encode(), self._api_key.encode()):
                return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        return None


class ApiServer(uvicorn.Server):
    """uvicorn, except that the first signal to stop lets everyone finish, and only the second stops at once.

    Args:
        app: from :func:`create_app`.
        llm: what serves. It has ended when the server has.
        on_ready: called when clients may come.
        on_draining: called when it was told to stop, and has requests to finish first.

    Attributes:
        was_cut_short: whether it stopped before everyone had finished.
    """

    def __init__(
        self, app: FastAPI, llm: AsyncLLM, on_ready: Callable[[], None], on_draining: Callable[[], None]
    ) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        self._llm, self._on_ready, self._on_draining = llm, on_ready, on_draining
        self._stops: list[Any] = []
        self.was_cut_short = False

    async def serve(self, sockets: list[socket] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        finally:
            await self._llm.shutdown(drain=False)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal: refuse what is new and finish what runs, or if it is not the first, stop at once."""
        self.was_cut_short = bool(self._stops)
        if not self._stops and self._llm.engine.has_unfinished_requests():
            self._on_draining()
        self._stops.append(asyncio.run_coroutine_threadsafe(self._stop(drain=not self._stops), self._loop))

    async def _stop(self, drain: bool) -> None:
        self.force_exit = not drain
        await self._llm.shutdown(drain)
        self.should_exit = True


def _refusal(error: ApiError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body, error.status, headers)


def _name_of(host: str) -> str | None:
    """The name in a Host header, without a port; ``None`` if it is none.

    Example:
        >>> _name_of("LocalHost:8000"), _name_of("[::1]:8000"), _name_of("a b:x]")
        ('localhost', '::1', None)
    """
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
