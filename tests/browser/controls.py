"""Move every control of every lesson in a notebook, as a reader does and from Python, and compare both sides each time.

What the page shows is read in one place, `SHOWN`; what the library holds in another, `HELD`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jupyter_page import Notebook
from playwright.sync_api import Locator
from watch import until

# A control as {description, position, shown}: where it stands, counted as the widget counts, and the text beside it.
SHOWN = """output => {
  const read = box => {
    const handle = box.querySelector('[role=slider]'), select = box.querySelector('select');
    const description = box.querySelector('.widget-label')?.textContent ?? '';
    if (handle) return {description, position: Number(handle.ariaValueNow),
                        shown: box.querySelector('.widget-readout').textContent};
    if (select) return {description, position: select.selectedIndex, shown: select.selectedOptions[0]?.text};
    return {description, position: null, shown: box.className};
  };
  return {
    controls: [...output.querySelectorAll('.widget-inline-hbox:not(.widget-html)')].map(read),
    picture: output.querySelector('svg[aria-label]')?.getAttribute('aria-label'),
  };
}"""

# Runs in the kernel: every lesson that exists there, shown or not, with its controls found among its children.
HELD = """
def _tests_lessons():
    from ipywidgets.widgets import widget
    from pagedattn_lab.viz.lesson import Lesson
    return {key: found for key, found in widget._instances.items() if isinstance(found, Lesson)}

def _tests_controls(lesson):
    def leaves(box):
        for child in box.children:
            yield from leaves(child) if hasattr(child, "children") else [child]
    found = [leaf for leaf in leaves(lesson) if leaf.has_trait("value") and leaf.has_trait("description_allow_html")
             and type(leaf).__name__ != "HTML"]
    return dict(zip(lesson.values, found, strict=True))

def _tests_held(key):
    lesson = _tests_lessons()[key]
    controls = {}
    for name, control in _tests_controls(lesson).items():
        assert control.value == lesson.values[name], name
        chosen = hasattr(control, "index")
        last = len(control._options_values) - 1 if chosen else control.max
        controls[name] = {
            "kind": type(control).__name__, "description": control.description,
            "position": control.index if chosen else control.value,
            "shown": control.label if chosen else str(control.value),
            "first": 0 if chosen else control.min, "last": last, "step": 1 if chosen else control.step,
        }
    return {"controls": controls, "picture": lesson._draw(**lesson.values).alt}

def _tests_set(key, name, position):
    lesson = _tests_lessons()[key]
    control = _tests_controls(lesson)[name]
    lesson.set(**{name: control._options_values[position] if hasattr(control, "index") else position})
"""

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


def lessons(notebook: Notebook) -> list[str]:
    """Return the id of every lesson in the notebook's kernel."""
    notebook.kernel.run(HELD)
    return notebook.kernel.evaluate("list(_tests_lessons())")


def drive(notebook: Notebook) -> set[tuple[str, str]]:
    """Move every control of every lesson in all three ways, and compare page and library after each move.

    Returns:
        The lesson and name of every control that was moved.

    Raises:
        AssertionError: page and library differ, Python raised, or a lesson or control is not in the page.
    """
    driven = set()
    for key in lessons(notebook):
        output = notebook.output(key)
        agree(notebook, key, output)
        for name, control in held(notebook, key)["controls"].items():
            assert control["kind"] in MOVES, f"nothing here can move a {control['kind']}: add it to MOVES"
            for move in MOVES[control["kind"]]:
                box = output.locator(".widget-inline-hbox").filter(
                    has=output.page.get_by_text(control["description"], exact=True)
                )
                for where in places(control):
                    move(box, where)
                    agree(notebook, key, output, name, where)
            for where in places(control):
                second = control["first"] + control["step"]
                position = {"first": control["first"], "last": control["last"], "between": second}[where]
                notebook.kernel.run(f"_tests_set({key!r}, {name!r}, {position!r})")
                agree(notebook, key, output, name, where)
            driven.add((key, name))
    return driven


def places(control: dict[str, Any]) -> list[str]:
    """Return where to move a control: to both ends, and between them where there is anything."""
    return ["last", "first"] + ["between"] * (control["last"] - control["first"] > control["step"])


def held(notebook: Notebook, key: str) -> dict[str, Any]:
    """Return a lesson's state as the library has it, its picture drawn anew from the controls' values."""
    return notebook.kernel.evaluate(f"_tests_held({key!r})")


def agree(notebook: Notebook, key: str, output: Locator, name: str = "", where: str = "") -> None:
    """Wait until the page shows a lesson as the library holds it, with the control ``name`` where it was moved to.

    Raises:
        AssertionError: it does not, or Python raised meanwhile.
    """
    move = f"{notebook.name}, {name} moved to {where}"
    seen: list[dict[str, Any]] = [{}, {}]

    def same() -> bool:
        inside, page = held(notebook, key), output.evaluate(SHOWN)
        assert notebook.kernel.errors == [], f"{move}: {notebook.kernel.errors}"
        known = [{part: c[part] for part in ("description", "position", "shown")} for c in inside["controls"].values()]
        seen[:] = [inside | {"controls": known}, page]
        if name:
            control = inside["controls"][name]
            low, high, now = control["first"], control["last"], control["position"]
            if not {"first": now == low, "last": now == high, "between": low < now < high}[where]:
                return False
        return seen[0] == seen[1]

    until(same, lambda: f"{move}: the library has {seen[0]}, the page shows {seen[1]}")
