"""What a lesson stores for pages without a kernel: every position where that fits, the same bytes each time."""

from __future__ import annotations

import itertools
from typing import Any

import ipywidgets as widgets
import pytest

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.viz import Picture, grid
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.player import MIME, recording


def grown(tokens: int, block_size: int) -> Recorder:
    """Record one request that gets tokens, and one more."""
    pool = BlockPool(num_blocks=12, block_size=block_size)
    recorder = Recorder(pool)
    table = BlockTable(pool, "Ada")
    table.append_tokens(tokens)
    table.append_tokens(1)
    return recorder


def board_lesson() -> Lesson:
    return Lesson(
        grown,
        "One request",
        tokens=widgets.IntSlider(5, min=1, max=9, step=3, description="tokens"),
        block_size=widgets.SelectionSlider(options=[2, 4, 8], value=4, description="block size"),
    )


def stored(lesson: Lesson) -> dict[str, Any]:
    data, metadata = lesson._repr_mimebundle_()
    return data[MIME]["grid"] | metadata[MIME]


def unpacked(made: dict[str, Any]) -> dict[str, Any]:
    return grid.unpack(made["recordings"])


def pictures(unpacked: dict[str, Any]) -> list[list[str]]:
    """Put the pictures of each position together again."""
    pieces = unpacked["pieces"]
    return [["".join(pieces[i] for i in frame["svg"]) for frame in one["frames"]] for one in unpacked["shown"]]


def test_every_position_of_a_recording() -> None:
    """Catches a position left out, in another order, or with what another one does; and a control at another place."""
    made = stored(board_lesson())
    assert made["controls"] == [
        {"label": "tokens", "kind": "slider", "options": ["1", "4", "5", "7", "9"], "index": 2, "of": 5},
        {"label": "block size", "kind": "slider", "options": ["2", "4", "8"], "index": 1, "of": 3},
    ]
    every = list(itertools.product([1, 4, 5, 7, 9], [2, 4, 8]))
    assert unpacked(made)["shown"] == [{"ops": grown(*each).ops} for each in every]
    assert made["digest"] == grid.digest([recording(grown(*each)) for each in every])
    assert made["digest"] != grid.digest([recording(grown(*each)) for each in reversed(every)])


def test_the_same_bytes_each_time() -> None:
    """Catches a time or an address in what is stored, which would change the notebook each time that it runs."""
    assert stored(board_lesson()) == stored(board_lesson())


def test_words_and_errors_are_stored() -> None:
    """Catches cells without their words, and one bad position that keeps a whole lesson from being shown."""

    def draw(block_size: int) -> dict[str, Any]:
        return recording(grown(3, block_size), tokens={"Ada": ["the", "fox"]})

    size = widgets.IntSlider(1, min=0, max=2, description="block size")
    none, *rest = unpacked(stored(Lesson(draw, "Words", block_size=size)))["shown"]
    assert none == {"error": "ValueError: block_size is 0: a block holds at least 1 token"}
    assert [one["words"] for one in rest] == [{"Ada": ["the", "fox"]}] * 2


def test_pictures_are_put_together_again() -> None:
    """Catches a picture with a piece that is missing, from elsewhere, or in another place."""

    def draw(count: int) -> list[Picture]:
        groups = [f"<g><title>{i}</title>\n<rect x='{i}'/></g>" for i in range(count)]
        return [Picture(f"<svg>{''.join(groups[:end])}</svg>\n", alt=f"{end} squares") for end in (count, 1)]

    made = stored(Lesson(draw, "Squares", count=widgets.IntSlider(5, min=1, max=9, description="squares")))
    found = unpacked(made)
    assert pictures(found) == [[picture.svg for picture in draw(count)] for count in range(1, 10)]
    assert [frame["sentence"] for frame in found["shown"][2]["frames"]] == ["3 squares", "1 squares"]
    assert len(found["pieces"]) < sum(len(frame["svg"]) for one in found["shown"] for frame in one["frames"])


def test_too_many_pictures_are_thinned_out() -> None:
    """Catches an end, the present value or an option of a list that the page leaves out, and a page that grows."""
    drawn = []

    def draw(size: int, kind: str) -> Picture:
        drawn.append(size)
        return Picture(f"<svg>{kind}{size}</svg>", alt=f"{kind} {size}")

    size = widgets.IntSlider(33, min=1, max=1000, description="size")
    kind = widgets.Dropdown(options=list("abcd"), description="kind")
    made = stored(Lesson(draw, "Sizes", size=size, kind=kind))
    values = [int(text) for text in made["controls"][0]["options"]]
    assert values == sorted(values) and {1, 33, 1000} <= set(values) and values[made["controls"][0]["index"]] == 33
    assert made["controls"][0]["of"] == 1000 and made["controls"][1]["options"] == list("abcd")
    assert 4 * len(values) <= grid.MOST_PICTURES < 4 * (len(values) + 1)
    assert len(drawn) <= grid.MOST_PICTURES + 2, "each is drawn once, but for the one that the reader sees"


def test_choices_are_kept_whole() -> None:
    """Catches an option that the author has listed and the page leaves out, where a slider's stops could be fewer."""
    size = widgets.SelectionSlider(options=range(9), value=4, description="size")
    few, many = (widgets.IntSlider(value, min=1, max=100, description="x") for value in (8, 20))
    made = stored(Lesson(lambda **values: Picture("<svg></svg>", alt=f"{values}"), "x", size=size, few=few, many=many))
    assert [control["options"] for control in made["controls"]] == [
        [str(number) for number in range(9)], ["8"], ["1", "20", "100"],
    ]  # fmt: skip


def test_options_in_pairs_of_lists_are_pairs() -> None:
    """Catches a page that offers "['small', 1]" where the kernel's control says "small"; and numbers for texts."""
    side = widgets.Dropdown(options=[["small", 1], [2, 5]], value=5, description="side")
    made = stored(Lesson(lambda side: Picture("<svg></svg>", alt=f"{side}"), "Sides", side=side))
    assert made["controls"][0]["options"] == ["small", "2"] == [text for text, _ in side._options_full]
    assert [one["frames"][0]["sentence"] for one in unpacked(made)["shown"]] == ["1", "5"]


def test_two_options_with_one_text_are_refused() -> None:
    """Catches a page that shows the first of two options for both."""
    side = widgets.SelectionSlider(options=[("a", 1), ("b", 2), ("a", 3)], description="side")
    with pytest.raises(ValueError, match="control 'side' has two options 'a': give each a text of its own"):
        Lesson(lambda side: Picture("<svg></svg>", alt=f"{side}"), "Sides", side=side)


def test_more_choices_than_a_page_holds_are_refused() -> None:
    """Catches a lesson that draws for minutes and stores megabytes, since no option of a choice is left out."""
    size = widgets.SelectionSlider(options=range(14), description="size")
    kind = widgets.Dropdown(options="ab", description="kind")
    drawn = []

    def draw(size: int, kind: str) -> Picture:
        drawn.append(size)
        return Picture("<svg></svg>", alt=f"{size} {kind}")

    with pytest.raises(ValueError, match=r"the choices have 28 combinations, and a page .* at most 27 pictures: offer"):
        Lesson(draw, "Sizes", size=size, kind=kind)
    assert len(drawn) == 1
    tokens = widgets.SelectionSlider(options=range(1, 4098), description="tokens")
    with pytest.raises(ValueError, match=r"4,097 combinations, and a page .* at most 4,096 recordings"):
        Lesson(lambda tokens: grown(tokens % 3, 4), "Tokens", tokens=tokens)
    live_only = widgets.FloatSlider(description="x")
    assert Lesson(lambda size, x: Picture("<svg></svg>", alt="x"), "x", size=size, x=live_only)


def test_large_pictures_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a notebook that grows by megabytes."""
    monkeypatch.setattr(grid, "MOST_BYTES", 2000)

    def draw(size: int) -> Picture:
        letters = "".join(chr(33 + (size * i * i + i) % 90) for i in range(300)).translate({60: None, 62: None})
        return Picture(f"<svg>{letters}</svg>", alt=f"{size}")

    made = stored(Lesson(draw, "Sizes", size=widgets.IntSlider(5, min=0, max=20, description="size")))
    values = [int(text) for text in made["controls"][0]["options"]]
    assert {0, 5, 20} <= set(values) and len(values) < 21
    assert len(made["recordings"]) <= 2000


@pytest.mark.parametrize(
    "control",
    [
        widgets.FloatSlider(description="x"),
        widgets.Checkbox(description="x"),
        widgets.IntRangeSlider(description="x"),
        widgets.Dropdown(options=[1, 2], value=None, description="x"),
    ],
    ids=lambda control: type(control).__name__,
)
def test_other_controls_need_a_kernel(control: widgets.Widget) -> None:
    """Catches a lesson that can be shown nowhere because a page cannot offer one of its controls."""
    one = Picture("<svg></svg>", alt="one")
    size = widgets.IntSlider(5, min=1, max=9, description="size")
    bundle, _ = Lesson(lambda x, size: one, "x", x=control, size=size)._repr_mimebundle_()
    assert "grid" not in bundle[MIME] and bundle["image/svg+xml"] == one.svg


def test_values_of_any_kind() -> None:
    """Catches an option that cannot be hashed, a list for instance."""
    options = [("few", [0, 0]), ("many", [1, 1])]
    choice = widgets.Dropdown(options=options, index=1, description="tokens")
    made = stored(Lesson(lambda x: Picture("<svg></svg>", alt=f"{x}"), "x", x=choice))
    assert made["controls"][0] | {"index": 1, "options": ["few", "many"]} == made["controls"][0]
    assert [one["frames"][0]["sentence"] for one in unpacked(made)["shown"]] == ["[0, 0]", "[1, 1]"]


def test_an_error_is_shown_as_one() -> None:
    """Catches a lesson that cannot be displayed while what it draws raises."""
    size = widgets.IntSlider(4, min=2, max=9, description="size")

    def draw(size: int) -> Picture:
        return Picture("<svg></svg>", alt=f"{12 // (size - 5)}")

    lesson = Lesson(draw, "x", size=size)
    with pytest.raises(ZeroDivisionError):
        size.value = 5
    bundle, _ = lesson._repr_mimebundle_()
    assert "grid" not in bundle[MIME] and "ZeroDivisionError" in bundle["text/plain"]


def test_a_loaded_recording_needs_a_kernel() -> None:
    """Catches a lesson of recordings without their operations that is stored as one that shows nothing."""
    saved = grown(3, 4).to_dict()
    size = widgets.IntSlider(5, min=1, max=9, description="size")
    assert "grid" not in Lesson(lambda size: saved, "x", size=size)._repr_mimebundle_()[0][MIME]


@pytest.mark.parametrize(
    ("control", "texts"),
    [
        (widgets.IntSlider(5, min=1, max=9, step=3, description="x"), ["1", "4", "5", "7", "9"]),
        (widgets.Dropdown(options={"a": 1, "b": 2}, description="x"), ["a", "b"]),
        (widgets.SelectionSlider(options=[("few", 1), ("many", 2)], description="x"), ["few", "many"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions(control: widgets.Widget, texts: list[str]) -> None:
    """Catches an option offered by its value, and a present value between a slider's steps that is lost."""
    assert [text for text, _ in grid.positions(control)] == texts
