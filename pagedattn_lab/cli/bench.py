"""``bench``: what memory management costs on this machine."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from pagedattn_lab.bench import allocator, prefix, slots
from pagedattn_lab.cli.arguments import add_json
from pagedattn_lab.cli.output import print_json
from pagedattn_lab.cli.terminal import waiting


def add(commands: Any) -> None:
    """Add the command, with a command of its own for each benchmark."""
    benchmarks = commands.add_parser(
        "bench",
        help="measure this machine",
        description="Measure what memory management costs on this machine.",
        examples=[("bench allocator", "blocks and tokens"), ("bench prefix --json", "look-ups, for programs")],
    ).add_subparsers(dest="benchmark", required=True, metavar="{allocator,prefix}")
    for name, benchmarks_of, help_, description in (
        (
            "allocator",
            (allocator, slots),
            "what memory management costs",
            "Measure what a block operation and an appended token cost in pools of 1,000, 30,000 and 1,000,000 "
            "blocks, and what a manager's allocate_slots costs. It takes some 20 seconds.",
        ),
        (
            "prefix",
            (prefix,),
            "what a prefix cache costs",
            "Measure what it costs to look a prompt up and to find blocks for it, for prompts of 1,024 to 131,072 "
            "tokens, cached and not, by hash and with a radix tree. It takes some 15 seconds.",
        ),
    ):
        examples = [(f"bench {name}", "a table"), (f"bench {name} --json", "the same for programs")]
        parser = benchmarks.add_parser(name, help=help_, description=description, examples=examples)
        add_json(parser)
        parser.set_defaults(run=run, modules=benchmarks_of)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print what was measured."""
    report: dict[str, Any] = {}
    for module in arguments.modules:
        with waiting("measuring") if module is slots else nullcontext():  # the others show a bar of their own
            report |= module.measure()
    if arguments.json:
        print_json(report)
    else:
        print("\n".join(module.describe(report) for module in arguments.modules))
    return 0
