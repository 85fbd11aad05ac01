"""Exercise 3 of chapter 06: a block's identity as bytes, and the search for two blocks with the same ones."""

from __future__ import annotations

import itertools
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch06_hashes import (
    PARTS,
    SAFE_BITS,
    SUCH_AS,
    Block,
    adds_up,
    bits_that_tell,
    forged,
    strength,
    write,
)
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import Words, kind


def _block_bytes(parent: bytes, tokens: Sequence[int], salt: str | None) -> bytes:
    """Write a block's identity down so that parent, tokens and salt can be read back from it.

    Example:
        >>> _block_bytes(b"", [1, 23], None) == _block_bytes(b"", [12, 3], None)
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


DIFFERENT, EQUAL = Words("different bytes"), Words("the same bytes")
TRIES, SECONDS_OF_TRIES = 200_000, 1.5
"""So many random names: with 32 bits, two are equal in all but one run of a hundred. A slow machine makes fewer."""


def _compare(answer: Callable[..., bytes], arguments: tuple[Any, ...]) -> Words:
    """Say whether two blocks get the same bytes; of a part alone, how well names tell it."""
    if len(arguments) == 1:
        return strength(answer, arguments[0])
    first, second = arguments
    one, again, other = write(answer, first), write(answer, first), write(answer, second)
    if not isinstance(one, bytes):
        return Words(f"{kind(one)}, and no bytes")
    if one != again:
        return Words("other bytes for one block each time")
    return EQUAL if one == other else DIFFERENT


def _pair(first: Block, second: Block, about: str) -> Case:
    return Case((first, second), about, shown=f"block_bytes{first} and block_bytes{second}")


def _name_cases() -> list[Case]:
    return [_pair(first, second, f"{about[0].upper()}{about[1:]}.") for first, second, about in _NAMES]


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
    no_salt, salted = write(answer, (parent, [7], None)), write(answer, (parent, [7], salt))

    # What one token more adds, and what stands in a salt's place where there is none, move into parent and salt.
    more = itertools.product(([1, 7], [7, 1]), ((None, no_salt), (salt, salted)))
    pieces = set().union(*(_added(made, write(answer, (parent, tokens, s))) for tokens, (s, made) in more))
    before, _, behind = salted.partition(salt.encode())
    if no_salt.startswith(before) and no_salt.endswith(behind):
        pieces.add(no_salt[len(before) : len(no_salt) - len(behind)])
    suspects: list[Block] = [(parent, t, s) for t in ([7], [1, 7], [7, 1]) for s in (None, "", salt)]
    suspects += [each for block in suspects for each in _grown(block, pieces)]

    # So does what stands between the two. It may tell a length, so look again where one of them has grown.
    block: Block = (parent, [7], salt)
    between = _between(salted, block)
    between = between.union(*(_between(write(answer, each), each) for each in _grown(block, between)))
    suspects += _grown(block, between)

    # What a salt adds may be what a token adds: read it as a number.
    for length, end in itertools.product(range(9), ("", no_salt[-1:].decode(errors="ignore"))):
        block = (parent, [7], "q" * length + end)
        suspects.append(block)
        for piece in sorted(_added(no_salt, write(answer, block))):
            numbers = int.from_bytes(piece, "little"), int.from_bytes(piece, "big")
            suspects += [(parent, tokens, None) for each in numbers for tokens in ([7, each], [each, 7])]
    return suspects


def _search(answer: Callable[..., bytes]) -> Iterator[Case]:
    """Look for two blocks that this very answer takes for one: by misreading, by forging, by chance."""
    pieces = (b"", b"1", b"1,", b"|"), ([1], [1, 1], [11], [1, 0]), (None, "", "1", "1|1", "|", ",1")
    seen: dict[bytes, Block] = {}
    for block in [*itertools.product(*pieces), *_suspects(answer)]:
        other = seen.setdefault(write(answer, block), block)
        if other != block:
            yield _pair(other, block, "A part may hold whatever you write beside it.")
            return
    pair = forged(answer)
    if pair:
        about = (
            "Your hash is linear: what one change does to it does not depend on the rest, so a few of them cancel out."
        )
        yield _pair(*pair, f"{about} Anybody can make such a pair, as the chapter does with CRC-32.")
        return
    for part in PARTS:
        bits = bits_that_tell(answer, part)
        found = _by_chance(answer, part) if 2**bits < TRIES**2 else None
        if found:
            yield found
        elif adds_up(answer, part):
            about = "What one change does to your hash does not depend on the rest, so changes can cancel out."
            yield _of_part(part, f"{about} Use a hash that resists collisions, {SUCH_AS}.")
        elif bits < SAFE_BITS:
            about = "So many contents cannot have so few names, and two equal ones can be found by trying."
            yield _of_part(part, f"{about} Write everything down, or use a hash that resists collisions, {SUCH_AS}.")
        else:
            continue
        return


def _of_part(part: str, about: str) -> Case:
    return Case((part,), about, shown=f"block_bytes for long contents of {part}")


def _by_chance(answer: Callable[..., bytes], part: str) -> Case | None:
    rng, seen, end = random.Random(0), {}, time.monotonic() + SECONDS_OF_TRIES
    while len(seen) < TRIES and time.monotonic() < end:
        block = PARTS[part](rng.getrandbits(44))
        other = seen.setdefault(write(answer, block), block)
        if other != block:
            return _pair(other, block, f"Found by chance, in {len(seen):,} tries: too few bytes tell the {part}.")
    return None


def _joined(mark: str) -> Callable[..., bytes]:
    """Join the parts by a mark, with N for no salt and a plus sign behind a salt."""
    return lambda parent, tokens, salt: mark.encode().join(
        [parent, ",".join(map(str, tokens)).encode(), b"N" if salt is None else salt.encode() + b"+"]
    )


block_bytes = Exercise(
    "06.3",
    "block_bytes",
    "One block, one name",
    cases=_name_cases,
    reference=_block_bytes,
    oracle=_block_bytes,
    returns="bytes",
    run=_compare,
    search=_search,
    hints=(
        "Imagine reading the bytes back. How do you know where the parent ends, where one token ends, and whether "
        "there is a salt?",
        "A separator does not help: a parent or a salt may hold it. Lengths in front of each part help, and so does a "
        "form that quotes its parts.",
        "`repr((parent, list(tokens), salt)).encode()` can be read back by Python itself. If you hash it, use a hash "
        "that nobody can make collide, such as SHA-256; the chapter shows what a checksum is worth.",
    ),
    explanation="`repr` quotes texts and bytes, puts commas between tokens and writes `None` unlike the text 'None', "
    "so contents can be read back, and two contents never look alike. Any form that can be read back will do; a hash "
    "of it will, too, as long as nobody can find two contents with one hash.",
    wrong={
        "run token ids together": lambda p, t, s: repr((p, "".join(map(str, t)), s)).encode(),
        "leave the parent out": lambda p, t, s: repr((list(t), s)).encode(),
        "leave the salt out": lambda p, t, s: repr((p, list(t))).encode(),
        "write no salt like the salt None": lambda p, t, s: repr((p, list(t), str(s))).encode(),
        "join parts by a character that they may hold": _joined("|"),
        "join parts by a zero byte, which they may hold": _joined("\0"),
        "join parts by a mark that nobody would think of, and that they may hold": _joined("<sep>"),
        "give no length that tells where the parent ends": lambda p, t, s: (
            p + struct.pack(f"<{len(t)}q", *t) + (b"" if s is None else b"s" + s.encode())
        ),
        "give each token three bytes, and no length to the parent": lambda p, t, s: (
            p + b"".join(x.to_bytes(3, "big") for x in t) + (b"" if s is None else b"s" + s.encode())
        ),
        "cut the parent short": lambda p, t, s: repr((p[:3], list(t), s)).encode(),
        "give each token two bytes": lambda p, t, s: repr((p, [x % 65_536 for x in t], s)).encode(),
        "lose the order of tokens": lambda p, t, s: repr((p, sorted(t), s)).encode(),
        "use a checksum that can be forged": lambda p, t, s: zlib.crc32(repr((p, list(t), s)).encode()).to_bytes(
            4, "big"
        ),
    },
)
