"""Exercises of chapter 02, Contiguous caches: compaction, the way back in a buddy system, admission by three rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pagedattn_lab.baselines import contiguous
from pagedattn_lab.baselines.strip import Buddy, FirstFit
from pagedattn_lab.exercises import Exercise

Region = tuple[int, int]

# ---------------------------------------------------------------------------------------------------------------------
# 1. Compaction
# ---------------------------------------------------------------------------------------------------------------------

Compaction = Callable[[Sequence[Region]], tuple[list[Region], int]]

_STRIPS = [  # regions in use, what the case is about
    ([(0, 8), (16, 8), (24, 3)], "a region at the lower end stays where it is, and costs nothing"),
    ([(40, 5), (3, 7), (12, 20)], "regions slide in the order of their addresses, in whatever order they are listed"),
    ([(0, 4), (4, 9), (13, 1)], "without a gap nothing moves"),
    ([(5, 11)], "a region may slide onto slots that it had itself"),
    ([], "an empty strip is compact"),
    ([(0, 2), (2, 6), (9, 6), (15, 30), (50, 1)], "behind the first gap everything moves"),
]


def _slide(regions: Iterable[Region]) -> tuple[list[Region], int]:
    """Lay regions end to end in the order given, and count the slots of those that move."""
    moved, end, copied = [], 0, 0
    for start, size in regions:
        moved.append((end, size))
        copied += size if start != end else 0
        end += size
    return moved, copied


def _reference_compact(regions: Sequence[Region]) -> tuple[list[Region], int]:
    return _slide(sorted(regions))


def _check_compact(answer: Compaction) -> None:
    for regions, about in _STRIPS:
        expected, copied = _reference_compact(regions)
        result = answer(list(regions))
        assert isinstance(result, tuple) and len(result) == 2, "return two values: the list of regions, slots copied"
        placed = [tuple(region) for region in result[0]]
        assert placed == expected, f"for regions={regions} the strip becomes {expected}, not {placed}: {about}"
        assert result[1] == copied, f"for regions={regions} {copied} slots are copied, not {result[1]}: {about}"


compact = Exercise(
    _check_compact,
    reference=_reference_compact,
    wrong={
        "copies what stays": lambda regions: (
            _reference_compact(regions)[0],
            sum(size for _, size in regions),
        ),
        "takes the list's order for the strip's": _slide,
        "places the longest first": lambda regions: _slide(sorted(regions, key=lambda r: -r[1])),
        "counts regions": lambda regions: (
            _reference_compact(regions)[0],
            sum(old[0] != new[0] for old, new in zip(sorted(regions), _reference_compact(regions)[0], strict=True)),
        ),
        "counts the slots that a region has not had before": lambda regions: (
            _reference_compact(regions)[0],
            sum(
                min(old[1], old[0] - new[0])
                for old, new in zip(sorted(regions), _reference_compact(regions)[0], strict=True)
            ),
        ),
    },
)
"""Slide regions together: ``compact(regions)`` -> the regions, and how many slots were copied."""

# ---------------------------------------------------------------------------------------------------------------------
# 2. The way back in a buddy system
# ---------------------------------------------------------------------------------------------------------------------

BuddyRelease = Callable[[Sequence[Region], Region, int], list[Region]]

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


def _check_buddy_release(answer: BuddyRelease) -> None:
    for num_slots, sizes, before, then in _RELEASES:
        strip = Buddy(num_slots)
        regions = [strip.allocate(size) for size in sizes]
        for index in before:
            strip.release(regions[index])
        gaps, region = [tuple(gap) for gap in strip.gaps], tuple(regions[then])
        strip.release(regions[then])
        expected = [tuple(gap) for gap in strip.gaps]
        result = answer(list(gaps), region, num_slots)
        case = f"gaps={gaps}, region={region}, num_slots={num_slots}"
        assert isinstance(result, list), f"return a list of (start, size), not {type(result).__name__}"
        result = [tuple(gap) for gap in result]
        free = sum(size for _, size in expected)
        assert sum(size for _, size in result) == free, f"for {case} {free} slots are free, in your list another number"
        crooked = [gap for gap in result if gap[0] % gap[1]]
        assert not crooked, f"for {case} {crooked[0]} does not start at a multiple of its size: they were no buddies"
        assert result == expected, (
            f"for {case} the gaps are {expected}, not {result}: a region joins its buddy (start ^ size) if that is "
            "free as a whole, the two make one region that begins at the lower start, and so on"
        )


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
    _check_buddy_release,
    reference=_reference_buddy_release,
    wrong={
        "forgets to join": lambda gaps, region, num_slots: sorted([*gaps, region]),
        "joins neighbours of one size": lambda gaps, region, num_slots: _join_neighbours(
            gaps, region, of_one_size=True
        ),
        "joins once": _buddy_release_once,
        "looks for buddies above only": _buddy_release_upper,
        "joins a buddy of which only a part is free": _buddy_release_any_size,
        "coalesces as first fit does": lambda gaps, region, num_slots: _join_neighbours(
            gaps, region, of_one_size=False
        ),
        "leaves the list unsorted": lambda gaps, region, num_slots: _reference_buddy_release(gaps, region, num_slots)[
            ::-1
        ],
    },
)
"""Give a region back to a buddy system: ``buddy_release(gaps, region, num_slots)`` -> the free regions."""


# ---------------------------------------------------------------------------------------------------------------------
# 3. Admission by three rules
# ---------------------------------------------------------------------------------------------------------------------

Admitted = Callable[[Sequence[tuple[int, int]], str, int, int], int]
Reserve = Callable[[int, int, int], int]

_QUEUES = [  # requests, slots, longest request, what the case is about
    ([(5, 12), (9, 4), (4, 3), (2, 7)], 64, 24, "what is reserved depends on the rule, not on what fits"),
    ([(10, 8), (10, 8), (10, 8), (10, 8)], 72, 32, "an output of 8 tokens is a power of two already"),
    ([(10, 8), (10, 8), (10, 8), (10, 8)], 71, 32, "only the oracle leaves the last token out"),
    ([(10, 9), (3, 2), (3, 2), (1, 1)], 27, 32, "Pow2 rounds the output, not the whole request"),
    ([(20, 12), (20, 11)], 64, 32, "Pow2 is capped at the longest request"),
    ([(4, 5), (30, 2), (1, 1), (1, 1)], 32, 32, "the first that does not fit stops the queue"),
    ([(4, 5), (4, 5), (4, 5), (4, 5)], 32, 16, "the last token of an output needs no slot"),
    ([(3, 1), (3, 1), (1, 1)], 11, 8, "an output of 1 token is a power of two, and is never fed back"),
    ([(7, 1)], 6, 6 + 2, "it may be that nobody fits"),
    ([(2, 2)], 40, 16, "it may be that everybody fits"),
]

_RULES: dict[str, Reserve] = {
    "max": lambda prompt_len, output_len, longest: longest,
    "pow2": lambda prompt_len, output_len, longest: min(prompt_len + (1 << (output_len - 1).bit_length()), longest),
    "oracle": lambda prompt_len, output_len, longest: prompt_len + output_len - 1,
}


def _count(
    requests: Sequence[tuple[int, int]], reserve: Reserve, num_slots: int, longest: int, *, overtakes: bool = False
) -> int:
    admitted = 0
    for prompt_len, output_len in requests:
        needed = reserve(prompt_len, output_len, longest)
        if needed <= num_slots:
            num_slots -= needed
            admitted += 1
        elif not overtakes:
            break
    return admitted


def _reference_admitted(requests: Sequence[tuple[int, int]], rule: str, num_slots: int, longest: int) -> int:
    return _count(requests, _RULES[rule], num_slots, longest)


def _library_admitted(requests: Sequence[tuple[int, int]], reserve: Callable[[int, int], int], num_slots: int) -> int:
    """Let the library's allocator play the case through."""
    allocator = contiguous.ContiguousAllocator(FirstFit(num_slots), reserve)
    admitted = 0
    for request in requests:
        if reserve(*request) > num_slots or allocator.allocate(*request) is None:
            break
        admitted += 1
    return admitted


def _check_admitted(answer: Admitted) -> None:
    for requests, num_slots, longest, about in _QUEUES:
        for rule in _RULES:
            expected = _library_admitted(requests, partial(_RULES[rule], longest=longest), num_slots)
            result = answer(list(requests), rule, num_slots, longest)
            case = f"requests={requests}, rule={rule!r}, num_slots={num_slots}, max_model_len={longest}"
            assert result == expected, f"for {case} the answer is {expected}, not {result}: {about}"


def _admitted_by(changed: dict[str, Reserve], *, overtakes: bool = False) -> Admitted:
    rules = _RULES | changed
    return lambda requests, rule, num_slots, longest: _count(
        requests, rules[rule], num_slots, longest, overtakes=overtakes
    )


admitted = Exercise(
    _check_admitted,
    reference=_reference_admitted,
    wrong={
        "lets a small request overtake": _admitted_by({}, overtakes=True),
        "rounds prompt and output together": _admitted_by(
            {"pow2": lambda p, o, longest: min(1 << (p + o - 1).bit_length(), longest)}
        ),
        "doubles a power of two": _admitted_by({"pow2": lambda p, o, longest: min(p + (1 << o.bit_length()), longest)}),
        "forgets the cap": _admitted_by({"pow2": lambda p, o, longest: p + (1 << (o - 1).bit_length())}),
        "reserves for the last token": _admitted_by({"oracle": lambda p, o, longest: p + o}),
        "leaves the last token out of a power of two": _admitted_by(
            {"pow2": lambda p, o, longest: min(p + (1 << (o - 1).bit_length()) - 1, longest)}
        ),
        "reserves the maximum of the answer": _admitted_by({"max": lambda p, o, longest: p + longest}),
        "divides by the first": lambda requests, rule, num_slots, longest: min(
            len(requests), num_slots // _RULES[rule](*requests[0], longest)
        ),
    },
)
"""Count who gets in: ``admitted(requests, rule, num_slots, max_model_len)``."""
