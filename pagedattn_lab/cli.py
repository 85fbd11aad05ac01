"""The command line: ``python -m pagedattn_lab {doctor, generate, waste, bench}``.

Results go to standard output, messages to standard error. Exit status: 0, 1 (it could not), 2 (wrong usage).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from pagedattn_lab import bench, waste
from pagedattn_lab.roofline import OPT_13B
from pagedattn_lab.workloads import WORKLOADS, Fit, TraceRequest, arrive, load_trace

UNITS = {"": 2**30, "gib": 2**30, "mib": 2**20, "gb": 10**9, "mb": 10**6}
"""Bytes per unit of a ``--budget``."""

MOST_BLOCKS = 10_000_000
"""Most blocks that ``waste`` makes: each costs Python some hundred bytes."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    arguments = _parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal without UTF-8 gets escapes rather than an error half-way
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing more can be written to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # a command line answers with a sentence; a traceback is for the library's callers
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"pagedattn_lab {arguments.command}: {message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pagedattn_lab", description="Paged attention on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{doctor,generate,waste,bench}")

    doctor = commands.add_parser("doctor", help="say whether the book will run here, and how")
    doctor.set_defaults(run=_doctor)

    generate = commands.add_parser("generate", help="answer a prompt through the paged cache")
    generate.add_argument("prompt", type=_text)
    generate.add_argument("--model", type=_text, help="a Hugging Face id or a folder (default: the book's model)")
    generate.add_argument("--max-tokens", type=_positive, default=64, help="default: %(default)s")
    generate.add_argument("--attention", choices=("auto", "reference", "triton"), default="auto")
    generate.add_argument("--block-size", type=_positive, default=16, help="tokens per block (default: %(default)s)")
    generate.set_defaults(run=_generate)

    waste_ = commands.add_parser(
        "waste",
        help="show where KV memory goes with the paper's four allocators",
        description="Serve one load with each of the four allocators that Kwon et al. 2023 compare, and show where the "
        "memory for keys and values goes. Model and machine are the paper's: OPT-13B, one A100; time is a roofline.",
    )
    waste_.add_argument(
        "--workload",
        type=_workload,
        default="sharegpt",
        metavar="NAME|FILE",
        help=f"{', '.join(WORKLOADS)}, or a trace: Azure's CSV or Mooncake's JSONL (default: %(default)s)",
    )
    waste_.add_argument(
        "--model-len",
        type=_at_least(2),
        default=2048,
        metavar="N",
        help="most tokens in prompt and output together; longer prompts are refused, longer outputs cut "
        "(default: %(default)s)",
    )
    waste_.add_argument(
        "--budget",
        type=_size,
        default=waste.PAPER_BUDGET,
        metavar="SIZE",
        help="KV memory for OPT-13B: 12GiB, 500MiB, 12GB, 500MB; a plain number means GiB (default: 12GiB)",
    )
    waste_.add_argument(
        "--block-size", type=_positive, default=16, metavar="N", help="tokens per block (default: %(default)s)"
    )
    waste_.add_argument(
        "--rate",
        type=_rate,
        metavar="R",
        help="requests per second, as a Poisson process; inf: all wait from the start "
        "(default: inf; of a trace, its own arrival times)",
    )
    waste_.add_argument(
        "--requests", type=_positive, metavar="N", help="the first N requests (default: 10000; of a trace, all)"
    )
    waste_.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of lengths and arrivals (default: %(default)s)"
    )
    waste_.set_defaults(run=_waste)

    benchmarks = commands.add_parser("bench", help="measure this machine").add_subparsers(
        dest="benchmark", required=True, metavar="{allocator}"
    )
    allocator = benchmarks.add_parser(
        "allocator",
        help="what memory management costs",
        description="Measure what a block operation and an appended token cost in pools of 1,000, 30,000 and 1,000,000 "
        "blocks. It takes some 10 seconds.",
    )
    allocator.set_defaults(run=_bench_allocator)

    for command in (doctor, generate, waste_, allocator):
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def _text(argument: str) -> str:
    if not argument.strip():
        raise argparse.ArgumentTypeError("it is empty")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not valid UTF-8") from None
    return argument


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(argument: str) -> int:
        try:
            number = int(argument)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{argument!r} is not a whole number of at least {least}")
        return number

    return whole_number


_positive = _at_least(1)


def _size(argument: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([a-z]*)", argument.strip().lower(), flags=re.ASCII)
    size = int(Fraction(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if not size:
        raise argparse.ArgumentTypeError(
            f"{argument!r} is not a size above 0: write 12GiB, 500MiB, 12GB or 500MB; a plain number means GiB"
        )
    return size


def _rate(argument: str) -> float:
    try:
        rate = float(argument)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise argparse.ArgumentTypeError(f"{argument!r} is neither a number above 0 nor inf")
    return rate


def _workload(argument: str) -> str:
    if argument not in WORKLOADS and not Path(argument).is_file():
        raise argparse.ArgumentTypeError(f"{argument!r} is neither a file nor one of {', '.join(WORKLOADS)}")
    return argument


def _doctor(arguments: argparse.Namespace) -> int:
    from pagedattn_lab.doctor import examine

    report = examine()
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"device         {report['device']}")
        print(f"models in      {report['cache_directory']}")
        for name, version in report["versions"].items():
            print(f"{name:<14} {version or 'not installed'}")
        for check in report["checks"]:
            print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
        print("The book will run here." if report["ok"] else "The book will not run here in full: see FAIL above.")
    return 0 if report["ok"] else 1


def _generate(arguments: argparse.Namespace) -> int:
    from pagedattn_lab import models
    from pagedattn_lab.block_table import BlockTable
    from pagedattn_lab.model_runner import ModelRunner, generate_greedily

    name = arguments.model or models.DEFAULT
    model, tokenizer = models.load(name)
    prompt = models.encode_prompt(tokenizer, arguments.prompt)
    total = len(prompt) + arguments.max_tokens
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and total > longest:
        raise ValueError(
            f"{len(prompt)} prompt tokens and {arguments.max_tokens} more exceed the model's {longest}: "
            "shorten the prompt or lower --max-tokens"
        )
    num_blocks = -(-total // arguments.block_size) + 1
    runner = ModelRunner(model, num_blocks, arguments.block_size, arguments.attention)
    output: list[int] = []
    printed = ""
    usage: dict[str, Any] = {}

    def on_token(_: int, token: int, table: BlockTable) -> None:
        nonlocal printed
        output.append(token)
        usage.update(blocks_used=len(table.blocks), cached_tokens=table.num_tokens, empty_slots=table.num_empty_slots)
        text = tokenizer.decode(output, skip_special_tokens=True)
        if not arguments.json and not text.endswith("\ufffd"):  # half a character: wait for the rest
            print(text[len(printed) :], end="", flush=True)
            printed = text

    generate_greedily(
        runner, runner.new_pool(), [prompt], arguments.max_tokens, models.stop_token_ids(model, tokenizer), on_token
    )
    text = tokenizer.decode(output, skip_special_tokens=True)
    slots = usage["blocks_used"] * arguments.block_size
    report = {
        "text": text,
        "model": name,
        "prompt_tokens": len(prompt),
        "output_tokens": len(output),
        "block_size": arguments.block_size,
        **usage,
        "bytes": usage["blocks_used"] * runner.cache.shape.bytes_per_block(arguments.block_size),
        "waste": usage["empty_slots"] / slots,
    }
    if arguments.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(text[len(printed) :])
        print(
            f"\n{report['prompt_tokens']} prompt tokens, {report['output_tokens']} new; {report['cached_tokens']} "
            f"cached in {report['blocks_used']} blocks of {report['block_size']}: {report['bytes']:,} bytes, "
            f"{report['waste']:.1%} of them empty slots"
        )
    return 0


def _waste(arguments: argparse.Namespace) -> int:
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
            f"{arguments.budget:,} bytes hold {num_slots:,} tokens of OPT-13B, less than two blocks of "
            f"{arguments.block_size:,}: raise --budget or lower --block-size"
        )
    if num_slots // arguments.block_size > MOST_BLOCKS:
        raise ValueError(
            f"{arguments.budget // waste.GIB:,} GiB make more than {MOST_BLOCKS:,} blocks of {arguments.block_size}: "
            "lower --budget (a plain number means GiB) or raise --block-size"
        )
    reports = waste.compare(requests, num_slots, arguments.model_len, arguments.block_size, total=num_served)
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
        print(json.dumps(report, indent=1))
    else:
        _print_waste(report, reports)
    if not all(of.requests_per_second for of in reports.values()):
        print(
            "pagedattn_lab waste: too few requests for an average: with some allocator the last of them was admitted "
            "before any was finished: raise --requests",
            file=sys.stderr,
        )
    if fit.refused or fit.cut:
        print(
            f"pagedattn_lab waste: refused {fit.refused:,}, cut {fit.cut:,} at {arguments.model_len:,} tokens: "
            "raise --model-len to serve them in full",
            file=sys.stderr,
        )
    return 0


def _print_waste(report: Mapping[str, Any], reports: Mapping[str, waste.Report]) -> None:
    requests = "request" if report["num_requests"] == 1 else "requests"
    how = {"saturated": "all waiting from the start", "trace": "arriving as in the trace"}
    print(
        f"{Path(report['workload']).name}: {report['num_requests']:,} {requests} "
        f"({report['refused']:,} refused, {report['cut']:,} cut), "
        + how.get(report["arrivals"], f"{report['rate']} per second")
    )
    size = f"{report['budget_bytes'] / waste.GIB:,.4g} GiB"
    print(
        f"OPT-13B on one A100, at most {report['model_len']:,} tokens per request; "
        f"{size} hold {report['num_slots']:,}; blocks of {report['block_size']:,}."
    )
    print("Averages until the last request has been admitted:\n")
    print(waste.table(reports) + "\n")
    print(waste.bars(reports, ascii_only=not _can_print(waste.BLOCKS)))
    setting = [report[key] for key in ("workload", "model_len", "budget_bytes", "block_size", "arrivals")]
    if setting == ["sharegpt", 2048, waste.PAPER_BUDGET, 16, "saturated"]:
        paper = ", ".join(f"{row['token_states']:.1%}" for row in waste.FIG_2.values())
        print(f"\nToken states in the paper's Fig. 2, in the same order: {paper}.")


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


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _bench_allocator(arguments: argparse.Namespace) -> int:
    report = bench.allocator()
    print(json.dumps(report, indent=1) if arguments.json else bench.describe(report))
    return 0
