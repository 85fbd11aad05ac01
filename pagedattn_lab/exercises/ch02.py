"""Exercises of chapter 02, Contiguous caches: compaction, the way back in a buddy system, admission by three rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pagedattn_lab.baselines import contiguous
from pagedattn_lab.baselines.strip import FirstFit
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch02_buddy import buddy_release
from pagedattn_lab.exercises.grading import Exercise

__all__ = ["admitted", "buddy_release", "compact"]

Region = tuple[int, int]

# ---------------------------------------------------------------------------------------------------------------------
# 1. Compaction
# ---------------------------------------------------------------------------------------------------------------------

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
    placed, end, copied = [], 0, 0
    for start, size in sorted(regions):
        placed.append((end, size))
        if start != end:
            copied += size
        end += size
    return placed, copied


def _ragged_strip(rng: random.Random, num_regions: int) -> list[Region]:
    """Lay regions of any length with and without gaps between them, and list them in any order."""
    regions, end = [], rng.choice([0, 0, 3])
    for _ in range(num_regions):
        size = rng.randint(1, 20)
        regions.append((end, size))
        end += size + rng.choice([0, 0, rng.randint(1, 9)])
    return rng.sample(regions, len(regions))


def _compact_cases() -> list[Case]:
    about = "Regions slide in the order of their addresses; one that moves is copied as a whole."
    known = [Case((regions,), f"{why[0].upper()}{why[1:]}.") for regions, why in _STRIPS]
    return known + random_cases(5, 40, lambda rng: (_ragged_strip(rng, rng.randint(1, 7)),), about)


compact = Exercise(
    "02.1",
    "compact",
    "Compaction",
    cases=_compact_cases,
    reference=_reference_compact,
    returns="two values: the list of regions, and the number of slots copied",
    hints=(
        "Sort first. Then each region begins where the one before it ends.",
        "Keep `end`, the first slot behind what has been placed: it is where the next region goes, and it grows by "
        "its size.",
        "A region whose start is not `end` moves, and all of its slots are copied; one whose start is `end` costs "
        "nothing.",
    ),
    explanation="Pairs sort by their first member, the address. One pass lays the regions end to end. A region may "
    "move onto slots that it had itself: they are copied all the same, since every token of it changes its place.",
    wrong={
        "copy what stays": lambda regions: (
            _reference_compact(regions)[0],
            sum(size for _, size in regions),
        ),
        "take the list's order for the strip's": _slide,
        "place the longest first": lambda regions: _slide(sorted(regions, key=lambda r: -r[1])),
        "count regions": lambda regions: (
            _reference_compact(regions)[0],
            sum(old[0] != new[0] for old, new in zip(sorted(regions), _reference_compact(regions)[0], strict=True)),
        ),
        "count only the slots that a region has not had before": lambda regions: (
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


def _reference_admitted(requests: Sequence[tuple[int, int]], rule: str, num_slots: int, max_model_len: int) -> int:
    count = 0
    for prompt_len, output_len in requests:
        if rule == "max":
            needed = max_model_len
        elif rule == "pow2":
            needed = min(prompt_len + (1 << (output_len - 1).bit_length()), max_model_len)
        else:
            needed = prompt_len + output_len - 1
        if needed > num_slots:
            break
        num_slots -= needed
        count += 1
    return count


def _library_admitted(requests: Sequence[tuple[int, int]], reserve: Callable[[int, int], int], num_slots: int) -> int:
    """Let the library's allocator play the case through."""
    allocator = contiguous.ContiguousAllocator(FirstFit(num_slots), reserve)
    admitted = 0
    for request in requests:
        if reserve(*request) > num_slots or allocator.allocate(*request) is None:
            break
        admitted += 1
    return admitted


def _library_answer(requests: Sequence[tuple[int, int]], rule: str, num_slots: int, max_model_len: int) -> int:
    return _library_admitted(requests, partial(_RULES[rule], longest=max_model_len), num_slots)


def _admitted_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[tuple[int, int]], str, int, int]:
        longest = rng.choice([16, 24, 64])
        requests = [(rng.randint(1, longest // 2), rng.randint(1, longest // 2)) for _ in range(rng.randint(1, 6))]
        return requests, rng.choice(sorted(_RULES)), rng.randint(1, 4 * longest), longest

    known = [
        Case((requests, rule, num_slots, longest), f"{about[0].upper()}{about[1:]}.")
        for requests, num_slots, longest, about in _QUEUES
        for rule in _RULES
    ]
    return known + random_cases(
        7, 60, make, "What a rule reserves decides, and the first that does not fit stops the queue."
    )


def _admitted_by(changed: dict[str, Reserve], *, overtakes: bool = False) -> Admitted:
    rules = _RULES | changed
    return lambda requests, rule, num_slots, longest: _count(
        requests, rules[rule], num_slots, longest, overtakes=overtakes
    )


admitted = Exercise(
    "02.3",
    "admitted",
    "How many are admitted?",
    cases=_admitted_cases,
    reference=_reference_admitted,
    oracle=_library_answer,
    returns="a number of requests",
    hints=(
        "Write what each rule reserves for one request first, as a function of prompt_len and output_len.",
        "Max reserves max_model_len. Pow2 reserves the prompt and the output rounded up to a power of two, at most "
        "max_model_len. The oracle knows the output, and that its last token needs no slot.",
        "`1 << (n - 1).bit_length()` is the power of two from n on upwards. Subtract in order; the first that does "
        "not fit ends the loop.",
    ),
    explanation="In an empty first-fit strip, with nobody leaving, regions lie end to end: a request fits if what is "
    "left is enough. Only what is reserved depends on the rule.",
    wrong={
        "let a small request overtake": _admitted_by({}, overtakes=True),
        "round prompt and output together": _admitted_by(
            {"pow2": lambda p, o, longest: min(1 << (p + o - 1).bit_length(), longest)}
        ),
        "double a power of two": _admitted_by({"pow2": lambda p, o, longest: min(p + (1 << o.bit_length()), longest)}),
        "forget the cap": _admitted_by({"pow2": lambda p, o, longest: p + (1 << (o - 1).bit_length())}),
        "reserve for the last token": _admitted_by({"oracle": lambda p, o, longest: p + o}),
        "leave the last token out of a power of two": _admitted_by(
            {"pow2": lambda p, o, longest: min(p + (1 << (o - 1).bit_length()) - 1, longest)}
        ),
        "reserve the maximum for the answer alone": _admitted_by({"max": lambda p, o, longest: p + longest}),
        "divide by what the first needs": lambda requests, rule, num_slots, longest: min(
            len(requests), num_slots // _RULES[rule](*requests[0], longest)
        ),
    },
)
"""Count who gets in: ``admitted(requests, rule, num_slots, max_model_len)``."""
