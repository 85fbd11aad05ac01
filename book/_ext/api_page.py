"""Write ``book/api/``: a page for each package of the library, which a new module or package joins by itself."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx import addnodes

import pagedattn_lab

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

OVERVIEW = "book/api"
FOLDER = OVERVIEW
LIBRARY = pagedattn_lab.__name__
LONGEST_VALUE = 80  # in letters


def public_modules() -> dict[str, str]:
    """Return the first sentence of every module that a reader may import; packages stand before what they hold."""
    found = {LIBRARY: pagedattn_lab.__file__}
    for info in pkgutil.walk_packages(pagedattn_lab.__path__, f"{LIBRARY}."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            found[info.name] = info.module_finder.find_spec(info.name).origin
    return {name: first_sentence(Path(file)) for name, file in found.items()}


def first_sentence(file: Path) -> str:
    """Return the first sentence of a module's docstring without importing the module."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s|\n\n", text)[0].replace("\n", " ")


COMPILED = ("jit", "inlined", "intrinsic")
"""What decorators of functions that are compiled have in their names."""


def public_names(module: str) -> list[str]:
    """Return the classes and functions that a module defines for readers, in its order, without importing it.

    Kernels are left out, as autodoc leaves them out: a compiled function is no function to it.
    """
    file = Path(importlib.util.find_spec(module).origin)
    defined = [
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(word in ast.unparse(decorator) for decorator in node.decorator_list for word in COMPILED)
    ]
    return [node.name for node in defined if not node.name.startswith("_") and ast.get_docstring(node)]


def pages() -> dict[str, str]:
    """Return the source of each page by the name of its package; the library's own page holds its flat modules."""
    modules = public_modules()
    packages = {LIBRARY: [LIBRARY]}
    for info in pkgutil.iter_modules(pagedattn_lab.__path__, f"{LIBRARY}."):
        if info.name in modules:
            inside = [name for name in modules if f"{name}.".startswith(f"{info.name}.")]
            packages.setdefault(info.name if info.ispkg else LIBRARY, []).extend(inside)
    return {package: page(package, {name: modules[name] for name in held}) for package, held in packages.items()}


def page(package: str, modules: dict[str, str]) -> str:
    """Write a package's page: a summary of what each module is for and holds, then the modules."""
    lines = [f"# Package `{short(package)}`", "", "```{eval-rst}"]
    for name, sentence in modules.items():
        lines.append(f"* :py:mod:`{short(name)} <{name}>`: {sentence}")
        if held := public_names(name):
            lines += ["", "  " + ", ".join(f":py:obj:`{each} <{name}.{each}>`" for each in held), ""]
    lines += ["```", ""]
    for name in modules:
        lines += [f"## `{short(name)}`", "", "```{eval-rst}", f".. automodule:: {name}", "```", ""]
    return "\n".join(lines)


def short(name: str) -> str:
    """Name a module without the library's name in front."""
    return name.removeprefix(f"{LIBRARY}.")


def write_pages(app: Sphinx) -> None:
    """Write what is new or differs, and remove the pages of packages that are gone, before Sphinx looks for sources."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{short(package)}.md": source for package, source in pages().items()}
    for path in set(folder.iterdir()) - set(wanted):
        path.unlink()
    for path, source in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            path.write_text(source, encoding="utf-8")


def list_packages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a line for each package, with what it is for, in place of ``%packages`` on the library's page."""
    if docname == OVERVIEW:
        modules = public_modules()
        rows = ["| package | what it is for |", "|---|---|"]
        for package in pages():
            sentence = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", modules[package]).replace("``", "`")
            rows.append(f"| [`{short(package)}`](api/{short(package)}.md) | {sentence} |")
        source[0] = source[0].replace("%packages\n", "\n".join(rows) + "\n")


def keep_first_line(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking the words before a colon in an attribute's first line for the attribute's type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # an escaped line end, which shows as nothing


def skip_tuple_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave a named tuple's fields to its docstring, which says more than "alias for field number 0"."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def drop_unreadable_values(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out what a name stands for where that is long, or a function or module: it would show an address."""
    for annotation in list(doctree.findall(addnodes.desc_annotation)):
        value = annotation.astext()
        if value.lstrip().startswith("=") and (len(value) > LONGEST_VALUE or "<" in value):
            annotation.parent.remove(annotation)


def keep_annotation(app: Sphinx, env: Any, node: addnodes.pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Show a bare name in a signature as written: autodoc cannot resolve what is imported for annotations only."""
    ancestor = node.parent
    while ancestor is not None and not isinstance(ancestor, addnodes.desc_signature):
        ancestor = ancestor.parent
    return text if ancestor is not None and "." not in node["reftarget"] else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", list_packages)
    app.connect("env-get-outdated", lambda *_: [OVERVIEW])  # what it shows comes from files that Sphinx does not watch
    app.connect("autodoc-process-docstring", keep_first_line, priority=400)  # napoleon's is 500
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("doctree-read", drop_unreadable_values)
    app.connect("missing-reference", keep_annotation)
    return {"parallel_read_safe": True}
