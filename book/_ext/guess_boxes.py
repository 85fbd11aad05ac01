"""Put a box and a button in place of the line of Python that takes a reader's guess; ``guesses.js`` brings it to life.

The answer to compare with is the one that the chapter stores beside ``reconcile``'s output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from docutils import nodes
from inline_svg import as_picture
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from pagedattn_lab.exercises.guesses import ANSWER, ON_WHITE

if TYPE_CHECKING:
    from sphinx.application import Sphinx

GUESS = re.compile(r"^(guess_\w+) = None +# (.+)$")
RECONCILE = re.compile(r"\breconcile\((guess_\w+)")
SHOWN = re.compile(r'<img class="pa-shown" [^>]*src="data:image/svg\+xml,([^"]+)">')
logger = logging.getLogger(__name__)


def guesses(source: str) -> list[tuple[str, str]]:
    """Return the names in a cell that does nothing but take guesses, each with the question in its comment."""
    found = [GUESS.match(line) for line in source.splitlines()]
    return [(match[1], match[2]) for match in found if match] if all(found) else []


def answers(cells: list[dict[str, Any]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield each answer of a notebook: the guess's name, the number of its cell, and what to compare with."""
    for number, cell in enumerate(cells):
        for output in cell.get("outputs", []):
            asked = RECONCILE.search("".join(cell["source"]))
            if asked and ANSWER in output.get("data", {}):
                yield asked[1], number, output["data"][ANSWER]


def box(chapter: str, name: str, question: str, quantity: dict[str, Any]) -> str:
    """Write the box as HTML. Without scripts it stays hidden, and the answer is to be found further down, folded."""
    field = name.replace("_", "-")
    mode = "text" if isinstance(quantity["outcome"], str) else "decimal"
    return (
        f'<form class="pa-guess" hidden data-name="{chapter}/{name}" data-answer="answer-{field}" '
        f'data-quantity="{escape(json.dumps(quantity))}">'
        f'<label for="{field}">{escape(question[:1].upper() + question[1:])}</label>'
        f'<input id="{field}" type="text" inputmode="{mode}" autocomplete="off">'
        f'<button type="submit">Reveal</button><output for="{field}"></output></form>'
    )


def draw(node: nodes.Node, prefix: str) -> None:
    """Put the pictures that show an answer into the page itself, as all others are."""
    for raw in list(node.findall(nodes.raw)):
        image = SHOWN.fullmatch(raw.astext().strip())
        if image:
            svg = unquote(unescape(image[1])).replace(ON_WHITE, "", 1)
            raw.replace_self(as_picture(svg, prefix))


class GuessBoxes(SphinxTransform):
    """Replace the cells that take guesses, and make each answer known by the guess's name."""

    default_priority = 500

    def apply(self) -> None:
        """Change the document in place."""
        shown = {
            node["cell_index"]: node
            for node in self.document.findall(nodes.container)
            if node.get("nb_element") == "cell_code"
        }
        if not shown:
            return
        path = Path(self.env.doc2path(self.env.docname))
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        known = {name: (number, quantity) for name, number, quantity in answers(cells)}
        for name, (number, _) in known.items():
            identifier = f"answer-{name.replace('_', '-')}"
            shown[number]["ids"].append(identifier)
            draw(shown[number], identifier)
        for number, node in shown.items():
            boxes = []
            for name, question in guesses("".join(cells[number]["source"])):
                if name in known:
                    boxes.append(box(path.stem, name, question, known[name][1]))
                else:
                    logger.warning("%s is asked for, and no later cell reconciles it", name, location=node)
            if boxes:
                node.replace_self(nodes.raw("", "".join(boxes), format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_transform(GuessBoxes)
    app.add_css_file("guesses.css")
    app.add_js_file("guesses.js", defer="defer")
    return {"parallel_read_safe": True}
