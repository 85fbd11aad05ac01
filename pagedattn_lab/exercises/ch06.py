"""Exercises of chapter 06, Prefix caching: what is found, what is evicted, and bytes that cannot be misread."""

from __future__ import annotations

import itertools
import random
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises import Exercise

Prompts = Sequence[Sequence[int]]
Block = tuple[bytes, list[int], str | None]  # parent, tokens, salt

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


_NAMES: list[tuple[Block, Block, str]] = [  # two blocks, and what tells them apart
    ((b"A", [1, 2], None), (b"B", [1, 2], None), "their parents differ"),
    ((b"A", [1, 2], None), (b"A", [2, 1], None), "their tokens stand in another order"),
    ((b"A", [1, 23], None), (b"A", [12, 3], None), "1, 23 is not 12, 3"),
    ((b"A", [0], None), (b"A", [], None), "0 is a token, and a list may be empty"),
    ((b"A", [*range(32), 1], None), (b"A", [*range(32), 2], None), "a block may hold any number of tokens"),
    ((b"A", [1], "blue"), (b"A", [1], "red"), "their salts differ"),
    ((b"A", [1], "blue"), (b"A", [1], None), "one has a salt"),
    ((b"A", [1], ""), (b"A", [1], None), "an empty salt is a salt"),
    ((b"A", [1], "None"), (b"A", [1], None), "a salt may read 'None', and that is a salt"),
    ((b"A", [1], "A"), (b"A", [1], "a"), "capital and small letters differ"),
    ((b"A", [1], "é"), (b"A", [1], "è"), "a salt may hold any letter"),
    ((b"A", [1], "\u00e9"), (b"A", [1], "e\u0301"), "é may be one character or two, and the texts differ"),
    ((b"A", [1], "x"), (b"A", [1], "x "), "a space at the end belongs to the salt"),
    ((b"A", [1], "x"), (b"A", [1], "x\0"), "a zero character at the end belongs to the salt"),
    ((b"A", [1], "x" * 40 + "1"), (b"A", [1], "x" * 40 + "2"), "a salt may be long, and all of it counts"),
    ((b"A", [1], None), (b"a", [1], None), "a parent's bytes are not letters, large or small"),
    ((b"\xfe", [1], None), (b"\xff", [1], None), "a parent need not be text"),
    ((b"A" * 31 + b"1", [1], None), (b"A" * 31 + b"2", [1], None), "the last byte of the parent counts"),
    ((b"1" + b"A" * 31, [1], None), (b"2" + b"A" * 31, [1], None), "the first byte of the parent counts"),
    ((b"A", [1], None), (b"A\0", [1], None), "a zero byte at the end belongs to the parent"),
    ((b"A", [1], None), (b"\0A", [1], None), "a zero byte in front belongs to the parent"),
    ((b"A", [1, 2], "3"), (b"A", [1, 2, 3], None), "3 is a salt here and a token there"),
    ((b"A", [1, 2], "3"), (b"A", [1], "23"), "a digit has moved from the tokens to the salt"),
    ((b"A1", [2], None), (b"A", [12], None), "a digit has moved from the parent to the tokens"),
    ((b"1", [123456789015], None), (b"12345678901", [5], None), "a length in digits needs an end, too"),
    *(
        ((b"A", [1], None), (b"A", [large], None), "a token is never negative, and nothing else limits its size")
        for large in (*(1 + 2**bits for bits in (8, 16, 17, 18, 20, 24, 32, 40, 48, 63)), 2**61)
    ),
    *(
        ((b"A", two, None), (b"A", [one], None), "these are two tokens and one, whose bytes or digits look alike")
        for two, one in (
            *(([1, 2], 18), ([1, 2], 258), ([2, 1], 258), ([0, 1], 1)),
            *(([base**width, 1], base ** (2 * width) + 1) for base in (10, 16) for width in range(2, 11)),
        )
    ),
    *(
        ((b"", [65, 66], None), ((65).to_bytes(width, order), [66], None), "a parent's hash may look like a token")
        for width in (1, 2, 3, 4, 8)
        for order in ("little", "big")
    ),
]


def _write(answer: Callable[..., bytes], block: Block) -> bytes:
    """Run the answer on a block. It may refuse a token beyond every vocabulary: an error is no other block's name."""
    parent, tokens, salt = block
    try:
        made, again = answer(parent, list(tokens), salt), answer(parent, list(tokens), salt)
    except Exception:
        if max(tokens, default=0) < 2**20:
            raise
        return repr(block).encode()
    assert isinstance(made, bytes), f"for {block} return bytes, not {type(made).__name__}"
    assert made == again, f"for {block} you gave two different answers: the same block must keep its name"
    return made


def _added(short: bytes, long: bytes) -> set[bytes]:
    """Find the pieces that leave ``short`` when cut out of ``long``: b"7," for b"|8" and b"|7,8"."""
    size = len(long) - len(short)
    return {long[at : at + size] for at in range(len(short) + 1) if size > 0 and long[:at] + long[at + size :] == short}


def _between(made: bytes, block: Block) -> set[bytes]:
    """Find what stands between parent and salt, whichever comes first; nothing where they cannot be seen."""
    parent, salt = block[0], (block[2] or "").encode()
    tries = [made.partition(first)[2].partition(last) for first, last in ((parent, salt), (salt, parent))]
    return {piece for piece, found, _ in tries if found}


def _grown(block: Block, pieces: set[bytes]) -> list[Block]:
    """Put each piece in front of the parent and of the salt, and behind them."""
    parent, tokens, salt = block
    grown: list[Block] = []
    for piece in sorted(pieces):
        grown += [(parent + piece, tokens, salt), (piece + parent, tokens, salt)]
        text = piece.decode(errors="ignore")
        if salt is not None and text.encode() == piece:  # a salt is a text, so it cannot hold every piece
            grown += [(parent, tokens, salt + text), (parent, tokens, text + salt)]
    return grown


def _suspects(answer: Callable[..., bytes]) -> list[Block]:
    """List blocks whose parts hold what this very answer writes between parts, for one token more, or for a salt.

    An answer that hashes shows none of this; then, as for every right answer, the list is harmless.
    """
    parent, salt = b"QX", "zy"
    no_salt, salted = _write(answer, (parent, [7], None)), _write(answer, (parent, [7], salt))

    # What one token more adds, and what stands in a salt's place where there is none, move into parent and salt.
    more = itertools.product(([1, 7], [7, 1]), ((None, no_salt), (salt, salted)))
    pieces = set().union(*(_added(made, _write(answer, (parent, tokens, s))) for tokens, (s, made) in more))
    before, _, behind = salted.partition(salt.encode())
    if no_salt.startswith(before) and no_salt.endswith(behind):
        pieces.add(no_salt[len(before) : len(no_salt) - len(behind)])
    suspects: list[Block] = [(parent, t, s) for t in ([7], [1, 7], [7, 1]) for s in (None, "", salt)]
    suspects += [each for block in suspects for each in _grown(block, pieces)]

    # So does what stands between the two. It may tell a length, so look again where one of them has grown.
    block: Block = (parent, [7], salt)
    between = _between(salted, block)
    between = between.union(*(_between(_write(answer, each), each) for each in _grown(block, between)))
    suspects += _grown(block, between)

    # What a salt adds may be what a token adds: read it as a number.
    for length, end in itertools.product(range(9), ("", no_salt[-1:].decode(errors="ignore"))):
        block = (parent, [7], "q" * length + end)
        suspects.append(block)
        for piece in sorted(_added(no_salt, _write(answer, block))):
            numbers = int.from_bytes(piece, "little"), int.from_bytes(piece, "big")
            suspects += [(parent, tokens, None) for each in numbers for tokens in ([7, each], [each, 7])]
    return suspects


def _check_name(answer: Callable[..., bytes]) -> None:
    for first, second, about in _NAMES:
        one, other = _write(answer, first), _write(answer, second)
        assert one != other, f"{first} and {second} get the same bytes: {about}"
    pieces = (b"", b"1", b"1,", b"|"), ([1], [1, 1], [11], [1, 0]), (None, "", "1", "1|1", "|", ",1")
    seen: dict[bytes, Block] = {}
    for block in [*itertools.product(*pieces), *_suspects(answer)]:
        other = seen.setdefault(_write(answer, block), block)
        assert other == block, f"{other} and {block} get the same bytes: a part may hold whatever you write beside it"


def _joined(mark: str) -> Callable[..., bytes]:
    """Join the parts by a mark, with N for no salt and a plus sign behind a salt."""
    return lambda parent, tokens, salt: mark.encode().join(
        [parent, ",".join(map(str, tokens)).encode(), b"N" if salt is None else salt.encode() + b"+"]
    )


name = Exercise(
    check=_check_name,
    reference=block_bytes,
    wrong={
        "token ids run together": lambda p, t, s: repr((p, "".join(map(str, t)), s)).encode(),
        "the parent is left out": lambda p, t, s: repr((list(t), s)).encode(),
        "the salt is left out": lambda p, t, s: repr((p, list(t))).encode(),
        "no salt reads as the salt None": lambda p, t, s: repr((p, list(t), str(s))).encode(),
        "parts are joined by a character that they may hold": _joined("|"),
        "parts are joined by a zero byte, which they may hold": _joined("\0"),
        "parts are joined by a mark that nobody would think of, which they may hold": _joined("<sep>"),
        "no length tells where the parent ends": lambda p, t, s: (
            p + struct.pack(f"<{len(t)}q", *t) + (b"" if s is None else b"s" + s.encode())
        ),
        "three bytes for each token, and no length": lambda p, t, s: (
            p + b"".join(x.to_bytes(3, "big") for x in t) + (b"" if s is None else b"s" + s.encode())
        ),
        "the parent is cut short": lambda p, t, s: repr((p[:3], list(t), s)).encode(),
        "two bytes for each token": lambda p, t, s: repr((p, [x % 65_536 for x in t], s)).encode(),
        "the order of tokens is lost": lambda p, t, s: repr((p, sorted(t), s)).encode(),
    },
)
