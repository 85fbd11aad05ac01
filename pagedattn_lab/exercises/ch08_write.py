"""Exercise 3 of chapter 08: a kernel that writes keys into an int8 cache, each head's row with a scale of its own."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch08_grouped import SOLUTIONS
from pagedattn_lab.exercises.ch08_write_problem import LARGEST, WriteProblem
from pagedattn_lab.exercises.kernels import (
    KernelExercise,
    OwnKernel,
    kernel_cases,
    launching,
    same,
    specified,
    stored_too_little,
    touched_wrongly,
)
from pagedattn_lab.exercises.problems import Outcome
from pagedattn_lab.recorder.sentences import counted

if TYPE_CHECKING:
    from pagedattn_lab.viz import Picture


def _look(arguments: tuple[Any, ...], expected: Outcome, got: Outcome) -> str | None:
    """Say what is wrong: first what was touched, then what was written."""
    (problem,) = arguments
    if words := touched_wrongly(expected, got):
        return words
    for program, (token, head) in problem.programs.items():
        slot = problem.slots[token]
        if slot < 0:
            continue
        theirs = f"token {token}, head {head}"
        for name, size in (("scales", 1), ("cache", problem.dim)):
            stored = len(got.touched.get(("store", name, program), ()))
            if words := stored_too_little(stored, size, f"into the {name} for {theirs}"):
                return words
        scale, right = float(got.values["scales"][slot, head]), float(expected.values["scales"][slot, head])
        if scale != scale:
            why = ": its numbers are all 0, and 0 / 0 is NaN" if (token, head) in problem.zeros else ""
            return f"The scale of {theirs} is NaN{why}."
        if (token, head) in problem.zeros:
            if scale * got.values["cache"][slot, head].abs().max():
                return f"All numbers of {theirs} are 0, and what was written does not give zeros back."
        elif abs(scale - right) > right / 1e4:
            largest = f"its largest absolute value is {right * LARGEST:.4g}"
            return f"The scale of {theirs} is {scale:.4g}: {largest}, and a {LARGEST}th of that {right:.4g}."
        else:
            wanted, numbers = (outcome.values["cache"][slot, head] for outcome in (expected, got))
            far = (wanted - numbers).abs()
            if far.max() > 0.501:
                i = int(far.argmax())
                nearest = f"the nearest whole number is {wanted[i]:.0f}, not {numbers[i]:.0f}"
                return f"Element {i} of {theirs} is {wanted[i]:.2f} scales: {nearest}."
    return None


def _draw(arguments: tuple[Any, ...], outcome: Outcome) -> Picture:
    from pagedattn_lab.exercises.ch08_drawing import draw_lines, looks_of

    (problem,) = arguments
    looks = looks_of(outcome, "cache")
    slots = range(problem.num_slots)
    lines = {
        f"KV head {head}": [looks.get(slot * problem.kv_heads + head, "idle") for slot in slots]
        for head in range(problem.kv_heads)
    }
    outside = "outside" in looks.values()
    return draw_lines("Slots of the cache", [f"{slot}" for slot in slots], lines, None, WORDS, "slot", outside)


WORDS = {
    "loaded": "to be written, and stored into",
    "missing": "to be written, and left out",
    "without need": "stored into by another's program",
    "outside": "a slot that does not exist is stored into",
}


def _constants(problem: WriteProblem) -> dict[str, int]:
    return {"KV_HEADS": problem.kv_heads, "DIM": problem.dim}


@cache
def _cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> WriteProblem:
        number, kv_heads = rng.randint(1, 4), rng.choice([1, 2, 3])
        slots = tuple(slot if rng.random() < 0.8 else -1 for slot in rng.sample(range(9), number))
        zeros = tuple((token, rng.randrange(kv_heads)) for token in range(number) if rng.random() < 0.2)
        sign = rng.choice(["mixed", "mixed", "negative"])
        return WriteProblem(slots, kv_heads, rng.choice([2, 4, 8]), zeros, sign, seed)

    def shown(problem: WriteProblem) -> str:
        zeros = "".join(f", zeros in token {token}, head {head}" for token, head in problem.zeros)
        sign = "" if problem.sign == "mixed" else ", no number above 0"
        sizes = ", ".join(f"{key}={value}" for key, value in _constants(problem).items())
        slots = f"{counted(len(problem.slots), 'token')} for slots {', '.join(map(str, problem.slots))}"
        return f"{slots}{zeros}{sign}; {sizes}"

    known = [
        (WriteProblem((3,)), "One token, one head."),
        (WriteProblem((5, 0, 3)), "Slots are in no order."),
        (WriteProblem((2, 4), kv_heads=2), "Every head has a scale of its own."),
        (WriteProblem((1,), kv_heads=3, dim=8), "Three heads."),
        (WriteProblem((2,), sign="negative", dim=8), "The largest absolute value is that of a negative number."),
        (WriteProblem((4, -1)), "Token 1 is padding: its slot is -1."),
        (WriteProblem((-1, 2, -1, 0), kv_heads=2), "Two tokens are padding."),
        (WriteProblem((3, 1), zeros=((0, 0),)), "All numbers of token 0 are 0: zeros must come back."),
        (WriteProblem((6, 2), kv_heads=2, zeros=((1, 1),)), "All numbers of one head are 0."),
    ]
    about = (
        "The number of a row that is largest in size becomes 127 or -127, and every other one is rounded to nearest."
    )
    return kernel_cases("quantised_write", known, make, 16, about, shown, lambda p: len(p.slots) * p.kv_heads * p.dim)


_right = OwnKernel(SOLUTIONS, "quantised_write")
_NEAREST = "tl.floor(key / divisor + 0.5)"
_LARGEST = "    largest = tl.max(tl.abs(key), axis=0)\n"
_OVER_HEADS = """    largest = 0.0
    for other in range(KV_HEADS):
        largest = tl.maximum(
            largest, tl.max(tl.abs(tl.load(key_ptr + (token * KV_HEADS + other) * DIM + dims)), axis=0)
        )
"""

quantised_write = KernelExercise(
    "08.3",
    "quantised_write",
    "Write in eight bits",
    cases=_cases,
    reference=_right,
    oracle=specified,
    **launching(_constants),
    same=same,
    look=_look,
    draw=_draw,
    returns="nothing: store into cache and scales",
    hints=(
        "A program has `tl.program_id(0)`, its token, and `tl.program_id(1)`, its KV head. It loads one slot and `DIM` "
        "keys. It stores `DIM` numbers into the cache and a scale into the scales, in row `slot * KV_HEADS + head` of "
        "both.",
        "The scale is `tl.max(tl.abs(key), axis=0) / 127`. `.to(tl.int8)` cuts off what follows the point: what must "
        "be done to 3.7 and to -3.7 before, so that 4 and -4 are left? And what is 0 / 0?",
        "`tl.floor(x + 0.5)` is the nearest whole number for either sign. Divide by "
        "`tl.where(largest > 0, scale, 1.0)`, and give both stores `mask=slot >= 0`.",
    ),
    explanation="A scale for each token and head is one more number per row, and fits rows of different size. Rounding "
    "to nearest is off by half a scale at most, cutting off by a whole one and always towards 0. Slots of -1 are how a "
    "padded batch says that there is nothing to write: as an address, -1 lies in front of the cache.",
    wrong={
        "take one scale per token for all its heads": _right.but((_LARGEST, _OVER_HEADS)),
        "cut off what follows the point instead of rounding": _right.but((_NEAREST, "key / divisor")),
        "add 0.5 and cut off, which rounds negative numbers up": _right.but((_NEAREST, "key / divisor + 0.5")),
        "divide by 127 instead of by the scale": _right.but(("key / divisor", "key / 127")),
        "take the largest number for the largest absolute value": _right.but(
            ("tl.max(tl.abs(key), axis=0)", "tl.max(key, axis=0)")
        ),
        "divide the largest by 128": _right.but(("largest / 127", "largest / 128")),
        "write a token whose slot is -1": _right.but((", mask=slot >= 0", "")),
        "give a row of zeros a scale of NaN": _right.but(
            ("own_row, scale, mask", "own_row, largest / tl.max(tl.abs(numbers), axis=0), mask")
        ),
        "store the scale in the token's row instead of the slot's": _right.but(
            ("scales_ptr + own_row", "scales_ptr + token * KV_HEADS + head")
        ),
        "leave the scale unwritten": _right.but(("    tl.store(scales_ptr + own_row, scale, mask=slot >= 0)\n", "")),
    },
)
