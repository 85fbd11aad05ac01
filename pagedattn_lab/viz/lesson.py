"""Controls beside a player that follows them: live in JupyterLab, without a kernel in the book, a still elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.player import MIME, Player, Source, picture, recording

MOST_SWEPT = 8


class Lesson(widgets.VBox):
    """Controls, and below them a player of what ``draw`` makes of their values.

    Args:
        draw: makes a recorder, a recording, or one or more pictures from the controls' values, passed by name.
        label: what there is to see, in a few words; screen readers announce it.
        step: the frame to begin with, negative ones counted from the end.
        sweep: name of a control whose values the built book steps through, where no kernel can draw: a slider of whole
            numbers or a choice of options. For lessons that draw one picture; a few values are drawn, both extremes and
            the present one among them.
        controls: widgets with a ``value`` and a ``description``, by the name of the argument they set.

    Attributes:
        player: the player.

    Raises:
        ValueError: a control without a description, or a ``sweep`` that the book cannot step through.

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
        for name, control in controls.items():
            if not control.description.strip():
                raise ValueError(f"control {name!r} has no description: readers would not know what it changes")
        if sweep is not None:
            if sweep not in controls:
                raise ValueError(f"sweep={sweep!r} is no control of this lesson: name one of {', '.join(controls)}")
            _positions(controls[sweep])
        self._draw, self._controls, self._sweep = draw, controls, sweep
        self._moving = False
        self.player = Player(draw(**self.values), label, step=step)
        if sweep is not None and (len(self.player.frames) != 1 or "svg" not in self.player.frames[0]):
            raise ValueError(f"sweep={sweep!r} is for lessons that draw one picture: this one has frames of its own")
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
        """Move controls as a reader would, all of them before anything is drawn, and give the lesson back.

        Raises:
            KeyError: no control of that name; none has moved.
        """
        self._check_names(values)
        self._moving = True
        try:
            for name, value in values.items():
                self._controls[name].value = value
        finally:
            self._moving = False
            self._refresh()
        return self

    def at(self, step: int | None = None, **values: Any) -> Picture:
        """Draw what other values would lead to; controls and player stay as they are.

        Args:
            step: the frame, negative ones counted from the end; by default the one at which the player would stand.
            values: by the names of controls; the others count as they are.

        Raises:
            KeyError: no control of that name.
        """
        self._check_names(values)
        made = recording(self._draw(**self.values | values))
        last = len(made["frames"]) - 1
        return picture(made, self.player.step_in(last) if step is None else step)

    def _check_names(self, values: dict[str, Any]) -> None:
        for name in values:
            if name not in self._controls:
                raise KeyError(f"this lesson has no control {name!r}: it has {', '.join(self._controls)}")

    def _refresh(self) -> None:
        if self._moving:
            return
        try:
            self.player.play(self._draw(**self.values))
        except Exception as error:
            # The page must not show an old picture as the new one.
            self.player.error = f"{type(error).__name__}: {error}"
            raise
        self.player.error = ""

    def _swept(self) -> dict[str, Any]:
        """The pictures along one control's values, and where on that way the lesson stands."""
        control = self._controls[self._sweep]
        pairs = _positions(control)
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
        error = f" {self.player.error}, so still" if self.player.error else ""
        return f"Lesson({self.player.label!r}, {settings}{step}):{error} {self.player.alt}"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs) | self.player.bundle()
        if self._sweep is not None:
            bundle[MIME] = self._swept()
        return bundle | {"text/plain": repr(self)}


def _positions(control: Any) -> list[tuple[str, Any]]:
    """Where a control can stand, as (text, value): the options of a choice, the steps of a slider of whole numbers."""
    if isinstance(control, widgets.IntSlider):
        values = {*range(control.min, control.max + 1, control.step), control.max, control.value}
        return [(str(value), value) for value in sorted(values)]
    if isinstance(control, widgets.Dropdown | widgets.SelectionSlider) and control.index is not None:
        options = control.options.items() if isinstance(control.options, Mapping) else control.options
        return [option if isinstance(option, tuple) else (str(option), option) for option in options]
    raise ValueError(
        f"the book cannot step through this {type(control).__name__}: "
        "sweep an IntSlider, a SelectionSlider, or a Dropdown with a value"
    )
