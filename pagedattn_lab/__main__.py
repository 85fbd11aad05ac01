"""``python -m pagedattn_lab``."""

import sys

from pagedattn_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
