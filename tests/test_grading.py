"""What an answer to an exercise is told: cases, exceptions, time, types, changed arguments, and what is kept of it."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from pagedattn_lab.exercises import Case, Exercise, limits, progress, record, values
from pagedattn_lab.exercises.limits import TimeLimit, time_limit
from pagedattn_lab.viz import Picture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the record of whoever runs these tests out of them."""
    monkeypatch.setenv("PAGEDATTN_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(record, "_told", set())
    return tmp_path


def total(prices: list[int], less: int = 0) -> int:
    return sum(prices) - less


TOTAL = Exercise(
    "99.1",
    "total",
    "Totals",
    cases=lambda: [
        Case(([1, 2], 0), "Nothing is taken off."),
        Case(([1, 2], 1), "Something is taken off."),
        Case(([5], 2), "One price is a list, too."),
    ],
    reference=total,
    wrong={
        "forget to take off": lambda prices, less: sum(prices),
        "add what is taken off": lambda p, less: sum(p) + less,
    },
    hints=("Add.", "Subtract.", "`sum(prices) - less`"),
    explanation="Sums are sums.",
    returns="a number",
)


# --- in words and in order --------------------------------------------------------------------------------------------


def test_a_right_answer() -> None:
    """Catches a verdict without a number of cases."""
    verdict = TOTAL.grade(lambda prices, less: sum(prices) - less)
    assert verdict.passed and verdict.message == "✓ Correct: all 3 cases are right."


def test_the_first_wrong_case_is_told_in_order() -> None:
    """Catches a verdict that hides the call, what was expected, what came, or which mistake it looks like."""
    verdict = TOTAL.grade(lambda prices, less: sum(prices))
    assert verdict.message.splitlines() == [
        "✗ Not yet: 1 of 3 cases is right.",
        "  call      total(prices=[1, 2], less=1)",
        "  expected  2",
        "  got       3",
        "About this case: Something is taken off.",
        "You seem to forget to take off.",
        "For a hint: ch99.total.hint()",
    ]


def test_a_mistake_is_named_only_if_every_case_agrees() -> None:
    """Catches a guess at the mistake that one case already refutes."""
    verdict = TOTAL.grade(lambda prices, less: sum(prices) if len(prices) > 1 else 99)
    assert verdict.passed is False and "You seem" not in verdict.message


def test_a_forgotten_return_is_said() -> None:
    """Catches None that is shown without a word."""
    assert "Your function returns nothing. Return a number." in TOTAL.grade(lambda prices, less: None).message


def test_html_is_escaped_and_says_the_same() -> None:
    """Catches an answer's text that becomes markup, and a picture that is not shown."""
    board = Exercise(
        "", "f", "F", cases=lambda: [Case((1,))], reference=lambda x: "<b>", wrong={},
        draw=lambda arguments, outcome: Picture("<svg></svg>", f"drawn {outcome}"),
    )  # fmt: skip
    bundle = board.grade(lambda x: "<i>")._repr_mimebundle_()
    assert "&#x27;&lt;i&gt;&#x27;" in bundle["text/html"] and "<i>" not in bundle["text/html"]
    assert [
        re.search(f'{caption}</figcaption><svg role="img"', bundle["text/html"]) for caption in ("expected", "yours")
    ]
    assert bundle["text/plain"].startswith("✗ Not yet")


# --- exceptions -------------------------------------------------------------------------------------------------------


def test_an_exception_keeps_case_line_and_traceback() -> None:
    """Catches an exception of which only the type is left."""

    def helper(prices: list[int]) -> int:
        return prices[1]

    def answer(prices: list[int], less: int) -> int:
        return prices[0] + helper(prices) - less

    message = TOTAL.grade(answer).message
    line = helper.__code__.co_firstlineno + 1
    assert message.startswith("✗ Not yet: 2 of 3 cases are right.\n  call      total(prices=[5], less=2)\n")
    assert (
        f"raised    IndexError: list index out of range\n  at        line {line} of helper: return prices[1]" in message
    )
    assert "return prices[0] + helper(prices) - less" in message  # the way there
    assert "_attempt" not in message  # and nothing of ours
    assert "got" not in message


def test_exceptions_of_long_ago_are_left_out() -> None:
    """Catches a traceback of every exception that a recursion left behind, which takes seconds to write."""

    def fail(depth: int) -> None:
        try:
            return fail(depth - 1) if depth else [][9]
        except (IndexError, ValueError):
            raise ValueError(depth)  # noqa: B904

    message = TOTAL.grade(lambda prices, less: fail(50)).message
    assert message.count("During handling of the above exception") == 3
    assert "ValueError: 50" in message and "IndexError" not in message


def test_a_wrong_number_of_arguments_is_an_exception_like_others() -> None:
    """Catches a crash of the check where no frame is the reader's."""
    message = TOTAL.grade(lambda prices: 0).message
    assert "raised    TypeError" in message and "takes 1 positional argument but 2 were given" in message


def test_exit_does_not_end_the_kernel() -> None:
    """Catches SystemExit that goes through."""
    assert "raised    SystemExit: 3" in TOTAL.grade(lambda prices, less: sys.exit(3)).message


def test_an_interrupt_goes_through() -> None:
    """Catches a check that one cannot stop by hand."""

    def answer(prices: list[int], less: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TOTAL.grade(answer)


@pytest.mark.parametrize("kind", [GeneratorExit, BaseException, asyncio.CancelledError])
def test_what_is_no_exception_is_a_finding_all_the_same(kind: type[BaseException]) -> None:
    """Catches an answer that leaves the check by another way than ``Exception``, though only an interrupt may."""

    def answer(prices: list[int], less: int) -> int:
        raise kind("so there")

    assert re.search(rf"raised    (asyncio.exceptions.)?{kind.__name__}: so there", TOTAL.grade(answer).message)


def test_a_call_in_the_place_of_the_function_is_no_attempt(folder: Path) -> None:
    """Catches ``grade(total(...))`` that counts as an attempt, and is told that a number cannot be called."""
    verdict = TOTAL.grade(total([1, 2], 1))  # type: ignore[arg-type]
    assert verdict.passed is None and list(folder.iterdir()) == []
    assert verdict.message == (
        "Not attempted: pass the function itself, ch99.total.grade(total). What came was a number."
    )


def test_a_branch_that_is_not_written_yet_is_a_finding() -> None:
    """Catches an answer that counts as not attempted because one branch of it is missing."""

    def answer(prices: list[int], less: int) -> int:
        if less:
            raise NotImplementedError
        return sum(prices)

    assert TOTAL.grade(answer).passed is False


# --- time -------------------------------------------------------------------------------------------------------------


def forever(*_: object) -> None:
    while True:
        pass


def until_the_time_is_up() -> None:
    """Hang, with the limit's signal on its way: what came before it had all the time that it needed."""
    signal.setitimer(signal.ITIMER_REAL, 0.01, limits.AGAIN)
    forever()


def forgiving(*_: object) -> None:
    while True:
        try:  # noqa: SIM105
            forever()
        except Exception:
            pass


def all_forgiving(*_: object) -> None:
    while True:
        try:  # noqa: SIM105
            forever()
        except:  # noqa: E722
            pass


def sleeping(*_: object) -> None:
    time.sleep(60)


def in_thread(do: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(do()), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    return found[0]


@pytest.fixture
def guard() -> Iterator[None]:
    """End a test that hangs: without it, a limit that does not work would stop the whole run."""

    def hangs() -> None:
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(20, hangs)
    timer.start()
    yield
    timer.cancel()


@pytest.mark.parametrize("answer", [forever, forgiving, all_forgiving, sleeping])
def test_a_loop_without_an_end_is_stopped(answer: Callable[..., Any], guard: None) -> None:
    """Catches an answer that hangs the kernel, though it catches exceptions or sleeps."""
    begin, tracer = time.monotonic(), sys.gettrace()
    message = replace(TOTAL, seconds=0.3).grade(answer).message
    assert time.monotonic() - begin < 15
    assert sys.gettrace() is tracer
    assert message.startswith("✗ Not yet: 0 of 3 cases are right.\n  call      total(prices=[1, 2], less=0)")
    assert "Stopped after 0.3 s, in this call" in message
    assert re.search(rf"at        line \d+ of ({answer.__name__}|forever): ", message)


def test_catching_again_and_again_does_not_last(guard: None) -> None:
    """Catches a limit that strikes once: what catches everything in two loops, one in the other, outlives that."""

    def thrice(*_: object) -> None:
        for _ in range(3):
            try:  # noqa: SIM105
                all_forgiving()
            except:  # noqa: E722
                pass

    begin = time.monotonic()
    assert replace(TOTAL, seconds=0.3).grade(thrice).passed is False
    assert time.monotonic() - begin < 15


def test_what_was_right_before_the_limit_counts(guard: None) -> None:
    """Catches a limit that forgets finished cases, or names the wrong one."""

    def answer(prices: list[int], less: int) -> int | None:
        return until_the_time_is_up() if less == 2 else sum(prices)

    message = replace(TOTAL, seconds=600).grade(answer).message
    assert message.startswith("✗ Not yet: 1 of 3 cases is right.\n  call      total(prices=[1, 2], less=1)")
    assert "Another call was stopped after 600 s: total(prices=[5], less=2)" in message


def recursing(*arguments: object) -> None:
    try:
        return recursing(*arguments)
    except RecursionError:
        return recursing(*arguments)


def recursing_in_a_loop(*arguments: object) -> None:
    while True:
        try:  # noqa: SIM105
            recursing_in_a_loop(*arguments)
        except Exception:
            pass


@pytest.mark.parametrize("answer", [recursing, recursing_in_a_loop])
def test_recursion_without_an_end_is_stopped(answer: Callable[..., Any], guard: None) -> None:
    """Catches a limit whose own interruption finds no frame left, and one on recursion that stays."""
    begin, depth = time.monotonic(), sys.getrecursionlimit()
    message = replace(TOTAL, seconds=0.3).grade(answer).message
    assert time.monotonic() - begin < 10
    assert "Stopped after 0.3 s, in this call" in message and f"of {answer.__name__}: " in message
    assert sys.getrecursionlimit() == depth and threading.active_count() < 20


@pytest.mark.parametrize("answer", [forever, forgiving])
def test_the_limit_holds_in_a_thread(answer: Callable[..., Any]) -> None:
    """Catches a limit that works in the main thread only: signals do."""
    message = in_thread(lambda: replace(TOTAL, seconds=0.3).grade(answer).message)
    assert "Stopped after 0.3 s" in message


class Finalized:
    """Spends nearly all the time of whoever throws it away in its finalizer."""

    def __del__(self) -> None:
        spend(0.02)


class Endless:
    """Never comes out of its finalizer."""

    def __del__(self) -> None:
        forever()


def generated() -> Iterator[int]:
    try:
        yield 1
    finally:
        spend(0.02)


def finalizing(*_: object) -> None:
    while True:
        Finalized()


def never_finalized(*_: object) -> None:
    Endless()
    forever()


def closing(*_: object) -> None:
    while True:
        next(generated())


def forgetting(*_: object) -> None:
    while True:
        held = Forgotten()
        reference = weakref.ref(held, lambda _: spend(0.02))
        del held
        assert reference() is None


class Forgotten:
    """Something that a weak reference may point to."""


def collecting(*_: object) -> None:
    while True:
        gc.collect(0)


def spend(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.fixture
def slow_collector() -> Iterator[None]:
    """Let whoever collects garbage spend nearly all its time in a callback."""

    def callback(*_: object) -> None:
        spend(0.02)

    gc.callbacks.append(callback)
    yield
    gc.callbacks.remove(callback)


@pytest.mark.parametrize("answer", [finalizing, never_finalized, closing, forgetting])
def test_a_limit_is_not_lost_with_an_exception(answer: Callable[..., Any]) -> None:
    """Catches a limit that strikes once, and there where Python only prints what is raised; and a hook that stays."""
    hook = sys.unraisablehook
    message = in_thread(lambda: replace(TOTAL, seconds=0.3).grade(answer).message)
    assert "Stopped after 0.3 s" in message
    assert sys.unraisablehook is hook


def test_a_limit_is_not_lost_in_the_collector(slow_collector: None) -> None:
    """Catches the same where what raises is called by the garbage collector."""
    assert "Stopped after 0.3 s" in in_thread(lambda: replace(TOTAL, seconds=0.3).grade(collecting).message)


def test_what_else_is_lost_is_still_printed() -> None:
    """Catches a hook that swallows other exceptions, in a thread with a limit and in one without."""

    class Failing:
        def __del__(self) -> None:
            raise LookupError("lost")

    heard: list[type[BaseException]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda lost: heard.append(lost.exc_type))

        def limited() -> None:
            with time_limit(20):
                Failing()
                in_thread(Failing)

        in_thread(limited)
        Failing()
    assert heard == [LookupError] * 3


def test_the_limit_holds_without_interval_timers(monkeypatch: pytest.MonkeyPatch, guard: None) -> None:
    """Catches a limit that needs what Windows does not have, and a trace function that stays."""
    monkeypatch.delattr(signal, "setitimer")
    before = sys.gettrace()
    assert "Stopped after 0.3 s" in replace(TOTAL, seconds=0.3).grade(forever).message
    assert sys.gettrace() is before
    assert TOTAL.grade(total).passed
    assert sys.gettrace() is before


@pytest.mark.parametrize("run", [lambda do: do(), in_thread])
def test_an_import_is_not_interrupted(
    run: Callable[[Callable[[], Any]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: None
) -> None:
    """Catches half of a module that a limit leaves behind, and that breaks the next answer."""
    name = f"slow_{tmp_path.name}"
    lines = ["import time", "end = time.monotonic() + 0.3", "while time.monotonic() < end:", "    pass", "whole = True"]
    (tmp_path / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)

    def importing(*_: object) -> None:
        __import__(name)
        forever()

    begin = time.monotonic()
    message = run(lambda: replace(TOTAL, seconds=0.1).grade(importing).message)
    assert "Stopped after 0.1 s" in message and time.monotonic() - begin < 15
    assert sys.modules.pop(name).whole


def test_the_limit_leaves_handler_and_timer_as_they_were() -> None:
    """Catches a handler of somebody else's that is lost, and an alarm of theirs that never comes."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    handler = signal.getsignal(signal.SIGALRM)
    try:
        signal.setitimer(signal.ITIMER_REAL, 600)
        with pytest.raises(TimeLimit), time_limit(0.1):
            forever()
        assert signal.getsignal(signal.SIGALRM) is handler and not rung
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 599.91 and interval == 0
        signal.setitimer(signal.ITIMER_REAL, 0.05)  # falls due while the limit holds
        with pytest.raises(TimeLimit), time_limit(0.1):
            forever()
        end = time.monotonic() + 60
        while not rung and time.monotonic() < end:
            time.sleep(0.01)
        assert len(rung) == 1
        with time_limit(5):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_limit_that_is_kept_raises_nothing_later() -> None:
    """Catches a signal that comes after the block has ended, and a timer that one on the way out leaves running."""
    hasty = replace(TOTAL, seconds=2e-5)  # so short that some signals come before the end, some at it, some never
    passed = [hasty.grade(total).passed for _ in range(400)]
    time.sleep(2 * limits.AGAIN)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert None not in passed


def test_a_loop_without_an_end_is_stopped_in_a_kernel() -> None:
    """Catches a limit that a Jupyter kernel does not deliver, and a cell whose line cannot be read."""
    source = (
        "from dataclasses import replace\n"
        "from pagedattn_lab.exercises import ch00\n"
        "def blocks_at_the_end(prompt, new, size):\n"
        "    while True:\n"
        "        pass\n"
        'replace(ch00.blocks_at_the_end, number="", seconds=0.5).grade(blocks_at_the_end)'
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("6 * 7")])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    told = notebook.cells[0].outputs[0].data["text/plain"]
    assert "Stopped after 0.5 s" in told and re.search(
        r"at        line [45] of blocks_at_the_end: (while True:|pass)", told
    )
    assert notebook.cells[1].outputs[0].data["text/plain"] == "42"


# --- types and arguments ----------------------------------------------------------------------------------------------

PAIR = Exercise(
    "", "pair", "Pairs", cases=lambda: [Case(([3, 4],)), Case(([],))],
    reference=lambda items: (list(items), set(items)), wrong={}, returns="two values, a list and a set",
)  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        lambda items: [items, items],
        lambda items: (tuple(items), frozenset(items)),
        lambda items: (np.array(items, dtype=int), {np.int64(item) for item in items}),
        lambda items: (deque(items), dict.fromkeys(items).keys()),
    ],
)
def test_right_contents_in_another_container_are_right(answer: Callable[..., Any]) -> None:
    """Catches right contents that are refused for their type."""
    assert PAIR.grade(answer).passed, PAIR.grade(answer)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda items: items, "You return a list of 2 numbers. Return two values, a list and a set."),
        (lambda items: (items, len(items)), "You return a tuple of a list and a number. Return two values"),
        (lambda items: (items, [items]), "You return a tuple of 2 lists."),
        (lambda items: (items, set(items), 0), "You return a tuple of a list, a set and a number."),
        (lambda items: (item for item in items), "You return a generator."),
        (lambda items: "34", "You return a text."),
    ],
)
def test_another_kind_of_value_is_said(answer: Callable[..., Any], told: str) -> None:
    """Catches a return of the wrong kind that is taken apart as if it were right."""
    assert told in PAIR.grade(answer).message, PAIR.grade(answer)


class Odd:
    """A value that nothing can be done with."""

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("no comparison")

    def __repr__(self) -> str:
        raise ArithmeticError("no words")

    __hash__ = None  # type: ignore[assignment]


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


VALUES = {
    "a huge number": 10**5000,
    "a list of one": [10**5000],
    "an odd value": Odd(),
    "odd values": [Odd(), Odd()],
    "an odd value in a dict": {1: Odd()},
    "a list that holds itself": ENDLESS,
    "an array": np.zeros((2, 2)),
    "a type": object,
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("exercise", [TOTAL, PAIR])
def test_whatever_comes_there_is_a_verdict(name: str, exercise: Exercise) -> None:
    """Catches a check that trips over a value that cannot be written, compared or walked through."""
    value = VALUES[name]
    for compared in (exercise, replace(exercise, look=lambda arguments, expected, got: f"{got!r}")):
        verdict = compared.grade(lambda *_: value)
        assert verdict.passed is False and verdict._repr_mimebundle_()["text/plain"].startswith("✗ Not yet: 0 of ")


def test_a_value_that_cannot_be_compared_is_said() -> None:
    """Catches a wrong value without a reason."""
    trips = replace(TOTAL, look=lambda arguments, expected, got: f"{got} is odd.")
    assert (
        "What came cannot be compared with what is expected (ValueError: " in trips.grade(lambda *_: 10**5000).message
    )
    assert "got       a whole number of about 5,001 digits" in TOTAL.grade(lambda *_: 10**5000).message
    assert "got       an Odd that cannot be written (ArithmeticError)" in TOTAL.grade(lambda *_: Odd()).message


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([None], "a list of None"),
        ([True], "a list of True or False"),
        ([None, None], "a list of None and None"),
        ([None] * 9, "a list"),
        ([None, 3], "a list of None and a number"),
        (([[3]],), "a tuple of 1 list"),
        (ENDLESS, "a list of 1 list"),
    ],
)
def test_kinds_are_named(value: Any, name: str) -> None:
    """Catches "a list of  and None", and a kind that is looked for in a list that holds itself."""
    assert values.kind(value) == name


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (
            {"drawn": {1}, "size": 2},
            "You return a dict, and in it, under 'drawn', a set where a list of 2 numbers belongs.",
        ),
        ({"drawn": ["1"], "size": 2}, "You return a dict, and in it, under 'drawn', a text where a number belongs."),
        ({"drawn": [1], "size": 2, "notes": 1}, "You return a dict, and in it one key too many, 'notes'."),
        ({"drawn": [1]}, "You return a dict, and in it no key 'size'."),
        ({"drawn": [1], "siz": 2}, "You return a dict, and in it no key 'size', but 'siz'."),
    ],
)
def test_what_is_amiss_in_a_dictionary_is_named(got: dict[str, Any], said: str) -> None:
    """Catches "a dict where a dict belongs"."""
    right = {"drawn": [1, 2], "size": 2}
    exercise = Exercise("", "find", "Find", cases=lambda: [Case(())], reference=lambda: right, wrong={})
    assert said in exercise.grade(lambda: got).message


def test_what_one_list_is_shows_where_contents_are_equal() -> None:
    """Catches expected and got that look the same."""
    exercise = Exercise(
        "", "rows", "Rows", cases=lambda: [Case((2,))], reference=lambda n: ([[0] for _ in range(n)], n), wrong={},
        look=lambda arguments, expected, got: "One list." if got[0][0] is got[0][1] else None,
    )  # fmt: skip
    message = exercise.grade(lambda n: ([[0]] * n, n)).message
    assert "expected  ([[0], [0]], 2)\n  got       ([a, a], 2), where a is [0]\nOne list." in message


# --- what is printed --------------------------------------------------------------------------------------------------


def test_prints_of_the_case_are_shown_and_the_rest_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches hundreds of lines above a verdict, prints of another case, and lines that nobody counts."""

    def answer(prices: list[int], less: int) -> int:
        for line in range(12 if less == 1 else 1_000):
            print("line", line, "of", less)
        print("to the other stream", file=sys.stderr)
        return sum(prices) if less == 1 else sum(prices) - less

    message = TOTAL.grade(answer).message
    assert [line for line in message.splitlines() if "printed" in line and "more" not in line] == [
        f"  printed   line {line} of 1" for line in range(10)
    ]
    assert "(It printed 2005 more lines, left out here.)" in message
    right = TOTAL.grade(lambda prices, less: print("once") or sum(prices) - less)
    assert right.passed and right.remarks == ["(It printed 3 lines, left out here.)"]
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_prints_over_itself_is_one_line() -> None:
    """Catches lines counted in one way and cut in another, which leaves a negative number of them."""
    message = TOTAL.grade(lambda prices, less: print("10%\r50%\r100%\rdone") or 0).message
    assert message.count("printed   ") == 1 and "-" not in message.rpartition("(It printed ")[2]


def test_prints_before_the_time_is_up_are_shown(guard: None) -> None:
    """Catches a loop without an end that prints, and buries everything or loses the lines that show why."""

    def answer(prices: list[int], less: int) -> int:
        while True:
            print("again")

    stream = sys.stdout
    message = replace(TOTAL, seconds=0.2).grade(answer).message
    assert message.count("printed   again") == 10 and "more lines, left out here.)" in message
    assert "Stopped after 0.2 s" in message and "of answer: " in message and sys.stdout is stream


def test_what_an_answer_does_to_its_arguments_stays_there() -> None:
    """Catches cases that an answer spoils for itself, or for the next answer, without a word."""

    def answer(prices: list[int], less: int) -> int:
        found = sum(prices) - less
        prices.clear()
        return found

    for _ in range(2):
        verdict = TOTAL.grade(answer)
        assert verdict.passed and "It changes its argument prices" in verdict.message
    assert replace(TOTAL, pure=True).grade(answer).passed is False
    assert TOTAL.grade(total).message == "✓ Correct: all 3 cases are right."


def test_changes_that_are_asked_for_are_compared() -> None:
    """Catches an exercise in place whose effect nobody looks at."""

    def push(items: list[int], item: int) -> int:
        items.append(item)
        return len(items)

    exercise = Exercise(
        "", "push", "Push", cases=lambda: [Case(([1], 2))], reference=push, in_place=("items",),
        wrong={"return and do nothing": lambda items, item: len(items) + 1},
    )  # fmt: skip
    assert exercise.grade(push).message == "✓ Correct."
    message = exercise.grade(lambda items, item: len(items) + 1).message
    assert (
        "expected  items [1, 2]\n  got       items [1]" in message and "You seem to return and do nothing." in message
    )


def test_a_name_given_to_a_new_list_is_said() -> None:
    """Catches a right computation in a list that nobody sees, told that it does nothing."""

    def push(items: list[int], item: int) -> None:
        items.append(item)

    exercise = Exercise(
        "", "push", "Push", cases=lambda: [Case(([1], 2))], reference=push, in_place=("items",),
        wrong={"do nothing": lambda items, item: None},
    )  # fmt: skip

    def renames(items: list[int], item: int) -> None:
        items = [*items, item]

    message = exercise.grade(renames).message
    assert "You give the name items to a new value, and the caller keeps the old one as it was." in message
    assert "write items[:] = ..." in message and "You seem" not in message
    assert "You seem to do nothing." in exercise.grade(lambda items, item: None).message


# --- hints, solution, and what is kept --------------------------------------------------------------------------------


def test_each_call_gives_the_next_hint() -> None:
    """Catches hints that give everything away at once, and an end that is not said."""
    exercise = replace(TOTAL)
    assert [exercise.hint().text for _ in range(3)] == [
        "**Hint 1 of 3.** Add.",
        "**Hint 2 of 3.** Subtract.",
        "**Hint 3 of 3.** `sum(prices) - less`",
    ]
    assert "1. Add.\n2. Subtract." in exercise.hint().text and "`ch99.total.solution()`" in exercise.hint().text


def test_the_solution_is_explained_and_runs() -> None:
    """Catches a solution that needs something that is not shown."""
    text = TOTAL.solution().text
    assert text == "Sums are sums.\n\n```python\ndef total(prices, less):\n    return sum(prices) - less\n```"


def stub(*_: object) -> None:
    raise NotImplementedError


def test_a_stub_says_the_same_whatever_is_kept_and_keeps_nothing(folder: Path) -> None:
    """Catches a stored output that depends on the machine, and a file that "run all" writes."""
    first = TOTAL.grade(stub)
    assert first.passed is None and list(folder.iterdir()) == []
    assert first._repr_mimebundle_() == {
        "text/plain": "Not attempted: replace the line that raises NotImplementedError. For a hint: ch99.total.hint()"
    }
    TOTAL.grade(total)
    before = (folder / "exercises.json").read_bytes()
    assert TOTAL.grade(stub) == first
    (folder / "exercises.json").write_text("no record")
    assert TOTAL.grade(stub) == first
    assert before and (folder / "exercises.json").read_text() == "no record"


def test_the_best_answer_and_every_attempt_are_kept() -> None:
    """Catches a record that forgets, or a later mistake that takes a solved exercise back."""
    TOTAL.grade(lambda prices, less: sum(prices))
    assert record.read().standings == {"99.1": record.Standing(False, 1, 1, 3)}
    TOTAL.grade(lambda prices, less: -1)
    assert record.read().standings["99.1"] == record.Standing(False, 2, 1, 3)
    TOTAL.grade(total)
    TOTAL.grade(lambda prices, less: -1)
    assert record.read().standings["99.1"] == record.Standing(True, 4, 3, 3)


@pytest.mark.parametrize("trouble", ["a file in the way", "no record", "a relative folder"])
def test_a_record_that_cannot_be_kept_is_said_once(trouble: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a right answer that fails for want of a folder, and a complaint with every answer."""
    if trouble == "a file in the way":
        (folder / "file").write_text("")
        monkeypatch.setenv("PAGEDATTN_LAB_CACHE", str(folder / "file" / "cache"))
    elif trouble == "no record":
        (folder / "exercises.json").write_text('["?"]')
    else:
        monkeypatch.setenv("PAGEDATTN_LAB_CACHE", "here")
    first, second = TOTAL.grade(total), TOTAL.grade(total)
    assert first.passed and second.passed
    assert first.message.count("(Your progress is not kept: ") == 1 and second.message.count("not kept") == 0
    if trouble == "no record":
        assert (folder / "exercises.json").read_text() == '["?"]'
        with pytest.raises(OSError, match=r"exercises.json is not a record of exercises"):
            progress()


def test_what_can_be_read_counts(folder: Path) -> None:
    """Catches a crash on a wrong type, "no" that counts as solved, and a readable field lost for one beside it."""
    kept = {
        "00.1": {"solved": True, "attempts": "many", "right": 3, "cases": 3},
        "00.2": {"solved": "no", "attempts": 2, "right": -1, "cases": True},
        "01.1": [1, 2],
        "01.2": {"solved": True, "attempts": 1, "right": 5, "cases": 5, "colour": "blue"},
        "01.3": {"solved": False},
    }
    (folder / "exercises.json").write_text(json.dumps(kept))
    report = progress()
    statuses = {exercise.number: report.status(exercise) for exercise in report.exercises}
    assert [statuses[number] for number in kept] == ["solved", "tried", "tried", "solved", "tried"]
    assert report.solved == 2
    for told in (
        '00.1 has attempts "many": it counts as 0.',
        '00.2 has solved "no": it counts as false.',
        "00.2 has right -1: it counts as 0.",
        "00.2 has cases true: it counts as 0.",
        "01.1 is [1, 2], and no entry: it counts as not solved.",
    ):
        assert f"In {folder / 'exercises.json'}, {told}" in repr(report), repr(report)
        assert told in report._repr_mimebundle_()["text/markdown"] and told in report.to_dict()["notes"]
    assert len(report.notes) == 5

    record.keep("00.1", 1, 3)
    record.keep("01.1", 4, 4)
    now = json.loads((folder / "exercises.json").read_text())
    assert now["00.1"] == {"solved": True, "attempts": 1, "right": 3, "cases": 3}
    assert now["01.1"] == {"solved": True, "attempts": 1, "right": 4, "cases": 4}
    assert all(now[number] == kept[number] for number in ("00.2", "01.2", "01.3"))
    record.keep("01.2", 1, 5)
    now = json.loads((folder / "exercises.json").read_text())
    assert now["01.2"] == {"solved": True, "attempts": 2, "right": 5, "cases": 5, "colour": "blue"}


def test_answers_graded_at_once_are_all_kept() -> None:
    """Catches two notebooks that overwrite each other's record."""
    threads = [threading.Thread(target=record.keep, args=(f"98.{number}", 1, 2)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(record.read().standings) == 8


def test_progress_tells_solved_tried_and_not_attempted() -> None:
    """Catches a list that misses an exercise, or tells a wrong standing."""
    record.keep("00.1", 47, 47)
    record.keep("03.2", 7, 55)
    record.keep("03.2", 9, 55)
    report = progress()
    assert [report.status(exercise) for exercise in report.exercises].count("not attempted") == len(
        report.exercises
    ) - 2
    assert re.search(r"^✓ 00\.1  Blocks at the end +solved$", repr(report), re.MULTILINE)
    assert re.search(r"^✗ 03\.2  Who is evicted next\? +9 of 55 cases, 2 attempts$", repr(report), re.MULTILINE)
    assert repr(report).endswith(f"1 of {len(report.exercises)} exercises solved.")
    assert "| ✓ | 00.1 | Blocks at the end | solved |" in report._repr_mimebundle_()["text/markdown"]
    made = json.loads(json.dumps(report.to_dict()))
    assert made["solved"] == 1 and made["exercises"][0]["status"] == "solved"


def test_a_search_that_takes_too_long_is_not_blamed_on_a_case(guard: None) -> None:
    """Catches a case that was right, shown as the one that never ended."""

    def search(answer: Callable[..., Any]) -> Iterator[Case]:
        until_the_time_is_up()
        yield Case(([1], 0))

    message = replace(TOTAL, seconds=600, search=search).grade(total).message
    assert message.startswith("✗ Not yet: 3 of 4 cases are right.\n  call      total on cases made for this answer")
    assert "Stopped after 600 s" in message


def test_an_exception_in_a_search_is_a_finding() -> None:
    """Catches an answer that ends the check, because it raises for what only the search tries."""

    def search(answer: Callable[..., Any]) -> Iterator[Case]:
        answer("unheard of", 0)
        yield Case(([1], 0))

    message = replace(TOTAL, search=search).grade(total).message
    assert "call      total on cases made for this answer" in message and "raised    TypeError" in message
