"""What names of blocks are worth, for exercise 3 of chapter 06: how many bits they have, and who can forge them."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from pagedattn_lab.exercises.values import Words

Block = tuple[bytes, list[int], str | None]  # parent, tokens, salt
SUCH_AS = "such as SHA-256"
SAFE_BITS = 100
"""Two equal names of so many bits turn up by chance after about 2**50 tries."""
NUM_NAMES = 300
"""From so many names, the bits of a byte are known to a tenth."""
PARTS: dict[str, Callable[[int], Block]] = {  # blocks whose one part is made of random bits
    "parent": lambda bits: (bits.to_bytes(32, "big"), [1], "x"),
    "tokens": lambda bits: (b"QX", [bits >> 15 * place & 0x7FFF for place in range(1 + bits.bit_length() // 15)], "x"),
    "salt": lambda bits: (b"QX", [1], f"{bits:x}"),
}
LONG: dict[str, Callable[[str], Block]] = {  # blocks of which one part has a place for each letter, p or q
    "parent": lambda letters: (letters.encode(), [1], None),
    "tokens": lambda letters: (b"", list(letters.encode()), None),
    "salt": lambda letters: (b"", [1], letters),
}


def write(answer: Callable[..., bytes], block: Block) -> bytes:
    """Run the answer on a block. It may refuse a token beyond every vocabulary: an error is no other block's name."""
    parent, tokens, salt = block
    try:
        return answer(parent, list(tokens), salt)
    except Exception:
        if max(tokens, default=0) < 2**20:
            raise
        return repr(block).encode()


def strength(answer: Callable[..., bytes], part: str) -> Words:
    """Say in words how hard it is to find two contents of one part with the same name."""
    if adds_up(answer, part):
        return Words(f"a hash of the {part} in which changes add up")
    bits = bits_that_tell(answer, part)
    if bits < SAFE_BITS:
        return Words(f"about {bits:.0f} bits that tell the {part}")
    return Words(f"{SAFE_BITS} bits or more that tell the {part}")


def bits_that_tell(answer: Callable[..., bytes], part: str) -> float:
    """Estimate how many bits of a name depend on one part, byte by byte: a digit in a text has fewer than a byte.

    Two names agree in a byte that has b bits once in 2**b times. Where two bytes always agree, one of them counts.
    """
    rng = random.Random(1)
    names = [write(answer, PARTS[part](rng.getrandbits(256))) for _ in range(NUM_NAMES)]
    pairs = math.comb(NUM_NAMES, 2)
    columns = map(Counter, set(itertools.zip_longest(*names)))
    equal = [sum(math.comb(times, 2) for times in column.values()) for column in columns]
    return sum(math.log2(pairs / max(1, each)) for each in equal)


def adds_up(answer: Callable[..., bytes], part: str) -> bool:
    """Say whether a name is a hash in which what one change does is the same whatever else is changed.

    That is so for sums and polynomials, in whole numbers, and for the lowest bit of many a product, as in FNV. Such
    changes can be chosen so that they cancel out. A name that is no shorter than the contents is no hash.
    """
    rng, length = random.Random(2), 600
    squares = []  # names without a change, with either of two, with both
    for _ in range(40):
        bits = rng.getrandbits(length)
        one, other = (1 << place for place in rng.sample(range(length), 2))
        changes = (0, one, other, one | other)
        squares.append([write(answer, LONG[part](_letters(bits ^ change, length))) for change in changes])
    names = [name for square in squares for name in square]
    front, back = _equal_bytes(names), _equal_bytes([name[::-1] for name in names])
    for read in (_from_bytes("big"), _from_bytes("little"), _from_digits(16), _from_digits(10)):
        numbers = [[read(name[front : len(name) - back]) for name in square] for square in squares]
        if None in itertools.chain(*numbers) or max(itertools.chain(*numbers)).bit_length() >= length:
            continue
        often, mixed = -1, 0  # bits that vary in every quarter of the squares; those in which changes mix
        for quarter in range(4):
            varying = 0
            for none, first, second, both in numbers[quarter::4]:
                varying |= (none ^ first) | (none ^ second)
                mixed |= none ^ first ^ second ^ both
            often &= varying
        # Below a modulus, a sum's changes miss each other by nothing or by the modulus.
        misses = [none - first - second + both for none, first, second, both in numbers]
        if often & ~mixed or max(map(abs, misses)) <= math.gcd(*misses):
            return True
    return False


def _letters(bits: int, number: int) -> str:
    return f"{bits:0{number}b}".replace("0", "p").replace("1", "q")


def _equal_bytes(names: Sequence[bytes]) -> int:
    """Count the bytes with which all of some names begin."""
    columns = enumerate(zip(*names, strict=False))
    return next((place for place, column in columns if len(set(column)) > 1), min(map(len, names)))


def _from_bytes(order: Literal["big", "little"]) -> Callable[[bytes], int]:
    return lambda name: int.from_bytes(name, order)


def _from_digits(base: int) -> Callable[[bytes], int | None]:
    def read(name: bytes) -> int | None:
        try:
            return int(name, base)
        except ValueError:
            return None

    return read


def forged(answer: Callable[..., bytes]) -> tuple[Block, Block] | None:
    """Find two blocks with one name if names are a linear checksum, as CRC-32 is, of any part.

    There changes together do what each does, added up. Of more changes than a name has bits, some must cancel out;
    elimination finds which, and a second look makes sure.
    """
    for make in LONG.values():
        size = len(write(answer, make("p")))
        if size > 64:
            continue
        number = 8 * size + 1
        zero = make(_letters(0, number))
        before = write(answer, zero)
        effects = [_effect(before, write(answer, make(_letters(1 << place, number)))) for place in range(number)]
        for stop in (number // 4, number // 2, number):
            together = write(answer, make(_letters((1 << stop) - 1, number)))
            if _effect(before, together) != _xor(effects[:stop]):
                break
        else:
            changes = _that_cancel(effects)
            block = make(_letters(changes, number))
            if changes and write(answer, block) == before:
                return zero, block
    return None


def _effect(before: bytes, after: bytes) -> int:
    """Say which bits of a name have changed, as a number."""
    return int.from_bytes(before, "big") ^ int.from_bytes(after, "big")


def _xor(numbers: Iterable[int]) -> int:
    return functools.reduce(operator.xor, numbers, 0)


def _that_cancel(effects: Sequence[int]) -> int:
    """Find a set of effects that cancel out, by elimination: the bits of a number say which; 0 if there is none."""
    rows: dict[int, tuple[int, int]] = {}  # by their highest bit: effects that were added up, and which
    for index, effect in enumerate(effects):
        changes = 1 << index
        while effect and effect.bit_length() in rows:
            other, others = rows[effect.bit_length()]
            effect, changes = effect ^ other, changes ^ others
        if not effect:
            return changes
        rows[effect.bit_length()] = (effect, changes)
    return 0
