"""Fold the code of cells that set up, draw or lay out, and mark outputs in columns, which must not wrap.

A notebook says nothing about it: what a cell is for shows in its code and its stored output. The tag ``hide-input``
folds a further cell.
"""

from __future__ import annotations

import ast
import json
import re
import symtable
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from docutils import nodes
from IPython.core.inputtransformer2 import TransformerManager
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SHORTEST = 4  # in lines: what is shorter takes no more room than the line that unfolds it
LAYS_OUT = {"Markdown": "of this table", "say": "of this sentence"}  # the library's and IPython's, by what they make
GAP = re.compile(r"\S {2,}\S|^ {2,}\S")
BRANCHES = ("body", "orelse", "finalbody", "handlers")


def folded(cells: list[dict[str, Any]]) -> dict[str, str]:
    """Return what the code of each folded cell is, by the cell's id.

    Folded are cells that hold nothing but imports, the cell that installs the library on Colab, and those that end in a
    figure, a table or a sentence, take at least four lines, bind no name that a later cell reads, and change nothing
    that an earlier cell made.

    Args:
        cells: a notebook's code cells, as they stand in its file.
    """
    trees = [ast.parse(TransformerManager().transform_cell("".join(cell["source"]))) for cell in cells]
    found = {}
    for index, (cell, tree) in enumerate(zip(cells, trees, strict=True)):
        if "google.colab" in "".join(cell["source"]):
            found[cell["id"]] = "that sets up Colab"
        elif num_lines(cell) >= SHORTEST and all(isinstance(one, ast.Import | ast.ImportFrom) for one in tree.body):
            found[cell["id"]] = "that imports"
        elif (shown := shows(cell, tree)) and only_shows(tree) and not read_later(leaves(tree), trees[index + 1 :]):
            found[cell["id"]] = shown
    return found


def num_lines(cell: dict[str, Any]) -> int:
    """Count a cell's lines, empty ones left out."""
    return sum(1 for line in "".join(cell["source"]).splitlines() if line.strip())


def shows(cell: dict[str, Any], tree: ast.Module) -> str | None:
    """Say what a cell's last expression shows: a figure, a table, a sentence, or nothing of that kind."""
    last = tree.body[-1] if tree.body else None
    kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
    if not isinstance(last, ast.Expr) or num_lines(cell) < SHORTEST:
        return None
    if "image/svg+xml" in kinds and not any("player" in kind for kind in kinds):
        return "of this figure"
    return LAYS_OUT.get(getattr(last.value.func, "id", "")) if isinstance(last.value, ast.Call) else None


def only_shows(tree: ast.Module) -> bool:
    """Tell whether a cell leaves what earlier cells made as it was: it stores into, and calls methods of, its own."""
    own = bound(tree)
    *before, _ = tree.body
    for node in (inner for statement in before for inner in ast.walk(statement)):
        changed = node.value if isinstance(node, ast.Expr) else node
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            changed = node.value
        elif not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant):
            continue
        while isinstance(changed, ast.Subscript | ast.Attribute | ast.Call):
            changed = changed.func if isinstance(changed, ast.Call) else changed.value
        if not isinstance(changed, ast.Name) or changed.id not in own:
            return False
    return True


def bound(tree: ast.AST) -> set[str]:
    """Return the names that a cell binds, those inside its functions and comprehensions included."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def leaves(tree: ast.Module) -> set[str]:
    """Return the names that a cell leaves to later ones; modules that it imports are no findings of its own."""
    symbols = symtable.symtable(ast.unparse(tree), "cell", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() and not symbol.is_imported()}


def read_later(names: set[str], later: list[ast.Module]) -> set[str]:
    """Return those names that a later cell reads before it binds them again."""
    read: set[str] = set()
    waiting = set(names)
    for name, reads in (mention for tree in later for mention in mentions(tree.body)):
        if name in waiting:
            waiting.discard(name)
            read |= {name} if reads else set()
    return read


def mentions(statements: list[Any]) -> Iterator[tuple[str, bool]]:
    """Yield the names that statements mention outside their functions' own, in order, and whether they read them."""
    for statement in statements:
        match statement:
            case ast.For():
                read, stored = [statement.iter], [statement.target]
            case ast.With():
                read = [item.context_expr for item in statement.items]
                stored = [item.optional_vars for item in statement.items if item.optional_vars]
            case ast.If() | ast.While():
                read, stored = [statement.test], []
            case ast.Try() | ast.ExceptHandler():
                read, stored = [], []
            case _:
                read, stored = [statement], [statement]
        yield from ((name, True) for part in read for name in reads(part))
        yield from ((name, False) for part in stored for name in binds(part))
        if stored != [statement]:
            yield from mentions([inner for branch in BRANCHES for inner in getattr(statement, branch, [])])


def binds(part: ast.AST) -> set[str]:
    """Return the names of the notebook that a statement binds, functions and modules included, or a loop's target."""
    if isinstance(part, ast.expr):
        return bound(part)
    symbols = symtable.symtable(ast.unparse(part), "cell", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def reads(part: ast.AST) -> set[str]:
    """Return the names of the notebook that a statement or expression reads, in functions and comprehensions too."""
    top = symtable.symtable(ast.unparse(part), "cell", "exec")
    found = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    if isinstance(part, ast.AugAssign):
        found |= bound(part.target)
    return found


def fold(app: Sphinx, docname: str, source: list[str]) -> None:
    """Tag the cells in the text that MyST-NB is about to read; the file itself, which readers download, stays."""
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    kinds = folded(cells)
    for cell in cells:
        if kind := kinds.get(cell["id"]):
            cell["metadata"].setdefault("tags", []).append("hide-input")
            words = {"code_prompt_show": f"Show the code {kind}", "code_prompt_hide": f"Hide the code {kind}"}
            cell["metadata"]["mystnb"] = words
    source[0] = json.dumps(notebook)


class MarkColumns(SphinxPostTransform):
    """Give text outputs whose lines stand in columns a class of their own."""

    default_priority = 400
    formats = ("html",)

    def run(self, **_: Any) -> None:
        """Change the document in place."""
        for output in self.document.findall(is_output):
            for block in output.findall(nodes.literal_block):
                if sum(bool(GAP.search(line)) for line in block.astext().splitlines()) > 1:
                    block["classes"].append("in-columns")


def is_output(node: nodes.Node) -> bool:
    """Tell whether a node holds what a cell printed."""
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code_output"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", fold)
    app.add_post_transform(MarkColumns)
    return {"parallel_read_safe": True}
