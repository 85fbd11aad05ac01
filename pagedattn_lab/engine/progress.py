"""How far a run has come, on a terminal: requests done, tokens per second, blocks in use (chapter 09)."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pagedattn_lab.engine.metrics import Metrics, StepStats

if TYPE_CHECKING:
    from rich.console import Console

    from pagedattn_lab.engine.metrics import FinishedRequestStats


class ProgressDisplay:
    """One line while requests are served, for as long as the context lasts.

    Args:
        metrics: of the engine that serves them.
        num_requests: sequences that will finish.
        console: where to show it; standard error by default. Where that is no terminal, nothing is shown.

    Example:
        >>> import io
        >>> from rich.console import Console
        >>> from pagedattn_lab.request import Request
        >>> console = Console(file=io.StringIO(), force_terminal=True, width=80)
        >>> metrics, request = Metrics(), Request("Ada", [5, 6, 7])
        >>> with ProgressDisplay(metrics, 1, console):
        ...     metrics.on_arrival(request); metrics.on_finished(request, "stop")
        >>> "1/1" in console.file.getvalue(), metrics.loggers
        (True, [])
    """

    def __init__(self, metrics: Metrics, num_requests: int, console: Console | None = None) -> None:
        if console is None:
            from rich.console import Console

            console = Console(stderr=True)
        self._metrics = metrics
        self._tokens_before = metrics.totals.num_generation_tokens
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[account]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("requests", total=num_requests, account="")

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        self._metrics.loggers.append(self._update)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._metrics.loggers.remove(self._update)
        self._progress.stop()

    def _update(self, stats: StepStats | FinishedRequestStats) -> None:
        if not isinstance(stats, StepStats):
            self._progress.advance(self._task)
            return
        seconds = self._progress.tasks[0].elapsed or 0.0
        num_tokens = self._metrics.totals.num_generation_tokens - self._tokens_before
        rate = f"{num_tokens / seconds:,.0f} tok/s, " if seconds else ""
        self._progress.update(
            self._task,
            account=f"{rate}{stats.num_running_reqs} run, {stats.num_waiting_reqs} wait, {stats.kv_cache_usage:.0%} KV",
        )
