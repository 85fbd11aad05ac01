"""Sentences whose numbers come from code: none is typed, so none can go stale."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_ORDINAL = r"\d+(?:\.\d+)*"
_ONE = rf"(?:[Cc]hapter|[Ss]ection|[Ee]xercise|[Ii]ssue|Table|Figure|Fig\.|§|arXiv:?)\s*{_ORDINAL}"
_SEVERAL = (
    rf"(?:[Cc]hapters|[Ss]ections|[Ee]xercises|[Ii]ssues|Tables|Figures|Figs\.|§§)\s*{_ORDINAL}"
    rf"(?:(?:,\s+{_ORDINAL})*,?(?:\s+(?:and|or|to)\s+|–){_ORDINAL})?"
)
_QUIET = re.compile(
    "|".join(
        [
            r"<!--.*?-->",  # comments
            r"^[ \t]*```.*?```",  # code, fenced and in spans
            r"(?P<ticks>`+).+?(?P=ticks)",
            rf"\$\$.+?\$\$|\$(?P<alone>{NUMBER})\$|\$[^$\n]+\$",  # maths, except a number alone
            r"\]\([^)]*\)|https?://\S+",  # where a link leads
            r"</?[A-Za-z][^>]*>|&#?\w+;",  # HTML
            r"^[ \t>]*(?:#+[ \t]+(?:\d+[ \t]+·)?|\d+\.[ \t]|\*\*\d+\.)",  # the number of a heading or a list item
            rf"{_SEVERAL}|{_ONE}",
            r"(?<=[|\[])\s*\d\d(?:\s+·)?\s(?=[A-Z])",  # a chapter's number before its title, in a link or a table
            r"\b(?:199|20[012])\d\b(?![,.]\d)",  # years
            r"\b\d+\.\d+\.\d+\b",  # versions
            r"[^\W\d]\w*(?:[-.]\w+)*",  # names and words
        ]
    ),
    re.DOTALL | re.MULTILINE,
)


def bare_numbers(markdown: str) -> list[str]:
    """List the numbers that are typed as figures in a piece of Markdown, as they are typed.

    Not figures, and so not listed: digits of a name (``SmolLM2-135M``, ``fp16``, ``A100``), code, maths (unless it is
    a number alone), link targets, years from 1990 to 2029, versions of three parts, numbers of headings and list items,
    and references ("chapter 04", "section 6", "§7.1", "Fig. 2", "Table 1", "exercise 3", "issue 13596",
    "[01 · The KV cache](...)").

    Example:
        >>> bare_numbers("Of 12,288 tokens, chapter 04 keeps `16`, and an A100 holds 96.3 % (2023, §7.1).")
        ['12,288', '96.3']
    """
    return re.findall(NUMBER, _QUIET.sub(lambda quiet: quiet["alone"] or " ", markdown))


@dataclass(frozen=True)
class Sentence:
    """A piece of Markdown, as a notebook displays it; its plain text is the same."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/markdown": self.text, "text/plain": self.text}


class _Filler(string.Formatter):
    """Fills in a template, and refuses a value that it has no place for."""

    def check_unused_args(self, used_args: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        unused = [name for name in kwargs if name not in used_args]
        if unused:
            raise ValueError(f"no {{{unused[0]}}} in the sentence: use the value or leave it out")


def say(template: str, **values: Any) -> Sentence:
    """Render values in a sentence of Markdown.

    Args:
        template: text with replacement fields as for ``str.format``, without any number typed outside of them.
        values: one value for every name in the template.

    Raises:
        ValueError: a number is typed into the template (see :func:`bare_numbers`), or a value is not used.
        KeyError: a value is missing.

    Example:
        >>> say("After **{tokens:,} tokens** the cache takes {size:.1f} GB on an A100.", tokens=11676, size=4.25)
        After **11,676 tokens** the cache takes 4.2 GB on an A100.
    """
    literals = [literal for literal, *_ in string.Formatter().parse(template)]
    typed = bare_numbers("\ufffc".join([*literals, ""]))  # a field is neither a letter nor a digit
    if typed:
        raise ValueError(f"{typed[0]} is typed into the sentence: write {{name}} in its place and pass name={typed[0]}")
    return Sentence(_Filler().format(template, **values))
