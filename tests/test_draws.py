"""What daily work leaves out, and that ``make test`` leaves out nothing."""

from __future__ import annotations

import subprocess
from itertools import combinations, product
from pathlib import Path

import pytest

from tests.helpers import draws

LISTS = ((1, 2, 3, 4), (5, 6, 7), (8, 9, 10))


def test_all_is_drawn_unless_less_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a gate that draws less, and daily work that draws as much as ever, or next to nothing."""
    monkeypatch.setattr(draws, "ONE_IN", 1)
    assert [draws.drawn(number) for number in (1, 30, 150)] == [1, 30, 150]
    assert draws.pairwise(*LISTS) == list(product(*LISTS))
    monkeypatch.setattr(draws, "ONE_IN", 4)
    assert [draws.drawn(number) for number in (1, 5, 8, 30, 150)] == [1, 5, 5, 8, 38]


def test_each_pair_is_in_a_part_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches two values that meet in no combination that is left."""
    monkeypatch.setattr(draws, "ONE_IN", 4)
    left = draws.pairwise(*LISTS)
    assert len(left) == 12 < len(list(product(*LISTS)))
    for first, second in combinations(range(3), 2):
        assert {(each[first], each[second]) for each in left} == set(product(LISTS[first], LISTS[second]))


@pytest.mark.parametrize(
    ("one_in", "differs", "skipped"),
    [
        (4, None, True),
        (4, "pagedattn_lab/attention/", False),
        (4, "tests/test_draws.py", False),
        (4, "README.md", True),
        (1, None, False),
    ],
)
def test_slow_tests_are_left_out_where_nothing_changed(
    one_in: int, differs: str | None, skipped: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a test left out by the gate, or although its code or its own file differs."""
    item = pytest.Function.from_parent(request.node.parent, name="some", callobj=lambda: None)
    item.add_marker(pytest.mark.when_changed(*draws.KERNELS))
    monkeypatch.setattr(draws, "ONE_IN", one_in)
    monkeypatch.setattr(draws, "changed", lambda pattern: pattern == differs)
    draws.leave_out(item)
    assert bool(item.get_closest_marker("skip")) == skipped


def test_paths_of_marks_are_there(request: pytest.FixtureRequest) -> None:
    """Catches a mark that waits for changes to a file that has been renamed: it would be left out for ever."""
    marks = [mark for item in request.session.items for mark in item.iter_markers("when_changed")]
    named = {path for mark in marks for path in mark.args} | {*draws.COMPILER, *draws.BENCH, *draws.KERNEL_CHAPTERS}
    for path in named - {":(glob)pagedattn_lab/*.py"}:
        assert (draws.ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("commands", "differs"),
    [
        ([], False),
        (["git rm -q lib/old.py"], True),
        (["git switch -q -c other", "git branch -q -D main"], True),
        (["rm -r .git"], True),
    ],
    ids=["nothing", "deleted", "no main branch", "no repository"],
)
def test_where_nothing_is_known_all_is_tested(
    commands: list[str], differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches tests left out as unchanged where git cannot say so, or where what they test is gone."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "old.py").touch()
    identity = "git -c user.name=Ada -c user.email=ada@example.org"
    for command in ("git init -q -b main", "git add .", f"{identity} commit -q -m first", *commands):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    monkeypatch.setattr(draws, "ROOT", tmp_path)
    draws.changed.cache_clear()
    try:
        assert draws.changed("lib/") == differs
    finally:
        draws.changed.cache_clear()


def test_the_gate_asks_for_all() -> None:
    """Catches a recipe of make test that takes over what the environment, or make check, asks for."""
    makefile = (Path(draws.__file__).parents[2] / "Makefile").read_text()
    check, test = (makefile.split(f"\n{target}: ")[1].split("\n\n")[0] for target in ("check", "test"))
    assert "TESTS_DRAW_ONE_IN=4 $(PYTEST)" in check and "@TESTS_DRAW_ONE_IN= $(PYTEST)\n" in test + "\n"
    assert "TESTS_DRAW_ONE_IN" not in makefile.split("PYTEST :=")[1].split("\n\n")[0]
