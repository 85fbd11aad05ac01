"""``vllm-check``: what a running server has room for and does with a workload, predicted and observed."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pagedattn_lab.arithmetic import UNITS_HELP, count
from pagedattn_lab.cli.arguments import add_json, at_least, name_or_file, positive, seed, size, text
from pagedattn_lab.cli.output import print_json
from pagedattn_lab.cli.terminal import waiting, wrap
from pagedattn_lab.workloads.conversations import SHARED_WORKLOADS

if TYPE_CHECKING:
    from pagedattn_lab.vllm_check.report import Check

NEEDED = ("httpx", "prometheus_client")
"""Packages of the extra ``serve``, by the names that Python knows them by."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "vllm-check",
        help="hold predictions against a running vLLM server",
        usage="%(prog)s --url URL [options]",
        description="Read a running server's configuration and counters, predict its blocks and how many tokens and "
        "requests fit, send it a workload through OpenAI's API, and print what was predicted beside what the server "
        "counted. Hits and preemptions are predicted by this book's scheduler and block manager, without a model. The "
        "server must be idle, and nobody else may use it meanwhile. vLLM's servers can be checked, and those of serve.",
        examples=[
            ("vllm-check --url http://127.0.0.1:8000", "64 requests of many conversations, all at once"),
            ("vllm-check --url http://127.0.0.1:8000 --requests 0", "only what it has room for: nothing is sent"),
            ("vllm-check --url http://127.0.0.1:8000 --clients 16", "16 requests at a time"),
        ],
    )
    parser.add_argument("--url", type=_url, required=True, help="where the server is, such as http://127.0.0.1:8000")
    parser.add_argument("--api-key", type=text, metavar="KEY", help="what the server wants to be told, if anything")
    parser.add_argument(
        "--timeout",
        type=positive,
        default=600,
        metavar="S",
        help="seconds to wait for one answer (default: %(default)s)",
    )
    workload = parser.add_argument_group("what is sent")
    workload.add_argument(
        "--workload",
        type=name_or_file(SHARED_WORKLOADS),
        default="chat",
        metavar="NAME",
        help=f"{' or '.join(SHARED_WORKLOADS)}, or a file in Mooncake's format (default: %(default)s)",
    )
    workload.add_argument(
        "--requests",
        type=at_least(0),
        default=64,
        metavar="N",
        help="how many are sent; 0 for none (default: %(default)s)",
    )
    workload.add_argument(
        "--clients",
        type=at_least(1, 1000),
        metavar="N",
        help="how many are sent at once; the next one follows an answer (default: all)",
    )
    workload.add_argument(
        "--max-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="outputs longer than this are cut (default: %(default)s)",
    )
    workload.add_argument(
        "--vocab-size",
        type=positive,
        default=30_000,
        metavar="N",
        help="token ids are below this; the model must have as many (default: %(default)s)",
    )
    workload.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of a named workload (default: %(default)s)"
    )
    told = parser.add_argument_group("what a server does not tell, unless it runs in vLLM's development mode")
    told.add_argument(
        "--max-num-seqs", type=positive, metavar="N", help="requests that run at once (default: 256, as vLLM's)"
    )
    told.add_argument(
        "--max-num-batched-tokens", type=positive, metavar="N", help="tokens of one step (default: 2048, as vLLM's)"
    )
    told.add_argument(
        "--available",
        type=size,
        metavar="SIZE",
        help=f"memory for keys and values, from its log; blocks are predicted from it: {UNITS_HELP}",
    )
    told.add_argument("--dtype", metavar="DTYPE", help="of the model's weights (default: what its configuration says)")
    told.add_argument("--tp", type=positive, metavar="N", help="GPUs that share each layer (default: 1)")
    told.add_argument("--model", type=text, metavar="NAME", help="which of its models (default: the first)")
    told.add_argument(
        "--config",
        type=text,
        metavar="ID",
        help="the model's id or folder, if it is not where the server has it from",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check a server."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"asking a server needs the package {name}, of the extra pagedattn-lab[serve]")
    from pagedattn_lab.vllm_check.check import ServerOptions, WorkloadOptions, check_server
    from pagedattn_lab.vllm_check.client import Client

    workload = WorkloadOptions(
        arguments.workload,
        arguments.requests,
        arguments.clients,
        arguments.max_tokens,
        arguments.seed,
        arguments.vocab_size,
    )
    options = ServerOptions(
        arguments.model,
        arguments.config,
        arguments.dtype,
        arguments.tp,
        arguments.available,
        arguments.max_num_seqs,
        arguments.max_num_batched_tokens,
    )
    with Client(arguments.url, arguments.api_key, arguments.timeout) as client, waiting("asking the server"):
        check = check_server(client, workload, options)
    if arguments.json:
        print_json(check.to_json())
    else:
        _print(check)
    return 0


def _url(argument: str) -> str:
    """The address of a server."""
    try:
        parts = urlsplit(argument)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a server's address, such as http://127.0.0.1:8000")
    return argument


def _print(check: Check) -> None:
    from pagedattn_lab.vllm_check.client import printable
    from pagedattn_lab.vllm_check.report import comparison

    server, limits, sent = check.server, check.limits, check.workload
    version = f"vLLM {server.version}" if server.version else "no version told"
    facts = {
        "server": f"{version}, {server.model}, up to {count(server.max_model_len, 'token')}",
        "cache": f"blocks of {server.block_size}, prefix caching {'on' if server.enable_prefix_caching else 'off'}",
        "limits": "; ".join(f"{name} {getattr(limits, name):,} ({source})" for name, source in limits.sources.items()),
    }
    if sent:
        facts["workload"] = f"{sent['name']}, {count(sent['num_requests'], 'request')}, {sent['clients']} at once"
        if sent["num_cut"]:
            facts["workload"] += f"; {sent['num_cut']} cut to fit"
    for name, fact in facts.items():
        print(wrap(f"{name:<12}{printable(fact)}", indent=" " * 12))
    print(f"\n{'':<26}{'predicted':>13}{'observed':>13}{'difference':>14}")
    for label, predicted, observed, difference in comparison(check.predicted, check.observed):
        print(f"{label:<26}{predicted:>13}{observed:>13}{difference:>14}".rstrip())
    for number, reason in enumerate(check.reasons()):
        print(("\n" if not number else "") + wrap(f"* {printable(reason)}", indent="  "))
