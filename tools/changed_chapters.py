"""Name the chapters that differ from the main branch, for ``make check``; say so when the library differs too.

python tools/changed_chapters.py
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAIN = "main"
CHAPTERS, LIBRARY = "chapters/*.ipynb", "pagedattn_lab/"


def git(root: Path, *arguments: str) -> list[str]:
    """Return the lines that a git command prints, none where it fails: no repository, or no branch of that name."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def base(root: Path) -> str | None:
    """Return the commit where this branch left the main branch, if git knows one."""
    return next(iter(git(root, "merge-base", MAIN, "HEAD")), None)


def changed(root: Path, pattern: str, *, deleted: bool = False) -> list[str]:
    """List files that differ from where this branch left the main branch, new ones included, committed or not.

    Without a main branch, what is not committed yet counts. Those that are gone are left out unless asked for.
    """
    some = () if deleted else ("--diff-filter=d",)
    there = git(root, "diff", "--name-only", "--no-renames", *some, base(root) or "HEAD", "--", pattern)
    return sorted({*there, *git(root, "ls-files", "--others", "--exclude-standard", "--", pattern)})


def main(root: Path = ROOT) -> int:
    """Print the changed chapters on one line; say on stderr what is executed, and what is left to ``make test``."""
    chapters = changed(root, CHAPTERS)
    print(*chapters)
    print(f"check: changed chapters, executed and compared: {', '.join(chapters) or 'none'}", file=sys.stderr)
    if changed(root, LIBRARY):
        print("check: the library changed, so any chapter may: make test executes them all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
