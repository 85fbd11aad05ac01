"""The source of a solution, as a reader would have written it, and whether a reader has changed a function at all."""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any


def source_as(function: Callable[..., Any], name: str) -> str:
    """Give the source of a function under another name, without annotations, with the imports that it needs.

    Example:
        >>> from pagedattn_lab.arithmetic import cdiv
        >>> print(source_as(cdiv, "round_up").splitlines()[0])
        def round_up(a, b):
    """
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    tree = ast.parse("\n".join(lines)).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise ValueError(f"{function!r} is no function with a source of its own: write it with def")
    header = f"def {name}({', '.join(inspect.signature(function).parameters)}):"
    body = lines[tree.body[0].lineno - 1 :]
    names = sorted(set(_names(tree)) & set(function.__globals__))
    found = [(each, function.__globals__[each]) for each in names]
    imports = [
        f"import {each}" if isinstance(value, ModuleType) else f"from {value.__module__} import {each}"
        for each, value in found
    ]
    return "\n".join([*imports, *(["", ""] if imports else []), header, *body]) + "\n"


def _names(node: ast.AST) -> Iterator[str]:
    """Every name in a piece of code, those in annotations excepted: a local variable's is never looked up."""
    if isinstance(node, ast.Name):
        yield node.id
    for part, value in ast.iter_fields(node):
        if part not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _names(child)


def same_code(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Say whether two functions do the same in the same words, comments and names of arguments' types aside.

    Example:
        >>> same_code(lambda x: x + 1, lambda x: x + 1), same_code(lambda x: x + 1, lambda x: x + 2)
        (True, False)
    """
    codes = [getattr(function, "__code__", None) for function in (one, other)]
    return None not in codes and _parts(codes[0]) == _parts(codes[1])


def rebinds(function: Callable[..., Any], name: str) -> bool:
    """Say whether a function gives a name of its own to another value, as ``name = ...`` does.

    Example:
        >>> def replace(free): free = []
        >>> def change(free): free[:] = []
        >>> rebinds(replace, "free"), rebinds(change, "free")
        (True, False)
    """
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return False
    stored: list[str] = []
    for step in dis.get_instructions(code):
        if step.opname.startswith(("STORE_FAST", "STORE_DEREF")):
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)  # two steps in one, from 3.13 on
            stored += names[: step.opname.count("STORE_")]
    return name in stored


def _parts(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(_parts(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants
