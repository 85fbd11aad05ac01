"""Exercise 1 of chapter 07: merging partial softmaxes."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.grading import Exercise

if TYPE_CHECKING:  # a list of exercises must not wait for torch
    import torch

    Partial = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Attention over a part of a sequence: maximum ``[heads]``, sum ``[heads]``, accumulator ``[heads, dim]``."""

ROUNDING = 1e-10
"""Float64 rounds at 1e-16; a few hundred operations on numbers near 1 stay far below this, and every bug far above."""


def partial_attention(scores: torch.Tensor, value: torch.Tensor) -> Partial:
    """Attend over one part of a sequence, without the final division.

    Args:
        scores: ``[heads, tokens]``; no token at all gives the empty partial ``(-inf, 0, 0)``.
        value: ``[tokens, dim]``.
    """
    import torch

    heads, tokens = scores.shape
    if tokens == 0:
        empty = torch.zeros(heads, dtype=scores.dtype)
        return empty - torch.inf, empty, torch.zeros(heads, value.shape[1], dtype=value.dtype)
    running_max = scores.max(dim=1).values
    weights = torch.exp(scores - running_max[:, None])
    return running_max, weights.sum(dim=1), weights @ value


def _merge_partials(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    # Where both parts are empty the new maximum is -inf, and -inf - -inf would be NaN: subtract 0 there.
    finite = torch.where(torch.isinf(new_max), 0.0, new_max)
    first_factor, second_factor = torch.exp(first[0] - finite), torch.exp(second[0] - finite)
    return (
        new_max,
        first[1] * first_factor + second[1] * second_factor,
        first[2] * first_factor[:, None] + second[2] * second_factor[:, None],
    )


def _plain(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    a, b = torch.exp(first[0] - new_max), torch.exp(second[0] - new_max)
    return new_max, first[1] * a + second[1] * b, first[2] * a[:, None] + second[2] * b[:, None]


def _no_rescale(first: Partial, second: Partial) -> Partial:
    import torch

    return torch.maximum(first[0], second[0]), first[1] + second[1], first[2] + second[2]


def _sums_only(first: Partial, second: Partial) -> Partial:
    new_max, new_sum, _ = _merge_partials(first, second)
    return new_max, new_sum, first[2] + second[2]


def _first_only(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    a = torch.exp(first[0] - torch.where(torch.isinf(new_max), 0.0, new_max))
    return new_max, first[1] * a + second[1], first[2] * a[:, None] + second[2]


def _without_maximum(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0])
    a, b, back = torch.exp(first[0]), torch.exp(second[0]), torch.exp(-new_max)
    new_sum = (first[1] * a + second[1] * b) * back
    return new_max, new_sum, (first[2] * a[:, None] + second[2] * b[:, None]) * back[:, None]


def _one_maximum(first: Partial, second: Partial) -> Partial:
    import torch

    new_max = torch.maximum(first[0], second[0]).max().expand_as(first[0])
    finite = torch.where(torch.isinf(new_max), 0.0, new_max)
    a, b = torch.exp(first[0] - finite), torch.exp(second[0] - finite)
    return new_max, first[1] * a + second[1] * b, first[2] * a[:, None] + second[2] * b[:, None]


def _mean_of_outputs(first: Partial, second: Partial) -> Partial:
    new_max, new_sum, _ = _merge_partials(first, second)
    outputs = (first[2] / first[1][:, None] + second[2] / second[1][:, None]) / 2
    return new_max, new_sum, outputs * new_sum[:, None]


def _in_place(first: Partial, second: Partial) -> Partial:
    merged = _merge_partials(first, second)
    for old, new in zip(first, merged, strict=True):
        old.copy_(new)
    return first


def _merge_cases() -> list[Case]:
    import torch

    generator = torch.Generator().manual_seed(7)
    rng = random.Random(7)
    cases = []
    for offset in ((0.0, 0.0, 0.0), (1000.0, 0.0, -1000.0), (0.0, -1000.0, 1000.0)):
        for cuts in ([4], [9], [0], [11], [2, 7], [0, 0], sorted(rng.sample(range(12), 3))):
            scores = torch.randn(3, 11, generator=generator, dtype=torch.float64) * 3 + torch.tensor(offset)[:, None]
            value = torch.randn(11, 5, generator=generator, dtype=torch.float64)
            ends = itertools.pairwise([0, *cuts, 11])
            parts = tuple(partial_attention(scores[:, start:stop], value[start:stop]) for start, stop in ends)
            lengths = " + ".join(str(stop - start) for start, stop in itertools.pairwise([0, *cuts, 11]))
            shown = f"parts of {lengths} tokens, merged from left to right; 3 heads with scores near {offset}"
            cases.append(Case(parts, "Every part's sum and accumulator are relative to its own maximum.", shown))
    nothing = partial_attention(torch.empty(3, 0, dtype=torch.float64), torch.empty(0, 5, dtype=torch.float64))
    return [*cases, Case((nothing, nothing), "Two parts without any token make one.", "two parts of 0 tokens")]


def _merge_all(merge: Callable[[Partial, Partial], Partial], parts: tuple[Partial, ...]) -> Partial:
    return functools.reduce(merge, parts)


def _close(expected: Partial, got: Any) -> bool:
    import torch

    if expected is None or got is None:
        return expected is got
    return all(
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
        for one, other in zip(map(_tensor, expected), map(_tensor, got), strict=True)
    )


def _tensor(value: Any) -> torch.Tensor:
    """Numbers that have no dtype yet, as in a list, get that of the cases."""
    import torch

    return torch.as_tensor(value, dtype=None if hasattr(value, "dtype") else torch.float64)


def _look_at_partial(parts: tuple[Partial, ...], expected: Partial, got: Any) -> str | None:
    import torch

    hints = {
        "maximum": "each head keeps its own, the larger of its two",
        "sum": "both old sums were taken relative to their own maximum; bring both to the new one",
        "accumulator": "it needs the same factors as the sum, one per head",
    }
    if got is None:
        return None
    for (name, hint), wanted, given in zip(hints.items(), expected, map(_tensor, got), strict=True):
        if given.shape != wanted.shape:
            return f"The {name} has shape {tuple(given.shape)}, not {tuple(wanted.shape)}."
        if given.dtype != wanted.dtype:
            theirs, ours = (str(each.dtype).removeprefix("torch.") for each in (given, wanted))
            return f"The {name} is {theirs}, and the parts are {ours}: keep their dtype, or digits get lost."
        if given.isnan().any():
            return f"The {name} holds NaN: what is exp(-inf - -inf), and 0 / 0?"
        if not torch.isclose(given, wanted, rtol=ROUNDING, atol=ROUNDING).all():
            return f"The {name} is wrong: {hint}."
    return None


merge_partials = Exercise(
    "07.1",
    "merge_partials",
    "Merge two partial results",
    cases=_merge_cases,
    returns="a tuple (maximum, sum, accumulator)",
    run=_merge_all,
    same=_close,
    look=_look_at_partial,
    pure=True,
    hints=(
        "It is the step of the online softmax in which the maximum rises, for both sides at once.",
        "The new maximum is the larger one, head by head. Each side's sum and accumulator are multiplied by "
        "`exp(old maximum - new maximum)`, then added; the accumulator needs the factor once per head, `[:, None]`.",
        "Where both sides are empty the new maximum is -inf, and -inf - -inf is NaN. Subtract 0 there: "
        "`torch.where(torch.isinf(new_max), 0.0, new_max)`.",
    ),
    explanation="A factor is at most 1, so nothing overflows, and an empty side gets the factor exp(-inf) = 0. New "
    "tensors are made, because the parts may be merged in more than one order.",
    reference=_merge_partials,
    wrong={
        "add sums and accumulators as they are": _no_rescale,
        "rescale the sums but not the accumulators": _sums_only,
        "rescale the first part only": _first_only,
        "multiply by exp(maximum), which overflows": _without_maximum,
        "take one maximum over all heads": _one_maximum,
        "average the two outputs": _mean_of_outputs,
        "give NaN for two empty parts": _plain,
        "overwrite the first argument": _in_place,
    },
)
