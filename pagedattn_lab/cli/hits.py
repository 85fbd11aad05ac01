"""``hits``: how much of its prompts a prefix cache would find."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import count
from pagedattn_lab.cli.arguments import add_json, blocks, name_or_file, positive, seed
from pagedattn_lab.cli.output import print_json
from pagedattn_lab.cli.terminal import say, waiting, wrap
from pagedattn_lab.studies.hit_rates import MOONCAKE_BLOCK_SIZE, POLICIES, measure
from pagedattn_lab.workloads import MalformedTraceError, TraceRequest, load_trace
from pagedattn_lab.workloads.conversations import SHARED_WORKLOADS, hashed

SYNTHETIC_BLOCK_SIZE = 16
"""Tokens per block of a synthetic workload, unless another number is given."""

FORMAT = "JSON objects with timestamp, input_length, output_length and hash_ids, as in Mooncake's traces"
"""What a file must be."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "hits",
        help="say how much of its prompts a prefix cache would find",
        description="Serve a trace with hashed blocks from an empty prefix cache, one request after the other. The hit "
        "rate is the number of tokens found in cached full blocks over the number of tokens in all prompts. The last "
        "token of a prompt is always computed, and blocks are found whole: a prompt that ends with a block finds that "
        "block never, even if all of it is cached. In a file, a last block that is not full has an id in all "
        "requests or in none.",
        examples=[
            ("hits chat --blocks 4000", "conversations, in a cache that is too small for them"),
            ("hits chat --blocks 4000 --policy fifo", "the same, evicting another block"),
            ("hits trace.jsonl --requests 1000", "the beginning of a trace in Mooncake's format"),
        ],
    )
    parser.add_argument(
        "trace",
        type=name_or_file(SHARED_WORKLOADS),
        metavar="TRACE",
        help=f"a file, gzipped or not, with {FORMAT}, or {' or '.join(SHARED_WORKLOADS)}: prompts made for the purpose",
    )
    parser.add_argument(
        "--blocks", type=blocks, metavar="N|unlimited", help="blocks that the cache has room for (default: unlimited)"
    )
    parser.add_argument(
        "--policy",
        choices=tuple(POLICIES),
        default="lru",
        help="; ".join(f"{name}: {what}" for name, what in POLICIES.items()) + " (default: %(default)s)",
    )
    parser.add_argument(
        "--block-size",
        type=positive,
        metavar="N",
        help=f"tokens per hashed block (default: {MOONCAKE_BLOCK_SIZE} for a file, {SYNTHETIC_BLOCK_SIZE} else)",
    )
    parser.add_argument(
        "--requests", type=positive, metavar="N", help="the first N requests (default: of a file all, 10000 else)"
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of prompts made for the purpose, and of --policy random (default: %(default)s)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the trace, and print what was found."""
    with waiting("serving the trace"):
        requests, block_size = _requests(arguments)
        try:
            hits = measure(requests, arguments.blocks, block_size, arguments.policy, arguments.seed)
        except ValueError as error:
            raise ValueError(f"{arguments.trace}: {error}; --block-size says how many tokens a block has") from None
    by_chance = arguments.trace in SHARED_WORKLOADS or (arguments.policy == "random" and arguments.blocks is not None)
    report = {
        "trace": arguments.trace,
        **vars(hits),
        "hit_rate": hits.hit_rate,
        "seed": arguments.seed if by_chance else None,
    }
    if arguments.json:
        print_json(report)
    else:
        _print(report)
    if hits.refused:
        say(
            f"refused {hits.refused:,} of {count(hits.num_requests, 'request')}, with prompts of more than "
            f"{count(hits.num_blocks, 'block')}: raise --blocks to serve them",
            arguments.command,
        )
    return 0


def _requests(arguments: argparse.Namespace) -> tuple[Iterable[TraceRequest], int]:
    """What is served, and how many tokens a hashed block has."""
    name, num_requests, block_size = arguments.trace, arguments.requests, arguments.block_size
    if name in SHARED_WORKLOADS:
        block_size = block_size or SYNTHETIC_BLOCK_SIZE
        return hashed(islice(SHARED_WORKLOADS[name](arguments.seed), num_requests or 10_000), block_size), block_size
    try:
        trace = load_trace(name)
    except MalformedTraceError as error:
        raise ValueError(f"{error}; hits reads {FORMAT}") from None
    if not any(request.hash_ids for request in trace):
        raise ValueError(
            f"{name} has no hash_ids, which tell prompts that begin alike: give {FORMAT}, or "
            f"{' or '.join(SHARED_WORKLOADS)}"
        )
    return trace[:num_requests], block_size or MOONCAKE_BLOCK_SIZE


def _print(report: Mapping[str, Any]) -> None:
    num_blocks, policy = report["num_blocks"], report["policy"]
    rows = {
        "trace": f"{Path(report['trace']).name}, {count(report['num_requests'], 'request')}",
        "cache": "unlimited" if num_blocks is None else count(num_blocks, "block"),
        "block size": count(report["block_size"], "token"),
        **({} if num_blocks is None else {"policy": f"{policy}: {POLICIES[policy]}"}),
        "tokens in prompts": f"{report['prompt_tokens']:>13,}",
        "tokens found": f"{report['hit_tokens']:>13,}",
        "hit rate": f"{report['hit_rate']:>13.1%}",
        "most blocks cached": f"{report['most_cached']:>13,}",
        "blocks evicted": f"{report['evictions']:>13,}",
    }
    for key, value in rows.items():
        print(wrap(f"{key:<20}{value}", indent=" " * 20))
