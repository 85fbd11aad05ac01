"""Exercise 2 of chapter 08: a kernel that merges what the splits of a sequence have computed."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch08_grouped import SOLUTIONS
from pagedattn_lab.exercises.ch08_merge_problem import OFFSETS, MergeProblem, place
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

if TYPE_CHECKING:
    from pagedattn_lab.viz import Picture


def _look(arguments: tuple[Any, ...], expected: Outcome, got: Outcome) -> str | None:
    """Say what is wrong: first what was touched, then what came out."""
    (problem,) = arguments
    if words := touched_wrongly(expected, got):
        return words
    for program, (row, head) in problem.programs.items():
        theirs = place((row, head))
        stored = len(got.touched.get(("store", "out", program), ()))
        if words := stored_too_little(stored, problem.dim, f"for {theirs}"):
            return words
        if not got.values[row, head].isnan().any():
            continue
        if not any(problem.tokens[row]):
            return f"NaN for {theirs}, whose splits are all empty: -inf - -inf and 0 / 0 are NaN. Zeros are asked for."
        if problem.scores != "mixed":
            largest = problem.tensors["maxima"][row, head].max()
            return (
                f"NaN for {theirs}, whose largest maximum is {largest:.0f}: did a factor overflow, or did all vanish?"
            )
        return f"NaN for {theirs}: what are the factor and the product of a split without tokens?"
    return None


def _draw(arguments: tuple[Any, ...], outcome: Outcome) -> Picture:
    from pagedattn_lab.exercises.ch08_drawing import draw_lines, looks_of

    (problem,) = arguments
    looks = looks_of(outcome, "accumulators")
    places = list(problem.programs.values())
    lines = {
        f"seq {row}, head {head}": [looks.get(line * problem.splits + split, "idle") for split in range(problem.splits)]
        for line, (row, head) in enumerate(places)
    }
    tokens = [[f"{number}" for number in problem.tokens[row]] for row, _ in places]
    outside = "outside" in looks.values()
    heads = [f"{split}" for split in range(problem.splits)]
    return draw_lines("Accumulators by split, with its tokens", heads, lines, tokens, WORDS, "split", outside)


WORDS = {
    "loaded": "needed and loaded",
    "missing": "needed, not loaded",
    "without need": "loaded, not needed",
    "outside": "accumulators that do not exist",
}


def _constants(problem: MergeProblem) -> dict[str, int]:
    return {"HEADS": problem.heads, "SPLITS": problem.splits, "LANES": problem.lanes, "DIM": problem.dim}


@cache
def _cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> MergeProblem:
        splits = rng.choice([2, 3, 4, 5])
        tokens = tuple(tuple(rng.choice([0, 1, 2, 7]) for _ in range(splits)) for _ in range(rng.choice([1, 2])))
        scores = rng.choice([*OFFSETS])
        return MergeProblem(tokens, rng.choice([1, 2, 3]), rng.choice([2, 4, 8]), scores=scores, seed=seed)

    def shown(problem: MergeProblem) -> str:
        tokens = "; ".join(" + ".join(map(str, each)) for each in problem.tokens)
        scores = "" if problem.scores == "mixed" else f", scores {problem.scores}"
        return f"splits of {tokens} tokens{scores}; {', '.join(f'{k}={v}' for k, v in _constants(problem).items())}"

    known = [
        (MergeProblem(((3, 5),)), "Two splits, both with tokens."),
        (MergeProblem(((4, 4, 1, 6),), heads=2), "Four splits, two heads."),
        (MergeProblem(((2, 3, 1),), heads=2), "Three splits, and four lanes."),
        (MergeProblem(((5, 0),)), "The last split is empty: its accumulator holds garbage."),
        (MergeProblem(((0, 3, 0, 2),)), "The first split is empty."),
        (MergeProblem(((6,), (1,)), dim=8), "One split: nothing changes but the division."),
        (MergeProblem(((2, 2), (0, 0))), "Sequence 1 is padding of the batch: all its splits are empty."),
        (MergeProblem(((3, 4), (4, 3)), scores="high"), "exp of any maximum is infinite."),
        (MergeProblem(((3, 4, 2),), scores="low"), "exp of any maximum is 0."),
        (MergeProblem(((2, 2, 2, 2),), heads=2, scores="apart"), "Maxima are 150 apart, and the first is the largest."),
        (MergeProblem(((0, 2, 2),), heads=2, scores="apart"), "Maxima are 150 apart, and the first is -inf."),
        (MergeProblem(((0, 0, 2, 2),), scores="apart"), "Maxima are 300 apart, and the last is the largest."),
    ]
    about = "Every sum and accumulator is relative to the maximum of its own split."
    return kernel_cases("merge_splits", known, make, 14, about, shown, lambda p: p.heads * p.splits * len(p.tokens))


_right = OwnKernel(SOLUTIONS, "merge_splits")
_FACTORS = "tl.where(used, tl.exp(maxima - new_max), 0.0)"

merge_splits = KernelExercise(
    "08.2",
    "merge_splits",
    "Merge the splits",
    cases=_cases,
    reference=_right,
    oracle=specified,
    **launching(_constants),
    same=same,
    look=_look,
    draw=_draw,
    returns="nothing: store into out",
    hints=(
        "It is exercise 1 of chapter 07 for many parts at once. Row `tl.program_id(0) * HEADS + tl.program_id(1)` has "
        "`SPLITS` maxima, as many sums, and as many accumulators of `DIM` numbers. Loop over them, or load them in "
        "`LANES` lanes, of which those from `SPLITS` on are masked.",
        "The new maximum is the largest one. Each split's factor is `tl.exp(maximum - new_max)`, for its sum and for "
        "its accumulator. Out is the sum of the accumulators, divided by the sum of the sums.",
        'With `used = maxima > float("-inf")` mask the load of the accumulators, `mask=used[:, None], other=0.0`. '
        "Where no split is used, -inf - -inf is NaN: take the factors from `tl.where(used, ..., 0.0)`, and out from "
        "`tl.where(total > 0, acc / total, 0.0)`.",
    ),
    explanation="A factor is at most 1, so nothing overflows, and the largest one is 1, so the total is never 0 where "
    "there is a token. A split without tokens has left by the first line of its kernel and has written no accumulator: "
    "not loading it saves the time, and 0 times NaN would be NaN.",
    wrong={
        "average the splits' outputs": _right.but(
            (
                "tl.sum(factors[:, None] * accs, axis=0)",
                "tl.sum(tl.where(used, 1 / tl.where(used, sums, 1.0), 0.0)[:, None] * accs, axis=0) "
                "* total / tl.sum(used.to(tl.float32), axis=0)",
            )
        ),
        "add sums and accumulators as they are": _right.but((_FACTORS, "tl.where(used, 1.0, 0.0)")),
        "rescale the sums but not the accumulators": _right.but(("factors[:, None] * accs", "accs")),
        "rescale the accumulators but not the sums": _right.but(("factors * sums", "sums")),
        "subtract the first split's maximum instead of the largest": _right.but(
            ("new_max = tl.max(maxima, axis=0)", "new_max = tl.load(maxima_ptr + row * SPLITS)")
        ),
        "subtract no maximum at all": _right.but(("maxima - new_max", "maxima")),
        "let an empty split's NaN through": _right.but(
            ("mask=used[:, None], other=0.0", "mask=real[:, None], other=0.0")
        ),
        "load an empty split's accumulator, though nothing comes of it": _right.but(
            ("mask=used[:, None], other=0.0", "mask=real[:, None], other=0.0"),
            ("factors[:, None] * accs", "tl.where(used[:, None], factors[:, None] * accs, 0.0)"),
        ),
        "give NaN where every split is empty": _right.but(("tl.where(total > 0, acc / total, 0.0)", "acc / total")),
        "leave out the division by the sum": _right.but(("acc / total", "acc")),
        "load lanes that have no split": _right.but(('mask=real, other=float("-inf")', "mask=splits >= 0, other=0.0")),
    },
)
