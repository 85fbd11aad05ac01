"""Exercises whose answer is a kernel: what it touches is seen, said and drawn, and it leaves Triton as it was."""

from __future__ import annotations

import linecache
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.attention.launch import launch
from pagedattn_lab.exercises import ch07, record
from pagedattn_lab.exercises.ch07_drawing import LOOKS, draw, rows_of
from pagedattn_lab.exercises.ch07_faults import in_words
from pagedattn_lab.exercises.ch07_problem import Problem
from pagedattn_lab.exercises.kernels import OwnKernel
from pagedattn_lab.exercises.limits import TimeLimit, time_limit
from pagedattn_lab.exercises.problems import Outcome
from pagedattn_lab.exercises.touched import watched
from pagedattn_lab.viz import Picture
from tests.helpers.chapters import CHAPTERS
from tests.helpers.draws import KERNEL_CHAPTERS, drawn
from tests.helpers.second_solutions import SECOND
from tests.helpers.triton_state import attributes
from tools import notebooks

pytestmark = pytest.mark.when_changed(*KERNEL_CHAPTERS)

GROUPED, WINDOWED, PADDED = (
    replace(exercise, number="") for exercise in (ch07.grouped_decode, ch07.windowed_decode, ch07.padded_decode)
)
ONLINE = replace(ch07.online_decode, number="")
SPECIFIED = {"07.4": GROUPED, "07.5": WINDOWED, "07.6": PADDED}
EXERCISES = {**SPECIFIED, "07.7": ONLINE}
each = pytest.mark.parametrize("number", EXERCISES)


# --- watching ---------------------------------------------------------------------------------------------------------


@triton.jit
def _copy(out_ptr, in_ptr, at_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    at = tl.load(at_ptr + i)
    tl.store(out_ptr + at, tl.load(in_ptr + at), mask=at % 2 == 0)


@settings(max_examples=drawn(25), derandomize=True)
@given(
    at=st.lists(st.integers(-6, 13) | st.integers(-(2**31), 2**31 - 1), min_size=8, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64]),
)
def test_every_lane_is_noted_and_nothing_outside_is_touched(at: list[int], dtype: torch.dtype) -> None:
    """Catches an address that is noted for another tensor or program, and one that is read or written for real."""
    memory = torch.arange(30).to(dtype)  # what lies beside the two tensors would be read and written first
    source, target, before = memory[10:18], torch.zeros(30, dtype=dtype), memory.clone()
    out, where = target[10:18], torch.tensor(at, dtype=torch.int32)
    with watched({"out": out, "in": source, "at": where}) as touched:
        launch(_copy, (2,), out, source, where, N=4)
    for program in (0, 1):
        mine = at[4 * program : 4 * program + 4]
        assert touched["load", "at", (program, 0, 0)] == set(range(4 * program, 4 * program + 4))
        assert touched["load", "in", (program, 0, 0)] == set(mine)
        assert touched["store", "out", (program, 0, 0)] == {index for index in mine if index % 2 == 0}
    expected = torch.zeros(8, dtype=dtype)
    for index in at:
        if index % 2 == 0 and 0 <= index < 8:
            expected[index] = source[index]
    assert torch.equal(out, expected) and torch.equal(memory, before)
    assert not target[:10].any() and not target[18:].any()


@triton.jit
def _all_or_nothing(out_ptr, in_ptr, N: tl.constexpr):
    program, i = tl.program_id(0), tl.arange(0, N)
    x = tl.load(in_ptr + i, mask=program < 1, other=7.0)
    tl.store(out_ptr + program * N + i, x, mask=program < 2)


def test_one_mask_for_a_whole_row_is_noted_in_every_lane() -> None:
    """Catches a scalar mask, which the interpreter spreads as numbers, and numbers pick the elements 0 and 1."""
    out, source = torch.zeros(12), torch.arange(4.0)
    with watched({"out": out, "in": source}) as touched:
        launch(_all_or_nothing, (3,), out, source, N=4)
    assert {key: elements for key, elements in touched.items() if elements} == {
        ("load", "in", (0, 0, 0)): {0, 1, 2, 3},
        ("store", "out", (0, 0, 0)): {0, 1, 2, 3},
        ("store", "out", (1, 0, 0)): {4, 5, 6, 7},
    }
    assert out.tolist() == [0, 1, 2, 3, 7, 7, 7, 7, 0, 0, 0, 0]


@triton.jit
def _loads_again(out_ptr, in_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(in_ptr + i)
    x += tl.load(in_ptr + i, mask=i == 1, other=0.0)
    x += tl.load(in_ptr + 4 + i // 3)
    x += tl.load(in_ptr + 6 + tl.program_id(0))
    tl.store(out_ptr + i, x)
    tl.store(out_ptr + i, x)


def test_what_a_program_loads_more_than_once_is_noted() -> None:
    """Catches a second load, or a second lane, that counts as the first, and two programs that count as one."""
    out, source = torch.zeros(4), torch.zeros(8)
    with watched({"out": out, "in": source}) as touched:
        launch(_loads_again, (2,), out, source, N=4)
    again = {key: elements for key, elements in touched.items() if key[0] == "again"}
    assert again == {("again", "in", (0, 0, 0)): {1, 4}, ("again", "in", (1, 0, 0)): {1, 4}}


@triton.jit
def _garbage(out_ptr, in_ptr, N: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, N), tl.load(in_ptr + 5 + tl.arange(0, N)))


def test_what_lies_outside_is_garbage() -> None:
    """Catches zeros from outside, with which a missing mask does no harm."""
    for source, expected in ((torch.ones(4), [torch.nan] * 2), (torch.ones(4, dtype=torch.int32), [-1] * 2)):
        out = torch.zeros(2, dtype=source.dtype)
        with watched({"out": out, "in": source}):
            launch(_garbage, (1,), out, source, N=2)
        torch.testing.assert_close(out, torch.tensor(expected, dtype=out.dtype), equal_nan=True)


@triton.jit
def _adds_atomically(x_ptr):
    tl.atomic_add(x_ptr + 100, 1.0)


def test_what_cannot_be_watched_is_refused() -> None:
    """Catches an access that goes round the watch, and tensors of which an address would not tell the element."""
    x = torch.zeros(4)
    with pytest.raises(ValueError, match=r"x has shape \(2, 2\), strides \(1, 2\): make it contiguous"):
        watched({"x": torch.zeros(2, 2).T}).__enter__()
    with pytest.raises(ValueError, match=r"a tensor of shape \(4,\) is not watched"), watched({"y": torch.ones(1)}):
        launch(_garbage, (1,), x, x, N=2)
    with pytest.raises(Exception, match="atomic operations are not watched"), watched({"x": x}):
        launch(_adds_atomically, (1,), x)


@triton.jit
def _endless(x_ptr):
    while True:
        pass


@triton.jit
def _adding(x_ptr):
    x = tl.load(x_ptr)
    while x < 1e9:
        x = x + 1.0


@pytest.mark.parametrize("kernel", [_endless, _adding])
@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_limit_leaves_triton_as_it_was(kernel: Any, in_main_thread: bool) -> None:
    """Catches a Triton that stays exchanged, or a lock that stays taken, when a launch is interrupted anywhere."""
    before, x = attributes(), torch.zeros(1)

    def interrupt() -> None:
        for number in range(40 if in_main_thread else 8):
            with pytest.raises(TimeLimit), time_limit(0.0005 * (number + 1)), watched({"x": x}):
                launch(kernel, (1,), x)

    if in_main_thread:
        interrupt()
    else:
        found: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: found.append(_raised(interrupt)), daemon=True)
        thread.start()
        thread.join(60)
        assert found == [None]
    assert attributes() == before
    y = torch.zeros(8)
    elsewhere = threading.Thread(target=lambda: launch(_copy, (1,), y, y + 1, torch.arange(8), N=8), daemon=True)
    elsewhere.start()
    elsewhere.join(20)
    assert y.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]


def _raised(do: Callable[[], None]) -> BaseException | None:
    try:
        do()
    except BaseException as error:
        return error
    return None


@triton.jit
def endless_decode(out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
                   WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    start = 0
    while start < tl.load(lens_ptr):
        start = start * 1


def test_a_kernel_without_an_end_is_stopped() -> None:
    """Catches a loop that forgets to move on, and hangs the notebook."""
    message = replace(WINDOWED, seconds=0.5).grade(endless_decode).message
    assert "Stopped after 0.5 s, in this call" in message
    assert re.search(r"at        line \d+ of endless_decode: (while start|start = start)", message), message


# --- what is right ----------------------------------------------------------------------------------------------------


def problems(number: str) -> st.SearchStrategy[Problem]:
    """Ragged batches of the kind that an exercise has, larger than its own."""
    lens = st.lists(st.integers(0 if number == "07.6" else 1, 17), min_size=1, max_size=2).map(tuple)
    heads = st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)] if number == "07.4" else [(1, 1)])
    sizes = st.sampled_from([1, 2, 3, 4, 7, 16]), st.sampled_from([1, 2, 4, 16])
    dim = st.integers(2, 9) if number == "07.6" else st.sampled_from([2, 4, 16])
    window = st.integers(1, 9) if number == "07.5" else st.none()
    return st.builds(
        lambda lens, size, tile, dim, heads, window, scores, seed: Problem(
            lens, size, tile, dim, *heads, window=window, scores=scores, seed=seed
        ),
        lens, *sizes, dim, heads, window, st.sampled_from(["mixed", "rising", "falling", "low"]), st.integers(0, 99),
    )  # fmt: skip


@each
@settings(max_examples=drawn(8), derandomize=True)
@given(data=st.data())
def test_right_kernels_are_right_on_any_ragged_batch(number: str, data: st.DataObject) -> None:
    """Catches a right answer that is right on the exercise's own cases only, or that is told to touch too much."""
    problem, exercise = data.draw(problems(number)), EXERCISES[number]
    for kernel in (exercise.reference, SECOND[number]):
        assert exercise.run is not None
        outcome = exercise.run(kernel, (problem,))
        assert outcome.faults == [] and outcome.is_close(problem.specified), (problem, outcome, outcome.faults)


@pytest.mark.parametrize("number", SPECIFIED)
def test_the_specification_in_the_chapter_is_what_is_graded(number: str) -> None:
    """Catches a chapter that asks for something else than the exercise."""
    [chapter] = [path for path in CHAPTERS if path.stem.startswith("07")]
    [text] = [cell.source for cell in notebooks.read(chapter).cells if cell.source.startswith(f"### {number[-1]} ·")]
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 6
    for case in EXERCISES[number].cases():
        (problem,) = case.arguments
        tensors = {name: tensor.double() for name, tensor in problem.tensors.items()}
        for row, length in enumerate(problem.lens):
            one_head = number != "07.4"
            names: dict[str, Any] = {
                "torch": torch, "seq_len": length, "table": problem.tensors["page tables"][row],
                "query": tensors["queries"][row, 0] if one_head else tensors["queries"][row],
                "key_cache": tensors["keys"][:, :, 0] if one_head else tensors["keys"],
                "value_cache": tensors["values"][:, :, 0] if one_head else tensors["values"],
                "scale": problem.scale, "BLOCK_SIZE": problem.block_size, "WINDOW": problem.window,
                "HEADS": problem.heads, "KV_HEADS": problem.kv_heads,
            }  # fmt: skip
            exec(code, names)
            torch.testing.assert_close(names["out"].reshape(-1, problem.dim), problem.specified.values[row])


@each
def test_inputs_are_hostile(number: str) -> None:
    """Catches cases that would forgive: slots without NaN, tables in order, entries behind the end that do no harm."""
    given_to = [case.arguments[0] for case in EXERCISES[number].cases()]
    for problem in given_to:
        needed = set().union(*(rows for (name, _), rows in problem.needed.items() if name == "keys"))
        for name in ("keys", "values"):
            rows = problem.tensors[name].flatten(0, 2)
            assert {i for i, row in enumerate(rows) if not row.isnan().any()} == needed
            assert all(row.isnan().all() for i, row in enumerate(rows) if i not in needed)
    used = [[block for block, n in zip(p.tensors["page tables"][0].tolist(), range(9), strict=False)
             if n < -(-p.lens[0] // p.block_size)] for p in given_to]  # fmt: skip
    assert any(blocks != sorted(blocks) for blocks in used)
    last = {int(row[-1]) for p in given_to for row in p.tensors["page tables"]}
    assert {-1, 0, 10**6} <= last
    assert len({p.block_size for p in given_to}) >= 4 and len({p.tile for p in given_to}) >= 2


def test_a_window_s_cases_begin_with_masked_tiles() -> None:
    """Catches an exercise whose trap is not set."""
    cases = [case.arguments[0] for case in WINDOWED.cases()]
    trapped = [p for p in cases if any(p.visible(i).start // p.tile > 0 for i in range(len(p.lens)))]
    assert len(trapped) >= 5


# --- what is said -----------------------------------------------------------------------------------------------------

PADDED_CASE = Problem((5, 3), block_size=3, tile=8, dim=3, seed=3)


def run(exercise: Any, problem: Problem, *changes: tuple[str, str]) -> Outcome:
    return exercise.run(exercise.reference.but(*changes), (problem,))


BEHIND = ("BLOCK_SIZE, mask=in_sequence", "BLOCK_SIZE + 1, mask=in_sequence")
TWO_GROUPS = Problem((2,), 2, 2, heads=4, kv_heads=2)


@pytest.mark.parametrize(
    ("exercise", "problem", "change", "words"),
    [
        (
            PADDED, PADDED_CASE, ("other=0)", "other=0) + 5"),
            r"0 loads slot \d+, but the cache of keys has slots 0 to 11: out of bounds\.$",
        ),
        (
            PADDED, replace(PADDED_CASE, tile=16), (", mask=in_sequence, other=0)", ")"),
            r"1 loads entry 3 of its page table, which has 3 entries: out of bounds\.",
        ),
        (
            PADDED, Problem((2,), 4, 4), BEHIND,
            r"0 loads entry 1 of its page table: 2 tokens fill entry 0, and what lies behind is garbage, here -?\d+\.",
        ),
        (
            PADDED, PADDED_CASE, ("sequence * table_stride + ", ""),
            r"1 loads entry 0 of the page table of sequence 0, but computes sequence 1\.",
        ),
        (
            PADDED, PADDED_CASE, ("lens_ptr + sequence", "lens_ptr + sequence - 1"),
            r"0 loads element -1 of lengths, which has 2: out of bounds\.",
        ),
        (
            PADDED, PADDED_CASE, ("lens_ptr + sequence", "lens_ptr"),
            r"1 loads elements of lengths that belong to sequence 0, but computes sequence 1\.",
        ),
        (
            PADDED, PADDED_CASE, ("tl.store(out_ptr", "tl.store(key_ptr"),
            r"0 stores into the keys, which are there to be read\.",
        ),
        (
            PADDED, PADDED_CASE, ("out, mask=real_dim", "out"),
            r"0 stores elements of out that belong to sequence 1, but computes sequence 0\. Lanes from 3 on have no",
        ),
        (
            PADDED, PADDED_CASE, ("tl.store(out_ptr", "tl.store(key_ptr - 6"), r"0 stores .* out of bounds\.",
        ),
        (
            PADDED, PADDED_CASE, ("tl.store(out_ptr", "tl.load(out_ptr); tl.store(out_ptr"),
            r"1 loads elements of out that belong to sequence 0, but computes sequence 1\.",
        ),
        (
            PADDED, PADDED_CASE, ("tl.store(out_ptr", "tl.store(out_ptr + 6"),
            r"0 stores element 6 of out, which has 6: out of bounds\.",
        ),
        (
            PADDED, PADDED_CASE, ("mask=mask", "mask=in_sequence[:, None]"),
            r"\d loads slot \d+ of the keys \(block \d, offset \d\) in part\. Lanes from 3 on have no element of their",
        ),
        (
            PADDED, Problem((1,), 2, 2), ("mask=mask", "mask=real_dim[None, :]"),
            r"0 loads slot 1 of the keys \(block 0, offset 1\): that is the null block, which never holds a token\.",
        ),
        (
            GROUPED, TWO_GROUPS, ("head // (HEADS // KV_HEADS)", "1"),
            r"\(0, 0\) loads KV head 1 of slot \d+, but query head 0 reads KV head 0\.",
        ),
        (
            GROUPED, Problem((2,), 2, 2, heads=2), ("head // (HEADS // KV_HEADS)", "head"),
            r"\(0, 1\) loads slot 4, but the cache of keys has slots 0 to 3: out of bounds\. It asks for KV head 1, "
            r"and there is only KV head 0\.$",
        ),
        (
            GROUPED, TWO_GROUPS, ("head // (HEADS // KV_HEADS)", "head"),
            r"\(0, 3\) loads slot 4, but the cache of keys has slots 0 to 3: out of bounds\. It asks for KV head 3, "
            r"and there are only KV heads 0 to 1\.$",
        ),
        (
            GROUPED, TWO_GROUPS, ("query_ptr + own_row", "query_ptr"),
            r"\(0, 1\) loads elements of queries that belong to sequence 0, head 0, but computes sequence 0, head 1\.",
        ),
        (
            WINDOWED, Problem((6,), 2, 2, window=2), (" & (positions >= seq_len - WINDOW)", ""),
            r"0 loads entry 0 of its page table, but its window begins in entry 2: the blocks before it have been",
        ),
        (
            WINDOWED, Problem((4,), 4, 4, window=2), (">= seq_len - WINDOW", ">= seq_len - WINDOW - 1"),
            r"0 loads slot 5 of the keys \(block 1, offset 1\), where no token of its window lies\.",
        ),
    ],
)  # fmt: skip
def test_what_a_program_must_not_touch_is_said(
    exercise: Any, problem: Problem, change: tuple[str, str], words: str
) -> None:
    """Catches an address that is out of bounds, or another's, without a word about whose it is."""
    outcome = run(exercise, problem, change)
    said = [in_words(problem, [fault]) for fault in outcome.faults]
    assert any(re.match(f"Program {words}", each) for each in said), said


def test_a_wild_block_is_told_with_its_effect() -> None:
    """Catches a wild address without its cause, the entry behind the last block."""
    problem = next(
        p for p in (Problem((2,), 4, 4, seed=seed) for seed in range(99)) if p.tensors["page tables"][0, 1] > 99
    )
    outcome = run(PADDED, problem, BEHIND)
    assert in_words(problem, outcome.faults) == (
        "Program 0 loads entry 1 of its page table: 2 tokens fill entry 0, and what lies behind is garbage, here "
        "1000000. The block found there leads out of bounds: to slot 4000000, but the cache of keys has "
        "slots 0 to 7."
    )


LAST = "running_max = new_max"
LEAVES_EARLY = (LAST, f"{LAST}\n        if start + TILE >= seq_len:\n            break")
BEGINS_AS_INT = ('float("-inf"), 0.0, tl.zeros', 'float("-inf"), 0, tl.zeros')


@each
@pytest.mark.parametrize(
    ("change", "said", "where"),
    [
        (LEAVES_EARLY, "unsupported AST node type: Break", "break"),
        (BEGINS_AS_INT, "variable running_sum has initial type int32 but is re-assigned to fp32", "for start"),
    ],
)  # fmt: skip
def test_what_triton_cannot_compile_is_refused(
    number: str, change: tuple[str, str], said: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a kernel that runs in the interpreter alone: it passes, or counts as solved; and a wrong line."""
    kept = []
    monkeypatch.setattr(record, "kept", lambda *standing: kept.append(standing) or "")
    kernel = EXERCISES[number].reference.but(change)
    verdict = replace(EXERCISES[number], number=number).grade(kernel)
    assert verdict.passed is False and "Triton cannot compile this kernel" in verdict.message, verdict.message
    assert said in " ".join(dict(verdict.rows)["Triton"].split()), verdict.message
    line = int(re.search(r"line (\d+) of", dict(verdict.rows)["at"])[1])
    written = linecache.getlines(kernel.load().fn.__code__.co_filename)[line - 1].strip()
    assert dict(verdict.rows)["at"].endswith(f": {written}") and written.startswith(where), verdict.message
    ((_, right, cases),) = kept
    assert right == cases - 1


@each
@pytest.mark.parametrize("fixed", ["-80.0", "0.0", "80.0"])
def test_a_fixed_number_is_no_maximum(number: str, fixed: str) -> None:
    """Catches cases whose scores all suit one number that is subtracted instead of the maximum."""
    maximum = "finite_max" if number == "07.5" else "new_max"
    changes = (f"tl.exp(running_max - {maximum})", "1.0"), (f"scores - {maximum}", f"scores - {fixed}")
    verdict = EXERCISES[number].grade(EXERCISES[number].reference.but(*changes))
    assert verdict.passed is False
    if number == "07.5" and fixed == "-80.0":
        assert "You seem to subtract one fixed number from all scores" in verdict.message, verdict.message


def test_a_right_result_with_a_wrong_load_is_wrong() -> None:
    """Catches a grade for values alone."""
    verdict = PADDED.grade(PADDED.wrong["load keys in lanes that have no token"])
    assert verdict.passed is False and "The result is right all the same." in verdict.message


def test_what_is_stored_in_part_is_counted() -> None:
    """Catches a kernel that leaves elements out, and hears of NaN that it never computed."""
    only_first = ("out, mask=real_dim", "out, mask=tl.arange(0, PADDED_DIM) == 0")
    verdict = PADDED.grade(OwnKernel("pagedattn_lab.exercises.ch07_solutions", "padded_decode", only_first))
    assert verdict.passed is False and re.search(r"Only 1 of \d+ elements are stored for sequence 0\.", verdict.message)


def test_a_right_kernel_prints_nothing_below_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches the run for the picture, whose prints would stand above a verdict that has told of them."""
    prints = ("tl.store(out_ptr", "print('here'); tl.store(out_ptr")
    assert PADDED.grade(OwnKernel("pagedattn_lab.exercises.ch07_solutions", "padded_decode", prints)).passed
    assert capsys.readouterr() == ("", "")


def test_an_exception_in_a_kernel_names_its_line() -> None:
    """Catches Triton's wrapping, under which a reader's own line is lost."""
    message = WINDOWED.grade(_broken).message
    line = _broken.fn.__code__.co_firstlineno + 3
    assert "raised    NameError: name 'no_such_name' is not defined" in message
    assert f"at        line {line} of _broken: sequence = no_such_name" in message
    assert "interpreter.py" not in message.split("Traceback")[0]


@triton.jit
def _broken(out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
            WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    sequence = no_such_name  # noqa: F821
    tl.store(out_ptr + sequence, 0.0)


def test_a_kernel_that_is_none_is_told_so() -> None:
    """Catches a forgotten mark that passes, and a stub with one that counts as an attempt."""
    assert "put @triton.jit above its def" in PADDED.grade(lambda *_: None).message
    assert "put @triton.jit above its def" in PADDED.grade(_plain).message
    assert GROUPED.grade(_stub).passed is None and GROUPED.grade(_stub.fn).passed is None


def _plain(out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
           BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    return tl.program_id(0)


@triton.jit
def _stub(out_ptr, query_ptr, key_ptr, value_ptr, tables_ptr, lens_ptr, table_stride, scale,
          HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr,
          TILE: tl.constexpr):  # fmt: skip
    raise NotImplementedError


def test_a_change_that_fits_nowhere_is_an_error() -> None:
    """Catches a wrong answer that became right because the right one was rewritten."""
    with pytest.raises(ValueError, match="'no such line' does not stand in grouped_decode"):
        OwnKernel("pagedattn_lab.exercises.ch07_solutions", "grouped_decode", ("no such line", "")).load()


# --- what is drawn ----------------------------------------------------------------------------------------------------


def marks(picture: Picture) -> list[str]:
    return re.findall(r'font-weight="bold" fill="#(?:222|000)">([^<]+)<', picture.svg)


def test_a_right_answer_is_shown_what_it_touched() -> None:
    """Catches a drawing for those alone who are wrong."""
    verdict = PADDED.grade(SECOND["07.6"])
    [(caption, picture)] = verdict.pictures
    assert verdict.passed and caption == "what your kernel touched in the first case"
    assert "Keys and values: needed and loaded: slots" in picture.alt and "not needed" not in picture.alt
    assert marks(picture).count("✓") == 4 + 1  # four slots and an entry


def test_each_way_to_load_has_a_mark_of_its_own() -> None:
    """Catches a meaning that colour alone carries, and a drawing that is the same whatever a kernel does."""
    assert len({mark for mark, _, _ in LOOKS.values()}) == len(LOOKS)
    right, shifted = (
        run(PADDED, PADDED_CASE),
        run(PADDED, PADDED_CASE, ("key_ptr + elements", "key_ptr + 15 + elements")),
    )
    assert set(marks(draw(right))) == {"Page tables", "Keys and values", "✓"}
    assert set(marks(draw(shifted))) == {"Page tables", "Keys", "Values", "✓", "○", "✗", "!"}
    assert re.search(r"Out of bounds: keys: slots [\d–, ]+ \(there are 0 to 11\)\.$", draw(shifted).alt)
    assert {row.look for row in rows_of(shifted, "values").values()} == {"loaded"}


def test_query_heads_are_told_apart() -> None:
    """Catches a drawing in which a key row read by the wrong head of the group looks right."""
    right = draw(run(GROUPED, TWO_GROUPS))
    wrong = draw(run(GROUPED, TWO_GROUPS, ("head // (HEADS // KV_HEADS)", "head % KV_HEADS")))
    assert {"0 1", "2 3"} <= set(marks(right)) and {"0 1○ 2✗", "1✗ 2○ 3"} <= set(marks(wrong))
    assert "slots 2, 3 of KV head 0 by query heads 0 1○ 2✗" in wrong.alt


def test_a_failing_case_is_drawn_beside_the_expected() -> None:
    """Catches a verdict without the drawing of the failing case."""
    verdict = WINDOWED.grade(WINDOWED.wrong["see one token too many"])
    (_, expected), (_, theirs) = verdict.pictures
    assert "loaded, not needed: slot" in theirs.alt and "not needed" not in expected.alt
    assert "✗" in marks(theirs) and "✗" not in marks(expected)
