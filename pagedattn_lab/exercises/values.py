"""Values that answers return: the same contents in another container are the same, another shape is said in words."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Set
from numbers import Number
from typing import Any

LETTERS = 400
"""So much of a value is shown: enough for any case that can be followed by hand."""
PLAIN = {int, float, bool, str, bytes, type(None)}
"""Types that are one form already."""


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
    if type(value) in PLAIN:
        return value
    if type(value) in (list, tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | bytes | Number):
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
    return _same(plain(expected), plain(got))


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, frozenset) and isinstance(got, list):
        return len(got) == len(expected) and all(each in got for each in expected)
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(_same, expected, got))
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(_same(expected[key], got[key]) for key in expected)
    return expected == got


def kind(value: Any) -> str:
    """Name the kind of a value.

    Example:
        >>> kind([[1], [2]]), kind((1, {2})), kind([None]), kind(3)
        ('a list of 2 lists', 'a tuple of a number and a set', 'a list of None', 'a number')
    """
    name = _name(value)
    if isinstance(value, list | tuple) and value:
        names = [_name(each) for each in value]
        if len(names) == 1 and not names[0].startswith(("a ", "an ")):
            return f"{name} of {names[0]}"
        if len(set(names)) == 1 and names[0].startswith(("a ", "an ")):
            noun = names[0].split(" ", 1)[1]
            return f"{name} of {len(value)} {noun}{'s' if len(value) > 1 else ''}"
        if len(names) <= 4:
            return f"{name} of {', '.join(names[:-1])} and {names[-1]}"
    return name


def _name(value: Any) -> str:
    """Name the kind of a value, and not what is in it."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, str):
        return "a text"
    base = next((each for each in (list, tuple, dict, set) if isinstance(value, each)), type(value))
    name = {"dict_values": "list", "frozenset": "set", "bytes": "bytes object"}.get(base.__name__, base.__name__)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


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
    if expected is None or (type(expected) is type(got) and type(got) in PLAIN):
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


def deepest_misfit(expected: Any, got: Any, where: str = "it") -> str:
    """Say which part of a value is of another kind, or which key, where the whole looks as it should.

    Example:
        >>> deepest_misfit(([[1]], {2}), ([["1"]], {2}))
        ', and in it a text where a number belongs'
        >>> deepest_misfit({"free": [3]}, {"free": {3}}), deepest_misfit({"free": [3]}, {"fre": [3]})
        (", and in it, under 'free', a set where a list of 1 number belongs", ", and in it no key 'free', but 'fre'")
    """
    got = plain(got) if not isinstance(got, list | tuple | dict) else got
    if isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return f", and in {where} {_wrong_keys(expected, got)}"
        parts = (key for key in expected if got[key] is not None and _misfit(expected[key], plain(got[key])))
        key = next(parts, None)
        return "" if key is None else deepest_misfit(expected[key], got[key], f"{where}, under {shown(key)},")
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple) and expected:
        pairs = zip(expected if isinstance(expected, tuple) else [expected[0]] * len(got), got, strict=False)
        inner = next(((one, other) for one, other in pairs if _misfit(one, plain(other))), None)
        return deepest_misfit(*inner, where) if inner else ""
    return f", and in {where} {kind(got)} where {kind(expected)} belongs"


def _wrong_keys(expected: Mapping[Any, Any], got: Mapping[Any, Any]) -> str:
    """Name a key that is missing, one that is too many, or both."""
    missing = next((f"no key {shown(key)}" for key in expected if key not in got), "")
    extra = next((shown(key) for key in got if key not in expected), "")
    return f"{missing}, but {extra}" if missing and extra else missing or f"one key too many, {extra}"


def shown(value: Any) -> str:
    """Write a value as code, an empty set as readers write it, and a long one cut.

    Example:
        >>> shown([1, 2]), shown(10**5000)
        ('[1, 2]', 'a whole number of about 5,001 digits')
    """
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except Exception as error:  # a reader's own class may do anything
        if isinstance(value, int):  # Python writes no more than some thousand digits
            return f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
        return f"{kind(value)} that cannot be written ({type(error).__name__})"
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def named_if_shared(value: Any) -> Any:
    """Write lists that occur more than once under a name, where equal contents would hide that they are one.

    Example:
        >>> row = [1, 2]
        >>> named_if_shared(([row, row, [1, 2]], {3}))
        ([a, a, [1, 2]], {3}), where a is [1, 2]
    """
    found = Counter(map(id, _lists(value)))
    shared = {id(each): each for each in _lists(value) if found[id(each)] > 1}
    names = {key: Words(name) for key, name in zip(shared, "abcdefghijklmnopqrstuvwxyz", strict=False)}
    if not names:
        return value
    where = " and ".join(f"{name} is {shown(shared[key])}" for key, name in names.items())
    return Words(f"{shown(_with_names(value, names))}, where {where}")


def _lists(value: Any) -> Iterator[list[Any]]:
    """Every list inside another one or a tuple."""
    for each in value if isinstance(value, list | tuple) else ():
        if isinstance(each, list):
            yield each
        yield from _lists(each)


def _with_names(value: Any, names: Mapping[int, Words]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return type(value)([names.get(id(each)) or _with_names(each, names) for each in value])


def in_place(name: str, value: Any) -> str:
    """Say how to give an argument other contents without making a new one.

    Example:
        >>> in_place("free", [3]), in_place("ref_cnt", {3: 0})
        ('free[:] = ...', 'ref_cnt.update(...)')
    """
    return f"{name}[:] = ..." if isinstance(value, list) else f"{name}.update(...)"


def call(name: str, parameters: Collection[str], arguments: Collection[Any]) -> str:
    """Write a call with the names of its arguments.

    Example:
        >>> call("admit", ["held", "block_size"], [[3, 4], 16])
        'admit(held=[3, 4], block_size=16)'
    """
    return f"{name}({', '.join(f'{p}={shown(a)}' for p, a in zip(parameters, arguments, strict=True))})"
