"""What every test file gets: plain words from a failing assertion, the built book, and a fair share for each worker."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

pytest.register_assert_rewrite("tests.helpers")  # before anything is imported from there

from tests.helpers.built import build_book, built_once  # noqa: E402
from tests.helpers.comparisons import with_comparisons_again  # noqa: E402
from tests.helpers.draws import ONE_IN, drawn, leave_out  # noqa: E402

# How long an example takes is not tested: on a busy machine any may take more than Hypothesis' 200 ms.
hypothesis.settings.register_profile("untimed", deadline=None, max_examples=drawn(100))
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]
collect_ignore = ["conftest.py", "browser/conftest.py"]  # no doctests here, and two modules cannot share a name
BROWSER, CHAPTERS = ROOT / "tests" / "browser", ROOT / "chapters"
ONE_CHAPTER = re.compile(r"(tests/browser/\w+\.py)::\w+\[(?:chapters/)?([0-9A]\d_\w+|tour)\b")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first, and keep the order otherwise: then no worker ends long after the other.

    The very first has the book built. While one worker does that, the others have what needs no book.
    """
    items[:] = with_comparisons_again(items)
    for item in items:
        leave_out(item)
    of_the_book = {item.path for item in items if "site" in getattr(item, "fixturenames", ())}

    def turn(item: pytest.Item) -> int:
        if item.path == BROWSER / "test_built_book.py" and not ONE_CHAPTER.match(item.nodeid):
            return 0
        if BROWSER in item.path.parents:
            return 2 if item.path in of_the_book else 1
        return 3 if CHAPTERS in item.path.parents else 4

    items.sort(key=turn)


def pytest_report_header() -> str | None:
    """Say so where less than all is tested."""
    less = f"one example in {ONE_IN} is drawn, and slow tests of what is as on the main branch are skipped"
    return None if ONE_IN == 1 else f"daily work: {less}; make test has all"


class Scheduling(LoadFileScheduling):
    """Keeps on one worker the tests of a file, or in a browser those of one chapter in it."""

    def _split_scope(self, nodeid: str) -> str:
        chapter = ONE_CHAPTER.match(nodeid)
        return " ".join(chapter.groups()) if chapter else super()._split_scope(nodeid)


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: those with a browser wait for it, and for kernels, much of their time.

    Daily work has no browser, and each worker more would collect all tests once more.
    """
    return (os.cpu_count() or 1) + (ONE_IN == 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Take the place of ``--dist loadfile``."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the book as ``make book`` does, once for all workers; a warning fails the build."""
    return built_once(tmp_path_factory.getbasetemp(), "built-book", build_book)


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """Have a file's tests share each model that they load: a load is tests/test_models.py's business."""
    from pagedattn_lab import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", functools.cache(models.load))
        yield
