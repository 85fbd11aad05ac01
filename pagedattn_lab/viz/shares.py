"""Bars of memory shares: the paper's Fig. 2, for any numbers (chapters 02 and 03)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pagedattn_lab.studies import memory_shares as waste
from pagedattn_lab.viz import BLUE, ORANGE, Picture
from pagedattn_lab.viz.figures import show, subplots

_LOOKS = ((BLUE, ""), (ORANGE, "//"), ("#ddd", ".."), ("white", "xx"), ("white", ""))  # colour, hatch
KINDS = {kind: (label, *look) for (kind, label), look in zip(waste.KINDS.items(), _LOOKS, strict=True)}
"""Label, colour and hatch of each kind of memory."""

WIDTH = 6.4  # inches
LETTER, NAME_LETTER = 0.063, 0.09  # inches that a letter of a label takes, and one of a row's name
LEAST = 0.01  # a smaller share is not drawn


class Label(NamedTuple):
    """Where the name of a kind stands: above which row, and from where to where, in percent of the memory."""

    kind: str
    row: int
    start: float
    end: float


def show_shares(rows: Mapping[str, Mapping[str, float]], title: str) -> Picture:
    """Draw one bar per row, cut into its shares of memory, the share that holds tokens written in it.

    Args:
        rows: by name, shares from 0 to 1 by kind (``token_states``, ``reservation``, ``internal``, ``external``,
            ``free``); kinds that are missing, or not a hundredth of the memory, are not drawn.
        title: what the bars show.

    Raises:
        ValueError: no row, shares of an unknown kind, or shares that add up to more than 1.

    Example:
        >>> show_shares({"Max": {"token_states": 0.2, "reservation": 0.1, "internal": 0.6, "external": 0.1}}, "Little")
        Little. Max: token states 20.0 %, reservation 10.0 %, internal 60.0 %, external, other 10.0 %.
    """
    if not rows:
        raise ValueError("there is no bar to draw: give at least one row of shares")
    for name, shares in rows.items():
        unknown = [kind for kind in shares if kind not in KINDS]
        if unknown:
            raise ValueError(f"{name}: {unknown[0]!r} is no kind of memory: use {', '.join(KINDS)}")
        if min(shares.values()) < 0 or sum(shares.values()) > 1.005:
            raise ValueError(f"{name}: shares {dict(shares)} are not parts of one memory")
    figure, axes = subplots(figsize=(WIDTH, 0.9 + 0.46 * len(rows)))
    drawn = []
    for row, (name, shares) in enumerate(rows.items()):
        for kind, (left, width) in parts(shares).items():
            _, colour, hatch = KINDS[kind]
            axes.barh(row, width, left=left, height=0.6, color=colour, hatch=hatch, edgecolor="#444")
        tokens = 100 * shares["token_states"]
        inside = tokens > 13  # a shorter bar has its figure beside it, on paper of its own
        look = {"color": "white"} if inside else {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
        axes.text(1 if inside else tokens + 1.5, row, f"{tokens:.1f} %", va="center", fontweight="bold", **look)
        words = [f"{KINDS[kind][0]} {100 * share:.1f} %" for kind, share in shares.items()]
        drawn.append(f"{name}: {', '.join(words)}.")
    for label in place_labels(rows):
        axes.text(label.start, label.row - 0.37, KINDS[label.kind][0], fontsize=9)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="KV memory (%)", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.8), title=title)
    axes.tick_params(axis="y", length=0)
    return show(figure, alt=f"{title}. {' '.join(drawn)}")


def parts(shares: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Say where each part of a bar begins and how wide it is, in percent; those too small to draw are left out.

    Example:
        >>> parts({"token_states": 0.5, "reservation": 0.004, "internal": 0.25})
        {'token_states': (0.0, 50.0), 'internal': (50.0, 25.0)}
    """
    found, left = {}, 0.0
    for kind in KINDS:
        if shares.get(kind, 0) >= LEAST:
            found[kind] = (left, 100 * shares[kind])
            left += found[kind][1]
    return found


def place_labels(rows: Mapping[str, Mapping[str, float]]) -> list[Label]:
    """Give each kind that is drawn one label, above the first part that is wide enough for it, else the widest.

    Labels above one row keep clear of each other, if need be beside the part that they name.
    """
    letter = 100 * LETTER / (WIDTH - 0.3 - NAME_LETTER * max(map(len, rows)))
    gap = 1.5 * letter
    bars = [parts(shares) for shares in rows.values()]
    chosen: list[list[tuple[float, float, str]]] = [[] for _ in bars]
    for kind, (words, *_) in KINDS.items():
        widths = [bar[kind][1] if kind in bar else 0.0 for bar in bars]
        if max(widths) == 0:
            continue
        wide = letter * len(words)
        row = next((row for row, width in enumerate(widths) if width >= wide), widths.index(max(widths)))
        chosen[row].append((bars[row][kind][0], wide, kind))
    labels = []
    for row, wanted in enumerate(chosen):
        starts, end = [], -gap
        for left, wide, _ in wanted:
            starts.append(max(left, end + gap))
            end = starts[-1] + wide
        room = 100.0
        for index in reversed(range(len(wanted))):  # those that would stand out at the end move back
            starts[index] = min(starts[index], room - wanted[index][1])
            room = starts[index] - gap
        labels += [Label(kind, row, start, start + wide) for start, (_, wide, kind) in zip(starts, wanted, strict=True)]
    return labels
