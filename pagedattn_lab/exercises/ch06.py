"""Exercises of chapter 06, Prefix caching: what is found, what is evicted, and bytes that cannot be misread."""

from __future__ import annotations

import itertools
import random
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from pagedattn_lab.exercises import Exercise

Prompts = Sequence[Sequence[int]]

# --- Exercise 1: what will be found? ----------------------------------------------------------------------------------


def tokens_found(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    """Count the tokens of a prompt that lie in full blocks of earlier prompts, the last token excepted.

    Example:
        >>> tokens_found([[1, 2, 3, 4, 5]], [1, 2, 3, 4, 9], block_size=2)
        4
        >>> tokens_found([[1, 2, 3, 4]], [1, 2, 3, 4], block_size=2)      # the last block is computed again
        2
    """
    known = {tuple(tokens[:end]) for tokens in earlier for end in range(block_size, len(tokens) + 1, block_size)}
    found = 0
    while found + block_size < len(prompt) and tuple(prompt[: found + block_size]) in known:
        found += block_size
    return found


def _found_without_cap(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    return tokens_found(earlier, [*prompt, -1], block_size)


def _found_to_the_token(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    return tokens_found(earlier, prompt, 1)


def _found_in_partial_blocks(earlier: Prompts, prompt: Sequence[int], block_size: int) -> int:
    longest = tokens_found(earlier, prompt, 1)
    return min(-(-longest // block_size) * block_size, (len(prompt) - 1) // block_size * block_size)


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


def _check_found(answer: Callable[..., int]) -> None:
    rng = random.Random(6)
    cases = list(_FOUND)
    for _ in range(60):
        make = [[rng.randrange(2) for _ in range(rng.randrange(1, 14))] for _ in range(rng.randrange(1, 6))]
        cases.append((make[1:], make[0], rng.choice([1, 2, 3, 4]), "the longest chain of full blocks, from the start"))
    for earlier, prompt, block_size, about in cases:
        result, expected = answer(earlier, prompt, block_size), tokens_found(earlier, prompt, block_size)
        assert result == expected, (
            f"for earlier={earlier}, prompt={prompt}, block_size={block_size} it is {expected}, not {result}: {about}"
        )


found = Exercise(
    check=_check_found,
    reference=tokens_found,
    wrong={
        "the last token is taken from the cache": _found_without_cap,
        "tokens of a block that agrees in part are counted": _found_to_the_token,
        "a block that agrees in part is found whole": _found_in_partial_blocks,
        "a block is known by its own tokens": _found_by_own_tokens,
        "the look-up goes on after a miss": _found_past_a_miss,
        "only one token of a cached prompt is computed": _found_in_full_prompt_less_one,
    },
)

# --- Exercise 2: who is evicted? --------------------------------------------------------------------------------------


def eviction_order(requests: Sequence[Sequence[Hashable]], num_blocks: int) -> list[Hashable]:
    """List what is cached after requests came and went, next to be evicted first.

    Example:
        >>> eviction_order(["ab", "cd"], num_blocks=4)                # each gives its last block back first
        ['b', 'a', 'd', 'c']
        >>> eviction_order(["ab", "c", "ad"], num_blocks=3)           # d took the place of b
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


def _check_eviction(answer: Callable[..., list[Hashable]]) -> None:
    rng = random.Random(7)
    cases: list[tuple[Sequence[Sequence[Hashable]], int, str]] = list(_QUEUES)
    for _ in range(40):
        paths = [f"{first}{first}{second}"[:length] for first in "abc" for second in "xy" for length in (1, 2, 3)]
        chains = [[path[: end + 1] for end in range(len(path))] for path in paths]  # a block is named by its path
        cases.append((rng.choices(chains, k=8), rng.choice([4, 5, 7]), "every hash names all that leads to it"))
    for requests, num_blocks, about in cases:
        given = [list(each) for each in requests]
        result, expected = answer(given, num_blocks), eviction_order(requests, num_blocks)
        assert list(result) == expected, (
            f"for requests={given}, num_blocks={num_blocks} the order is {expected}, not {list(result)}: {about}"
        )


eviction = Exercise(
    check=_check_eviction,
    reference=eviction_order,
    wrong={
        "blocks are given back first block first": lambda r, n: _serve(r, n, last_first=False),
        "a hit does not move to the back": lambda r, n: _serve(r, n, move_hits=False),
        "room is made before the hits are taken": lambda r, n: _serve(r, n, touch_first=False),
        "the most recently used goes first": lambda r, n: eviction_order(r, n)[::-1],
        "nothing is ever evicted": lambda r, n: _serve(r, 10**6),
    },
)

# --- Exercise 3: one block, one name ----------------------------------------------------------------------------------


def block_bytes(parent: bytes, tokens: Sequence[int], salt: str | None) -> bytes:
    """Write a block's identity down so that parent, tokens and salt can be read back from it.

    Example:
        >>> block_bytes(b"", [1, 23], None) == block_bytes(b"", [12, 3], None)
        False
    """
    return repr((parent, list(tokens), salt)).encode()


_NAMES = [  # two blocks, and what tells them apart
    ((b"A", [1, 2], None), (b"B", [1, 2], None), "their parents differ"),
    ((b"A", [1, 2], None), (b"A", [2, 1], None), "their tokens stand in another order"),
    ((b"A", [1, 23], None), (b"A", [12, 3], None), "1, 23 is not 12, 3"),
    ((b"A", [1, 2], None), (b"A", [1, 258], None), "258 does not fit into one byte"),
    ((b"A", [7, 65_536], None), (b"A", [7, 131_072], None), "a token id can be longer than two bytes"),
    ((b"A", [1], "blue"), (b"A", [1], "red"), "their salts differ"),
    ((b"A", [1], "blue"), (b"A", [1], None), "one has a salt"),
    ((b"A", [1], "None"), (b"A", [1], None), "a salt may read 'None', and that is a salt"),
    ((b"A", [1, 2], "3"), (b"A", [1, 2, 3], None), "3 is a salt here and a token there"),
    ((b"A", [1, 2], "3"), (b"A", [1], "23"), "a digit has moved from the tokens to the salt"),
    ((b"A1", [2], None), (b"A", [12], None), "a digit has moved from the parent to the tokens"),
    ((b"A,1", [2], None), (b"A", [1, 2], None), "the parent holds what separates tokens"),
    ((b"A", [1], "x|y"), (b"A|1", [1], "y"), "a salt may hold any character, a separator too"),
    ((b"A|1", [1], "y"), (b"A", [1], "1|y"), "parent, tokens and salt may hold any separator"),
    ((b"A\n1", [2], "x"), (b"A", [1, 2], "x"), "a parent's hash may hold any byte"),
    *(
        ((b"", [65, 66], None), ((65).to_bytes(width, order), [66], None), "a parent's hash may look like a token")
        for width in (2, 4, 8)
        for order in ("little", "big")
    ),
    *(
        (
            (b"A", [1], f"x{mark}y"),
            (b"A" + f"{mark}1{mark}x".encode(), [1], "y"),
            "parent and salt may hold any character",
        )
        for mark in "\0\x1f;:|, "
    ),
    *(
        ((b"A", [1], f"1{mark}y"), (b"A" + f"{mark}1".encode(), [1], "y"), "parent and salt may hold any character")
        for mark in "\0\x1f;:|, "
    ),
]


def _check_name(answer: Callable[..., bytes]) -> None:
    for first, second, about in _NAMES:
        one, other = answer(*first), answer(*second)
        assert isinstance(one, bytes), f"return bytes, not {type(one).__name__}"
        assert one == answer(*first), f"for {first} you gave two different answers: the same block must keep its name"
        assert one != other, f"{first} and {second} get the same bytes: {about}"
    seen: dict[bytes, tuple] = {}
    pieces = (b"", b"1", b"1,", b"|"), ([1], [1, 1], [11], [1, 0]), (None, "", "1", "1|1", "|", ",1")
    for parent, tokens, salt in itertools.product(*pieces):
        made = answer(parent, list(tokens), salt)
        other = seen.setdefault(made, (parent, tokens, salt))
        assert other == (parent, tokens, salt), f"{(parent, tokens, salt)} and {other} get the same bytes"


name = Exercise(
    check=_check_name,
    reference=block_bytes,
    wrong={
        "token ids run together": lambda p, t, s: repr((p, "".join(map(str, t)), s)).encode(),
        "the parent is left out": lambda p, t, s: repr((list(t), s)).encode(),
        "the salt is left out": lambda p, t, s: repr((p, list(t))).encode(),
        "no salt reads as the salt None": lambda p, t, s: repr((p, list(t), str(s))).encode(),
        "parts are joined by a character that they may hold": lambda p, t, s: b"|".join(
            [p, ",".join(map(str, t)).encode(), b"-" if s is None else s.encode() + b"+"]
        ),
        "parts are joined by a zero byte, which they may hold": lambda p, t, s: b"\0".join(
            [p, ",".join(map(str, t)).encode(), b"-" if s is None else s.encode() + b"+"]
        ),
        "no length tells where the parent ends": lambda p, t, s: (
            p + struct.pack(f"<{len(t)}q", *t) + (b"" if s is None else b"s" + s.encode())
        ),
        "two bytes for each token": lambda p, t, s: repr((p, [x % 65_536 for x in t], s)).encode(),
        "the order of tokens is lost": lambda p, t, s: repr((p, sorted(t), s)).encode(),
    },
)
