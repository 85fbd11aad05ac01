"""Guesses: what a reader expected, compared with what came out, in the words of the quantity.

The built book compares in JavaScript (``book/_static/guesses.js``), in the same words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from html import escape
from numbers import Integral, Real
from typing import Any
from urllib.parse import quote

from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.sentence import Sentence

ANSWER = "application/vnd.pagedattn-lab.answer+json"
ON_WHITE = "background:#fff;"
KINDS = ("points", "count", "factor", "label")
LARGEST_COUNT = 100
OUT_OF_RANGE = 10**15
Evidence = str | list[str] | Sentence | Picture
NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")

MARKUP = re.compile(r"[\\`*_<>&$~|\[\]]")


def rounded(value: float, digits: int) -> float:
    """Round to some significant digits, halves away from zero: as JavaScript does, and as one learns at school.

    Example:
        >>> rounded(1.125, 3)
        1.13
    """
    return float(Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(Decimal(value)))


def shown(value: float) -> str:
    """Write a number for a sentence: whole ones in full, others to four significant digits.

    Example:
        >>> shown(23040.0), shown(19.3220338)
        ('23,040', '19.32')
    """
    if value == int(value):
        return f"{int(value):,}"
    return f"{Decimal(str(rounded(value, 4))):,f}".removesuffix(".0")


def _unwrapped(value: Any) -> Any:
    """Return a number or text of numpy's or torch's, a 0-d array included, as one of Python's own."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _written(guess: object) -> str:
    """Write a guess for an error, a whole number that is out of range in short: Python refuses to write the longest."""
    if isinstance(guess, int) and abs(guess) >= OUT_OF_RANGE:
        return f"{Decimal(guess).normalize():.3g}"
    return str(guess).strip()


def _as_float(guess: object) -> float | None:
    """Return a number of any type as a float, infinite if it is too large for one; None for what is no number."""
    if isinstance(guess, bool) or not isinstance(guess, Real | Decimal):
        return None
    try:
        return float(guess)
    except OverflowError:
        return math.inf
    except ValueError:  # Decimal has a NaN that refuses
        return None


def _kind(outcome: float | str, unit: str) -> str:
    if isinstance(outcome, str):
        return "label"
    if unit.startswith("%"):
        return "points"
    return "count" if isinstance(outcome, Integral) and abs(outcome) <= LARGEST_COUNT else "factor"


class Quantity:
    """An outcome of some kind, with which guesses are compared.

    Args:
        outcome: the answer: a number, or a text.
        unit: what is counted or measured, as it follows the number, or stands before that of a label. One that begins
            with ``%`` makes a share.
        kind: how a guess is compared. ``"points"``: by the difference, in percentage points. ``"count"``: by the
            difference. ``"factor"``: by the ratio, or in per cent if that is below two. ``"label"``: the same or not,
            as for block numbers and words. If it is left out: points for a unit in per cent, a label for a text,
            a count for a whole number up to 100, a factor for every other number.

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> Quantity(97.2, "% of the memory").compare("97 %")
        'You guessed 97 %; the answer is **97.2 % of the memory**: within a point.'
        >>> Quantity(9, "blocks").compare(8)
        'You guessed 8; the answer is **9 blocks**: 1 too few.'
        >>> Quantity(9, "block", kind="label").compare(8)
        'You guessed 8; the answer is **block 9**: not the same.'
    """

    def __init__(self, outcome: float | str, unit: str = "", kind: str | None = None) -> None:
        outcome = _unwrapped(outcome)
        self.kind = _kind(outcome, unit) if kind is None else kind
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r} of quantity: use one of {', '.join(KINDS)}")
        if not isinstance(outcome, (str, Integral)):
            outcome = rounded(float(outcome), 4)  # what is shown is what is compared
        self.outcome = outcome if isinstance(outcome, str) else float(outcome)
        self.unit = unit

    @property
    def answer(self) -> str:
        """The outcome in bold, with its unit."""
        number = self.outcome if isinstance(self.outcome, str) else shown(self.outcome)
        words = [self.unit, number] if self.kind == "label" else [number, self.unit]
        return f"**{' '.join(filter(None, words))}**"

    def as_json(self) -> dict[str, Any]:
        """Everything that the book needs to compare a guess by itself."""
        whole = isinstance(self.outcome, float) and self.outcome.is_integer()
        return {"kind": self.kind, "outcome": int(self.outcome) if whole else self.outcome, "unit": self.unit}

    def read(self, guess: object) -> float | str:
        """Read a guess: a number, or a text such as ``"50"``, ``"50 %"`` or ``"1,024"``; for a word, a text.

        A number may be of Python's, numpy's or torch's types, a 0-d array or tensor included.

        Raises:
            ValueError: the guess cannot be read as such, or is out of range.
        """
        guess = _unwrapped(guess)
        text = _written(guess)
        if isinstance(self.outcome, str):
            if not isinstance(guess, str) or not text:
                raise ValueError(f"cannot read the guess “{text}”: write a word in quotes")
            return text
        number = _as_float(guess)
        if number is None or math.isnan(number):
            digits = text.removesuffix("%").rstrip(" ") if self.kind == "points" else text
            if not isinstance(guess, str) or not NUMBER.fullmatch(digits):
                example = "50 or 50 %" if self.kind == "points" else "50 or 1,024"
                raise ValueError(f"cannot read the guess “{text}”: write a number alone, such as {example}")
            number = float(digits.replace(",", ""))
        if number and not 1e-6 <= abs(number) < OUT_OF_RANGE:
            raise ValueError(f"the guess “{text}” is out of range: write 0, or a number from 0.000001 to 10^15 in size")
        return number

    def compare(self, guess: object) -> str:
        """Say in a sentence of Markdown how a guess compares with the outcome.

        Raises:
            ValueError: the guess cannot be read (see :meth:`read`).
        """
        value = self.read(guess)
        if isinstance(value, str) or isinstance(self.outcome, str):
            said, same = f"“{value}”", _plain(str(value)) == _plain(str(self.outcome))
        else:
            said = shown(value) + (" %" if self.kind == "points" else "")
            same = shown(value) == shown(self.outcome)
        if same:
            return f"You guessed {said}, and that is right: the answer is {self.answer}."
        return f"You guessed {said}; the answer is {self.answer}{self._distance(value)}."

    def _distance(self, value: float | str) -> str:
        """How far a guess is off, after a colon; empty where the kind has no word for it."""
        if self.kind == "label" or isinstance(value, str) or isinstance(self.outcome, str):
            return ": not the same"
        off, high = abs(value - self.outcome), value > self.outcome
        if self.kind == "points":
            points = float(Decimal(off).quantize(Decimal("0.1"), ROUND_HALF_UP))
            return ": within a point" if points <= 1 else f": {shown(points)} points too {'high' if high else 'low'}"
        if self.kind == "count":
            return f": {shown(off)} too {'many' if high else 'few'}"
        if value * self.outcome <= 0:
            return ""
        percent, ratio = rounded(100 * off / abs(self.outcome), 2), value / self.outcome
        if percent <= 1:
            return ": within 1 %"
        if 0.5 < ratio < 2:
            return f": {shown(percent)} % too {'high' if high else 'low'}"
        if ratio > 1:
            return f": your guess is {shown(rounded(ratio, 2))} times that"
        return f": {shown(rounded(self.outcome / value, 2))} times your guess"


def _plain(word: str) -> str:
    return word.strip(" .").lower()


def _markdown(evidence: Evidence) -> str:
    """Write what shows an answer as Markdown.

    A picture becomes an image that holds its data, for HTML in Markdown keeps no SVG where a notebook is not trusted.
    """
    if isinstance(evidence, Picture):
        svg = evidence.svg.replace('style="', f'style="{ON_WHITE}', 1)  # an image cannot follow a dark theme
        data = quote(svg, safe=" !$()*,-./:;=?@_~")
        return f'<img class="pa-shown" alt="{escape(evidence.alt)}" src="data:image/svg+xml,{data}">'
    return "```text\n" + "\n".join(evidence) + "\n```" if isinstance(evidence, list) else str(evidence)


def _text(evidence: Evidence) -> str:
    return "\n".join(evidence) if isinstance(evidence, list) else str(evidence)


@dataclass(frozen=True)
class Answer:
    """An answer as a notebook shows it: folded, or beside the reader's guess."""

    quantity: Quantity
    guess: object = None
    shown_by: Evidence | None = None

    @property
    def sentence(self) -> str:
        """The answer alone, or the guess compared with it."""
        if self.guess is None:
            return f"The answer is {self.quantity.answer}."
        return self.quantity.compare(self.guess)

    def __repr__(self) -> str:
        return self.sentence if self.shown_by is None else f"{self.sentence}\n\n{_text(self.shown_by)}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        before, answer, after = self.sentence.rpartition(self.quantity.answer)
        text = MARKUP.sub(r"\\\g<0>", before) + answer + after  # a word may be 2**10, as the reader wrote it
        if self.shown_by is not None:
            text += f"\n\n{_markdown(self.shown_by)}"
        if self.guess is None:
            text = f"<details><summary>Show the answer</summary>\n\n{text}\n\n</details>"
        return {"text/markdown": text, "text/plain": repr(self), ANSWER: self.quantity.as_json()}


def reconcile(
    guess: object,
    outcome: float | str,
    unit: str = "",
    *,
    kind: str | None = None,
    shown_by: Evidence | None = None,
) -> Answer:
    """Compare a guess with the outcome; without a guess, show the outcome folded.

    Args:
        guess: the reader's guess, as :meth:`Quantity.read` takes it, or ``None``.
        outcome: the answer.
        unit: what is counted or measured (see :class:`Quantity`).
        kind: how they are compared, where unit and outcome do not tell (see :class:`Quantity`).
        shown_by: what shows the answer: a picture, Markdown, or a list of lines as they would be printed. It is folded
            and opened with the answer.

    Raises:
        ValueError: the guess cannot be read, or there is no such kind.

    Example:
        >>> reconcile(None, 23040, "bytes")
        The answer is **23,040 bytes**.
        >>> reconcile("46,080", 23040, "bytes")
        You guessed 46,080; the answer is **23,040 bytes**: your guess is 2 times that.
        >>> reconcile(23000, 23040, "bytes")
        You guessed 23,000; the answer is **23,040 bytes**: within 1 %.
        >>> reconcile("three", 23040, "bytes")
        Traceback (most recent call last):
        ValueError: cannot read the guess “three”: write a number alone, such as 50 or 1,024
    """
    answer = Answer(Quantity(outcome, unit, kind), guess, shown_by)
    if guess is not None:
        answer.quantity.read(guess)  # now, and not when it is displayed, where an error would be swallowed
    return answer
