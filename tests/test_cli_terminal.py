"""The command line at a terminal: its width, its colours, its help, what it suggests, and what it shows meanwhile."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tqdm

from pagedattn_lab import __version__, cli
from pagedattn_lab.bench import allocator, prefix, slots
from pagedattn_lab.cli import main, terminal
from pagedattn_lab.cli.arguments import size
from pagedattn_lab.cli.parser import Parser
from tests.helpers.cli import AZURE, MOONCAKE, in_terminal, strictly

pytestmark = pytest.mark.usefixtures("loaded_once")
ROOT = Path(__file__).resolve().parents[1]
COLOUR = re.compile(r"\033\[\d+m")
SCREEN = re.compile(r"\033\[\d*[mA]")
SHORT = ("waste", "--requests", "300")


def parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[Parser]:
    """The program's parser, and that of every command, however deep."""
    parser = parser or cli._parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def assert_fits(text: str, columns: int = 80) -> None:
    """No line is longer, each of those included that a progress bar wrote over."""
    assert [line for line in re.split(r"[\r\n]", SCREEN.sub("", text)) if len(line) > columns] == []


# ---------------------------------------------------------------- width


@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches help as wide as a wide terminal, wider than a usual one, or without what one may write."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for parser in parsers():
        command = parser.prog.removeprefix(terminal.program()).split()
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        printed = capsys.readouterr().out
        assert stop.value.code == 0 and "\nexamples:\n" in printed
        assert_fits(printed)


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("waste", "--requests", "2000"),
        ("waste", "--requests", "3", "--model-len", "300"),
        ("hits", "chat", "--blocks", "4000", "--policy", "fifo", "--requests", "200"),
        ("generate", "Hello!", "--max-tokens", "4", "--n", "2", "--shared-prefix", "prefix.txt"),
        ("budget", "gemma-3-27b-it", "--gpu", "A100-80GB", "--max-model-len", "131072", "--workload", "500/200"),
        ("budget", "Llama-3.1-70B", "--gpu", "8GiB"),
        ("waste", "--budget", "12G"),
        ("generate", "x", "--model", "one/two/three"),
        ("hits", "missing"),
        ("generate", "--hello"),
    ],
    ids=" ".join,
)
def test_everything_fits(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a table, a sentence or a message that a terminal of 80 columns breaks in the middle of a word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefix.txt").write_text("Answer in one word, whatever happens, and never in two.")
    _, sent, _ = in_terminal(*arguments, seconds=1.0)
    assert sent and "Traceback" not in sent
    assert_fits(sent)


def test_benchmarks_fit() -> None:
    """Catches a table whose columns hold small numbers only: here each is as large as any machine makes it."""
    report = allocator.measure([1_000, 1_500], num_steps=5, num_calls=5, repetitions=2)
    report["pools"][1]["num_blocks"] = 1_000_000
    for pool in report["pools"]:
        for row in (pool["same_load"], pool["whole_pool"]):
            row |= {"append_ns": 9_999, "append_ns_quartiles": [9_999, 9_999], "append_time_ratio": 99.0}
            row |= {name: [99e6, 99e6] for name in row if name == "block_operations_per_second_quartiles"}
            row["block_operations_per_second"] = 99e6
    assert_fits(allocator.describe(report))
    report = prefix.measure([64, 2_000], repetitions=2)
    report["prompts"][1] |= {"num_tokens": 131_072, "num_blocks": 8_192}
    for prompt in report["prompts"]:
        for row in (prompt[state] for state in prefix.STATES):
            row |= {"look_up_us": 99_999.0, "us": 99_999.0, "us_quartiles": [99_999.0, 99_999.0]}
            row |= {"ns_per_block": 9_999.0, "ns_per_block_quartiles": [9_999.0, 9_999.0], "radix_time_ratio": 9.99}
    text = prefix.describe(report)
    assert_fits(text)
    assert "99,999 (99,999-99,999) 9,999 (9,999-9,999)  9.99" in " ".join(text.split()).replace(" 9.99", "  9.99")
    row = {"us": 99.99, "us_quartiles": [99.99, 99.99]}
    report = {"allocate_slots": {"num_running": 256, "num_requests": 1_024, "plain": row, "cached": row}}
    assert_fits(slots.describe(report))


def test_a_message_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a message that a search in a log finds half of, and one that a terminal breaks within a word."""
    arguments = ("waste", "--budget", "12G")
    _, sent, _ = in_terminal(*arguments)
    with pytest.raises(SystemExit):
        main(arguments)
    piped = capsys.readouterr().err
    assert piped.count("\n") == 1 < sent.count("\n") and sent.split() == piped.split()


# ---------------------------------------------------------------- names


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a version that is another's, or an error because no command was given."""
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"pagedattn-lab {__version__}\n"


@pytest.mark.parametrize("name", ["pagedattn-lab", "pagedattn-lab.exe"])
def test_the_script_is_called_by_its_name(name: str) -> None:
    """Catches a script that leads nowhere, and help for something else than what the reader typed.

    It runs as an installed script does; installing it is pip's part.
    """
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["pagedattn-lab"]
    module, function = target.split(":")
    code = f"import sys; sys.argv[0] = '/some/bin/{name}'; from {module} import {function}; sys.exit({function}())"
    run = partial(subprocess.run, capture_output=True, text=True)
    printed = run([sys.executable, "-c", code, "waste", "--help"]).stdout
    assert printed.startswith("usage: pagedattn-lab waste [-h]") and "\n  pagedattn-lab waste --budget 24GiB" in printed
    assert "python -m" not in printed
    failed = run([sys.executable, "-c", code, "waste", "--fast"])
    assert failed.returncode == 2 and failed.stderr.startswith("pagedattn-lab waste: there is no option --fast")
    assert failed.stderr.endswith("(see pagedattn-lab waste --help)\n")
    module_run = run([sys.executable, "-m", "pagedattn_lab", "waste", "--fast"])
    assert module_run.stderr == failed.stderr.replace("see pagedattn-lab", "see python -m pagedattn_lab")


def test_help_names_the_script_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches examples that only work where the script is on the path: outside .venv it is not."""
    script = tmp_path / ".venv" / "bin" / "pagedattn-lab"
    script.parent.mkdir(parents=True)
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for typed in (".venv/bin/pagedattn-lab", str(script)):
        monkeypatch.setattr(sys, "argv", [typed, "waste"])
        monkeypatch.setenv("PATH", os.defpath)
        assert terminal.program() == os.path.join(".venv", "bin", "pagedattn-lab")
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.defpath}")
        assert terminal.program() == "pagedattn-lab"


def test_another_python_is_told_which_one_to_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches "No module named 'torch'" without a remedy, outside .venv."""

    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("pagedattn_lab.doctor.examine", lacking)
    assert cli.main(["doctor"]) == 1
    assert re.fullmatch(
        r"pagedattn-lab doctor: No module named 'torch': (run make setup in \S+, then \.venv/bin/pagedattn-lab there"
        r"|this is \S+, and the book's packages are elsewhere: run \S*\.venv/bin/pagedattn-lab instead)\n",
        capsys.readouterr().err,
    )


def test_examples_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an example that has fallen behind its command, and a command that has none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.csv").write_text(AZURE)
    (tmp_path / "trace.jsonl").write_text(MOONCAKE)
    top = cli._parser()
    for parser in parsers():
        assert parser.examples, parser.prog
        for example, what in parser.examples:
            command = parser.prog.removeprefix(terminal.program()).split()
            words = shlex.split(example)
            assert words[: len(command)] == command and what
            if "--help" not in words:
                assert top.parse_args(cli._texts_last(words)).command == words[0]


# ---------------------------------------------------------------- suggestions


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wast"], "pagedattn-lab: there is no command 'wast': did you mean waste?"),
        (["Doctor"], "pagedattn-lab: there is no command 'Doctor': did you mean doctor?"),
        (["--verison"], "pagedattn-lab: there is no option --verison: did you mean --version?"),
        (["bench", "alocator"], "pagedattn-lab bench: there is no command 'alocator': did you mean allocator?"),
        (["waste", "--bugdet", "12GiB"], "pagedattn-lab waste: there is no option --bugdet: did you mean --budget?"),
        (["waste", "--bugdet=12GiB"], "pagedattn-lab waste: there is no option --bugdet: did you mean --budget?"),
        (["waste", "--workload", "sharegp"], "azure-code: did you mean sharegpt?"),
        (["hits", "caht"], "'caht' is neither a file nor one of chat, system-prompts: did you mean chat?"),
        (["hits", "chat", "--policy", "lur"], "argument --policy: invalid choice: 'lur': did you mean lru?"),
        (["generate", "--jsno"], "pagedattn-lab generate: there is no option --jsno: did you mean --json?"),
        (["generate", "x", "--temprature", "0"], "there is no option --temprature: did you mean --temperature?"),
        (["generate", "-n", "3", "x"], "pagedattn-lab generate: there is no option -n: did you mean --n?"),
        (["generate", "What", "is", "it?"], "'is' is one word too many: put a text of several words into quotes"),
        (["doctor", "--fix"], "pagedattn-lab doctor: there is no option --fix (see"),
        (["bench", "prefix", "--jsno"], "pagedattn-lab bench prefix: there is no option --jsno: did you mean --json?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_did_you_mean(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a slip of the finger that is answered with a list of everything, or blamed on something else."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and said in captured.err


def test_what_was_right_stays_right() -> None:
    """Catches a check that refuses an abbreviation, a value, a text with dashes, or what stands behind two of them."""
    parse = cli._parser().parse_args
    assert parse(["waste", "--model", "300"]).model_len == 300
    assert parse(["generate", "--temp=0.5", "--", "--greet", "x"][:4]).prompt == "--greet"
    assert parse(["generate", "--no such thing"]).prompt == "--no such thing"
    assert parse(["generate", "x", "--length-penalty", "-2", "--beams", "2"]).length_penalty == -2


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("unit", ["kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"])
def test_every_unit_of_bytes(unit: str) -> None:
    """Catches powers of 1000 and 1024 mixed up, and a unit that is off by one power."""
    base = 1024 if unit[1] == "i" else 1000
    power = "KMGT".index(unit[0].upper()) + 1
    for number in ("1", "3.5", "0.25"):
        for written in (number + unit, f"{number} {unit}", number + unit.lower()):
            assert size(written) == int(Fraction(number) * base**power)
    assert size("2") == 2 * 1024**3


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("12G", "'12G' leaves open which unit is meant: write 12GiB or 12GB"),
        ("12g", "'12g' leaves open which unit is meant: write 12GiB or 12GB"),
        ("500 M", "write 500MiB or 500MB"),
        ("1.5Ti", "write 1.5TiB or 1.5TB"),
        ("12Gb", "'12Gb' may be bits: write 12GB for bytes"),
        ("12Gib", "'12Gib' may be bits: write 12GiB for bytes"),
        ("12B", "is not a size above 0: write 12GiB, 500MiB, 12GB or 500MB"),
    ],
)
def test_a_unit_that_may_mean_two_things_is_refused(argument: str, said: str) -> None:
    """Catches a guess that is off by 7 %, or by a factor of 8, and a refusal that does not say which unit is which."""
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(said)) as refusal:
        size(argument)
    assert "a GiB is 1024^3 bytes, a GB 1000^3; a plain number means GiB" in str(refusal.value)


# ---------------------------------------------------------------- colour


def test_colours_are_for_a_terminal_that_wants_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches escapes in a file, in a terminal that cannot show them or whose owner declined, and a picture that says
    something else without them.
    """
    _, coloured, _ = in_terminal(*SHORT)
    kinds = re.findall(r"\033\[(\d+)m(.)\033\[0m (token states|reservation|internal|external, other)", coloured)
    assert len({colour for colour, _, _ in kinds}) == len({character for _, character, _ in kinds}) == len(kinds) == 4
    for colour, character, _ in kinds:  # a kind's bars are in its colour, and nothing else is
        runs = re.findall(rf"\033\[{colour}m([^\033]+)\033\[0m", coloured)
        assert runs and {*"".join(runs)} == {character}
        assert character not in COLOUR.sub("", re.sub(rf"\033\[{colour}m[^\033]+\033\[0m", "", coloured))
    plain = COLOUR.sub("", coloured)
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert in_terminal(*SHORT, **environment)[1] == plain
    assert COLOUR.search(in_terminal(*SHORT, NO_COLOR="")[1])  # as https://no-color.org has it: set, and not empty
    assert main(SHORT) == 0 and capsys.readouterr().out == plain


def test_doctor_in_colour(tmp_path: Path) -> None:
    """Catches a verdict that only a colour tells, and a failure in the colour of success."""
    status, sent, _ = in_terminal("doctor", PAGEDATTN_LAB_CACHE=str(tmp_path))
    assert status == 1 and re.search(r"\033\[32mok  \033\[0m packages: all here\n", sent)
    assert re.search(r"\033\[31mFAIL\033\[0m default model: not in the cache yet; run make setup\n", sent)
    assert "\033[31mThe book will not run here in full: see FAIL above.\033[0m" in sent


# ---------------------------------------------------------------- waits


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when a test says so, for the line of a wait and for the thread that writes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._done = 0.0, False
        self._ticks, self._asleep = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)
        ours = SimpleNamespace(Event=lambda: self, Thread=threading.Thread)
        monkeypatch.setattr("pagedattn_lab.cli.terminal.threading", ours)

    def wait(self, seconds: float) -> bool:
        """What the thread calls: sleep for a second, or until the wait is over."""
        assert seconds == 1
        self._asleep.release()
        assert self._ticks.acquire(timeout=60)
        return self._done

    def set(self) -> None:
        """What the end of the wait calls."""
        self._done = True
        self._ticks.release()

    def tick(self) -> None:
        """Let a second pass, and the thread do what it does then."""
        assert self._asleep.acquire(timeout=60)
        self.now += 1.0
        self._ticks.release()
        assert self._asleep.acquire(timeout=60)
        self._asleep.release()


def test_a_wait_shows_how_long_it_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a screen that stands still, a line that flashes up, and one that stays behind."""
    monkeypatch.setenv("TERM", "xterm")
    screens = []
    for seconds in (0, 2):
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            patch.setattr(sys, "stderr", Screen())
            with terminal.waiting("thinking"):
                clock.now += 0.9
                assert sys.stderr.getvalue() == ""
                for _ in range(seconds):
                    clock.tick()
            screens.append(sys.stderr.getvalue())
    short, long = screens
    assert short == "" and re.findall(r"\rthinking \.\.\. (\S+)", long) == ["00:01", "00:02"]
    assert long.endswith("\r") and long.split("\r")[-2].strip() == ""  # written over with spaces


@pytest.mark.parametrize("stream", ["pipe", "dumb"])
def test_nobody_watches_a_wait(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a log full of seconds."""
    monkeypatch.setenv("TERM", "dumb" if stream == "dumb" else "xterm")
    monkeypatch.setattr(sys, "stderr", io.StringIO() if stream == "pipe" else Screen())
    with terminal.waiting("thinking"):
        time.sleep(1.2)
    assert sys.stderr.getvalue() == ""


def test_a_wait_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an error that is swallowed, and a thread that goes on writing."""
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        clock, before = Clock(patch), threading.active_count()
        patch.setattr(sys, "stderr", Screen())
        with pytest.raises(ValueError, match="stop"), terminal.waiting("thinking"):
            raise ValueError("stop")
        assert sys.stderr.getvalue() == "" and clock._done and threading.active_count() == before


LOADING, COMPILING = "loading SmolLM2-135M-Instruct", "compiling attention for this CPU"


@pytest.mark.parametrize(
    ("arguments", "waits"),
    [
        (["generate", "Hi", "--max-tokens", "2"], [LOADING, COMPILING, "computing the prompt"]),
        (["generate", "Hi", "--max-tokens", "2", "--json"], [LOADING, COMPILING, "generating"]),
        (["waste", "--requests", "300"], ["serving 300 requests with four allocators"]),
        (["hits", "chat", "--requests", "30"], ["serving the trace"]),
        (["fleet", "--requests", "30"], ["simulating the fleet"]),
        (["doctor"], ["examining this machine"]),
        (["bench", "allocator"], ["measuring"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_every_command_that_takes_long_says_so(
    arguments: list[str], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that leaves its reader before a screen on which nothing happens."""
    seen = []

    @contextmanager
    def waiting(what: str) -> Iterator[None]:
        seen.append(what)
        yield

    monkeypatch.setattr(cli.COMMANDS[arguments[0]], "waiting", waiting)
    for module, settings in ((allocator, {"sizes": [1_000], "num_steps": 2, "num_calls": 2}), (slots, {})):
        quick = {"repetitions": 2, **settings} if settings else {"num_running": 2, "num_requests": 3, "repetitions": 2}
        monkeypatch.setattr(module, "measure", partial(module.measure, **quick))
    assert main(arguments) == 0
    assert seen == waits


def test_a_wait_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a clock and a bar that write over one another, and a benchmark that shows neither."""
    shown, at_once = set(), []

    class Bar(tqdm.tqdm):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            if not self.disable:
                shown.add(id(self))
                at_once.append(len(shown))

        def close(self) -> None:
            shown.discard(id(self))
            super().close()

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr(allocator, "measure", partial(allocator.measure, [1_000], num_steps=2, num_calls=2))
    monkeypatch.setattr(slots, "measure", partial(slots.measure, num_running=2, num_requests=3))
    monkeypatch.setattr(prefix, "measure", partial(prefix.measure, [64, 128]))
    for module in (allocator, slots, prefix):
        monkeypatch.setattr(module, "measure", partial(module.measure, repetitions=2))
    for arguments, count in ((SHORT, 1), (("bench", "allocator"), 2), (("bench", "prefix"), 1)):
        at_once.clear()
        in_terminal(*arguments)
        assert at_once == [1] * count, arguments


def test_json_is_alone_on_standard_output() -> None:
    """Catches a bar, a colour or a message among the JSON, where the other stream is a terminal."""
    status, sent, printed = in_terminal("waste", "--json", "--requests", "3000", only_stderr=True)
    assert status == 0 and strictly(printed)["num_requests"] == 3_000 and "{" not in sent
    status, sent, _ = in_terminal("hits", "chat", "--requests", "50", "--json")
    assert status == 0 and strictly(sent)["num_requests"] == 50


# ---------------------------------------------------------------- models


def test_a_bad_model_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    """Catches seconds of imports before a sentence that needs none of them."""
    (tmp_path / "file").write_text("no model")
    (tmp_path / "empty").mkdir()
    said = {
        "/no/such/folder": "there is no folder '/no/such/folder'",
        "~/nor/this": "there is no folder '~/nor/this'",
        str(tmp_path / "file"): "is a file: name the folder",
        str(tmp_path / "empty"): "holds no decoder that transformers can load: no config.json",
        "one/two/three": "neither a folder nor an id that the Hugging Face hub could have",
        "two words": "neither a folder nor an id",
        "nobody/has-this-model": "the hub gives no answer, and it was never downloaded here",
    }
    code = (
        "import sys; from pagedattn_lab.cli import main\n"
        f"print([main(['generate', 'x', '--model', name]) for name in {[*said]!r}])\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout == f"{[1] * len(said)}\n[]\n"
    for line, words in zip(result.stderr.splitlines(), said.values(), strict=True):
        assert line.startswith("pagedattn-lab generate: ") and words in line
