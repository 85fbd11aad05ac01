"""Who computes what in which step: a row for each request, a column for each step (chapter 09)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import NamedTuple

from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import BLUE, ORANGE, VERMILION, Picture
from pagedattn_lab.viz.looks import INK, shorten

MOST_STEPS = 60
_NAME, _CELL, _ROW, _TOP = 52, 24, 22, 24  # pixels: width of names, of a cell, height of a row, of the step numbers


class Step(NamedTuple):
    """What happened in one step.

    Attributes:
        tokens: how many tokens each request computed, by name.
        preempted: who lost its blocks before it.
        idle: who has a place in the batch and computes nothing.
        used: how many blocks were held in it; ``None`` if nobody counts.
    """

    tokens: Mapping[str, int]
    preempted: Collection[str] = ()
    idle: Collection[str] = ()
    used: int | None = None


def show_timeline(steps: Sequence[Step], names: Sequence[str], num_blocks: int | None = None) -> Picture:
    """Draw steps: blue for a request that computes one token, orange with a number for several.

    A vermilion ``p`` marks a request that is preempted, a grey ``–`` one whose place stays empty. Below stand the
    blocks held, if the steps count them. The last step is framed.

    Args:
        steps: from the first on.
        names: of the requests, in the order of their rows.
        num_blocks: how many blocks there are to hold.

    Raises:
        ValueError: no step, more than 60, one of a request that has no row, or blocks counted without ``num_blocks``.

    Example:
        >>> show_timeline([Step({"Ada": 5}), Step({"Ada": 1, "Bo": 3})], ["Ada", "Bo"])
        Step 2: Ada computes 1 token; Bo computes 3 tokens. Tokens by step: Ada 5, 1; Bo –, 3.
    """
    _check(steps, names, num_blocks)
    has_blocks = steps[-1].used is not None
    width, height = _NAME + _CELL * len(steps) + 4, _TOP + _ROW * (len(names) + has_blocks) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif"><rect width="{width}" height="{height}" fill="#fff"/>'
    ]
    for row, name in enumerate(names):
        y = _TOP + _ROW * row
        parts.append(_text(2, y + 15, shorten(name, 7), 12, "start"))
        parts.append(f'<path d="M{_NAME},{y + _ROW // 2}H{width - 4}" stroke="#777" stroke-opacity="0.35"/>')
    for column, step in enumerate(steps):
        x = _NAME + _CELL * column
        if column == 0 or (column + 1) % 5 == 0 or column == len(steps) - 1:
            parts.append(_text(x + _CELL // 2, 16, str(column + 1), 10, "middle"))
        parts += [_cell(step, name, x, _TOP + _ROW * row) for row, name in enumerate(names)]
        if step.used is not None:
            parts.append(_blocks(step.used, num_blocks or 1, x, _TOP + _ROW * len(names)))
    if has_blocks:
        parts.append(_text(2, _TOP + _ROW * len(names) + 15, "blocks", 12, "start"))
    x = _NAME + _CELL * (len(steps) - 1) - 1
    parts.append(f'<rect x="{x}" y="3" width="{_CELL + 2}" height="{height - 5}" rx="4" fill="none" stroke="#222"/>')
    sentence = _sentence(steps, num_blocks)
    rows = (f"{name} {', '.join(_word(step, name) for step in steps)}" for name in names)
    return Picture("\n".join([*parts, "</svg>"]), f"{sentence} Tokens by step: {'; '.join(rows)}.", sentence)


def timeline(steps: Sequence[Step], names: Sequence[str], num_blocks: int | None = None) -> list[Picture]:
    """Draw a timeline as it grows: a picture after each step, for a :class:`pagedattn_lab.viz.player.Player`.

    Example:
        >>> pictures = timeline([Step({"Ada": 5}), Step({"Ada": 1})], ["Ada"])
        >>> [picture.caption for picture in pictures]
        ['Step 1: Ada computes 5 tokens.', 'Step 2: Ada computes 1 token.']
    """
    return [show_timeline(steps[:end], names, num_blocks) for end in range(1, len(steps) + 1)]


def _check(steps: Sequence[Step], names: Sequence[str], num_blocks: int | None) -> None:
    if not 0 < len(steps) <= MOST_STEPS:
        raise ValueError(f"{len(steps)} steps cannot be drawn: give 1 to {MOST_STEPS}")
    for step in steps:
        strangers = {*step.tokens, *step.preempted, *step.idle} - set(names)
        if strangers:
            raise ValueError(f"request {min(strangers)!r} has no row: give its name in names")
        if step.used is not None and not num_blocks:
            raise ValueError(f"{step.used} blocks are held, of how many? Give num_blocks")


def _cell(step: Step, name: str, x: int, y: int) -> str:
    """Draw what one request does in one step; nothing for one that waits, or has ended."""
    count = step.tokens.get(name, 0)
    if name in step.preempted:
        return _box(x, y, VERMILION, "p", "#000")
    if count:
        return _box(x, y, BLUE, "", "") if count == 1 else _box(x, y, ORANGE, str(count), "#000")
    if name in step.idle:
        return _box(x, y, "#d9d9d9", "–", "#222")
    return ""


def _box(x: int, y: int, fill: str, text: str, ink: str) -> str:
    box = f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_ROW - 2}" rx="3" fill="{fill}"/>'
    return box + (_text(x + _CELL // 2, y + 15, text, 11, "middle", f'fill="{ink}"') if text else "")


def _blocks(used: int, num_blocks: int, x: int, y: int) -> str:
    """Draw how much of the memory is held: a bar, and the number on it."""
    full = _ROW - 2
    high = round(full * used / num_blocks)
    return (
        f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{full}" fill="#f4f4f4"/>'
        f'<rect x="{x + 1}" y="{y + 1 + full - high}" width="{_CELL - 2}" height="{high}" fill="#d9d9d9"/>'
        + _text(x + _CELL // 2, y + 15, str(used), 10, "middle")
    )


def _text(x: int, y: int, text: str, size: int, anchor: str, ink: str = INK) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" {ink}>{escape(text)}</text>'


def _word(step: Step, name: str) -> str:
    if name in step.preempted:
        return "preempted"
    return str(step.tokens[name]) if step.tokens.get(name) else "idle" if name in step.idle else "–"


def _sentence(steps: Sequence[Step], num_blocks: int | None) -> str:
    """Say what the last step does."""
    step = steps[-1]
    single = [name for name, count in step.tokens.items() if count == 1]  # a decode, or a prompt's last token
    what = "computes 1 token" if len(single) == 1 else "compute 1 token each"
    clauses = [f"{_listed(single)} {what}"] if single else []
    clauses += [f"{name} computes {count} tokens" for name, count in step.tokens.items() if count > 1]
    clauses += [f"{name} loses its blocks" for name in step.preempted]
    if step.idle:
        clauses.append(f"{counted(len(step.idle), 'place')} empty")
    held = "" if step.used is None else f" {step.used} of {counted(num_blocks or 0, 'block')} held."
    return f"Step {len(steps)}: {'; '.join(clauses) or 'nobody computes'}.{held}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
