"""The drawing of a frame: physical blocks, the page tables beside them, the free queue below (chapters 00, 03, 04, 07).

``looks.js``, ``tiles.js``, ``tables.js`` and ``board.js`` draw the same board, string for string, as the modules of
these names, so that the picture without scripts and the one that moves cannot part; a browser test compares them. Hence
whole numbers only, no ids, and colours as attributes that a stylesheet may override.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.recorder.frame import Frame
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import MIME, Picture
from pagedattn_lab.viz.looks import heading
from pagedattn_lab.viz.tables import arrow, draw_free, draw_tables, in_question, place_free, place_tables, runs
from pagedattn_lab.viz.tiles import GAP, Scene, Words, block_group, tile_for

WIDTH = 760
_PAD = 8


@dataclass(frozen=True)
class Still(Picture):
    """A board that stands still. Where scripts run they draw it anew, as wide as the page is and in its colours.

    Args:
        recording: its one frame, in the form that a player plays.
    """

    recording: Mapping[str, Any] = field(default_factory=dict, repr=False)

    __repr__ = Picture.__repr__

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**options) | {MIME: {"label": self.alt, "step": 0, **self.recording}}


def draw(frame: Frame, words: Words | None = None, width: int = WIDTH, among: Sequence[Frame] = ()) -> str:
    """Draw one frame as an SVG element.

    Args:
        frame: the state to draw.
        words: text of each token by request, to stand in the cells.
        width: pixels there are; a wide board has the tables beside the blocks, a narrow one below.
        among: the frames of the recording, if it is one of several: the board then has room for each of them, so that
            it keeps its height, and its legend lists what occurs in any.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.recorder.frame import snapshot
        >>> draw(snapshot(BlockPool(4, 4), {})).count("<title>slot")
        16
    """
    words, frames = words or {}, among or (frame,)
    num_blocks, room = len(frame.ref_cnt), width - 2 * _PAD
    dense = num_blocks > 96
    with_tables = any(each.tables for each in frames)
    beside = width >= 700 and not dense and with_tables
    tables_width = max(240, width * 38 // 100) if beside else room
    blocks_width = room - (tables_width + 2 * GAP if beside else 0)
    longest = max([1, *(len(word.lstrip(" ")) for texts in words.values() for word in texts)]) if words else 0
    tile = tile_for(num_blocks, frame.block_size, longest, blocks_width)
    gap = 6 if dense else GAP
    columns = max(1, (blocks_width + gap) // (tile.width + gap))
    right = _PAD + columns * (tile.width + gap) - gap + 4
    groups = [heading("Physical blocks", _PAD, 18)]
    scene = Scene(frame, tile, words, {table.name: table for table in frame.tables}, frozenset(frame.free))
    places = []
    for block in frame.blocks:
        x = _PAD + block.block_id % columns * (tile.width + gap)
        y = 30 + block.block_id // columns * (tile.height + gap)
        places.append((x, y))
        groups.append(block_group(block, scene, x, y))
    bottom = 30 + cdiv(num_blocks, columns) * (tile.height + gap)
    arrows = []
    if with_tables:
        left, top = (width - _PAD - tables_width, 18) if beside else (_PAD, bottom + 14)
        groups.append(heading("Page tables: logical → physical block", left, top))
        placed = place_tables(frame, dense, left, top, tables_width)
        groups += draw_tables(frame, dense, placed)
        chosen = in_question(frame)
        arrows = [
            arrow(entry, placed, places[entry.block_id], tile, right if beside else None)
            for table in placed.tables
            for entry in table.entries
            if (entry.table.name, entry.logical) in chosen
        ]
        bottom = max(bottom, *(place_tables(each, dense, left, top, tables_width).end for each in frames))
    top = bottom + 14
    groups += draw_free(frame, place_free(frame, dense, _PAD, top, room)[0], _PAD, top)
    bottom = max(place_free(each, dense, _PAD, top, room)[1] for each in frames)
    for line in _lines(legend(frames), room // 6):
        bottom += 16
        groups.append(f'<text x="{_PAD}" y="{bottom}" font-size="11" class="pa-soft" fill="#5f5f5f">{line}</text>')
    height = bottom + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect class="pa-paper" width="{width}" height="{height}" '
        f'fill="#fff"/>{"".join(groups + arrows)}</svg>'
    )


def legend(frames: Sequence[Frame]) -> list[str]:
    """Say what the signs mean that occur in any of some frames.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.recorder.frame import snapshot
        >>> legend([snapshot(BlockPool(4, 4), {})])
        ['dashed: free']
    """
    shared = counts = miscounted = free = False
    for frame in frames:
        owners = [0] * len(frame.ref_cnt)
        for table in frame.tables:
            for block_id in table.block_ids:
                owners[block_id] += 1
        pairs = list(zip(frame.ref_cnt, owners, strict=True))[1:]
        shared |= any(number > 1 for _, number in pairs)
        counts |= any(count > 1 for count, _ in pairs)
        miscounted |= any(count != number for count, number in pairs)
        free |= any(count == 0 for count, _ in pairs)
    signs = [
        (any(frame.changed for frame in frames), "thick outline: what the sentence is about"),
        (any(in_question(frame) for frame in frames), "arrow: from a table entry to its block"),
        (shared, "stripes: shared"),
        (counts, "ticked edge, ×n: n table entries name it"),
        (miscounted, "!: not as many table entries as counted"),
        (free, "dashed: free"),
        (any(frame.hashes for frame in frames), "#: cached contents"),
        (any(frame.contents for frame in frames), "pale, slanted: free, but the contents are still there"),
    ]
    return [words for occurs, words in signs if occurs]


def describe(frame: Frame) -> str:
    """Say in words what the board shows.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.recorder.frame import snapshot
        >>> describe(snapshot(BlockPool(4, 4), {}))
        '3 usable blocks of 4 tokens. Free queue: 1, 2, 3.'
    """
    parts = [f"{frame.sentence} "] if frame.sentence else []
    parts.append(f"{counted(len(frame.ref_cnt) - 1, 'usable block')} of {counted(frame.block_size, 'token')}. ")
    for table in frame.tables:
        entries = [
            f"{block_id} ({frame.tokens_in(table, logical)}/{frame.block_size})"
            for logical, block_id in enumerate(table.block_ids)
        ]
        where = f"in block{'s' if len(entries) > 1 else ''} {', '.join(entries)}" if entries else "and no block"
        parts.append(f"{table.name}: {counted(table.num_tokens, 'token')} {where}. ")
    for block in frame.blocks:
        if block.ref_cnt > 1 or block.ref_cnt != len(block.owners):
            parts.append(f"Block {block.block_id} has reference count {block.ref_cnt}. ")
    if frame.hashes:
        held = [
            f"{block_id} (free, {frame.contents[block_id].name}'s)" if block_id in frame.contents else str(block_id)
            for block_id in frame.hashes
        ]
        parts.append(f"Cached contents in block{'s' if len(held) > 1 else ''} {', '.join(held)}. ")
    free = ", ".join(text for text, _ in runs(frame.free, dense=True)) or "empty"
    return "".join(parts) + f"Free queue: {free}."


def show_frame(frame: Frame, words: Words | None = None, among: Sequence[Frame] = ()) -> Still:
    """Make a still picture of a frame, with its text equivalent; ``words`` and ``among`` as for :func:`draw`."""
    recording = {"num_blocks": len(frame.ref_cnt), "block_size": frame.block_size, "frames": [frame.to_dict()]}
    if words:
        recording["words"] = words
    return Still(draw(frame, words, among=among), describe(frame), recording=recording)


def _lines(items: Sequence[str], letters: int) -> list[str]:
    """Join items to lines of so many letters."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 3 + len(item) <= letters:
            lines[-1] += f" · {item}"
        else:
            lines.append(item)
    return lines
