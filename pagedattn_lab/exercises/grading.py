"""An exercise: cases that an answer must get right, hints, a solution, and wrong answers that are known by name."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagedattn_lab.exercises import record, values
from pagedattn_lab.exercises.limits import TimeLimit, time_limit
from pagedattn_lab.exercises.raised import Raised
from pagedattn_lab.exercises.solution import same_code, source_as
from pagedattn_lab.exercises.verdict import Verdict
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.sentence import Sentence

Answer = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """Arguments to call an answer with.

    Attributes:
        arguments: of the call; every answer gets a copy.
        about: a sentence that helps whoever has this case wrong.
        shown: the call in words, where arguments are too long to be read.
    """

    arguments: tuple[Any, ...]
    about: str = ""
    shown: str = ""


def random_cases(
    seed: int, number: int, make: Callable[[random.Random], tuple[Any, ...]], about: str = ""
) -> list[Case]:
    """Make cases by chance, the same ones every time and the shortest first, so that the one shown is easy to follow.

    Example:
        >>> made = random_cases(0, 3, lambda rng: ([rng.randrange(9) for _ in range(rng.randint(1, 9))],))
        >>> [len(case.arguments[0]) for case in made]
        [7, 8, 9]
    """
    rng = random.Random(seed)
    return [Case(each, about) for each in sorted((make(rng) for _ in range(number)), key=lambda each: len(repr(each)))]


@dataclass(frozen=True)
class Attempt:
    """One case tried.

    Attributes:
        case: what was called.
        expected: the right outcome.
        got: what came.
        raised: in its place.
        wrong: whether it counts as wrong.
        objection: what speaks against it, if more can be said than the case says.
        changed: the first argument that was changed without being asked for.
        fits: whether it is of the kind that was asked for.
    """

    case: Case
    expected: Any
    got: Any = None
    raised: Raised | None = None
    wrong: bool = False
    objection: str = ""
    changed: str = ""
    fits: bool = True


@dataclass(eq=False, repr=False)
class Exercise:
    """A task with its cases, hints and solution.

    Args:
        number: chapter and exercise, such as "03.1"; answers to an exercise without one are not recorded.
        name: of the function that the reader writes.
        title: what it is about.
        cases: makes the cases, the simplest first; called once.
        reference: a right answer, shown as the solution.
        wrong: plausible wrong answers, by what they do: each key goes on after "you seem to".
        oracle: gives what is expected, by another way than the reference; ``None``: the reference gives it.
        hints: each says more than the one before.
        explanation: of the solution.
        returns: what the function returns, in words that go on after "return".
        in_place: arguments that the function is asked to change; what they are afterwards is compared, too.
        run: calls an answer in another way than with the arguments of a case.
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
        The square of 3 has 3 rows of 3.
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

    @property
    def parameters(self) -> list[str]:
        """Names of the arguments."""
        return list(inspect.signature(self.reference).parameters)

    def grade(self, answer: Answer) -> Verdict:
        """Try an answer on every case and say what was found; see :class:`~pagedattn_lab.exercises.verdict.Verdict`.

        Whatever the answer raises is a finding, and so is a loop without an end, within the limits that
        :func:`~pagedattn_lab.exercises.limits.time_limit` names. ``KeyboardInterrupt`` alone goes through.
        """
        if self.buggy and same_code(answer, self.buggy):
            return Verdict(None, self._not_attempted())
        expected = self._expected()
        example = max((value for _, value in expected), key=lambda value: len(repr(value)))
        attempts, total = [], len(expected)
        try:
            with time_limit(self.seconds):
                for case, value in expected:
                    attempts.append(self._attempt(answer, case, value, example))
                    if len(attempts) == 1 and attempts[0].raised and attempts[0].raised.is_stub:
                        return Verdict(None, self._not_attempted())
                if not any(attempt.wrong for attempt in attempts):
                    attempts += self._searched(answer, example)
        except TimeLimit as stop:
            case, value = [*expected, self._made_for_it()][min(len(attempts), total)]
            objection = f"Stopped after {self.seconds:g} s, in this call: does a loop in it ever end?"
            attempts.append(Attempt(case, value, raised=Raised(stop, answer), wrong=True, objection=objection))
        total = max(total, len(attempts))
        right = sum(not attempt.wrong for attempt in attempts)
        verdict = self._passed(attempts) if right == total else self._failed(attempts, right, total)
        return self._recorded(verdict, right, total)

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

    def _expected(self) -> list[tuple[Case, Any]]:
        oracle = self.oracle or self.reference
        return [(case, self._outcome(oracle, case)) for case in self.cases()]

    def _outcome(self, answer: Answer, case: Case) -> Any:
        return self._call(answer, copy.deepcopy(case.arguments))

    def _call(self, answer: Answer, arguments: tuple[Any, ...]) -> Any:
        """Call an answer with arguments of its own; what it changes in place is a part of the outcome."""
        result = self.run(answer, arguments) if self.run else answer(*arguments)
        if not self.in_place:
            return result
        named = dict(zip(self.parameters, arguments, strict=True))
        return {"returned": result, **{name: named[name] for name in self.in_place}}

    def _attempt(self, answer: Answer, case: Case, expected: Any, example: Any) -> Attempt:
        """Try one case. An expected value may be empty, and an ``example`` of another case shows what belongs in it."""
        arguments = copy.deepcopy(case.arguments)
        try:
            got = self._call(answer, arguments)
        except (Exception, SystemExit) as error:
            return Attempt(case, expected, raised=Raised(error, answer), wrong=True)
        for fitting in (expected, example):
            if values.misfit(fitting, got):
                return Attempt(case, expected, got, wrong=True, objection=self._misfit(fitting, got), fits=False)
        objection = self.look(case.arguments, expected, got) if self.look else None
        changed = [
            name
            for name, before, after in zip(self.parameters, case.arguments, arguments, strict=False)
            if name not in self.in_place and not values.same(before, after)
        ]
        if changed and self.pure and not objection:
            objection = f"It changes its argument {changed[0]}, which others may still need: make new values."
        wrong = bool(objection) or not self.same(expected, got)
        return Attempt(case, expected, got, None, wrong, objection or "", changed[0] if changed else "")

    def _searched(self, answer: Answer, example: Any) -> list[Attempt]:
        """Try the cases that were made for this answer; making them calls it, too."""
        try:
            cases = list(self.search(answer)) if self.search else []
        except (Exception, SystemExit) as error:
            return [Attempt(*self._made_for_it(), raised=Raised(error, answer), wrong=True)]
        oracle = self.oracle or self.reference
        return [self._attempt(answer, case, self._outcome(oracle, case), example) for case in cases]

    def _made_for_it(self) -> tuple[Case, Any]:
        return Case((), shown=f"{self.name} on cases made for this answer"), values.Words("an answer")

    def _misfit(self, expected: Any, got: Any) -> str:
        if self.in_place:
            name = next(name for name in expected if values.misfit(expected[name], got[name]))
            if name != "returned":
                return f"{name} was {values.kind(expected[name])}, and you make it {values.kind(got[name])}."
            got = got[name]
        return f"You return {values.kind(got)}. Return {self.returns or values.kind(expected)}."

    # --- telling --------------------------------------------------------------------------------------------------

    def _not_attempted(self) -> str:
        hint = f" For a hint: {self.path}.hint()" if self.hints else ""
        todo = "the bug is still there" if self.buggy else "replace the line that raises NotImplementedError"
        return f"Not attempted: {todo}.{hint}"

    def _passed(self, attempts: Sequence[Attempt]) -> Verdict:
        changed = next((attempt.changed for attempt in attempts if attempt.changed), "")
        note = f"It changes its argument {changed}, which its caller may still need: a copy would be safer."
        headline = f"✓ Correct: all {len(attempts)} cases are right." if len(attempts) > 1 else "✓ Correct."
        return Verdict(True, headline, remarks=[note] if changed else [])

    def _failed(self, attempts: Sequence[Attempt], right: int, total: int) -> Verdict:
        first = next(attempt for attempt in attempts if attempt.wrong)
        expected, got = self._differing(first)
        rows = [("call", self._named(first.case))]
        rows += [("expected", text) for text in expected]
        rows += [("got", text) for text in got]
        if first.raised:
            rows += first.raised.rows
        remarks = [first.objection or first.case.about]
        if first.got is None and not first.raised and all(attempt.expected is not None for attempt in attempts):
            remarks.insert(0, f"Your function returns nothing. Return {self.returns or 'a value'}.")
        if attempts[-1] is not first and attempts[-1].raised and attempts[-1].raised.timed_out:
            remarks.append(f"Another call was stopped after {self.seconds:g} s: {self._named(attempts[-1].case)}")
        mistake = self._known_mistake(attempts)
        if mistake:
            remarks.append(f"You seem to {mistake}.")
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
        if not self.in_place:
            return [values.shown(attempt.expected)], [] if attempt.raised else [values.shown(attempt.got)]
        got = attempt.got or {}
        names = [name for name in attempt.expected if not values.same(attempt.expected[name], got.get(name, ...))]
        expected = [f"{name} {values.shown(attempt.expected[name])}" for name in names]
        return expected, [] if attempt.raised else [f"{name} {values.shown(got[name])}" for name in names]

    def _pictures(self, attempt: Attempt) -> list[tuple[str, Picture]]:
        if not self.draw or not attempt.fits or attempt.got is None:
            return []
        drawn = [("expected", self.draw(attempt.case.arguments, attempt.expected))]
        drawn.append(("yours", self.draw(attempt.case.arguments, attempt.got)))
        return [(caption, picture) for caption, picture in drawn if picture]

    def _known_mistake(self, attempts: Sequence[Attempt]) -> str:
        """Find the wrong answer that does the same as this one on every case."""
        for mistake, wrong in self.wrong.items():
            if all(self._alike(one, self._attempt(wrong, one.case, one.expected, one.expected)) for one in attempts):
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
