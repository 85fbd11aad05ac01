"""Many simulations of a fleet, one after the other or side by side, with the same figures either way (chapter 11).

A point is one setting: a router, a number of replicas, and so on. What a worker is sent is the point and the name of a
load. It makes the requests itself, from the point's seed or from a file, so nothing large travels, and where a point
runs cannot change its figures.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice, product
from queue import SimpleQueue
from typing import Any

from pagedattn_lab.arithmetic import at_least_one, count
from pagedattn_lab.studies.fleet import ROUTERS, FleetReport, chat_requests, log_requests, simulate
from pagedattn_lab.studies.hit_rates import MOONCAKE_BLOCK_SIZE

CHAT = "chat"
"""The load that is made by chance; any other is the path of a request log."""

CHAT_BLOCK_SIZE = 16
"""Tokens per block of :data:`CHAT`, unless a point says otherwise; of a log, those of Mooncake's."""

CHAT_REQUESTS = 10_000
"""Requests of :data:`CHAT`, which has no end, unless another number is given."""

RETRIES = 2
"""How often in a row workers may be lost without a point having ended."""


class PointFailedError(RuntimeError):
    """A point that raised an exception, or whose workers were lost again and again. Its message names the point."""


@dataclass(frozen=True)
class Point:
    """One setting of a fleet, to be simulated.

    Attributes:
        router: a name of :data:`pagedattn_lab.studies.fleet.prefix_routers.ROUTERS`, or a router of your own. The point
            keeps a copy of it as it is now, and each run gets a copy of that; on other machines its class must be there
            to be imported. A function cannot be copied, so one that keeps something from call to call, in a global
            variable or a closure, takes it from run to run: make it an object with ``choose``.
        num_replicas: servers.
        num_blocks: blocks in the cache of each; ``None`` for as many as it takes.
        block_size: tokens per block; ``None`` for 16 in conversations and 512 in a log.
        rate: requests per second that arrive; ``None`` for arrivals as the load has them.
        seed: of everything that happens by chance. Same point, same figures, wherever it runs.

    Raises:
        ValueError: an unknown router, or a number out of range.

    Example:
        >>> print(Point("round-robin", num_blocks=500))
        router=round-robin num_replicas=8 num_blocks=500 block_size=None rate=None seed=0
    """

    router: Any = "prefix-load"
    num_replicas: int = 8
    num_blocks: int | None = 1000
    block_size: int | None = None
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.router, str) and self.router not in ROUTERS:
            raise ValueError(f"there is no router {self.router!r}: choose from {', '.join(ROUTERS)}")
        at_least_one("num_replicas", self.num_replicas)
        for name in ("num_blocks", "block_size"):
            if getattr(self, name) is not None:
                at_least_one(name, getattr(self, name))
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"a rate of {self.rate} requests per second: give one above 0 that is finite")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed is {self.seed!r}: give a whole number")
        object.__setattr__(self, "router", copy.deepcopy(self.router))

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"router": self.router_name}
        return " ".join(f"{name}={value}" for name, value in values.items())

    @property
    def router_name(self) -> str:
        """The router's name, or that of its class."""
        return self.router if isinstance(self.router, str) else type(self.router).__name__

    def block_size_for(self, requests: str) -> int:
        """Tokens per block with a load: the point's own, or those that are usual with it."""
        return self.block_size or (CHAT_BLOCK_SIZE if requests == CHAT else MOONCAKE_BLOCK_SIZE)


def grid(**settings: Any) -> list[Point]:
    """Combine settings: a point for each choice of one value from every list; the last list changes fastest.

    Args:
        settings: fields of :class:`Point`, each with a value, or several: a list, a range, whatever can be walked
            through and is no text.

    Raises:
        ValueError: a name that is no field, a list without values, or a value that a point cannot have.

    Example:
        >>> [(point.router, point.num_blocks) for point in grid(router=["random", "prefix"], num_blocks=[100, 200])]
        [('random', 100), ('random', 200), ('prefix', 100), ('prefix', 200)]
    """
    known = [field.name for field in fields(Point)]
    axes = {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"a point has no {name!r}: choose from {', '.join(known)}")
        axes[name] = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
        if not axes[name]:
            raise ValueError(f"{name} has no values: give at least one")
    return [Point(**dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def run_point(point: Point, requests: str = CHAT, num_requests: int | None = None) -> FleetReport:
    """Simulate one point: what a worker is sent.

    Args:
        point: the setting.
        requests: :data:`CHAT`, or the path of a request log in Mooncake's format.
        num_requests: the first so many; ``None`` for all of a log, and 10,000 else.

    Raises:
        ValueError: less than one request.
    """
    if num_requests is not None:
        at_least_one("num_requests", num_requests)
    block_size = point.block_size_for(requests)
    if requests == CHAT:
        most = CHAT_REQUESTS if num_requests is None else num_requests
        load = islice(chat_requests(point.seed, block_size=block_size), most)
    else:
        load = islice(log_requests(requests, block_size), num_requests)
    return simulate(
        load,
        num_replicas=point.num_replicas,
        router=copy.deepcopy(point.router),
        num_blocks=point.num_blocks,
        block_size=block_size,
        rate=point.rate,
        seed=point.seed,
    )


def sweep(
    points: Iterable[Point],
    executor: Executor | Callable[[], Executor] | None = None,
    requests: str | os.PathLike[str] = CHAT,
    *,
    num_requests: int | None = None,
    retries: int = RETRIES,
    progress: bool | None = None,
) -> list[tuple[Point, FleetReport]]:
    """Simulate every point, and give the reports in the order of the points.

    Points whose worker was lost are run again, and nothing else is. An executor that is broken by a lost worker, as one
    of processes is, is made again if you gave a function that makes it.

    Args:
        points: what to simulate.
        executor: who does it: threads, processes, a :class:`pagedattn_lab.studies.fleet.cluster.Cluster`, whatever has
            the methods of :class:`concurrent.futures.Executor`, or a function that makes one and is called again where
            one breaks. ``None`` for this process, one point after the other.
        requests: ``"chat"``, or the path of a request log, which every worker must be able to read.
        num_requests: the first so many; ``None`` for all of a log, and 10,000 of ``"chat"``.
        retries: how often in a row workers may be lost without a point having ended.
        progress: draw a line that says how many are done; ``None`` for on a terminal only.

    Raises:
        ValueError: less than one request.
        PointFailedError: a point raised an exception, which is the cause; or workers were lost more than ``retries``
            times in a row. Points that had not begun are cancelled.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> points = grid(router=["round-robin", "prefix"], num_replicas=2, num_blocks=200)
        >>> with ThreadPoolExecutor(2) as threads:
        ...     results = sweep(points, threads, num_requests=200)
        >>> [point.router for point, _ in results]
        ['round-robin', 'prefix']
        >>> results == sweep(points, num_requests=200)
        True
    """
    from tqdm import tqdm

    if num_requests is not None:
        at_least_one("num_requests", num_requests)
    points = list(points)
    source = CHAT if requests == CHAT else os.path.abspath(requests)
    run = partial(run_point, requests=source, num_requests=num_requests)
    reports: dict[int, FleetReport] = {}
    disable = None if progress is None else not progress
    with tqdm(total=len(points), unit=" points", delay=1, leave=False, disable=disable) as bar:
        ended = _here(run, points) if executor is None else _elsewhere(run, points, executor, retries)
        for index, report in ended:
            reports[index] = report
            bar.update()
    return [(point, reports[index]) for index, point in enumerate(points)]


Run = Callable[[Point], FleetReport]


def _here(run: Run, points: Sequence[Point]) -> Iterator[tuple[int, FleetReport]]:
    for index, point in enumerate(points):
        try:
            report = run(point)
        except Exception as error:
            raise _failed(point, error) from error
        yield index, report


def _elsewhere(
    run: Run, points: Sequence[Point], executor: Executor | Callable[[], Executor], retries: int
) -> Iterator[tuple[int, FleetReport]]:
    """Run points in rounds: each sends out those that are left, and leaves those whose workers were lost.

    A point that ends its worker can take others with it. So what is left is turned round: what was sent first, and
    perhaps did the damage, goes last, behind those that only waited. A round in which points end is progress, however
    many are lost, so in the end only those that do damage are left.
    """
    left, fruitless = list(range(len(points))), 0
    while left:
        lost: dict[int, BaseException] = {}
        workers: AbstractContextManager[Executor] = executor() if callable(executor) else nullcontext(executor)
        with workers as pool:
            yield from _round(run, points, left, pool, lost)
        fruitless = fruitless + 1 if len(lost) == len(left) else 0
        left = [index for index in reversed(left) if index in lost]
        if fruitless > retries:
            point, error = points[left[0]], lost[left[0]]
            others = f", and {count(len(left) - 1, 'point')} beside it" if len(left) > 1 else ""
            raise PointFailedError(
                f"the workers were lost {count(fruitless, 'time')} in a row with the point {point}{others} "
                f"({_words(error)}); {count(len(points) - len(left), 'point')} of {len(points):,} had ended"
            ) from error


def _round(
    run: Run, points: Sequence[Point], left: Sequence[int], pool: Executor, lost: dict[int, BaseException]
) -> Iterator[tuple[int, FleetReport]]:
    """Send out points, and give each report as it comes; ``lost`` takes the points that none comes from."""
    ended: SimpleQueue[Future[FleetReport]] = SimpleQueue()
    futures: dict[Future[FleetReport], int] = {}
    try:
        for index in left:
            try:
                future = pool.submit(run, points[index])
            except BrokenExecutor as error:
                lost[index] = error
                continue
            futures[future] = index
            future.add_done_callback(ended.put)
        for _ in range(len(futures)):
            future = ended.get()
            index = futures[future]
            try:
                report = future.result()
            except (BrokenExecutor, CancelledError) as error:
                lost[index] = error
            except Exception as error:
                raise _failed(points[index], error) from error
            else:
                yield index, report
    finally:
        for future in futures:
            future.cancel()  # does nothing to those that have ended


def _failed(point: Point, error: Exception) -> PointFailedError:
    return PointFailedError(f"the point {point} failed: {_words(error)}")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
