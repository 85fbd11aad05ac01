"""What a board shows beyond the state: who shares, what is still there, what a sentence is about, what signs mean."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.recorder.frame import Contents, Frame, TableState
from pagedattn_lab.viz.board import describe, draw, legend
from pagedattn_lab.viz.looks import COLOURS, paint
from pagedattn_lab.viz.player import Player
from pagedattn_lab.viz.tables import MOST_ARROWS

SVG = "{http://www.w3.org/2000/svg}"


def blocks(svg: str) -> dict[int, ElementTree.Element]:
    """Read the group of every physical block."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    return {int(group.attrib["data-block"]): group for group in groups if "data-block" in group.attrib}


def fills(group: ElementTree.Element) -> set[str]:
    """Read the colours of requests in a block."""
    kinds = {"pa-filled", "pa-stripe"}
    return {part.attrib["fill"] for part in group.iter() if part.get("class") in kinds}


def letters(group: ElementTree.Element) -> list[str]:
    """Read what stands in the cells of a block."""
    return [text.text for text in list(group.iter(f"{SVG}text"))[1:] if text.text]


def beside_count(group: ElementTree.Element) -> str:
    """Read what the caption of a block ends with: its owners and how many."""
    return "".join(list(group.iter(f"{SVG}text"))[1].itertext())


def shared(num_owners: int) -> Frame:
    """One block of four slots that some requests share, the last of them a token longer than the others."""
    tables = tuple(
        TableState(f"{chr(65 + index)}nn", index, chr(65 + index), 2 + (index == num_owners - 1), (1,))
        for index in range(num_owners)
    )
    return Frame("note", "", (), 4, tables, (0, num_owners), {}, ())


def kept() -> Recorder:
    """A request ends, and its first block waits in the free queue with its contents; another one takes a block."""
    pool = BlockPool(6, 4)
    recorder = Recorder(pool)
    ada = BlockTable(pool, "Ada")
    ada.append_tokens(6)
    ada.blocks[0].block_hash = "cafebabe"
    ada.release()
    BlockTable(pool, "Bo").append_tokens(1)
    return recorder


def test_a_shared_block_shows_all_its_owners() -> None:
    """Catches an owner whose colour is missing, or who seems to have a token where it has none."""
    for number in (2, 3, 5):
        svg = draw(shared(number))
        group = blocks(svg)[1]
        assert fills(group) == {COLOURS[index][0] for index in range(number)}
        assert len(re.findall("pa-stripe", svg)) == 2 * (number - 1), "the third token is the last owner's alone"
        assert letters(group)[-1] == chr(64 + number)
    for number, marks in ((2, "AB ×2"), (3, "ABC ×3"), (7, "ABCD… ×7")):
        group = blocks(draw(shared(number)))[1]
        assert beside_count(group) == marks
        assert letters(group)[1:] == [chr(64 + number)], "no letters in stripes: one a slot would look like its owner's"
    assert beside_count(blocks(draw(replace(shared(3), hashes={1: "cafebabe"})))[1]) == "ABC ×3"
    two = tuple(replace(table, mark=f"A{index}") for index, table in enumerate(shared(2).tables))
    assert beside_count(blocks(draw(replace(shared(2), tables=two)))[1]) == "A0+A1 ×2", "not A0A1"


def test_no_two_requests_look_alike() -> None:
    """Catches a colour that comes again: the 8th request had the first one's."""
    looks = [paint([(index, "A")], 0, 0, 18, 18) for index in range(5 * len(COLOURS))]
    assert len(set(looks)) == len(looks)

    def light(colour: str) -> tuple[int, ...]:
        return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))

    for (one, _), (other, _) in combinations(COLOURS, 2):
        assert sum(abs(a - b) for a, b in zip(light(one), light(other), strict=True)) >= 24, (one, other)


def test_what_is_still_there_is_shown() -> None:
    """Catches a cached block that looks empty, words that come back in another request's place, and words that stay."""
    recorder = kept()
    words = {"Ada": ["one", "two", "three", "four", "five"], "Bo": ["other"]}
    free, taken = recorder.frames[2:4]
    group = blocks(draw(free, words))[1]
    assert letters(group) == ["one", "two", "three", "four"]
    assert fills(group) == {COLOURS[0][0]} and group.find(f"{SVG}g").get("fill-opacity") == "0.25"
    titles = [title.text for title in group.iter(f"{SVG}title")]
    assert titles[0] == (
        "block 1: no table names it; reference count 0; still holds Ada's logical block 0; free; hash cafebabe"
    )
    assert titles[1] == "slot 4: Ada, token 0 “one”, still there"
    assert letters(blocks(draw(free))[1]) == ["A"] * 4
    assert letters(blocks(draw(free, words))[2]) == [], "its second block has no hash, so nothing of it can be found"
    assert letters(blocks(draw(taken, words))[2]) == ["other"]
    assert "Cached contents in block 1 (free, Ada's)." in describe(free)
    many = Frame("note", "", (), 4, (), (0,) * 100, {3: "ab"}, (3,), {3: Contents("Ada", 0, "A", 0, 4)})
    assert letters(blocks(draw(many))[3]) == ["A"] and "pa-ghost" in draw(many)


def test_words_are_cut_only_where_there_is_no_room() -> None:
    """Catches a word cut beside empty space, and on a narrow board one cut until nobody can read it."""
    words = {"Ada": ["nothing", " reserved"]}
    for block_size, width, expected in (
        (8, 1000, ["nothing", "reserved"]),
        (8, 350, ["nothing", "reserv…"]),
        (4, 1000, ["nothing", "reserved"]),
        (4, 350, ["nothing", "reserved"]),
    ):
        pool = BlockPool(9, block_size)
        ada = BlockTable(pool, "Ada")
        ada.append_tokens(2)
        frame = Recorder(pool, {"Ada": ada}).frames[0]
        assert letters(blocks(draw(frame, words, width))[1]) == expected, (block_size, width)


def arrows(frame: Frame, width: int = 760) -> list[str]:
    """Read where each arrow's head is."""
    return re.findall(r'class="pa-arrow-head" d="(M\d+,\d+)', draw(frame, width=width))


def tip(frame: Frame, block_id: int, width: int = 760) -> str:
    """Say where an arrow to a block has its head: at the middle of its lower edge."""
    group = blocks(draw(frame, width=width))[block_id]
    x, y = map(int, re.findall(r"\d+", group.attrib["transform"]))
    halo = group.find(f"{SVG}rect")
    return f"M{x + (int(halo.attrib['width']) - 8) // 2},{y + int(halo.attrib['height']) - 8 - 5}"


def test_arrows_lead_from_the_entries_in_question() -> None:
    """Catches an arrow to the wrong block, from a table that only shares it, or none where an entry has changed."""
    pool = BlockPool(12, 4)
    recorder = Recorder(pool)
    ada = BlockTable(pool, "Ada")
    ada.append_tokens(6)
    heir = ada.fork("Ada 2")
    heir.append_tokens(1)
    take_copies([heir])
    heir.release()
    BlockTable(pool, "Bo").append_tokens(20)
    _, start, fork, copy, append, release, many = recorder.frames
    for width in (760, 390):
        assert arrows(start, width) == [tip(start, 1, width), tip(start, 2, width)]
        assert len(arrows(fork, width)) == 2, "of Ada 2, though Ada's entries name the same blocks"
        assert arrows(copy, width) == [tip(copy, 3, width)], "to the copy, not to what Ada keeps"
        assert arrows(append, width) == [tip(append, 3, width)]
        assert arrows(release, width) == [tip(release, 1, width)], "Ada 2 has no entry left: whose block lost an owner"
        assert arrows(many, width) == [], "five: some of them would look like all of them"
    assert arrows(recorder.frames[0]) == []
    BlockTable(pool, "Cy").append_tokens(4 * MOST_ARROWS)
    assert len(arrows(recorder.frames[-1])) == MOST_ARROWS, "all, not the first few"
    outlined, arrow = "thick outline: what the sentence is about", "arrow: from a table entry to its block"
    assert legend([start])[:2] == [outlined, arrow]
    assert legend([many])[0] == outlined and arrow not in legend([many]), "an arrow that is not drawn is not explained"


def test_the_legend_lists_what_occurs() -> None:
    """Catches a sign that nobody explains, and an explanation of a sign that does not occur in the whole recording."""
    frames = kept().frames
    assert [len(legend(frames[:end])) for end in (1, 2, 3, 4)] == [1, 3, 5, 5]
    assert legend(frames)[-1] == "pale, slanted: free, but the contents are still there"
    assert legend([shared(2)]) == ["stripes: shared", "ticked edge, ×n: n table entries name it"]
    wrong = Frame("note", "", (), 4, (), (0, 1), {}, ())
    assert legend([wrong]) == ["!: not as many table entries as counted"]
    drawn = [re.findall(r"<text[^>]*pa-soft[^>]*>[^<]*", draw(frame, among=frames)) for frame in frames]
    assert len(drawn[0]) == 2 and drawn == [drawn[0]] * 4, "it is the same while a reader steps"


def test_a_recording_keeps_its_height() -> None:
    """Catches a board that grows or shrinks while a reader steps, and what stands below it jumps."""
    frames = kept().frames
    for width in (390, 760):
        heights = {re.search(r'height="(\d+)"', draw(frame, width=width, among=frames))[1] for frame in frames}
        assert len(heights) == 1
        tallest = max(int(re.search(r'height="(\d+)"', draw(frame, width=width))[1]) for frame in frames)
        assert int(heights.pop()) >= tallest
    player = Player(kept(), "One request", step=0)
    first = player.picture.svg
    player.step = 2
    assert re.search(r'height="(\d+)"', first)[1] == re.search(r'height="(\d+)"', player.picture.svg)[1]
