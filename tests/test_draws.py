"""What daily work leaves out, and that ``make test`` leaves out nothing."""

from __future__ import annotations

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
    monkeypatch.setattr(draws, "changed", lambda pattern: [pattern] if pattern == differs else [])
    draws.leave_out(item)
    assert bool(item.get_closest_marker("skip")) == skipped


def test_paths_of_marks_are_there() -> None:
    """Catches a mark that waits for changes to a file that has been renamed: it would be left out for ever."""
    root = Path(draws.__file__).parents[2]
    for pattern in {*draws.COMPILER, *draws.ENGINE} - {":(glob)pagedattn_lab/*.py"}:
        assert (root / pattern).exists(), pattern


def test_the_gate_asks_for_all() -> None:
    """Catches a recipe of make test that takes over what the environment, or make check, asks for."""
    makefile = (Path(draws.__file__).parents[2] / "Makefile").read_text()
    check, test = (makefile.split(f"\n{target}: ")[1].split("\n\n")[0] for target in ("check", "test"))
    assert "TESTS_DRAW_ONE_IN=4 $(PYTEST)" in check and "@TESTS_DRAW_ONE_IN= $(PYTEST)\n" in test + "\n"
    assert "TESTS_DRAW_ONE_IN" not in makefile.split("PYTEST :=")[1].split("\n\n")[0]
