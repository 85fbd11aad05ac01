"""Exercises of chapter 06, Prefix caching: what is found and what is evicted; :mod:`.ch06_names` has the third."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.ch06_hunt import blocks_to_compute
from pagedattn_lab.exercises.ch06_names import block_bytes
from pagedattn_lab.exercises.grading import Exercise

Prompts = Sequence[Sequence[int]]

__all__ = ["block_bytes", "blocks_to_compute", "eviction_order", "tokens_found"]

# --- Exercise 1: what will be found? ----------------------------------------------------------------------------------


def _tokens_found(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    """Count the tokens of a prompt that lie in full blocks of earlier prompts, the last token excepted.

    Example:
        >>> _tokens_found([[1, 2, 3, 4, 5]], [1, 2, 3, 4, 9], block_size=2)
        4
        >>> _tokens_found([[1, 2, 3, 4]], [1, 2, 3, 4], block_size=2)      # the last block is computed again
        2
    """
    known = {tuple(tokens[:end]) for tokens in earlier for end in range(block_size, len(tokens) + 1, block_size)}
    found = 0
    while found + block_size < len(prompt) and tuple(prompt[: found + block_size]) in known:
        found += block_size
    return found


def _found_without_cap(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    return _tokens_found(earlier, [*prompt, -1], block_size)


def _found_to_the_token(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    return _tokens_found(earlier, prompt, 1)


def _found_in_partial_blocks(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    longest = _tokens_found(earlier, prompt, 1)
    return min(cdiv(longest, block_size) * block_size, (len(prompt) - 1) // block_size * block_size)


def _blocks(tokens: Sequence[int], block_size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[end - block_size : end]) for end in range(block_size, len(tokens) + 1, block_size)]


def _found_by_own_tokens(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    known = {block for tokens in earlier for block in _blocks(tokens, block_size)}
    hits = itertools.takewhile(known.__contains__, _blocks(prompt[:-1], block_size))
    return block_size * sum(1 for _ in hits)


def _found_past_a_miss(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    mine = _blocks(prompt[:-1], block_size)
    matches = [sum(a == b for a, b in zip(_blocks(e, block_size), mine, strict=False)) for e in earlier]
    return block_size * max(matches, default=0)


def _found_in_full_prompt_less_one(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    return min(_found_without_cap(earlier, prompt, block_size), len(prompt) - 1)


_FOUND = [  # earlier prompts, prompt, block size, what the case is about
    ([], [1, 2, 3], 2, "nothing was computed before"),
    ([[1, 2, 3, 4, 5, 6]], [1, 2, 3, 4, 9, 9], 2, "two blocks agree, and the third does not"),
    ([[1, 2, 3, 4, 5, 6, 7, 8]], [1, 2, 3, 4, 5, 6, 9, 9], 4, "the second block agrees in part only: it is not found"),
    ([[1, 2, 3]], [1, 2, 3, 4, 5], 4, "the earlier prompt fills no block, so nothing of it is cached"),
    ([[1, 2, 3, 4]], [1, 2, 3, 4], 2, "the last token must be computed, and with it its whole block"),
    ([[1, 2, 3, 4]], [1, 2, 3, 4, 5], 2, "the last token lies behind the cached blocks: both are found"),
    ([[1, 2, 3, 4], [5, 6, 7, 8]], [5, 6, 3, 4, 0], 2, "3, 4 was computed after 1, 2 and not after 5, 6"),
    ([[1, 2, 3, 4, 5, 6]], [1, 2, 9, 9, 5, 6, 7], 2, "after the first miss nothing can be found"),
    ([[1, 2, 9, 9], [1, 2, 3, 4]], [1, 2, 3, 4, 7], 2, "blocks may come from several earlier prompts"),
]


def _found_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[list[int]], list[int], int]:
        prompt, *earlier = [[rng.randrange(2) for _ in range(rng.randint(1, 13))] for _ in range(rng.randint(1, 6))]
        if earlier and rng.random() < 0.5:  # somebody goes on from what somebody else has said
            prompt = (rng.choice(earlier)[: rng.randint(1, 12)] + prompt)[:13]
        return earlier, prompt, rng.choice([1, 2, 3, 4])

    known = [Case(tuple(case), f"{about[0].upper()}{about[1:]}.") for *case, about in _FOUND]
    return known + random_cases(
        6, 80, make, "It is the longest chain of full blocks from the start, without the last token."
    )


tokens_found = Exercise(
    "06.1",
    "tokens_found",
    "What will be found?",
    cases=_found_cases,
    reference=_tokens_found,
    returns="a number of tokens",
    hints=(
        "What is cached? Full blocks of earlier prompts, each with everything before it.",
        "So a block is known if the *whole beginning* up to its end was the beginning of an earlier prompt. Collect "
        "those beginnings, in steps of `block_size`, as tuples in a set.",
        "Go through the prompt block by block, and stop at the first that is not known or that holds the prompt's "
        "last token: that one must be computed, and with it its block.",
    ),
    explanation="A beginning, as a tuple, says the same as a chain of hashes. `found + block_size < len(prompt)` is "
    "the cap: with `<=`, a prompt that is cached to its last token would compute nothing, and no next token would "
    "come of it.",
    wrong={
        "take the last token from the cache": _found_without_cap,
        "count tokens of a block that agrees in part": _found_to_the_token,
        "find a block whole that agrees in part": _found_in_partial_blocks,
        "know a block by its own tokens alone": _found_by_own_tokens,
        "go on looking after a miss": _found_past_a_miss,
        "compute only one token of a cached prompt": _found_in_full_prompt_less_one,
    },
)

# --- Exercise 2: who is evicted? --------------------------------------------------------------------------------------


def _eviction_order(requests: Sequence[Sequence[Hashable]], num_blocks: int) -> list[Hashable]:
    """List what is cached after requests came and went, next to be evicted first.

    Example:
        >>> _eviction_order(["ab", "cd"], num_blocks=4)                # each gives its last block back first
        ['b', 'a', 'd', 'c']
        >>> _eviction_order(["ab", "c", "ad"], num_blocks=3)           # d took the place of b
        ['c', 'd', 'a']
    """
    return _serve(requests, num_blocks)


def _serve(
    requests: Sequence[Sequence[Hashable]],
    num_blocks: int,
    *,
    last_first: bool = True,
    move_hits: bool = True,
    touch_first: bool = True,
) -> list[Hashable]:
    """Serve requests by the rules, or by rules with one of them broken."""
    cached: OrderedDict[Hashable, None] = OrderedDict()
    for hashes in requests:
        hits = list(itertools.takewhile(cached.__contains__, hashes))
        new = [each for each in hashes if each not in hits]
        while len(cached) + len(new) > num_blocks:
            del cached[next(each for each in cached if not touch_first or each not in hits)]
        if move_hits:
            for each in hits:
                cached.pop(each, None)
        used = [each for each in hashes if move_hits or each not in cached]
        for each in reversed(used) if last_first else used:
            cached[each] = None
    return list(cached)


_QUEUES = [  # requests, blocks, what the case is about
    (["abc"], 8, "a request gives its last block back first"),
    (["ab", "cd"], 4, "who ended later stands further back"),
    (["ab", "cd", "ab"], 4, "found again, a and b move to the back"),
    (["ab", "cd", "ef"], 4, "e and f take the places of b and a, which have waited longest"),
    (["abc", "d", "ae"], 4, "c stands before b, so it is evicted and b stays"),
    (["ab", "cd", "abe"], 4, "a and b are found before room is made: d goes, not they"),
    (["abc", "de", "abf", "deg"], 6, "all rules together"),
]


def _solution_eviction(requests: Sequence[Sequence[Hashable]], num_blocks: int) -> list[Hashable]:
    queue: list[Hashable] = []  # cached blocks, next to be evicted first
    for hashes in requests:
        num_hits = 0
        while num_hits < len(hashes) and hashes[num_hits] in queue:
            num_hits += 1
        for each in hashes[:num_hits]:  # held now, so it cannot be evicted
            queue.remove(each)
        room = num_blocks - num_hits - (len(hashes) - num_hits)
        queue = [each for each in queue if each not in hashes]
        queue = queue[max(0, len(queue) - room) :]
        queue += reversed(hashes)
    return queue


def _eviction_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[list[str]], int]:
        paths = [f"{first}{first}{second}"[:length] for first in "abc" for second in "xy" for length in (1, 2, 3)]
        chains = [[path[: end + 1] for end in range(len(path))] for path in paths]  # a block is named by its path
        return rng.choices(chains, k=rng.randint(2, 8)), rng.choice([3, 4, 5, 7])

    known = [
        Case(([list(each) for each in requests], blocks), f"{why[0].upper()}{why[1:]}.")
        for requests, blocks, why in _QUEUES
    ]
    return known + random_cases(
        7, 60, make, "Hits leave the queue first, then room is made, then all blocks come back."
    )


eviction_order = Exercise(
    "06.2",
    "eviction_order",
    "Who is evicted?",
    cases=_eviction_cases,
    reference=_solution_eviction,
    oracle=_eviction_order,
    returns="a list of hashes",
    hints=(
        "Keep one list: what is cached and not in use, next to be evicted first. What does a request take out of it, "
        "and what does it put back, in which order?",
        "Hits are the hashes from the start that are in the list, up to the first that is not. They leave it *before* "
        "room is made.",
        "Then drop from the front until the request's new blocks fit beside what is left and its hits. At the end all "
        "of the request's blocks join the back, the last one first.",
    ),
    explanation="A hit is held by its request, so it is out of the queue when the next block is chosen for eviction; "
    "and it comes back behind everybody else. Within a request the last block comes first, so an end goes before its "
    "beginning.",
    wrong={
        "give blocks back first block first": lambda r, n: _serve(r, n, last_first=False),
        "leave a hit where it was in the queue": lambda r, n: _serve(r, n, move_hits=False),
        "make room before the hits are taken": lambda r, n: _serve(r, n, touch_first=False),
        "evict the most recently used first": lambda r, n: _eviction_order(r, n)[::-1],
        "evict nothing at all": lambda r, n: _serve(r, 10**6),
    },
)
