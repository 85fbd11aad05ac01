"""Exercises of chapter 11, Past one GPU: a window's page table, a replica that melts, a latent's budget, a router."""

from __future__ import annotations

from pagedattn_lab.exercises.ch11_latents import latent_budget
from pagedattn_lab.exercises.ch11_melting import example_in_words, melting_replica
from pagedattn_lab.exercises.ch11_router import choose
from pagedattn_lab.exercises.ch11_windows import window_table

__all__ = ["choose", "example_in_words", "latent_budget", "melting_replica", "window_table"]
