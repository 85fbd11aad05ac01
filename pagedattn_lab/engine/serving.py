"""What the server does at each of its addresses, from a client's words to the engine and back (chapter 09).

Source: ``vllm/entrypoints/openai``, release 0.33.0, for what is answered where.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive, Scope, Send

from pagedattn_lab.engine.answers import Answer, ChatAnswer, CompletionAnswer
from pagedattn_lab.engine.async_llm import AsyncLLM, EngineClosedError, OutputCollector, QueueFullError
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.prometheus import PrometheusStatLogger
from pagedattn_lab.engine.protocol import ApiError, ChatCompletionRequest, CompletionRequest, SamplingRequest
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.models.prompts import encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

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
            self._check(body)
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
            self._check(body)
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

    def _check(self, body: SamplingRequest) -> None:
        """Refuse another model, and a priority that nobody would heed."""
        if body.model not in (None, self.model_name):
            raise self._unknown(str(body.model))
        if body.priority and self.llm.engine.core.scheduler.policy != "priority":
            raise ApiError(
                400,
                f"priority is {body.priority}, and this server serves who came first: start it with "
                "--scheduling-policy priority, or leave it out",
                "priority",
            )

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
