"""A server that speaks OpenAI's API, for clients on this machine (chapter 09).

Source: ``vllm/entrypoints/openai/api_server.py``, release 0.33.0, for what is answered where. Unlike that server, this
one listens to nobody else unless told: it is bound to 127.0.0.1, and a web page cannot use it, since it sends no CORS
headers, reads JSON only, and refuses requests for another host than it knows (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pagedattn_lab.engine.answers import Answer, ChatAnswer, CompletionAnswer
from pagedattn_lab.engine.async_llm import AsyncLLM, EngineClosedError, OutputCollector, QueueFullError
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.prometheus import PrometheusStatLogger
from pagedattn_lab.engine.protocol import ApiError, ChatCompletionRequest, CompletionRequest, SamplingRequest, explain
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.models.prompts import encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
"""Hosts that a server is asked for by programs on its own machine."""

RETRY_AFTER = 1
"""Seconds after which it is worth asking a busy server again."""


class _EventStream(StreamingResponse):
    """Server-sent events; whatever becomes of the connection, in the end the requests behind it are given up."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], give_up: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache"})
        self._give_up = give_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._give_up()


@dataclass
class Serving:
    """The endpoints.

    Args:
        llm: what serves.
        tokenizer: of its model; texts become tokens on a thread beside the engine's, with a copy.
        model_name: what clients call the model.
        max_model_len: tokens of a prompt and its output at most.
        prometheus: what ``/metrics`` shows.
    """

    llm: AsyncLLM
    tokenizer: PreTrainedTokenizerBase
    model_name: str
    max_model_len: int
    prometheus: PrometheusStatLogger

    def __post_init__(self) -> None:
        self.tokenizer = copy.deepcopy(self.tokenizer)  # a tokenizer serves one thread at a time
        self._encoding = ThreadPoolExecutor(1, "encoding")

    async def completions(self, body: CompletionRequest, http: Request) -> Response:
        """Continue texts."""
        with _bad_input():
            self._check_model(body)
            params = body.sampling_params(body.max_tokens, body.logprobs)
            prompts = [
                await self._encode(lambda text=prompt: self.tokenizer(text)["input_ids"])
                if isinstance(prompt, str)
                else prompt
                for prompt in body.prompt
            ]
        echoes = [""] * len(prompts)
        if body.echo:
            echoes = [
                prompt if isinstance(prompt, str) else await self._encode(lambda ids=prompt: self.tokenizer.decode(ids))
                for prompt in body.prompt
            ]
        answer = CompletionAnswer(self.model_name, params.n, body.logprobs, echoes)
        return await self._answer(http, body, answer, prompts, params)

    async def chat_completions(self, body: ChatCompletionRequest, http: Request) -> Response:
        """Continue a conversation."""
        with _bad_input():
            self._check_model(body)
            prompt = await self._encode(lambda: encode_conversation(self.tokenizer, body.conversation))
            max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
            num_top = (body.top_logprobs or 0) if body.logprobs else None
            params = body.sampling_params(max_tokens, num_top)
        answer = ChatAnswer(self.model_name, params.n, num_top)
        return await self._answer(http, body, answer, [prompt], params)

    async def models(self) -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [self._model_card()]}

    async def model(self, name: str) -> dict[str, Any]:
        """Describe a model."""
        if name != self.model_name:
            raise self._unknown(name)
        return self._model_card()

    async def health(self) -> Response:
        """Say whether requests are taken."""
        return Response(status_code=503 if self.llm.is_closed else 200)

    async def metrics(self) -> Response:
        """Give metrics in Prometheus' format."""
        return PlainTextResponse(self.prometheus.text(), media_type=CONTENT_TYPE_LATEST)

    def _model_card(self) -> dict[str, Any]:
        card = {"id": self.model_name, "object": "model", "created": 0, "owned_by": "pagedattn-lab"}
        return card | {"max_model_len": self.max_model_len}

    def _check_model(self, body: SamplingRequest) -> None:
        if body.model not in (None, self.model_name):
            raise self._unknown(str(body.model))

    def _unknown(self, name: str) -> ApiError:
        return ApiError(
            404, f"there is no model {name!r} here: this server has {self.model_name!r}", "model", "model_not_found"
        )

    async def _encode(self, encode: Callable[[], T]) -> T:
        """Have the tokenizer work without holding anyone up."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, encode)

    async def _answer(
        self, http: Request, body: SamplingRequest, answer: Answer, prompts: Sequence[list[int]], params: SamplingParams
    ) -> Response:
        """Have prompts answered, whole or as a stream; if the client hangs up, or anything fails, nothing goes on."""
        collector = OutputCollector()
        try:
            with _bad_input():
                await asyncio.gather(
                    *(
                        self.llm.add_request(
                            collector, f"{answer.request_id}-{place}", prompt, params,
                            priority=body.priority, cache_salt=body.cache_salt,
                        )
                        for place, prompt in enumerate(prompts)
                    )
                )  # fmt: skip
            if body.stream:
                events = self._events(collector, answer, len(prompts), body.include_usage)
                return _EventStream(events, lambda: self.llm.abort(collector))
            outputs = await _unless_gone(http, self._wait(collector, answer, len(prompts)))
        except BaseException:
            self.llm.abort(collector)
            raise
        if outputs is None:
            self.llm.abort(collector)
            return Response(status_code=499)  # nobody is there to read it
        return JSONResponse(answer.whole(outputs))

    async def _wait(self, collector: OutputCollector, answer: Answer, num_prompts: int) -> list[RequestOutput]:
        latest: dict[int, RequestOutput] = {}
        async for place, output in self._outputs(collector, answer, num_prompts):
            latest[place] = output
        return [latest[place] for place in range(num_prompts)]

    async def _events(
        self, collector: OutputCollector, answer: Answer, num_prompts: int, include_usage: bool
    ) -> AsyncIterator[str]:
        latest: dict[int, RequestOutput] = {}
        try:
            async for place, output in self._outputs(collector, answer, num_prompts):
                latest[place] = output
                for chunk in answer.news(place, output):
                    yield _event(chunk)
            if include_usage:
                yield _event(answer.account([latest[place] for place in range(num_prompts)]))
        except ApiError as error:  # what has been sent was a success; only an event can say that it is none any more
            yield _event(error.body)
        yield "data: [DONE]\n\n"

    async def _outputs(
        self, collector: OutputCollector, answer: Answer, num_prompts: int
    ) -> AsyncIterator[tuple[int, RequestOutput]]:
        """Give each prompt's place and its outputs as they grow, until all are complete."""
        num_left = num_prompts
        while num_left:
            try:
                news = await collector.get()
            except EngineClosedError as error:
                raise ApiError(500, str(error)) from error
            for output in news:
                reasons = {one.finish_reason for one in output.outputs}
                if "error" in reasons:
                    raise ApiError(
                        500, "the model failed in a step of this request: see the server's log, or try again"
                    )
                if "abort" in reasons:
                    raise ApiError(503, "the server was told to stop at once, before this request was finished")
                yield int(output.request_id.removeprefix(f"{answer.request_id}-")), output
                num_left -= output.finished


def create_app(serving: Serving, *, allowed_hosts: Sequence[str] = THIS_MACHINE, api_key: str | None = None) -> FastAPI:
    """Make the application, for :func:`serve` or another ASGI server.

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

    Attributes:
        was_cut_short: whether it stopped before everyone had finished.
    """

    def __init__(self, app: FastAPI, llm: AsyncLLM, on_ready: Callable[[], None]) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        self._llm, self._on_ready = llm, on_ready
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
        self._stops.append(asyncio.run_coroutine_threadsafe(self._stop(drain=not self._stops), self._loop))

    async def _stop(self, drain: bool) -> None:
        self.force_exit = not drain
        await self._llm.shutdown(drain)
        self.should_exit = True


def _refusal(error: ApiError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body, error.status, headers)


@contextmanager
def _bad_input() -> Iterator[None]:
    """Turn what the engine says about a request into an answer."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    except QueueFullError as error:
        raise ApiError(429, str(error), code="queue_full", retry_after=RETRY_AFTER) from error
    except EngineClosedError as error:
        raise ApiError(503, str(error), code="shutting_down", retry_after=RETRY_AFTER) from error


async def _unless_gone(http: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Wait for work, but no longer than the client does; ``None`` if it has hung up."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(_gone(http.receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {JSONResponse(chunk).body.decode()}\n\n"


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
