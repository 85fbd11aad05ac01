"""A player of a fleet: requests arrive, a router sends them, caches fill (chapter 11).

A row a replica: the requests that wait, those that run, and the cache as a bar, a piece a conversation. A conversation
has a colour and a mark, and keeps both. Under the bar stands a line as long as what the request of the step has found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import ascii_uppercase

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.recorder.frame import mark_for
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.studies.fleet.events import Arrived, Failed, Finished, FleetEvent, Recovered, Started
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.fleet_replay import SHARED, FleetStep, ReplicaView, fleet_steps
from pagedattn_lab.viz.looks import COLOURS
from pagedattn_lab.viz.player import Player

MOST_STEPS, MOST_REPLICAS = 60, 16
WIDTH, SHOWN_WIDTH = 400, 520  # in the drawing's own units, and in pixels where there is room
_TOP, _ROW, _CHIP, _HIGH = 24, 32, 22, 20
_WAITING, _RUNNING, _CACHE, _BAR = 24, 102, 180, 168  # where the columns begin, and how long a full cache is
_MOST_CHIPS = 2  # beside a number for the others
_GREY = ("#d9d9d9", "#222")

Looks = Mapping[int, tuple[str, str, tuple[str, str]]]
"""Of each session: its name, its mark, and its colours."""


def fleet_player(
    events: Iterable[FleetEvent],
    label: str,
    *,
    num_replicas: int,
    num_blocks: int,
    block_size: int,
    names: Mapping[int, str] | None = None,
    step: int = 0,
) -> Player:
    """Make a player of what has happened in a fleet.

    Args:
        events: as ``on_event`` of :func:`pagedattn_lab.studies.fleet.simulation.simulate` gets them, from the
            first one on; of a few requests, for there is a picture a step.
        label: what the player shows, in a few words.
        num_replicas, num_blocks, block_size: as given to ``simulate``.
        names: of conversations, by session; the others are called A, B, C and so on, as they arrive.
        step: the step to begin with, negative ones counted from the end.

    Raises:
        ValueError: more steps or replicas than can be drawn, a cache that holds more than ``num_blocks``, or events
            that cannot be (:func:`pagedattn_lab.viz.fleet_replay.fleet_steps`).

    Example:
        >>> from pagedattn_lab.studies.fleet.requests import FleetRequest
        >>> request = FleetRequest(arrival=0.0, prompt_len=9, output_len=1, hash_ids=(1, 2, 3), session=0)
        >>> events = [Arrived(0.0, 1, 0, request, 1), Started(0.0, 1, 0, request, 0, 2)]
        >>> fleet_player(events, "One request", num_replicas=2, num_blocks=4, block_size=4, names={0: "Ada"})
        Player('One request', step 0 of 0): Ada goes to replica 1: 0 of its 2 blocks are there. Replica 0: empty. Replica 1: runs Ada; Ada 2 of 4 blocks. Hit rate 0 %.
    """  # noqa: E501
    steps = fleet_steps(events, num_replicas, block_size)
    return Player(fleet_pictures(steps, num_blocks, block_size, names), label, step=step)


def fleet_pictures(
    steps: Sequence[FleetStep], num_blocks: int, block_size: int, names: Mapping[int, str] | None = None
) -> list[Picture]:
    """Draw a fleet after each step; arguments and errors as for :func:`fleet_player`."""
    at_least_one("num_blocks", num_blocks)
    if not 0 < len(steps) <= MOST_STEPS:
        raise ValueError(
            f"{len(steps)} steps cannot be drawn: give the events of fewer requests, 1 to {MOST_STEPS} steps"
        )
    if len(steps[0].replicas) > MOST_REPLICAS:
        raise ValueError(f"{len(steps[0].replicas)} replicas cannot be drawn: give 1 to {MOST_REPLICAS}")
    most = max(sum(view.cached.values()) for step in steps for view in step.replicas)
    if most > num_blocks:
        raise ValueError(f"a cache holds {most} blocks, more than num_blocks={num_blocks}: give the number that ran")
    looks = _looks(steps, names or {})
    return [_draw(step, num_blocks, block_size, looks) for step in steps]


def _looks(steps: Sequence[FleetStep], names: Mapping[int, str]) -> Looks:
    """Name, mark and colour the conversations, in the order in which they arrive."""
    arrived = [event.request.session for step in steps for event in step.events if isinstance(event, Arrived)]
    looks: dict[int, tuple[str, str, tuple[str, str]]] = {}
    marks = ["+", "…"]  # stand for several
    taken = {name[:1] for name in names.values()}
    letters = (first + letter for first in ("", *ascii_uppercase) for letter in ascii_uppercase if letter not in taken)
    for place, session in enumerate(dict.fromkeys(arrived)):
        name = names[session] if session in names else next(letters)
        marks.append(next((mark for mark in (name[:1], name[:2]) if mark not in marks), mark_for(name, marks)))
        looks[session] = name, marks[-1], COLOURS[place % len(COLOURS)]
    return looks | {SHARED: ("shared", "+", _GREY)}


def _draw(step: FleetStep, num_blocks: int, block_size: int, looks: Looks) -> Picture:
    rows = len(step.replicas)
    height = _TOP + _ROW * rows + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{SHOWN_WIDTH}" '
        f'height="{height * SHOWN_WIDTH // WIDTH}" font-family="sans-serif" font-size="12" fill="#222">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_WAITING}" y="15">waiting</text><text x="{_RUNNING}" y="15">running</text>'
        f'<text x="{_CACHE}" y="15">cache, {counted(num_blocks, "block")}</text>',
    ]
    dead = [number for number, view in enumerate(step.replicas) if not view.is_alive]
    for numbers, dashes in ((sorted({*range(rows)} - {*dead}), ""), (dead, ' stroke-dasharray="3 3"')):
        if numbers:
            path = "".join(f"M{_CACHE},{_TOP + _ROW * number}h{_BAR}v{_HIGH}h-{_BAR}z" for number in numbers)
            parts.append(f'<path d="{path}" fill="none" stroke="#777"{dashes}/>')
    for number, view in enumerate(step.replicas):
        parts.append(_row(number, view, num_blocks, looks, step.events[-1], _TOP + _ROW * number))
    y = _TOP + _ROW * rows + 16
    figures = _figures(step)
    parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(" · ".join(figures))}</text>')
    parts.append(f'<text x="8" y="{y + 18}">+ shared, … others; the line under a cache: found there now</text>')
    caption = _caption(step, block_size, looks)
    states = [f"Replica {number}: {_words(view, num_blocks, looks)}." for number, view in enumerate(step.replicas)]
    alt = " ".join([caption, *states, *(f"{figure[:1].upper()}{figure[1:]}." for figure in figures)])
    return Picture("".join([*parts, "</svg>"]), alt, caption)


def _row(number: int, view: ReplicaView, num_blocks: int, looks: Looks, about: FleetEvent, y: int) -> str:
    """Draw one replica: framed if the step is about it, as is the request that it is about."""
    is_subject = number == about.replica and not isinstance(about, Finished)
    frame = f'<rect x="2" y="{y - 4}" width="{WIDTH - 4}" height="{_ROW - 1}" rx="4" fill="none" stroke="#222"/>'
    return "".join(
        [
            frame if is_subject else "",
            f'<text x="8" y="{y + 15}" font-weight="bold">{number}</text>',
            "" if view.is_alive else f'<text x="{_WAITING}" y="{y + 15}">failed</text>',
            f'<text x="{WIDTH - 8}" y="{y + 15}" text-anchor="end">{sum(view.cached.values())}/{num_blocks}</text>'
            '<g text-anchor="middle">',
            _chips(view.waiting, looks, _WAITING, y, is_subject and isinstance(about, Arrived)),
            _chips(view.running, looks, _RUNNING, y, is_subject and isinstance(about, Started)),
            _cache(view, num_blocks, looks, y),
            "</g>",
        ]
    )


def _chips(sessions: Sequence[int], looks: Looks, x: int, y: int, framed: bool) -> str:
    """Requests side by side, the last of them framed if asked; how many more there are stands before them."""
    shown = sessions[-_MOST_CHIPS:]
    parts = []
    if len(sessions) > len(shown):
        parts.append(f'<text x="{x + 11}" y="{y + 15}">+{len(sessions) - len(shown)}</text>')
        x += _CHIP + 2
    for place, session in enumerate(shown):
        _, mark, colours = looks[session]
        parts.append(_box(x + (_CHIP + 2) * place, y, _CHIP, mark, colours))
    if framed:
        x += (_CHIP + 2) * (len(shown) - 1)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CHIP}" height="{_HIGH}" fill="none" stroke="#222" stroke-width="2"/>'
        )
    return "".join(parts)


def _cache(view: ReplicaView, num_blocks: int, looks: Looks, y: int) -> str:
    """The pieces of a cache, and a line under what has been found; pieces too short for their marks make one."""
    pieces: list[tuple[str, tuple[str, str], int, int]] = []  # text, colours, blocks, those found
    others = found_in_others = 0
    for session, blocks in view.cached.items():
        _, mark, colours = looks[session]
        hits = view.hits.get(session, 0)
        room = _BAR * blocks // num_blocks - 4
        text = next((text for text in (f"{mark} {blocks}", mark) if 8 * len(text) <= room), None)
        if text is None:
            others, found_in_others = others + blocks, found_in_others + hits
        else:
            pieces.append((text, colours, blocks, hits))
    if others:
        pieces.append(("…" if _BAR * others // num_blocks > 12 else "", _GREY, others, found_in_others))
    parts, start = [], 0
    for text, colours, blocks, hits in pieces:
        left, right, end = (_CACHE + _BAR * at // num_blocks for at in (start, start + blocks, start + hits))
        parts.append(_box(left, y, max(1, right - left - 1), text, colours))
        if hits:
            parts.append(f'<rect x="{left}" y="{y + _HIGH + 2}" width="{max(1, end - left - 1)}" height="3"/>')
        start += blocks
    return "".join(parts)


def _box(x: int, y: int, width: int, text: str, colours: tuple[str, str]) -> str:
    fill, ink = colours
    written = f'<text x="{x + width // 2}" y="{y + 15}" fill="{ink}">{escape(text)}</text>' if text else ""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{_HIGH}" fill="{fill}"/>{written}'


def _figures(step: FleetStep) -> list[str]:
    figures = [] if step.hit_rate is None else [f"hit rate {step.hit_rate:.0%}".replace("%", " %")]
    if step.imbalance is not None:
        figures.append(f"busiest replica {step.imbalance:.1f} × the mean")
    return figures or ["nothing looked up yet"]


def _caption(step: FleetStep, block_size: int, looks: Looks) -> str:
    """Say what happens in a step."""
    ended = [looks[event.request.session][0] for event in step.events if isinstance(event, Finished)]
    clauses = [f"{_listed(ended)} {'ends' if len(ended) == 1 else 'end'}."] if ended else []
    sent = next((event for event in step.events if isinstance(event, Arrived)), None)
    started = next((event for event in step.events if isinstance(event, Started)), None)
    about = step.events[-1]
    if started is not None:
        name = looks[started.request.session][0]
        opening = (
            f"{name} goes to replica {started.replica}" if sent else f"Replica {started.replica} begins with {name}"
        )
        full = started.request.prompt_len // block_size
        verb = "is" if full == 1 else "are"
        clauses.append(f"{opening}: {started.hit_blocks} of its {counted(full, 'block')} {verb} there.")
    elif sent is not None:
        clauses.append(f"{looks[sent.request.session][0]} goes to replica {sent.replica}, and waits.")
    elif isinstance(about, Failed):
        again = counted(about.num_sent_again, "request")
        clauses.append(f"Replica {about.replica} fails: its cache is lost, and {again} must be sent again.")
    elif isinstance(about, Recovered):
        clauses.append(f"Replica {about.replica} is back, with an empty cache.")
    if step.evicted:
        gone = [
            f"{counted(blocks, 'block')} of {looks[session][0]}" for session, blocks in sorted(step.evicted.items())
        ]
        clauses.append(
            f"{_listed(gone).replace('of shared', 'of several')} {'goes' if sum(step.evicted.values()) == 1 else 'go'}."
        )
    return " ".join(clauses)


def _words(view: ReplicaView, num_blocks: int, looks: Looks) -> str:
    """One replica's state."""
    if not view.is_alive:
        return "failed"
    parts = []
    for verb, sessions in (("runs", view.running), ("waits", view.waiting)):
        if sessions:
            listed = ", ".join(looks[session][0] for session in sessions)
            parts.append(f"{verb} {listed}" if verb == "runs" else f"waiting {listed}")
    held = ", ".join(f"{looks[session][0]} {blocks}" for session, blocks in view.cached.items())
    parts += [f"{held} of {counted(num_blocks, 'block')}"] if held else ["empty"]
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
