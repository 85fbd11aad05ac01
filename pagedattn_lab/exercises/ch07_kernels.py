"""Exercises 4 to 6 of chapter 07: kernels that a reader writes, graded for their results and for what they load."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from pagedattn_lab.exercises.cases import Case
from pagedattn_lab.exercises.ch07_drawing import draw
from pagedattn_lab.exercises.ch07_problem import LOW, Problem
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

SOLUTIONS = "pagedattn_lab.exercises.ch07_solutions"
RANDOM_CASES = 13
FALLING = "The maximum falls from tile to tile: the largest so far counts."
MAXIMUM = "tl.maximum(running_max, tl.max(scores, axis=0))"
AT_HAND = "tl.max(scores, axis=0)"
NONE = "tl.max(scores, axis=0) * 0"  # what is subtracted is 0


def look(arguments: tuple[Any, ...], expected: Outcome, got: Outcome) -> str | None:
    """Say what is wrong: first what was touched, then what came out."""
    (problem,) = arguments
    if words := touched_wrongly(expected, got):
        return words
    for program in problem.programs:
        elements = got.touched.get(("store", "out", program), set())
        for own in sorted(problem.needed["out", program]):
            row, head = divmod(own, problem.heads)
            stored = sum(element // problem.dim == own for element in elements)
            if words := _look_at_row(problem, got, row, head, stored):
                return words
    return None


def _look_at_row(problem: Problem, got: Outcome, row: int, head: int, stored: int) -> str | None:
    """Say what is wrong with one row of out, of whose elements some were stored."""
    theirs = f"sequence {row}" + (f", head {head}" if problem.heads > 1 else "")
    if words := stored_too_little(stored, problem.dim, f"for {theirs}"):
        return words
    if not got.values[row, head].isnan().any():
        return None
    if not problem.lens[row]:
        return f"NaN for {theirs}, which has no token: its sum is 0, and 0 / 0 is NaN. Zeros are asked for."
    if problem.scores == "low" and head % (problem.heads // problem.kv_heads) == 0:
        return f"NaN for {theirs}, whose scores are all near {-LOW:.0f}: did every weight vanish?"
    if problem.scores == "high" and head % (problem.heads // problem.kv_heads) == 0:
        return f"NaN for {theirs}, whose scores are all near {LOW:.0f}: did a weight grow out of float32?"
    if problem.scores == "falling" and head % (problem.heads // problem.kv_heads) == 0:
        return (
            f"NaN for {theirs}, whose scores fall from near {LOW:.0f} to near {-LOW:.0f}: is your maximum the largest "
            "score so far, or that of the tile at hand?"
        )
    if problem.window and problem.lens[row] > problem.window:
        return (
            f"NaN for {theirs}: while no token has been seen the maximum is -inf, and exp(-inf - -inf) is NaN, "
            "which no later tile takes away."
        )
    return f"NaN for {theirs}: 0 times NaN is NaN, so what must not count must not be loaded."


def _draw(_: tuple[Any, ...], outcome: Outcome) -> Any:
    return draw(outcome)


def decode_cases(
    name: str,
    constants: Callable[[Problem], dict[str, int]],
    known: list[tuple[Problem, str]],
    make: Callable[[random.Random, int], Problem],
    about: str,
) -> list[Case]:
    """The cases made by hand, then some by chance, the ones with least to load first."""

    def shown(problem: Problem) -> str:
        sizes = ", ".join(f"{key}={value}" for key, value in constants(problem).items())
        scores = "" if problem.scores == "mixed" else f", scores {problem.scores}"
        return f"sequences of {', '.join(map(str, problem.lens))} tokens{scores}; {sizes}"

    return kernel_cases(name, known, make, RANDOM_CASES, about, shown, lambda p: sum(p.lens) * p.heads)


decode_exercise = partial(
    KernelExercise, oracle=specified, same=same, look=look, draw=_draw, returns="nothing: store into out"
)

# --- grouped_decode ---------------------------------------------------------------------------------------------------


def _grouped_constants(problem: Problem) -> dict[str, int]:
    return {
        "HEADS": problem.heads, "KV_HEADS": problem.kv_heads, "BLOCK_SIZE": problem.block_size, "DIM": problem.dim,
        "TILE": problem.tile,
    }  # fmt: skip


@cache
def _grouped_cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> Problem:
        heads, kv_heads = rng.choice([(2, 1), (2, 2), (3, 1)])
        lens = tuple(rng.randint(1, 8) for _ in range(rng.choice([1, 1, 1, 2])))
        scores = rng.choice(["mixed", "rising"])
        size, tile = rng.choice([1, 2, 3, 4, 5]), rng.choice([4, 8, 8])
        return Problem(lens, size, tile, rng.choice([2, 4, 8]), heads, kv_heads, scores=scores, seed=seed)

    known = [
        (Problem((3,), 4, 4, heads=4, kv_heads=2), "Query heads 0 and 1 share KV head 0, heads 2 and 3 KV head 1."),
        (Problem((5,), 4, 8, heads=4, kv_heads=1), "All query heads share one KV head."),
        (Problem((4,), 2, 4, heads=6, kv_heads=2), "Three neighbouring query heads share a KV head."),
        (Problem((6,), 3, 8, heads=3, kv_heads=3), "Every query head has a KV head of its own."),
        (Problem((9,), 4, 4, heads=2, kv_heads=1, scores="rising"), "The maximum rises in each tile."),
        (Problem((5,), 4, 4, heads=2, kv_heads=2, scores="falling"), FALLING),
        (Problem((2, 1), 4, 4, heads=4, kv_heads=2, scores="rising"), "Two sequences, two groups."),
        (Problem((7, 4), 1, 8, heads=2, kv_heads=2), "A block holds one token."),
        (Problem((5,), 4, 4, heads=2, kv_heads=2, scores="low"), "All scores are far below 0."),
        (Problem((5,), 4, 4, heads=2, kv_heads=2, scores="high"), "All scores are far above 0."),
    ]
    about = "Each query head has its own query and row of out, and shares keys and values with its neighbours."
    return decode_cases("grouped_decode", _grouped_constants, known, make, about)


_grouped = OwnKernel(SOLUTIONS, "grouped_decode")
_KV_HEAD = "head // (HEADS // KV_HEADS)"

grouped_decode = decode_exercise(
    "07.4",
    "grouped_decode",
    "A kernel for grouped queries",
    cases=_grouped_cases,
    reference=_grouped,
    **launching(_grouped_constants),
    hints=(
        "Copy `decode_kernel`. The head is `tl.program_id(1)`. Which lines contain an address, and which of these "
        "depend on the head?",
        "Queries and out have a row of `DIM` numbers for each sequence and query head: row `sequence * HEADS + head`. "
        "Keys and values have one for each slot and KV head: row `slot * KV_HEADS + kv_head`.",
        "A group has `HEADS // KV_HEADS` neighbouring query heads, so `kv_head = head // (HEADS // KV_HEADS)`. "
        "`elements` becomes `(slot * KV_HEADS + kv_head)[:, None] * DIM + dims[None, :]`.",
    ),
    explanation="Only rows change: what walks the table, and the softmax, know nothing of heads. Programs of one group "
    "load the same keys and values, each for itself; chapter 08 lets one program serve them all.",
    wrong={
        "leave the maximum out, without which low scores vanish": _grouped.but((MAXIMUM, NONE)),
        "take the maximum of the tile at hand, not of all tokens so far": _grouped.but((MAXIMUM, AT_HAND)),
        "share KV heads in turn (head % KV_HEADS) instead of between neighbours": _grouped.but(
            (_KV_HEAD, "head % KV_HEADS")
        ),
        "divide by the number of KV heads instead of by the size of a group": _grouped.but(
            (_KV_HEAD, "head // KV_HEADS")
        ),
        "read the KV head of the same number, as if each query head had its own": _grouped.but((_KV_HEAD, "head")),
        "read KV head 0 for every query head": _grouped.but((_KV_HEAD, "head * 0")),
        "step from slot to slot by one row, though a slot has KV_HEADS of them": _grouped.but(
            ("slot * KV_HEADS + kv_head", "slot + kv_head")
        ),
        "give every head the query of head 0": _grouped.but(
            ("query_ptr + own_row", "query_ptr + sequence * HEADS * DIM")
        ),
        "store all heads of a sequence in one row": _grouped.but(("out_ptr + own_row", "out_ptr + sequence * DIM")),
    },
)

# --- windowed_decode --------------------------------------------------------------------------------------------------


def _windowed_constants(problem: Problem) -> dict[str, int]:
    assert problem.window is not None
    return {"WINDOW": problem.window, "BLOCK_SIZE": problem.block_size, "DIM": problem.dim, "TILE": problem.tile}


@cache
def _windowed_cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> Problem:
        lens = tuple(rng.randint(1, 11) for _ in range(rng.choice([1, 1, 2])))
        scores, size, tile = rng.choice(["mixed", "rising", "low"]), rng.choice([1, 2, 3, 4, 5]), rng.choice([4, 4, 8])
        return Problem(lens, size, tile, rng.choice([2, 4, 8]), window=rng.randint(1, 7), scores=scores, seed=seed)

    known = [
        (Problem((3,), 4, 4, window=4), "The window is wider than the sequence is long: all tokens are seen."),
        (Problem((6,), 4, 4, window=3), "The window begins in the middle of the first tile."),
        (Problem((7,), 4, 4, window=3), "The first tile holds no visible token."),
        (Problem((10, 5), 2, 4, window=2), "Two tiles go by before the first visible token."),
        (Problem((9,), 3, 4, window=4, scores="rising"), "The window spans two tiles, and the maximum rises."),
        (Problem((12,), 3, 4, window=9, scores="falling"), FALLING),
        (Problem((6, 9), 4, 4, window=3, scores="low"), "All scores are far below 0."),
        (Problem((6, 9), 4, 4, window=3, scores="high"), "All scores are far above 0."),
        (Problem((5, 1), 1, 4, window=1), "A query sees its own token only, and its value is the result."),
    ]
    about = "A query sees the last WINDOW tokens, itself included."
    return decode_cases("windowed_decode", _windowed_constants, known, make, about)


_windowed = OwnKernel(SOLUTIONS, "windowed_decode")
_VISIBLE = "positions >= seq_len - WINDOW"

windowed_decode = decode_exercise(
    "07.5",
    "windowed_decode",
    "A kernel with a sliding window",
    cases=_windowed_cases,
    reference=_windowed,
    **launching(_windowed_constants),
    hints=(
        "Copy `decode_kernel`. A lane counts if its position is in the sequence and in the window; every load and the "
        "scores ask the same question.",
        "With `visible = (positions < seq_len) & (positions >= seq_len - WINDOW)` in place of `in_sequence` the first "
        "tiles may hold no visible token. What are `new_max`, `rescale` and `weights` then?",
        "They are -inf, and twice exp(-inf - -inf), which is NaN. Subtract something finite while nothing has been "
        '`seen`: `finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)` in both exponentials. Or begin the '
        "loop in the tile where the window begins.",
    ),
    explanation="A tile without a visible token must leave maximum, sum and accumulator as they are: exp(-inf - 0) is "
    "0 for its weights and for the rescale of the empty sum. Beginning the loop at the window saves those turns, and "
    "is right as well as long as one program has one query.",
    wrong={
        "subtract -inf from -inf in a tile without a visible token": _windowed.but(("- finite_max)", "- new_max)")),
        "take the maximum of the tile at hand, not of all visible tokens so far": _windowed.but((MAXIMUM, AT_HAND)),
        "see one token too few": _windowed.but((_VISIBLE, "positions > seq_len - WINDOW")),
        "see one token too many": _windowed.but((_VISIBLE, "positions >= seq_len - WINDOW - 1")),
        "see every token of the sequence": _windowed.but((f" & ({_VISIBLE})", "")),
        "load keys that the window hides": _windowed.but(
            ("key_ptr + elements, mask=visible[:, None]", "key_ptr + elements, mask=(positions < seq_len)[:, None]")
        ),
        "look up entries whose blocks the window has left behind": _windowed.but(
            ("mask=visible, other=0)", "mask=positions < seq_len, other=0)")
        ),
        "subtract one fixed number from all scores, far below or above which weights vanish or overflow": _windowed.but(
            ('tl.where(new_max == float("-inf"), 0.0, new_max)', "-80.0"), ("tl.exp(running_max - finite_max)", "1.0")
        ),
        "let the maximum start at 0, under which low scores vanish": _windowed.but(
            ('acc = float("-inf"), 0.0,', "acc = 0.0, 0.0,")
        ),
    },
)

# --- padded_decode ----------------------------------------------------------------------------------------------------


def _padded_constants(problem: Problem) -> dict[str, int]:
    sizes = {"HEAD_DIM": problem.dim, "PADDED_DIM": problem.padded_dim}
    return {"BLOCK_SIZE": problem.block_size, **sizes, "TILE": problem.tile}


@cache
def _padded_cases() -> list[Case]:
    def make(rng: random.Random, seed: int) -> Problem:
        lens = tuple(rng.choice([0, *range(1, 10)]) for _ in range(rng.choice([1, 1, 2])))
        scores, size, tile = rng.choice(["mixed", "rising"]), rng.choice([1, 2, 3, 4, 5]), rng.choice([4, 8, 8])
        return Problem(lens, size, tile, rng.choice([2, 3, 5, 6]), scores=scores, seed=seed)

    known = [
        (Problem((4,), 4, 4), "Nothing is padded: as many tokens as lanes, as many elements as lanes."),
        (Problem((3,), 4, 4), "One lane has no token."),
        (Problem((3,), 3, 8), "Two lanes would look up an entry behind the last block."),
        (Problem((4, 2), 2, 4, dim=3), "A head has 3 elements, and a row of lanes 4."),
        (Problem((5, 0, 3), 4, 8, dim=5), "Sequence 1 is padding of the batch: no token, zeros are stored."),
        (Problem((0,), 4, 4), "Padding of the batch alone."),
        (Problem((9, 6), 4, 4, dim=6, scores="rising"), "The maximum rises in each tile."),
        (Problem((9,), 4, 4, dim=6, scores="falling"), FALLING),
        (Problem((5,), 4, 4, dim=3, scores="low"), "All scores are far below 0."),
        (Problem((5,), 4, 4, dim=3, scores="high"), "All scores are far above 0."),
    ]
    about = "A lane without a token or without an element loads nothing, weighs nothing and stores nothing."
    return decode_cases("padded_decode", _padded_constants, known, make, about)


_padded = OwnKernel(SOLUTIONS, "padded_decode")
_TOKENS = "positions < seq_len"

padded_decode = decode_exercise(
    "07.6",
    "padded_decode",
    "A kernel that stays within bounds",
    cases=_padded_cases,
    reference=_padded,
    **launching(_padded_constants),
    hints=(
        "Copy `decode_kernel`. Which lanes have a token, and which of `tl.arange(0, PADDED_DIM)` an element? Every "
        "load and the store need a mask of one kind, the other, or both.",
        "The query, `out`, keys and values have rows of `HEAD_DIM` elements: `real_dim = dims < HEAD_DIM`. A lane of "
        "keys and values needs a token and an element: `in_sequence[:, None] & real_dim[None, :]`.",
        "A sequence without tokens runs no turn of the loop. Its sum is 0, and 0 / 0 is NaN: "
        "`tl.where(running_sum > 0, acc / running_sum, 0.0)`.",
    ),
    explanation="Lanes come in powers of two, tokens and elements do not. A mask on every load keeps lanes that have "
    "none away from entries behind the last block, from neighbouring rows, and from memory that is not ours.",
    wrong={
        "leave the maximum out, without which low scores vanish": _padded.but((MAXIMUM, NONE)),
        "take the maximum of the tile at hand, not of all tokens so far": _padded.but((MAXIMUM, AT_HAND)),
        "look up the page table without a mask": _padded.but((", mask=in_sequence, other=0)", ")")),
        "load keys in lanes that have no token": _padded.but(
            ("key_ptr + elements, mask=mask", "key_ptr + elements, mask=real_dim[None, :]")
        ),
        "load values in lanes that have no token": _padded.but(
            ("value_ptr + elements, mask=mask", "value_ptr + elements, mask=real_dim[None, :]")
        ),
        "let lanes from HEAD_DIM on load keys and values": _padded.but(("mask=mask", "mask=in_sequence[:, None]")),
        "take one token too many": _padded.but((_TOKENS, "positions <= seq_len")),
        "read the last block to its end": _padded.but(
            (_TOKENS, "positions < (seq_len + BLOCK_SIZE - 1) // BLOCK_SIZE * BLOCK_SIZE")
        ),
        "load the query without a mask": _padded.but(("dims, mask=real_dim, other=0.0)", "dims)")),
        "store lanes from HEAD_DIM on": _padded.but(("out, mask=real_dim)", "out)")),
        "divide 0 by 0 where a sequence has no token": _padded.but(
            ("tl.where(running_sum > 0, acc / running_sum, 0.0)", "acc / running_sum")
        ),
    },
)
