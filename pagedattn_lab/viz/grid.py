"""What a lesson shows at each position of its controls, packed for pages without a kernel.

A recording is packed as what was done (:mod:`pagedattn_lab.recorder.operations`), and ``recorder.js`` makes the frames
again: a few kilobytes for thousands of positions. Pictures are packed as they are, each piece that occurs in several of
them once, so a lesson of pictures is drawn at some values of each control only.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets

MOST_RECORDINGS = 4096
MOST_PICTURES = 27  # positions; to draw one takes a sixth of a second
MOST_BYTES = 80_000  # of a packed grid, in base64
WIDE = 16  # a slider whose end is so many times its start has its stops at equal ratios

Position = tuple[str, Any]


def positions(control: Any) -> list[Position]:
    """Where a control can stand, as (text, value): the options of a choice, the steps of a slider of whole numbers.

    None at all for a control of another kind, or without a value: a page cannot show it.

    Example:
        >>> positions(widgets.IntSlider(3, min=1, max=6, step=2))
        [('1', 1), ('3', 3), ('5', 5), ('6', 6)]
    """
    if isinstance(control, widgets.IntSlider):
        values = {*range(control.min, control.max + 1, control.step), control.max, control.value}
        return [(str(value), value) for value in sorted(values)]
    if isinstance(control, widgets.Dropdown | widgets.SelectionSlider) and control.index is not None:
        options = list(control.options.items() if isinstance(control.options, Mapping) else control.options)
        # As ipywidgets reads them.
        are_pairs = all(
            isinstance(option, tuple | list) and len(option) == 2 for option in options
        )  # as ipywidgets asks
        return [(str(text), value) for text, value in (options if are_pairs else zip(options, options, strict=True))]
    return []


def check_choices(controls: Mapping[str, Any], has_pictures: bool) -> None:
    """Refuse choices that a page without a kernel could not offer; of a slider's positions it draws as many as fit.

    Raises:
        ValueError: two options with one text, or more combinations of options than there is room for.

    Example:
        >>> check_choices({"side": widgets.Dropdown(options=[("a", 1), ("a", 2)], description="side")}, False)
        Traceback (most recent call last):
        ValueError: control 'side' has two options 'a': give each a text of its own
    """
    number, most = 1, MOST_PICTURES if has_pictures else MOST_RECORDINGS
    for name, control in controls.items():
        texts = [text for text, _ in positions(control)]
        if isinstance(control, widgets.IntSlider):
            continue
        if repeated := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"control {name!r} has two options {repeated!r}: give each a text of its own")
        number *= len(texts)  # 0 with a control that no page can offer: then none is stored
    if number > most:
        kind = "pictures" if has_pictures else "recordings"
        raise ValueError(
            f"the choices have {number:,} combinations, and a page without a kernel holds at most {most:,} {kind}: "
            "offer fewer options, or an IntSlider, which is shown at some of its positions"
        )


def stops(slider: widgets.IntSlider, count: int) -> list[Position]:
    """Choose ``count`` positions along a slider: the present one, then both ends, the farther one first, then others.

    Example:
        >>> slider = widgets.IntSlider(20, min=5, max=400)
        >>> [[value for _, value in stops(slider, count)] for count in (1, 2, 4)]
        [[20], [20, 400], [5, 20, 93, 400]]
    """
    every = positions(slider)
    values = [value for _, value in every]
    here, last, low, high = values.index(slider.value), len(every) - 1, values[0], values[-1]
    if count > last:
        return every
    if count <= 2:
        return [every[index] for index in sorted([here, 0 if here > last - here else last][:count])]
    shares = [index / last for index in range(last + 1)]  # of the way from end to end
    if low > 0 and high >= WIDE * low:
        shares = [math.log(value / low, high / low) for value in values]
    wanted = [index / (count - 1) for index in range(count)]
    chosen = {min(range(last + 1), key=lambda index: abs(shares[index] - one)) for one in wanted}
    if here not in chosen:  # it takes the place of the stop beside it
        chosen.remove(min(chosen - {0, last}, key=lambda index: abs(shares[index] - shares[here])))
    return [every[index] for index in sorted(chosen | {here})]


def spread(controls: Sequence[Any], most: int) -> list[list[Position]]:
    """Choose positions of several controls: of a choice all, along sliders about as many of each as ``most`` allows.

    Example:
        >>> controls = widgets.IntSlider(1, min=1, max=9), widgets.Dropdown(options="ab", index=0)
        >>> [[text for text, _ in chosen] for chosen in spread(controls, most=10)]
        [['1', '3', '5', '7', '9'], ['a', 'b']]
    """
    sliders = [isinstance(control, widgets.IntSlider) for control in controls]
    counts = [1 if is_slider else len(positions(c)) for c, is_slider in zip(controls, sliders, strict=True)]
    room = [len(positions(control)) - count for control, count in zip(controls, counts, strict=True)]

    def fits(i: int) -> bool:
        return room[i] > 0 and math.prod(counts) // counts[i] * (counts[i] + 1) <= most

    while fitting := [i for i in range(len(counts)) if fits(i)]:
        fewest = min(fitting, key=lambda i: (counts[i], -i))  # of several the last
        counts[fewest] += 1
        room[fewest] -= 1
    return [
        stops(control, count) if is_slider else positions(control)
        for control, count, is_slider in zip(controls, counts, sliders, strict=True)
    ]


def make_grid(controls: Mapping[str, Any], show: Callable[..., dict[str, Any]]) -> dict[str, Any] | None:
    """Pack what a lesson shows at each position of its controls, or at as many as fit.

    Args:
        controls: by the names of the values that they set.
        show: makes a recording of these values, or pictures, as :func:`pagedattn_lab.viz.player.recording` does. What
            it raises is packed in the place of what it would show.

    Returns:
        JSON values. ``controls``: what a page needs to offer each one, ``of`` how many positions it has in truth;
        ``recordings``: packed by :func:`pack`, the last control moving first; ``digest``: of what they show. ``None``
        where a page cannot show a control, a recording lacks its operations, or there is nothing but an error now.
    """
    now = _shown(show, {name: control.value for name, control in controls.items()})
    if "error" in now:
        return None
    has_pictures = "svg" in now["frames"][0]
    if not all(map(positions, controls.values())) or not (has_pictures or "ops" in now):
        return None
    most = MOST_PICTURES if has_pictures else MOST_RECORDINGS
    made: dict[tuple[str, ...], dict[str, Any]] = {}  # by texts: a value need not be hashable
    while True:
        chosen = spread(list(controls.values()), most)
        shown = []
        for place in itertools.product(*chosen):
            texts = tuple(text for text, _ in place)
            if texts not in made:
                made[texts] = _shown(show, {name: value for name, (_, value) in zip(controls, place, strict=True)})
            shown.append(made[texts])
        packed = _pack_all(shown)
        if len(packed) <= MOST_BYTES or most == 1:
            break
        most = most * 3 // 4
    offered = [offer(control, each) for control, each in zip(controls.values(), chosen, strict=True)]
    return {"controls": offered, "recordings": packed, "digest": digest(shown)}


def _shown(show: Callable[..., dict[str, Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return show(**values)
    except Exception as error:  # the page says it, as a lesson with a kernel does
        return {"error": f"{type(error).__name__}: {error}"}


def digest(recordings: Sequence[Mapping[str, Any]]) -> str:
    """Sum up all frames in a few letters: what the operations make in a browser must have the same."""
    frames = [recording.get("frames") for recording in recordings]
    return hashlib.sha256(_json(frames)).hexdigest()[:16]


def offer(control: Any, chosen: list[Position]) -> dict[str, Any]:
    """What a page needs to show a control."""
    is_choice = not isinstance(control, widgets.IntSlider)
    return {
        "label": control.description,
        "kind": "list" if isinstance(control, widgets.Dropdown) else "slider",
        "options": [text for text, _ in chosen],
        "index": control.index if is_choice else [value for _, value in chosen].index(control.value),
        "of": len(positions(control)),
    }


def _pack_all(recordings: Sequence[Mapping[str, Any]]) -> str:
    """Pack recordings as their operations, and pictures as the numbers of their pieces."""
    pieces: set[str] = set()
    shown = []
    for recording in recordings:
        kept = {name: recording[name] for name in ("ops", "words", "error") if name in recording}
        if not {"ops", "error"} & set(kept):
            frames = [frame | {"svg": _cut(frame["svg"])} for frame in recording["frames"]]
            pieces.update(piece for frame in frames for piece in frame["svg"])
            kept["frames"] = frames
        shown.append(kept)
    known = sorted(pieces)  # alike ones side by side: deflate sees no further than 32 kB
    numbers = {piece: number for number, piece in enumerate(known)}
    for recording in shown:
        for frame in recording.get("frames", ()):
            frame["svg"] = [numbers[piece] for piece in frame["svg"]]
    return pack({"pieces": known, "shown": shown})


def pack(value: Any) -> str:
    """Write JSON values as base64 of deflate; ``lesson.js`` reads them.

    Without the header of gzip, in which Python versions write different bytes.

    Example:
        >>> unpack(pack({"pieces": [], "shown": []}))
        {'pieces': [], 'shown': []}
    """
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return base64.b64encode(deflate.compress(_json(value)) + deflate.flush()).decode()


def unpack(packed: str) -> Any:
    """Read what :func:`pack` has written."""
    return json.loads(zlib.decompress(base64.b64decode(packed), wbits=-zlib.MAX_WBITS))


def _cut(svg: str) -> list[str]:
    """Cut a drawing into pieces that may occur again: at the ends of lines and of groups."""
    return re.split(r"(?<=</g>)|(?<=\n)", svg)


def _json(value: Any) -> bytes:
    """Write JSON as a browser would."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
