"""Guesses in the built book: the box says what Python says, keeps what it was told, and needs no mouse and no server.

In JupyterLab: an answer is folded on first opening, when nothing is trusted yet, and after it was run.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from accessibility import violations
from jupyter_page import Lab
from nbformat.v4 import new_code_cell, new_notebook, new_output
from playwright.sync_api import Browser, Locator, Page, expect
from watch import Watch

from pagedattn_lab.exercises import reconcile
from pagedattn_lab.exercises.guesses import KINDS, Quantity
from pagedattn_lab.viz import Picture
from tests.helpers.chapters import REPO
from tools import notebooks

sys.path.insert(0, str(REPO / "book" / "_ext"))
import guess_boxes

STATIC = REPO / "book" / "_static"
COMPARE = """cases => cases.map(([guess, quantity]) => {
  try {
    return compareGuess(guess, quantity);
  } catch (error) {
    return `error: ${error.message}`;
  }
})"""
WORDS = ["five", " Five. ", "nine", "5", "Übung"]
ODD = [
    "",
    "half",
    "50 %%",
    "1,02",
    "0,5",
    "1,024",
    "-1,234,567.25",
    "+3",
    ".5",
    "5.",
    "-0",
    "3.5 MB",
    "1e9",
    "٣",
    "- 5",
]


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Open a browser context of the test's own."""
    with Watch(browser) as watch:
        yield watch
        assert watch.problems == []


def numbers(rng: random.Random) -> float:
    """Draw a number of any size, often one whose last digit is a tie or that is whole."""
    size = 10.0 ** rng.randint(-5, 13)
    drawn = rng.choice([rng.random(), rng.randint(1, 99) / 8, rng.randint(1, 9_999) / 16, rng.randint(1, 99) / 10])
    return rng.choice([float(rng.randint(0, 100)), drawn * size, drawn, float(round(drawn * size))]) * rng.choice(
        [1, 1, -1]
    )


def cases(count: int) -> list[tuple[str, Quantity]]:
    """Draw guesses as typed, with what they are compared with: near, far, and not to be read at all."""
    rng, drawn = random.Random(12), []
    for _ in range(count):
        outcome: Any = numbers(rng) if rng.random() < 0.95 else rng.choice(["five", "Übung"])
        if isinstance(outcome, float) and outcome.is_integer():
            outcome = int(outcome)
        unit = rng.choice(["", "%", "% of the slots", "blocks", "of 4"])
        quantity = Quantity(outcome, unit, None if isinstance(outcome, str) else rng.choice([None, *KINDS]))
        near = quantity.outcome if isinstance(quantity.outcome, str) else quantity.outcome * (1 + rng.gauss(0, 0.02))
        guess = rng.choice([numbers(rng), near, quantity.outcome, rng.choice(ODD), rng.choice(WORDS)])
        text = guess if isinstance(guess, str) else rng.choice([f"{guess:,.3f}", f"{guess:f}", f"{guess:,.1f} %"])
        drawn.append((text, quantity))
    return drawn


def by_python(guess: str, quantity: Quantity) -> str:
    try:
        return quantity.compare(guess)
    except ValueError as error:
        return f"error: {error}"


def test_the_book_says_what_python_says(watch: Watch) -> None:
    """Catches a reader of the book who is told something else than a reader of the notebook."""
    page = watch.new_page()
    page.set_content("<!doctype html><title>a</title>")
    for script in ("memory.js", "guesses.js"):
        page.add_script_tag(path=STATIC / script)
    drawn = [
        (guess, quantity) for guess, quantity in cases(6_000) if guess.strip() or not isinstance(quantity.outcome, str)
    ]
    said = page.evaluate(COMPARE, [[guess, quantity.as_json()] for guess, quantity in drawn])
    expected = [by_python(guess, quantity) for guess, quantity in drawn]
    different = [triple for *triple, ours in zip(drawn, said, expected, strict=True) if triple[1] != ours]
    assert [(pair[0], pair[1].as_json(), theirs, by_python(*pair)) for pair, theirs in different[:3]] == []
    endings = ("within a point", "points too high", "too many", "too few", "within 1 %", "% too low", "times that",
               "times your guess", "not the same", "that is right", "cannot read", "out of range")  # fmt: skip
    assert all(sum(ending in text for text in expected) >= 5 for ending in endings)


@pytest.mark.parametrize("guess", ["2**10", "**nine**", "2**10**2", "*nine*", "nine"])
def test_a_guess_is_shown_as_typed(watch: Watch, guess: str) -> None:
    """Catches asterisks in a guess that are taken for those around the answer: 2**10 was cut in two."""
    page = watch.new_page()
    quantities = {"a_word": Quantity("nine", "word"), "a_number": Quantity(1024, "tokens")}
    boxes = [guess_boxes.box("00", name, "?", quantity.as_json()) for name, quantity in quantities.items()]
    page.set_content(f"<!doctype html><title>a</title>{''.join(boxes)}")
    for script in ("memory.js", "guesses.js"):
        page.add_script_tag(path=STATIC / script)
    for index, quantity in enumerate(quantities.values()):
        box = page.locator("form").nth(index)
        box.get_by_role("textbox").fill(guess)
        box.get_by_role("button").click()
        said = by_python(guess, quantity)
        if said.startswith("error: "):
            expect(box.get_by_role("status")).to_have_text(f"{said.removeprefix('error: ').capitalize()}.")
        else:
            before, bold, after = said.rpartition(quantity.answer)
            expect(box.get_by_role("status")).to_have_text(f"{before}{bold.strip('*')}{after}")
            expect(box.locator("strong")).to_have_text(bold.strip("*"))


def opened(page: Page, site: Path) -> tuple[Locator, Locator]:
    """Open a page from the disk; return its first box, and what stands folded as its answer."""
    page.goto((site / "chapters" / "02_contiguous_caches.html").as_uri())
    box = page.locator("form.pa-guess").first
    return box, page.locator(f"#{box.get_attribute('data-answer')} details")


def test_a_guess_is_revealed_and_kept(watch: Watch, site: Path) -> None:
    """Catches a box without a name, one that needs a mouse or a server, a reveal that opens nothing, a guess lost."""
    page = watch.new_page()
    box, answer = opened(page, site)
    expect(answer).not_to_have_attribute("open", "")
    field = page.get_by_role("textbox", name="Your guess: requests at once, each with the slots it needs")
    field.focus()
    page.keyboard.type("30")
    expect(box.locator("output")).to_be_empty()
    page.keyboard.press("Tab")
    expect(box.get_by_role("button", name="Reveal")).to_be_focused()
    page.keyboard.press("Enter")
    expect(box.get_by_role("status")).to_have_text("You guessed 30; the answer is 31 requests: 1 too few.")
    expect(box.locator("output strong")).to_have_text("31 requests")
    expect(answer).to_have_attribute("open", "")
    page.reload()
    expect(field).to_have_value("30")
    expect(box.get_by_role("status")).to_have_text("You guessed 30; the answer is 31 requests: 1 too few.")
    expect(page.locator("form.pa-guess output:not(:empty)")).to_have_count(1)  # other questions stay open
    assert violations(page, ".pa-guess") == []


def test_no_guess_no_remark(watch: Watch, site: Path) -> None:
    """Catches a remark to a reader who only wants the answer."""
    box, answer = opened(watch.new_page(), site)
    box.get_by_role("button").click()
    expect(box.get_by_role("status")).to_have_text("The answer is 31 requests.")
    expect(answer).to_have_attribute("open", "")


def test_what_cannot_be_read_reveals_nothing(watch: Watch, site: Path) -> None:
    """Catches a typing error that costs the reader the question."""
    page = watch.new_page()
    box, answer = opened(page, site)
    box.get_by_role("textbox").fill("six")
    page.keyboard.press("Enter")
    expect(box.get_by_role("status")).to_contain_text("Cannot read the guess “six”: write a number alone")
    expect(box.get_by_role("textbox")).to_have_attribute("aria-invalid", "true")
    expect(answer).not_to_have_attribute("open", "")


def test_without_scripts_the_answer_is_folded(browser: Browser, site: Path) -> None:
    """Catches a button that does nothing, and an answer that only a script can open."""
    with Watch(browser, java_script_enabled=False) as watch:
        box, answer = opened(watch.new_page(), site)
        expect(box).to_be_hidden()
        expect(answer.get_by_text("31 requests")).to_be_hidden()
        answer.locator("summary").click()
        expect(answer.get_by_text("31 requests")).to_be_visible()


def test_every_question_of_the_chapters_has_its_box(site: Path) -> None:
    """Catches a line of Python where the box should be, or a box that knows no answer."""
    for path in (REPO / "chapters").glob("*.ipynb"):
        lines = [line for cell in notebooks.code_cells(notebooks.read(path)) for line in cell.source.splitlines()]
        names = [line.split()[0] for line in lines if line.startswith("guess_")]
        page = (site / "chapters" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert page.count('<form class="pa-guess"') == len(names)
        for name in names:
            identifier = name.replace("_", "-")
            assert page.count(f'data-answer="answer-{identifier}"') == page.count(f'id="answer-{identifier}"') == 1


PICTURE = Picture(
    '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="20"><rect width="9" height="9"/></svg>', "a"
)


def test_folded_in_jupyterlab(browser: Browser, tmp_path: Path) -> None:
    """Catches an answer that stands open when a chapter is first opened, untrusted, or has been run."""
    stored = reconcile(None, 7, "requests", shown_by=PICTURE)._repr_mimebundle_()
    again = "from pagedattn_lab.exercises import reconcile\nreconcile(None, 7, 'requests')"
    cells = [
        new_code_cell("7", outputs=[new_output("execute_result", stored, execution_count=1)], execution_count=1),
        new_code_cell(again),
        new_code_cell(again.replace("None", "6")),
    ]
    lab = Lab(tmp_path)
    try:
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": notebooks.KERNELSPEC}), lab.root / "a.ipynb")
        notebook = lab.open(browser, "a.ipynb")
        answer = notebook.page.locator(".jp-OutputArea details")
        expect(answer).to_have_count(1)
        expect(answer.get_by_text("7 requests")).to_be_hidden()
        answer.locator("summary").click()
        expect(answer.get_by_text("7 requests")).to_be_visible()
        notebook.page.wait_for_function(
            "() => document.querySelector('.jp-OutputArea details img').naturalWidth === 90"
        )
        notebook.run_all()
        expect(answer).to_have_count(1)
        expect(answer.get_by_text("7 requests")).to_be_hidden()
        expect(notebook.page.locator(".jp-OutputArea-output", has_text="You guessed 6")).to_be_visible()
        assert notebook.run_errors == []
        lab.close(notebook)
    finally:
        lab.stop()
