"""How far a reader has come, kept in one file in the user's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pagedattn_lab.models.default import ModelLoadError, cache_directory

FILE = "exercises.json"
SECONDS_TO_WAIT = 2
"""For another notebook that is writing at this moment."""


@dataclass(frozen=True)
class Standing:
    """How an exercise stands.

    Attributes:
        solved: whether an answer has passed.
        attempts: answers graded so far.
        right: most cases that an answer had right.
        cases: how many there are.
    """

    solved: bool = False
    attempts: int = 0
    right: int = 0
    cases: int = 0

    def after(self, right: int, cases: int) -> Standing:
        """Add one graded answer; what was solved stays solved."""
        best = (right, cases) if cases != self.cases else (max(right, self.right), cases)
        return Standing(self.solved or right == cases, self.attempts + 1, *best)


def file() -> Path:
    """Say where the record is kept: in ``PAGEDATTN_LAB_CACHE`` if that is set, else where the platform keeps user data.

    Raises:
        OSError: there is no such place, with the reason.

    Example:
        >>> import unittest.mock
        >>> with unittest.mock.patch.dict(os.environ, PAGEDATTN_LAB_CACHE="/data/lab"):
        ...     file().as_posix()
        '/data/lab/exercises.json'
    """
    try:
        folder = cache_directory()
    except ModelLoadError as error:
        raise OSError(str(error)) from error
    if os.environ.get("PAGEDATTN_LAB_CACHE"):
        return folder / FILE
    import platformdirs

    return Path(platformdirs.user_data_dir("pagedattn_lab", appauthor=False)) / FILE


@dataclass(frozen=True)
class Record:
    """What is kept.

    Attributes:
        standings: by the numbers of exercises.
        notes: a sentence on everything that cannot be read, and what it counts as.
    """

    standings: Mapping[str, Standing]
    notes: Sequence[str] = ()


def read() -> Record:
    """Read what is kept; nothing at all before the first graded answer. What can be read counts, whatever is beside it.

    Raises:
        OSError: the file cannot be read, or it is not a record.
    """
    notes: list[str] = []
    standings = {number: _standing(number, entry, notes) for number, entry in _entries().items()}
    return Record(standings, notes)


def _entries() -> dict[str, Any]:
    path = file()
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not a record of exercises ({error}): delete it, or repair it") from error
    if not isinstance(entries, dict):
        raise OSError(f"{path} is not a record of exercises (it holds no JSON object): delete it, or repair it")
    return entries


def _standing(number: str, entry: Any, notes: list[str]) -> Standing:
    """Read one entry, field by field, and note what is of another type than it should be."""
    if not isinstance(entry, dict):
        notes.append(f"{number} is {json.dumps(entry)}, and no entry: it counts as not solved.")
        return Standing()
    found: dict[str, Any] = {}
    for name, default in asdict(Standing()).items():
        value = entry.get(name, default)
        if type(value) is type(default) and value >= 0:
            found[name] = value
        else:
            notes.append(f"{number} has {name} {json.dumps(value)}: it counts as {json.dumps(default)}.")
    return Standing(**found)


def keep(number: str, right: int, cases: int) -> None:
    """Add one graded answer to the record. Notebooks that do so at once wait for each other. All else stays as it is.

    Raises:
        OSError: it cannot be kept, with the reason. The record stays as it was.
    """
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock

    try:
        with FileLock(path.with_suffix(".lock"), timeout=SECONDS_TO_WAIT):
            entries = _entries()
            before = entries.get(number, {})
            standing = _standing(number, before, []).after(right, cases)
            entries[number] = (before if isinstance(before, dict) else {}) | asdict(standing)
            made = {name: entries[name] for name in sorted(entries)}
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            draft.replace(path)
    except NotImplementedError as error:  # from filelock, on a file system without locks
        raise OSError(f"{path.parent} is on a file system without locks") from error


_told: set[str] = set()


def kept(number: str, right: int, cases: int) -> str:
    """Add one graded answer, or give the sentence that says why not: once, since it will not change."""
    try:
        keep(number, right, cases)
    except OSError as error:
        reason = str(error) if error.errno is None else f"{error.filename or file()}: {error.strerror}"
        note = f"(Your progress is not kept: {reason}.)"
        if note not in _told:
            _told.add(note)
            return note
    return ""
