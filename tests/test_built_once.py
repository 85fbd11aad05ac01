"""Workers of one test run share one built book, and tests that share what is costly stay on one worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.built import built_once


def test_workers_share_one_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a book that every worker builds for itself, and one read before it is complete."""
    builds: list[Path] = []

    def build(target: Path) -> None:
        builds.append(target)
        (target / "index.html").write_text("whole")

    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    workers = [tmp_path / f"gw{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        sites = set(pool.map(lambda worker: built_once(worker, "book", build), workers))
    assert sites == {tmp_path / "book"} and len(builds) == 1
    assert (tmp_path / "book" / "index.html").read_text() == "whole"
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    workers[0].mkdir()
    assert built_once(workers[0], "book", build) == workers[0] / "book"


def test_a_failed_build_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second worker that takes a failed build for a book, or goes on with what it left."""

    def build(target: Path) -> None:
        assert list(target.iterdir()) == []
        (target / "half.html").touch()
        raise AssertionError("a warning")

    for _ in range(2):
        with pytest.raises(AssertionError, match="a warning"):
            built_once(tmp_path, "book", build)
