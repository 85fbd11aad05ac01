"""Sweeps over simulated fleets: the same figures wherever points run, and what a lost worker costs."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.studies.fleet import chat_requests, simulate
from pagedattn_lab.studies.fleet.cluster import Cluster, ClusterLostError, _Workers
from pagedattn_lab.studies.fleet.sweep import Point, PointFailedError, grid, run_point, sweep
from tests.helpers.cli import MOONCAKE
from tests.helpers.draws import FLEET, drawn
from tests.helpers.fleet import NUM_REQUESTS, Deadly, Meeting, Raising, Trailing, Waiting, runs

pytestmark = pytest.mark.when_changed(*FLEET)

POINTS = grid(router=["round-robin", "two-choices", "prefix-load"], num_replicas=2, num_blocks=[50, 400], seed=[0, 1])
processes = partial(ProcessPoolExecutor, 2, multiprocessing.get_context("spawn"))
one_process = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
small = partial(sweep, num_requests=NUM_REQUESTS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(workers=2) as workers:
        yield workers


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    """What one process finds, one point after the other."""
    return small(POINTS)


def trail(folder: Path) -> dict[str, list[int]]:
    """Where each was run, by name, one time after the other."""
    where: dict[str, list[int]] = {}
    for name, pid in runs(folder):
        where.setdefault(name, []).append(pid)
    return where


def figures(report: Any) -> dict[str, Any]:
    """A report without the name of its router."""
    return {name: value for name, value in vars(report).items() if name != "router"}


class Scrambled(Executor):
    """Runs nothing until everything was sent, and then the last first."""

    def __init__(self, num_calls: int) -> None:
        self.calls: list[Any] = []
        self.num_calls = num_calls

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((future, pickle.dumps((fn, args, kwargs))))
        if len(self.calls) == self.num_calls:
            for each, call in reversed(self.calls):
                function, arguments, options = pickle.loads(call)
                each.set_result(function(*arguments, **options))
        return future


# ---------------------------------------------------------------- the same figures


def test_points_are_what_they_say(alone: list[Any]) -> None:
    """Catches settings that do not reach the simulation: then points that differ would have equal figures."""
    assert [point for point, _ in alone] == POINTS
    for point, report in alone:
        load = islice(chat_requests(point.seed), NUM_REQUESTS)
        assert report == simulate(load, 2, point.router, point.num_blocks, block_size=16, seed=point.seed)
        assert len(report.replicas) == 2 and report.num_requests == NUM_REQUESTS
    assert len({(report.hit_rate, report.ttft_mean_s) for _, report in alone}) == len(POINTS)


def test_the_order_is_that_of_the_points(alone: list[Any]) -> None:
    """Catches reports in the order in which they end, and loads that are sent instead of made: a call is small."""
    scrambled = Scrambled(len(POINTS))
    assert small(POINTS, scrambled) == alone
    assert max(len(call) for _, call in scrambled.calls) < 500


def test_threads_find_the_same(alone: list[Any]) -> None:
    """Catches chance that simulations share."""
    with ThreadPoolExecutor(3) as threads:
        assert small(POINTS, threads) == alone


def test_processes_find_the_same(alone: list[Any]) -> None:
    """Catches chance that depends on a process, such as an order by hashes, and an executor that is closed unasked."""
    with processes() as pool:
        assert small(POINTS, pool) == alone
        assert pool.submit(abs, -1).result() == 1


def test_a_cluster_finds_the_same(cluster: Cluster, alone: list[Any]) -> None:
    """Catches figures of a cluster's own, and a sweep that needs our executor where Dask's own would do."""
    assert small(POINTS, cluster) == alone
    with Client(cluster.address, set_as_default=False) as client:
        assert small(POINTS, client.get_executor()) == alone


def test_a_log_is_read_where_a_point_runs(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a path that means another file in a worker's folder, and a count or a block size that is not passed."""
    (tmp_path / "log.jsonl").write_text(MOONCAKE)
    monkeypatch.chdir(tmp_path)
    points = grid(router="round-robin", num_replicas=[1, 2])
    results = sweep(points, cluster, "log.jsonl")
    assert results == sweep(points, requests=Path("log.jsonl")) and results[0][1].num_requests == 4
    assert results[0][1].hit_tokens == 512  # the third prompt begins as the second one does
    assert sweep(points, cluster, "log.jsonl", num_requests=2)[0][1].num_requests == 2


def test_a_router_of_ones_own_is_new_for_each_point(cluster: Cluster, tmp_path: Path) -> None:
    """Catches a router whose state a point leaves to the next one, or to its caller."""
    router = Trailing(tmp_path)
    points = grid(router=[router], num_replicas=[2, 3], seed=[0, 0])
    with ThreadPoolExecutor(2) as threads:
        results = [small(points), small(points, threads), small(points, cluster)]
    assert results[0][0][1] == results[0][1][1] and router.num_chosen == 0
    for found in results[1:]:
        assert [report for _, report in found] == [report for _, report in results[0]]
    assert len(runs(tmp_path)) == 3 * len(points)


@settings(max_examples=drawn(30))
@given(st.permutations(["router", "num_replicas", "seed"]), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_grid_is_every_choice_once(names: list[str], values: list[int]) -> None:
    """Catches a combination that is missing or doubled, and an order that does not follow the lists."""
    choices = {"router": ["random", "prefix"], "num_replicas": values, "seed": 3}
    points = grid(**{name: choices[name] for name in names})
    first, second = (name for name in names if name != "seed")
    expected = [(a, b) for a in choices[first] for b in choices[second]]
    assert [(getattr(point, first), getattr(point, second)) for point in points] == expected
    assert all(point.seed == 3 for point in points)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"router": "prefx"}, "no router 'prefx': choose from round-robin"),
        ({"num_replicas": [2, 0]}, "num_replicas is 0: give a whole number of at least 1"),
        ({"num_blocks": 1.5}, "num_blocks is 1.5"),
        ({"block_size": -1}, "block_size is -1"),
        ({"rate": 0.0}, "a rate of 0.0 requests per second: give one above 0"),
        ({"rate": [1.0, math.inf]}, "a rate of inf requests per second"),
        ({"rate": math.nan}, "a rate of nan requests per second"),
        ({"seed": (0, 1.5)}, "seed is 1.5: give a whole number"),
        ({"seed": "12"}, "seed is '12'"),
        ({"seed": True}, "seed is True"),
        ({"replicas": 2}, "a point has no 'replicas': choose from router, num_replicas"),
        ({"seed": []}, "seed has no values"),
        ({"seed": range(0)}, "seed has no values"),
    ],
)
def test_points_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    """Catches a mistake that shows only after hours, when its point is reached."""
    with pytest.raises(ValueError, match=message):
        grid(**settings)


@pytest.mark.parametrize("values", [range(4), (0, 1, 2, 3), {0: "a", 1: "b", 2: "c", 3: "d"}, iter([0, 1, 2, 3])])
def test_values_may_be_whatever_can_be_walked_through(values: Any) -> None:
    """Catches ``seed=range(4)`` taken as one point, whose seed is a range."""
    assert [point.seed for point in grid(router="random", seed=values)] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_requests", [0, -1, 2.0])
def test_a_number_of_requests_that_cannot_be_is_refused(num_requests: Any) -> None:
    """Catches 0 taken for the usual number."""
    for run in (partial(sweep, [Point()]), partial(run_point, Point())):
        with pytest.raises(ValueError, match=f"num_requests is {num_requests}: give a whole number"):
            run(num_requests=num_requests)


def test_a_router_that_changes_later_does_not_change_its_point(tmp_path: Path) -> None:
    """Catches a point that holds its caller's router, and runs it as it has become."""
    router = Trailing(tmp_path)
    points = [Point(router, num_replicas=2), *grid(router=[router], num_replicas=2)]
    before = small(points)
    router.num_chosen = 1  # the other replica would be the first
    assert small(points) == before
    assert small([Point(router, num_replicas=2)])[0][1] != before[0][1]


def test_nothing_to_do() -> None:
    """Catches waiting for a report when no point was sent."""
    with ThreadPoolExecutor() as threads:
        assert sweep([], threads) == sweep([]) == []


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("where", ["here", "threads", "cluster"])
def test_a_point_that_raises_is_named(where: str, cluster: Cluster, tmp_path: Path) -> None:
    """Catches an error that leaves the reader to search for its point, and work that goes on for nothing."""
    others = Trailing if where == "cluster" else Waiting  # a cluster may take some of them up first
    points = [Point(Raising(tmp_path), 3, seed=7), *grid(router=[others(tmp_path)], seed=list(range(40)))]
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(PointFailedError) as caught:
            small(points, {"here": None, "threads": threads, "cluster": cluster}[where])
        (tmp_path / "answered").touch()  # the point that was taken up meanwhile goes on, and none may follow it
    assert str(caught.value) == (
        "the point router=Raising num_replicas=3 num_blocks=1000 block_size=None rate=None seed=7 failed: "
        "no way to choose"
    )
    assert isinstance(caught.value.__cause__, LookupError)
    if where != "cluster":  # whose workers have more than one point each in hand
        assert len(runs(tmp_path)) <= 2


def test_a_killed_worker_costs_its_point_a_second_run(cluster: Cluster, tmp_path: Path) -> None:
    """Catches a sweep that hangs, fails or repeats more than it must when a worker dies, and a worker not replaced."""
    calm = [Point(Trailing(tmp_path, f"calm{number}"), 2, seed=number) for number in range(10)]
    points = [Point(Deadly(tmp_path), 2), *calm]
    results = small(points, cluster)
    assert [point for point, _ in results] == points

    where = trail(tmp_path)
    assert len(where) == len(points) and len(where["deadly"]) == 2
    killed = where["deadly"][0]
    for pids in where.values():  # once, or again because the first time was there, and the report was lost with it
        assert len(pids) == 1 or (len(pids) == 2 and pids[0] == killed != pids[1]), where

    found = [figures(report) for _, report in results]
    assert found == [figures(report) for _, report in small([Point(Trailing(tmp_path), 2), *calm])]
    (tmp_path / "again").mkdir()
    small(grid(router=[Meeting(tmp_path / "again", 2)], seed=[0, 1]), cluster)  # two processes at once, as before


def test_a_killed_process_costs_its_points_a_second_run(tmp_path: Path) -> None:
    """Catches a broken pool that ends a sweep, although there is a way to make another."""
    points = [*grid(router=[Trailing(tmp_path)], num_replicas=2, seed=[0, 1]), Point(Deadly(tmp_path), 2)]
    results = small(points, one_process)
    assert len(trail(tmp_path)["deadly"]) == 2
    assert results[:2] == small(points[:2]) and [point for point, _ in results] == points


def test_a_pool_that_cannot_be_made_again_is_reported(tmp_path: Path) -> None:
    """Catches a sweep that tries a broken pool for ever."""
    with one_process() as pool, pytest.raises(PointFailedError, match="the workers were lost 3 times in a row"):
        small([Point(Deadly(tmp_path), 2)], pool)


def test_the_point_that_kills_is_found(tmp_path: Path) -> None:
    """Catches retries without bound, blame for a point that only stood beside the culprit, and others not run."""
    first, second = (Point(Trailing(tmp_path, name), 2) for name in ("first", "second"))
    points = [first, Point(Deadly(tmp_path, num_deaths=99), 2), second]
    with pytest.raises(PointFailedError) as caught:
        small(points, one_process, retries=0)
    message = str(caught.value)
    assert message.startswith("the workers were lost 1 time in a row with the point router=Deadly num_replicas=2 ")
    assert "beside" not in message and message.endswith("2 points of 3 had ended")
    assert {name: len(pids) for name, pids in trail(tmp_path).items()} == {"first": 1, "second": 1, "deadly": 3}


# ---------------------------------------------------------------- a cluster that is not there, or goes


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches waiting for an address at which nobody is."""
    monkeypatch.setattr("pagedattn_lab.studies.fleet.cluster.CONNECTING", 1)
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1: give"):
        Cluster("tcp://127.0.0.1:1")


@pytest.mark.parametrize("arguments", [{}, {"scheduler": "tcp://127.0.0.1:1", "workers": 1}, {"workers": 0}])
def test_what_a_cluster_may_be(arguments: dict[str, Any]) -> None:
    """Catches a cluster of nothing, or of two kinds."""
    with pytest.raises(ValueError, match=r"give (either|a whole number)"):
        Cluster(**arguments)


def test_distributed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an error that does not say what to install."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"the package distributed, of the extra pagedattn-lab\[cluster\]"):
        Cluster(workers=1)


class Interrupted:
    """A process that takes its time to end, so that a second Ctrl-C comes while somebody waits for it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> None:
        raise KeyboardInterrupt


def test_no_worker_is_left_by_who_interrupts_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches workers that are killed only when those in front of them have ended, or only if all have started."""
    started: list[Interrupted] = []

    def start(_: Any) -> Interrupted:
        if len(started) == 3:
            raise KeyboardInterrupt
        started.append(Interrupted())
        return started[-1]

    monkeypatch.setattr(_Workers, "_start", start)
    with pytest.raises(KeyboardInterrupt), _Workers("tcp://127.0.0.1:1", 3):
        pass
    assert [process.killed for process in started] == [True] * 3
    started.clear()
    with pytest.raises(KeyboardInterrupt):
        _Workers("tcp://127.0.0.1:1", 4)
    assert [process.killed for process in started] == [True] * 3


def test_no_worker_is_left_by_who_interrupts_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cluster that stays open when a second Ctrl-C comes while it waits for what still runs."""

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Cluster(workers=1) as workers:
        pid = workers.submit(os.getpid).result()
        monkeypatch.setattr("concurrent.futures.wait", interrupted)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_cluster_without_workers_is_reported() -> None:
    """Catches waiting for ever for somebody to take the work."""
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty,
        Cluster(empty.scheduler_address, patience=0.5) as cluster,
        pytest.raises(PointFailedError, match=r"the cluster at tcp://\S+ has had no scheduler or no workers"),
    ):
        small(POINTS, cluster)


def test_a_cluster_that_goes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a call that never ends because its scheduler has gone; closing that waits for an answer or for a call
    that runs; and workers that outlive their cluster.
    """
    theirs = Cluster(workers=1)
    ours = Cluster(theirs.address)
    monkeypatch.setattr("pagedattn_lab.studies.fleet.cluster.CONNECTING", 1)
    ours._client._timeout = 1  # it connected with more patience, as this machine may be busy
    pid = ours.submit(os.getpid).result(60)
    assert pid == theirs.submit(os.getpid).result(60) != os.getpid()

    asked, running = ours.submit(time.sleep, 600), theirs.submit(time.sleep, 600)
    theirs.shutdown(wait=False)
    assert running.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ClusterLostError):
        asked.result(60)
    with pytest.raises(PointFailedError, match="the workers were lost 3 times in a row"):
        small(POINTS, ours)
    for each in (ours, theirs):
        each.shutdown()
        with pytest.raises(RuntimeError, match="was shut down"):
            each.submit(abs, 1)
