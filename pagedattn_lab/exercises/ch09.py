"""Exercises of chapter 09, Continuous batching: a step, a log, a flag that survives, a request that starves."""

from __future__ import annotations

from pagedattn_lab.exercises.ch09_hunt import share_out
from pagedattn_lab.exercises.ch09_log import diagnose, example_in_words
from pagedattn_lab.exercises.ch09_starving import next_to_run
from pagedattn_lab.exercises.ch09_step import schedule_step

__all__ = ["diagnose", "example_in_words", "next_to_run", "schedule_step", "share_out"]
