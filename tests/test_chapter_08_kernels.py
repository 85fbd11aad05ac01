"""The kernels that chapter 08 asks for: what is right, what counts as too much, and what is said and drawn of it."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.exercises import ch08
from pagedattn_lab.exercises.ch08_grouped import GroupProblem
from pagedattn_lab.exercises.ch08_merge_problem import OFFSETS, MergeProblem
from pagedattn_lab.exercises.ch08_write_problem import WriteProblem
from pagedattn_lab.exercises.problems import Outcome
from tests.helpers.chapters import CHAPTERS
from tests.helpers.draws import KERNEL_CHAPTERS, drawn
from tests.helpers.second_solutions import SECOND
from tools import notebooks

pytestmark = pytest.mark.when_changed(*KERNEL_CHAPTERS)

GROUP, MERGE, WRITE = (
    replace(exercise, number="") for exercise in (ch08.one_read_decode, ch08.merge_splits, ch08.quantised_write)
)
EXERCISES = {"08.1": GROUP, "08.2": MERGE, "08.3": WRITE}
each = pytest.mark.parametrize("number", EXERCISES)


def run(exercise: Any, problem: Any, *changes: tuple[str, str]) -> Outcome:
    return exercise.run(exercise.reference.but(*changes), (problem,))


# --- what is right ----------------------------------------------------------------------------------------------------


@st.composite
def group_problems(draw: st.DrawFn) -> GroupProblem:
    kv_heads = draw(st.integers(1, 3))
    return GroupProblem(
        tuple(draw(st.lists(st.integers(1, 17), min_size=1, max_size=2))),
        draw(st.sampled_from([1, 2, 3, 4, 7, 16])), draw(st.sampled_from([1, 2, 4, 16])),
        draw(st.sampled_from([2, 4, 16])), kv_heads * draw(st.integers(1, 5)), kv_heads,
        scores=draw(st.sampled_from(["mixed", "rising", "low"])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@st.composite
def merge_problems(draw: st.DrawFn) -> MergeProblem:
    splits, rows = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    some = st.lists(st.sampled_from([0, 1, 2, 9, 40]), min_size=splits, max_size=splits).map(tuple)
    tokens = tuple(draw(some) for _ in range(rows))
    heads, dim = draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 16]))
    return MergeProblem(tokens, heads, dim, draw(st.sampled_from([*OFFSETS])), draw(st.integers(0, 99)))


@st.composite
def write_problems(draw: st.DrawFn) -> WriteProblem:
    slots = draw(st.lists(st.integers(0, 20), unique=True, min_size=1, max_size=5))
    slots = tuple(-1 if draw(st.integers(0, 4)) == 0 else slot for slot in slots)
    kv_heads = draw(st.integers(1, 3))
    zeros = tuple(
        (token, head) for token in range(len(slots)) for head in range(kv_heads) if draw(st.integers(0, 5)) == 0
    )
    dim, sign = draw(st.sampled_from([1, 4, 32])), draw(st.sampled_from(["mixed", "negative"]))
    return WriteProblem(slots, kv_heads, dim, zeros, sign, draw(st.integers(0, 99)))


PROBLEMS = {"08.1": group_problems(), "08.2": merge_problems(), "08.3": write_problems()}


@each
@settings(max_examples=drawn(12), derandomize=True)
@given(data=st.data())
def test_right_kernels_are_right_on_any_problem(number: str, data: st.DataObject) -> None:
    """Catches a right answer that is right on the exercise's own cases only, or that is told to touch too much."""
    problem, exercise = data.draw(PROBLEMS[number]), EXERCISES[number]
    for kernel in (exercise.reference, SECOND[number]):
        outcome = exercise.run(kernel, (problem,))
        assert outcome.faults == [] and exercise.same(problem.specified, outcome), (problem, outcome, outcome.faults)
        assert exercise.look((problem,), problem.specified, outcome) is None


CHAPTER = [path for path in CHAPTERS if path.stem.startswith("08")]


@pytest.mark.skipif(not CHAPTER, reason="chapter 08 is not written yet")
@each
def test_the_specification_in_the_chapter_is_what_is_graded(number: str) -> None:
    """Catches a chapter that asks for something else than the exercise."""
    sources = [cell.source for cell in notebooks.read(CHAPTER[0]).cells]
    [text] = [
        source for source in sources if re.search(rf"^### {number[-1]} · {EXERCISES[number].title}$", source, re.M)
    ]
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 6
    for case in EXERCISES[number].cases():
        (problem,) = case.arguments
        CHECKS[number](code, problem, {name: tensor.clone() for name, tensor in problem.tensors.items()})


def check_group(code: str, problem: GroupProblem, tensors: dict[str, torch.Tensor]) -> None:
    for row, length in enumerate(problem.lens):
        names: dict[str, Any] = {
            "torch": torch, "seq_len": length, "table": tensors["page tables"][row], "scale": problem.scale,
            "query": tensors["queries"][row].double(), "key_cache": tensors["keys"].double(),
            "value_cache": tensors["values"].double(), "BLOCK_SIZE": problem.block_size, "HEADS": problem.heads,
            "KV_HEADS": problem.kv_heads,
        }  # fmt: skip
        exec(code, names)
        torch.testing.assert_close(names["out"], problem.values[row])


def check_merge(code: str, problem: MergeProblem, tensors: dict[str, torch.Tensor]) -> None:
    for place in problem.programs.values():
        short = {"maxima": "maxima", "sums": "sums", "accs": "accumulators"}
        names: dict[str, Any] = {name: tensors[long][place].double() for name, long in short.items()}
        names["torch"] = torch
        exec(code, names)
        torch.testing.assert_close(names["out"], problem.values[place])


def check_write(code: str, problem: WriteProblem, tensors: dict[str, torch.Tensor]) -> None:
    names = {"torch": torch, "cache": tensors["cache"], "scales": tensors["scales"]}
    exec(code, names | {"key": tensors["keys"], "slots": tensors["slots"]})
    assert problem.is_close(problem.values, problem.results(tensors))


CHECKS = {"08.1": check_group, "08.2": check_merge, "08.3": check_write}


def test_inputs_are_hostile() -> None:
    """Catches cases that would forgive: empty splits without NaN, slots in order, no padding, groups that fill rows."""
    group, merge, write = ([case.arguments[0] for case in each.cases()] for each in EXERCISES.values())
    assert sum(p.heads // p.kv_heads < p.rows for p in group) >= 5
    assert sum(p.heads > p.kv_heads > 1 for p in group) >= 5 and any(p.heads == p.kv_heads > 1 for p in group)
    for p in merge:
        empty = torch.tensor(p.tokens) == 0
        garbage = p.tensors["accumulators"].isnan().all(-1)
        assert torch.equal(garbage, empty[:, None].expand_as(garbage)) and p.tensors["out"].isnan().all()
    assert {p.scores for p in merge} == {*OFFSETS} and sum(p.lanes > p.splits for p in merge) >= 5
    assert any(p.tokens[0][0] == 0 and any(p.tokens[0]) for p in merge) and any(not any(p.tokens[-1]) for p in merge)
    assert any(list(p.slots) != sorted(p.slots) for p in write) and sum(-1 in p.slots for p in write) >= 4
    assert sum(bool(p.zeros) for p in write) >= 3 and sum(p.sign == "negative" for p in write) >= 3
    assert {p.kv_heads for p in write} == {1, 2, 3}


@each
def test_an_answer_is_graded_in_a_second(number: str) -> None:
    """Catches cases that keep a reader waiting."""
    EXERCISES[number].grade(SECOND[number])  # what is imported and made once does not count
    begin = time.process_time()
    assert EXERCISES[number].grade(SECOND[number]).passed
    assert time.process_time() - begin < 1


def test_a_merge_that_is_off_by_a_hair_is_wrong() -> None:
    """Catches a limit so wide that a factor in bfloat16, or one split's sum that is a little wrong, would pass."""
    problem = MergeProblem(((3, 5, 2),), heads=2, dim=8)
    for change in (("factors * sums", "factors * (sums + 1e-4)"), ("acc / total", "acc / total + 3e-5")):
        assert not run(MERGE, problem, change).is_close(problem.specified), change
    assert 1e-6 < problem.limit < 3e-5


@pytest.mark.parametrize(
    "change",
    [
        ("tl.where(largest > 0, scale, 1.0)", "scale"),  # 0 / 0 becomes some whole number, which 0 scales back to 0
        ("own_row, scale, mask", "own_row, divisor, mask"),
        ("tl.floor(key / divisor + 0.5)", "tl.ceil(key / divisor - 0.5)"),  # halves the other way
        ("key / divisor", "key * (127 / tl.where(largest > 0, largest, 1.0))"),
    ],
)
def test_other_ways_to_quantise_are_right(change: tuple[str, str]) -> None:
    """Catches a check that wants one scale for zeros, one way to round a half, or one order of two divisions."""
    for case in WRITE.cases():
        (problem,) = case.arguments
        outcome = run(WRITE, problem, change)
        assert WRITE.same(problem.specified, outcome), (case.shown, outcome, problem.specified)
    halves = WriteProblem((1,), dim=4)
    halves.tensors["keys"][:] = torch.tensor([127.0, 2.5, -3.5, 0.5])
    assert WRITE.same(halves.specified, run(WRITE, halves, change))


@pytest.mark.parametrize("change", [("largest / 127", "largest / 127.01"), ("divisor + 0.5", "divisor + 0.51")])
def test_what_is_nearly_quantised_is_wrong(change: tuple[str, str]) -> None:
    """Catches a tolerance under which a scale, or the place where rounding turns, may be a little off."""
    cases = [case.arguments[0] for case in WRITE.cases()] + [WriteProblem((0,), dim=32, seed=seed) for seed in range(9)]
    assert any(not WRITE.same(problem.specified, run(WRITE, problem, change)) for problem in cases)


@each
def test_what_triton_cannot_compile_is_refused(number: str) -> None:
    """Catches a kernel that runs in the interpreter alone, and passes."""
    breaks = EXERCISES[number].reference.but(("    tl.store(", "    for _ in range(1):\n        break\n    tl.store("))
    message = EXERCISES[number].grade(breaks).message
    assert "Triton cannot compile this kernel" in message and "unsupported AST node type: Break" in message


# --- what is said -----------------------------------------------------------------------------------------------------


@triton.jit
def _head_after_head(
    out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """What a reader may well write: the kernel of chapter 07 with a loop over the group's heads around it."""
    sequence, kv_head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, DIM)
    for row in range(HEADS // KV_HEADS):
        own = (sequence * HEADS + kv_head * (HEADS // KV_HEADS) + row) * DIM + dims
        query = tl.load(query_ptr + own) * scale
        largest, total, acc = -1e30, 0.0, tl.zeros([DIM], dtype=tl.float32)
        for position in range(tl.load(lens_ptr + sequence)):
            block = tl.load(tables_ptr + sequence * table_stride + position // BLOCK_SIZE)
            at = ((block * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + kv_head) * DIM + dims
            score = tl.sum(query * tl.load(key_ptr + at), axis=0)
            larger = tl.maximum(largest, score)
            total = total * tl.exp(largest - larger) + tl.exp(score - larger)
            acc = acc * tl.exp(largest - larger) + tl.exp(score - larger) * tl.load(value_ptr + at)
            largest = larger
        tl.store(out_ptr + own, acc / total)


def test_a_loop_over_the_heads_is_told_what_it_loads_again() -> None:
    """Catches a grade for values alone, and a repeated load that is seen within one load only."""
    verdict = GROUP.grade(_head_after_head)
    assert verdict.passed is False
    assert re.search(
        r"Program \(0, 0\) loads slot \d+ of the keys \(block \d, offset \d\) more than once: what has been loaded can "
        r"serve every query head of the group\. The result is right all the same\.",
        verdict.message,
    )
    assert "You seem to load keys and values again for each query head." in verdict.remarks
    assert (
        ", some of them more than once" in dict(verdict.rows)["got"]
        and "more than" not in dict(verdict.rows)["expected"]
    )
    (_, expected), (_, theirs) = verdict.pictures
    assert (
        ">0↻<" in theirs.svg
        and "↻ loaded more than once" in expected.svg
        and "loaded more than once: slot" in theirs.alt
    )
    assert "by programs 0↻" in theirs.alt and "more than once" not in expected.alt


TWO_GROUPS = GroupProblem((2,), 2, 2, heads=6, kv_heads=2)
THREE_SPLITS = MergeProblem(((2, 0, 1), (1, 1, 1)), heads=2)
TOKENS = WriteProblem((3, -1, 0), kv_heads=2)
CACHE_STORE = "tl.store(cache_ptr + own_row * DIM + dims, numbers.to(tl.int8), mask=slot >= 0)"
LOAD_SPLITS = "tl.load(maxima_ptr + splits, mask=real"


@pytest.mark.parametrize(
    ("exercise", "problem", "change", "words"),
    [
        (
            GROUP, TWO_GROUPS, ("KV_HEADS + kv_head)", "KV_HEADS)"),
            r"\(0, 1\) loads KV head 0 of slot \d+, but computes the query heads of KV head 1\.$",
        ),
        (
            GROUP, TWO_GROUPS, ("query_ptr + own_rows, mask=real_row", "query_ptr + own_rows, mask=rows[:, None] < 4"),
            r"\(0, 0\) loads elements of queries that belong to sequence 0, head 3, but computes sequence 0, head",
        ),
        (
            GROUP, TWO_GROUPS, ("running_sum[:, None], mask=real_row", "running_sum[:, None]"),
            r"\(0, 1\) stores element 24 of out, which has 24: out of bounds\.$",
        ),
        (
            GROUP, TWO_GROUPS, ("(slot * KV_HEADS + kv_head)", "(slot * KV_HEADS + kv_head + 99)"),
            r"\(0, 0\) loads slot \d+, but the cache of keys has slots 0 to 3: out of bounds\.$",
        ),
        (
            MERGE, THREE_SPLITS, ("mask=used[:, None]", "mask=real[:, None]"),
            r"\(0, 0\) loads the accumulator of split 1, which had no token: nobody wrote it, and what lies there",
        ),
        (
            MERGE, THREE_SPLITS, (LOAD_SPLITS, "tl.load(maxima_ptr + splits, mask=splits >= 0"),
            r"\(1, 0\) loads maxima of split 0 of sequence 1, head 1, but merges sequence 1, head 0\. Lanes from 3 on ",
        ),
        (
            MERGE, THREE_SPLITS, (LOAD_SPLITS, "tl.load(maxima_ptr + splits, mask=splits >= 0"),
            r"\(1, 1\) loads element 12 of maxima, which has 12: out of bounds\. Lanes from 3 on have no split",
        ),
        (
            MERGE, THREE_SPLITS, ("tl.store(out_ptr + row", "tl.store(out_ptr + row // HEADS"),
            r"\(1, 0\) stores elements of out that belong to sequence 0, head 1, but merges sequence 1, head 0\.$",
        ),
        (
            MERGE, THREE_SPLITS, ("tl.store(out_ptr", "tl.store(sums_ptr"),
            r"\(0, 0\) stores into the sums, which are there to be read\.$",
        ),
        (
            WRITE, TOKENS, (", mask=slot >= 0", ""),
            r"\(1, 0\) stores into the cache, but token 1 has slot -1: it is padding, and not written\.$",
        ),
        (
            WRITE, TOKENS, ("token * KV_HEADS + head) * DIM", "token * KV_HEADS) * DIM"),
            r"\(0, 1\) loads keys of token 0, head 0, but writes token 0, head 1\.$",
        ),
        (
            WRITE, TOKENS, ("slots_ptr + token", "slots_ptr"),
            r"\(2, 0\) loads the slot of token 0, but writes token 2\.$",
        ),
        (
            WRITE, TOKENS, ("slot * KV_HEADS + head", "slot + head"),
            r"\(0, 0\) stores what belongs to slot 1, head 1 of the scales: its own is slot 3, head 0\.$",
        ),
        (
            WRITE, TOKENS, ("slot * KV_HEADS + head", "slot * 9 + head"),
            r"\(0, 0\) stores element 108 of cache, which has 40: out of bounds\.$",
        ),
        (
            WRITE, TOKENS, ("tl.store(scales_ptr + own_row, scale", "tl.store(key_ptr + own_row, scale"),
            r"\(0, 0\) stores into the keys, which are there to be read\.$",
        ),
    ],
)  # fmt: skip
def test_what_a_program_must_not_touch_is_said(
    exercise: Any, problem: Any, change: tuple[str, str], words: str
) -> None:
    """Catches an address that is out of bounds, or another's, without a word about whose it is."""
    outcome = run(exercise, problem, change)
    said = [problem.in_words([fault]) for fault in outcome.faults]
    assert any(re.match(f"Program {words}", each) for each in said), said


@pytest.mark.parametrize(
    ("exercise", "change", "words"),
    [
        (GROUP, ("acc / running_sum[:, None], mask=real_row", "acc, mask=rows[:, None] < 0"), "Nothing is stored for"),
        (MERGE, ("tl.store(out_ptr + row * DIM + dims, ", "("), "Nothing is stored for sequence 0, head 0."),
        (MERGE, ("total > 0, acc / total, 0.0)", "total > 0, acc / total, 0.0), mask=dims < 3"), "Only 3 of 4 elem"),
        (WRITE, ("tl.int8), mask=slot >= 0", "tl.int8), mask=dims < 1"), "Only 1 of 4 elements are stored into the c"),
        (WRITE, (CACHE_STORE, "pass"), "Nothing is stored into the cache for token 0, head 0."),
        (WRITE, ("own_row, scale", "own_row, scale * 2"), "The scale of token 0, head 0 is 0.02797: its largest"),
        (WRITE, ("own_row, scale,", "own_row, scale + (largest == 0),"), ""),
        (WRITE, ("numbers.to", "(numbers + (largest == 0)).to"), ""),
        (
            WRITE, ("own_row, scale,", "own_row, divisor + (largest == 0) * float('nan'),"),
            "The scale of token 0, head 0 is NaN",
        ),
    ],
)  # fmt: skip
def test_what_came_out_wrong_is_said(exercise: Any, change: tuple[str, str], words: str) -> None:
    """Catches what is missing or wrong in the result without a word about where; no words: it is right."""
    verdict = exercise.grade(exercise.reference.but(change))
    assert verdict.passed is not bool(words), verdict
    assert words in verdict.message


def test_luck_is_called_luck() -> None:
    """Catches a store into another's row, or past the end, that passes for harmless since the numbers are right."""
    message = GROUP.grade(GROUP.wrong["store rows that have no query head"]).message
    assert "The result is right only because programs run one after the other here." in message
    message = WRITE.grade(WRITE.wrong["write a token whose slot is -1"]).message
    assert "The result is right only because what lies outside of a tensor is never written here." in message


# --- what is drawn ----------------------------------------------------------------------------------------------------


def marks(svg: str) -> list[str]:
    return re.findall(r'font-weight="bold" fill="#(?:222|000)">([^<]+)<', svg)[1:]


@each
def test_a_right_answer_is_shown_what_it_touched(number: str) -> None:
    """Catches a drawing that shows a right kernel as wrong, or nothing of it."""
    [(caption, picture)] = EXERCISES[number].grade(SECOND[number]).pictures
    assert caption == "what your kernel touched in the first case"
    assert not {"✗", "○", "!", "↻"} & set("".join(marks(picture.svg))) and "not needed" not in picture.alt
    words = {
        "08.1": "needed and loaded: slots 4–6 of KV head 0 by programs 0",
        "08.2": "seq 0, head 0: needed and loaded splits 0, 1.",
        "08.3": "KV head 0: to be written, and stored into slot 3.",
    }
    assert words[number] in picture.alt


def test_each_way_to_touch_is_drawn() -> None:
    """Catches a split or a slot that looks right whatever a kernel does with it."""
    some = ("mask=used[:, None]", "mask=(real & (splits % 3 < 2))[:, None]")
    drawn = MERGE.draw((THREE_SPLITS,), run(MERGE, THREE_SPLITS, some))
    assert marks(drawn.svg) == ["✓", "✗", "○"] * 2 + ["✓", "✓", "○"] * 2
    found = "needed and loaded split 0, needed, not loaded split 2, loaded, not needed split 1"
    assert f"seq 0, head 1: {found}" in drawn.alt
    elsewhere = ("slot * KV_HEADS + head", "(slot + token) * KV_HEADS + head")
    drawn = WRITE.draw((TOKENS,), run(WRITE, TOKENS, elsewhere))
    assert marks(drawn.svg) == ["○", "✗", "✓"] * 2
    assert "to be written, and left out slot 0, stored into by another's program slot 2; KV head 1: " in drawn.alt
    gone = WRITE.draw((TOKENS,), run(WRITE, TOKENS, (", mask=slot >= 0", "")))
    assert marks(gone.svg)[-1] == "!" and "a slot that does not exist is stored into" in gone.alt
