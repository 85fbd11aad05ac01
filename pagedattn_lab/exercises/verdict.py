"""What a reader is told about an answer: in words, and as HTML with the failing case drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pagedattn_lab.viz import GREEN, VERMILION, Picture


@dataclass(frozen=True)
class Verdict:
    """What the check of an exercise found.

    Attributes:
        passed: ``None`` where nothing was attempted.
        headline: the verdict, and how many cases are right.
        rows: what belongs to the failing case, such as the call, what was expected and what came.
        remarks: sentences on it.
        traceback: of an exception, from the reader's code on.
        pictures: the failing case, drawn, with captions.

    Example:
        >>> Verdict(False, "✗ Not yet: 1 of 2 cases is right.", [("call", "square(3)"), ("got", "6")], ["Try 3 * 3."])
        ✗ Not yet: 1 of 2 cases is right.
          call  square(3)
          got   6
        Try 3 * 3.
    """

    passed: bool | None
    headline: str
    rows: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()
    traceback: str = ""
    pictures: Sequence[tuple[str, Picture]] = ()

    @property
    def message(self) -> str:
        """Everything but the pictures, as text."""
        width = max((len(label) for label, _ in self.rows), default=0)
        rows = [f"  {label:<{width}}  {text}" for label, text in self.rows]
        return "\n".join([self.headline, *rows, *self.remarks, *filter(None, [self.traceback.rstrip()])])

    def __repr__(self) -> str:
        return self.message

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        if self.passed is None:
            return {"text/plain": self.message}
        return {"text/plain": self.message, "text/html": self._html()}

    def _html(self) -> str:
        edge = GREEN if self.passed else VERMILION
        cell = 'style="text-align:left;vertical-align:top;padding:1px 12px 1px 0;background:none'
        rows = "".join(
            f'<tr style="background:none"><th scope="row" {cell};font-weight:normal;opacity:.8">{escape(label)}</th>'
            f'<td {cell};white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace">{escape(text)}</td></tr>'
            for label, text in self.rows
        )
        parts = [f"<strong>{escape(self.headline)}</strong>"]
        if rows:
            parts.append(f'<table style="margin:6px 0;border:none;font-size:inherit">{rows}</table>')
        parts += [f'<p style="margin:4px 0">{escape(remark)}</p>' for remark in self.remarks]
        if self.traceback:
            parts.append(
                '<details><summary>Traceback</summary><pre style="white-space:pre-wrap;background:none">'
                f"{escape(self.traceback)}</pre></details>"
            )
        if self.pictures:
            drawn = "".join(
                '<figure class="pa-picture" style="flex:1 1 300px;min-width:0;max-width:440px;margin:0">'
                f"<figcaption>{escape(caption)}</figcaption>{picture.svg}</figure>"
                for caption, picture in self.pictures
            )
            parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:16px;margin-top:8px">{drawn}</div>')
        return f'<div style="border-left:4px solid {edge};padding:2px 0 2px 12px">{"".join(parts)}</div>'
