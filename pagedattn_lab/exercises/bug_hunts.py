"""One bug hunt each for chapters 03 to 06: a short function that is wrong, in a way that real servers have been.

Functions that hold a bug stand here word for word as in the chapters, so that an unchanged one is recognised.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.grading import Case, Exercise, random_cases
from pagedattn_lab.viz import Picture

# --- 03: found again, and given away ----------------------------------------------------------------------------------


def _find_again(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if ref_cnt[block] == 0:
            free.remove(block)
        ref_cnt[block] += 1


def _find_buggy(blocks, ref_cnt, free):
    for block in blocks:
        ref_cnt[block] += 1
        if ref_cnt[block] == 0:
            free.remove(block)


def _find_once(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if block in free:
            free.remove(block)
            ref_cnt[block] = 1


def _find_sets(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if block in free:
            free.remove(block)
        ref_cnt[block] = 1


def _find_head(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if ref_cnt[block] == 0:
            free.pop(0)
        ref_cnt[block] += 1


def _find_uncounted(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if ref_cnt[block] == 0:
            free.remove(block)


def _find_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], dict[int, int], list[int]]:
        ids = list(range(1, rng.randint(3, 9)))
        ref_cnt = {block: rng.choice([0, 0, 1, 2]) for block in ids}
        free = [block for block in rng.sample(ids, len(ids)) if ref_cnt[block] == 0]
        return rng.sample(ids, rng.randint(1, min(4, len(ids)))), ref_cnt, free

    known = [
        Case(([2], {1: 1, 2: 1, 3: 0}, [3]), "Block 2 is in use already: one owner more."),
        Case(
            ([3], {1: 1, 2: 1, 3: 0}, [3]), "Block 3 waits in the free queue, and is found again before it is reused."
        ),
        Case(
            ([2, 4], {1: 0, 2: 0, 3: 1, 4: 0}, [4, 1, 2]), "Blocks 2 and 4 leave the queue, from wherever they stand."
        ),
    ]
    return known + random_cases(20, 40, make, "A block that is in use must not stand in the free queue.")


find_again = Exercise(
    "03.4",
    "find_again",
    "Bug hunt: found again, and given away",
    cases=_find_cases,
    reference=_find_again,
    buggy=_find_buggy,
    returns="nothing; change ref_cnt and free",
    in_place=("ref_cnt", "free"),
    wrong={
        "look at the count after it has grown": _find_buggy,
        "count only those that were free": _find_once,
        "set the count to 1 for whoever comes": _find_sets,
        "take the head of the queue, whichever block that is": _find_head,
        "take blocks out of the queue without counting": _find_uncounted,
    },
    hints=(
        "Try a block that nobody holds, by hand: which values has its count when the function looks at it?",
        "The question is whether the block was free *before*. By the time it is asked, the count is 1 or more, so "
        "nothing ever leaves the queue.",
        "Ask first, count afterwards. Until then, the next request is handed a block that somebody else has just "
        "found: two users in one block, and no error.",
    ),
    explanation="A count of 0 means that the block stands in the free queue. It must leave the queue before anybody "
    "can be handed it, so the count is looked at before it grows. With the two lines exchanged, the condition is "
    "never true.",
)
"""``find_again(blocks, ref_cnt, free)``: one owner more for blocks that were found in the cache."""

# --- 04: a flag that survives preemption ------------------------------------------------------------------------------


def _positions_per_step(prompt_len: int, events: Sequence[str]) -> list[list[int]]:
    num_tokens, in_prefill = prompt_len, True
    steps = []
    for event in events:
        if event == "preempt":
            in_prefill = True  # its blocks are gone, so everything is computed again
            continue
        start = 0 if in_prefill else num_tokens - 1
        steps.append(list(range(start, num_tokens)))
        in_prefill = False
        num_tokens += 1
    return steps


def _positions_buggy(prompt_len, events):
    num_tokens, in_prefill = prompt_len, True
    steps = []
    for event in events:
        if event == "preempt":
            continue
        start = 0 if in_prefill else num_tokens - 1
        steps.append(list(range(start, num_tokens)))
        in_prefill = False
        num_tokens += 1
    return steps


def _positions(prompt_len: int, events: Sequence[str], *, forgets: str) -> list[list[int]]:
    """Serve with one mistake in what is done after a preemption."""
    num_tokens, num_computed = prompt_len, 0
    steps = []
    for event in events:
        if event == "preempt":
            num_computed = 0
            num_tokens = prompt_len if forgets == "output" else num_tokens
            continue
        stop = prompt_len if forgets == "stop" and num_computed == 0 else num_tokens
        steps.append(list(range(0 if forgets == "cache" else num_computed, stop)))
        num_computed = stop
        num_tokens += 1
    return steps


def _position_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[int, list[str]]:
        return rng.randint(1, 6), rng.choices(["run", "run", "preempt"], k=rng.randint(1, 7))

    known = [
        Case((3, ["run", "run", "run"]), "The prompt in one step, then one token a step."),
        Case((3, ["run", "run", "preempt", "run"]), "The blocks are gone: all 5 tokens must be computed again."),
        Case((3, ["preempt", "run", "run"]), "It was preempted before it had computed anything."),
    ]
    about = "After a preemption nothing is cached: compute every token that is known, prompt and output."
    return known + random_cases(21, 40, make, about)


positions_per_step = Exercise(
    "04.4",
    "positions_per_step",
    "Bug hunt: after the preemption",
    cases=_position_cases,
    reference=_positions_per_step,
    buggy=_positions_buggy,
    returns="a list of steps, each a list of positions",
    wrong={
        "take a preempted request for one that is decoding": _positions_buggy,
        "forget the tokens that were generated before the preemption": lambda prompt_len, events: _positions(
            prompt_len, events, forgets="output"
        ),
        "compute the prompt again, and not the output": lambda prompt_len, events: _positions(
            prompt_len, events, forgets="stop"
        ),
        "compute everything in every step": lambda prompt_len, events: _positions(prompt_len, events, forgets="cache"),
    },
    hints=(
        "Follow one request that runs, is preempted and runs again. Which positions are in the cache when it comes "
        "back?",
        "None: its blocks went to others. But `in_prefill` still says what it said before, and one position is "
        "computed on top of a cache that is not there.",
        "Set the flag back when the request is preempted. Better still, have no flag: keep `num_computed`, set it to "
        "0, and begin each step there.",
    ),
    explanation="Two facts say the same thing, the flag and what is cached, and only one was kept up to date. vLLM's "
    "V1 has no flag: a step always computes from `num_computed_tokens` on, for a new prompt, a decode and a request "
    "that comes back.",
)
"""``positions_per_step(prompt_len, events)``: what each step computes of a request that is preempted now and then."""

# --- 05: free for a moment --------------------------------------------------------------------------------------------

Tables = list[list[int]]


def _reorder(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    children = [list(tables[parent]) for parent in parents]
    for child in children:
        for block in child:
            ref_cnt[block] += 1
    for table in tables:
        for block in reversed(table):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    tables[:] = children


def _reorder_buggy(tables, parents, ref_cnt, free):
    children = [list(tables[parent]) for parent in parents]
    for table in tables:
        for block in reversed(table):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    for child in children:
        for block in child:
            ref_cnt[block] += 1
    tables[:] = children


def _reorder_never_frees(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    nothing: list[int] = []
    _reorder(tables, parents, ref_cnt, nothing)


def _reorder_keeps_parents(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    children = [list(tables[parent]) for parent in parents]
    for child in children:
        for block in child:
            ref_cnt[block] += 1
    tables[:] = children


def _reorder_dead_only(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for number, table in enumerate(tables):
        for block in reversed(table if number not in parents else []):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    tables[:] = [list(tables[parent]) for parent in parents]


def _reorder_first_first(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    before = len(free)
    _reorder(tables, parents, ref_cnt, free)
    free[before:] = sorted(free[before:])


def _reorder_cases() -> list[Case]:
    def given(tables: Tables, free: list[int]) -> tuple[Tables, dict[int, int], list[int]]:
        return tables, dict(Counter(block for table in tables for block in table)) | dict.fromkeys(free, 0), free

    def make(rng: random.Random) -> tuple[Tables, list[int], dict[int, int], list[int]]:
        ids = rng.sample(range(1, 20), 19)
        tables: Tables = [[ids.pop() for _ in range(rng.randint(1, 3))]]
        for _ in range(rng.randint(0, 3)):
            parent = rng.choice(tables)
            tables.append(parent[: rng.randint(0, len(parent))] + [ids.pop() for _ in range(rng.randint(1, 2))])
        tables, ref_cnt, free = given(tables, ids[:1])
        return tables, [rng.randrange(len(tables)) for _ in range(rng.randint(1, 4))], ref_cnt, free

    known = [
        (
            [[1, 2], [1, 3]],
            [0, 0],
            [4],
            "Beam 1 ends, and its block 3 with it. Blocks 1 and 2 stay in use all the time.",
        ),
        ([[1, 2], [1, 3]], [1, 0], [4], "Every beam goes on, in another place: nothing becomes free."),
        ([[1, 2, 3]], [0, 0, 0], [], "One beam becomes three."),
    ]
    cases = []
    for tables, parents, free, about in known:
        tables, ref_cnt, free = given(tables, free)
        cases.append(Case((tables, parents, ref_cnt, free), about))
    return cases + random_cases(22, 40, make, "A block that a child goes on with must never be free, not for a moment.")


def _draw_reorder(arguments: tuple[Any, ...], outcome: dict[str, Any]) -> Picture | None:
    return board(outcome["tables"], free=outcome["free"], block_size=1)


reorder = Exercise(
    "05.4",
    "reorder",
    "Bug hunt: free for a moment",
    cases=_reorder_cases,
    reference=_reorder,
    buggy=_reorder_buggy,
    returns="nothing; change tables, ref_cnt and free",
    in_place=("tables", "ref_cnt", "free"),
    draw=_draw_reorder,
    wrong={
        "let go of the parents before the children hold anything": _reorder_buggy,
        "free nothing": _reorder_never_frees,
        "count the children and never let the parents go": _reorder_keeps_parents,
        "let go only of beams without children, and count no new owner": _reorder_dead_only,
        "free blocks in the order of their numbers": _reorder_first_first,
    },
    hints=(
        "Look at a block that a beam hands on to its only child. Which values does its count take, one after another?",
        "1, then 0, then 1. At 0 it is put into the free queue, and nobody takes it out again: the next request gets "
        "a block that a beam is reading.",
        "Let the children take hold first, then let the parents go. The counts are the same in the end, and none of "
        "them touches 0 on the way.",
    ),
    explanation="Counts that are right at the end are not enough, because 0 has an effect at once. Hence the rule: "
    "take hold of the new before you let go of the old. It is the same in every program that counts references.",
)
"""``reorder(tables, parents, ref_cnt, free)``: a step of beam search on counts and a free queue."""

# --- 06: a count of hits that has grown old ---------------------------------------------------------------------------


def _blocks_to_compute(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    computed = []
    for cached in cached_each_time:
        num_hits = 0
        while num_hits < len(hashes) and hashes[num_hits] in cached:
            num_hits += 1
        computed.append(hashes[num_hits:])
    return computed


def _compute_buggy(hashes, cached_each_time):
    num_hits = 0
    computed = []
    for cached in cached_each_time:
        while num_hits < len(hashes) and hashes[num_hits] in cached:
            num_hits += 1
        computed.append(hashes[num_hits:])
    return computed


def _compute_once(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    return [_blocks_to_compute(hashes, cached_each_time[:1])[0] for _ in cached_each_time]


def _compute_latest(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    return [
        list(hashes) if number else each for number, each in enumerate(_blocks_to_compute(hashes, cached_each_time))
    ]


def _compute_missing(hashes: Sequence[str], cached_each_time: Sequence[set[str]]) -> list[list[str]]:
    return [[each for each in hashes if each not in cached] for cached in cached_each_time]


def _compute_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[str], list[set[str]]]:
        hashes = list("abcdef"[: rng.randint(1, 6)])
        times = [
            set(hashes[: rng.randint(0, len(hashes))]) - set(rng.sample(hashes, rng.choice([0, 0, 1])))
            for _ in range(rng.randint(1, 3))
        ]
        return hashes, times

    known = [
        Case((["a", "b", "c"], [{"a", "b"}]), "Two blocks are found, one is computed."),
        Case((["a", "b", "c"], [{"a", "b"}, {"a"}]), "While it waited, b was evicted: it must be computed again."),
        Case((["a", "b", "c"], [set(), {"a", "b", "c"}]), "What it computed itself is found when it comes back."),
        Case((["a", "b", "c"], [{"a"}, {"b", "c"}]), "Without a, neither b nor c is found."),
    ]
    return known + random_cases(
        23, 50, make, "What is found depends on what is cached at that moment, and on nothing before."
    )


blocks_to_compute = Exercise(
    "06.4",
    "blocks_to_compute",
    "Bug hunt: a count that has grown old",
    cases=_compute_cases,
    reference=_blocks_to_compute,
    buggy=_compute_buggy,
    returns="a list with a list of hashes for each time",
    wrong={
        "go on counting from the hits of last time": _compute_buggy,
        "look up once, and believe it ever after": _compute_once,
        "look nothing up when a request comes back": _compute_latest,
        "find blocks behind a gap": _compute_missing,
    },
    hints=(
        "A request that was preempted comes back to another cache. What does the function still know from the first "
        "time?",
        "`num_hits` begins where it stood. If a block was evicted meanwhile, the request believes that it is there, "
        "and reads a block that holds somebody else's tokens.",
        "Begin every look-up with `num_hits = 0`, inside the loop.",
    ),
    explanation="A hit is a statement about one moment. Whoever keeps the count must throw it away with the blocks: "
    "the same fault in a counter shows as a hit rate above what the cache can give, in a table as another user's "
    "words.",
)
"""``blocks_to_compute(hashes, cached_each_time)``: what a request computes when it is admitted, and admitted again."""
