"""Exercise 3 of chapter 06, "One block, one name": every form that can be read back passes, every other is caught."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from pagedattn_lab.exercises import ch06, ch06_hashes, ch06_names

EXERCISE = replace(ch06.block_bytes, number="")  # nothing is recorded
COUNT = itertools.count()
# Answers as parent, tokens and salt to bytes.


def text(tokens: list[int], mark: str = ",") -> bytes:
    return mark.join(map(str, tokens)).encode()


def fixed(tokens: list[int], width: int, order: str = "little") -> bytes:
    return b"".join(token.to_bytes(width, order) for token in tokens)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def flag(salt: str | None) -> bytes:
    return b"" if salt is None else b"s" + salt.encode()


def escaped(data: bytes) -> bytes:
    return data.replace(b"\\", b"\\\\").replace(b"|", b"\\p")


RIGHT: dict[str, Callable[..., bytes]] = {
    "repr": lambda p, t, s: repr((p, tuple(t), s)).encode(),
    "repr, hashed": lambda p, t, s: sha(repr((s, p, t)).encode()),
    "json": lambda p, t, s: json.dumps([p.hex(), t, s]).encode(),
    "pickle": lambda p, t, s: pickle.dumps((p, tuple(t), s)),
    "lengths": lambda p, t, s: sized(p) + sized(text(t)) + (b"" if s is None else sized(s.encode())),
    "netstrings": lambda p, t, s: b"".join(b"%d:%b" % (len(each), each) for each in (p, text(t), flag(s))),
    "8-byte tokens after the parent's length": lambda p, t, s: (
        struct.pack(f"<QQ{len(t)}Q", len(p), len(t), *t) + p + flag(s)
    ),
    "4-byte tokens, which refuse a larger one": lambda p, t, s: struct.pack(f"<{len(t)}I", *t).join(
        [sized(p) + struct.pack("<Q", len(t)), flag(s)]
    ),
    "3-byte tokens between digests": lambda p, t, s: sha(p) + fixed(t, 3) + sha(flag(s)),
    "digests of each part": lambda p, t, s: sha(p) + sha(text(t)) + sha(flag(s)),
    "digest of digests": lambda p, t, s: sha(sha(p) + sha(repr(t).encode()) + sha(repr(s).encode())),
    "digests first, then tokens": lambda p, t, s: sha(p) + sha(flag(s)) + fixed(t, 8),
    "digests around text": lambda p, t, s: sha(p) + text(t) + sha(flag(s)),
    "labels and repr": lambda p, t, s: b"parent=%b&tokens=%b&salt=%b" % (p, text(t), repr(s).encode()),
    "escaped marks": lambda p, t, s: b"|".join([escaped(p), text(t), escaped(flag(s))]),
    "hex and a mark, the salt last": lambda p, t, s: b"|".join([p.hex().encode(), text(t), flag(s)]),
    "hex and a mark, the salt first": lambda p, t, s: b"|".join([flag(s), p.hex().encode(), text(t)]),
    "a mark that no text holds": lambda p, t, s: b"\xff".join([p, text(t), flag(s)]),
    "the parent last": lambda p, t, s: b"%b|%d|" % (text(t), -1 if s is None else len(s.encode())) + flag(s) + p,
    "salt before the tokens, parent last": lambda p, t, s: sized(flag(s)) + sized(text(t)) + p,
}


def crc64(data: bytes) -> bytes:
    """A longer checksum (ECMA-182), by the book."""
    value = 2**64 - 1
    for byte in data:
        value ^= byte << 56
        for _ in range(8):
            value = value << 1 ^ (0x142F0E1EBA9EA3693 if value >> 63 else 0)
    return value.to_bytes(8, "big")


CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "crc32 in hex": lambda data: f"{zlib.crc32(data):08x}".encode(),
    "crc32 in digits": lambda data: str(zlib.crc32(data)).encode(),
    "adler32": lambda data: zlib.adler32(data).to_bytes(4, "big"),
    "crc64": crc64,
    "crc32 twice": lambda data: zlib.crc32(data).to_bytes(4, "big") + zlib.crc32(data[::-1]).to_bytes(4, "big"),
    "four checksums": lambda data: b"".join(zlib.crc32(data, start).to_bytes(4, "big") for start in range(4)),
    "four bytes of a good hash": lambda data: sha(data)[:4],
}

WRONG: dict[str, Callable[..., bytes]] = {
    **{f"joined by {mark!r}": ch06_names._joined(mark) for mark in "\t/#_~&=.\1\n-;: @xN1+%$"},
    **{
        f"joined by {mark!r}": ch06_names._joined(mark)
        for mark in ("--", "::", "||", "\0\0", "\r\n", "', '", " | ", "é", "")
    },
    **{
        f"{width}-byte tokens, {order}, {where}": lambda p, t, s, w=width, o=order, v=where: (
            {"after parent": p, "after salt": flag(s) + b"|", "after digest": sha(p)}[v]
            + fixed(t, w, o)
            + {"after parent": flag(s), "after salt": p, "after digest": flag(s)}[v]
        )
        for width in (3, 4, 8)
        for order in ("little", "big")
        for where in ("after parent", "after salt", "after digest")
    },
    **{f"modulo 2**{bits}": lambda p, t, s, b=bits: repr((p, [x % 2**b for x in t], s)).encode() for bits in (20, 24)},
    **{
        f"masked to {bits} bits": lambda p, t, s, b=bits: repr((p, [x % 2**b for x in t], s)).encode()
        for bits in (32, 63)
    },
    "labels": lambda p, t, s: b"parent=%b&tokens=%b&salt=%b" % (p, text(t), flag(s)),
    "labels, salt first": lambda p, t, s: b"salt=" + flag(s) + b" parent=" + p + b" tokens=" + text(t),
    "salt first, then the parent": lambda p, t, s: b"/".join([flag(s), p, text(t, ".")]),
    "tokens first": lambda p, t, s: b"/".join([text(t), flag(s), p]),
    "tokens first, parent before salt": lambda p, t, s: b"/".join([text(t), p, flag(s)]),
    "salt last, same mark as tokens": lambda p, t, s: sha(p) + text(t) + (b"" if s is None else b"," + s.encode()),
    "salt after a digest": lambda p, t, s: b",".join([sha(p), text(t), flag(s)[1:]]),
    "no salt has its own word": lambda p, t, s: b"|".join(
        [sha(p), text(t), (s if s is not None else "NO SALT").encode()]
    ),
    "no salt has its own word, in front": lambda p, t, s: b"%b|%b" % ((s or "-").encode(), sized(p) + text(t)),
    "the salt's length, not the parent's": lambda p, t, s: p + sized(flag(s)) + fixed(t, 8),
    "the number of tokens, and no other": lambda p, t, s: p + sized(text(t)) + flag(s),
    "the number of tokens before a digest": lambda p, t, s: p + fixed([len(t), *t], 8) + sha(flag(s)),
    "the parent's length, not the tokens'": lambda p, t, s: (
        sized(p) + fixed(t, 8) + (b"N" if s is None else b"S" + s.encode())
    ),
    "keyed by the salt": lambda p, t, s: hmac.digest(flag(s), repr((p, t)).encode(), "sha256"),
    "hashed with a salt only": lambda p, t, s: p + b";" + text(t, ";") if s is None else sha(repr((p, t, s)).encode()),
    "hashed without a salt only": lambda p, t, s: (
        sha(repr((p, t)).encode()) if s is None else p + b"~" + text(t, "~") + sha(s.encode())
    ),
    "a length without an end": lambda p, t, s: b"%d%b%b" % (len(p), p, text(t)) + sha(flag(s)),
    "parent cut short": lambda p, t, s: repr((p[:3], t, s)).encode(),
    "parent cut to 16 bytes": lambda p, t, s: repr((p[-16:], t, s)).encode(),
    "parent padded": lambda p, t, s: p.ljust(400, b"\0") + repr((t, s)).encode(),
    "parent as a number": lambda p, t, s: repr((int.from_bytes(p, "big"), t, s)).encode(),
    "parent as text": lambda p, t, s: repr((p.decode(errors="replace"), t, s)).encode(),
    "small letters": lambda p, t, s: repr((p, t, s and s.lower())).encode(),
    "ASCII only": lambda p, t, s: repr((p, t, s and s.encode("ascii", "ignore"))).encode(),
    "stripped": lambda p, t, s: repr((p, t, s and s.strip())).encode(),
    "salt cut short": lambda p, t, s: repr((p, t, s and s[:16])).encode(),
    "an empty salt is none": lambda p, t, s: repr((p, t, s or None)).encode(),
    "16 tokens only": lambda p, t, s: repr((p, t[:16], s)).encode(),
    "each token once": lambda p, t, s: repr((p, sorted(set(t)), s)).encode(),
    "hex digits run together": lambda p, t, s: repr((p, "".join(f"{x:x}" for x in t), s)).encode(),
    "too few digits": lambda p, t, s: repr((p, "".join(f"{x:05d}" for x in t), s)).encode(),
    "as few bytes as fit": lambda p, t, s: repr(
        (p, b"".join(x.to_bytes(max(1, -(-x.bit_length() // 8)), "big") for x in t), s)
    ).encode(),
    "one big number": lambda p, t, s: repr((p, sum(x << 32 * i for i, x in enumerate(t)), s)).encode(),
    "Python's hash": lambda p, t, s: hash((p, tuple(t), s)).to_bytes(8, "big", signed=True),
    "no salt means no mark": lambda p, t, s: b"|".join([p, text(t), *([] if s is None else [s.encode()])]),
    **{
        f"{name} of everything": lambda p, t, s, f=checksum: f(repr((p, t, s)).encode())
        for name, checksum in CHECKSUMS.items()
    },
    "a checksum of the tokens only": lambda p, t, s: repr((p, zlib.crc32(repr(t).encode()), s)).encode(),
    "a checksum of the salt only": lambda p, t, s: repr((p, t, s and zlib.crc32(s.encode()))).encode(),
}
SHORT = (
    "crc32 in hex of everything",
    "crc32 in digits of everything",
    "four bytes of a good hash of everything",
    "a checksum of the tokens only",
    "a checksum of the salt only",
)
"""Whether chance shows two blocks in the time that there is depends on the machine; see the test below."""


@pytest.mark.parametrize("kind", RIGHT)
def test_every_unambiguous_name_is_accepted(kind: str) -> None:
    """Catches a check that takes a right way to write a block for a wrong one, a hash among them."""
    verdict = EXERCISE.grade(RIGHT[kind])
    assert verdict.passed, verdict


@pytest.mark.parametrize("kind", [kind for kind in WRONG if kind not in SHORT])
def test_ambiguous_names_are_rejected_with_two_blocks(kind: str) -> None:
    """Catches a check that knows a few separators only, or a hint that does not show which blocks are confused."""
    verdict = EXERCISE.grade(WRONG[kind])
    assert verdict.passed is False
    assert re.search(
        r"call +block_bytes\(b.*\) and block_bytes\(b.*\)\n +expected +different bytes", verdict.message
    ), verdict
    assert re.search(r"got +the same bytes", verdict.message), verdict


@pytest.mark.parametrize("kind", SHORT)
def test_short_names_are_rejected_on_a_slow_machine_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checksum that passes where there is no time to find two equal ones."""
    monkeypatch.setattr(ch06_names, "TRIES", 10)
    assert re.search(r"got +(about \d+ bits that tell the|a hash of the) \w+", EXERCISE.grade(WRONG[kind]).message)


def fnv(data: bytes, prime: int, value: int, bits: int) -> bytes:
    """FNV-1a, by the book."""
    for byte in data:
        value = (value ^ byte) * prime % 2**bits
    return value.to_bytes(bits // 8, "big")


def polynomial(data: bytes, modulus: int) -> int:
    value = 7
    for byte in data:
        value = (value * 6364136223846793005 + byte) % modulus
    return value


SHORT_HASHES: dict[str, tuple[Callable[[bytes], bytes], int]] = {  # and about how many bits they have
    "5 bytes": (lambda data: sha(data)[:5], 40),
    "12 bytes": (lambda data: sha(data)[:12], 96),
    "16 hex digits": (lambda data: sha(data).hex()[:16].encode(), 64),
    "24 hex digits": (lambda data: sha(data).hex()[:24].encode(), 96),
    "8 bytes, twice": (lambda data: sha(data)[:8] * 2, 64),
    "Python's hash, in digits": (lambda data: str(hash(data)).encode(), 63),
    "64 bits in digits, with a word in front": (lambda data: b"block %20d" % int.from_bytes(sha(data)[:8], "big"), 63),
}
LONG_HASHES: dict[str, Callable[[bytes], bytes]] = {
    "13 bytes": lambda data: sha(data)[:13],
    "26 hex digits": lambda data: sha(data).hex()[:26].encode(),
    "32 digits": lambda data: b"%032d" % (int.from_bytes(sha(data), "big") % 10**32),
    "BLAKE2b in 16 bytes": lambda data: hashlib.blake2b(data, digest_size=16).digest(),
}
SUMS: dict[str, Callable[[bytes], bytes]] = {
    "FNV in 64 bits, as text": lambda data: fnv(data, 0x100000001B3, 0xCBF29CE484222325, 64).hex().encode(),
    "FNV in 128 bits": lambda data: fnv(data, 2**88 + 0x13B, 0x6C62272E07BB014262B821756295C58D, 128),
    "a polynomial in 128 bits": lambda data: polynomial(data, 2**128).to_bytes(16, "big"),
    "a polynomial in 127 bits": lambda data: polynomial(data, 2**127 - 1).to_bytes(16, "little"),
    "a polynomial in digits": lambda data: str(polynomial(data, 2**127 - 1)).encode(),
}


@pytest.mark.parametrize("kind", SHORT_HASHES)
def test_a_short_hash_is_rejected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that believes a hash of few bits, though digits make it long, or calls it linear."""
    monkeypatch.setattr(ch06_names, "TRIES", 1_000)
    answer, bits = SHORT_HASHES[kind]
    message = EXERCISE.grade(lambda p, t, s: answer(repr((p, t, s)).encode())).message
    told = re.search(r"got +about (\d+) bits that tell the parent", message)
    assert told and abs(int(told[1]) - bits) <= 1 and "SHA-256" in message and "linear" not in message, message


@pytest.mark.parametrize("kind", LONG_HASHES)
def test_a_hash_of_a_hundred_bits_is_accepted(kind: str) -> None:
    """Catches an estimate that finds too few bits, and a good hash in which changes seem to add up."""
    verdict = EXERCISE.grade(lambda p, t, s: LONG_HASHES[kind](repr((p, t, s)).encode()))
    assert verdict.passed, verdict


@pytest.mark.parametrize("kind", SUMS)
def test_a_hash_in_which_changes_add_up_is_rejected(kind: str) -> None:
    """Catches a check that believes a polynomial or a product for its many bits."""
    message = EXERCISE.grade(lambda p, t, s: SUMS[kind](repr((p, t, s)).encode())).message
    assert "got       a hash of the parent in which changes add up" in message and "SHA-256" in message, message


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_truncated_hash_is_not_called_linear(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches short names whose few changes cancel out by chance, taken for a checksum that can be forged."""
    monkeypatch.setattr(ch06_names, "TRIES", 10_000)
    for start in range(10 if length == 1 else 1):
        answer = lambda p, t, s, a=start: sha(repr((p, t, s)).encode())[a : a + length]  # noqa: E731
        for case in ch06_names._search(answer):
            assert "linear" not in case.about and ch06_names._compare(answer, case.arguments) != ch06_names.DIFFERENT
        message = EXERCISE.grade(answer).message
        assert message.startswith("✗") and "linear" not in message and "You seem" not in message, message


def test_changes_that_cancel_out_by_chance_are_no_forgery() -> None:
    """Catches a hash of one byte that is called linear because one change in some leaves it as it was."""
    for key in range(60):
        answer = lambda p, t, s, k=key: sha(repr((k, p, t, s)).encode())[:1]  # noqa: E731
        assert ch06_hashes.forged(answer) is None, key


def test_the_hash_that_the_chapter_forges_is_told_so() -> None:
    """Catches a check that accepts CRC-32, or does not say what is wrong with it."""
    message = EXERCISE.grade(lambda p, t, s: zlib.crc32(repr((p, t, s)).encode()).to_bytes(4, "little")).message
    assert "linear" in message and "You seem to use a checksum that can be forged." in message


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (lambda p, t, s: repr((p, t, s)), "a text, and no bytes"),
        (lambda p, t, s: b"%d" % next(COUNT), "other bytes for one block each time"),
    ],
)
def test_what_is_no_name_at_all_is_said(answer: Callable[..., object], outcome: str) -> None:
    """Catches text that is compared as if it were bytes, and a name that changes from call to call."""
    assert f"got       {outcome}" in EXERCISE.grade(answer).message
