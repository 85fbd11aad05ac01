"""Where the memory goes: one load, one budget, four allocators, beside what the paper reports (chapters 02 and 03)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pagedattn_lab.baselines.accounting import Allocator
from pagedattn_lab.baselines.contiguous import max_length, next_power_of_two, oracle
from pagedattn_lab.baselines.paged import PagedAllocator
from pagedattn_lab.hardware import StepTime
from pagedattn_lab.studies.paper import A100_OPT_13B
from pagedattn_lab.studies.report import Report
from pagedattn_lab.studies.simulate import simulate
from pagedattn_lab.workloads import Fit, TraceRequest

LABELS = {"max": "Max", "pow2": "Pow2", "oracle": "Oracle", "paged": "paged"}
"""What we call the four of :data:`pagedattn_lab.studies.paper.NAMES`, where they are ours."""


def allocators(num_slots: int, max_model_len: int, block_size: int) -> dict[str, Allocator]:
    """Make the four of the paper's comparison, each with a memory of its own.

    Args:
        num_slots: tokens for which there is memory.
        max_model_len: most tokens in prompt and output together.
        block_size: tokens per block of the paged one.

    Raises:
        ValueError: a number below 1, or memory that does not hold one sequence of full length in every scheme.

    Example:
        >>> list(allocators(num_slots=15_728, max_model_len=2048, block_size=16))
        ['max', 'pow2', 'oracle', 'paged']
    """
    made: dict[str, Allocator] = {
        "max": max_length(num_slots, max_model_len),
        "pow2": next_power_of_two(num_slots, max_model_len),
        "oracle": oracle(num_slots),
        "paged": PagedAllocator(num_slots, block_size),
    }
    for name, allocator in made.items():
        try:
            allocator.size(1, max_model_len)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return made


def compare(
    requests: Callable[[], Iterable[TraceRequest]],
    num_slots: int,
    max_model_len: int,
    block_size: int,
    step_time: StepTime = A100_OPT_13B,
    total: int | None = None,
    progress: bool | None = None,
) -> dict[str, Report]:
    """Serve the same requests with each of the four.

    Args:
        requests: makes the load anew for each of them; see
            :class:`pagedattn_lab.workloads.arrivals.Fit` for those too long.
        num_slots, max_model_len, block_size: as for :func:`allocators`.
        step_time: how long a step takes.
        total: how many requests there are, if known, for the progress bars.
        progress: whether to show a bar for each allocator, as for :func:`pagedattn_lab.studies.simulate.simulate`.

    Raises:
        ValueError: as for :func:`allocators` and :func:`pagedattn_lab.studies.simulate.simulate`.

    Example:
        >>> from itertools import islice
        >>> from pagedattn_lab import workloads
        >>> reports = compare(lambda: workloads.arrive(islice(workloads.sharegpt(), 500)), 15_728, 2048, block_size=16)
        >>> [f"{name} {report.mean_running:.0f}" for name, report in reports.items()]
        ['max 7', 'pow2 10', 'oracle 14', 'paged 36']
    """
    return {
        name: simulate(Fit(requests(), max_model_len), allocator, step_time, total=total, progress=progress)
        for name, allocator in allocators(num_slots, max_model_len, block_size).items()
    }


KINDS = {
    "token_states": "token states",
    "reservation": "reservation",
    "internal": "internal",
    "external": "external, other",
    "free": "free",
}
"""The kinds of memory, in the order in which they are drawn, and what they are called."""

BLOCKS, ASCII = "█▓▒░_", "#+-._"
BAR_WIDTH = 60


def table(reports: Mapping[str, Report]) -> str:
    """Write down shares of memory, and what they were good for.

    Args:
        reports: as :func:`compare` gives them.

    Example:
        >>> from itertools import islice
        >>> from pagedattn_lab import workloads
        >>> reports = compare(lambda: workloads.arrive(islice(workloads.sharegpt(), 500)), 15_728, 2048, block_size=16)
        >>> print(table(reports))
        % of KV memory  token reser- inter- exter-            mean  requests   preemp-
                       states vation    nal    nal   free  running     per s     tions
        Max              20.2   12.6   58.3    8.9    0.0     7.00      1.19         0
        Pow2             29.5   18.5   15.3   36.6    0.0    10.26      1.64         0
        Oracle           38.8   24.7    0.0   36.6    0.0    13.55      2.05         0
        paged            97.1    1.7    0.0    0.1    1.1    35.67      3.90       638
    """
    lines = [
        "% of KV memory  token reser- inter- exter-            mean  requests   preemp-",
        "               states vation    nal    nal   free  running     per s     tions",
    ]
    for name, report in reports.items():
        shares = "".join(f"{100 * getattr(report, kind):7.1f}" for kind in KINDS)
        lines.append(
            f"{LABELS[name]:<14}{shares}{report.mean_running:9.2f}{report.requests_per_second:10.2f}"
            f"{report.num_preemptions:10,}"
        )
    return "\n".join(lines)


def bars(reports: Mapping[str, Report], ascii_only: bool = False) -> str:
    """Draw memory in characters, a bar for each allocator: the paper's Fig. 2 for a terminal.

    Edges are rounded, not widths, so every bar is as long as the others.

    Args:
        reports: as :func:`compare` gives them.
        ascii_only: do without characters that not every terminal has.

    Example:
        >>> from itertools import islice
        >>> from pagedattn_lab import workloads
        >>> reports = compare(lambda: workloads.arrive(islice(workloads.sharegpt(), 500)), 15_728, 2048, block_size=16)
        >>> print(bars(reports, ascii_only=True))
        Max    |############++++++++-----------------------------------.....|
        Pow2   |##################+++++++++++---------......................|
        Oracle |#######################+++++++++++++++......................|
        paged  |##########################################################+_|
                # token states  + reservation  - internal  . external, other  _ free
    """
    characters = ASCII if ascii_only else BLOCKS
    lines = []
    for name, report in reports.items():
        bar, end = "", 0.0
        for kind, character in zip(KINDS, characters, strict=True):
            end += getattr(report, kind)
            bar += character * (round(BAR_WIDTH * end) - len(bar))
        lines.append(f"{LABELS[name]:<7}|{bar}|")
    legend = "  ".join(f"{character} {label}" for character, label in zip(characters, KINDS.values(), strict=True))
    return "\n".join([*lines, f"{'':<8}{legend}"])
