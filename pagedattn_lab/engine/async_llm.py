"""An engine for many clients at once: one thread runs it, and each client waits for its own outputs (chapter 09).

Source: ``AsyncLLM`` and ``RequestOutputCollector`` in vLLM's ``vllm/v1/engine/async_llm.py`` and
``output_processor.py``, release 0.33.0. There the engine is a process of its own; here a thread is enough, since torch
lets others run while it computes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING
from uuid import uuid4

from pagedattn_lab.engine.llm_engine import StepFailedError
from pagedattn_lab.engine.metrics import num_waiting_reqs
from pagedattn_lab.engine.outputs import CompletionOutput, FinishReason, RequestOutput
from pagedattn_lab.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagedattn_lab.engine.llm_engine import LLMEngine

logger = logging.getLogger(__name__)


class EngineClosedError(RuntimeError):
    """The engine takes no more requests: it was shut down, or it broke; then the cause is attached."""


class QueueFullError(RuntimeError):
    """As many requests wait as may wait."""


class OutputCollector:
    """Outputs of one client's requests on their way from the engine's thread to the client's event loop.

    A client that is slower than the engine misses nothing: an output holds all of its tokens, so the latest is enough.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: dict[str, RequestOutput] = {}
        self._error: EngineClosedError | None = None
        self._news = asyncio.Event()

    async def get(self) -> list[RequestOutput]:
        """Wait for news; give the latest output of each request that has any.

        Raises:
            EngineClosedError: the engine broke, and nothing more comes.
        """
        await self._news.wait()
        self._news.clear()
        outputs, self._latest = list(self._latest.values()), {}
        if not outputs and self._error is not None:
            raise self._error
        return outputs

    def send(self, news: Sequence[RequestOutput] | EngineClosedError) -> bool:
        """Called by the engine's thread; says whether there is still an event loop that could take it."""
        try:
            self._loop.call_soon_threadsafe(self._take, news)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _take(self, news: Sequence[RequestOutput] | EngineClosedError) -> None:
        if isinstance(news, EngineClosedError):
            self._error = news
        else:
            self._latest.update((output.request_id, output) for output in news)
        self._news.set()


class AsyncLLM:
    """Serve many clients with one engine, which from now on belongs to a thread of this object.

    Args:
        engine: with nothing to do yet. Nobody else may call it any more.
        max_num_waiting: how many requests may wait, beyond those that can run at once; ``None`` for any number.

    Example:
        >>> import asyncio
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from pagedattn_lab.engine.llm_engine import LLMEngine
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = LLMEngine(LlamaForCausalLM(config), None, num_blocks=20, block_size=4, attention="reference")
        >>> async def main() -> list[int]:
        ...     async with AsyncLLM(engine) as llm:
        ...         return [len(output.outputs[0].token_ids) async for output in llm.generate(
        ...             [7, 8, 9], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))]
        >>> asyncio.run(main())[-1]
        3
    """

    def __init__(self, engine: LLMEngine, *, max_num_waiting: int | None = None) -> None:
        self.engine = engine
        self.max_num_waiting = max_num_waiting
        self._is_closed = False
        self._closing = threading.Lock()  # a request is either in the queue before the end, or refused
        self._error: BaseException | None = None
        # All below belongs to the thread; others send it what to do.
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._collectors: dict[str, OutputCollector] = {}
        self._latest: dict[str, RequestOutput] = {}
        self._must_stop = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether no more requests are taken."""
        return self._is_closed

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Serve one request, and give its outputs as they grow; the last one says that it is finished.

        To leave the iteration, or to cancel the task that iterates, aborts the request and frees its blocks. If a step
        fails that computes the request, it ends with ``finish_reason`` ``"error"``.

        Args:
            prompt: a text or token ids.
            params: how tokens are chosen.
            request_id: a name that no other running request has; by default one is made up.
            priority: who goes first, if the engine schedules by priority: the lowest.
            cache_salt: the request shares blocks only with those of the same salt.

        Raises:
            ValueError: a request that the engine refuses; its sentence says why.
            QueueFullError: too many wait.
            EngineClosedError: it was shut down, or broke.
        """
        collector, request_id = OutputCollector(), request_id or f"request-{uuid4().hex}"
        try:
            await self.add_request(collector, request_id, prompt, params, priority=priority, cache_salt=cache_salt)
            while True:
                for output in await collector.get():
                    yield output
                    if output.finished:
                        return
        finally:
            self.abort(collector)

    async def add_request(
        self,
        collector: OutputCollector,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        """Have the engine take a request in, and its outputs go to a collector, which may wait for several requests.

        Whoever calls this calls :meth:`abort` in the end, whatever happens.

        Args:
            collector: made in the event loop that will read it.
            request_id, prompt, params, priority, cache_salt: as for :meth:`generate`.

        Raises:
            ValueError, QueueFullError, EngineClosedError: as for :meth:`generate`.
        """
        answer: Future[None] = Future()
        params = params or SamplingParams()
        add = partial(self.engine.add_request, request_id, prompt, params, priority=priority, cache_salt=cache_salt)
        text, token_ids = (prompt, []) if isinstance(prompt, str) else (None, list(prompt))
        nothing = [CompletionOutput(index, "", []) for index in range(params.n)]
        output = RequestOutput(request_id, text, token_ids, nothing, False)
        with self._closing:
            if self._is_closed:
                raise self._closed()
            self._commands.put(partial(self._add, answer, collector, add, output))
        await asyncio.wrap_future(answer)

    def abort(self, collector: OutputCollector) -> None:
        """Give up what is not finished of a client's requests; their blocks are free before the next step."""
        self._commands.put(partial(self._abort, collector))

    async def shutdown(self, drain: bool = True) -> None:
        """Take no more requests; return when the thread has ended. It may be called again, with another ``drain``.

        Args:
            drain: finish what runs and what waits; otherwise it ends with ``finish_reason`` ``"abort"``.
        """
        with self._closing:
            self._is_closed = True
            self._commands.put(partial(self._stop, drain))
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown(drain=error is None)

    # ------------------------------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        """Do what others ask for between two steps; sleep while there is nothing to do."""
        try:
            while not (self._must_stop and not self.engine.has_unfinished_requests()):
                self._obey(wait=not self.engine.has_unfinished_requests())
                if self.engine.has_unfinished_requests():
                    self._step()
        except BaseException as error:  # the engine cannot go on: everyone learns of it
            logger.exception("the engine broke")
            self._error = error
        with self._closing:
            self._is_closed = self._must_stop = True
        for collector in set(self._collectors.values()):
            collector.send(self._closed())
        self._collectors.clear()
        self._obey(wait=False)

    def _obey(self, wait: bool) -> None:
        """Carry out what was asked for, in order; if nothing was, and nothing runs, wait until something is."""
        try:
            self._commands.get(block=wait)()
            while True:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except StepFailedError as error:
            logger.exception("a step failed")
            self._end(error.request_ids, "error")
        else:
            self._send(outputs)

    def _add(
        self, answer: Future[None], collector: OutputCollector, add: Callable[[], object], nothing: RequestOutput
    ) -> None:
        if not answer.set_running_or_notify_cancel():  # whoever asked has gone
            return
        try:
            if self._must_stop:
                raise self._closed()
            self._check_queue(len(nothing.outputs))
            add()
        except Exception as error:
            answer.set_exception(error)
        else:
            self._collectors[nothing.request_id] = collector
            self._latest[nothing.request_id] = nothing
            answer.set_result(None)

    def _check_queue(self, num_new: int) -> None:
        """Refuse sequences that would wait behind as many as may wait."""
        scheduler = self.engine.core.scheduler
        if self.max_num_waiting is None or scheduler.max_num_seqs is None:
            return
        num_waiting = num_waiting_reqs(scheduler) + len(scheduler.running) - scheduler.max_num_seqs
        if num_waiting + num_new > self.max_num_waiting:
            raise QueueFullError(
                f"{max(0, num_waiting)} requests wait for one of {scheduler.max_num_seqs} to finish, and at most "
                f"{self.max_num_waiting} may: try again later"
            )

    def _abort(self, collector: OutputCollector) -> None:
        request_ids = [request_id for request_id, owner in self._collectors.items() if owner is collector]
        if request_ids:
            self._forget(request_ids)
            self.engine.abort(request_ids)

    def _stop(self, drain: bool) -> None:
        self._must_stop = True
        if not drain:
            self._end(list(self._collectors), "abort")

    def _end(self, request_ids: Iterable[str], reason: FinishReason) -> None:
        """Give requests up, and tell their clients why; they keep what they have."""
        ends = []
        for request_id in request_ids:
            latest = self._latest[request_id]
            outputs = [
                output if output.finished() else replace(output, finish_reason=reason) for output in latest.outputs
            ]
            ends.append(replace(latest, outputs=outputs, finished=True))
        self.engine.abort([output.request_id for output in ends], reason)
        self._send(ends)

    def _send(self, outputs: Sequence[RequestOutput]) -> None:
        """Give outputs to the clients' event loops, each of which is woken once."""
        news: defaultdict[OutputCollector, list[RequestOutput]] = defaultdict(list)
        for output in outputs:
            self._latest[output.request_id] = output
            news[self._collectors[output.request_id]].append(output)
        self._forget(output.request_id for output in outputs if output.finished)
        for collector, of_one in news.items():
            if not collector.send(of_one):
                self._abort(collector)

    def _forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            del self._collectors[request_id], self._latest[request_id]

    def _closed(self) -> EngineClosedError:
        error = EngineClosedError(
            "the engine takes no more requests: it was shut down"
            if self._error is None
            else "the engine broke, and takes no more requests: start it again"
        )
        error.__cause__ = self._error
        return error
