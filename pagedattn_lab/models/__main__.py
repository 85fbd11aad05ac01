"""``python -m pagedattn_lab.models``: fetch the default model unless it is here."""

import sys

from pagedattn_lab.models.default import ModelLoadError, ensure_default

if __name__ == "__main__":
    try:
        ensure_default()
    except ModelLoadError as problem:
        sys.exit(str(problem))
