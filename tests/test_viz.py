"""Pictures: the drawn state is the library's state, twice the same, with words that can stand in for it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
import traitlets

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.recorder.frame import Frame, TableState, snapshot
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.board import describe, draw, show_frame
from pagedattn_lab.viz.book import PlayerRenderer, book_script
from pagedattn_lab.viz.figures import show, subplots
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.looks import COLOURS
from pagedattn_lab.viz.memory import show_memory
from pagedattn_lab.viz.player import MIME, Player, recording
from pagedattn_lab.viz.player import picture as picture_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn_slots(picture: Picture) -> dict[int, str]:
    """Read slot -> what lies there back from the drawing."""
    titles = [title.text for title in ElementTree.fromstring(picture.svg).iter(f"{SVG}title")]
    matches = [re.fullmatch(r"slot (\d+): (.*)", title) for title in titles]
    return {int(match[1]): match[2] for match in matches if match}


def drawn_groups(picture: Picture, attribute: str) -> list[str]:
    """Read an attribute of every group that bears it back from the drawing, in order."""
    groups = ElementTree.fromstring(picture.svg).iter(f"{SVG}g")
    return [group.attrib[attribute] for group in groups if attribute in group.attrib]


def two_requests(num_blocks: int = 9, block_size: int = 4) -> tuple[BlockPool, dict[str, BlockTable]]:
    pool = BlockPool(num_blocks, block_size)
    tables = {name: BlockTable(pool) for name in ("Ada", "B<b>")}
    for name, count in (("Ada", 5), ("B<b>", 3), ("Ada", 6), ("B<b>", 2)):
        tables[name].append_tokens(count)
    return pool, tables


def test_memory_picture_equals_the_tables() -> None:
    """Catches a token drawn in the wrong slot, an empty slot drawn full, and alt text that tells another story."""
    pool, tables = two_requests()
    picture = show_memory(pool, tables, words={"Ada": ["<s>", "Hi"]})
    expected = {slot: "empty" for slot in range(36)}
    for name, table in tables.items():
        for position, slot in enumerate(table.slot_mapping()):
            word = {("Ada", 0): " “<s>”", ("Ada", 1): " “Hi”"}.get((name, position), "")
            expected[slot] = f"{name}, token {position}{word}"
    assert drawn_slots(picture) == expected
    assert drawn_groups(picture, "data-block") == [str(number) for number in range(9)]
    assert drawn_groups(picture, "data-block-of") == ["1", "2", "4", "3", "5"]
    assert drawn_groups(picture, "data-free") == ["6", "7", "8"]
    assert "Ada: 11 tokens in blocks 1 (4/4), 2 (4/4), 4 (3/4)." in picture.alt
    assert picture.alt.endswith("Free queue: 6, 7, 8.")
    tables["Ada"].release()
    assert show_memory(pool, tables).alt.endswith("Free queue: 4, 2, 1, 6, 7, 8.")
    assert drawn_groups(show_memory(pool, tables), "data-free") == ["4", "2", "1", "6", "7", "8"]


def test_a_still_can_be_drawn_anew() -> None:
    """Catches a still that a phone shrinks, or a dark page shows white: scripts need its frame and its words."""
    pool, tables = two_requests()
    still = show_memory(pool, tables, words={"Ada": ["Hi", "\n"]})
    made = still._repr_mimebundle_()[MIME]
    assert made["label"] == still.alt and made["step"] == 0
    assert picture_of(made, 0).svg == still.svg and made["words"] == {"Ada": ["Hi", "␊"]}
    data = SimpleNamespace(mime_type=MIME, content=made, output_metadata={})
    [node] = PlayerRenderer.handle_mime(None, data, inline=False)
    assert still.svg in node.astext()
    lesson = Lesson(grown, "One", block_size=widgets.IntSlider(4, min=1, max=8, description="size"))
    assert MIME in lesson.at(block_size=2)._repr_mimebundle_()


def test_words_on_a_phone_keep_their_ends() -> None:
    """Catches words of seven letters that lose one on a phone, and letters smaller where all of a word fits."""
    pool = BlockPool(num_blocks=4, block_size=8)
    trace = Recorder(pool)
    trace.add("Ada", BlockTable(pool)).append_tokens(3)
    words = {"Ada": [" library", " city", " imponderables"]}
    svg = draw(Frame.from_dict(trace.to_dict()["frames"][-1], 8), words, width=350)
    drawn = re.findall(r'font-size="(\d+)" class="pa-mark"[^>]*>([^<]+)<', svg)
    assert [text for _, text in drawn][:2] == ["library", "city"] and drawn[2][1].endswith("…")
    assert int(drawn[0][0]) == 9 < int(drawn[1][0])


def test_broken_and_shared_counts_show() -> None:
    """Catches a shared block told apart by nothing but colour, and a wrong count that the picture hides."""
    pool, tables = two_requests()
    pool.touch([pool.blocks[1]])
    tables["B<b>"].blocks.append(pool.blocks[1])
    shared = show_memory(pool, tables)
    assert ">×2</tspan>" in shared.svg and shared.svg.count('class="pa-line"') == 1
    assert "Block 1 has reference count 2." in shared.alt
    tables["B<b>"].blocks.pop()
    assert ">×2!</tspan>" in show_memory(pool, tables).svg


@pytest.mark.parametrize("width", [320, 760])
@pytest.mark.parametrize(("num_blocks", "block_size"), [(2, 1), (9, 4), (97, 16), (20, 64)])
def test_board_fits_its_width(width: int, num_blocks: int, block_size: int) -> None:
    """Catches a tile or an entry placed past the edge, and a block that is not drawn at all."""
    pool = BlockPool(num_blocks, block_size)
    table = BlockTable(pool)
    table.append_tokens(num_blocks * block_size // 2)
    svg = ElementTree.fromstring(draw(snapshot(pool, {"Ada": table}), width=width))
    drawn = [group for group in svg.iter(f"{SVG}g") if "transform" in group.attrib]
    assert sum("data-block" in group.attrib for group in drawn) == num_blocks
    corners = set()
    for group in drawn:
        left, top = map(int, re.fullmatch(r"translate\((\d+),(\d+)\)", group.attrib["transform"]).groups())
        rects = [rect for rect in group.iter(f"{SVG}rect") if "pa-halo" not in rect.get("class", "")]
        right = max(int(rect.get("x", 0)) + int(rect.attrib["width"]) for rect in rects)
        assert left + right <= width and top < int(svg.attrib["height"])
        assert (left, top) not in corners, "two things in one place"
        corners.add((left, top))


def looks(frame: Frame) -> dict[int, dict[str, object]]:
    """Read back how each block is drawn."""
    found = {}
    for group in ElementTree.fromstring(draw(frame)).iter(f"{SVG}g"):
        if "data-block" in group.attrib:
            halo, *rects = group.iter(f"{SVG}rect")
            found[int(group.attrib["data-block"])] = {
                "outlined": halo.get("stroke") != "none",
                "kinds": [rect.get("class") for rect in rects],
                "fills": {rect.get("fill") for rect in rects if rect.get("class") == "pa-filled"},
                "dashed": [rect.get("stroke-dasharray") is not None for rect in rects],
                "level": [int(rect.attrib["width"]) for rect in rects if rect.get("class") == "pa-level"],
                "caption": group.find(f"{SVG}text").text,
                "marks": [text.text for text in group.iter(f"{SVG}text") if text.get("class") == "pa-mark"],
                "title": group.find(f"{SVG}title").text,
            }
    return found


def test_every_state_of_a_block_has_its_look() -> None:
    """Catches free, cached, used, empty and null blocks, and what an event changed, drawn like one another."""
    pool = BlockPool(6, 4)
    tables = {name: BlockTable(pool) for name in ("Ada", "Ann")}
    tables["Ada"].append_tokens(5)
    tables["Ann"].append_tokens(1)
    pool.blocks[4].block_hash = b"\xca\xfe\xba\xbe"
    frame = replace(snapshot(pool, tables), changed=(2,))
    look = looks(frame)
    assert [look[number]["kinds"] for number in range(6)] == [
        ["pa-null"] * 4, ["pa-filled"] * 4, ["pa-filled"] + ["pa-empty"] * 3, ["pa-filled"] + ["pa-empty"] * 3,
        ["pa-cached"] * 4, ["pa-free"] * 4,
    ]  # fmt: skip
    assert [look[number]["outlined"] for number in range(6)] == [False, False, True, False, False, False]
    assert [all(look[number]["dashed"]) for number in range(6)] == [False, False, False, False, True, True]
    assert look[1]["fills"] == look[2]["fills"] == {COLOURS[0][0]} and look[3]["fills"] == {COLOURS[1][0]}
    assert look[2]["marks"] == ["A"] and look[3]["marks"] == ["A2"]
    assert [look[number]["caption"] for number in range(6)] == ["0 null", "1", "2", "3", "4 #cafe", "5"]
    assert look[4]["title"] == "block 4: no table names it; reference count 0; free; hash cafebabe"
    assert look[1]["title"] == "block 1: Ada's logical block 0; reference count 1; 4 of 4 slots filled"
    assert drawn_groups(show_frame(frame), "data-free") == ["4", "5"] and ">4#</text>" in draw(frame)


def test_many_blocks_still_say_whose_and_how_full() -> None:
    """Catches a large board where only colour tells requests apart, counts are lost, or every bar looks full."""
    pool = BlockPool(200, 16)
    tables = {f"request {number}": BlockTable(pool) for number in range(1, 10)}
    for table in tables.values():
        table.append_tokens(20)
    pool.touch([pool.blocks[1]])
    tables["request 9"].blocks.append(pool.blocks[1])
    look = looks(snapshot(pool, tables))
    assert look[1]["marks"] == ["1×2"] and look[1]["level"] == [34]
    assert [look[number]["marks"] for number in (2, 3, 18)] == [["1"], ["2"], ["9"]]
    assert look[2]["level"] == [34 * 4 // 16] and look[19]["level"] == []
    assert "".join(look[19]["kinds"]) == "pa-free"


def test_a_shared_block_shows_who_reaches_how_far() -> None:
    """Catches a token of one request told to be another's that shares the block and is shorter."""
    tables = (TableState("Ada", 0, "A", 5, (1, 2)), TableState("Bo", 1, "B", 7, (1, 2)))
    frame = Frame("note", "", (), 4, tables, (0, 2, 2), {}, ())
    assert [drawn_slots(show_frame(frame))[slot] for slot in (8, 9, 10, 11)] == [
        "Ada, token 4; Bo, token 4", "Bo, token 5", "Bo, token 6", "empty",
    ]  # fmt: skip


def test_tables_stand_beside_the_blocks_where_there_is_room() -> None:
    """Catches a board that is laid out for another width than its own."""
    frame = snapshot(*two_requests())
    tables = [draw(frame, width=width).index("Page tables") for width in (699, 700)]
    place = [
        re.search(r'x="(\d+)" y="(\d+)"[^>]*>$', draw(frame, width=w)[:at])
        for w, at in zip((699, 700), tables, strict=True)
    ]
    assert int(place[0][1]) == 8 and int(place[0][2]) > 100
    assert int(place[1][1]) > 350 and int(place[1][2]) == 18


def test_any_token_can_be_drawn() -> None:
    """Catches a token of a byte-level vocabulary that makes the picture invalid, or cannot be seen at all."""
    pool, tables = two_requests()
    words = ["\x00", "\n", " ", "<&>", "\ud800", "\ufffe", ""]
    picture = show_memory(pool, tables, words={"Ada": words})
    picture.svg.encode()
    expected = ["␀", "␊", "␣", "<&>", "�", "�"]
    assert [drawn_slots(picture)[slot] for slot in tables["Ada"].slot_mapping(0, 6)] == [
        f"Ada, token {position} “{word}”" for position, word in enumerate(expected)
    ]
    made = recording(Recorder(pool, tables), tokens={"Ada": words})
    assert made["words"]["Ada"] == [*expected, ""]


def test_letters_stand_out_from_their_colour() -> None:
    """Catches a pair of colours below the contrast that WCAG 2.1 asks of small text, 4.5 to 1."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for pair in COLOURS:
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def test_figures_are_deterministic_and_described() -> None:
    """Catches a date or a random id in the SVG, which would make an unchanged notebook fail."""

    def draw() -> Picture:
        figure, axes = subplots(1, 2, figsize=(5, 2))
        axes[0].plot([1, 2, 4], label="α")
        axes[1].bar(["a", "b"], [2, 1])
        axes[0].set_title("Doubling, twice")
        return show(figure, alt="One line and two bars.")

    first = draw()
    assert first.svg == draw().svg
    bundle = first._repr_mimebundle_()
    assert bundle["text/plain"] == "One line and two bars." and 'aria-label="One line' in bundle["image/svg+xml"]
    assert "Doubling, twice" in first.svg, "text must stay text"


def test_letters_stay_legible_on_a_phone() -> None:
    """Catches a figure that shrinks until nobody can read it: the least width is that of letters of 10 pixels."""
    figure, axes = subplots(figsize=(8, 3))
    axes.set_title("Wide")
    axes.text(0, 0, "small", fontsize=9)
    tag = show(figure, alt="A wide figure.").svg.partition(">")[0]
    points = float(re.search(r'width="([\d.]+)pt"', tag)[1])
    assert int(re.search(r"max-width:max\(100%,(\d+)px\)", tag)[1]) == -(-points * 10 // 9)
    drawn = '<svg viewBox="0 0 400 9" width="200" height="9"><text font-size="11">a</text><text font-size="20">b</text>'
    assert "max-width:max(100%,200px)" in Picture(f"{drawn}</svg>", alt="small").svg, "no wider than it is drawn"
    assert 'style="max-width:100%;' in Picture('<svg width="9" height="9"></svg>', alt="no letters").svg


def test_figures_without_words_are_refused() -> None:
    """Catches a picture that a blind reader would miss, and a figure that states no finding."""
    figure, axes = subplots()
    with pytest.raises(ValueError, match="no title"):
        show(figure, alt="something")
    axes.set_title("A finding")
    with pytest.raises(ValueError, match="alt text"):
        show(figure, alt=" ")
    with pytest.raises(ValueError, match="must be an <svg>"):
        Picture("<p>", alt="a paragraph")
    axes.plot([1, 2], label="waste")
    axes.legend()
    with pytest.raises(ValueError, match="beside what it names"):
        show(figure, alt="something")


def test_long_titles_wrap() -> None:
    """Catches a title that makes the picture wider, so that all else in it shrinks on a narrow screen."""
    widths = []
    for title in ("A finding", "A finding " * 12):
        for as_suptitle in (False, True):
            figure, axes = subplots(figsize=(5, 3))
            figure.suptitle(title) if as_suptitle else axes.set_title(title)
            root = ElementTree.fromstring(show(figure, alt="something").svg)
            widths.append(float(root.get("width").removesuffix("pt")))
    assert max(widths) - min(widths) < 5 and max(widths) < 5.2 * 72


def grown(block_size: int, num_blocks: int = 20) -> Recorder:
    """A request that grows token by token."""
    pool = BlockPool(num_blocks, block_size)
    table = BlockTable(pool)
    trace = Recorder(pool, {"Ada": table})
    for _ in range(6):
        table.append_tokens(1)
    return trace


def test_player_shows_what_it_says() -> None:
    """Catches a still picture, alt text or JSON that belongs to another step than the one shown."""
    player = Player(grown(4), "One request", step=2)
    for step in (2, 0, 6):
        player.step = step
        frame = grown(4).frames[step]
        assert player.picture == show_frame(frame, among=grown(4).frames)
        data, _ = player._repr_mimebundle_()
        assert data[MIME]["step"] == step and data[MIME]["frames"][step]["sentence"] == frame.sentence
        assert data["image/svg+xml"] == player.picture.svg and data["text/plain"] == repr(player)
        assert repr(player) == f"Player('One request', step {step} of 6): {describe(frame)}"
        assert "application/vnd.jupyter.widget-view+json" in data
    json.dumps(data)


def test_player_refuses_what_it_cannot_show() -> None:
    """Catches a player without a name for screen readers, and a step that leaves page and kernel apart."""
    with pytest.raises(ValueError, match="needs a label"):
        Player(grown(4), " ")
    with pytest.raises(ValueError, match="no frame to play"):
        Player([], "nothing")
    player = Player(grown(4), "One request")
    for step in (-1, 7):
        with pytest.raises(traitlets.TraitError, match="step from 0 to 6"):
            player.step = step
    assert player.step == 6
    with pytest.raises(ValueError, match="token 17 is an id"):
        recording(grown(4), tokens={"Ada": [17]})
    with pytest.raises(ValueError, match="no frame shows a request 'Ade': name one of Ada"):
        recording(grown(4), tokens={"Ade": ["x"]})
    for step in (7, -8):
        with pytest.raises(ValueError, match="there is no frame"):
            Player(grown(4), "One request", step=step)


def test_player_puts_tokens_into_cells() -> None:
    """Catches ids decoded by position instead of by value, and texts that are decoded again."""

    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "".join(chr(i) for i in ids)

    made = recording(grown(4), tokens={"Ada": [72, 105, "!"]}, tokenizer=Letters())
    assert made["words"] == {"Ada": ["H", "i", "!"]}
    assert drawn_slots(Player(made, "words").picture)[6] == "Ada, token 2 “!”"


def test_lesson_follows_its_controls() -> None:
    """Catches a control that is not wired, a stale picture, and an error in the drawing that nobody sees."""

    def draw(blocks: int, size: int) -> Picture:
        if blocks == 13:
            raise RuntimeError("no picture of 13 blocks")
        return show_memory(BlockPool(blocks, size), {})

    lesson = Lesson(
        draw,
        "Empty memory",
        blocks=widgets.IntSlider(4, min=2, max=20, description="blocks"),
        size=widgets.IntSlider(2, min=1, max=8, description="block size"),
    )
    for blocks, size in ((2, 1), (20, 8), (7, 3)):
        lesson.set(blocks=blocks, size=size)
        expected = draw(blocks, size)
        assert (lesson.player.picture.svg, lesson.player.picture.alt) == (expected.svg, expected.alt)
        bundle, _ = lesson._repr_mimebundle_()
        assert bundle["image/svg+xml"] == expected.svg
        assert bundle["text/plain"] == f"Lesson('Empty memory', blocks={blocks}, size={size}): {expected.alt}"
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert bundle[MIME]["frames"] == recording(expected)["frames"]
    assert lesson.at(blocks=2, size=8).svg == draw(2, 8).svg
    assert lesson.values == {"blocks": 7, "size": 3}, "a look at other values must leave the controls alone"
    with pytest.raises(RuntimeError, match="13 blocks"):
        lesson.at(blocks=13)
    assert lesson.values == {"blocks": 7, "size": 3} and lesson.player.error == ""
    with pytest.raises(RuntimeError, match="13 blocks"):
        lesson.children[0].value = 13
    assert lesson.player.error == "RuntimeError: no picture of 13 blocks", "the page must say so"
    assert "RuntimeError: no picture of 13 blocks, so still 6 usable blocks" in repr(lesson)
    lesson.children[0].value = 7
    assert lesson.player.error == ""
    with pytest.raises(KeyError):
        lesson.set(colour=1)


def test_lesson_moves_all_controls_before_it_draws() -> None:
    """Catches values that are fine together refused because of the order in which they are set."""
    drawn = []

    def draw(left: int, right: int) -> Picture:
        drawn.append((left, right))
        if left + right > 10:
            raise ValueError("too much")
        return Picture("<svg></svg>", alt=f"{left}, {right}")

    left, right = (widgets.IntSlider(value, min=1, max=9, description="number") for value in (9, 1))
    lesson = Lesson(draw, "Two numbers", left=left, right=right)
    assert lesson.at(left=1, right=9).alt == "1, 9" and lesson.values == {"left": 9, "right": 1}
    lesson.set(left=1, right=9)
    assert lesson.player.picture.alt == "1, 9" and lesson.player.error == ""
    assert drawn == [(9, 1), (1, 9), (1, 9)]
    with pytest.raises(KeyError, match="no control 'middle': it has left, right"):
        lesson.set(left=5, middle=1)
    assert lesson.values == {"left": 1, "right": 9}


def test_a_control_has_a_name() -> None:
    """Catches a slider of which nobody knows what it changes."""
    with pytest.raises(ValueError, match="'x' has no description"):
        Lesson(lambda x: two_pictures[0], "x", x=widgets.IntSlider())
    lesson = Lesson(lambda x: two_pictures[0], "x", x=widgets.IntSlider(description="x"))
    assert "pa-lesson" in lesson._dom_classes


def test_lesson_plays_a_trace() -> None:
    """Catches a step that does not survive a change of controls, or points past the end of a shorter trace."""
    slider = widgets.IntSlider(4, min=1, max=8, description="block size")
    lesson = Lesson(grown, "One request", step=2, block_size=slider)
    lesson.set(block_size=1)
    assert lesson.player.step == 2 and lesson.player.picture == show_frame(grown(1).frames[2])
    assert lesson.at(step=6, block_size=3) == show_frame(grown(3).frames[6])
    assert lesson.player.step == 2 and lesson.values == {"block_size": 1}
    assert repr(lesson).startswith("Lesson('One request', block_size=1, step 2 of 6): Ada appends 1 token")

    number = widgets.IntSlider(5, min=1, max=9, description="number")
    lengths = Lesson(lambda count: [two_pictures[0]] * count, "pictures", count=number)
    assert lengths.player.step == 4
    assert lengths.set(count=9).player.step == 8, "at the end before, at the end after"
    lengths.player.step = 5
    assert lengths.set(count=3).player.step == 2


two_pictures = [Picture("<svg></svg>", alt="one"), Picture("<svg></svg>", alt="two")]


def test_book_gets_a_script_that_runs_anywhere() -> None:
    """Catches module syntax in the book's script, which a page opened as a file refuses to load."""
    script = book_script()
    assert "export " not in script and "import " not in script
    assert script.startswith("(() => {") and "playStored(data, mount);" in script


def test_book_renders_a_player() -> None:
    """Catches a recording that ends the script element early, and a page without a still picture."""
    player = Player([Picture("<svg></svg>", alt="<!--<script></script><b>"), *two_pictures], "pictures", step=1)
    data, _ = player._repr_mimebundle_()
    output = SimpleNamespace(mime_type=MIME, content=data[MIME], output_metadata={MIME: {"recordings": "packed"}})
    [node] = PlayerRenderer.handle_mime(None, output, False)
    html = node.astext()
    assert html.count("</script>") == 1 and "<!--" not in html and two_pictures[0].svg in html
    embedded = html[html.index(">", html.index("<script")) + 1 : html.index("</script>")]
    assert json.loads(embedded) == data[MIME] | {"recordings": "packed"}
    assert PlayerRenderer.handle_mime(None, SimpleNamespace(mime_type="text/plain", content="x"), False) is None
