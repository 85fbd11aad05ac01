"""The page tables of one request in a model with several groups of layers, and the window that moves over them
(chapter 11).

A row a group, a cell a logical block with the number of the physical block in it. A block that has fallen out of the
window went back to the pool: its entry names the null block, and is hatched.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import SlidingWindowSpec
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.request import Request
from pagedattn_lab.viz import BLUE, ORANGE, Picture

MOST_BLOCKS = 32
LEAST_WIDTH = 400
NULL = 0  # the number of the null block
_TIGHT = 30  # a cell for small numbers
_LEFT, _TOP, _MOST_CELL, _LEAST_CELL, _BOX, _ROW = 10, 24, 44, 24, 22, 84  # pixels


class GroupView(NamedTuple):
    """What is to be known of a group of layers.

    Attributes:
        name: what stands above its row.
        window: the tokens that its layers read, the newest among them; ``None`` for full attention.
        num_layers: how many layers read the table; ``None`` if it does not matter.
    """

    name: str
    window: int | None = None
    num_layers: int | None = None


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
        >>> for view in group_views(kv_cache_groups({"layer 0": full, "layer 1": window})):
        ...     print(view)
        GroupView(name='full attention', window=None, num_layers=1)
        GroupView(name='sliding window', window=6, num_layers=1)
    """
    kinds = [group.spec.kind for group in groups]
    views = []
    for at, (kind, group) in enumerate(zip(kinds, groups, strict=True)):
        name = kind if kinds.count(kind) == 1 else f"{kind} {kinds[: at + 1].count(kind)}"
        window = group.spec.sliding_window if isinstance(group.spec, SlidingWindowSpec) else None
        views.append(GroupView(name, window, len(group.layers)))
    return views


def read_tables(manager: GroupedKVCacheManager, request: Request) -> GroupTables:
    """Take the tables of a request in the step for which it has just got slots.

    Args:
        manager: of several groups.
        request: with ``num_computed_tokens`` as it is before the step, hits among them.

    Raises:
        ValueError: the request holds no blocks.

    Example:
        >>> from pagedattn_lab.kv_cache_specs import FullAttentionSpec
        >>> full = FullAttentionSpec(block_size=4, num_kv_heads=1, head_size=8, dtype="float32")
        >>> manager = GroupedKVCacheManager([KVCacheGroup(("layer 0",), (full,))], num_blocks=8)
        >>> ada = Request("Ada", range(6))
        >>> _ = manager.allocate_slots(ada, 6)
        >>> read_tables(manager, ada)
        GroupTables(block_ids=((1, 2),), num_tokens=6, num_new_tokens=6)
    """
    tables = manager.tables.get(request.request_id)
    if tables is None:
        raise ValueError(f"request {request.request_id!r} holds no blocks: call allocate_slots first")
    num_tokens = tables[0].num_tokens
    block_ids = tuple(map(tuple, manager.block_ids(request.request_id)))
    return GroupTables(block_ids, num_tokens, num_tokens - request.num_computed_tokens)


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
    return _draw(tables, groups, block_size, before, max(map(len, tables.block_ids)))


def windows(steps: Sequence[GroupTables], groups: Sequence[GroupView], block_size: int) -> list[Picture]:
    """Draw the tables step by step: pictures for a :class:`pagedattn_lab.viz.player.Player`.

    Arguments and errors as for :func:`show_groups`; a step's caption says what it took and gave back.

    Example:
        >>> groups = [GroupView("full attention"), GroupView("window", window=4)]
        >>> steps = [GroupTables(((1, 3), (2, 4)), 8), GroupTables(((1, 3, 5), (0, 4, 6)), 9)]
        >>> print(windows(steps, groups, block_size=4)[1].caption)
        Token 9 is computed: full attention takes block 5; window gives back block 2, takes block 6.
    """
    if not steps:
        raise ValueError("there is no step to draw: give the tables of at least one")
    for step in steps:
        _check(step, groups, block_size)
    columns = max(len(ids) for step in steps for ids in step.block_ids)  # cells are as wide in all pictures
    befores = [None, *steps[:-1]]
    return [_draw(step, groups, block_size, before, columns) for step, before in zip(steps, befores, strict=True)]


def _draw(
    tables: GroupTables, groups: Sequence[GroupView], block_size: int, before: GroupTables | None, columns: int
) -> Picture:
    cell = max(_LEAST_CELL, min(_MOST_CELL, (LEAST_WIDTH - 2 * _LEFT) // columns))
    width, height = max(LEAST_WIDTH, 2 * _LEFT + cell * columns), _TOP + _ROW * len(groups) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="#222"><rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="15">{counted(tables.num_tokens, "token")}, {block_size} to a block</text>',
    ]
    for number, (ids, group) in enumerate(zip(tables.block_ids, groups, strict=True)):
        y = _TOP + _ROW * number
        parts.append(
            f'<text x="{_LEFT}" y="{y + 14}" font-weight="bold">{escape(_title(group))}{_layers(group)}</text>'
            f'<text x="{width - _LEFT}" y="{y + 14}" text-anchor="end">holds {_held(ids)} of {len(ids)}</text>'
        )
        old = before.block_ids[number] if before is not None else ids
        parts.append(_table(ids, old, group, y + 34, cell))
        parts.append(_bracket(_read(tables, group), block_size, y + 60, cell, width))
    held = [_held(ids) for ids in tables.block_ids]
    total = f"{counted(sum(held), 'block')} held; without a window {len(groups) * cdiv(tables.num_tokens, block_size)}"
    parts.append(f'<text x="{_LEFT}" y="{height - 8}" font-weight="bold">{total}</text>')
    caption = _caption(tables, groups, held, before)
    return Picture("".join([*parts, "</svg>"]), f"{caption} {_listing(tables, groups)}", caption)


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
                f"{group.name}: a table of {len(ids)} for {counted(tables.num_tokens, 'token')}: give "
                f"{cdiv(tables.num_tokens, block_size)} to {MOST_BLOCKS} entries"
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


def _table(ids: Sequence[int], old: Sequence[int], group: GroupView, y: int, cell: int) -> str:
    """The entries of a page table under their logical numbers: a block's number, or hatching and "null"."""
    fill, ink = (BLUE, "#fff") if group.window is None else (ORANGE, "#000")
    boxes: dict[str, list[str]] = {}  # one path for all that look alike
    small, numbers = [], []
    for logical, block_id in enumerate(ids):
        x = _LEFT + cell * logical
        is_null, is_changed = block_id == NULL, logical >= len(old) or old[logical] != block_id
        look = 'fill="#f4f4f4" stroke-dasharray="3 2"' if is_null else f'fill="{fill}"'
        look += ' stroke="#222" stroke-width="3"' if is_changed else ' stroke="#777"'
        boxes.setdefault(look, []).append(f"M{x + 1},{y}h{cell - 2}v{_BOX}h{2 - cell}z")
        small.append(f'<text x="{x + cell // 2}" y="{y - 4}">{logical}</text>')
        if is_null:
            boxes.setdefault('fill="none" stroke="#d9d9d9"', []).append(_hatching(x + 1, y, cell - 2, _BOX))
            small.append(f'<text x="{x + cell // 2}" y="{y + 15}">null</text>')
        else:
            text = f'<text x="{x + cell // 2}" y="{y + 15}" fill="{ink}">{block_id}</text>'
            (small if cell < _TIGHT else numbers).append(text)
    paths = [f'<path d="{"".join(lines)}" {look}/>' for look, lines in boxes.items()]
    return "".join([*paths, '<g text-anchor="middle"><g font-size="11">', *small, "</g>", *numbers, "</g>"])


def _hatching(x: int, y: int, width: int, height: int) -> str:
    """Lines at 45 degrees, cut to their box by hand: a clip path would need an id, and a picture has none."""
    lines = []
    for offset in range(8, width + height, 8):  # from the top left corner along both edges
        left, bottom = max(0, offset - height), min(offset, height)
        length = min(offset, width) - left
        lines.append(f"M{x + left},{y + bottom}l{length},-{length}")
    return "".join(lines)


def _bracket(read: tuple[int, int], block_size: int, y: int, cell: int, width: int) -> str:
    """A bracket under the tokens that are read, and their numbers."""
    left, right = (_LEFT + round(cell * position / block_size) for position in (read[0], read[1] + 1))
    words = _reads(read)
    room = 4 * len(words)  # to either side of its middle
    middle = max(_LEFT + room, min((left + right) // 2, width - _LEFT - room))
    return (
        f'<path d="M{left},{y}v5H{right}v-5" fill="none" stroke="#222" stroke-width="2"/>'
        f'<text x="{middle}" y="{y + 18}" text-anchor="middle">{words}</text>'
    )


def _title(group: GroupView) -> str:
    name = group.name[:1].upper() + group.name[1:]
    return name if group.window is None else f"{name}, {counted(group.window, 'token')}"


def _layers(group: GroupView) -> str:
    return "" if group.num_layers is None else f" · {counted(group.num_layers, 'layer')}"


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
