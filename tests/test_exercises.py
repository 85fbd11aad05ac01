"""Every exercise's check accepts its reference solution, and rejects each named wrong answer and the stub."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import pickle
import pkgutil
import re
import struct
from collections.abc import Callable

import pytest

from pagedattn_lab import exercises
from pagedattn_lab.exercises import Exercise, ch06

ALL = {
    f"{module.name}.{name}": exercise
    for module in pkgutil.iter_modules(exercises.__path__)
    for name, exercise in vars(importlib.import_module(f"pagedattn_lab.exercises.{module.name}")).items()
    if isinstance(exercise, Exercise)
}


@pytest.mark.parametrize("name", ALL)
def test_reference_passes_and_stub_is_not_attempted(name: str) -> None:
    """Catches a check that nobody can satisfy, or one that scolds a reader who has not begun."""

    def stub(*_: object, **__: object) -> None:
        raise NotImplementedError

    assert ALL[name].grade(ALL[name].reference).message == "Correct."
    verdict = ALL[name].grade(stub)
    assert verdict.passed is None and verdict.message.startswith("Not attempted")


@pytest.mark.parametrize(("name", "mistake"), [(name, wrong) for name in ALL for wrong in ALL[name].wrong])
def test_wrong_answers_are_rejected(name: str, mistake: str) -> None:
    """Catches a check too weak to see the named mistake, or one that gives no hint."""
    verdict = ALL[name].grade(ALL[name].wrong[mistake])
    assert verdict.passed is False
    assert len(verdict.message) > len("Not yet: ") + 10, f"the hint for {mistake!r} is too short"


def test_exercises_have_wrong_answers() -> None:
    """Catches an exercise whose check was never shown to reject anything, and an empty collection."""
    assert ALL
    for name, exercise in ALL.items():
        assert len(exercise.wrong) >= 3, name


# --- Chapter 06, "One block, one name": answers as parent, tokens and salt to bytes -----------------------------------


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


WRONG: dict[str, Callable[..., bytes]] = {
    **{f"joined by {mark!r}": ch06._joined(mark) for mark in "\t/#_~&=.\1\n-;: @xN1+%$"},
    **{
        f"joined by {mark!r}": ch06._joined(mark) for mark in ("--", "::", "||", "\0\0", "\r\n", "', '", " | ", "é", "")
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
}


@pytest.mark.parametrize("kind", RIGHT)
def test_every_unambiguous_name_is_accepted(kind: str) -> None:
    """Catches a check that takes a right way to write a block for a wrong one, a hash among them."""
    assert ch06.name.grade(RIGHT[kind]).message == "Correct."


@pytest.mark.parametrize("kind", WRONG)
def test_ambiguous_names_are_rejected_with_two_blocks(kind: str) -> None:
    """Catches a check that knows a few separators only, or a hint that does not show which blocks are confused."""
    verdict = ch06.name.grade(WRONG[kind])
    assert verdict.passed is False
    assert re.fullmatch(r"Not yet: \(b.*\) and \(b.*\) get the same bytes: .+", verdict.message), verdict.message
