"""A bar of a GPU's memory: weights, other memory, KV cache, and what lies above ``gpu_memory_utilization``.

The same in ``calculator.js``, string for string.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.viz import BLUE, ORANGE, Picture

if TYPE_CHECKING:
    from pagedattn_lab.budget import Budget

WIDTH, SHOWN_WIDTH = 400, 540  # in the drawing's own units, and in pixels where there is room
BAR_HEIGHT = 120
_LEFT, _ROOM = 12, 376
_TOP, _THICK = 56, 30  # of the bar itself
_LETTER = 7  # that a letter of a label takes
_GAP = 8  # between two labels
ALARM = "#b3004b"


@dataclass(frozen=True)
class Memory:
    """How a GPU's memory is divided, in bytes.

    Attributes:
        title: what runs where.
        total: all of it.
        limit: what ``gpu_memory_utilization`` allows.
        utilization: that flag, as text.
        weights: of the model.
        other: activations, CUDA graphs and what is not PyTorch's: the least, the likely, the most.
        used: KV cache that holds tokens.
        used_by: words for that.
        tail: KV cache in blocks of requests, without a token.
        free: the rest of the KV cache.
        overrun: what would be needed above ``limit``.
    """

    title: str
    total: int
    limit: int
    utilization: str
    weights: int
    other: tuple[int, int, int]
    used: int = 0
    used_by: str = "used"
    tail: int = 0
    free: int = 0
    overrun: int = 0


def memory_of(budget: Budget) -> Memory:
    """Divide a GPU as a budget does. Its cache is free, or taken by the one request that does not fit.

    Raises:
        ValueError: the budget names no GPU, or was told that more is left for the cache than can be.

    Example:
        >>> from pagedattn_lab.budget import plan
        >>> show_vram(memory_of(plan("Qwen/Qwen3-0.6B", "RTX 3060", max_model_len=8192)))
        Qwen3-0.6B on RTX 3060, 11.75 GiB: weights 1.12, other 1.10 (0.52 to 2.77), KV cache used 0.00, tail waste 0.00, free 8.59, above 0.92 0.94.
    """  # noqa: E501
    weights, room = budget.weights_bytes, budget.available_bytes
    if budget.total is None or weights is None:
        raise ValueError("the budget says nothing of weights on a GPU: plan it with gpu")
    limit = math.ceil(budget.total.likely * budget.gpu_memory_utilization)
    rest = limit - weights - room
    if rest < 0:
        raise ValueError(
            f"weights of {gib(weights)} GiB and a cache of {gib(room)} are more than the {gib(limit)} GiB that "
            f"gpu_memory_utilization {budget.gpu_memory_utilization:g} allows: give that of the same log"
        )
    others = [part for name, part in budget.parts if name != "weights"]
    other = (sum(part.low for part in others), rest, sum(part.high for part in others))
    if budget.asked.available_bytes is not None:  # then the rest is what else was measured
        other = (rest, rest, rest)
    parts: dict[str, Any] = {"free": room}
    if room <= 0:
        parts = {"overrun": -room}
    elif not budget.fit.fits:
        missing = budget.fit.needed_bytes - budget.fit.available_bytes
        parts = {"used": room, "used_by": "one request", "overrun": missing}
    title = f"{budget.model.rpartition('/')[2]} on {budget.gpu}"
    share = f"{budget.gpu_memory_utilization:g}"
    return Memory(title, budget.total.likely, limit, share, weights, other, **parts)


def gib(size: int) -> str:
    """Write bytes as GiB, rounded to hundredths.

    Example:
        >>> gib(24 * 2**30)
        '24.00'
    """
    hundredths = (size * 100 + GIB // 2) // GIB
    return f"{hundredths // 100:,}.{hundredths % 100:02}"


def show_vram(memory: Memory) -> Picture:
    """Draw the bar by itself.

    Example:
        >>> show_vram(Memory("A model on L4", 24 * GIB, 22 * GIB, "0.92", 15 * GIB, (GIB, 2 * GIB, 3 * GIB), free=5 * GIB))
        A model on L4, 24.00 GiB: weights 15.00, other 2.00 (1.00 to 3.00), KV cache used 0.00, tail waste 0.00, free 5.00, above 0.92 2.00.
    """  # noqa: E501
    return picture("".join(draw_memory(memory)), BAR_HEIGHT, describe_memory(memory))


def describe_memory(memory: Memory) -> str:
    """Say in words what the bar shows."""
    low, likely, high = map(gib, memory.other)
    parts = f"weights {gib(memory.weights)}, other {likely} ({low} to {high})"
    if memory.used + memory.tail + memory.free:
        parts += f", KV cache {memory.used_by} {gib(memory.used)}, tail waste {gib(memory.tail)}, "
        parts += f"free {gib(memory.free)}"
    parts += f", above {memory.utilization} {gib(memory.total - memory.limit)}"
    if memory.overrun:
        parts += f", too much {gib(memory.overrun)}"
    return f"{memory.title}, {gib(memory.total)} GiB: {parts}."


def picture(body: str, height: int, alt: str, caption: str | None = None) -> Picture:
    """Put a drawing of this width on paper."""
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{SHOWN_WIDTH}" '
        f'height="{height * SHOWN_WIDTH // WIDTH}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{body}</svg>',
        alt,
        caption,
    )


def draw_memory(memory: Memory) -> Iterator[str]:
    """Draw the bar: what it is above it, how the KV cache is divided below.

    Where more is needed than there is, the bar goes on past the GPU's end, up to a share of its memory.
    """
    cache = memory.used + memory.tail + memory.free
    end = memory.limit + memory.overrun
    shown = min(max(memory.total, end), memory.total * 8 // 5)

    def at(size: int) -> int:
        return _LEFT + _ROOM * min(size, shown) // shown

    start = memory.weights + memory.other[1]  # of the KV cache
    edges = [0, memory.weights, start, start + memory.used, start + memory.used + memory.tail]
    within = [at(min(edge, memory.limit)) for edge in [*edges, memory.limit]]
    looks = [(BLUE, ""), ("#d9d9d9", ""), (ORANGE, ""), ("#fbe3b0", "#222"), ("#fff", "")]
    for (fill, lines), left, right in zip(looks, within[:-1], within[1:], strict=True):
        if right > left:
            yield box(left, right - left, fill)
            if lines:
                yield hatch(left, _TOP, right - left, _THICK, 5, lines, falls=True)
    limit, total = at(memory.limit), at(memory.total)
    yield box(limit, total - limit, "#f4f4f4") + hatch(limit, _TOP, total - limit, _THICK, 4, "#aaa", falls=True)
    if memory.overrun:
        right = at(end)
        yield (
            f'<rect x="{limit}" y="{_TOP - 4}" width="{right - limit}" height="{_THICK + 8}" fill="none" '
            f'stroke="{ALARM}" stroke-width="2" stroke-dasharray="5 3"/>'
        )
        yield hatch(limit, _TOP - 4, right - limit, _THICK + 8, 7, ALARM)
        if end > shown:  # there is more than can be shown
            yield f'<path d="M{right + 2},{_TOP + 7}l8,8l-8,8z" fill="{ALARM}"/>'
    yield f'<path d="M{total},{_TOP - 5}v{_THICK + 10}" stroke="#222" stroke-width="3"/>'
    low, high = (at(memory.weights + memory.other[index]) for index in (0, 2))
    middle = _TOP + _THICK // 2
    whisker = f"M{low},{middle - 5}v10M{low},{middle}H{high}M{high},{middle - 5}v10"
    if high > low:
        yield f'<path class="pa-arrow-edge" d="{whisker}" fill="none" stroke="#fff" stroke-width="5"/>'
        yield f'<path d="{whisker}" fill="none" stroke="#222" stroke-width="2"/>'
    least, _, most = map(gib, memory.other)
    above = [("weights", gib(memory.weights), within[0], within[1])]
    about = gib(memory.other[1]) if least == most else f"{least}–{most}"
    above.append(("other", about, within[1], within[2]))
    if cache:
        above.append(("KV cache", gib(cache), within[2], within[5]))
    above.append((f"above {memory.utilization}", gib(memory.total - memory.limit), limit, total))
    below = []
    if cache:
        parts = ((memory.used_by, memory.used), ("tail waste", memory.tail), ("free", memory.free))
        for index, (name, size) in enumerate(parts):
            if size:
                below.append((name, gib(size), within[2 + index], within[3 + index]))
    if memory.overrun:
        below.append(("too much", gib(memory.overrun), limit, at(end)))
    yield text(f"{escape(memory.title)}, {gib(memory.total)} GiB", _LEFT, 14, "start", bold=True)
    yield from _labels(above, _TOP - 24, _TOP - 11, _TOP - 8, _TOP)
    yield from _labels(below, _TOP + _THICK + 20, _TOP + _THICK + 33, _TOP + _THICK + 8, _TOP + _THICK)


Part = tuple[str, str, int, int]  # name, size, left edge, right edge


def _labels(parts: Sequence[Part], name_y: int, size_y: int, tick: int, edge: int) -> Iterator[str]:
    """Write what each part is, clear of each other, with a line to the part."""
    widths = [_LETTER * max(len(name), len(size)) for name, size, _, _ in parts]
    middles = [(left + right) // 2 for _, _, left, right in parts]
    for (name, size, _, _), middle, x in zip(parts, middles, spread_labels(middles, widths), strict=True):
        fill = ALARM if name == "too much" else "#222"
        yield f'<path d="M{x},{tick}L{middle},{edge}" stroke="#777" fill="none"/>'
        yield text(escape(name), x, name_y, "middle", fill)
        yield text(size, x, size_y, "middle", fill, bold=True)


def spread_labels(middles: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Place labels at their middles, pushed aside as far as they need to keep clear of each other and of the edges.

    Example:
        >>> spread_labels([20, 30, 380], [40, 40, 40])
        [20, 68, 380]
    """
    placed, end = [], -_GAP
    for middle, width in zip(middles, widths, strict=True):
        x = max(middle, end + _GAP + width // 2, width // 2)
        placed.append(x)
        end = x + width // 2
    room = WIDTH
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], room - widths[index] // 2)
        room = placed[index] - widths[index] // 2 - _GAP
    return placed


def text(body: str, x: int, y: int, anchor: str, fill: str = "#222", bold: bool = False) -> str:
    """Write a text at a place; ``body`` is markup."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}"{weight}>{body}</text>'


def box(left: int, width: int, fill: str) -> str:
    """Draw a part of the bar."""
    return f'<rect x="{left}" y="{_TOP}" width="{width}" height="{_THICK}" fill="{fill}" stroke="#555"/>'


def hatch(left: int, top: int, width: int, height: int, step: int, stroke: str, falls: bool = False) -> str:
    """Draw slanted lines across a box, rising to the right or falling."""
    lines = []
    for start in range(step - height, width, step):
        first, last = max(start, 0), min(start + height, width)
        if last <= first:
            continue
        low, high = first - start, last - start  # how far up from the line's foot
        begin, stop = (top + low, top + high) if falls else (top + height - low, top + height - high)
        lines.append(f"M{left + first},{begin}L{left + last},{stop}")
    return f'<path d="{"".join(lines)}" stroke="{stroke}" fill="none"/>'
