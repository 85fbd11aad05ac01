"""A guess is compared in the words of its quantity, and an answer stands folded until the reader asks for it."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pagedattn_lab.exercises import reconcile
from pagedattn_lab.exercises.guesses import ANSWER, Answer, Quantity, shown
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.sentence import NUMBER, Sentence
from tests.helpers.chapters import CHAPTERS, REPO
from tools import notebooks

sys.path.insert(0, str(REPO / "book" / "_ext"))
import guess_boxes

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


@pytest.mark.parametrize(
    ("guess", "outcome", "unit", "ending"),
    [
        (97, 97.2, "%", "the answer is **97.2 %**: within a point."),
        (96.2, 97.2, "%", ": within a point."),
        (96.1, 97.2, "%", ": 1.1 points too low."),
        (50, 38.9, "% of the slots", "the answer is **38.9 % of the slots**: 11.1 points too high."),
        (38.9, 38.9, "%", "You guessed 38.9 %, and that is right: the answer is **38.9 %**."),
        (8, 9, "blocks", "You guessed 8; the answer is **9 blocks**: 1 too few."),
        (16, 0, "tokens", "the answer is **0 tokens**: 16 too many."),
        (2.5, 2, "blocks", ": 0.5 too many."),
        (46080, 23040, "bytes", "You guessed 46,080; the answer is **23,040 bytes**: your guess is 2 times that."),
        (23040, 46080, "bytes", "the answer is **46,080 bytes**: 2 times your guess."),
        (12, 46080, "bytes", ": 3,800 times your guess."),
        (45800, 46080, "bytes", ": within 1 %."),
        (30000, 46080, "bytes", ": 35 % too low."),
        (91000, 46080, "bytes", ": 97 % too high."),
        (0, 46080, "bytes", "You guessed 0; the answer is **46,080 bytes**."),
        (-5, 46080, "bytes", "You guessed -5; the answer is **46,080 bytes**."),
        (19.32, 19.3220338, "times", "and that is right: the answer is **19.32 times**."),
        ("Five.", "five", "", "You guessed “Five.”, and that is right: the answer is **five**."),
        ("nine", "five", "", "You guessed “nine”; the answer is **five**: not the same."),
    ],
)
def test_speaks_the_language_of_the_quantity(guess: Any, outcome: Any, unit: str, ending: str) -> None:
    """Catches a share compared by ratio, a count by factor, and a near miss that is called anything but near."""
    assert repr(reconcile(guess, outcome, unit)).endswith(ending)


@pytest.mark.parametrize("guess", [8, 10, 4.5, 90, "8"])
def test_labels_are_the_same_or_not(guess: Any) -> None:
    """Catches block 8 called a little less than block 9."""
    said = repr(reconcile(guess, 9, "block", kind="label"))
    assert said == f"You guessed {guess}; the answer is **block 9**: not the same."
    assert "right" in repr(reconcile(9, 9, "block", kind="label"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("50", 50), (" 50 ", 50), ("50 %", 50), ("50%", 50), ("1,024", 1024), ("1,234,567.5", 1234567.5), ("+.5", 0.5)],
)
def test_reads_texts(text: str, value: float) -> None:
    """Catches a reader who types a share as it is written, or copies a number with its commas, and gets an error."""
    assert Quantity(97.2, "%").read(text) == value


NUMBERS = [7, 7.25, Fraction(29, 4), Decimal("7.25"), np.float32(0.5), np.int64(3), np.array(7), np.array(7.25)]


@pytest.mark.parametrize("guess", [*NUMBERS, torch.tensor(7), torch.tensor(7.25)])
def test_reads_numbers_of_any_type(guess: Any) -> None:
    """Catches a guess that was computed, exactly or with numpy or torch, and is refused."""
    assert Quantity(97.2, "%").read(guess) == float(guess)
    assert repr(reconcile(guess, 3)) == repr(reconcile(float(guess), 3))


@pytest.mark.parametrize("outcome", [np.int64(9), np.array(9), torch.tensor(9)])
def test_an_outcome_is_a_count_in_any_type(outcome: Any) -> None:
    """Catches a count that is compared as a factor since it was counted with numpy or torch."""
    assert repr(reconcile(8, outcome, "blocks")) == "You guessed 8; the answer is **9 blocks**: 1 too few."


def test_reads_a_word_of_numpy() -> None:
    """Catches a text from an array that is taken for something else."""
    assert repr(reconcile(np.array("nine"), "five")) == "You guessed “nine”; the answer is **five**: not the same."


@pytest.mark.parametrize(
    ("guess", "outcome", "unit", "message"),
    [
        ("3.5 MB", 46080, "bytes", "cannot read the guess “3.5 MB”: write a number alone, such as 50 or 1,024"),
        ("50 %", 46080, "bytes", "cannot read the guess “50 %”: write a number alone, such as 50 or 1,024"),
        ("half", 50, "%", "cannot read the guess “half”: write a number alone, such as 50 or 50 %"),
        ("1,02", 50, "", "cannot read the guess “1,02”"),
        ("0,5", 50, "", "cannot read the guess “0,5”"),
        ("", 50, "", "cannot read the guess “”"),
        ("٣", 50, "", "cannot read the guess “٣”"),
        ("nan", 50, "", "cannot read the guess “nan”"),
        (math.nan, 50, "", "cannot read the guess “nan”"),
        (math.inf, 50, "", "the guess “inf” is out of range"),
        (True, 50, "", "cannot read the guess “True”"),
        (np.bool_(True), 50, "", "cannot read the guess “True”"),
        (np.array([50]), 50, "", "cannot read the guess “[50]”"),
        (Decimal("NaN"), 50, "", "cannot read the guess “NaN”"),
        (Decimal("sNaN"), 50, "", "cannot read the guess “sNaN”"),
        (Decimal("1e400"), 50, "", "the guess “1E+400” is out of range"),
        ([50], 50, "", "cannot read the guess “[50]”"),
        (1e300, 50, "", "the guess “1e+300” is out of range: write 0, or a number from 0.000001 to 10^15 in size"),
        ("0.0000001", 50, "", "the guess “0.0000001” is out of range"),
        (9, "nine", "", "cannot read the guess “9”: write a word in quotes"),
        ("  ", "nine", "", "cannot read the guess “”: write a word in quotes"),
    ],
)
def test_refuses_what_it_cannot_read(guess: Any, outcome: Any, unit: str, message: str) -> None:
    """Catches a guess that is misread, or fails with a message that names neither the guess nor the way out."""
    with pytest.raises(ValueError) as refused:
        reconcile(guess, outcome, unit)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("digits", [15, 400, 5000])  # Python makes no float of the second, and writes not the third
def test_refuses_a_huge_number_briefly(digits: int) -> None:
    """Catches a whole number of any length that raises anything but a sentence, or fills the screen."""
    message = r"the guess “-1e\+\d+” is out of range: write 0, or a number from 0.000001 to 10\^15 in size"
    with pytest.raises(ValueError, match=message):
        reconcile(-(10**digits), 50)
    with pytest.raises(ValueError, match="is out of range"):
        reconcile(Fraction(10**400 + 1, 3), 50)


def test_refuses_an_unknown_kind() -> None:
    """Catches a typing error in a chapter that silently falls back to another comparison."""
    with pytest.raises(ValueError, match="there is no kind 'lable' of quantity: use one of points, count, factor, lab"):
        reconcile(1, 2, kind="lable")


SIZES = st.one_of(
    st.integers(-(10**6), 10**12),
    st.integers(-20, 200),
    st.floats(1e-5, 1e14),
    st.floats(-200, 200).filter(lambda value: value == 0 or abs(value) > 1e-5),
)
KINDS = st.sampled_from([None, "factor", "count", "points"])
OUTCOMES = st.builds(Quantity, SIZES, st.sampled_from(["", "%", "blocks"]), KINDS)


@given(SIZES, OUTCOMES)
def test_no_guess_is_one_time_off(guess: float, quantity: Quantity) -> None:
    """Catches "1 times as small", "1 points", "0 % too low", and a number with an exponent."""
    said = quantity.compare(guess)
    distance = said.rpartition("**")[2]
    assert not re.search(r"(?<![\d.,])[01] (times|points?|%)(?! \*)", distance.replace("within 1 %", "")), said
    assert not re.search(r"\de[+-]|nan|inf", said)


@given(st.floats(1e-5, 1e14), st.floats(1e-5, 1e14))
@example(1e-05, 55495000000000.0)  # the one ratio lies on a tie, and its inverse's inverse beside it
def test_high_and_low_mirror_each_other(first: float, second: float) -> None:
    """Catches a comparison that is right for guesses on one side only."""
    swap = {"high": "low", "low": "high", "many": "few", "few": "many"}
    for kind in ("points", "count"):
        a, b = Quantity(first, kind=kind), Quantity(second, kind=kind)
        one, other = a.compare(b.outcome).rpartition("**")[2], b.compare(a.outcome).rpartition("**")[2]
        assert re.sub(r"\w+", lambda word: swap.get(word[0], word[0]), one) == other
    a, b = Quantity(first, kind="factor"), Quantity(second, kind="factor")
    one, other = a.compare(b.outcome).rpartition("**")[2], b.compare(a.outcome).rpartition("**")[2]
    if "times that" in one:
        assert other == one.replace("your guess is ", "").replace("times that", "times your guess")


@given(SIZES)
def test_reads_what_it_writes(value: float) -> None:
    """Catches thousands separators that only one of reading and writing knows."""
    quantity = Quantity(1.5)
    assert quantity.read(shown(value)) == pytest.approx(value, rel=5.1e-4)
    assert shown(quantity.read(shown(value))) == shown(value)


@pytest.mark.parametrize("guess", ["2**10", "**five**", "_five_", "<b>", "`5`", "$5$", "a\\b", "[5](b)"])
def test_a_word_is_no_markup(guess: str) -> None:
    """Catches a guess whose asterisks make half of the sentence bold, and one that becomes HTML."""
    answer = reconcile(guess, "five")
    shown_as = MarkdownIt().renderInline(answer._repr_mimebundle_()["text/markdown"])
    assert html.unescape(shown_as) == f"You guessed “{guess}”; the answer is <strong>five</strong>: not the same."
    assert f"You guessed “{guess}”; the answer is **five**: not the same." == repr(answer)


PICTURE = Picture('<svg xmlns="http://www.w3.org/2000/svg"><text>50 % &amp; "more"</text></svg>', "a bar")


@pytest.mark.parametrize(
    ("evidence", "text", "markdown"),
    [
        (PICTURE, "a bar", '<img class="pa-shown" alt="a bar" src="data:image/svg+xml,%3Csvg '),
        (["a  1", "b  2"], "a  1\nb  2", "```text\na  1\nb  2\n```"),
        ("* one", "* one", "* one"),
        (Sentence("One."), "One.", "One."),
    ],
)
def test_no_guess_no_remark_and_folded(evidence: Any, text: str, markdown: str) -> None:
    """Catches an answer, or what shows it, that stands open before the reader asks, and a remark about no guess."""
    data = reconcile(None, 9, "blocks", shown_by=evidence)._repr_mimebundle_()
    start, end = "<details><summary>Show the answer</summary>\n\nThe answer is **9 blocks**.\n\n", "\n\n</details>"
    assert data["text/markdown"].startswith(start + markdown) and data["text/markdown"].endswith(end)
    assert data["text/plain"] == f"The answer is **9 blocks**.\n\n{text}"
    assert data[ANSWER] == {"kind": "count", "outcome": 9, "unit": "blocks"}


def test_a_guess_opens_the_answer() -> None:
    """Catches a reader who has guessed and must still click."""
    data = reconcile(8, 9, "blocks", shown_by="Why.")._repr_mimebundle_()
    assert data["text/markdown"] == "You guessed 8; the answer is **9 blocks**: 1 too few.\n\nWhy."


def test_a_picture_survives_as_an_image() -> None:
    """Catches a character of SVG that ends the attribute, or reads as an entity, before the image is drawn."""
    markdown = reconcile(None, 9, shown_by=PICTURE)._repr_mimebundle_()["text/markdown"]
    data = re.search(r'src="data:image/svg\+xml,([^"]*)"', markdown)[1]
    assert not set("&<>'#\n*`") & set(data)


def test_costs_no_heavy_import() -> None:
    """Catches a comparison that loads the player, or torch."""
    code = "import sys, pagedattn_lab.exercises.guesses; print({'torch', 'anywidget', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


# --- the chapters -----------------------------------------------------------------------------------------------------

FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
COINCIDENCES = {
    "02 lesson",
    "04 more-faults-text",
    "05 c017",
}  # the number is there, and is another one


def answer_of(cell: nbformat.NotebookNode) -> dict[str, Any]:
    [data] = [output.data for output in cell.outputs if ANSWER in output.get("data", {})]
    return data


def asked(cells: list[nbformat.NotebookNode]) -> list[tuple[str, int, int]]:
    """Return each guess of a chapter with the number of its cell, and of the cell with its answer."""
    answers = [(name, number) for name, number, _ in guess_boxes.answers(cells)]
    found = []
    for number, cell in enumerate(cells):
        for name, _ in guess_boxes.guesses(cell.source) if cell.cell_type == "code" else []:
            [where] = [at for other, at in answers if other == name]
            found.append((name, number, where))
    assert len(found) == len(answers) == "".join(cell.source for cell in cells).count("reconcile(guess_")
    return found


def standing_open(cell: nbformat.NotebookNode) -> str:
    """Return what a reader sees of a cell who has opened nothing."""
    if cell.cell_type == "markdown":
        return FOLD.sub("", cell.source)
    others = [output for output in cell.outputs if ANSWER not in output.get("data", {})]
    outputs = [output.get("text") or output.data["text/plain"] for output in others]
    return "\n".join(outputs)


def mentions(text: str, outcome: float | str) -> bool:
    if isinstance(outcome, str):
        return outcome in re.findall(r"\w+", text)
    return shown(float(outcome)) in re.findall(rf"(?<![\w.])(?:{NUMBER})", text)


@each_chapter
def test_answers_are_folded(path: Path) -> None:
    """Catches an answer that stands open under its question when a reader opens the chapter."""
    cells = notebooks.read(path).cells
    for name, _, where in asked(cells):
        data = answer_of(cells[where])
        assert data["text/markdown"].startswith("<details><summary>"), name
        assert FOLD.sub("", data["text/markdown"]) == "", name


@each_chapter
def test_nothing_else_gives_the_answer_away(path: Path) -> None:
    """Catches an output or a sentence that states an answer between its question and the first paragraph after it."""
    cells = notebooks.read(path).cells
    for name, question, where in asked(cells):
        after = next(number for number in range(where + 1, len(cells)) if cells[number].cell_type == "markdown")
        outcome = answer_of(cells[where])[ANSWER]["outcome"]
        said = {cell.id: standing_open(cell) for cell in cells[question + 1 : where + 1]}
        said[cells[after].id] = standing_open(cells[after]).strip().split("\n\n")[0]
        telling = {f"{path.stem[:2]} {where}" for where, text in said.items() if mentions(text, outcome)}
        assert telling - COINCIDENCES == set(), name


def test_no_answer_was_given_before() -> None:
    """Catches a question for a number that the book has printed, stated or revealed before it is asked.

    Only for numbers of four digits that count, for a shorter one is often another.
    """
    given: set[str] = set()
    for path in CHAPTERS:
        cells = notebooks.read(path).cells
        outcomes = {question: [] for _, question, _ in asked(cells)}
        for name, question, where in asked(cells):
            outcomes[question].append((name, answer_of(cells[where])[ANSWER]["outcome"]))
        for number, cell in enumerate(cells):
            for name, outcome in outcomes.get(number, []):
                text = shown(float(outcome)) if not isinstance(outcome, str) else ""
                digits = re.sub(r"\D", "", text).strip("0")
                assert len(digits) < 4 or text not in given, f"{path.stem}: {name} asks for {text}"
            outputs = [each.get("text") or each.data["text/plain"] for each in cell.get("outputs", [])]
            given |= set(re.findall(rf"(?<![\w.])(?:{NUMBER})", "\n".join([cell.source, *outputs])))


@each_chapter
def test_answers_are_stored_as_python_says_them(path: Path) -> None:
    """Catches a kind or outcome, which the book compares with, that is not the one in the answer, or cannot be hit."""
    for name, _, where in asked(cells := notebooks.read(path).cells):
        data = answer_of(cells[where])
        stored = data[ANSWER]
        quantity = Quantity(stored["outcome"], stored["unit"], stored["kind"])
        assert quantity.as_json() == stored
        assert data["text/plain"].startswith(repr(Answer(quantity))), name
        for right in (stored["outcome"], str(stored["outcome"])):
            assert "and that is right" in quantity.compare(right), name


def test_every_guess_is_asked_for() -> None:
    """Catches chapters whose guesses the tests above do not find."""
    counts = [len(asked(notebooks.read(path).cells)) for path in CHAPTERS if path.stem[0].isdigit()]  # no appendix
    assert min(counts) >= 1 and sum(counts) >= 20
    sources = "\n".join(json.dumps(notebooks.read(path)) for path in CHAPTERS)
    assert sources.count("guess_") >= 2 * sum(counts) and "You left the guess" not in sources
