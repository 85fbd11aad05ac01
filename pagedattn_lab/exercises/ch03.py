"""Exercises of chapter 03, Blocks: one step of admission, the order of the free queue, and choosing a block size."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.bug_hunts import find_again
from pagedattn_lab.exercises.grading import Case, Exercise, random_cases
from pagedattn_lab.viz import Picture

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
# 2. The order of the free queue
# ---------------------------------------------------------------------------------------------------------------------

_ENDINGS = [  # free queue, tables in the order in which they end, blocks with a hash
    ([5], [[1, 2, 3]], set()),
    ([7, 2], [[4, 6], [1, 5, 3]], {4, 1}),
    ([9], [[3, 8, 1], [3, 8, 6], [2, 4]], {3, 8, 2}),
    ([], [[5, 2, 7], [5, 9], [5, 2, 1, 4]], {5, 2, 1}),
    ([6, 3], [[1, 4], [], [2, 4]], {2}),
]


def _library_order(free: Sequence[int], tables: Sequence[Sequence[int]], cached: Collection[int]) -> list[int]:
    """Let the library's pool play the case through."""
    held = Counter(block_id for table in tables for block_id in table)
    pool = BlockPool(num_blocks=1 + max([*free, *held]), block_size=1)
    for block in pool.get_new_blocks(pool.num_free_blocks):
        for _ in range(held[block.block_id] - 1):
            pool.touch([block])
        block.block_hash = block.block_id if block.block_id in cached else None
    pool.free_blocks(pool.blocks[block_id] for block_id in free)
    for table in tables:
        pool.free_blocks(pool.blocks[block_id] for block_id in reversed(table))
    return [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]


def _order(
    free: Sequence[int],
    tables: Sequence[Sequence[int]],
    cached: Collection[int],
    *,
    last_first: bool = True,
    last_owner: bool = True,
    hashed_to_tail: bool = True,
    unhashed_to_head: bool = True,
    one_by_one: bool = False,
) -> list[int]:
    """Play the case through with plain lists; each option, switched, is a mistake."""
    owners = Counter(block_id for table in tables for block_id in table)
    queue = list(free)
    for table in tables:
        returned = []
        for block_id in reversed(table) if last_first else table:
            owners[block_id] -= 1
            if owners[block_id] == 0 if last_owner else block_id not in queue:
                returned.append(block_id)
        to_tail = [b for b in returned if (hashed_to_tail if b in cached else not unhashed_to_head)]
        to_head = [b for b in returned if b not in to_tail]
        queue = (to_head[::-1] if one_by_one else to_head) + queue + to_tail
    return queue


def _reference_free_order(free: Sequence[int], tables: Sequence[Sequence[int]], cached: Collection[int]) -> list[int]:
    owners = Counter(block_id for table in tables for block_id in table)
    queue = list(free)
    for table in tables:
        head, tail = [], []
        for block_id in reversed(table):
            owners[block_id] -= 1
            if owners[block_id] == 0:
                (tail if block_id in cached else head).append(block_id)
        queue = head + queue + tail
    return queue


def _order_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], list[list[int]], set[int]]:
        ids = rng.sample(range(1, 20), 19)
        free = [ids.pop() for _ in range(rng.randint(1, 3))]
        shared = [ids.pop() for _ in range(rng.randint(0, 3))]
        tables = [
            shared[: rng.randint(0, len(shared))] + [ids.pop() for _ in range(rng.randint(0, 3))]
            for _ in range(rng.randint(1, 4))
        ]
        held = sorted({block_id for table in tables for block_id in table})
        return free, tables, set(rng.sample(held, rng.randint(0, len(held))))

    about = (
        "Ask of each block: when did its last owner leave, has it a hash (then it joins the tail), and in which order "
        "does a table give its blocks back?"
    )
    return [Case(case, about) for case in _ENDINGS] + random_cases(9, 50, make, about)


def _look_at_queue(arguments: tuple, expected: list[int], got: list[int]) -> str | None:
    if got is None or list(got) == expected:
        return None
    twice = sorted(block_id for block_id, times in Counter(got).items() if times > 1)
    if twice:
        return f"Block {twice[0]} stands in your queue twice: the next two requests would share it."
    lost = sorted(set(expected) - set(got))
    if lost:
        return f"Block {lost[0]} is in no table any more and not in your queue: it has leaked."
    early = sorted(set(got) - set(expected))
    return f"Block {early[0]} should not be in the queue." if early else None


def _draw_queue(arguments: tuple, outcome: list[int]) -> Picture | None:
    return board([], free=outcome, block_size=4, cached=arguments[2])


predict_free_order = Exercise(
    "03.2",
    "predict_free_order",
    "Who is evicted next?",
    cases=_order_cases,
    reference=_reference_free_order,
    oracle=_library_order,
    returns="the free queue, a list of block numbers",
    look=_look_at_queue,
    draw=_draw_queue,
    hints=(
        "When does a block become free? Count its owners, and take one away for each table that ends.",
        "A table gives its blocks back from the last to the first. Of those that nobody holds any more, which join "
        "the head of the queue, and which the tail?",
        "For each table collect two lists in the order in which blocks come back, `head` for those without a hash and "
        "`tail` for those with one. The new queue is `head + queue + tail`.",
    ),
    explanation="A block comes back with its last owner, so owners are counted first. Blocks of one table come back "
    "together: those without a hash stand in front in the order in which they came, those with one at the back. Last "
    "blocks come first, because a beginning is worth more than an end: others may share it.",
    wrong={
        "give the first block back first": lambda *case: _order(*case, last_first=False),
        "free a shared block with its first owner": lambda *case: _order(*case, last_owner=False),
        "send every block to the tail": lambda *case: _order(*case, unhashed_to_head=False),
        "send every block to the head": lambda *case: _order(*case, hashed_to_tail=False),
        "push blocks onto the head one by one": lambda *case: _order(*case, one_by_one=True),
        "put a shared block in once per owner": lambda free, tables, cached: [
            *(b for table in reversed(tables) for b in reversed(table) if b not in cached),
            *free,
            *(b for table in tables for b in reversed(table) if b in cached),
        ],
    },
)
"""Predict the free queue after requests end: ``predict_free_order(free, tables, cached)`` -> block numbers."""

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
