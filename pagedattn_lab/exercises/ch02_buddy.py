"""Exercise 2 of chapter 02: the way back in a buddy system."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pagedattn_lab.baselines.strip import Buddy
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise

Region = tuple[int, int]

_RELEASES = [  # strip, sizes asked for in turn, which of them are given back first, which then
    (16, [8, 8], [], 0),
    (16, [8, 8], [0], 1),
    (32, [2, 2, 4, 8, 16], [1, 2, 3, 4], 0),
    (32, [8, 8, 8, 8], [2], 1),
    (64, [4, 4, 8, 16, 32], [1, 3], 0),
    (32, [4, 4, 8, 16], [3, 2], 1),
    (32, [8, 4, 4, 8, 8], [1, 0], 2),
    (64, [1, 1, 2, 4, 8], [1, 2, 3], 0),
    (8, [8], [], 0),
    (64, [16, 16, 16, 16], [1, 2], 3),
    (32, [4, 2, 2, 8, 16], [2], 0),
    (32, [8, 4, 4, 16], [1], 0),
]


def _reference_buddy_release(gaps: Sequence[Region], region: Region, num_slots: int) -> list[Region]:
    free, (start, size) = set(gaps), region
    while size < num_slots and (start ^ size, size) in free:
        free.remove((start ^ size, size))
        start, size = min(start, start ^ size), 2 * size
    return sorted([*free, (start, size)])


def _library_buddy_release(gaps: Sequence[Region], region: Region, num_slots: int) -> list[Region]:
    """Let the library's strip play the case through: it is brought to these gaps, then the region comes back."""
    strip = Buddy(num_slots)
    held = {strip.allocate(1) for _ in range(num_slots)}
    for start, size in gaps:
        for slot in range(start, start + size):
            strip.release(next(each for each in held if each.start == slot))
    for slot in range(region[0], sum(region)):
        strip.release(next(each for each in held if each.start == slot))
    return [tuple(gap) for gap in strip.gaps]


def _release_cases() -> list[Case]:
    def play(
        num_slots: int, sizes: Sequence[int], before: Sequence[int], then: int
    ) -> tuple[list[Region], Region, int]:
        strip = Buddy(num_slots)
        regions = [strip.allocate(size) for size in sizes]
        for index in before:
            strip.release(regions[index])
        return [tuple(gap) for gap in strip.gaps], tuple(regions[then]), num_slots

    def make(rng: random.Random) -> tuple[list[Region], Region, int]:
        strip, num_slots = Buddy(64), 64
        regions = [strip.allocate(rng.choice([1, 2, 4, 8, 16])) for _ in range(12)]
        regions = rng.sample([region for region in regions if region], sum(map(bool, regions)))
        for region in regions[rng.randint(1, 5) :]:
            strip.release(region)
        return [tuple(gap) for gap in strip.gaps], tuple(regions[0]), num_slots

    about = (
        "A region joins its buddy (start ^ size) if that is free as a whole; the two make one region that begins at "
        "the lower start, which may join its own buddy."
    )
    return [Case(play(*case), about) for case in _RELEASES] + random_cases(6, 40, make, about)


def _look_at_gaps(arguments: tuple, expected: list[Region], got: list[Region]) -> str | None:
    if got is None:
        return None
    free = sum(size for _, size in expected)
    if sum(size for _, size in got) != free:
        return f"{free} slots are free afterwards, and in your list another number."
    crooked = [gap for gap in got if gap[1] and gap[0] % gap[1]]
    return f"{crooked[0]} does not start at a multiple of its size: they were no buddies." if crooked else None


def _join_neighbours(gaps: Sequence[Region], region: Region, *, of_one_size: bool) -> list[Region]:
    joined: list[Region] = []
    for start, size in sorted([*gaps, region]):
        if joined and sum(joined[-1]) == start and (joined[-1][1] == size or not of_one_size):
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((start, size))
    return joined


def _buddy_release_once(gaps: Sequence[Region], region: Region, num_slots: int) -> list[Region]:
    free, (start, size) = set(gaps), region
    if (start ^ size, size) in free:
        free.remove((start ^ size, size))
        start, size = min(start, start ^ size), 2 * size
    return sorted([*free, (start, size)])


def _buddy_release_upper(gaps: Sequence[Region], region: Region, num_slots: int) -> list[Region]:
    free, (start, size) = set(gaps), region
    while size < num_slots and (start + size, size) in free and start % (2 * size) == 0:
        free.remove((start + size, size))
        size *= 2
    return sorted([*free, (start, size)])


def _buddy_release_any_size(gaps: Sequence[Region], region: Region, num_slots: int) -> list[Region]:
    free, (start, size) = dict(gaps), region
    while size < num_slots and start ^ size in free:
        del free[start ^ size]
        start, size = min(start, start ^ size), 2 * size
    return sorted([*free.items(), (start, size)])


buddy_release = Exercise(
    "02.2",
    "buddy_release",
    "The way back in a buddy system",
    cases=_release_cases,
    reference=_reference_buddy_release,
    oracle=_library_buddy_release,
    returns="a list of (start, size)",
    look=_look_at_gaps,
    hints=(
        "Two regions are buddies if they have one size and together make a region that starts at a multiple of its "
        "own size.",
        "The buddy of (start, size) is (start ^ size, size): that bit of the address is the only one in which they "
        "differ.",
        "As long as the buddy is among the gaps: take it out, let start be the lower of the two, double the size, ask "
        "again. At `num_slots` there is no buddy left.",
    ),
    explanation="The loop goes up the tree of halves for as long as the other half is free as a whole. `(start ^ "
    "size, size)` is looked for with its size: a buddy that was divided has another region, or none, at that address.",
    wrong={
        "forget to join": lambda gaps, region, num_slots: sorted([*gaps, region]),
        "join neighbours of one size": lambda gaps, region, num_slots: _join_neighbours(gaps, region, of_one_size=True),
        "join once only": _buddy_release_once,
        "look for buddies above only": _buddy_release_upper,
        "join a buddy of which only a part is free": _buddy_release_any_size,
        "coalesce as first fit does": lambda gaps, region, num_slots: _join_neighbours(gaps, region, of_one_size=False),
        "leave the list unsorted": lambda gaps, region, num_slots: _reference_buddy_release(gaps, region, num_slots)[
            ::-1
        ],
    },
)
"""Give a region back to a buddy system: ``buddy_release(gaps, region, num_slots)`` -> the free regions."""
