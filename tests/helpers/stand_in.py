"""A stand-in for the default model: its first two layers, in a cache directory of its own.

Where a test is about the page and not about what the model says, thirty layers would be computed for nothing. It speaks
gibberish, in the same tokens.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from pagedattn_lab.models import default, load

LAYERS = 2


def build_stand_in(cache: Path) -> None:
    """Put the stand-in where the default model is looked for if ``PAGEDATTN_LAB_CACHE`` names ``cache``."""
    model, tokenizer = load()
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    with mock.patch.dict(os.environ, PAGEDATTN_LAB_CACHE=str(cache)):
        folder = default._default_folder()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    default._write_manifest(folder)
