"""Bars of memory shares: the paper's Fig. 2, for any numbers (chapters 02 and 03)."""

from __future__ import annotations

from collections.abc import Mapping

from pagedattn_lab.viz import BLUE, ORANGE, Picture
from pagedattn_lab.viz.figures import show, subplots

# Kind of memory: label, colour, hatch.
KINDS = {
    "token_states": ("token states", BLUE, ""),
    "reservation": ("reservation", ORANGE, "//"),
    "internal": ("internal", "#ddd", ".."),
    "external": ("external, other", "white", "xx"),
    "free": ("free", "white", ""),
}


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
    drawn = []
    for row, (name, shares) in enumerate(rows.items()):
        left, labelled = 0.0, row == 0
        for kind, (label, colour, hatch) in KINDS.items():
            width = 100 * shares.get(kind, 0)
            if width < 1:
                continue
            axes.barh(row, width, left=left, height=0.62, color=colour, hatch=hatch, edgecolor="#444")
            if labelled and kind != "free":  # labels at the ends lean inwards, to leave room for those between
                ends = {"token_states": (left, "left"), "external": (left + width, "right")}
                place, side = ends.get(kind, (left + width / 2, "center"))
                axes.text(place, -0.48, label, ha=side, fontsize=9)
            left += width
        axes.text(1, row, f"{100 * shares['token_states']:.1f} %", va="center", color="white", fontweight="bold")
        parts = [f"{KINDS[kind][0]} {100 * share:.1f} %" for kind, share in shares.items()]
        drawn.append(f"{name}: {', '.join(parts)}.")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="KV memory (%)", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.9), title=title)
    axes.tick_params(axis="y", length=0)
    return show(figure, alt=f"{title}. {' '.join(drawn)}")
