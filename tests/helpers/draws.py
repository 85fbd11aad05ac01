"""What daily work leaves to ``make test``: most of what properties draw, and slow tests of what has not changed.

``make check`` sets ``TESTS_DRAW_ONE_IN=4``: a quarter of Hypothesis' examples, of lists those that have each pair, and
of tests marked ``when_changed`` those whose code differs from the main branch. ``make test`` sets nothing, and has all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tools import changed_chapters

ONE_IN = int(os.environ.get("TESTS_DRAW_ONE_IN") or 1)
ROOT = Path(__file__).resolve().parents[2]
FEWEST = 5  # a test that draws less than this draws all in daily work too


def drawn(examples: int) -> int:
    """Return how many of a property's examples to draw now, which is what ``max_examples`` is to be."""
    return max(min(examples, FEWEST), -(-examples // ONE_IN))


def pairwise(first: Sequence[Any], second: Sequence[Any], third: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Return all combinations; in daily work those that have each pair of two values in one of them at least.

    The first two lists must be at least as long as the third.
    """
    assert min(len(first), len(second)) >= len(third)
    if ONE_IN == 1:
        return list(product(first, second, third))
    return [(x, y, third[(i + j) % len(third)]) for i, x in enumerate(first) for j, y in enumerate(second)]


@functools.cache
def changed(pattern: str) -> bool:
    """Say whether something differs from the main branch, or is gone; also where there is none to compare with."""
    return changed_chapters.base(ROOT) is None or bool(changed_chapters.changed(ROOT, pattern, deleted=True))


def leave_out(item: pytest.Item) -> None:
    """Skip a test in daily work if neither its file nor what its mark ``when_changed`` names differs from main."""
    mark = item.get_closest_marker("when_changed")
    if mark and ONE_IN > 1 and not any(map(changed, (*mark.args, str(item.path.relative_to(ROOT))))):
        item.add_marker(pytest.mark.skip(reason="what it proves is as on the main branch; make test runs it"))


# Folders and files as git takes them. A new Triton, torch or transformers may change any of it, and so may an oracle.
ANY = ("pyproject.toml", "constraints.txt", "tests/helpers/")
KERNELS = ("pagedattn_lab/attention/", "pagedattn_lab/arithmetic.py", *ANY)
SHAPES = ("pagedattn_lab/kv_shape.py", "pagedattn_lab/kv_config.py", "pagedattn_lab/kv_layers.py", *ANY)
KERNEL_CHAPTERS = ("chapters/", "tools/notebooks.py", "pagedattn_lab/exercises/", "pagedattn_lab/viz/", *KERNELS)
COMPILER = ("pagedattn_lab/cli/compile.py", "pagedattn_lab/compile_report.py", "pagedattn_lab/kernels.py",
            "pagedattn_lab/assembly.py", "pagedattn_lab/occupancy.py", *KERNELS)  # fmt: skip
ENGINE = (":(glob)pagedattn_lab/*.py", "pagedattn_lab/engine/", "pagedattn_lab/models/", "pagedattn_lab/budget/",
          *KERNELS)  # fmt: skip
BENCH = ("pagedattn_lab/bench/", "pagedattn_lab/cli/", *ENGINE)
FLEET = ("pagedattn_lab/studies/", "pagedattn_lab/workloads/", "pagedattn_lab/__init__.py",
         "pagedattn_lab/arithmetic.py", "pagedattn_lab/hardware.py", *SHAPES)  # fmt: skip
LIBRARY = ("pagedattn_lab/", *ANY)
