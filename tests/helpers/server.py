"""What the tests of the asynchronous engine and of the server share: a tiny model that speaks, and a server on it."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from pagedattn_lab.engine.async_llm import AsyncLLM
from pagedattn_lab.engine.llm_engine import LLMEngine
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.prometheus import PrometheusStatLogger
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.engine.server import ApiServer, create_app
from pagedattn_lab.engine.serving import Serving

LETTERS = "abcdefghijkl"
MODEL = "tiny"
MODEL_LEN = 2048
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ message.content }}k{% endfor %}"
)


@functools.cache
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model whose words are twelve letters; it never ends by itself. Its tokenizer knows a chat template."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        max_position_embeddings=MODEL_LEN,
    )  # fmt: skip
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = TEMPLATE
    return LlamaForCausalLM(config).eval(), tokenizer


def engine(**options: object) -> LLMEngine:
    return LLMEngine(*tiny(), **{"num_blocks": 400, "block_size": 4, "attention": "reference"} | options)


def alone(prompt: str | list[int], **params: object) -> RequestOutput:
    """What an engine of its own makes of one prompt."""
    return engine().generate([prompt], SamplingParams(**params))[0]


@functools.cache
def text_of(prompt: str, max_tokens: int) -> str:
    """The likeliest continuation."""
    return alone(prompt, temperature=0.0, max_tokens=max_tokens).outputs[0].text


def assert_at_rest(of: LLMEngine) -> None:
    """Nobody waits, nobody runs, nobody holds a block."""
    assert not of.has_unfinished_requests()
    pool = of.core.manager.block_pool
    assert pool.num_used_blocks == 0 and not of.core.manager.tables
    assert all(block.ref_cnt == 0 for block in pool.blocks[1:])


class Gate:
    """Lets a model compute a step only when the test says so, or makes it fail."""

    def __init__(self, of: LLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._steps, self._execute = threading.Semaphore(0), of.core.runner.execute
        self._open = threading.Event()
        self.error: BaseException | None = None
        self.arrived = threading.Semaphore(0)
        monkeypatch.setattr(of.core.runner, "execute", self._wait)

    def _wait(self, *arguments: object, **rest: object) -> torch.Tensor:
        self.arrived.release()
        if not self._open.is_set():
            assert self._steps.acquire(timeout=60)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._execute(*arguments, **rest)

    def step(self, error: BaseException | None = None) -> None:
        """Let one step be computed, or fail."""
        self.error = error
        self._steps.release()

    def open(self) -> None:
        """Let everything be computed from now on."""
        self._open.set()
        self._steps.release()


class OnDemand:
    """Lets a model compute a step only when somebody has asked the engine for something.

    So no request comes to its end while a test gets on with what it does, however slowly the test's own thread runs.

    Args:
        llm: whose model waits.
        monkeypatch: takes it back.
        free: steps that are computed at once.
    """

    def __init__(self, llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch, free: int = 0) -> None:
        runner = llm.engine.core.runner
        self._commands, self._execute, self._free = llm._commands, runner.execute, free
        self._open = threading.Event()
        monkeypatch.setattr(runner, "execute", self._wait)

    def _wait(self, *arguments: object, **rest: object) -> torch.Tensor:
        self._free -= 1
        deadline = time.monotonic() + 60
        while self._free < 0 and self._commands.empty() and not self._open.wait(0.001):
            assert time.monotonic() < deadline, "nobody asked for anything"
        return self._execute(*arguments, **rest)

    def open(self) -> None:
        """Let everything be computed from now on."""
        self._open.set()


@dataclass
class Served:
    """A server that runs in a thread of this process."""

    url: str
    engine: LLMEngine
    llm: AsyncLLM
    server: ApiServer

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", max_retries=0, **{"api_key": "none"} | options,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )  # fmt: skip

    def async_client(self) -> openai.AsyncOpenAI:
        limits = openai.DefaultAsyncHttpxClient(trust_env=False)
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", max_retries=0, api_key="none", http_client=limits)

    def settle(self) -> None:
        """Wait until the engine's thread has done all that was asked of it so far."""
        done = threading.Event()
        self.llm._commands.put(done.set)
        assert done.wait(60)


@contextmanager
def served(of: LLMEngine, max_num_waiting: int | None = None, **options: object) -> Iterator[Served]:
    """Serve an engine on a free port of 127.0.0.1; in the end nobody may have left anything behind."""
    prometheus = PrometheusStatLogger(MODEL, of.core.scheduler, of.max_model_len)
    of.metrics.loggers.append(prometheus)
    llm = AsyncLLM(of, max_num_waiting=max_num_waiting)
    serving = Serving(llm, of.tokenizer, MODEL, of.max_model_len, prometheus)
    ready = threading.Event()
    server = ApiServer(create_app(serving, **options), llm, ready.set, lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(60)
            yield Served(f"http://127.0.0.1:{port}", of, llm, server)
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()
    assert_at_rest(of)


def run(coroutine: object) -> object:
    """Run a coroutine in a loop of its own, for a minute at most."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))
