"""``waste``: where KV memory goes with the paper's four allocators."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import UNITS_HELP, count
from pagedattn_lab.cli.arguments import add_json, at_least, name_or_file, positive, rate, seed, size
from pagedattn_lab.cli.output import memory, print_json
from pagedattn_lab.cli.terminal import paint, say, waiting, wrap
from pagedattn_lab.studies import memory_shares
from pagedattn_lab.studies.paper import FIG_2, OPT_13B, PAPER_BUDGET
from pagedattn_lab.studies.report import Report
from pagedattn_lab.workloads import WORKLOADS, Fit, TraceRequest, arrive, load_trace

MOST_BLOCKS = 10_000_000
"""Most blocks that ``waste`` makes: each costs Python some hundred bytes."""

COLOURS = ("blue", "yellow", "magenta", "grey")
"""Of token states, reservation, internal and external waste, on a terminal."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "waste",
        help="show where KV memory goes with the paper's four allocators",
        description="Serve one load with each of the four allocators that Kwon et al. 2023 compare, and show where the "
        "memory for keys and values goes. Model and machine are the paper's: OPT-13B, one A100; time is a roofline.",
        examples=[
            ("waste", "the paper's load and memory"),
            ("waste --budget 24GiB --model-len 4096", "more memory, and requests that may be longer"),
            ("waste --workload trace.csv --requests 1000", "the beginning of a trace of yours"),
        ],
    )
    parser.add_argument(
        "--workload",
        type=name_or_file(WORKLOADS),
        default="sharegpt",
        metavar="NAME|FILE",
        help=f"{', '.join(WORKLOADS)}, or a trace, gzipped or not: Azure's CSV or Mooncake's JSON (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--model-len",
        type=at_least(2),
        default=2048,
        metavar="N",
        help="most tokens in prompt and output together; longer prompts are refused, longer outputs cut "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        type=size,
        default=PAPER_BUDGET,
        metavar="SIZE",
        help=f"KV memory for OPT-13B, such as 12GiB or 12GB: {UNITS_HELP} (default: 12GiB)",
    )
    parser.add_argument(
        "--block-size", type=positive, default=16, metavar="N", help="tokens per block (default: %(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=rate,
        metavar="R",
        help="requests per second, as a Poisson process; inf: all wait from the start "
        "(default: inf; of a trace, its own arrival times)",
    )
    parser.add_argument(
        "--requests", type=positive, metavar="N", help="the first N requests (default: 10000; of a trace, all)"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of lengths and arrivals (default: %(default)s)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the load with every allocator, and print what they did with their memory."""
    requests, arrivals = _requests(arguments)
    fit = Fit(requests(), arguments.model_len)
    num_served = sum(1 for _ in fit)
    num_requests = num_served + fit.refused
    if not num_served:
        raise ValueError(
            f"all {num_requests:,} requests are refused, since their prompts leave no room for an output within "
            f"{arguments.model_len:,} tokens: raise --model-len"
        )
    num_slots = arguments.budget // OPT_13B.bytes_per_token
    if num_slots < 2 * arguments.block_size:
        raise ValueError(
            f"{memory(arguments.budget)} hold {count(num_slots, 'token')} of OPT-13B, less than two blocks of "
            f"{arguments.block_size:,}: raise --budget or lower --block-size"
        )
    if num_slots // arguments.block_size > MOST_BLOCKS:
        raise ValueError(
            f"{memory(arguments.budget)} make more than {MOST_BLOCKS:,} blocks of {arguments.block_size}: "
            "lower --budget (a plain number means GiB) or raise --block-size"
        )
    with waiting(f"serving {count(num_served, 'request')} with four allocators"):
        reports = memory_shares.compare(requests, num_slots, arguments.model_len, arguments.block_size, progress=False)
    report = {
        "workload": arguments.workload,
        "model_len": arguments.model_len,
        "budget_bytes": arguments.budget,
        "num_slots": num_slots,
        "block_size": arguments.block_size,
        "rate": arguments.rate if arrivals == "poisson" else None,
        "arrivals": arrivals,
        "seed": arguments.seed,
        "num_requests": num_requests,
        "refused": fit.refused,
        "cut": fit.cut,
        "allocators": {
            name: {key: value for key, value in vars(of).items() if key != "samples"} for name, of in reports.items()
        },
    }
    if not all(math.isfinite(value) for row in report["allocators"].values() for value in row.values()):
        raise ValueError("the load lasts longer than can be computed with: give a higher --rate")
    if arguments.json:
        print_json(report)
    else:
        _print(report, reports)
    if not all(of.requests_per_second for of in reports.values()):
        say(
            "too few requests for an average: with some allocator the last of them was admitted before any was "
            "finished: raise --requests",
            arguments.command,
        )
    if fit.refused or fit.cut:
        say(
            f"refused {fit.refused:,}, cut {fit.cut:,} at {arguments.model_len:,} tokens: raise --model-len to serve "
            "them in full",
            arguments.command,
        )
    return 0


def _print(report: Mapping[str, Any], reports: Mapping[str, Report]) -> None:
    how = {"saturated": "all waiting from the start", "trace": "arriving as in the trace"}
    print(
        wrap(
            f"{Path(report['workload']).name}: {count(report['num_requests'], 'request')} "
            f"({report['refused']:,} refused, {report['cut']:,} cut), "
            + how.get(report["arrivals"], f"{report['rate']} per second")
        )
    )
    print(
        wrap(
            f"OPT-13B on one A100, at most {report['model_len']:,} tokens per request; "
            f"{memory(report['budget_bytes'])} hold {report['num_slots']:,}; blocks of {report['block_size']:,}."
        )
    )
    print("Averages until the last request has been admitted:\n")
    print(memory_shares.table(reports) + "\n")
    characters = memory_shares.BLOCKS if _can_print(memory_shares.BLOCKS) else memory_shares.ASCII
    print(_painted(memory_shares.bars(reports, ascii_only=characters == memory_shares.ASCII), characters))
    setting = [report[key] for key in ("workload", "model_len", "budget_bytes", "block_size", "arrivals")]
    if setting == ["sharegpt", 2048, PAPER_BUDGET, 16, "saturated"]:
        paper = ", ".join(f"{row['token_states']:.1%}" for row in FIG_2.values())
        print("\n" + wrap(f"Token states in the paper's Fig. 2, in this order: {paper}."))


def _requests(arguments: argparse.Namespace) -> tuple[Callable[[], Iterable[TraceRequest]], str]:
    """What makes the load anew for each allocator, and how requests arrive."""
    name, seed, num_requests = arguments.workload, arguments.seed, arguments.requests
    if name in WORKLOADS:
        num_requests = num_requests or 10_000
        rate = arguments.rate or math.inf

        def lengths() -> Iterable[tuple[int, int]]:
            return WORKLOADS[name](seed)
    else:
        trace = load_trace(name)
        rate = arguments.rate
        if rate is None:
            return lambda: islice(trace, num_requests), "trace"

        def lengths() -> Iterable[tuple[int, int]]:
            return ((request.prompt_len, request.output_len) for request in trace)

    return lambda: arrive(islice(lengths(), num_requests), rate, seed), "poisson" if rate < math.inf else "saturated"


def _painted(bars: str, characters: str) -> str:
    """Give each kind of memory a colour beside its character, the same in its bars and in the legend below them."""
    colours = dict(zip(characters, COLOURS, strict=False))  # what is free has none
    return re.sub("|".join(f"{re.escape(each)}+" for each in colours), lambda of: paint(of[0], colours[of[0][0]]), bars)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
