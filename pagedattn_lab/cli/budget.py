"""``budget``: what a GPU's memory becomes when vLLM serves a model on it."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import GIB, UNITS_HELP, count
from pagedattn_lab.budget import (
    Budget,
    Estimate,
    Options,
    Users,
    first_change,
    largest_context,
    plan_longest,
    users,
)
from pagedattn_lab.budget.dtypes import CACHE_DTYPES
from pagedattn_lab.budget.memory import gpu_memory
from pagedattn_lab.budget.versions import vllm_version
from pagedattn_lab.cli.arguments import add_json, finite, positive, read_by, text, text_of_file
from pagedattn_lab.cli.budget_log import with_log
from pagedattn_lab.cli.output import did_you_mean, print_json
from pagedattn_lab.cli.terminal import waiting, wrap
from pagedattn_lab.hardware import GPUS

NUM_REQUESTS = 2_000
"""Requests drawn from a workload that has no end."""

MOST_CHANGES = 4
"""How many changes are printed."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "budget",
        help="say what a GPU's memory becomes when vLLM serves a model on it",
        description="Say how many blocks, tokens and requests vLLM's KV cache has room for, as vLLM computes and logs "
        "it. From the memory that is available for the cache this follows exactly. How much that is, no configuration "
        "can tell: it is estimated, and shown as a range, unless --available or --log says what vLLM printed.",
        examples=[
            ("budget Qwen3-8B --gpu 24GiB --max-model-len 16384", "will it fit, and what to change"),
            ("budget Llama-3.1-8B --available 58.11GiB", "from a line of vLLM's log"),
            ('budget Qwen3-4B --gpu "RTX 3060" --workload sharegpt', "users at once rather than the worst case"),
        ],
    )
    parser.add_argument(
        "model",
        type=text,
        metavar="MODEL",
        help="a well-known model by its name, a folder, or a config.json; any other id is looked up with transformers",
    )
    parser.add_argument(
        "--gpu",
        type=read_by(_gpu),
        metavar="NAME|SIZE",
        help=f"{', '.join(GPUS)}, or the memory that a driver reports, such as 24GiB: {UNITS_HELP}",
    )
    parser.add_argument(
        "--max-model-len",
        type=positive,
        metavar="N",
        help="most tokens of a request (default: the model's own, or what fits)",
    )
    parser.add_argument("--dtype", type=text, metavar="DTYPE", help="of the model (default: as its configuration says)")
    parser.add_argument(
        "--kv-dtype",
        "--kv-cache-dtype",
        choices=tuple(CACHE_DTYPES),
        metavar="DTYPE",
        help=f"of keys and values: {', '.join(CACHE_DTYPES)} (default: as the model)",
    )
    parser.add_argument("--quantization", type=text, metavar="NAME", help="of the weights, such as fp8 or awq")
    # The short names, and those of vllm serve, so that its line can be pasted here.
    parser.add_argument(
        "--tp", "--tensor-parallel-size", type=positive, metavar="N", help="GPUs that share each layer (default: 1)"
    )
    parser.add_argument(
        "--pp",
        "--pipeline-parallel-size",
        type=positive,
        metavar="N",
        help="ranks with layers of their own (default: 1)",
    )
    parser.add_argument("--block-size", type=positive, metavar="N", help="tokens per block (default: vLLM's)")
    parser.add_argument(
        "--max-num-batched-tokens", type=positive, metavar="N", help="most tokens in a step (default: vLLM's)"
    )
    parser.add_argument("--max-num-seqs", type=positive, metavar="N", help="most sequences in a step (default: vLLM's)")
    parser.add_argument(
        "--gpu-memory-utilization", type=finite, metavar="SHARE", help="of the GPU, for vLLM (default: vLLM's)"
    )
    parser.add_argument(
        "--vllm-version",
        type=read_by(_version),
        metavar="V",
        help=f"whose formulas, defaults and words to use (default: the log's, else {Options.vllm_version})",
    )
    parser.add_argument(
        "--available",
        type=read_by(_printed),
        metavar="SIZE",
        help="memory for the cache, as vLLM printed it; what its decimals leave open stays a range",
    )
    parser.add_argument(
        "--weights", type=read_by(_printed), metavar="SIZE", help="memory of the weights, as vLLM printed it"
    )
    parser.add_argument("--log", type=text_of_file, metavar="FILE", help="a start-up log, for all that it says")
    parser.add_argument(
        "--workload",
        type=_workload,
        metavar="NAME|FILE|IN/OUT",
        help="lengths of requests: sharegpt, alpaca, azure-conv, azure-code, a trace as in waste, or mean tokens of "
        "prompts and outputs, such as 500/200",
    )
    add_json(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Make the budget, and print it."""
    options = _options(arguments)
    if options.gpu is None and options.available_bytes is None and options.num_gpu_blocks_override is None:
        arguments.refuse("nothing says how much memory there is: give --gpu, --available or --log")
    with waiting("making a budget"):
        budget, shortened = plan_longest(options)
        load = None if arguments.workload is None else _users(budget, arguments.workload)
        changes = first_change(budget)[:MOST_CHANGES]
    if arguments.json:
        print_json(
            budget.to_json()
            | {
                "log_lines": budget.log_lines(),
                "changes": [{"flag": change.flag, "why": change.why, "effect": change.effect} for change in changes],
                "serve_command": budget.serve_command(),
                "shortened": shortened or None,
                "workload": None if load is None else _load_json(arguments.workload, load),
            }
        )
        return 0
    if shortened:
        print(wrap(shortened) + "\n")
    _print_memory(budget)
    _print_cache(budget)
    if load is not None:
        _print_load(arguments.workload, load)
    print("\nvLLM prints:")
    for line in budget.log_lines():
        print(wrap(f"  {line}", indent="    "))
    if changes:
        print("\nWhat to change first, one at a time:")
        for change in changes:
            print(wrap(f"  {change.sentence}", indent="    "))
    print("\n" + wrap(budget.serve_command(), indent="  "))
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    """Take what was given; where something was not, what the log says."""
    given = {
        "model": arguments.model,
        "gpu": arguments.gpu,
        "max_model_len": arguments.max_model_len,
        "dtype": arguments.dtype,
        "kv_cache_dtype": arguments.kv_dtype,
        "quantization": arguments.quantization,
        "tensor_parallel_size": arguments.tp,
        "pipeline_parallel_size": arguments.pp,
        "block_size": arguments.block_size,
        "max_num_batched_tokens": arguments.max_num_batched_tokens,
        "max_num_seqs": arguments.max_num_seqs,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        "vllm_version": arguments.vllm_version,
        "available_bytes": arguments.available,
        "weights_bytes": arguments.weights,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return Options(**(given if arguments.log is None else with_log(arguments.log, given)))


def _users(budget: Budget, name: str) -> Users:
    from pagedattn_lab.workloads import WORKLOADS, load_trace, lognormal

    lengths: Iterable[tuple[int, int]]
    if name in WORKLOADS:
        lengths = islice(WORKLOADS[name](0), NUM_REQUESTS)
    elif means := _means(name):
        try:
            lengths = islice(lognormal(means, longest=budget.max_model_len), NUM_REQUESTS)
        except ValueError:
            raise ValueError(
                f"a --max-model-len of {budget.max_model_len} leaves no room for lengths around {name}: raise it, or "
                "give shorter means"
            ) from None
    else:
        lengths = ((request.prompt_len, request.output_len) for request in load_trace(name))
    return users(budget, lengths)


def _load_json(name: str, load: Users) -> dict[str, Any]:
    users = {"users": load.mean, "users_with_1_percent_risk": load.with_risk(), "users_at_end": load.at_end}
    return {"name": name, **vars(load), **users}


def _print_memory(budget: Budget) -> None:
    gpus = budget.asked.tensor_parallel_size * budget.asked.pipeline_parallel_size
    where = "" if budget.gpu is None else f" on {budget.gpu}" if gpus == 1 else f" on {gpus} of {budget.gpu}"
    print(
        wrap(
            f"{budget.model}{where}, vLLM {budget.version}: {budget.dtype}, keys and values {budget.kv_cache_dtype}, "
            f"blocks of {budget.block_size:,}, requests of up to {count(budget.max_model_len, 'token')}"
        )
    )
    for note in budget.notes:
        print(wrap(f"({note})", indent=" "))
    print(f"\n{'GiB on one GPU':<20}{'likely':>16}  range")
    is_estimated = budget.total is not None and len(budget.parts) > 1
    if is_estimated:
        _print_size("memory", budget.total)
        _print_size(f"{budget.gpu_memory_utilization:.0%} of it", _scaled(budget.total, budget.gpu_memory_utilization))
    for name, part in budget.parts:
        _print_size(f"- {name}" if is_estimated else name, part)
    _print_size("for the cache", budget.available)
    if is_estimated:
        print()
        for name, part in (("memory", budget.total), *budget.parts):
            print(wrap(f"{name}: {part.source}", indent="  "))


def _scaled(size: Estimate, share: float) -> Estimate:
    return Estimate(
        int(size.low * share), int(size.high * share), int(size.likely * share), size.exact, "its share of the GPU"
    )


def _print_size(name: str, size: Estimate) -> None:
    low, likely, high = (f"{each / GIB:,.2f}" for each in (size.low, size.likely, size.high))
    print(f"{name:<20}{likely:>16}  {'exact' if size.exact else low if low == high else f'{low} to {high}'}")


def _print_cache(budget: Budget) -> None:
    rows = [
        ("bytes per token", f"{budget.bytes_per_token:,}", "exact", ""),
        ("bytes per block", f"{budget.bytes_per_block:,}", "exact", ""),
        ("blocks per request", f"{budget.blocks_per_request:,}", "exact", _groups(budget)),
        ("blocks", f"{budget.num_blocks:,}", _span(budget, [f"{each:,}" for each in budget.num_blocks_range]), ""),
        ("tokens", f"{budget.kv_tokens:,}", _span(budget, [f"{each:,}" for each in budget.kv_tokens_range]), ""),
        (
            "requests at once",
            f"{budget.max_concurrency:.2f}x",
            _span(budget, [f"{each:.2f}x" for each in budget.max_concurrency_range]),
            "",
        ),
    ]
    print(f"\n{'the cache':<20}{'likely':>16}  range")
    for name, value, span, note in rows:
        print(wrap(f"{name:<20}{value:>16}  {span}{note and '; '}{note}", indent=" " * 38))
    if not budget.exact and budget.available.source.endswith("decimals"):
        print(wrap("The range is what the decimals of the memory leave open: vLLM counts in bytes, and prints two."))
    elif not budget.exact:
        print(wrap("The range is that of the memory: vLLM measures it at start-up, and --available takes its word."))
    if budget.max_concurrency_range[0] < 1:
        low = largest_context(budget, "low")
        print(
            wrap(
                f"With the least of it vLLM would not start; with --max-model-len {low} it would."
                if low
                else "With the least of it there is no room for a cache, and vLLM would not start."
            )
        )


def _span(budget: Budget, ends: Sequence[str]) -> str:
    return "exact" if budget.exact else ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _groups(budget: Budget) -> str:
    """What each kind of group adds; groups that are alike are one term."""
    if len(budget.groups) == 1:
        return ""
    alike = Counter((group.max_blocks_per_request(budget.limits), group.spec.kind) for group in budget.groups)
    terms = [f"{number} x {blocks:,} ({kind})" for (blocks, kind), number in alike.items()]
    return " + ".join(terms)


def _print_load(name: str, load: Users) -> None:
    what = f"Lengths spread like a lognormal around {name}" if _means(name) else Path(name).name
    refused = f" ({load.refused:,} refused)" if load.refused else ""
    said = (
        f"{what}, {count(load.num_requests, 'request')}{refused}: at a random moment a request holds "
        f"{load.mean_blocks:,.1f} blocks on average (standard deviation {load.deviation:,.1f}). {load.mean:,} at once "
        f"fill the cache on average; with {load.with_risk():,}, the cache is too small in one moment of a hundred."
    )
    print("\n" + wrap(said))


def _gpu(argument: str) -> str:
    return gpu_memory(argument)[0]


def _version(argument: str) -> str:
    vllm_version(argument)
    return argument


def _printed(argument: str) -> Estimate:
    return Estimate.printed(argument, "printed")


def _workload(argument: str) -> str:
    from pagedattn_lab.workloads.lengths import WORKLOADS

    if argument not in WORKLOADS and not _means(argument) and not Path(argument).is_file():
        raise argparse.ArgumentTypeError(
            f"{argument!r} is neither a file, nor mean tokens such as 500/200, nor one of {', '.join(WORKLOADS)}"
            f"{did_you_mean(argument, WORKLOADS)}"
        )
    return argument


def _means(argument: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", argument, re.ASCII)
    return (int(match[1]), int(match[2])) if match and int(match[1]) and int(match[2]) else None
