"""Controls beside a picture that follows them: live in JupyterLab, a still image with the same content elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from pagedattn_lab.viz import Picture


class Lesson(widgets.VBox):
    """A row of controls, and a picture drawn anew whenever one of them changes.

    Args:
        draw: makes the picture from the controls' values, passed by name.
        controls: widgets with a ``value`` and a ``description``, by the name of the argument they set.

    Example:
        >>> def draw(size):
        ...     return Picture("<svg></svg>", alt=f"{size} squares")
        >>> lesson = Lesson(draw, size=widgets.IntSlider(3, min=1, max=9, description="squares"))
        >>> lesson.at(size=9), lesson
        (9 squares, Lesson(size=3): 3 squares)
    """

    def __init__(self, draw: Callable[..., Picture], **controls: Any) -> None:
        self._draw, self._controls = draw, controls
        self._view = widgets.HTML()
        super().__init__(children=[*controls.values(), self._view])
        for control in controls.values():
            control.style.description_width = "initial"
            control.observe(lambda _: self._refresh(), names="value")
        self._refresh()

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self._controls.items()}

    def set(self, **values: Any) -> Lesson:
        """Move controls as a reader would, and give the lesson back.

        Raises:
            KeyError: no control of that name.
        """
        for name, value in values.items():
            self._controls[name].value = value
        return self

    def at(self, **values: Any) -> Picture:
        """Move controls, take the picture that they lead to, and move them back.

        Raises:
            KeyError: no control of that name.
        """
        before = self.values
        try:
            return self.set(**values)._picture
        finally:
            self.set(**before)

    def _refresh(self) -> None:
        self._picture = self._draw(**self.values)
        self._view.value = self._picture.svg

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        return f"Lesson({settings}): {self._picture.alt}"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle | {"image/svg+xml": self._picture.svg, "text/plain": repr(self)}
