"""Bars of memory shares: what is drawn is what was given."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from pagedattn_lab.studies.paper import FIG_2
from pagedattn_lab.viz.shares import KINDS, parts, place_labels, show_shares


def bars(svg: str) -> list[tuple[float, float]]:
    """Return where each filled bar begins and ends, in the order drawn."""
    found = []
    for path in re.findall(r'<path d="M ([^"]+?)z\s*" clip-path', svg):
        xs = [float(pair.split()[0]) for pair in re.split(r"\s*[MLz]\s*", path) if pair.strip()]
        found.append((min(xs), max(xs)))
    return found


def test_bars_are_as_long_as_their_shares() -> None:
    """Catches bars that overlap or leave a gap, a share drawn for another, and a kind that is left out."""
    rows = [FIG_2["max"], {"token_states": 0.9, "free": 0.1}]
    expected = []
    for row in rows:
        sums = [sum(list(row.values())[:count]) for count in range(len(row) + 1)]
        expected += list(pairwise(sums))
    drawn = bars(show_shares(dict(zip("ab", rows, strict=True)), "Bars").svg)
    assert len(drawn) == len(expected)
    zero = drawn[0][0]
    scale = (drawn[0][1] - zero) / expected[0][1]
    # Coordinates are written with 6 decimals, in points; bars are hundreds of points long.
    for (start, end), (share_start, share_end) in zip(drawn, expected, strict=True):
        assert start == pytest.approx(zero + scale * share_start, abs=1e-3)
        assert end == pytest.approx(zero + scale * share_end, abs=1e-3)


def test_every_share_is_in_words() -> None:
    """Catches alt text that drops a kind, even one too small to draw."""
    alt = show_shares({"blocks": dict.fromkeys(KINDS, 0.004)}, "Small").alt
    assert [label in alt for label, *_ in KINDS.values()] == [True] * len(KINDS)
    assert alt.count("0.4 %") == len(KINDS)


@pytest.mark.parametrize(
    "rows",
    [
        {"Max": FIG_2["max"], "Pow2": FIG_2["pow2"]},
        {"paged, blocks of 16": {"token_states": 0.97, "internal": 0.02, "free": 0.01}, "Max": FIG_2["max"]},
        {"a": {"token_states": 0.9, "reservation": 0.03, "internal": 0.03, "external": 0.02, "free": 0.02}},
        {"a": dict.fromkeys(KINDS, 0.2), "a longer name of a row": {"token_states": 1.0}},
    ],
)
def test_every_part_has_a_label_of_its_own(rows: dict[str, dict[str, float]]) -> None:
    """Catches labels over one another or past the end, and a kind without one because the first bar lacks it."""
    labels, bars = place_labels(rows), [parts(shares) for shares in rows.values()]
    assert sorted(label.kind for label in labels) == sorted({kind for bar in bars for kind in bar})
    svg = show_shares(rows, "Bars").svg
    assert all(f">{KINDS[label.kind][0]}</text>" in svg for label in labels)
    for before, after in pairwise(labels):
        assert before.row != after.row or before.end < after.start
    assert all(label.start >= 0 and label.end <= 100 + 1e-9 for label in labels)
    for kind, row, start, end in labels:
        left, width = bars[row][kind]
        assert width < 5 or (start < left + width and left < end), "it stands over its part"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no bar"),
        ({"a": {"token_states": 0.5, "waste": 0.1}}, "a: 'waste' is no kind"),
        ({"a": {"token_states": 20.4}}, "not parts of one memory"),
        ({"a": {"token_states": -0.1}}, "not parts of one memory"),
    ],
)
def test_what_is_no_memory_is_refused(rows: dict[str, dict[str, float]], message: str) -> None:
    """Catches percent given for shares, and a misspelt kind that would leave a hole in the bar."""
    with pytest.raises(ValueError, match=message):
        show_shares(rows, "Bars")
