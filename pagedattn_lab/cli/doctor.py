"""``doctor``: will the book run here?"""

from __future__ import annotations

import argparse
from typing import Any

from pagedattn_lab.cli.arguments import add_json
from pagedattn_lab.cli.output import print_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="say whether the book will run here, and how")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what the machine has, and what fails."""
    from pagedattn_lab.doctor import examine

    report = examine()
    if arguments.json:
        print_json(report)
    else:
        print(f"device         {report['device']}")
        print(f"models in      {report['cache_directory'] or 'no folder'}")
        for name, version in report["versions"].items():
            print(f"{name:<14} {version or 'not installed'}")
        for check in report["checks"]:
            print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
        print("The book will run here." if report["ok"] else "The book will not run here in full: see FAIL above.")
    return 0 if report["ok"] else 1
