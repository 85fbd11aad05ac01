"""Every exercise accepts right answers of any make, rejects wrong ones by name, and stands in its chapter."""

from __future__ import annotations

import ast
import linecache
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch

from pagedattn_lab import exercises
from pagedattn_lab.exercises import Exercise, catalogue, ch01, ch03, ch04, ch05, ch07
from tests.helpers.chapters import CHAPTERS
from tests.helpers.draws import LIBRARY
from tests.helpers.second_solutions import SECOND
from tools import notebooks

ALL = {
    exercise.number: replace(exercise, number="", seconds=60) for exercise in catalogue()
}  # without a number nothing is recorded; a machine may be busy with other tests
PATHS = {exercise.number: exercise.path for exercise in catalogue()}
TO_COME = {"11"} - {path.stem[:2] for path in CHAPTERS}
"""Chapters whose exercises are there, and which are being written."""
each = pytest.mark.parametrize("number", ALL)


@pytest.mark.when_changed(*LIBRARY)
@each
def test_two_independent_answers_pass(number: str) -> None:
    """Catches a check that nobody can satisfy, and one that wants its own way of doing it."""
    for answer in (ALL[number].reference, SECOND[number]):
        verdict = ALL[number].grade(answer)
        assert verdict.passed and not verdict.remarks, verdict


@pytest.mark.when_changed(*LIBRARY)
@each
def test_a_right_answer_has_time_to_spare(number: str) -> None:
    """Catches cases that take so long that a slower machine would stop a right answer."""
    ALL[number].grade(SECOND[number])  # what is imported and made once does not count
    begin = time.process_time()
    ALL[number].grade(SECOND[number])
    assert time.process_time() - begin < 1.7, "a third of the limit"


def compiled(code: str, name: str) -> CodeType:
    """Compile code that can be read again: Triton reads the source of a kernel."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    return compile(code, name, "exec")


@each
def test_the_solution_that_is_shown_passes(number: str) -> None:
    """Catches a solution that lacks an import, or uses something that the reader does not have."""
    text = ALL[number].solution().text
    explanation, _, code = text.removesuffix("```").partition("```python\n")
    namespace: dict[str, object] = {}
    exec(compiled(code, f"solution of {number}"), namespace)
    assert len(explanation) > 100 and ALL[number].grade(namespace[ALL[number].name]).passed
    assert "_reference" not in code and "_solution" not in code


@each
def test_a_stub_is_not_attempted(number: str) -> None:
    """Catches an exercise that scolds a reader who has not begun."""

    def stub(*_: object, **__: object) -> None:
        raise NotImplementedError

    verdict = ALL[number].grade(stub)
    assert verdict.passed is None and verdict.message.startswith("Not attempted")


@pytest.mark.when_changed(*LIBRARY)
@pytest.mark.parametrize(("number", "mistake"), [(number, wrong) for number in ALL for wrong in ALL[number].wrong])
def test_wrong_answers_are_rejected_by_name(number: str, mistake: str) -> None:
    """Catches cases too weak to see a mistake, or to tell it from another one."""
    wrong = ALL[number].wrong[mistake]
    of_a_hunt = ALL[number].buggy  # its own bug, written by somebody else
    verdict = ALL[number].grade((lambda *arguments: wrong(*arguments)) if of_a_hunt else wrong)
    assert verdict.passed is False
    assert f"You seem to {mistake}." in verdict.remarks, verdict
    assert verdict.rows[0][0] == "call" and [label for label, _ in verdict.rows].count("expected") >= 1


@each
def test_exercises_are_complete(number: str) -> None:
    """Catches an exercise with too few cases or wrong answers, without three hints, or without words for its return."""
    exercise = ALL[number]
    assert len(exercise.wrong) >= 4 and len(exercise.hints) == 3 and exercise.returns and exercise.title
    cases = list(exercise.cases())
    assert len(cases) >= 20 and all(case.about for case in cases if not exercise.look)
    assert [case.shown for case in cases] == [case.shown for case in exercise.cases()]
    assert [repr(case) for case in cases] == [repr(case) for case in exercise.cases()], "other cases each time"


ANYTHING = [None, 3, -1, "text", [], [None], {}, set(), ([], []), (1, 2), ([[]], {"a"}), 2.5]


@each
def test_any_value_at_all_can_be_graded(number: str) -> None:
    """Catches a look, or a drawing, that trips over what an answer gave, and an answer that is right by chance."""
    for value in ANYTHING:
        verdict = ALL[number].grade(lambda *_, value=value: value)
        assert verdict.passed is False and verdict.message.startswith("✗ Not yet: "), (value, verdict)
        assert "cannot be compared" not in verdict.message, (value, verdict)
    verdict = ALL[number].grade(lambda *_: 10**5000)  # Python writes no number of so many digits
    assert verdict.passed is False and verdict.message.startswith("✗ Not yet: "), verdict


# --- in the chapters --------------------------------------------------------------------------------------------------


def exercise_cells() -> Iterator[tuple[str, str]]:
    for path in CHAPTERS:
        for cell in notebooks.code_cells(notebooks.read(path)):
            if ".grade(" in cell.source:
                yield f"{path.stem}: {cell.id}", cell.source


CELLS = dict(exercise_cells())


@pytest.mark.parametrize("where", CELLS)
def test_an_exercise_cell_runs_by_itself(where: str) -> None:
    """Catches a cell that needs another one to have run: in a fresh kernel a reader's first answer is a NameError."""
    tree = ast.parse(CELLS[where])
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    namespace: dict[str, object] = {}
    linecache.cache[where] = (0, None, CELLS[where].splitlines(keepends=True), where)
    exec(compile(tree, where, "exec"), namespace)
    assert eval(compile(ast.Expression(last.value), where, "eval"), namespace).passed is None


def test_every_exercise_stands_in_its_chapter_with_the_same_arguments() -> None:
    """Catches an exercise that no chapter sets, and a stub whose arguments are not those of the cases."""
    found = {}
    for source in CELLS.values():
        (stub,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        path, _, answer = source.splitlines()[-1].partition(".grade(")
        assert answer == f"{stub.name})" and path.endswith(f".{stub.name}")
        found[path] = [argument.arg for argument in stub.args.args]
    parameters = {PATHS[number]: exercise.parameters for number, exercise in ALL.items() if number[:2] not in TO_COME}
    hunts = {PATHS[number] for number, exercise in ALL.items() if exercise.buggy}
    assert found.keys() == parameters.keys()
    assert {path: names for path, names in found.items() if path not in hunts} == {
        path: names for path, names in parameters.items() if path not in hunts
    }
    assert {path: len(names) for path, names in found.items()} == {
        path: len(names) for path, names in parameters.items()
    }


def test_the_list_of_exercises_waits_for_nothing_heavy() -> None:
    """Catches an exercise that imports torch when it is only named."""
    code = (
        "import sys\nfrom pagedattn_lab.exercises import catalogue\n"
        "catalogue()\nprint({'torch', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_numbers_run_on() -> None:
    """Catches a number that is missing or used twice."""
    numbers = [exercise.number for exercise in catalogue()]
    for chapter in sorted({number[:2] for number in numbers}):
        mine = [number for number in numbers if number[:2] == chapter]
        assert mine == [f"{chapter}.{place}" for place in range(1, len(mine) + 1)]
    modules = {path.stem[:2] for path in CHAPTERS}
    assert {number[:2] for number in numbers} <= modules | TO_COME
    assert Path(exercises.__file__).is_file()


# --- what single exercises must see -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "new", "free", "block_size", "granted"),
    [
        ([15, 16, 17, 0], [1, 1, 1, 16], 9, 16, [0, 1, 0, 1]),
        ([0, 0, 0], [20, 40, 3], 4, 8, [3]),
        ([0, 3, 9], [17, 1, 40], 6, 4, [5, 0]),
        ([2, 7, 1], [2, 1, 6], 0, 4, [0, 0]),
    ],
)
def test_admission_by_hand(held: list[int], new: list[int], free: int, block_size: int, granted: list[int]) -> None:
    """Catches a reference that agrees with its own mistakes only."""
    assert ch03.admit.reference(held, new, free, block_size) == granted


@pytest.mark.parametrize(
    ("before", "after", "copy"),
    [
        (([[1, 2]], [8], 0, [5, 3], 4), ([[1, 2, 5]], [9], [3]), None),
        (([[1, 2], [1, 2]], [6, 6], 0, [5, 3], 4), ([[1, 5], [1, 2]], [7, 6], [3]), (2, 5)),
        (([[1, 2], [1, 2]], [8, 8], 0, [4, 6], 4), ([[1, 2, 4], [1, 2]], [9, 8], [6]), None),
        (([[7], [7], [7]], [1, 1, 1], 2, [9, 8], 3), ([[7], [7], [9]], [1, 1, 2], [8]), (7, 9)),
    ],
)
def test_append_by_hand(before: tuple, after: tuple, copy: tuple | None) -> None:
    """Catches a reference that agrees with its own mistakes only."""
    tables, lengths, i, free, block_size = before
    assert ch05.append_one.reference(tables, lengths, i, free, block_size) == copy
    assert (tables, lengths, free) == after


def test_merged_parts_are_attention_over_the_whole() -> None:
    """Catches a reference for merging that no softmax agrees with."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 9, generator=generator, dtype=torch.float64) * 4
    value = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    parts = [ch07.partial_attention(scores[:, a:b], value[a:b]) for a, b in ((0, 4), (4, 4), (4, 9))]
    _, total, accumulator = ch07.merge_partials.run(ch07.merge_partials.reference, tuple(parts))
    torch.testing.assert_close(accumulator / total[:, None], torch.softmax(scores, 1) @ value, rtol=1e-12, atol=1e-12)


def test_a_right_append_may_return_a_list() -> None:
    """Catches right contents that are refused by type."""
    for number in ("05.1", "05.3"):

        def listed(*arguments: object, number: str = number) -> object:
            returned = ALL[number].reference(*arguments)
            return returned and list(returned)

        assert ALL[number].grade(listed).passed, number


@pytest.mark.parametrize(
    "change", [list.clear, list.pop, lambda each: each.append(10**5000), lambda each: each.append("")]
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_whatever_an_append_does_to_its_arguments(change: Callable[[list[Any]], Any], place: int) -> None:
    """Catches a drawing of tables that are gone, of lengths without tables, or of blocks that have no number."""
    verdict = ALL["05.1"].grade(lambda *arguments: change(arguments[place]) and None)
    assert verdict.passed is False and verdict.message.startswith("✗ Not yet: 0 of "), verdict


@pytest.mark.parametrize(
    "as_they_like",
    [
        lambda tables, freed: ([tuple(table) for table in tables], freed),
        lambda tables, freed: (tuple(map(tuple, tables)), frozenset(freed)),
        lambda tables, freed: (
            ([dict.fromkeys(map(tuple, tables)).popitem()[0]] * len(tables), freed)
            if len({*map(tuple, tables)}) == 1
            else (tables, freed)
        ),
        lambda tables, freed: (np.array(tables) if len({*map(len, tables)}) == 1 else tables, freed),
        lambda tables, freed: ([np.array(table) for table in tables], np.array(sorted(freed), dtype=np.int64)),
        lambda tables, freed: ([[np.int32(block) for block in table] for table in tables], set(map(np.int64, freed))),
    ],
)
def test_beams_may_have_tables_of_any_make(as_they_like: Callable[..., Any]) -> None:
    """Catches tuples and arrays that are told to be one list, and numbers that are refused for their type."""
    verdict = ALL["05.2"].grade(lambda *arguments: as_they_like(*ALL["05.2"].reference(*arguments)))
    assert verdict.passed and not verdict.remarks, verdict


def test_beams_of_texts_are_told_what_is_wrong() -> None:
    """Catches two values of the right kinds that are refused as if they were none."""

    def answer(*arguments: Any) -> Any:
        tables, freed = ALL["05.2"].reference(*arguments)
        return [list(map(str, table)) for table in tables], freed

    assert "and in it a text where a number belongs." in ALL["05.2"].grade(answer).message


def test_beams_with_one_list_see_which_it_is() -> None:
    """Catches expected and got that read the same, and two pictures that are one."""
    verdict = ALL["05.2"].grade(ALL["05.2"].wrong["give two beams one list"])
    message = verdict.message
    assert not verdict.pictures
    assert "expected  ([[1, 3], [1, 3]], {2})\n  got       ([a, a], {2}), where a is [1, 3]\n" in message


def test_a_hunt_may_return_what_it_likes() -> None:
    """Catches a right change that is refused because something is returned, too."""
    for number in ("03.4", "05.4"):
        answer = SECOND[number]
        assert ALL[number].grade(lambda *arguments, answer=answer: [answer(*arguments), arguments][1]).passed, number


def test_a_free_queue_under_another_name_is_not_a_count_that_is_wrong() -> None:
    """Catches the diagnosis of another mistake, where a new list was made and the caller's stayed as it was."""

    def find_again(blocks: list[int], ref_cnt: dict[int, int], free: list[int]) -> None:
        for block in blocks:
            ref_cnt[block] += 1
        free = [block for block in free if block not in blocks]

    message = ALL["03.4"].grade(find_again).message
    assert "You give the name free to a new value" in message and "You seem" not in message


def test_every_way_into_the_free_queue_is_seen() -> None:
    """Catches blocks that are freed and taken back by another method than ``append``."""
    ways = {
        "append": lambda free, block: free.append(block),
        "extend": lambda free, block: free.extend([block]),
        "insert": lambda free, block: free.insert(0, block),
        "+=": lambda free, block: free.__iadd__([block]),
        "[:]": lambda free, block: free.__setitem__(slice(len(free), None), [block]),
    }
    for name, put in ways.items():

        def answer(tables: Any, parents: Any, ref_cnt: Any, free: Any, put: Callable[..., Any] = put) -> None:
            put(free, tables[0][0])
            free.remove(tables[0][0])
            ALL["05.4"].reference(tables, parents, ref_cnt, free)

        message = ALL["05.4"].grade(answer).message
        assert "expected  put into free" in message, (name, message)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "float32"), (torch.float16, "float16"), (torch.int64, "int64")]
)
def test_another_dtype_is_said(dtype: torch.dtype, name: str) -> None:
    """Catches an error of torch's in the place of a verdict."""
    message = ALL["07.1"].grade(lambda *parts: [each.to(dtype) for each in ALL["07.1"].reference(*parts)]).message
    assert (
        f"The maximum is {name}, and the parts are float64: keep their dtype" in message and "Traceback" not in message
    )


def test_slots_behind_the_last_token_are_asked_for() -> None:
    """Catches cases that let ``position <= seq_len`` pass: few draw the one slot that shows it."""
    behind: list[bool] = []  # in the next block or, if there is room, in the last one
    for case in ch04.owners_of_slot.cases():
        slot, rows, lengths, block_size = case.arguments
        for row, length in zip(rows, lengths, strict=True):
            logical, offset = divmod(length, block_size)
            if logical < len(row) and row[logical] * block_size + offset == slot:
                behind.append(offset == 0)
    assert behind.count(True) >= 3 and behind.count(False) >= 3


def test_tables_alone_are_not_tables_and_freed_blocks() -> None:
    """Catches a list of two tables that is read as tables and freed blocks."""
    message = ALL["05.2"].grade(lambda tables, parents: [list(tables[parent]) for parent in parents]).message
    assert "You return a list of 2 lists. Return two values, (new_tables, freed)" in message


def test_a_failing_case_is_drawn() -> None:
    """Catches boards that are the same, or missing, where the tables of an answer are wrong."""
    for number, mistake in (("03.2", 0), ("04.3", 0), ("05.1", 0), ("05.2", 0)):
        exercise = ALL[number]
        verdict = exercise.grade(list(exercise.wrong.values())[mistake])
        (expected, theirs), captions = (
            [picture.alt for _, picture in verdict.pictures],
            [c for c, _ in verdict.pictures],
        )
        assert captions == ["expected", "yours"] and "Free queue" in expected and "Free queue" in theirs
        assert number == "04.3" or expected != theirs
        assert verdict.pictures[0][1].svg != verdict.pictures[1][1].svg


def test_the_slow_way_counts_the_same_positions() -> None:
    """Catches a formula for lost caches that a simulation, position by position, contradicts."""
    exercise: Exercise = ch01.positions_processed
    assert exercise.oracle is not exercise.reference
    assert [exercise.oracle(5, 4, lost) for lost in ((), (1,), (3,))] == [8, 13, 15]


def test_the_longest_context_by_hand() -> None:
    """Catches a reference and an oracle that share a mistake: windows, the last token, an unlimited layer."""
    exercise: Exercise = ch01.longest_context
    mha = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 8, "max_position_embeddings": 50}
    kinds = ["full_attention", "sliding_attention", "linear_attention"]
    mixed = mha | {"layer_types": kinds, "sliding_window": 4}  # 16 bytes a token and layer at one byte an element
    for answer in (exercise.reference, exercise.oracle, SECOND["01.2"]):
        assert answer is not None
        assert [answer(mha, 100 + left, 100, 1) for left in (47, 48, 10 * 48, 10**6)] == [0, 2, 11, 50]
        assert [answer(mixed, left, 0, 1) for left in (4 * 32, 4 * 32 + 16, 4 * 32 + 20 * 16)] == [5, 6, 25]
        assert answer(mixed | {"layer_types": kinds[2:] * 3}, 1, 0, 1) == 50
