"""Fill ``book/api.md`` with every public module of the library, so that a new module appears by itself."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from sphinx import addnodes

import pagedattn_lab

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

PAGE = "book/api"
LONGEST_VALUE = 80  # in letters


def public_modules() -> list[str]:
    """Name every module that a reader may import, packages before what they hold."""
    names = [pagedattn_lab.__name__]
    names += [info.name for info in pkgutil.walk_packages(pagedattn_lab.__path__, f"{pagedattn_lab.__name__}.")]
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


def add_modules(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append a heading and an ``automodule`` directive for each module to the page's source."""
    if docname == PAGE:
        for name in public_modules():
            short = name.removeprefix(f"{pagedattn_lab.__name__}.")
            source[0] += f"\n## `{short}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def always_outdated(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Read the page anew in every build: a module that did not exist before is no file that Sphinx watches."""
    return [PAGE]


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
    app.connect("source-read", add_modules)
    app.connect("autodoc-process-docstring", keep_first_line, priority=400)  # napoleon's is 500
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("doctree-read", drop_unreadable_values)
    app.connect("missing-reference", keep_annotation)
    app.connect("env-get-outdated", always_outdated)
    return {"parallel_read_safe": True}
