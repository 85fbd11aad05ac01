"""Controls beside a player that follows them: live in JupyterLab, without a kernel in the book, a still elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.player import MIME, Player, Source, recording

MOST_SWEPT = 8


class Lesson(widgets.VBox):
    """Controls, and below them a player of what ``draw`` makes of their values.

    Args:
        draw: makes a trace, one or more pictures, or a recording from the controls' values, passed by name.
        label: what there is to see, in a few words; screen readers announce it.
        step: the frame to begin with, negative ones counted from the end.
        sweep: name of a control whose values the built book steps through, where no kernel can draw. For lessons
            that draw one picture; a few values are drawn, both extremes and the present one among them.
        controls: widgets with a ``value`` and a ``description``, by the name of the argument they set.

    Attributes:
        player: the player.

    Example:
        >>> def draw(size):
        ...     return Picture("<svg></svg>", alt=f"{size} squares")
        >>> lesson = Lesson(draw, "Squares", size=widgets.IntSlider(3, min=1, max=9, description="squares"))
        >>> lesson.at(size=9), lesson
        (9 squares, Lesson('Squares', size=3): 3 squares)
    """

    def __init__(
        self, draw: Callable[..., Source], label: str, *, step: int = -1, sweep: str | None = None, **controls: Any
    ) -> None:
        if sweep is not None and sweep not in controls:
            raise ValueError(f"sweep={sweep!r} is no control of this lesson: name one of {', '.join(controls)}")
        self._draw, self._controls, self._sweep = draw, controls, sweep
        self.player = Player(draw(**self.values), label, step=step)
        super().__init__(children=[*controls.values(), self.player])
        self.add_class("pa-lesson")
        for control in controls.values():
            control.style.description_width = "initial"
            control.layout.width = "min(100%, 36em)"  # a long description must not squeeze its slider out
            control.observe(lambda _: self._refresh(), names="value")

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

    def at(self, step: int | None = None, **values: Any) -> Picture:
        """Move controls, and the player to a step, take the picture that they lead to, and move all of them back.

        Raises:
            KeyError: no control of that name.
        """
        before, step_before = self.values, self.player.step
        try:
            self.set(**values)
            if step is not None:
                self.player.step = step
            return self.player.picture
        finally:
            self.set(**before)
            self.player.step = step_before

    def _refresh(self) -> None:
        try:
            self.player.play(self._draw(**self.values))
        except Exception as error:
            self.player.error = (
                f"{type(error).__name__}: {error}"  # the page must not show an old picture as the new one
            )
            raise
        self.player.error = ""

    def _swept(self) -> dict[str, Any]:
        """The pictures along one control's values, and where on that way the lesson stands."""
        control = self._controls[self._sweep]
        if hasattr(control, "options"):
            pairs = list(zip(control._options_labels, control._options_values, strict=True))
        else:
            pairs = [(str(value), value) for value in range(control.min, control.max + 1, control.step)]
        here = [value for _, value in pairs].index(control.value)
        count = min(MOST_SWEPT, len(pairs))
        chosen = sorted({round(i * (len(pairs) - 1) / max(count - 1, 1)) for i in range(count)} | {here})
        before = self.values
        pictures = [self._draw(**before | {self._sweep: pairs[index][1]}) for index in chosen]
        axis = {"name": control.description, "values": [pairs[index][0] for index in chosen]}
        return {"label": self.player.label, "step": chosen.index(here), "axis": axis, **recording(pictures)}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        last = len(self.player.frames) - 1
        step = f", step {self.player.step} of {last}" if last else ""
        return f"Lesson({self.player.label!r}, {settings}{step}): {self.player.picture.alt}"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs) | self.player.bundle()
        if self._sweep is not None:
            bundle[MIME] = self._swept()
        return bundle | {"text/plain": repr(self)}
