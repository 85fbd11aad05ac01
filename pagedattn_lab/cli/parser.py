"""A parser that answers a mistake with one message, names what was perhaps meant, and gives examples."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pagedattn_lab.cli.output import did_you_mean
from pagedattn_lab.cli.terminal import WIDTH, program, say


class _Formatter(argparse.HelpFormatter):
    """Help that is no wider than a terminal usually is."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **settings | {"width": min(WIDTH, shutil.get_terminal_size().columns) - 2})


class Parser(argparse.ArgumentParser):
    """A parser for the program or one of its commands.

    Args:
        examples: what one may write behind the program's name, and what it is for; shown at the end of the help.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        super().__init__(*args, **settings | {"formatter_class": _Formatter})
        self.examples = examples

    def format_help(self) -> str:
        """Add the examples, as they are to be typed."""
        lines = [f"  {program()} {command}\n      {what}\n" for command, what in self.examples]
        return super().format_help() + ("\nexamples:\n" + "".join(lines) if lines else "")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        command = self.prog.removeprefix(program()).strip()
        say(f"{message} (see {self.prog} --help)", command)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what nobody knows here, where the command is known, and an option before what it made go wrong."""
        words = list(sys.argv[1:] if args is None else args)
        options = list(self._option_string_actions)
        for word in self._own_words(words):
            if word.startswith("--") and " " not in word:  # with a space, argparse takes it for a text
                name = word.partition("=")[0]
                if not any(option.startswith(name) for option in options):
                    self.error(f"there is no option {name}{self._instead(name)}")
        found, extras = super().parse_known_args(words, namespace)
        extras = [word for word in extras if word != "--"]
        for word in sorted(extras, key=lambda word: not word.startswith("-")):
            if word.startswith("-"):
                self.error(f"there is no option {word}{self._instead(word)}")
            self.error(f"{word!r} is one word too many: put a text of several words into quotes")
        return found, []

    def _own_words(self, words: Sequence[str]) -> list[str]:
        """Words that may be this parser's options: none behind ``--``, and none behind the name of a command."""
        words = words[: [*words, "--"].index("--")]
        if self._subparsers is None:
            return [*words]
        return words[: next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))]

    def _instead(self, option: str) -> str:
        """What to write in the place of an option that is none."""
        meant = did_you_mean(option, self._option_string_actions)
        takes_texts = self._subparsers is None and any(not action.option_strings for action in self._actions)
        if not meant and takes_texts and option.startswith("--"):
            return "; a text that begins with two dashes goes behind --, all by themselves"
        return meant

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the choice that comes closest; argparse does so from Python 3.14 on."""
        if action.choices is None or value in action.choices:
            return
        meant = did_you_mean(value, action.choices) or f": choose from {', '.join(map(str, action.choices))}"
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"there is no command {value!r}{meant}")
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{meant}")
