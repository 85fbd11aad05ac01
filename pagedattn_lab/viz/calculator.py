"""The calculator of chapter 10: choose a model, a GPU and a load, and see what fits.

A lesson whose pages without a kernel have no stored pictures, but the numbers that its pictures are made of: see
``calculator.js``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.concurrency import CURVE_HEIGHT, LENGTHS, Point, draw_concurrency
from pagedattn_lab.viz.fit import Facts, held_blocks, most_blocks, tell, times, work_out
from pagedattn_lab.viz.grid import offer, pack, positions
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.vram import BAR_HEIGHT, describe_memory, draw_memory, picture

CONTROLS = {
    "model": "model",
    "gpu": "GPU",
    "max_model_len": "max_model_len",
    "kv_cache_dtype": "kv_cache_dtype",
    "block_size": "block_size",
    "tokens": "tokens of a request",
    "users": "requests",
}
"""What each control is called, by the name of the value that it sets."""


def draw(facts: Facts, at: Sequence[int]) -> Picture:
    """Draw the bar of memory and the curve of requests at once, for one position of the controls."""
    answer = work_out(facts, at)
    _, _, groups = facts["models"][at[0]]["layouts"][at[3]][at[4]]
    in_flight, context, blocks = facts["gpus"][at[1]]["in_flight"], answer.context, answer.num_blocks[0]
    most = [(blocks, sum(most_blocks(group, length, in_flight) for group in groups)) for length in LENGTHS]
    held = [(answer.usable, sum(held_blocks(group, length)[0] for group in groups)) for length in LENGTHS]
    per_request, fitting = answer.blocks_per_request, answer.usable // answer.held
    worst = Point(context, (blocks, per_request), f"{times(blocks, per_request)}x at {context:,}")
    typical = Point(answer.tokens, (answer.usable, answer.held), f"{fitting:,} fit at {answer.tokens:,}")
    wanted = Point(answer.tokens, (answer.users, 1), f"{answer.users:,} wanted")
    curve = "".join(draw_concurrency(most, held, worst, typical, wanted))
    body = f'{"".join(draw_memory(answer.memory))}<g transform="translate(0,{BAR_HEIGHT + 8})">{curve}</g>'
    sentence = tell(answer)
    listed = [f"{length:,}: {times(*ratio)}" for length, ratio in zip(LENGTHS[::2], most[::2], strict=True)]
    alt = f"{describe_memory(answer.memory)} {sentence} Requests at once by the tokens of each: {', '.join(listed)}."
    return picture(body, BAR_HEIGHT + 8 + CURVE_HEIGHT, alt, sentence)


class Calculator(Lesson):
    """Controls for a model, a GPU and a load; below them the memory, and how many requests fit at once.

    Args:
        facts: numbers of models and GPUs, from :func:`gather`.
        values: where controls stand at first, by their names in :data:`CONTROLS`; the others at their first option.

    Raises:
        KeyError: no control of that name.
        traitlets.TraitError: a value that is none of a control's options.
    """

    def __init__(self, facts: Facts, **values: Any) -> None:
        self._facts = facts
        options: dict[str, list[tuple[str, Any]]] = {
            "model": [(model["name"], model["name"]) for model in facts["models"]],
            "gpu": [(gpu["name"], gpu["name"]) for gpu in facts["gpus"]],
            "max_model_len": _numbers(facts["contexts"]),
            "kv_cache_dtype": [(dtype, dtype) for dtype in facts["dtypes"]],
            "block_size": _numbers(facts["block_sizes"]),
            "tokens": _numbers(facts["tokens"]),
            "users": _numbers(facts["users"]),
        }
        for name in values:
            if name not in options:
                raise KeyError(f"the calculator has no control {name!r}: it has {', '.join(options)}")
        self._values = {name: [value for _, value in pairs] for name, pairs in options.items()}
        sliders = {"max_model_len", "tokens", "users"}
        controls = {
            name: (widgets.SelectionSlider if name in sliders else widgets.Dropdown)(
                options=pairs, value=values.get(name, pairs[0][1]), description=CONTROLS[name]
            )
            for name, pairs in options.items()
        }
        super().__init__(self._show, "What fits into a GPU's memory", **controls)

    def _show(self, **values: Any) -> Picture:
        return draw(self._facts, [self._values[name].index(value) for name, value in values.items()])

    def _check_choices(self) -> None:
        """A page without a kernel draws any combination itself."""

    def _make_grid(self) -> dict[str, Any]:
        text = json.dumps(self._facts, sort_keys=True)
        return {
            "controls": [offer(control, positions(control)) for control in self._controls.values()],
            "recordings": pack({"calculator": self._facts}),
            "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


def _numbers(values: Sequence[int]) -> list[tuple[str, int]]:
    return [(f"{value:,}", value) for value in values]
