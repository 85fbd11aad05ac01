"""Move every control of every lesson in a notebook, as a reader does and from Python, and compare both sides each time.

What the page shows is read in one place, `SHOWN` here and in `players`; what the library holds in another, `HELD`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import players
from jupyter_page import Notebook
from playwright.sync_api import Locator
from watch import until

# A control as {description, position, shown}: where it stands, counted as the widget counts, and the text beside it.
# ipywidgets writes no-break spaces into the options of a list.
SHOWN = r"""output => {
  const read = box => {
    const handle = box.querySelector('[role=slider]'), select = box.querySelector('select');
    const description = box.querySelector('.widget-label')?.textContent ?? '';
    if (handle) return {description, position: Number(handle.ariaValueNow),
                        shown: box.querySelector('.widget-readout').textContent};
    if (select) return {description, position: select.selectedIndex,
                        shown: select.selectedOptions[0]?.text.replaceAll('\u00a0', ' ')};
    return {description, position: null, shown: box.className};
  };
  return [...output.querySelectorAll('.widget-inline-hbox')].map(read);
}"""

# Runs in the kernel: every lesson and player that exists there, shown or not; controls are found among the children.
HELD = """
def _tests_widgets(kind):
    from ipywidgets.widgets import widget
    from pagedattn_lab.viz import lesson, player
    kind = {"Lesson": lesson.Lesson, "Player": player.Player}[kind]
    return {key: found for key, found in widget._instances.items() if isinstance(found, kind)}

def _tests_controls(lesson):
    def leaves(box):
        for child in box.children:
            yield from leaves(child) if hasattr(child, "children") else [child]
    return dict(zip(lesson.values, [leaf for leaf in leaves(lesson) if leaf.has_trait("value")], strict=True))

def _tests_lesson(key):
    lesson, controls = _tests_widgets("Lesson")[key], {}
    for name, control in _tests_controls(lesson).items():
        assert control.value == lesson.values[name], name
        chosen = hasattr(control, "index")
        controls[name] = {
            "kind": type(control).__name__, "description": control.description,
            "position": control.index if chosen else control.value,
            "shown": control.label if chosen else str(control.value),
            "first": 0, "step": 1, "last": len(control._options_values) - 1 if chosen else None,
        }
        controls[name] |= {end: getattr(control, trait) for end, trait in
                           (("first", "min"), ("step", "step"), ("last", "max")) if control.has_trait(trait)}
    state = {"controls": controls, "player": _tests_player(lesson.player.model_id)}
    return state | {"current": not lesson.player.error and _tests_is_current(key)}

def _tests_is_current(key, drawn={}):  # the same values are drawn once
    from pagedattn_lab.viz.player import played, recording
    lesson = _tests_widgets("Lesson")[key]
    what = key, repr(lesson.values)
    if what not in drawn:
        try:
            drawn[what] = recording(lesson._draw(**lesson.values))
        except Exception:
            return False  # the player is about to say so
    return lesson.player.recording == played(drawn[what])

def _tests_player(key):
    player = _tests_widgets("Player")[key]
    state = {name: getattr(player, name) for name in ("step", "label", "error")}
    return {**state, "last": len(player.frames) - 1, "frame": player.frames[player.step]}

def _tests_set(key, name, position):
    lesson = _tests_widgets("Lesson")[key]
    control = _tests_controls(lesson)[name]
    lesson.set(**{name: control._options_values[position] if hasattr(control, "index") else position})

def _tests_step(key, step):
    _tests_widgets("Player")[key].step = step
"""

# A lesson with a control of each kind, of what a notebook has called "draw".
ONE_OF_EACH = """
lesson = Lesson(
    draw,
    "Two requests",
    tokens=widgets.IntSlider(5, min=1, max=9, description="tokens"),
    block_size=widgets.SelectionSlider(options=[2, 4, 8], value=4, description="block size"),
    order=widgets.Dropdown(options=["Ada, Bo", "Bo, Ada", "Bo"], description="order"),
)
lesson
"""

# A page of figures is laid out anew at each move: while lessons are driven, only the cells that show them stand in it.
ALONE = ".jp-Notebook .jp-Cell:not(:has(.pa-lesson, .pa-player)) { display: none }"

Read = Callable[[], dict[str, Any]]
Move = Callable[[Locator, str], None]  # moves a control to "last", "first" or somewhere "between"


def drag_slider(box: Locator, where: str) -> None:
    """Drag the handle past an end of its track, or click the track's middle."""
    box.scroll_into_view_if_needed()
    handle, track = box.locator("[role=slider]").bounding_box(), box.locator(".noUi-base").bounding_box()
    assert handle and track
    middle, mouse = track["y"] + track["height"] / 2, box.page.mouse
    if where == "between":
        mouse.click(track["x"] + track["width"] / 2, middle)
        return
    mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    mouse.down()
    mouse.move(track["x"] + (track["width"] + 30 if where == "last" else -30), middle, steps=4)
    mouse.up()


def press_slider(box: Locator, where: str) -> None:
    """Move the handle with Home, End and the arrow keys."""
    box.locator("[role=slider]").focus()
    _press(box, where)


def choose_option(box: Locator, where: str) -> None:
    """Choose an option of a list."""
    select = box.locator("select")
    count = select.locator("option").count()
    select.select_option(index={"first": 0, "last": count - 1, "between": count // 2}[where])


def press_list(box: Locator, where: str) -> None:
    """Choose with Home, End and the arrow keys."""
    box.locator("select").focus()
    _press(box, where)


def _press(box: Locator, where: str) -> None:
    keys = {"first": ["Home"], "last": ["End"], "between": ["Home", "ArrowRight"]}[where]
    for key in keys:
        box.page.keyboard.press(key)


MOVES: dict[str, tuple[Move, Move]] = {
    "IntSlider": (drag_slider, press_slider),
    "SelectionSlider": (drag_slider, press_slider),
    "Dropdown": (choose_option, press_list),
}


class Driver:
    """Moves what a notebook shows, and compares page and library after each move.

    Attributes:
        lessons, players: ids of the lessons in the kernel, and of the players that a cell shows by themselves.
        controls: lesson and name of every control in the kernel.
    """

    def __init__(self, notebook: Notebook) -> None:
        self._notebook, self._kernel = notebook, notebook.kernel
        self._kernel.run(HELD)
        notebook.add_style(ALONE)
        self.lessons: list[str] = self._kernel.evaluate("list(_tests_widgets('Lesson'))")
        shown = notebook.shown_by()
        self.players = [key for key in self._kernel.evaluate("list(_tests_widgets('Player'))") if key in shown]
        found = "[[key, name] for key, lesson in _tests_widgets('Lesson').items() for name in lesson.values]"
        self.controls = {(key, name) for key, name in self._kernel.evaluate(found)}

    def drive_controls(self, every_way: bool = True) -> dict[tuple[str, str], str]:
        """Move every control to both ends and between them: by mouse, by keyboard, from Python.

        Args:
            every_way: otherwise each place is reached in one of these ways: controls of a kind differ in what they are
                wired to, and not in how they answer to a mouse or a keyboard.

        Returns:
            The controls that were moved, and the kind of each.

        Raises:
            AssertionError: page and library differ, Python raised, or the page does not show a lesson or a control.
        """
        driven = {}
        for key in self.lessons:
            output, controls = self._notebook.output(key), self._held(key)["controls"]
            unknown = {control["kind"] for control in controls.values()} - set(MOVES)
            assert not unknown, f"nothing here can move a {', '.join(unknown)}: add it to MOVES"
            self._agree(key)
            for name, control in controls.items():
                label = output.page.get_by_text(control["description"], exact=True)
                box = output.locator(".widget-inline-hbox").filter(has=label)
                positions = {
                    "first": control["first"],
                    "last": control["last"],
                    "between": control["first"] + control["step"],
                }

                def from_python(
                    _: Locator, where: str, key: str = key, name: str = name, positions: dict[str, int] = positions
                ) -> None:
                    self._kernel.run(f"_tests_set({key!r}, {name!r}, {positions[where]!r})")

                mouse, keyboard = MOVES[control["kind"]]
                moves = [(move, where) for move in (mouse, keyboard, from_python) for where in places(control)]
                if not every_way:
                    one_each = {"last": mouse, "first": keyboard, "between": from_python}
                    moves = [(one_each[where], where) for where in places(control)]
                for move, where in moves:
                    move(box, where)
                    self._agree(key, name, where)
                driven[key, name] = control["kind"]
        return driven

    def drive_players(self, every_way: bool = True) -> int:
        """Work every part of every player, and move it from Python.

        Args:
            every_way: otherwise a button and a key lead to the ends: players differ in what they show, and not in how
                they answer.

        Returns:
            How many players were worked.

        Raises:
            AssertionError: page and library differ, or a part of a player does not answer.
        """
        inside = {
            key: self._kernel.evaluate(f"_tests_widgets('Lesson')[{key!r}].player.model_id") for key in self.lessons
        }
        for shown_by, key in [*inside.items(), *((key, key) for key in self.players)]:
            player = self._notebook.output(shown_by).locator(".pa-player")

            def check(step: int, text: bool = False, key: str = key, player: Locator = player) -> None:
                self._same(
                    lambda: players.expected(self._kernel.evaluate(f"_tests_player({key!r})"), text),
                    lambda: players.shown(player),
                    lambda held: held["step"] == step,
                    f"player at step {step}",
                )

            last = int(player.get_attribute("data-last"))
            if last:
                (players.step_through if every_way else players.step_to_the_ends)(player, check)
            players.read_as_text(player, check)
            for step in sorted({last, last // 2, 0}, reverse=True):
                self._kernel.run(f"_tests_step({key!r}, {step})")
                check(step)
                if every_way or step == last:
                    players.answer(player)
        return len(inside) + len(self.players)

    def _held(self, key: str) -> dict[str, Any]:
        return self._kernel.evaluate(f"_tests_lesson({key!r})")

    def _agree(self, key: str, name: str = "", where: str = "") -> None:
        """Wait until the page shows a lesson as the library holds it, with the control ``name`` moved to a place."""
        output = self._notebook.output(key)
        controls: dict[str, Any] = {}

        def held() -> dict[str, Any]:
            state = self._held(key)
            controls.update(state["controls"])
            known = [{part: c[part] for part in ("description", "position", "shown")} for c in controls.values()]
            # JupyterLab runs callbacks in a thread beside ours: the value may be there before the picture
            picture = "as drawn" if state["current"] or not name else "the picture is old"
            return {"controls": known, "player": players.expected(state["player"]), "picture": picture}

        def shown() -> dict[str, Any]:
            player = players.shown(output.locator(".pa-player"))
            return {"controls": output.evaluate(SHOWN), "player": player, "picture": "as drawn"}

        def arrived(_: dict[str, Any]) -> bool:
            if not name:
                return True
            low, high, now = (controls[name][part] for part in ("first", "last", "position"))
            return {"first": now == low, "last": now == high, "between": low < now < high}[where]

        self._same(held, shown, arrived, f"{name} moved to {where}" if name else "before any move")

    def _same(self, held: Read, shown: Read, arrived: Callable[[dict[str, Any]], bool], move: str) -> None:
        seen: list[dict[str, Any]] = [{}, {}]

        def same() -> bool:
            seen[:] = held(), shown()
            raised = [*self._kernel.errors, *filter(None, [seen[0].get("player", seen[0])["error"]])]
            assert raised == [], f"{self._notebook.name}, {move}: Python raised {raised}"
            return arrived(seen[0]) and seen[0] == seen[1]

        until(same, lambda: f"{self._notebook.name}, {move}: the library has {seen[0]}, the page shows {seen[1]}")


def places(control: dict[str, Any]) -> list[str]:
    """Return where to move a control: to both ends, and between them where there is anything."""
    return ["last", "first"] + ["between"] * (control["last"] - control["first"] > control["step"])
