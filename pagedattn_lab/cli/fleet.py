"""``fleet``: what a router does with many replicas, each with a prefix cache of its own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pagedattn_lab.arithmetic import count
from pagedattn_lab.cli.arguments import add_json, blocks, finite, name_or_file, positive, seed
from pagedattn_lab.cli.output import did_you_mean, print_json
from pagedattn_lab.cli.terminal import WIDTH, waiting, wrap
from pagedattn_lab.studies.fleet import ROUTERS, FleetReport
from pagedattn_lab.studies.fleet.sweep import CHAT, CHAT_BLOCK_SIZE, CHAT_REQUESTS, Point, grid, run_point, sweep
from pagedattn_lab.studies.hit_rates import MOONCAKE_BLOCK_SIZE

FORMAT = "JSON objects with timestamp, input_length, output_length and hash_ids, as in Mooncake's traces"
"""What a file must be."""

FIGURES = ("hit_rate", "requests_per_s", "ttft_mean_s", "ttft_p99_s", "imbalance")
"""What is said of each point."""


def router(argument: str) -> str:
    """A router's name."""
    if argument not in ROUTERS:
        meant = did_you_mean(argument, ROUTERS) or f": choose from {', '.join(ROUTERS)}"
        raise argparse.ArgumentTypeError(f"there is no router {argument!r}{meant}")
    return argument


def rate(argument: str) -> float:
    """A finite number above 0."""
    try:
        number = finite(argument)
    except argparse.ArgumentTypeError:
        number = 0.0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a finite number above 0")
    return number


SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "router": ("router", router),
    "replicas": ("num_replicas", positive),
    "blocks": ("num_blocks", blocks),
    "block-size": ("block_size", positive),
    "rate": ("rate", rate),
    "seed": ("seed", seed),
}
"""What a setting is called in a point and in JSON, and what reads it, by the name of its option."""


def setting(argument: str) -> tuple[str, list[Any]]:
    """A setting and the values that it is to have, as ``--sweep`` takes them."""
    name, equals, values = argument.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(
            f"{argument!r} is not a setting with its values, such as blocks=100,200; a log stands before --sweep"
        )
    if name not in SETTINGS:
        meant = did_you_mean(name, SETTINGS) or f": choose from {', '.join(SETTINGS)}"
        raise argparse.ArgumentTypeError(f"there is no setting {name!r}{meant}")
    read = SETTINGS[name][1]
    try:
        return name, [read(value) for value in values.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None


def scheduler(argument: str) -> str:
    """The address of a Dask scheduler."""
    if not re.fullmatch(r"(tcp|tls|ws|wss)://\S+:[0-9]{1,5}", argument):
        raise argparse.ArgumentTypeError(f"{argument!r} is not an address such as tcp://ada:8786")
    return argument


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "fleet",
        help="say what a router does with many replicas",
        usage="%(prog)s [options] [log]",  # as a list, what excludes one another is wider than a terminal
        description="Simulate replicas, each a server with a prefix cache of its own, and a router that chooses one "
        "for each request. The hit rate is the number of tokens found in cached blocks over those in all prompts; "
        "time to first token runs from a request's arrival; imbalance is how long the busiest replica works, over the "
        "mean of all. Times are those of a model: Llama 3.1 8B on A100 cards, at best.",
        examples=[
            ("fleet --router round-robin", "conversations on 8 replicas, each in turn"),
            ("fleet trace.jsonl --replicas 4 --blocks 2000", "a request log in Mooncake's format"),
            ("fleet --sweep router=random,prefix blocks=500,1000", "four simulations, one after the other"),
            ("fleet --sweep seed=1,2,3,4 --workers 2", "the same on two processes of this machine"),
            ("fleet --sweep rate=2,4,8 --scheduler tcp://ada:8786", "on the workers of a Dask cluster"),
        ],
    )
    parser.add_argument(
        "log",
        nargs="?",
        type=name_or_file((CHAT,)),
        default=CHAT,
        help=f"a file, gzipped or not, with {FORMAT}, or {CHAT}: conversations made for the purpose (default: {CHAT})",
    )
    parser.add_argument(
        "--requests",
        type=positive,
        metavar="N",
        help=f"the first N requests (default: of a file all, {CHAT_REQUESTS} else)",
    )
    one = parser.add_argument_group("settings")
    for name, metavar, help_ in (
        ("router", "NAME", f"who chooses a replica: {', '.join(ROUTERS)} (default: {Point.router})"),
        ("replicas", "N", f"how many there are (default: {Point.num_replicas})"),
        ("blocks", "N|unlimited", f"blocks in the cache of each (default: {Point.num_blocks})"),
        (
            "block-size",
            "N",
            f"tokens per block (default: {MOONCAKE_BLOCK_SIZE} for a file, {CHAT_BLOCK_SIZE} else)",
        ),
        ("rate", "R", "requests per second, as a Poisson process (default: of a file its own arrival times, 1 else)"),
        ("seed", "N", f"of everything that happens by chance (default: {Point.seed})"),
    ):
        one.add_argument(f"--{name}", type=SETTINGS[name][1], metavar=metavar, default=argparse.SUPPRESS, help=help_)
    several = parser.add_argument_group("several simulations")
    several.add_argument(
        "--sweep",
        type=setting,
        nargs="+",
        action="extend",
        metavar="NAME=A,B",
        help="settings, by the names of their options, and the values to combine",
    )
    where = several.add_mutually_exclusive_group()
    where.add_argument("--workers", type=positive, metavar="N", help="processes of this machine that share the work")
    where.add_argument(
        "--scheduler",
        type=scheduler,
        metavar="ADDRESS",
        help="of a Dask cluster whose workers share the work; they read a log by the same path",
    )
    add_json(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Simulate one point or several, and print what they were like."""
    points, swept = _points(arguments)
    if arguments.sweep is None and arguments.workers is None and arguments.scheduler is None:
        with waiting("simulating the fleet"):
            results = [(points[0], run_point(points[0], arguments.log, arguments.requests))]
    else:
        with _workers(arguments) as executor:
            results = sweep(points, executor, arguments.log, num_requests=arguments.requests)
    rows = [_row(point, report, arguments.log) for point, report in results]
    if arguments.json:
        about = {"log": arguments.log}
        print_json(about | (rows[0] if arguments.sweep is None else {"points": rows}))
    elif arguments.sweep is None:
        _print(arguments.log, rows[0])
    else:
        _print_all(arguments.log, swept, rows)
    return 0


def _points(arguments: argparse.Namespace) -> tuple[list[Point], list[str]]:
    """What is simulated, and the names of the options that are swept."""
    fixed = {name: getattr(arguments, name.replace("-", "_"), None) for name in SETTINGS}
    given = {name for name in SETTINGS if hasattr(arguments, name.replace("-", "_"))}
    swept = [name for name, _ in arguments.sweep or []]
    for name in swept:
        if swept.count(name) > 1:
            arguments.refuse(f"--sweep has {name} twice: give all its values at once, with commas between them")
        if name in given:
            arguments.refuse(f"{name} has a value of --{name} and others of --sweep: leave one out")
    settings: dict[str, Any] = {SETTINGS[name][0]: fixed[name] for name in SETTINGS if name in given}
    settings |= {SETTINGS[name][0]: values for name, values in arguments.sweep or []}
    return grid(**settings), swept


def _workers(arguments: argparse.Namespace) -> Any:
    """Whoever runs the points, to be closed behind them; nobody else if nothing is said."""
    if arguments.workers is None and arguments.scheduler is None:
        return nullcontext()
    from pagedattn_lab.studies.fleet.cluster import Cluster

    return Cluster(arguments.scheduler, workers=arguments.workers)


def _row(point: Point, report: FleetReport, log: str) -> dict[str, Any]:
    """A point's settings and figures, as JSON has them."""
    return {
        "router": point.router,
        "num_replicas": point.num_replicas,
        "num_blocks": point.num_blocks,
        "block_size": point.block_size_for(log),
        "rate": point.rate,
        "seed": point.seed,
        "num_requests": report.num_requests,
        "num_refused": report.num_refused,
        **{name: getattr(report, name) for name in FIGURES},
    }


def _print(log: str, row: Mapping[str, Any]) -> None:
    room = "unlimited" if row["num_blocks"] is None else count(row["num_blocks"], "block")
    rows = {
        "log": f"{Path(log).name}, {count(row['num_requests'], 'request')}",
        "replicas": f"{row['num_replicas']:,}",
        "cache of each": f"{room} of {count(row['block_size'], 'token')}",
        "router": row["router"],
        "hit rate": f"{row['hit_rate']:>13.1%}",
        "requests per second": f"{row['requests_per_s']:>13,.2f}",
        "time to first token": f"{row['ttft_mean_s']:>13,.3f} s on average",
        "": f"{row['ttft_p99_s']:>13,.3f} s for 99 in 100",
        "imbalance": f"{row['imbalance']:>13.2f}",
    }
    for key, value in rows.items():
        print(wrap(f"{key:<22}{value}", indent=" " * 22))


def _print_all(log: str, swept: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each point: what is swept, and the figures."""
    table = [[_text(row[SETTINGS[name][0]]) for name in swept] for row in rows]
    for line, row in zip(table, rows, strict=True):
        line.append(f"{row['hit_rate']:.1%}")
        line.append(f"{row['requests_per_s']:,.2f}")
        line += [f"{row[name]:,.3f}" for name in ("ttft_mean_s", "ttft_p99_s")]
        line.append(f"{row['imbalance']:.2f}")
    heads = [*swept, "hit rate", "requests/s", "TTFT s", "99% s", "imbalance"]
    widths = [max(map(len, column)) for column in zip(heads, *table, strict=True)]
    num_requests = {row["num_requests"] for row in rows}
    print(f"{Path(log).name}, {count(max(num_requests), 'request')}, {count(len(rows), 'point')}")
    if sum(widths) + 2 * (len(widths) - 1) > WIDTH:  # so many settings that a table would not fit
        for line in table:
            print(wrap(", ".join(f"{head} {cell}" for head, cell in zip(heads, line, strict=True)), indent="  "))
        return
    for line in (heads, *table):
        cells = [f"{cell:<{width}}" for cell, width in zip(line[:1], widths[:1], strict=True)]
        cells += [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return "unlimited"
    return f"{value:,}" if isinstance(value, int) else str(value)
