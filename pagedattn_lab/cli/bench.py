"""``bench``: what memory management, attention and a whole engine cost on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from pagedattn_lab.cli.arguments import add_json, at_least, positive
from pagedattn_lab.cli.output import print_json
from pagedattn_lab.cli.terminal import waiting


def add(commands: Any) -> None:
    """Add the command, with a command of its own for each benchmark."""
    names = "{allocator,prefix,attention,step,tier,engine}"
    bench = commands.add_parser(
        "bench",
        help="measure this machine",
        usage=f"%(prog)s [-h]\n         {names}",  # behind the command's name it is wider than a terminal
        description="Measure what memory management, attention and a whole engine cost on this machine.",
        examples=[("bench allocator", "blocks and tokens"), ("bench prefix --json", "look-ups, for programs")],
    )
    benchmarks = bench.add_subparsers(dest="benchmark", required=True, metavar=names, prog=bench.prog)
    for name, benchmarks_of, help_, description in (
        (
            "allocator",
            ("allocator", "slots"),
            "what memory management costs",
            "Measure what a block operation and an appended token cost in pools of 1,000, 30,000 and 1,000,000 "
            "blocks, and what a manager's allocate_slots costs. It takes some 20 seconds.",
        ),
        (
            "prefix",
            ("prefix",),
            "what a prefix cache costs",
            "Measure what it costs to look a prompt up and to find blocks for it, for prompts of 1,024 to 131,072 "
            "tokens, cached and not, by hash and with a radix tree. It takes some 15 seconds.",
        ),
        (
            "attention",
            ("attention", "attention_gpu"),
            "what attention costs, beside the speed of memory",
            "Measure attention of a decode step through a page table, by the CPU kernel and by torch on contiguous and "
            "on gathered keys and values, on one thread and on all, in float32 and bfloat16; on a GPU too if there "
            "is one. It takes some two minutes.",
        ),
        (
            "step",
            ("step",),
            "where a decode step's time goes",
            "Measure how much of a decode step of the book's model goes into linear layers, attention and everything "
            "else, for 64 sequences of 300 tokens on one thread. It takes some 20 seconds.",
        ),
    ):
        examples = [(f"bench {name}", "a table"), (f"bench {name} --json", "the same for programs")]
        parser = benchmarks.add_parser(name, help=help_, description=description, examples=examples)
        add_json(parser)
        parser.set_defaults(run=run, modules=benchmarks_of)
    _add_tier(benchmarks)
    _add_engine(benchmarks)


def _add_tier(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "tier",
        help="from which length on it pays to copy from host memory",
        description="Measure how long the first token of a conversation takes when it comes back: its keys and values "
        "computed again, copied from host memory, or still on the device, for 128 to 4,096 tokens of the book's model "
        "on one thread; beside it, what a roofline says of Llama-3.1-8B on an H100. It takes some five minutes.",
        examples=[
            ("bench tier", "a table"),
            ("bench tier --quick", "whether everything works"),
            ("bench tier --json", "the same for programs"),
        ],
    )
    parser.add_argument("--quick", action="store_true", help="short conversations: only to see it work")
    add_json(parser)
    parser.set_defaults(run=run_tier)


def _add_engine(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "engine",
        help="how many tokens per second an engine gives, and its rivals",
        description="Serve 64 ragged requests with the book's model on one thread: by the book's engine with a fused "
        "loop and through transformers' modules, with paged and with contiguous KV memory of the same size, by "
        "transformers' own ways to batch, and with a shared prefix, cached and not. It takes half an hour or more. "
        "The dearer a prompt, the more a cache saves: with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 a CPU with units for "
        "matrices (AMX) goes without them.",
        examples=[
            ("bench engine --quick", "whether everything works"),
            ("bench engine --parts policies --json", "one comparison, for programs"),
            ("bench engine --vllm-python python3", "beside vLLM, if that Python has it"),
        ],
    )
    parser.add_argument(
        "--parts", nargs="+", choices=("systems", "policies", "transformers", "prefix"), metavar="PART",
        help="what to compare: systems, policies, transformers, prefix (default: all)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="very few and short requests: only to see it work")
    parser.add_argument("--repetitions", type=at_least(2), metavar="N", help="runs of each engine (default: 3)")
    parser.add_argument(
        "--kv-seqs", type=positive, metavar="N",
        help="KV memory that policies share, in requests of 2,048 tokens (default: 8)",
    )  # fmt: skip
    parser.add_argument("--vllm-python", type=program, metavar="PATH", help="a Python that has vLLM: measure it too")
    add_json(parser)
    parser.set_defaults(run=run_engine)


def program(argument: str) -> str:
    """The name or path of a program that can be run; gives its path, not resolved: a link may be a virtual one's."""
    found = shutil.which(os.path.expanduser(argument))
    if found is None:
        raise argparse.ArgumentTypeError(f"{argument!r} is no program that can be run")
    return os.path.abspath(found)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print what was measured."""
    # Before torch is loaded: its threads would spin for a while after each operation, on a core that the kernel wants.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    modules = [importlib.import_module(f"pagedattn_lab.bench.{name}") for name in arguments.modules]
    report: dict[str, Any] = {}
    for name, module in zip(arguments.modules, modules, strict=True):
        with waiting("measuring") if name in ("slots", "step") else nullcontext():  # the others show a bar of their own
            report |= module.measure()
    if arguments.json:
        print_json(report)
    else:
        print("\n".join(module.describe(report) for module in modules))
    return 0


def run_tier(arguments: argparse.Namespace) -> int:
    """Measure conversations that come back, and print what was measured."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from pagedattn_lab.bench import tier

    report = tier.measure(tier.QUICK_LENGTHS, repetitions=2) if arguments.quick else tier.measure()
    if arguments.json:
        print_json(report)
    else:
        print(tier.describe(report))
    return 0


def run_engine(arguments: argparse.Namespace) -> int:
    """Compare engines, and print what was measured."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from pagedattn_lab.bench import engine

    chosen = {name: getattr(arguments, name) for name in ("repetitions", "kv_seqs", "vllm_python")}
    setup = replace(
        engine.QUICK if arguments.quick else engine.Setup(),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    report = engine.measure(arguments.parts or tuple(engine.PARTS), setup)
    if arguments.json:
        print_json(report)
    else:
        print(engine.describe(report))
    return 0
