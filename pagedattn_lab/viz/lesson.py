"""Controls beside a player that follows them: live in JupyterLab, without a kernel in the book, a still elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.grid import check_choices, make_grid
from pagedattn_lab.viz.player import MIME, Player, Source, picture, recording


class Lesson(widgets.VBox):
    """Controls, and below them a player of what ``draw`` makes of their values.

    Displayed, a lesson stores what it shows at each position of its controls, so that they work without a kernel too:
    a lesson of pictures at some positions of each slider, see :mod:`pagedattn_lab.viz.grid`. It does so where all
    controls are sliders of whole numbers and choices of options.

    Args:
        draw: makes a recorder, a recording, or one or more pictures from the controls' values, passed by name.
        label: what there is to see, in a few words; screen readers announce it.
        step: the frame to begin with, negative ones counted from the end.
        controls: widgets with a ``value`` and a ``description``, by the name of the argument they set.

    Attributes:
        player: the player.

    Raises:
        ValueError: a control without a description, two options with one text, or more options than a page can hold.

    Example:
        >>> def draw(size):
        ...     return Picture("<svg></svg>", alt=f"{size} squares")
        >>> lesson = Lesson(draw, "Squares", size=widgets.IntSlider(3, min=1, max=9, description="squares"))
        >>> lesson.at(size=9), lesson
        (9 squares, Lesson('Squares', size=3): 3 squares)
    """

    def __init__(self, draw: Callable[..., Source], label: str, *, step: int = -1, **controls: Any) -> None:
        for name, control in controls.items():
            if not control.description.strip():
                raise ValueError(f"control {name!r} has no description: readers would not know what it changes")
        self._draw, self._controls = draw, controls
        self._moving = False
        self.player = Player(draw(**self.values), label, step=step)
        self._check_choices()
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

    def _check_choices(self) -> None:
        """Refuse controls that a page without a kernel could not offer."""
        check_choices(self._controls, has_pictures="svg" in self.player.frames[0])

    def _make_grid(self) -> dict[str, Any] | None:
        """Make what a page without a kernel needs."""
        return make_grid(self._controls, lambda **values: recording(self._draw(**values)))

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

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        last = len(self.player.frames) - 1
        step = f", step {self.player.step} of {last}" if last else ""
        error = f" {self.player.error}, so still" if self.player.error else ""
        return f"Lesson({self.player.label!r}, {settings}{step}):{error} {self.player.alt}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = super()._repr_mimebundle_(**kwargs) | self.player.bundle() | {"text/plain": repr(self)}
        grid = self._make_grid()
        if grid is None:
            return bundle, {}
        # Another zlib packs the same in other bytes: what is packed is metadata, the digest beside it is data.
        packed = {"recordings": grid.pop("recordings")}
        return bundle | {MIME: bundle[MIME] | {"grid": grid}}, {MIME: packed}
