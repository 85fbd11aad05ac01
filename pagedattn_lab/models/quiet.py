"""Transformers without progress bars and advice, whose timing would differ from run to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and advice out of notebooks, where their timing would differ from run to run."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub = hub_logging.get_verbosity()
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
