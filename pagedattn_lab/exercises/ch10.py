"""Exercises of chapter 10, Tuning vLLM: a log's figures, a hit rate of 0, a message, and flags for a load."""

from __future__ import annotations

from pagedattn_lab.exercises.ch10_fit import make_it_fit
from pagedattn_lab.exercises.ch10_flags import pick_flags
from pagedattn_lab.exercises.ch10_hits import why_no_hits
from pagedattn_lab.exercises.ch10_log import log_figures

__all__ = ["log_figures", "make_it_fit", "pick_flags", "why_no_hits"]
