"""The drawing of a strip: every slot once, as what it is, and the same account in words."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedattn_lab.baselines import contiguous
from pagedattn_lab.baselines.contiguous import ContiguousAllocator, Reservation
from pagedattn_lab.baselines.strip import FirstFit
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.strips import COLUMNS, MOST_SLOTS, show_strip

SVG = "{http://www.w3.org/2000/svg}"
LONGEST = 24
SCHEMES = {
    "max": lambda slots: contiguous.max_length(slots, LONGEST),
    "pow2": lambda slots: contiguous.next_power_of_two(slots, LONGEST),
    "oracle, first fit": lambda slots: contiguous.oracle(slots, FirstFit),
    "oracle, buddy": contiguous.oracle,
}
WORDS = {
    "a token": "token_states",
    "reserved for a token to come": "reservation",
    "reserved for a token that never comes": "internal",
    "added by rounding up": "rounding",
    "free, in a gap too short for the request that waits": "gaps",
    "free": "free",
}
LETTERS = {"reservation": "r", "internal": "i", "rounding": "u", "gaps": "x", "free": ""}

State = tuple[ContiguousAllocator, dict[str, tuple[Reservation, int]], int]


@st.composite
def states(draw: st.DrawFn) -> State:
    """A strip in the middle of its life: requests came, some left, others hold some of their tokens; one waits."""
    allocator = SCHEMES[draw(st.sampled_from(sorted(SCHEMES)))](draw(st.integers(32, 130)))
    lengths = st.tuples(st.integers(1, 10), st.integers(1, 12))
    held = [allocator.allocate(*draw(lengths)) for _ in range(draw(st.integers(0, 9)))]
    running = {}
    for number, reservation in enumerate(held):
        if reservation is not None and draw(st.booleans()):
            allocator.free(reservation)
        elif reservation is not None:
            running[f"request {number}"] = reservation, draw(st.integers(0, reservation.needed))
    return allocator, running, draw(st.just(0) | st.builds(lambda pair: allocator.size(*pair), lengths))


def cells(picture: Picture) -> dict[int, tuple[str, str, float, float]]:
    """Return what each slot's cell says: the words of its title, its letter, and where it stands."""
    found = {}
    for group in ET.fromstring(picture.svg).iter(f"{SVG}g"):
        number, words = re.fullmatch(r"slot (\d+): (.*)", group.find(f"{SVG}title").text).groups()
        text, box = group.find(f"{SVG}text"), group.find(f"{SVG}rect")
        assert int(number) not in found
        found[int(number)] = words, "" if text is None else text.text, float(box.get("x")), float(box.get("y"))
    return found


def kinds(allocator: ContiguousAllocator, running: dict[str, tuple[Reservation, int]], waiting: int) -> list[str]:
    """Read the allocator slot by slot, without the drawing's help."""
    found = []
    for slot in range(allocator.num_slots):
        kind = None
        for name, (held, tokens) in running.items():
            place = slot - held.region.start
            if 0 <= place < held.region.size:
                bounds = ((tokens, "a token"), (held.needed, "reserved for a token to come"))
                bounds += (held.reserved, "reserved for a token that never comes"), (10**9, "added by rounding up")
                kind = f"{name}, {next(words for bound, words in bounds if place < bound)}"
        if kind is None:
            gap = next(g for g in allocator.strip.gaps if g.start <= slot < g.start + g.size)
            kind = "free, in a gap too short for the request that waits" if gap.size < waiting else "free"
        found.append(kind)
    return found


@given(states())
def test_every_slot_is_drawn_once_as_what_it_is(state: State) -> None:
    """Catches a slot left out, drawn twice or in another's place, or as another kind or another request's."""
    allocator, running, waiting = state
    drawn = cells(show_strip(allocator, running, waiting))
    assert [drawn[slot][0] for slot in range(len(drawn))] == kinds(allocator, running, waiting)
    places = [drawn[slot][2:] for slot in range(len(drawn))]
    assert len(set(places)) == len(places)
    by_row = [places[start : start + COLUMNS] for start in range(0, len(places), COLUMNS)]
    assert places == sorted(places, key=lambda place: place[::-1])
    assert all(len({y for _, y in row}) == 1 for row in by_row)


@given(states())
def test_a_letter_tells_the_kind(state: State) -> None:
    """Catches a cell that colour alone tells from others, and a mark that two requests share."""
    allocator, running, waiting = state
    marks: dict[str, set[str]] = {}
    for words, letter, *_ in cells(show_strip(allocator, running, waiting)).values():
        owner, _, what = words.partition(", ") if words.startswith("request") else ("", "", words)
        if what == "a token":
            marks.setdefault(owner, set()).add(letter)
        else:
            assert letter == LETTERS[WORDS[what]]
    assert all(len(letters) == 1 for letters in marks.values())
    assert len(set.union(set(), *marks.values())) == len(marks)
    assert not set.union(set(), *marks.values()) & set(LETTERS.values())


@given(states())
def test_words_and_cells_give_one_account(state: State) -> None:
    """Catches numbers in the text, or beside the drawing, that its cells do not bear out."""
    allocator, running, waiting = state
    picture = show_strip(allocator, running, waiting)
    total = Counter(WORDS[re.sub(r"^request \d+, ", "", words)] for words, *_ in cells(picture).values())
    rounding = f" (rounding {total['rounding']})" if total["rounding"] else ""
    assert picture.alt.endswith(
        f"Token states {total['token_states']}, reservation {total['reservation']}, internal {total['internal']}, "
        f"external {total['gaps'] + total['rounding']}{rounding}, free {total['free']}."
    )
    texts = [text.text for text in ET.fromstring(picture.svg).findall(f"{SVG}text")]
    order = ("token_states", "reservation", "internal", "rounding", "gaps", "free")
    numbers = [int(text) for text in texts[-18:] if text.isdigit()]
    assert numbers == [*(total[name] for name in order), allocator.num_slots]


def test_the_text_holds_the_whole_state() -> None:
    """Catches a picture whose words leave something out that can be seen."""
    allocator = contiguous.next_power_of_two(40, max_model_len=24)
    running = {"Ada": (allocator.allocate(5, 6), 7), "Bo": (allocator.allocate(1, 1), 1)}
    assert show_strip(allocator, running, waiting=32, sentence="Cem is refused.").alt == (
        "Cem is refused. 40 slots. Ada: 7 tokens, 13 reserved, slots 0–15. Bo: 1 token, slots 32–33. "
        "A request for 32 slots waits; the longest gap has 16. "
        "Token states 8, reservation 3, internal 4, external 25 (rounding 3), free 0."
    )


def test_a_mark_is_no_kinds_letter() -> None:
    """Catches a request called "unit" whose tokens look like slots added by rounding."""
    allocator = contiguous.oracle(64)
    running = {name: (allocator.allocate(2, 1), 2) for name in ("request", "i", "unit", "xx", "r2", "Ann", "Adam")}
    drawn = cells(show_strip(allocator, running)).values()
    letters = [letter for words, letter, *_ in drawn if words.endswith(", a token")]
    assert letters[::2] == letters[1::2] == ["r2", "i2", "u2", "x2", "2", "A", "A2"]


def test_names_are_text() -> None:
    """Catches a name that becomes markup, in a cell, a list or the picture's own label, or that has no end."""
    allocator = contiguous.oracle(8)
    name = '<b>&"' + "n" * 60
    picture = show_strip(allocator, {name: (allocator.allocate(2, 2), 2)})
    root = ET.fromstring(picture.svg)
    assert root.get("aria-label") == picture.alt and name in picture.alt
    assert cells(picture)[0][:2] == (f"{name}, a token", "<")
    assert not list(root.iter(f"{SVG}b"))
    assert max(len(text.text) for text in root.iter(f"{SVG}text")) < 60


def test_a_request_keeps_its_colour() -> None:
    """Catches a colour that depends on who else is there, so that it jumps from picture to picture."""

    def colour(*names: str) -> str:
        allocator = contiguous.oracle(32)
        running = {name: (allocator.allocate(2, 1), 2) for name in names}
        for group in ET.fromstring(show_strip(allocator, running).svg).iter(f"{SVG}g"):
            if ": C, a token" in group.find(f"{SVG}title").text:
                return group.find(f"{SVG}rect").get("fill")
        raise AssertionError("C is not drawn")

    assert colour("C") == colour("A", "B", "C") == colour("C", "D")


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.1 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_letters_stand_out() -> None:
    """Catches a letter that cannot be read on its cell: contrast below 4.5 to 1 (WCAG 2.1, 1.4.3)."""
    allocator = contiguous.next_power_of_two(256, max_model_len=64)
    running = {name: (allocator.allocate(3, 5), 4) for name in "ABCDEFGH"}
    pairs = set()
    for group in ET.fromstring(show_strip(allocator, running, waiting=64).svg).iter(f"{SVG}g"):
        if (text := group.find(f"{SVG}text")) is not None:
            pairs.add((group.find(f"{SVG}rect").get("fill"), text.get("fill")))
    assert len(pairs) >= 8 + 2
    for pair in pairs:
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def test_an_empty_strip_is_free() -> None:
    """Catches a drawing that needs a request."""
    assert show_strip(contiguous.oracle(3), {}).alt == (
        "3 slots. Token states 0, reservation 0, internal 0, external 0, free 3."
    )


def test_what_cannot_be_drawn_is_refused() -> None:
    """Catches a picture of something that is not so: a strip too long, a region unnamed, named twice, or given back."""
    with pytest.raises(ValueError, match=f"at most {MOST_SLOTS}"):
        show_strip(contiguous.oracle(MOST_SLOTS + 1), {})
    assert show_strip(contiguous.oracle(MOST_SLOTS), {}).alt
    allocator = contiguous.oracle(32)
    held, other = allocator.allocate(3, 3), allocator.allocate(2, 2)
    for running in (
        {"A": (held, 3)},
        {"A": (held, 3), "B": (held, 3)},
        {"A": (held, 3), "B": (other, 1), "C": (held, 1)},
    ):
        with pytest.raises(ValueError, match="name each region's request once"):
            show_strip(allocator, running)
    allocator.free(other)
    with pytest.raises(ValueError, match="name each region's request once"):
        show_strip(allocator, {"A": (held, 3), "B": (other, 1)})
    for tokens in (-1, 6):
        with pytest.raises(ValueError, match="give 0 to 5"):
            show_strip(allocator, {"A": (held, tokens)})
    allocator = contiguous.max_length(32, max_model_len=16)
    with pytest.raises(ValueError, match="give 0 to 5"):
        show_strip(allocator, {"A": (allocator.allocate(3, 3), 6)})
