"""Draw the README's moving picture: a recording of paged memory, frame by frame, as one SVG that moves by itself.

``python -m tools.moving_picture`` writes it anew; a test compares. The board's own code draws every frame. What stays
the same from frame to frame stands in the file once, and a style sheet says when each part is seen: scripts do not run
in a README, style sheets do. Who asked the system for less motion gets one telling frame.
"""

from __future__ import annotations

import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html import escape
from pathlib import Path

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.recorder.frame import Frame
from pagedattn_lab.viz.board import draw
from pagedattn_lab.viz.player import HERE

FILE = Path(__file__).resolve().parents[1] / "book" / "_static" / "paging.svg"
SVG = "{http://www.w3.org/2000/svg}"
SECONDS = 1.6  # a frame: its sentence can be read
WIDTH = 480  # pixels: a phone shows it at three quarters of its size, and its letters can still be read
TOP, LINE = 48, 19  # pixels above the board for two lines of text
STILL = 9  # the frame in which the third request has taken the blocks that came back
WORDS = {
    "Ada": ["What", " is", " a", " page", " table", "?", " A", " list", " of", " blocks", ".", " It"],
    "Bo": ["Name", " a", " river", ".", " The", " Nile", "."],
    "Cleo": ["Sing", " me", " a", " song", " of", " rain"],
}


def recorded() -> list[Frame]:
    """Two requests take blocks as they grow, one ends, and a third takes the blocks that came back."""
    pool = BlockPool(num_blocks=8, block_size=4)
    ada, bo, cleo = (BlockTable(pool, name) for name in ("Ada", "Bo", "Cleo"))
    recorder = Recorder(pool)  # it shows each of them from when it arrives
    ada.append_tokens(6)
    bo.append_tokens(4)
    for table in (ada, bo, ada, ada, bo):
        table.append_tokens(1)
    bo.release()
    cleo.append_tokens(6)
    ada.append_tokens(1)
    ada.append_tokens(1)
    return list(recorder.frames)


def alt(frames: Sequence[Frame]) -> str:
    """Tell the story in the recorder's own sentences: those in which blocks change hands."""
    told = [frame.sentence for frame in frames if frame.kind == "free" or " takes " in frame.sentence]
    return f"{len(frames[0].ref_cnt) - 1} blocks of {frames[0].block_size} tokens. {' '.join(told)}"


def film(frames: Sequence[Frame]) -> str:
    """Draw the frames of a recording as one SVG that shows them in turn, for ever."""
    seen: dict[str, list[int]] = {}  # each thing drawn, and the frames in which it is
    for number, frame in enumerate(frames):
        board = ET.fromstring(draw(frame, WORDS, WIDTH, among=frames))
        parts = [part for part in board if "pa-paper" not in part.get("class", "")]
        legend = [part for part in parts if "pa-soft" in part.get("class", "")]
        height = int(board.get("height", 0)) - 16 * len(legend)
        for part in parts:
            if part not in legend:
                seen.setdefault(_written(part), []).append(number)
        caption = ""
        for line, text in enumerate(textwrap.wrap(frame.sentence, 62)):
            caption += f'<text x="8" y="{20 + line * LINE - TOP}" font-size="14" class="pa-ink" fill="#222">'
            caption += f"{escape(text)}</text>"
        seen.setdefault(caption, []).append(number)
    times = {tuple(numbers): f"k{index}" for index, numbers in enumerate(dict.fromkeys(map(tuple, seen.values())))}
    rules, body = [], []
    for numbers, name in times.items():
        parts_then = "".join(part for part, when in seen.items() if tuple(when) == numbers)
        if len(numbers) == len(frames):
            body.append(parts_then)
            continue
        body.append(f'<g class="{name}{" still" if STILL in numbers else ""} part">{parts_then}</g>')
        rules.append(f".{name}{{animation-name:{name}}}@keyframes {name}{{{_keyframes(numbers, len(frames))}}}")
    style = (
        ".part{opacity:0}.still{opacity:1}"
        f"@media(prefers-reduced-motion:no-preference){{.part{{animation:{len(frames) * SECONDS:g}s step-end infinite}}"
        f"{''.join(rules)}}}@media(prefers-color-scheme:dark){{{dark()}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(alt(frames))}" '
        f'viewBox="0 {-TOP} {WIDTH} {height + TOP}" width="{WIDTH}" height="{height + TOP}" font-family="sans-serif" '
        f'font-size="12"><style>{style}</style><rect class="pa-paper" y="{-TOP}" width="{WIDTH}" '
        f'height="{height + TOP}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def dark() -> str:
    """The player's dark colours, as rules for this picture: they are written down in ``player.css`` alone."""
    css = (HERE / "player.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(pa-\w+): (#\w+);", css[css.index('html[data-theme="dark"]') :]))
    rules = re.findall(r"^:is\(\.pa-player, \.pa-mount\) (\S.*) \{ (\w+): var\(--(pa-\w+)\); \}$", css, re.MULTILINE)
    return "".join(f"{selector}{{{name}:{colours[colour]}}}" for selector, name, colour in rules)


def _written(part: ET.Element) -> str:
    """Write a part without what only a pointer needs: texts under it, and outlines that are there to be lit."""
    for parent in list(part.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}title" or (child.get("fill") == child.get("stroke") == "none"):
                parent.remove(child)
    for each in part.iter():
        for name in [name for name in each.attrib if name.startswith("data-") or name == "pointer-events"]:
            del each.attrib[name]
    ET.register_namespace("", SVG.strip("{}"))
    return ET.tostring(part, encoding="unicode").replace(f' xmlns="{SVG.strip("{}")}"', "")


def _keyframes(numbers: Sequence[int], num_frames: int) -> str:
    """Say when a part is seen: at the start, and wherever that changes. Nothing fades, or two sentences would mix."""
    changes = [number for number in range(num_frames) if number == 0 or (number in numbers) != (number - 1 in numbers)]
    return "".join(f"{round(100 * at / num_frames, 2):g}%{{opacity:{int(at in numbers)}}}" for at in changes)


def main() -> None:
    """Write the picture."""
    frames = recorded()
    FILE.write_text(film(frames), encoding="utf-8")
    print(f"wrote {FILE}: {FILE.stat().st_size / 1000:.0f} kB\n{alt(frames)}")


if __name__ == "__main__":
    main()
