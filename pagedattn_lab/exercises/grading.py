"""An exercise: cases that an answer must get right, hints, a solution, and wrong answers that are known by name."""

from __future__ import annotations

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagedattn_lab.exercises import record, values
from pagedattn_lab.exercises.cases import Attempt, Case
from pagedattn_lab.exercises.limits import TimeLimit, time_limit
from pagedattn_lab.exercises.printed import Printed, taken_down
from pagedattn_lab.exercises.raised import Raised
from pagedattn_lab.exercises.solution import rebinds, same_code, source_as
from pagedattn_lab.exercises.verdict import Verdict
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.sentence import Sentence

Answer = Callable[..., Any]


@dataclass(eq=False, repr=False)
class Exercise:
    """A task with its cases, hints and solution.

    Args:
        number: chapter and exercise, such as "03.1"; answers to an exercise without one are not recorded.
        name: of the function that the reader writes.
        title: what it is about.
        cases: makes the cases, the simplest first; called once, when the first answer is graded.
        reference: a right answer, shown as the solution.
        wrong: plausible wrong answers, by what they do: each key goes on after "you seem to".
        oracle: gives what is expected, by another way than the reference; ``None``: the reference gives it.
        hints: each says more than the one before.
        explanation: of the solution.
        returns: what the function returns, in words that go on after "return".
        in_place: arguments that the function is asked to change; what they are afterwards is compared, too.
        run: calls an answer in another way than with the arguments of a case; with ``in_place`` it gives a dict of
            what else is to be compared, by name, in the place of what was returned.
        same: compares what was expected with what came.
        look: given arguments, what was expected and what came, says what is wrong, if it can say it better than the
            case does; its objection counts even against what is equal.
        search: looks for cases that this very answer gets wrong, once it has all others right.
        draw: given arguments and an outcome, draws it.
        pure: an answer that changes its arguments is wrong, though its outcome be right; otherwise that is a remark.
        buggy: what a bug hunt's cell holds to begin with; as long as nobody has changed it, nothing is attempted.
        seconds: that an answer may take for all cases together.

    Example:
        >>> square = Exercise(
        ...     "", "square", "Squares",
        ...     cases=lambda: [Case((2,)), Case((3,), "The square of 3 has 3 rows of 3.")],
        ...     reference=lambda x: x * x,
        ...     wrong={"double": lambda x: 2 * x},
        ... )
        >>> square.grade(lambda x: x + x)
        ✗ Not yet: 1 of 2 cases is right.
          call      square(x=3)
          expected  9
          got       6
        About this case: The square of 3 has 3 rows of 3.
        You seem to double.
        >>> square.grade(square.reference)
        ✓ Correct: all 2 cases are right.
    """

    number: str
    name: str
    title: str
    cases: Callable[[], Iterable[Case]]
    reference: Answer
    wrong: Mapping[str, Answer]
    oracle: Answer | None = None
    hints: Sequence[str] = ()
    explanation: str = ""
    returns: str = ""
    in_place: Sequence[str] = ()
    run: Callable[[Answer, tuple[Any, ...]], Any] | None = None
    same: Callable[[Any, Any], bool] = values.same
    look: Callable[[tuple[Any, ...], Any, Any], str | None] | None = None
    search: Callable[[Answer], Iterable[Case]] | None = None
    draw: Callable[[tuple[Any, ...], Any], Picture | None] | None = None
    pure: bool = False
    buggy: Answer | None = None
    seconds: float = 5.0
    _hints_given: int = field(default=0, init=False)

    def __repr__(self) -> str:
        return (
            f"Exercise {self.number or self.name}, {self.title}: {self.path}.grade({self.name}), .hint() or .solution()"
        )

    @property
    def path(self) -> str:
        """How a chapter names the exercise: ``ch03.admit``."""
        return f"ch{self.number[:2]}.{self.name}" if self.number else self.name

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Names of the arguments."""
        return list(inspect.signature(self.reference).parameters)

    def grade(self, answer: Answer) -> Verdict:
        """Try an answer on every case and say what was found; see :class:`~pagedattn_lab.exercises.verdict.Verdict`.

        Whatever the answer raises is a finding, ``SystemExit`` and others that are no ``Exception`` among them, and so
        is a loop without an end, within the limits that :func:`~pagedattn_lab.exercises.limits.time_limit` names. Only
        ``KeyboardInterrupt`` goes through. What the answer prints is taken down; the verdict shows some of it.
        """
        if not callable(answer):
            path, found = f"{self.path}.grade({self.name})", values.kind(answer)
            return Verdict(None, f"Not attempted: pass the function itself, {path}. What came was {found}.")
        if self.buggy and same_code(answer, self.buggy):
            return Verdict(None, self._not_attempted())
        attempts: list[Attempt] = []
        _ = self._expected, self._example  # made once, and not in the answer's time
        with taken_down() as printed:
            try:
                with time_limit(self.seconds):
                    self._try_all(answer, attempts, printed)
            except TimeLimit as stop:
                case, value = [*self._expected, self._made_for_it()][min(len(attempts), len(self._expected))]
                objection = f"Stopped after {self.seconds:g} s, in this call: does a loop in it ever end?"
                attempts.append(Attempt(case, value, raised=Raised(stop, answer), wrong=True, objection=objection))
                printed.keep()
        if attempts[0].raised and attempts[0].raised.is_stub:
            return Verdict(None, self._not_attempted())
        total = max(len(self._expected), len(attempts))
        right = sum(not attempt.wrong for attempt in attempts)
        if right < total:
            return self._recorded(self._failed(attempts, printed, right, total), right, total)
        if refused := self.refused(answer):
            return self._recorded(refused, right, total + 1)
        return self._recorded(self._passed(attempts, printed), right, total)

    def refused(self, answer: Answer) -> Verdict | None:
        """Say what stands against an answer that has every case right; nothing, unless a kind of exercise asks more."""

    def hint(self) -> Sentence:
        """Give the next hint; after the last one, all of them."""
        if not self.hints:
            return Sentence("This exercise has no hints.")
        self._hints_given += 1
        if self._hints_given > len(self.hints):
            every = "\n".join(f"{number}. {hint}" for number, hint in enumerate(self.hints, start=1))
            return Sentence(f"{every}\n\nThat is all; `{self.path}.solution()` shows a solution.")
        return Sentence(f"**Hint {self._hints_given} of {len(self.hints)}.** {self.hints[self._hints_given - 1]}")

    def solution(self) -> Sentence:
        """Show a right answer, and why it is one."""
        return Sentence(f"{self.explanation}\n\n```python\n{source_as(self.reference, self.name)}```")

    # --- trying ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _expected(self) -> list[tuple[Case, Any]]:
        return [(case, self._right_outcome(case)) for case in self.cases()]

    @functools.cached_property
    def _example(self) -> Any:
        """An expected value that shows what belongs into one that may be empty."""
        return max((value for _, value in self._expected), key=lambda value: len(repr(value)))

    def _right_outcome(self, case: Case) -> Any:
        return self._call(self.oracle or self.reference, copy.deepcopy(case.arguments))

    def _call(self, answer: Answer, arguments: tuple[Any, ...]) -> Any:
        """Call an answer with arguments of its own; what it changes in place is a part of the outcome."""
        result = self.run(answer, arguments) if self.run else answer(*arguments)
        if not self.in_place:
            return result
        named = dict(zip(self.parameters, arguments, strict=True))
        return (result if self.run else {"returned": result}) | {name: named[name] for name in self.in_place}

    def _try_all(self, answer: Answer, attempts: list[Attempt], printed: Printed) -> None:
        """Try every case, and if all are right, those that were made for this answer: making them calls it, too."""
        for case, expected in self._expected:
            printed.next_call()
            attempts.append(self._attempt(answer, case, expected))
            if attempts[-1].wrong:
                printed.keep()
            if attempts[0].raised and attempts[0].raised.is_stub:
                return
        if self.search and not any(attempt.wrong for attempt in attempts):
            printed.next_call()
            try:
                made = [(case, self._right_outcome(case)) for case in self.search(answer)]
            except (KeyboardInterrupt, TimeLimit):
                raise
            except BaseException as error:
                attempts.append(Attempt(*self._made_for_it(), raised=Raised(error, answer), wrong=True))
                return
            attempts += [self._attempt(answer, case, expected) for case, expected in made]

    def _made_for_it(self) -> tuple[Case, Any]:
        return Case((), shown=f"{self.name} on cases made for this answer"), values.Words("an answer")

    def _attempt(self, answer: Answer, case: Case, expected: Any) -> Attempt:
        """Try one case."""
        arguments = copy.deepcopy(case.arguments)
        try:
            got = self._call(answer, arguments)
        except (KeyboardInterrupt, TimeLimit):
            raise
        except BaseException as error:
            return Attempt(case, expected, raised=Raised(error, answer), wrong=True)
        try:
            return self._judged(answer, case, expected, got, arguments)
        except Exception as error:  # an answer may give anything at all, and then that is what is wrong with it
            said = "".join(traceback.format_exception_only(error)).strip()
            objection = f"What came cannot be compared with what is expected ({said})."
            words = values.Words(values.shown(got))
            return Attempt(case, expected, words, wrong=True, objection=objection, fits=False)

    def _judged(self, answer: Answer, case: Case, expected: Any, got: Any, arguments: tuple[Any, ...]) -> Attempt:
        """Compare what was expected with what came, and the arguments with what they were."""
        for fitting in (expected, self._example):
            if values.misfit(fitting, got):
                return Attempt(case, expected, got, wrong=True, objection=self._misfit(fitting, got), fits=False)
        objection = self.look(case.arguments, expected, got) if self.look else None
        wrong = bool(objection) or not self.same(expected, got)
        before = dict(zip(self.parameters, case.arguments, strict=False))
        after = zip(self.parameters, arguments, strict=False)
        changed = {name for name, argument in after if not values.same(before[name], argument)}
        asked, unasked = changed & {*self.in_place}, [name for name in before if name in changed - {*self.in_place}]
        if unasked and self.pure and not wrong:
            objection = f"It changes its argument {unasked[0]}, which others may still need: make new values."
        lost = [name for name in self.in_place if name not in asked and not values.same(expected[name], got[name])]
        rebound = next((name for name in lost if rebinds(answer, name)), "")
        if rebound:
            objection = (
                f"You give the name {rebound} to a new value, and the caller keeps the old one as it was. To change "
                f"the old one, write {values.in_place(rebound, before[rebound])}"
            )
        return Attempt(
            case, expected, got, None, wrong or bool(objection), objection or "", "".join(unasked[:1]), rebound=rebound
        )

    def _misfit(self, expected: Any, got: Any) -> str:
        if self.in_place:
            name = next(name for name in expected if values.misfit(expected[name], got[name]))
            if name != "returned":
                return f"{name} was {values.kind(expected[name])}, and you make it {values.kind(got[name])}."
            expected, got = expected[name], got[name]
        deeper = values.deepest_misfit(expected, got) if values.kind(expected) == values.kind(got) else ""
        return f"You return {values.kind(got)}{deeper}. Return {self.returns or values.kind(expected)}."

    # --- telling --------------------------------------------------------------------------------------------------

    def _not_attempted(self) -> str:
        hint = f" For a hint: {self.path}.hint()" if self.hints else ""
        todo = "the bug is still there" if self.buggy else "replace the line that raises NotImplementedError"
        return f"Not attempted: {todo}.{hint}"

    def _passed(self, attempts: Sequence[Attempt], printed: Printed) -> Verdict:
        remarks = []
        changed = next((attempt.changed for attempt in attempts if attempt.changed), "")
        if changed:
            note = f"It changes its argument {changed}, which its caller may still need: a copy would be safer."
            remarks.append(note)
        if printed.num_lines:
            remarks.append(f"(It printed {counted(printed.num_lines, 'line')}, left out here.)")
        headline = f"✓ Correct: all {len(attempts)} cases are right." if len(attempts) > 1 else "✓ Correct."
        return Verdict(True, headline, remarks=remarks)

    def _failed(self, attempts: Sequence[Attempt], printed: Printed, right: int, total: int) -> Verdict:
        first = next(attempt for attempt in attempts if attempt.wrong)
        expected, got = self._differing(first)
        rows = [("call", self._named(first.case))]
        rows += [("expected", text) for text in expected]
        rows += [("got", text) for text in got]
        if first.raised:
            rows += first.raised.rows
        rows += [("printed", line) for line in printed.kept]
        remarks = [first.objection or (first.case.about and f"About this case: {first.case.about}")]
        if first.got is None and not first.raised and all(attempt.expected is not None for attempt in attempts):
            remarks.insert(0, f"Your function returns nothing. Return {self.returns or 'a value'}.")
        if attempts[-1] is not first and attempts[-1].raised and attempts[-1].raised.timed_out:
            remarks.append(f"Another call was stopped after {self.seconds:g} s: {self._named(attempts[-1].case)}")
        mistake = self._known_mistake(attempts)
        if mistake and not first.rebound:
            remarks.append(f"You seem to {mistake}.")
        left_out = printed.num_lines - len(printed.kept)
        if left_out:
            remarks.append(f"(It printed {counted(left_out, 'more line' if printed.kept else 'line')}, left out here.)")
        if self.hints:
            remarks.append(f"For a hint: {self.path}.hint()")
        headline = f"✗ Not yet: {right} of {counted(total, 'case')} {'is' if right == 1 else 'are'} right."
        pictures = [] if first.raised else self._pictures(first)
        traceback = first.raised.traceback if first.raised else ""
        return Verdict(False, headline, rows, [remark for remark in remarks if remark], traceback, pictures)

    def _named(self, case: Case) -> str:
        return case.shown or values.call(self.name, self.parameters, case.arguments)

    def _differing(self, attempt: Attempt) -> tuple[list[str], list[str]]:
        """Write what was expected and what came, of changed arguments those that differ."""
        if not self.in_place or not isinstance(attempt.got, dict | None):
            expected, got = values.shown(attempt.expected), values.shown(attempt.got)
            if expected == got:
                got = values.shown(values.named_if_shared(attempt.got))
            return [expected], [] if attempt.raised else [got]
        got = attempt.got or {}
        names = [name for name in attempt.expected if not values.same(attempt.expected[name], got.get(name, ...))]
        expected = [f"{name} {values.shown(attempt.expected[name])}" for name in names]
        return expected, [] if attempt.raised else [f"{name} {values.shown(got[name])}" for name in names]

    def _pictures(self, attempt: Attempt) -> list[tuple[str, Picture]]:
        if not self.draw or not attempt.fits or attempt.got is None:
            return []
        expected = self.draw(attempt.case.arguments, attempt.expected)
        try:
            theirs = self.draw(attempt.case.arguments, attempt.got)
        except Exception:  # nobody can draw everything that an answer may give, and the rows show it in any case
            theirs = None
        if expected and theirs and expected.svg == theirs.svg:  # what is wrong is nothing that can be seen
            return []
        return [(caption, picture) for caption, picture in (("expected", expected), ("yours", theirs)) if picture]

    def _known_mistake(self, attempts: Sequence[Attempt]) -> str:
        """Find the wrong answer that does the same as this one on every case."""
        for mistake, wrong in self.wrong.items():
            if all(self._alike(one, self._attempt(wrong, one.case, one.expected)) for one in attempts):
                return mistake
        return ""

    def _alike(self, one: Attempt, other: Attempt) -> bool:
        if one.raised or other.raised:
            return bool(one.raised and other.raised) and one.raised.name == other.raised.name
        if not one.fits or not other.fits:
            return one.fits == other.fits and values.same(one.got, other.got)
        return one.wrong == other.wrong and one.changed == other.changed and self.same(one.got, other.got)

    def _recorded(self, verdict: Verdict, right: int, total: int) -> Verdict:
        """Keep the outcome; if that cannot be, say so once, and grade all the same."""
        note = record.kept(self.number, right, total) if self.number else ""
        if not note:
            return verdict
        return Verdict(**{**vars(verdict), "remarks": [*verdict.remarks, note]})
