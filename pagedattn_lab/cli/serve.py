"""``serve``: a server that speaks OpenAI's API, for programs on this machine."""

from __future__ import annotations

import argparse
import socket
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import GIB, UNITS_HELP, count
from pagedattn_lab.cli.arguments import add_attention, add_json, at_least, positive, share, size, text
from pagedattn_lab.cli.generate import free_memory
from pagedattn_lab.cli.output import memory, print_json
from pagedattn_lab.cli.terminal import say, waiting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pagedattn_lab.engine.llm_engine import LLMEngine

NEEDED = ("fastapi", "prometheus_client", "uvicorn")
"""Packages of the extra ``serve``, by the names that Python knows them by."""

KV_MEMORY = GIB
"""Bytes for keys and values, unless something else is said."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a model to OpenAI's clients",
        usage="%(prog)s [options] [model]",  # as a list, the pair about caching is wider than a terminal
        description="Serve a model over HTTP as OpenAI's API does: /v1/completions, /v1/chat/completions, /v1/models, "
        "and /health and /metrics beside them. Only programs on this machine can use it, unless --host and "
        "--allowed-host say otherwise. Ctrl-C lets running requests finish; the second one does not.",
        examples=[
            ("serve", "the book's model on http://127.0.0.1:8000/v1"),
            ("serve --port 9000 --kv-memory 256MiB", "another port, and less memory for keys and values"),
            ("serve gpt2 --num-blocks 500 --max-num-seqs 8", "another model, and limits of your own"),
        ],
    )
    parser.add_argument("model", nargs="?", type=text, help="a Hugging Face id or a folder (default: the book's model)")
    where = parser.add_argument_group("who may come")
    where.add_argument("--host", type=text, default="127.0.0.1", help="address to listen on (default: %(default)s)")
    where.add_argument(
        "--port",
        type=at_least(0, 65535),
        default=8000,
        metavar="N",
        help="port to listen on; 0 for any that is free (default: %(default)s)",
    )
    where.add_argument(
        "--allowed-host",
        type=text,
        action="append",
        default=[],
        metavar="NAME",
        help="a name, without a port, that the server may be asked for beside this machine's own; * for any. It can be "
        "given several times",
    )
    where.add_argument("--api-key", type=text, metavar="KEY", help="what clients must send (default: nothing)")
    blocks = parser.add_argument_group("memory")
    amount = blocks.add_mutually_exclusive_group()
    amount.add_argument(
        "--kv-memory", type=size, metavar="SIZE", help=f"for keys and values, such as 1GiB (the default): {UNITS_HELP}"
    )
    amount.add_argument("--num-blocks", type=at_least(2), metavar="N", help="blocks in all, in place of --kv-memory")
    blocks.add_argument(
        "--block-size", type=positive, default=16, metavar="N", help="tokens per block (default: %(default)s)"
    )
    blocks.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="share blocks between requests that begin alike (default: yes)",
    )
    running = parser.add_argument_group("who runs")
    for option, default, help_ in (
        ("--max-num-seqs", 256, "requests that run at once"),
        ("--max-num-batched-tokens", 2048, "tokens of one step"),
        ("--max-num-waiting", 1000, "requests that wait; others are told to come back (429)"),
    ):
        running.add_argument(
            option, type=positive, default=default, metavar="N", help=f"most {help_} (default: %(default)s)"
        )
    running.add_argument(
        "--max-model-len",
        type=positive,
        metavar="N",
        help="most tokens of a prompt and its output (default: what the model was made for)",
    )
    running.add_argument(
        "--watermark",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="of the blocks, to stay free when a request is admitted (default: %(default)s)",
    )
    running.add_argument(
        "--scheduling-policy",
        choices=("fcfs", "priority"),
        default="fcfs",
        help="who is first: whoever came first, or the lowest priority number (default: %(default)s)",
    )
    computing = parser.add_argument_group("how it is computed")
    add_attention(computing)
    computing.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"serving needs the package {name}, of the extra pagedattn-lab[serve]")
    listener = _listen(arguments.host, arguments.port)  # before a model is loaded for nothing
    from pagedattn_lab import models

    name = arguments.model or models.DEFAULT
    with listener:
        with waiting(f"loading {name}"):
            import torch

            model, tokenizer = models.load(name, getattr(torch, arguments.dtype))
        engine = _engine(arguments, model, tokenizer)
        return _serve(arguments, engine, name, listener)


def _listen(host: str, port: int) -> socket.socket:
    """Take a port; nobody can connect before the server listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        raise OSError(
            f"cannot listen on port {port} of {host} ({error.strerror or error}): give another --port or --host"
        ) from error
    return listener


def _engine(arguments: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LLMEngine:
    from pagedattn_lab.engine.llm_engine import LLMEngine
    from pagedattn_lab.kv_shape import KVShape

    kv_memory = arguments.kv_memory
    if kv_memory is None and arguments.num_blocks is None:
        kv_memory = KV_MEMORY
    num_bytes = kv_memory or arguments.num_blocks * KVShape.from_config(model.config, model.dtype).bytes_per_block(
        arguments.block_size
    )
    room = free_memory(model.device)
    if num_bytes > room:
        raise ValueError(
            f"{memory(num_bytes)} for keys and values exceed the {memory(room)} of this {model.device.type}: lower "
            f"--{'kv-memory' if kv_memory else 'num-blocks'}"
        )
    with waiting("compiling attention for this CPU"):
        return LLMEngine(
            model,
            tokenizer,
            kv_memory=kv_memory,
            num_blocks=arguments.num_blocks,
            block_size=arguments.block_size,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
            max_num_seqs=arguments.max_num_seqs,
            max_model_len=arguments.max_model_len,
            enable_prefix_caching=arguments.enable_prefix_caching,
            watermark=arguments.watermark,
            policy=arguments.scheduling_policy,
            attention=arguments.attention,
        )


def _serve(arguments: argparse.Namespace, engine: LLMEngine, name: str, listener: socket.socket) -> int:
    from pagedattn_lab.engine.async_llm import AsyncLLM
    from pagedattn_lab.engine.prometheus import PrometheusStatLogger
    from pagedattn_lab.engine.server import THIS_MACHINE, ApiServer, create_app
    from pagedattn_lab.engine.serving import Serving

    prometheus = PrometheusStatLogger(name, engine.core.scheduler, engine.max_model_len)
    engine.metrics.loggers.append(prometheus)
    host, port = listener.getsockname()[:2]
    num_blocks = engine.core.manager.block_pool.num_free_blocks
    report = {
        "model": name,
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}/v1",
        "num_blocks": num_blocks,
        "block_size": arguments.block_size,
        "max_model_len": engine.max_model_len,
    }

    def on_ready() -> None:
        if arguments.json:
            print_json(report)
            sys.stdout.flush()
            return
        room = f"{count(num_blocks, 'block')} of {arguments.block_size}"
        say(f"{name} answers on {report['url']}, with {room}; Ctrl-C ends it", arguments.command)

    def on_draining() -> None:
        say("finishing what was begun; Ctrl-C again stops at once", arguments.command)

    llm = AsyncLLM(engine, max_num_waiting=arguments.max_num_waiting)
    serving = Serving(llm, engine.tokenizer, name, engine.max_model_len, prometheus)
    allowed = (*THIS_MACHINE, arguments.host, *arguments.allowed_host)
    app = create_app(serving, allowed_hosts=allowed, api_key=arguments.api_key)
    server = ApiServer(app, llm, on_ready, on_draining)
    server.run([listener])
    if server.was_cut_short:
        say("stopped before everyone had finished", arguments.command)
    return int(server.was_cut_short)
