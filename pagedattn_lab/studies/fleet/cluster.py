"""Workers of a Dask cluster as an executor, for sweeps that one machine is too small for (chapter 11).

Dask's own ``Client.get_executor()`` will do while all goes well. What this one adds: a cluster that is gone, or has no
workers left, breaks it, so that nobody waits for ever; and closing it ends within a bounded time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import ExitStack, suppress
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from pagedattn_lab.arithmetic import at_least_one

CONNECTING = 10
"""Seconds that a scheduler has to answer at first, and again when the connection was lost."""

PATIENCE = 60.0
"""Seconds that a cluster may be without a scheduler or a worker while somebody waits for results."""

WATCHING = 1.0
"""Seconds between two questions whether it has both."""

CLOSING = 10
"""Seconds that the connection, and a scheduler of our own, have to close."""

LOOPBACK = "127.0.0.1"
"""Where workers of our own run, so that nobody else can reach them."""


class ClusterLostError(BrokenExecutor):
    """A cluster that lost the worker of a call, has no workers, or is gone itself."""


class Cluster(Executor):
    """An executor whose workers belong to a Dask cluster: one that is there, or one of this machine's own.

    Workers of our own are replaced when they die, and what they ran ends with a :class:`ClusterLostError`, as
    :func:`pagedattn_lab.studies.fleet.sweep.sweep` expects it. Another cluster gives it to other workers first, as
    often as its scheduler's ``allowed-failures`` says.

    Args:
        scheduler: address of a cluster's scheduler, such as ``"tcp://ada:8786"``. This package must be installed
            where its workers run.
        workers: in place of it, how many processes to start here, on the loopback interface.
        patience: seconds without a scheduler or a worker after which whoever waits gets a :class:`ClusterLostError`.

    Attributes:
        address: of the scheduler.

    Raises:
        ValueError: both of ``scheduler`` and ``workers``, or neither, or less than one worker.
        ConnectionError: no scheduler answers at the address.
        ModuleNotFoundError: ``distributed`` is not installed, which the extra ``cluster`` brings.
    """

    def __init__(self, scheduler: str | None = None, *, workers: int | None = None, patience: float = PATIENCE) -> None:
        if (scheduler is None) == (workers is None):
            raise ValueError("give either the address of a scheduler or a number of workers")
        if workers is not None:
            at_least_one("workers", workers)
        try:
            import distributed
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: a cluster needs the package distributed, of the extra pagedattn-lab[cluster]"
            ) from error

        dask: Any = distributed  # half of it has types
        self._killed: type[Exception] = dask.KilledWorker
        self._patience = patience
        self._open: set[Future[Any]] = set()
        self._taking = threading.Lock()
        self._lost = ""
        self._closed = False
        with ExitStack() as stack:
            stack.enter_context(dask.utils.silence_logging_cmgr(logging.CRITICAL))
            self._workers = None
            if workers is not None:
                local = dask.LocalCluster(
                    n_workers=0,
                    host=LOOPBACK,
                    dashboard_address=f"{LOOPBACK}:0",  # any free port; the usual one may be taken
                    silence_logs=logging.CRITICAL,
                    scheduler_kwargs={"allowed_failures": 0},
                )
                stack.callback(_close, local)
                scheduler = local.scheduler_address
                self._workers = stack.enter_context(_Workers(scheduler, workers))
            self.address = str(scheduler)
            try:
                self._client = dask.Client(self.address, timeout=CONNECTING, set_as_default=False)
            except (OSError, ValueError) as error:
                raise ConnectionError(
                    f"no Dask scheduler answers at {self.address}: give the address that dask scheduler prints"
                ) from error
            stack.callback(_close, self._client)
            self._client.loop.add_callback(self._watch)
            self._stack = stack.pop_all()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to a worker.

        Args:
            fn: what to call; a worker must be able to import it.
            args: of the call.
            kwargs: of the call.

        Raises:
            ClusterLostError: the cluster is gone.
            RuntimeError: this executor was shut down.
        """
        if self._closed:
            raise RuntimeError("this executor was shut down: make another one")
        if self._lost:
            raise ClusterLostError(self._lost)
        if self._gave_up():
            raise ClusterLostError(f"the scheduler at {self.address} does not answer any more")
        ours: Future[Any] = Future()
        theirs = self._client.submit(partial(fn, *args, **kwargs), pure=False)  # pure: what failed once fails again
        self._open.add(ours)
        ours.add_done_callback(partial(self._when_cancelled, theirs))
        self._client.loop.add_callback(self._settle, ours, theirs)
        return ours

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the connection, and end workers of our own, within a bounded time.

        Args:
            wait: for the calls that were sent; else they are given up.
            cancel_futures: give them up in any case.
        """
        if self._closed:
            return
        sent = list(self._open)
        if cancel_futures or not wait:
            for future in sent:
                future.cancel()
        try:
            futures.wait(sent)
        finally:  # whoever is interrupted while waiting leaves no workers behind
            self._closed = True
            self._stack.close()

    def _take(self, ours: Future[Any]) -> bool:
        """Say whether an open call is the caller's to end: its result and a wish to cancel it may come together."""
        with self._taking:
            if ours not in self._open:
                return False
            self._open.remove(ours)
            return True

    def _when_cancelled(self, theirs: Any, ours: Future[Any]) -> None:
        if ours.cancelled() and self._take(ours):
            ours.set_running_or_notify_cancel()  # or those who wait for it would wait on
            self._client.loop.add_callback(self._client.cancel, [theirs], asynchronous=True)

    def _end(self, ours: Future[Any], result: Any, error: Exception | None) -> None:
        if self._take(ours) and ours.set_running_or_notify_cancel():
            if error is None:
                ours.set_result(result)
            else:
                ours.set_exception(error)

    async def _settle(self, ours: Future[Any], theirs: Any) -> None:
        """Give our future what became of Dask's, whatever that is: nobody may wait for what will not come."""
        result: Any = None
        error: Exception | None = None
        try:
            result = await theirs
        except (self._killed, CancelledError, asyncio.CancelledError) as lost:
            error = ClusterLostError(" ".join(str(lost).split()) or "the scheduler dropped the call")
        except Exception as raised:
            error = raised
        self._end(ours, result, error)

    async def _watch(self) -> None:
        """Ask now and then whether anybody is left who could answer those who wait."""
        well = time.monotonic()
        while not self._closed:
            await asyncio.sleep(min(WATCHING, self._patience))
            if self._workers:
                self._workers.replace()
            if not self._open or await self._has_workers():
                well = time.monotonic()
            elif time.monotonic() - well > self._patience or self._gave_up():
                seconds = time.monotonic() - well
                self._lost = f"the cluster at {self.address} has had no scheduler or no workers for {seconds:.0f} s"
                for future in list(self._open):
                    self._end(future, None, ClusterLostError(self._lost))
                return

    async def _has_workers(self) -> bool:
        try:
            return bool(await asyncio.wait_for(self._client.scheduler.ncores(), CONNECTING))
        except Exception:  # whatever a connection that breaks at this moment raises: who asks must go on asking
            return False

    def _gave_up(self) -> bool:
        """Whether the client lost its scheduler, and could not connect again in :data:`CONNECTING` seconds."""
        return self._client.status not in ("running", "connecting")


class _Workers:
    """Worker processes on this machine, each replaced when it has died.

    Dask's nannies would do the same, but one whose worker dies while it starts gives up. A worker holds nothing that
    anybody needs, so it is ended by killing it.
    """

    def __init__(self, scheduler: str, num_workers: int) -> None:
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)  # a worker's last files may come while we clear
        self._command = [
            *(sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--host", LOOPBACK, "--nthreads", "1"),
            *("--no-nanny", "--no-dashboard", "--memory-limit", "0", "--death-timeout", str(PATIENCE)),
            *("--local-directory", self._folder.name),
        ]
        # They import what this process can, and say nothing; Ctrl-C is this process's business.
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        self._environment = os.environ | {"PYTHONPATH": path, "DASK_LOGGING__DISTRIBUTED": "critical"}
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(num_workers):
                self._processes.append(self._start())
        except BaseException:
            self.__exit__()
            raise

    def replace(self) -> None:
        """Start a worker for each that has died."""
        with self._lock:
            self._processes = [self._start() if each.poll() is not None else each for each in self._processes]

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            ended, self._processes = self._processes, []  # none of them is replaced any more
            for process in ended:
                process.kill()
        for process in ended:  # that may take a while, and be interrupted
            process.wait()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def _close(part: Any) -> None:
    """Close a client or a scheduler, or leave it: what was wanted is here, so nobody waits for one that hangs."""
    with suppress(OSError, TimeoutError):
        part.close(timeout=CLOSING)
