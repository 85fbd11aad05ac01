"""Values that answers return: the same contents in another container are the same, another shape is said in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Set
from numbers import Number
from typing import Any

LETTERS = 400
"""So much of a value is shown: enough for any case that can be followed by hand."""


class Words(str):
    """An outcome in words: no value, so it is shown without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def plain(value: Any) -> Any:
    """Bring a value into one form: every sequence or array a list, every set a frozenset, numbers as Python has them.

    Example:
        >>> plain(({3: (1, 2)}, range(2), {5}))
        [{3: [1, 2]}, [0, 1], frozenset({5})]
    """
    if isinstance(value, str | bytes | Number) or value is None:
        return value
    if hasattr(value, "tolist"):  # arrays and their numbers, tensors
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, Set):
        return frozenset(value)
    if isinstance(value, list | tuple | range | deque) or type(value) is type({}.values()):
        return [plain(each) for each in value]
    return value


def same(expected: Any, got: Any) -> bool:
    """Say whether two values hold the same; where a set is expected, any collection without repetitions will do.

    Example:
        >>> same((2, 5), [2, 5]), same({2, 5}, [5, 2]), same({2, 5}, [5, 2, 2]), same([2], [3])
        (True, True, False, False)
    """
    expected, got = plain(expected), plain(got)
    if isinstance(expected, frozenset) and isinstance(got, list):
        return len(got) == len(expected) and all(each in got for each in expected)
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(same, expected, got))
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(same(expected[key], got[key]) for key in expected)
    return expected == got


def kind(value: Any) -> str:
    """Name the kind of a value.

    Example:
        >>> kind([[1], [2]]), kind((1, {2})), kind(None), kind(3)
        ('a list of 2 lists', 'a tuple of a number and a set', 'None', 'a number')
    """
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, str):
        return "a text"
    name = {"dict_values": "list", "bytes": "bytes object"}.get(type(value).__name__, type(value).__name__)
    name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if isinstance(value, list | tuple) and value:
        kinds = [kind(each).split(" of ")[0] for each in value]
        if len(set(kinds)) == 1 and kinds[0].startswith(("a ", "an ")):
            noun = kinds[0].split(" ", 1)[1]
            return f"{name} of {len(value)} {noun}{'s' if len(value) > 1 else ''}"
        if len(kinds) <= 4:
            return f"{name} of {', '.join(kinds[:-1])} and {kinds[-1]}"
    return name


def misfit(expected: Any, got: Any) -> bool:
    """Say whether a value cannot be an answer at all, because it is of another kind or its parts are.

    Example:
        >>> misfit(([[1]], {2}), [[1]]), misfit(([[1]], {2}), ([[5], [6]], [])), misfit(3, None)
        (True, False, False)
    """
    if got is None:  # often an answer, and often a return that was forgotten
        return False
    if not isinstance(expected, dict):
        return _misfit(expected, plain(got))
    if not isinstance(got, dict) or expected.keys() != got.keys():
        return True
    return any(got[name] is not None and _misfit(expected[name], plain(got[name])) for name in expected)


def _misfit(expected: Any, got: Any) -> bool:
    """The same for a part, where ``None`` is a kind of its own; a tuple stands for parts whose number is fixed."""
    if expected is None:
        return False
    if isinstance(expected, Set):
        kinds = {kind(each) for each in got} if isinstance(got, frozenset | list) else {"no collection"}
        return not kinds <= ({kind(each) for each in expected} or {"a number", "a text"})
    if isinstance(expected, tuple):
        fits = isinstance(got, list) and len(got) == len(expected)
        return not fits or any(map(_misfit, expected, got))
    if isinstance(expected, dict):
        return not isinstance(got, dict)
    expected = expected if isinstance(expected, list) else plain(expected)
    if isinstance(expected, list):
        return not isinstance(got, list) or any(_misfit(expected[0], each) for each in got if expected)
    return any(isinstance(expected, kinds) and not isinstance(got, kinds) for kinds in (str, bytes, Number))


def shown(value: Any) -> str:
    """Write a value as code, an empty set as readers write it, and a long one cut."""
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def call(name: str, parameters: Collection[str], arguments: Collection[Any]) -> str:
    """Write a call with the names of its arguments.

    Example:
        >>> call("admit", ["held", "block_size"], [[3, 4], 16])
        'admit(held=[3, 4], block_size=16)'
    """
    return f"{name}({', '.join(f'{p}={shown(a)}' for p, a in zip(parameters, arguments, strict=True))})"
