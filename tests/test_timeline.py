"""The drawing of who runs when: what stands in it, what it says, and what it refuses to draw."""

from __future__ import annotations

import re

import pytest

from pagedattn_lab.viz.timeline import MOST_STEPS, Step, show_timeline, timeline

STEPS = [
    Step({"Ada": 5, "Bo": 3}, used=3),
    Step({"Ada": 1}, preempted=["Bo"], used=2),
    Step({"Ada": 1}, idle=["Bo"], used=2),
]


def texts(svg: str) -> list[str]:
    """Return what is written in a drawing."""
    return re.findall(r">([^<>]+)</text>", svg)


def test_every_cell_says_what_happens() -> None:
    """Catches a cell in the wrong row or column, a mark for the wrong request, and blocks that are not written."""
    svg = show_timeline(STEPS, ["Ada", "Bo"], num_blocks=4).svg
    boxes = re.findall(r'<rect x="(\d+)" y="(\d+)" width="22" height="20" rx="3" fill="(#\w+)"', svg)
    left, top = min(int(x) for x, _, _ in boxes), min(int(y) for _, y, _ in boxes)
    cells = {((int(x) - left) // 24, (int(y) - top) // 22): fill for x, y, fill in boxes}
    orange, blue, vermilion, grey = "#E69F00", "#0072B2", "#D55E00", "#d9d9d9"
    assert cells == {
        (0, 0): orange, (1, 0): blue, (2, 0): blue, (0, 1): orange, (1, 1): vermilion, (2, 1): grey,
    }  # fmt: skip
    assert [text for text in texts(svg) if text not in ("Ada", "Bo", "blocks")] == [
        "1", "5", "3", "3", "p", "2", "3", "–", "2",
    ]  # fmt: skip


def test_words_tell_the_same() -> None:
    """Catches an alternative text, or a caption, of another step than the last."""
    picture = show_timeline(STEPS, ["Ada", "Bo"], num_blocks=4)
    assert picture.caption == "Step 3: Ada computes 1 token; 1 place empty. 2 of 4 blocks held."
    assert picture.alt.endswith("Tokens by step: Ada 5, 1, 1; Bo 3, preempted, idle.")
    captions = [frame.caption for frame in timeline(STEPS, ["Ada", "Bo"], num_blocks=4)]
    assert captions[0] == "Step 1: Ada computes 5 tokens; Bo computes 3 tokens. 3 of 4 blocks held."
    assert captions[1] == "Step 2: Ada computes 1 token; Bo loses its blocks. 2 of 4 blocks held."


def test_what_is_refused() -> None:
    """Catches a drawing with a request missing, one too wide to read, and a share of an unknown whole."""
    with pytest.raises(ValueError, match="'Bo' has no row"):
        show_timeline(STEPS, ["Ada"], num_blocks=4)
    for steps in ([], [Step({"Ada": 1})] * (MOST_STEPS + 1)):
        with pytest.raises(ValueError, match=f"{len(steps)} steps cannot be drawn"):
            show_timeline(steps, ["Ada"])
    with pytest.raises(ValueError, match="Give num_blocks"):
        show_timeline(STEPS, ["Ada", "Bo"])
