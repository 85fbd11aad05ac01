"""Physical blocks, slot by slot: whose tokens they hold or held. The same in ``tiles.js``, string for string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from html import escape
from typing import NamedTuple

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.recorder.frame import BlockState, Contents, Frame, TableState
from pagedattn_lab.viz.looks import Look, halo, label, paint, shorten, text_at

GAP = 12
LEAST_SIZE = 9
GHOST = 'fill-opacity="0.25" pointer-events="none"'
Words = Mapping[str, Sequence[str]]
# Stand-ins for what has no shape of its own, or none that XML allows: Unicode's pictures of control characters.
STAND_INS = {code: 0x2400 + code for code in range(32)} | {127: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}
STAND_INS |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


class Tile(NamedTuple):
    """How every physical block is drawn: its size in pixels, how many cells stand side by side (0: a bar), and the size
    of letters in them."""

    width: int
    height: int
    columns: int
    cell: int
    size: int
    dense: bool


class Holder(NamedTuple):
    """Whose token lies in a slot: its request, its place in the sequence, and the request's look."""

    name: str
    position: int
    look: Look


class Scene(NamedTuple):
    """What every block of a drawing is drawn with: frame, tile and words, and tables and free blocks to look up."""

    frame: Frame
    tile: Tile
    words: Words
    tables: Mapping[str, TableState]
    free: AbstractSet[int]


def tile_for(num_blocks: int, block_size: int, longest: int, room: int) -> Tile:
    """Choose the tile: cells if they can be read, for words wide enough for the longest where there is room.

    ``longest`` counts its letters, and is 0 for a board without words. Where two blocks would not fit side by side and
    words would lose their ends, cells of a small block stand two by two, and in a larger one letters are smaller.

    Example:
        >>> tile_for(9, 4, 8, 744).width, tile_for(9, 4, 8, 324).columns, tile_for(200, 16, 0, 744).columns
        (240, 2, 0)
    """
    if num_blocks > 96 or block_size > 32:
        return Tile(34 if num_blocks > 96 else 64, 30, 0, 0, 11, num_blocks > 96)
    columns, cell, size = min(block_size, 8), 18, 11
    if longest:
        columns, cell = min(block_size, 4), 52
        if 2 * columns * cell + GAP > room and _letters((room - GAP) // 2 // columns, size) < min(longest, 6):
            columns, size = (min(columns, 2), 11) if block_size <= 4 else (columns, 10)
        side_by_side = max(2, min(num_blocks, (room + GAP) // (columns * cell + GAP)))
        most = ((room + GAP) // side_by_side - GAP) // columns
        cell = max(34, min(max(cell, longest * 7 + 4), most))
    return Tile(max(columns * cell, 44), 16 + cdiv(block_size, columns) * 18 + 6, columns, cell, size, False)


def _letters(cell: int, size: int) -> int:
    """How many letters of some size fit into a cell so wide."""
    return (cell - 4) // (size - 4)


def _fitting(word: str, tile: Tile) -> tuple[str, int]:
    """A token's text for its cell, and the size of its letters: smaller ones where it would lose its end, else cut."""
    word = word.lstrip(" ")
    size = tile.size if len(word) <= _letters(tile.cell, tile.size) else LEAST_SIZE
    return shorten(word, _letters(tile.cell, size)), size


def visible(word: str) -> str:
    """Make a token's text one that can be seen in a cell, and that XML can hold.

    Example:
        >>> visible("\\n"), visible("  "), visible(" the")
        ('␊', '␣␣', ' the')
    """
    return (word if word.strip() or not word else word.replace(" ", "␣")).translate(STAND_INS)


def block_group(block: BlockState, scene: Scene, x: int, y: int) -> str:
    """Draw one physical block at a place."""
    frame, tile = scene.frame, scene.tile
    miscounted = block.block_id > 0 and block.ref_cnt != len(block.owners)
    badge = f"×{block.ref_cnt}{'!' if miscounted else ''}" if block.ref_cnt > 1 or miscounted else ""
    ghost = None if block.owners else frame.contents.get(block.block_id)
    caption = str(block.block_id)
    if block.block_id == 0 and not tile.dense:
        caption = "0 null"
    marks = list(dict.fromkeys(scene.tables[name].mark for name, _ in block.owners)) if tile.columns else []
    shared_by = ""
    if block.block_hash is not None:
        full = f"{caption} #{block.block_hash[:4]}"
        shared_by = _marks(marks, full + badge, tile.width)
        caption = full if tile.width >= 72 and (shared_by or len(marks) < 2) else f"{caption}#"
    shared_by = shared_by or _marks(marks, caption + badge, tile.width)
    parts = [
        f'<g data-block="{block.block_id}" class="pa-block" transform="translate({x},{y})">'
        f"<title>{escape(_title(block, scene, ghost))}</title>",
        halo(tile.width, tile.height, block.block_id in frame.changed),
    ]
    if tile.dense:
        parts.append(text_at(escape(caption), tile.width // 2, 10, "middle", "pa-ink", "#222", 10))
    else:
        parts.append(text_at(escape(caption), 0, 11, "start", "pa-ink", "#222", 12))
    if badge and not tile.dense:
        bold = f'<tspan font-weight="bold">{badge}</tspan>'
        bold = f"{escape(shared_by)} {bold}" if shared_by else bold
        parts.append(text_at(bold, tile.width, 11, "end", "pa-ink", "#222", 12))
    if tile.columns:
        parts.append(_cells(block, scene, ghost))
    else:
        parts.append(_bar(block, scene, ghost, badge if tile.dense else ""))
    if badge:
        ticks = "".join(f"M{left},{tile.height}l4,-4" for left in range(0, tile.width - 3, 6))
        parts.append(f'<path class="pa-line" d="{ticks}" stroke="#222" stroke-width="2" fill="none"/>')
    return "".join(parts) + "</g>"


def _title(block: BlockState, scene: Scene, ghost: Contents | None) -> str:
    """What a block holds, for the pointer and for screen readers."""
    if block.block_id == 0:
        return "block 0, the null block: never handed out"
    held = ", ".join(f"{name}'s logical block {logical}" for name, logical in block.owners) or "no table names it"
    parts = [f"block {block.block_id}: {held}", f"reference count {block.ref_cnt}"]
    if block.owners:
        parts.append(f"{block.num_tokens} of {scene.frame.block_size} slots filled")
    if ghost is not None:
        parts.append(f"still holds {ghost.name}'s logical block {ghost.logical}")
    if block.block_id in scene.free:
        parts.append("free")
    if block.block_hash is not None:
        parts.append(f"hash {block.block_hash}")
    return "; ".join(parts)


def _slot_look(block: BlockState) -> str:
    """Class and colours of a slot without a token: in the null block, in a free or cached one, in one in use."""
    if block.block_id == 0:
        return 'class="pa-null" fill="#d6d6d6" stroke="#777"'
    if block.ref_cnt == 0:
        kind, fill = ("pa-cached", "#e4e4e4") if block.block_hash is not None else ("pa-free", "#fff")
        return f'class="{kind}" fill="{fill}" stroke="#777" stroke-dasharray="3 3"'
    return 'class="pa-empty" fill="#fff" stroke="#555"'


def _ghost(held: Contents, x: int, y: int, width: int, height: int) -> str:
    """Tint a box with the colour of whose tokens are still there, though no table names them."""
    fill = paint([(held.colour, held.mark)], x, y, width, height)
    return f'<g class="pa-ghost" {GHOST}>{fill}</g>'


def _holders(block: BlockState, scene: Scene, offset: int) -> list[Holder]:
    """All whose tokens lie in a slot of a block, each once."""
    found: dict[str, Holder] = {}
    for name, logical in block.owners:
        table, position = scene.tables[name], logical * scene.frame.block_size + offset
        if position < table.num_tokens and name not in found:  # it reaches this far
            found[name] = Holder(name, position, (table.colour, table.mark))
    return list(found.values())


def _bar(block: BlockState, scene: Scene, ghost: Contents | None, badge: str) -> str:
    """A block too small or too long for cells: a bar in its owners' colours, below it a line as long as it is full."""
    frame, tile = scene.frame, scene.tile
    middle = tile.width // 2
    if holders := _holders(block, scene, 0):
        looks = [holder.look for holder in holders]
        part = max(1, tile.width * block.num_tokens // frame.block_size)
        level = f'<rect class="pa-level" x="0" y="25" width="{part}" height="2" fill="#222"/>'
        marks = "+".join(mark for _, mark in looks)
        text = shorten(marks + badge, tile.width // 6)
        return paint(looks, 0, 12, tile.width, 12) + level + label(text, looks, middle, 22, 10)
    bar = f'<rect x="0" y="12" width="{tile.width}" height="12" {_slot_look(block)}/>'
    if ghost is not None:
        bar += _ghost(ghost, 0, 12, tile.width, 12)
    text = badge or (ghost.mark if ghost is not None else "")
    return bar + (text_at(escape(text), middle, 22, "middle", "pa-ink", "#222", 10) if text else "")


def _cells(block: BlockState, scene: Scene, ghost: Contents | None) -> str:
    """A block as its slots: filled ones in the colours of who has a token there, with its text or its mark."""
    frame, tile = scene.frame, scene.tile
    parts = []
    for offset in range(frame.block_size):
        x, y = offset % tile.columns * tile.cell, 16 + offset // tile.columns * 18
        holders = _holders(block, scene, offset)
        is_ghost = ghost is not None and offset < ghost.num_tokens
        if is_ghost:
            holders = [Holder(ghost.name, ghost.logical * frame.block_size + offset, (ghost.colour, ghost.mark))]
        slot = block.block_id * frame.block_size + offset
        if not holders:
            parts.append(
                f'<rect x="{x}" y="{y}" width="{tile.cell}" height="18" {_slot_look(block)}>'
                f"<title>slot {slot}: empty</title></rect>"
            )
            continue
        word = next(filter(None, (_word(scene.words, holder) for holder in holders)), "")
        name = f"{holders[0].name}, token {holders[0].position}" + (f" “{word}”" if word else "")
        others = "".join(f"; {holder.name}, token {holder.position}" for holder in holders[1:])
        title = f"<title>{escape(f'slot {slot}: {name}{others}')}</title>"
        looks = [holder.look for holder in holders]
        middle = x + tile.cell // 2
        mark = looks[0][1] if len(looks) == 1 else ""
        text, size = _fitting(word, tile) if word else (mark, tile.size)
        if is_ghost:
            title = title.replace("</title>", ", still there</title>")
            parts.append(f'<rect x="{x}" y="{y}" width="{tile.cell}" height="18" {_slot_look(block)}>{title}</rect>')
            parts.append(_ghost(ghost, x, y, tile.cell, 18))
            italic = ' font-style="italic"'
            parts.append(text_at(escape(text), middle, y + 13, "middle", "pa-ink", "#222", size, italic))
        else:
            parts.append(paint(looks, x, y, tile.cell, 18, title))
            if text:
                parts.append(label(text, looks, middle, y + 13, size))
    return "".join(parts)


def _word(words: Words, holder: Holder) -> str:
    known = words.get(holder.name, ())
    return known[holder.position] if holder.position < len(known) else ""


def _marks(marks: Sequence[str], beside: str, width: int) -> str:
    """The marks of several owners, as many as fit into a line beside other text; none where not even two letters do."""
    letters = (width - 2 - 8 * len(beside)) // 8
    together = ("" if all(len(mark) == 1 for mark in marks) else "+").join(marks)
    return shorten(together, letters) if len(marks) > 1 and letters > 1 else ""
