"""The page tables of one request in a model with several groups of layers, and the window that moves over them
(chapter 11).

A row a group, a cell a logical block with the number of the physical block in it. A block that has fallen out of the
window went back to the pool: its entry names the null block, and is hatched.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import BLUE, ORANGE, Picture
from pagedattn_lab.viz.looks import INK

if TYPE_CHECKING:
    from pagedattn_lab.kv_cache_groups import KVCacheGroup

MOST_BLOCKS = 32
LEAST_WIDTH = 400
NULL = 0  # the number of the null block
_LEFT, _MOST_CELL, _LEAST_CELL, _BOX, _ROW = 10, 44, 24, 22, 84  # pixels


class GroupView(NamedTuple):
    """What is to be known of a group of layers.

    Attributes:
        name: what stands above its row.
        window: the tokens that its layers read, the newest among them; ``None`` for full attention.
    """

    name: str
    window: int | None = None


class GroupTables(NamedTuple):
    """The tables of one request in one step.

    Attributes:
        block_ids: each group's physical blocks in logical order; 0, the null block, for one that was given back.
        num_tokens: tokens of the request that have a slot, those of this step among them.
        num_new_tokens: how many the step computes; they are the last ones.
    """

    block_ids: tuple[tuple[int, ...], ...]
    num_tokens: int
    num_new_tokens: int = 1


def group_views(groups: Sequence[KVCacheGroup]) -> list[GroupView]:
    """Name the groups of a model, as :func:`pagedattn_lab.kv_cache_groups.kv_cache_groups` forms them.

    Example:
        >>> from pagedattn_lab.kv_cache_groups import kv_cache_groups
        >>> from pagedattn_lab.kv_cache_specs import FullAttentionSpec, SlidingWindowSpec
        >>> full = FullAttentionSpec(block_size=4, num_kv_heads=1, head_size=8, dtype="float32")
        >>> window = SlidingWindowSpec(4, 1, 8, "float32", sliding_window=6)
        >>> group_views(kv_cache_groups({"layer 0": full, "layer 1": window}))
        [GroupView(name='full attention, 1 layer', window=None), GroupView(name='sliding window, 1 layer', window=6)]
    """
    windows = [getattr(group.spec, "sliding_window", None) for group in groups]
    kept = [
        None if group.spec.table == "every token" else window for group, window in zip(groups, windows, strict=True)
    ]
    names = [f"{group.spec.kind}, {counted(len(group.layers), 'layer')}" for group in groups]
    return [GroupView(name, window) for name, window in zip(names, kept, strict=True)]


def show_groups(
    tables: GroupTables, groups: Sequence[GroupView], block_size: int, before: GroupTables | None = None
) -> Picture:
    """Draw the page table of each group, one below the other, with what the step reads of it.

    Args:
        tables: the tables to draw.
        groups: what the rows are.
        block_size: tokens in a block, the same in every group.
        before: the tables one step earlier, to say what has changed; changed entries have a thick frame.

    Returns:
        A picture whose alt text holds the same tables.

    Raises:
        ValueError: no group, tables of another number of groups, a table too short for the tokens or too long to
            draw, or an entry of no block where the step reads.

    Example:
        Full attention, and a window of 6 tokens; token 13 is computed. It reads tokens 8 to 13, so that the first of
        the windowed group's blocks is no longer needed.

        >>> groups = [GroupView("full attention"), GroupView("window", window=6)]
        >>> show_groups(GroupTables(((1, 2, 5, 7), (0, 4, 6, 8)), num_tokens=13), groups, block_size=4)
        Token 13 is computed: full attention holds 4 blocks, window 3 blocks. Full attention: blocks 1, 2, 5, 7; reads tokens 1–13. Window, 6 tokens: blocks null, 4, 6, 8; reads tokens 8–13.
    """  # noqa: E501
    _check(tables, groups, block_size)
    columns = max(map(len, tables.block_ids))
    cell = max(_LEAST_CELL, min(_MOST_CELL, (LEAST_WIDTH - 2 * _LEFT) // columns))
    width, height = max(LEAST_WIDTH, 2 * _LEFT + cell * columns), 24 + _ROW * len(groups) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>',
        _text(_LEFT, 16, f"{counted(tables.num_tokens, 'token')}, {counted(block_size, 'token')} a block"),
    ]
    for number, (ids, group) in enumerate(zip(tables.block_ids, groups, strict=True)):
        old = before.block_ids[number] if before is not None else ids
        parts.append(_row(ids, old, group, _read(tables, group), 24 + _ROW * number, cell, width, block_size))
    held = [_held(ids) for ids in tables.block_ids]
    full = len(groups) * cdiv(tables.num_tokens, block_size)
    total = f"{counted(sum(held), 'block')} held; every group with full attention would hold {full}"
    parts.append(_text(_LEFT, height - 8, total, bold=True))
    caption = _caption(tables, groups, held, before)
    return Picture("\n".join([*parts, "</svg>"]), f"{caption} {_listing(tables, groups)}", caption)


def windows(steps: Sequence[GroupTables], groups: Sequence[GroupView], block_size: int) -> list[Picture]:
    """Draw the tables step by step: pictures for a :class:`pagedattn_lab.viz.player.Player`.

    Arguments and errors as for :func:`show_groups`; a step's caption says what it took and gave back.

    Example:
        >>> groups = [GroupView("full attention"), GroupView("window", window=4)]
        >>> steps = [GroupTables(((1, 3), (2, 4)), 8), GroupTables(((1, 3, 5), (0, 4, 6)), 9)]
        >>> print(windows(steps, groups, block_size=4)[1].caption)
        Token 9 is computed: full attention takes block 5; window gives back block 2, takes block 6.
    """
    return [show_groups(step, groups, block_size, steps[at - 1] if at else None) for at, step in enumerate(steps)]


def _check(tables: GroupTables, groups: Sequence[GroupView], block_size: int) -> None:
    at_least_one("block_size", block_size)
    if not groups or len(tables.block_ids) != len(groups):
        raise ValueError(f"{len(tables.block_ids)} tables for {counted(len(groups), 'group')}: give one each")
    if not 0 < tables.num_new_tokens <= tables.num_tokens:
        raise ValueError(
            f"a step computes {tables.num_new_tokens} of {tables.num_tokens} tokens: give 1 or more of them"
        )
    for ids, group in zip(tables.block_ids, groups, strict=True):
        if not cdiv(tables.num_tokens, block_size) <= len(ids) <= MOST_BLOCKS:
            raise ValueError(
                f"{group.name}: {counted(len(ids), 'entry').replace('entrys', 'entries')} for {tables.num_tokens} "
                f"tokens: give {cdiv(tables.num_tokens, block_size)} to {MOST_BLOCKS}"
            )
        first, last = (position // block_size for position in _read(tables, group))
        for logical in range(first, last + 1):
            if ids[logical] == NULL:
                raise ValueError(
                    f"{group.name}: the step reads logical block {logical}, and the table has no block there"
                )


def _read(tables: GroupTables, group: GroupView) -> tuple[int, int]:
    """The first and the last position that the step's tokens read: a window counts from the first new token."""
    last = tables.num_tokens - 1
    if group.window is None:
        return 0, last
    return max(0, tables.num_tokens - tables.num_new_tokens - group.window + 1), last


def _held(ids: Sequence[int]) -> int:
    return sum(block_id != NULL for block_id in ids)


def _row(
    ids: Sequence[int],
    old: Sequence[int],
    group: GroupView,
    read: tuple[int, int],
    y: int,
    cell: int,
    width: int,
    block_size: int,
) -> str:
    """One group: its name and what it holds, the logical numbers, the entries, and a bracket under what is read."""
    parts = [
        _text(_LEFT, y + 14, _title(group), bold=True),
        _text(width - _LEFT, y + 14, f"holds {_held(ids)} of {len(ids)}", "end"),
    ]
    fill, ink = (BLUE, "#fff") if group.window is None else (ORANGE, "#000")
    for logical, block_id in enumerate(ids):
        x = _LEFT + cell * logical
        changed = logical >= len(old) or old[logical] != block_id
        parts.append(_text(x + cell // 2, y + 30, str(logical), "middle", 'class="pa-soft" fill="#5f5f5f"', 11))
        parts.append(_entry(group, logical, block_id, x, y + 34, cell, fill, ink, changed))
    left, right = (_LEFT + round(cell * position / block_size) for position in (read[0], read[1] + 1))
    parts.append(f'<path d="M{left},{y + 60}v5H{right}v-5" fill="none" stroke="#222" stroke-width="2"/>')
    words = _reads(read)
    room = len(words) * 6
    middle = max(_LEFT + room // 2, min((left + right) // 2, width - _LEFT - room // 2))
    return "".join([*parts, _text(middle, y + 79, words, "middle")])


def _entry(
    group: GroupView, logical: int, block_id: int, x: int, y: int, cell: int, fill: str, ink: str, changed: bool
) -> str:
    """One entry of a page table: the number of its block, or hatching and "null"."""
    frame = 'stroke="#222" stroke-width="3"' if changed else 'stroke="#777"'
    size = f'width="{cell - 2}" height="{_BOX}"'
    if block_id == NULL:
        words = "the null block, behind the window"
        hatch = "".join(_hatch_line(x + 1, y, cell - 2, _BOX, offset) for offset in range(6, cell - 2 + _BOX, 6))
        box = f'<rect x="{x + 1}" y="{y}" {size} fill="#f4f4f4" stroke-dasharray="3 2" {frame}/>'
        box += f'<path d="{hatch}" fill="none" stroke="#d9d9d9"/>'
        text = _text(x + cell // 2, y + 15, "null", "middle", size=10)
    else:
        words = f"block {block_id}"
        box = f'<rect x="{x + 1}" y="{y}" {size} fill="{fill}" {frame}/>'
        text = _text(x + cell // 2, y + 16, str(block_id), "middle", f'fill="{ink}"')
    return f"<g><title>{escape(f'{group.name}, logical block {logical}: {words}')}</title>{box}{text}</g>"


def _hatch_line(x: int, y: int, width: int, height: int, offset: int) -> str:
    """A line at 45 degrees, cut to its box by hand: a clip path would need an id, and a picture has none.

    It leaves the box's edge ``offset`` pixels from the top left corner, to the right and downwards.
    """
    left, top = max(0, offset - height), min(offset, height)
    right, bottom = min(offset, width), max(0, offset - width)
    return f"M{x + left},{y + top}L{x + right},{y + bottom}"


def _title(group: GroupView) -> str:
    name = group.name[:1].upper() + group.name[1:]
    return name if group.window is None else f"{name}, {counted(group.window, 'token')}"


def _reads(read: tuple[int, int]) -> str:
    first, last = read[0] + 1, read[1] + 1
    return f"reads tokens {first}–{last}" if first < last else f"reads token {first}"


def _caption(tables: GroupTables, groups: Sequence[GroupView], held: Sequence[int], before: GroupTables | None) -> str:
    """Say what the step computes, and what changed; without a step before it, what is held."""
    first = tables.num_tokens - tables.num_new_tokens + 1
    what = (
        f"Token {first} is computed"
        if tables.num_new_tokens == 1
        else f"Tokens {first}–{tables.num_tokens} are computed"
    )
    if before is None:
        clauses = [f"{groups[0].name} holds {counted(held[0], 'block')}"]
        clauses += [f"{group.name} {counted(n, 'block')}" for group, n in zip(groups[1:], held[1:], strict=True)]
        return f"{what}: {', '.join(clauses)}."
    clauses = []
    for group, old, new in zip(groups, before.block_ids, tables.block_ids, strict=True):
        gone = [a for a, b in zip(old, new, strict=False) if a != b and a != NULL]
        came = [b for at, b in enumerate(new) if b != NULL and (at >= len(old) or old[at] != b)]
        verbs = [f"gives back {_blocks(gone)}"] if gone else []
        verbs += [f"takes {_blocks(came)}"] if came else []
        clauses += [f"{group.name} {', '.join(verbs)}"] if verbs else []
    return f"{what}: {'; '.join(clauses) or 'no block changes hands'}."


def _blocks(ids: Sequence[int]) -> str:
    return f"block {ids[0]}" if len(ids) == 1 else f"blocks {', '.join(map(str, ids))}"


def _listing(tables: GroupTables, groups: Sequence[GroupView]) -> str:
    """All tables in words."""
    rows = []
    for ids, group in zip(tables.block_ids, groups, strict=True):
        entries = ", ".join("null" if block_id == NULL else str(block_id) for block_id in ids)
        rows.append(f"{_title(group)}: blocks {entries}; {_reads(_read(tables, group))}.")
    return " ".join(rows)


def _text(x: int, y: int, text: str, anchor: str = "start", ink: str = INK, size: int = 12, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"{weight} {ink}>{escape(text)}</text>'
