"""What every test file gets: plain words from a failing assertion, the built book, and a fair share for each worker."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.helpers")  # before anything is imported from there

from tests.helpers.built import built_once  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BROWSER = ROOT / "tests" / "browser"
SLOW = (BROWSER, ROOT / "chapters")  # files that take minutes: no worker may begin one when the other is nearly done


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first, and say what stays on one worker: a file, or in a browser one chapter of it."""
    items.sort(key=lambda item: not any(folder in item.path.parents for folder in SLOW))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


def group(item: pytest.Item) -> str:
    """Name the tests that share what is costly to make: one notebook's kernel and page, or a file's fixtures."""
    name = str(item.path.relative_to(ROOT))
    chapter = item.callspec.params.get("chapter") if hasattr(item, "callspec") else None
    return f"{name} {Path(chapter).stem}" if chapter and BROWSER in item.path.parents else name


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the book as ``make book`` does, once for all workers; a warning fails the build."""
    return built_once(tmp_path_factory.getbasetemp())
