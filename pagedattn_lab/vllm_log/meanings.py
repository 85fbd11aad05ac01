"""What each kind of line means, what it follows from, and what to change."""

from __future__ import annotations

from typing import Any

from pagedattn_lab.vllm_log import memory, settings, trouble
from pagedattn_lab.vllm_log.settings import Sentences
from pagedattn_lab.vllm_log.start_up_log import StartUpLog

EXPLAINERS = settings.EXPLAINERS | memory.EXPLAINERS | trouble.EXPLAINERS


def explain(what: str, figures: dict[str, Any], log: StartUpLog) -> Sentences:
    """Say in sentences what a line means, what it follows from, and what to change.

    Args:
        what: the kind of line.
        figures: those in the line.
        log: those of all lines.

    Example:
        >>> meaning, source, change = explain("model length", {"max_model_len": 8192}, StartUpLog())
        >>> meaning
        'A request may have 8,192 tokens, prompt and output together.'
    """
    return EXPLAINERS[what](figures, log)
