"""The command line: ``python -m pagedattn_lab {doctor, generate}``.

Results go to standard output, messages to standard error. Exit status: 0, 1 (it could not), 2 (wrong usage).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    arguments = _parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal without UTF-8 gets escapes rather than an error half-way
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing more can be written to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # a command line answers with a sentence; a traceback is for the library's callers
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"pagedattn_lab {arguments.command}: {message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pagedattn_lab", description="Paged attention on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{doctor,generate}")

    doctor = commands.add_parser("doctor", help="say whether the book will run here, and how")
    doctor.set_defaults(run=_doctor)

    generate = commands.add_parser("generate", help="answer a prompt through the paged cache")
    generate.add_argument("prompt", type=_text)
    generate.add_argument("--model", type=_text, help="a Hugging Face id or a folder (default: the book's model)")
    generate.add_argument("--max-tokens", type=_positive, default=64, help="default: %(default)s")
    generate.add_argument("--attention", choices=("auto", "reference", "triton"), default="auto")
    generate.add_argument("--block-size", type=_positive, default=16, help="tokens per block (default: %(default)s)")
    generate.set_defaults(run=_generate)

    for command in (doctor, generate):
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def _text(argument: str) -> str:
    if not argument.strip():
        raise argparse.ArgumentTypeError("it is empty")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not valid UTF-8") from None
    return argument


def _positive(argument: str) -> int:
    try:
        number = int(argument)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a whole number of at least 1")
    return number


def _doctor(arguments: argparse.Namespace) -> int:
    from pagedattn_lab.doctor import examine

    report = examine()
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"device         {report['device']}")
        print(f"models in      {report['cache_directory']}")
        for name, version in report["versions"].items():
            print(f"{name:<14} {version or 'not installed'}")
        for check in report["checks"]:
            print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
        print("The book will run here." if report["ok"] else "The book will not run here in full: see FAIL above.")
    return 0 if report["ok"] else 1


def _generate(arguments: argparse.Namespace) -> int:
    from pagedattn_lab import models
    from pagedattn_lab.block_table import BlockTable
    from pagedattn_lab.model_runner import ModelRunner, generate_greedily

    name = arguments.model or models.DEFAULT
    model, tokenizer = models.load(name)
    prompt = models.encode_prompt(tokenizer, arguments.prompt)
    total = len(prompt) + arguments.max_tokens
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and total > longest:
        raise ValueError(
            f"{len(prompt)} prompt tokens and {arguments.max_tokens} more exceed the model's {longest}: "
            "shorten the prompt or lower --max-tokens"
        )
    num_blocks = -(-total // arguments.block_size) + 1
    runner = ModelRunner(model, num_blocks, arguments.block_size, arguments.attention)
    output: list[int] = []
    printed = ""
    usage: dict[str, Any] = {}

    def on_token(_: int, token: int, table: BlockTable) -> None:
        nonlocal printed
        output.append(token)
        usage.update(blocks_used=len(table.blocks), cached_tokens=table.num_tokens, empty_slots=table.num_empty_slots)
        text = tokenizer.decode(output, skip_special_tokens=True)
        if not arguments.json and not text.endswith("\ufffd"):  # half a character: wait for the rest
            print(text[len(printed) :], end="", flush=True)
            printed = text

    generate_greedily(
        runner, runner.new_pool(), [prompt], arguments.max_tokens, models.stop_token_ids(model, tokenizer), on_token
    )
    text = tokenizer.decode(output, skip_special_tokens=True)
    slots = usage["blocks_used"] * arguments.block_size
    report = {
        "text": text,
        "model": name,
        "prompt_tokens": len(prompt),
        "output_tokens": len(output),
        "block_size": arguments.block_size,
        **usage,
        "bytes": usage["blocks_used"] * runner.cache.shape.bytes_per_block(arguments.block_size),
        "waste": usage["empty_slots"] / slots,
    }
    if arguments.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(text[len(printed) :])
        print(
            f"\n{report['prompt_tokens']} prompt tokens, {report['output_tokens']} new; {report['cached_tokens']} "
            f"cached in {report['blocks_used']} blocks of {report['block_size']}: {report['bytes']:,} bytes, "
            f"{report['waste']:.1%} of them empty slots"
        )
    return 0
