"""Exercises of chapter 03, Blocks: one step of admission, the order of the free queue, and choosing a block size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch03_hunt import find_again
from pagedattn_lab.exercises.ch03_order import predict_free_order
from pagedattn_lab.exercises.grading import Exercise

__all__ = ["admit", "choose_block_size", "find_again", "predict_free_order"]

# ---------------------------------------------------------------------------------------------------------------------
# 1. One step of admission
# ---------------------------------------------------------------------------------------------------------------------

_STEPS = [  # held, new tokens, free blocks, block size, what the case is about
    ([15, 16, 17, 0], [1, 1, 1, 16], 9, 16, "One token may fill the last block or open a new one."),
    ([0, 0], [33, 5], 4, 16, "The last free block may be used."),
    ([0, 0, 0], [20, 40, 3], 4, 8, "The second needs 5 blocks and 1 is left, so the third waits behind it."),
    ([6, 30], [7, 12], 3, 8, "A chunk of several tokens first fills the last block."),
    ([0, 3, 9], [17, 1, 40], 6, 4, "A request that needs no block is served from a nearly empty pool."),
    ([4, 8], [1, 1], 1, 4, "Two requests may not be promised the same free block."),
    ([2, 7, 1], [2, 1, 6], 0, 4, "With no block free, those whose tokens still fit are served."),
]


def _reference_admit(held: Sequence[int], new: Sequence[int], num_free_blocks: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = cdiv(tokens + more, block_size) - cdiv(tokens, block_size)
        if needed > num_free_blocks:
            break
        num_free_blocks -= needed
        granted.append(needed)
    return granted


def _admit_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], list[int], int, int]:
        number, block_size = rng.randint(1, 6), rng.choice([1, 3, 4, 8, 16])
        held = [rng.choice([0, rng.randint(1, 60)]) for _ in range(number)]
        new = [rng.choice([1, 1, rng.randint(1, 40)]) for _ in range(number)]
        return held, new, rng.choice([0, rng.randint(0, 3 * number)]), block_size

    known = [Case(tuple(case), about) for *case, about in _STEPS]
    return known + random_cases(
        8, 60, make, "All the blocks it needs or none, in order, until the first that gets none."
    )


def _look_at_grants(arguments: tuple, expected: list[int], got: list[int]) -> str | None:
    num_free_blocks = arguments[2]
    if got is None or list(got) == expected:
        return None
    if sum(got) > num_free_blocks:
        return f"You hand out {sum(got)} blocks, and only {num_free_blocks} are free."
    if len(got) > len(expected):
        return (
            f"You serve {len(got)} requests. Number {len(expected) + 1} lacks blocks, so it waits, and all behind it."
        )
    return None


def _admit_forgets_last_block(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    return _reference_admit([0] * len(held), new, free, block_size)


def _admit_rounds_down(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = (tokens + more) // block_size - tokens // block_size
        if needed > free:
            break
        free -= needed
        granted.append(needed)
    return granted


def _admit_half(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = _reference_admit(held, new, free, block_size)
    left = free - sum(granted)
    return [*granted, left] if left and len(granted) < len(held) else granted


def _admit_overtakes(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = _reference_admit([tokens], [more], 10**9, block_size)[0]
        if needed <= free:
            free -= needed
            granted.append(needed)
    return granted


def _admit_never_deducts(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = _reference_admit([tokens], [more], 10**9, block_size)[0]
        if needed > free:
            break
        granted.append(needed)
    return granted


def _admit_stops_when_empty(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = _reference_admit([tokens], [more], 10**9, block_size)[0]
        if not free or needed > free:
            break
        free -= needed
        granted.append(needed)
    return granted


admit = Exercise(
    "03.1",
    "admit",
    "One step of admission",
    cases=_admit_cases,
    reference=_reference_admit,
    returns="a list with the number of blocks granted to each request that is served",
    look=_look_at_grants,
    hints=(
        "How many blocks does a request have before the step, and how many must it have after it?",
        "It has ceil(held / block_size) and will need ceil((held + new) / block_size); the difference may be 0.",
        "Go through the requests with the number of blocks that are still free. Stop at the first whose difference is "
        "larger; otherwise subtract it and note it down. Do not stop just because nothing is free: 0 blocks may be "
        "enough.",
    ),
    explanation="Blocks needed are a difference of two numbers, each rounded up: what is free in the last block is "
    "used first. `needed > num_free_blocks` is the one test. It lets 0 through when the pool is empty, and ends the "
    "loop for everybody behind the first that it stops.",
    wrong={
        "forget the room in the last block": _admit_forgets_last_block,
        "round down": _admit_rounds_down,
        "hand out what is left": _admit_half,
        "let a small request overtake": _admit_overtakes,
        "compare each with the whole pool": _admit_never_deducts,
        "stop as soon as the pool is empty": _admit_stops_when_empty,
    },
)
"""Serve requests in order, all-or-nothing: ``admit(held, new, num_free_blocks, block_size)`` -> blocks granted."""

# ---------------------------------------------------------------------------------------------------------------------
# 3. Choosing a block size
# ---------------------------------------------------------------------------------------------------------------------

_LOADS = [  # lengths, supported block sizes, target
    ([19, 23, 18, 31, 7], [1, 2, 4, 8, 16, 32], 0.9),
    ([5, 900, 3, 700, 4], [16, 32, 64, 128], 0.9),
    ([64, 128, 192, 64], [16, 48, 64, 96], 0.95),
    ([300, 411, 257, 980], [64, 16, 32], 0.95),
    ([6, 9, 11], [32, 64], 0.5),
    ([100, 100, 100, 100, 28], [16, 32, 128], 0.8),
    ([40, 80, 120], [16, 40, 64], 1.0),
]


def _utilisation(lengths: Sequence[int], block_size: int) -> float:
    return sum(lengths) / sum(cdiv(length, block_size) * block_size for length in lengths)


def _reference_choose(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
    good = [block_size for block_size in supported if _utilisation(lengths, block_size) >= target]
    return max(good, default=None)


def _choose_by(utilisation: Callable[[Sequence[int], int], float]) -> Callable[..., int | None]:
    def choose(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
        return max((size for size in supported if utilisation(lengths, size) >= target), default=None)

    return choose


def _choose_until_first_failure(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
    best = None
    for block_size in sorted(supported):
        if _utilisation(lengths, block_size) < target:
            break
        best = block_size
    return best


def _solution_choose(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
    best = None
    for block_size in supported:
        slots = sum(-(-length // block_size) * block_size for length in lengths)
        if sum(lengths) / slots >= target and (best is None or block_size > best):
            best = block_size
    return best


def _choose_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], list[int], float]:
        scale = rng.choice([10, 60, 400])
        lengths = [rng.randint(1, scale) for _ in range(rng.randint(1, 8))]
        supported = rng.sample([1, 8, 16, 24, 32, 48, 64, 96, 128], rng.randint(1, 4))
        return lengths, supported, rng.choice([0.5, 0.7, 0.8, 0.9, 0.95])

    about = "Look at every supported size, and count tokens over slots for the load as a whole."
    return [Case(case, about) for case in _LOADS] + random_cases(10, 60, make, about)


def _look_at_size(arguments: tuple, expected: int | None, got: int | None) -> str | None:
    lengths, supported, target = arguments
    if expected is None and got is not None and got in supported:
        return "No supported size reaches the target: return None."
    if got is None or got == expected:
        return None
    if got not in supported:
        return f"The backend does not support {got}."
    slots = sum(cdiv(length, got) * got for length in lengths)
    if sum(lengths) / slots < target:
        return f"Block size {got} falls short: {sum(lengths)} tokens lie in {slots} slots."
    return f"Block size {got} reaches the target, and so does {expected}: look at every supported size."


choose_block_size = Exercise(
    "03.3",
    "choose_block_size",
    "Choose a block size",
    cases=_choose_cases,
    reference=_solution_choose,
    oracle=_reference_choose,
    returns="one of the supported sizes, or None",
    look=_look_at_size,
    hints=(
        "Utilisation is tokens over slots. How many slots does a sequence of some length take in blocks of some size?",
        "Add up tokens and slots over all sequences before you divide: a mean of ratios counts a short one as much as "
        "a long one.",
        "Try every supported size: utilisation need not fall as blocks grow (40, 80 and 120 fill blocks of 40 exactly "
        "and those of 16 not). Keep the largest that reaches the target.",
    ),
    explanation="Each sequence takes whole blocks, so slots are lengths rounded up to a multiple of the size. A "
    "larger block may fit the lengths better than a smaller one, so the loop does not stop at a size that falls "
    "short, and does not rely on the order of `supported`.",
    wrong={
        "average the sequences' own ratios": _choose_by(
            lambda lengths, size: sum(_utilisation([length], size) for length in lengths) / len(lengths)
        ),
        "use the rule of thumb": _choose_by(
            lambda lengths, size: sum(lengths) / (sum(lengths) + len(lengths) * (size - 1) / 2)
        ),
        "look at the mean length only": _choose_by(
            lambda lengths, size: _utilisation([round(sum(lengths) / len(lengths))], size)
        ),
        "stop at the first size that falls short": _choose_until_first_failure,
        "return the smallest": lambda lengths, supported, target: min(
            (size for size in supported if _utilisation(lengths, size) >= target), default=None
        ),
        "fall back on the smallest size": lambda lengths, supported, target: (
            _reference_choose(lengths, supported, target) or min(supported)
        ),
    },
)
"""Pick the largest size that wastes little enough: ``choose_block_size(lengths, supported, target)``."""
