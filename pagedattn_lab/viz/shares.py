"""Bars of memory shares: the paper's Fig. 2, for any numbers (chapters 02 and 03)."""

from __future__ import annotations

from collections.abc import Mapping

from pagedattn_lab.studies import memory_shares as waste
from pagedattn_lab.viz import BLUE, ORANGE, Picture
from pagedattn_lab.viz.figures import show, subplots

_LOOKS = ((BLUE, ""), (ORANGE, "//"), ("#ddd", ".."), ("white", "xx"), ("white", ""))  # colour, hatch
KINDS = {kind: (label, *look) for (kind, label), look in zip(waste.KINDS.items(), _LOOKS, strict=True)}
"""Label, colour and hatch of each kind of memory."""

PERCENT_PER_LETTER = 1.4  # of the axis, in letters of this size


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
    figure, axes = subplots(figsize=(6.4, 0.9 + 0.42 * len(rows)))
    drawn, label_end = [], -2.0
    for row, (name, shares) in enumerate(rows.items()):
        left = 0.0
        for kind, (label, colour, hatch) in KINDS.items():
            width = 100 * shares.get(kind, 0)
            if width < 1:
                continue
            axes.barh(row, width, left=left, height=0.62, color=colour, hatch=hatch, edgecolor="#444")
            if row == 0 and kind != "free":  # each label begins with its part of the first bar, or after the last label
                start = max(left, label_end + 2)
                label_end = start + PERCENT_PER_LETTER * len(label)
                at_end = kind == "external"
                axes.text(100 if at_end else start, -0.48, label, ha="right" if at_end else "left", fontsize=9)
            left += width
        tokens = 100 * shares["token_states"]
        inside = tokens > 13  # a shorter bar has its figure beside it, on paper of its own
        look = {"color": "white"} if inside else {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
        axes.text(1 if inside else tokens + 1.5, row, f"{tokens:.1f} %", va="center", fontweight="bold", **look)
        parts = [f"{KINDS[kind][0]} {100 * share:.1f} %" for kind, share in shares.items()]
        drawn.append(f"{name}: {', '.join(parts)}.")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="KV memory (%)", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.9), title=title)
    axes.tick_params(axis="y", length=0)
    return show(figure, alt=f"{title}. {' '.join(drawn)}")
