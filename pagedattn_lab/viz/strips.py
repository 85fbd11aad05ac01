"""A still of one strip of memory, slot by slot: whose token lies where, and what the other slots are for (chapter 02).

The colours do not change with the page's: a strip is paper, as the book's other figures are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

from pagedattn_lab.baselines.contiguous import ContiguousAllocator, Reservation
from pagedattn_lab.recorder.frame import mark_for
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.looks import COLOURS, shorten

MOST_SLOTS = 256
COLUMNS = 16
WIDTH, SHOWN_WIDTH = 400, 520  # in the drawing's own units, and in pixels where there is room
_LEFT, _CELL, _ROW = 36, 22, 24


class Kind(NamedTuple):
    """What a slot that holds no token is: the letter and the colour of its cell, and words for it.

    Attributes:
        letter: stands in the cell.
        fill: colour of the cell.
        dashed: its border is.
        words: for the slot, behind the name of its owner if it has one.
    """

    letter: str
    fill: str
    dashed: bool
    words: str


RESERVED = Kind("r", "#fbe3b0", False, "reserved for a token to come")
INTERNAL = Kind("i", "#d9d9d9", False, "reserved for a token that never comes")
ROUNDING = Kind("u", "#eee6f5", False, "added by rounding up")
TOO_SHORT = Kind("x", "#fff", False, "free, in a gap too short for the request that waits")
FREE = Kind("", "#fff", True, "free")

Running = Mapping[str, tuple[Reservation, int]]


class Slot(NamedTuple):
    """One slot of a strip: the request that has it, if any, and its kind; ``None`` if it holds a token."""

    owner: str | None
    kind: Kind | None


def show_strip(allocator: ContiguousAllocator, running: Running, waiting: int = 0, sentence: str = "") -> Picture:
    """Draw every slot of a strip, the requests in it, and the account of all slots.

    Args:
        allocator: the strip, with at most 256 slots.
        running: what each running request has of it, and how many tokens it holds by now, by the request's name.
        waiting: slots that the request at the head of the queue needs; 0: nobody waits.
        sentence: what has just happened; it opens the picture's alt text, and a player shows it above the picture.

    Returns:
        A picture whose alt text holds the same state.

    Raises:
        ValueError: a strip too long to draw, a region without a name or a name without a region, or more tokens than
            a request ever has.

    Example:
        >>> from pagedattn_lab.baselines import contiguous
        >>> allocator = contiguous.max_length(num_slots=24, max_model_len=16)
        >>> running = {"A": (allocator.allocate(prompt_len=4, output_len=5), 6)}
        >>> show_strip(allocator, running, waiting=16)
        24 slots. A: 6 tokens, slots 0–15. A request for 16 slots waits; the longest gap has 8. Token states 6, reservation 2, internal 8, external 8, free 0.
    """  # noqa: E501
    slots = read_slots(allocator, running, waiting)
    account = allocator.account(sum(tokens for _, tokens in running.values()), waiting)
    letters = [kind.letter for kind in (RESERVED, INTERNAL, ROUNDING, TOO_SHORT)]
    marks: dict[str, str] = {}  # none is a kind's letter
    for name in running:
        marks[name] = mark_for(name, [*letters, *marks.values()])
    parts = [_cell(number, slot, marks) for number, slot in enumerate(slots)]
    rows = range(0, len(slots), COLUMNS)
    parts += [_text(_LEFT - 6, _top(start) + 15, str(start), "end", size=11) for start in rows]
    parts += [_outline(start, stop) for held, _ in running.values() for start, stop in _rows(held)]
    y = _top(rows[-1]) + _ROW + 18
    for name, (held, tokens) in running.items():
        parts += [_sample(y, marks[name], *_colour(name)), _text(_LEFT + 28, y, _request(name, held, tokens, 26))]
        y += 20
    queue = _queue(allocator, waiting)
    if queue:
        parts.append(_text(_LEFT, y, queue))
        y += 20
    y += 6
    entries = [
        (None, "token states: a slot shows the letter of its request", account.token_states),
        (RESERVED, "reservation: for tokens to come", account.reservation),
        (INTERNAL, "internal: for tokens that never come", account.internal),
        (ROUNDING, "external, and others: added by rounding up", account.rounding),
        (TOO_SHORT, "external: in gaps too short for who waits", account.external - account.rounding),
        (FREE, "free", account.free),
    ]
    for kind, words, number in entries:
        if kind is not None:
            parts.append(_sample(y, kind.letter, kind.fill, "#222", kind.dashed))
        parts += [_text(_LEFT + 28, y, words), _text(WIDTH - 12, y, str(number), "end", bold=True)]
        y += 20
    parts += [
        f'<path d="M{WIDTH - 48},{y - 13}h36" stroke="#222"/>',
        _text(_LEFT + 28, y + 3, "slots"),
        _text(WIDTH - 12, y + 3, str(len(slots)), "end", bold=True),
    ]
    height = y + 14
    opening = f"{sentence} " if sentence else ""
    lines = [f"{counted(len(slots), 'slot')}.", *(f"{_request(name, *held)}." for name, held in running.items())]
    lines += [f"{queue}."] if queue else []
    rounding = f" (rounding {account.rounding})" if account.rounding else ""
    total = (
        f"Token states {account.token_states}, reservation {account.reservation}, internal {account.internal}, "
        f"external {account.external}{rounding}, free {account.free}."
    )
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{SHOWN_WIDTH}" '
        f'height="{height * SHOWN_WIDTH // WIDTH}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>',
        f"{opening}{' '.join(lines)} {total}",
        caption=sentence,
    )


def read_slots(allocator: ContiguousAllocator, running: Running, waiting: int = 0) -> list[Slot]:
    """Say of every slot whose it is and what it holds; arguments and errors as for :func:`show_strip`.

    Example:
        >>> from pagedattn_lab.baselines import contiguous
        >>> allocator = contiguous.oracle(num_slots=8)
        >>> running = {"A": (allocator.allocate(prompt_len=1, output_len=3), 2)}
        >>> [(slot.owner, slot.kind and slot.kind.letter) for slot in read_slots(allocator, running)][1:5]
        [('A', None), ('A', 'r'), ('A', 'u'), (None, '')]
    """
    if allocator.num_slots > MOST_SLOTS:
        raise ValueError(f"a strip of {allocator.num_slots} slots is too long to draw: at most {MOST_SLOTS}")
    drawn = {id(held) for held, _ in running.values()}
    if len(drawn) < len(running) or drawn != {id(held) for held in allocator.reservations.values()}:
        raise ValueError(
            f"{counted(len(running), 'request')} named for {counted(len(allocator.reservations), 'region')} in use: "
            "name each region's request once, and leave out those that have ended"
        )
    slots = [Slot(None, FREE)] * allocator.num_slots
    for gap in allocator.strip.gaps:
        if gap.size < waiting:
            slots[gap.start : gap.start + gap.size] = [Slot(None, TOO_SHORT)] * gap.size
    for name, (held, tokens) in running.items():
        if not 0 <= tokens <= held.needed:
            raise ValueError(f"{name} holds {tokens} tokens: give 0 to {held.needed}, which it has in the end")
        kinds = [None] * tokens + [RESERVED] * (held.needed - tokens) + [INTERNAL] * (held.reserved - held.needed)
        kinds += [ROUNDING] * (held.region.size - held.reserved)
        slots[held.region.start : sum(held.region)] = [Slot(name, kind) for kind in kinds]
    return slots


def _request(name: str, held: Reservation, tokens: int, longest: int | None = None) -> str:
    name = name if longest is None else shorten(name, longest)
    reserved = f" {held.reserved} reserved," if held.reserved < held.region.size else ""
    return f"{name}: {counted(tokens, 'token')},{reserved} slots {held.region.start}–{sum(held.region) - 1}"


def _queue(allocator: ContiguousAllocator, waiting: int) -> str:
    longest = max((gap.size for gap in allocator.strip.gaps), default=0)
    return f"A request for {counted(waiting, 'slot')} waits; the longest gap has {longest}" if waiting else ""


def _colour(name: str) -> tuple[str, str]:
    """A request's colour and that of letters on it; they depend on its name, so that it keeps them in every picture."""
    return COLOURS[(sum(map(ord, name)) - ord("A")) % len(COLOURS)]


def _top(slot: int) -> int:
    return 8 + slot // COLUMNS * _ROW


def _cell(number: int, slot: Slot, marks: Mapping[str, str]) -> str:
    fill, ink, letter, dashed, words = "", "#222", "", False, "a token"
    if slot.kind is None:
        fill, ink = _colour(slot.owner)
        letter = marks[slot.owner]
    else:
        letter, fill, dashed, words = slot.kind
    owner = f"{slot.owner}, " if slot.owner is not None else ""
    x = _LEFT + number % COLUMNS * _CELL
    return (
        f"<g><title>{escape(f'slot {number}: {owner}{words}')}</title>"
        f"{_box(x, _top(number), letter, fill, ink, dashed)}</g>"
    )


def _box(x: int, y: int, letter: str, fill: str, ink: str, dashed: bool) -> str:
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    box = f'<rect x="{x}" y="{y}" width="{_CELL}" height="20" fill="{fill}" stroke="#777"{dashes}/>'
    return box + (_text(x + _CELL // 2, y + 14, letter, "middle", ink) if letter else "")


def _sample(y: int, letter: str, fill: str, ink: str, dashed: bool = False) -> str:
    return _box(_LEFT, y - 14, letter, fill, ink, dashed)


def _rows(held: Reservation) -> Iterator[tuple[int, int]]:
    """A region's slots, row by row, as start and stop."""
    start, end = held.region.start, sum(held.region)
    while start < end:
        stop = min(end, (start // COLUMNS + 1) * COLUMNS)
        yield start, stop
        start = stop


def _outline(start: int, stop: int) -> str:
    x, width = _LEFT + start % COLUMNS * _CELL, (stop - start) * _CELL
    return f'<rect x="{x}" y="{_top(start)}" width="{width}" height="20" fill="none" stroke="#222" stroke-width="2"/>'


def _text(
    x: int, y: int, text: str, anchor: str = "start", fill: str = "#222", size: int = 12, bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{weight}>{escape(text)}</text>'
    )
