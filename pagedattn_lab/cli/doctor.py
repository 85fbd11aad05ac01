"""``doctor``: will the book run here?"""

from __future__ import annotations

import argparse
from typing import Any

from pagedattn_lab.cli.arguments import add_json
from pagedattn_lab.cli.output import print_json
from pagedattn_lab.cli.terminal import paint, waiting, wrap


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="say whether the book will run here, and how",
        description="Say what this machine has, run the kernel once, and compare the model with its hashes.",
        examples=[("doctor", "a report for people"), ("doctor --json", "the same for programs")],
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what the machine has, and what fails."""
    from pagedattn_lab.doctor import examine

    with waiting("examining this machine"):
        report = examine()
    if arguments.json:
        print_json(report)
    else:
        print(f"device         {report['device']}")
        print(f"models in      {report['cache_directory'] or 'no folder'}")
        for name, version in report["versions"].items():
            print(f"{name:<14} {version or 'not installed'}")
        for check in report["checks"]:
            mark = paint("ok  ", "green") if check["ok"] else paint("FAIL", "red")
            print(mark + wrap(f"     {check['name']}: {check['detail']}", indent=" " * 5)[4:])
        print(
            paint("The book will run here.", "green")
            if report["ok"]
            else paint("The book will not run here in full: see FAIL above.", "red")
        )
    return 0 if report["ok"] else 1
