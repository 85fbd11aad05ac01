"""``compile``: what a kernel becomes on a GPU that is not here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pagedattn_lab.arithmetic import count
from pagedattn_lab.assembly import KINDS, Instruction, Listing
from pagedattn_lab.cli.arguments import add_json, positive
from pagedattn_lab.cli.output import did_you_mean, memory, print_json
from pagedattn_lab.cli.terminal import WIDTH, waiting, wrap
from pagedattn_lab.compile_report import TARGETS, compile_kernel
from pagedattn_lab.kernels import DTYPES, KERNELS
from pagedattn_lab.occupancy import MULTIPROCESSORS

SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What a dtype may also be called."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compile",
        help="say what a kernel becomes on a GPU that is not here",
        description="Compile one of the library's Triton kernels for a GPU, which need not be here, as a real launch "
        "would, and say what the compiler made of it: registers, shared memory, and which instructions there are. "
        "How fast it is only the GPU can say. Instructions are counted as they stand in the program: one in a loop "
        "counts once. Occupancy is predicted.",
        examples=[
            ("compile", "the kernel of chapter 07 on an H100"),
            ("compile --target gfx942 --heads 64/8", "on an MI300X, for another model"),
            ("compile --loop", "the instructions of its inner loop, and what each is for"),
        ],
    )
    parser.add_argument(
        "--kernel",
        choices=tuple(KERNELS),
        default="decode",
        metavar="KERNEL",
        help=f"one of {', '.join(KERNELS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default="sm_90",
        metavar="TARGET",
        help="; ".join(f"{target}: {MULTIPROCESSORS[target].gpus}" for target in TARGETS) + " (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        type=_dtype,
        default="bfloat16",
        metavar="DTYPE",
        help=f"of queries, keys and values: {', '.join(DTYPES)}, or {', '.join(SHORT_DTYPES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--head-dim", type=positive, default=128, metavar="N", help="numbers in a key (default: %(default)s)"
    )
    parser.add_argument(
        "--heads",
        type=_heads,
        default=(32, 8),
        metavar="N/K",
        help="query heads and KV heads; one number means as many KV heads (default: 32/8)",
    )
    parser.add_argument(
        "--block-size", type=positive, default=16, metavar="N", help="tokens per block (default: %(default)s)"
    )
    parser.add_argument("--loop", action="store_true", help="print the inner loop's instructions too: SASS, or amdgcn")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile, and print what came of it."""
    num_heads, num_kv_heads = arguments.heads
    with waiting(f"compiling for {arguments.target}"):
        made, listing = compile_kernel(
            arguments.kernel, arguments.target, arguments.dtype, arguments.head_dim, num_heads, num_kv_heads,
            arguments.block_size,
        )  # fmt: skip
    report = {
        "kernel": arguments.kernel,
        "dtype": arguments.dtype,
        "head_dim": arguments.head_dim,
        "heads": f"{num_heads}/{num_kv_heads}",
        "block_size": arguments.block_size,
        **vars(made),
    }
    loop = listing.inner_loop()
    if arguments.json:
        instructions = loop.instructions if loop else ()
        print_json(report | ({"loop": [_as_json(each) for each in instructions]} if arguments.loop else {}))
        return 0
    _print(report)
    if arguments.loop:
        print()
        _print_loop(loop)
    return 0


def _dtype(argument: str) -> str:
    name = SHORT_DTYPES.get(argument, argument)
    if name not in DTYPES:
        meant = did_you_mean(argument, DTYPES) or f": choose from {', '.join(DTYPES)}"
        raise argparse.ArgumentTypeError(f"invalid choice: {argument!r}{meant}")
    return name


def _heads(argument: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)(?:/([0-9]+))?", argument, re.ASCII)
    num_heads, num_kv_heads = (int(number or match[1]) for number in match.groups()) if match else (0, 0)
    if not num_heads or not num_kv_heads:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a number of heads: write 32/8, or 32 for 32/32")
    if num_heads % num_kv_heads:
        raise argparse.ArgumentTypeError(
            f"{num_heads} query heads cannot share {num_kv_heads} KV heads evenly: the first must be a multiple"
        )
    return num_heads, num_kv_heads


def _print(report: Mapping[str, Any]) -> None:
    target = report["target"]
    print(
        wrap(
            f"{report['function']} on {target} ({MULTIPROCESSORS[target].gpus}): {report['dtype']}, head_dim "
            f"{report['head_dim']}, {report['heads']} heads, blocks of {report['block_size']}; "
            f"{count(report['num_warps'], 'warp')} a thread block"
        )
        + "\n"
    )
    for name, value, meaning in _rows(report):
        print(wrap(f"{name:<22}{value:>10}  {meaning}", indent=" " * 34))


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each figure with what it is called, and what it means."""
    has = MULTIPROCESSORS[report["target"]]
    limits = " and ".join(report["limited_by"])
    blocks = report["blocks_per_multiprocessor"]
    wide_copies, copies, wide, loads = (
        report[name] for name in ("async_copies_128", "async_copies", "global_loads_128", "global_loads")
    )
    narrow, kv_loads, length = report["kv_loads_narrow"], report["kv_loads"], report["loop_instructions"]
    yield "registers", f"{report['registers']:,}", "a thread"
    spill = report["spill_bytes"]
    yield "spilled", memory(spill), "registers ran out: so much goes to memory" if spill else "registers suffice"
    yield "shared memory", memory(report["shared_bytes"]), f"of {memory(has.shared)} that a multiprocessor has"
    if blocks:
        fits = f"predicted: {limits} allow {count(blocks, 'thread block')}"
    else:
        fits = f"not even one thread block fits, for want of {limits}: a launch fails"
    yield "occupancy", f"{report['occupancy']:.1%}", fits
    if report["mma"]:
        yield "tensor-core", f"{report['mma']:,}", f"products of tiles, {report['loop_mma']:,} of them in the loop"
    else:
        yield "tensor-core", "0", "every product is done one by one on FMA units"
    yield "multiply-add", f"{report['fma']:,}", f"{report['loop_fma']:,} of them in the inner loop"
    yield "global loads", f"{loads:,}", f"to registers; {wide:,} of them of 128 bits a thread"
    if copies:
        yield "async copies", f"{copies:,}", f"to shared memory, meanwhile; {wide_copies:,} of them of 128 bits"
    else:
        yield "async copies", "0", "nothing is copied to shared memory meanwhile"
    if not kv_loads:
        yield "loads of K and V", "0", "this kernel reads none"
    elif narrow:
        yield "loads of K and V", f"{kv_loads:,}", f"{narrow:,} narrower than 128 bits: memory's width is wasted"
    else:
        yield "loads of K and V", f"{kv_loads:,}", "all of 128 bits a thread, or asynchronous"
    yield "inner loop", f"{length:,}", "instructions" if length else "no loop reads K and V"
    each = report["kv_bytes_per_instruction"]
    if each is not None:
        yield "K and V read", f"{each:.1f}", "bytes by a warp, per instruction there"


def _print_loop(loop: Listing | None) -> None:
    if loop is None:
        print("No loop of this kernel reads keys and values.")
        return
    print(f"{'line':<12} {'what for':<13} instruction")
    starts = {index: name for name, index in loop.labels.items()}
    for index, each in enumerate(loop.instructions):
        if index in starts:
            print(f"{starts[index]}:")
        line = f"{_where(each):<12} {_what_for(each):<13} {each.text}"
        print(line if len(line) <= WIDTH else wrap(line, indent=" " * 28))
    kinds = sorted({each.kind for each in loop.instructions} - {""})
    print("\n" + "\n".join(wrap(f"{kind:<12} {KINDS[kind]}", indent=" " * 13) for kind in kinds))


def _where(instruction: Instruction) -> str:
    """The line of source, short: the number alone in the kernel's own file is what one looks up."""
    if instruction.place is None or not instruction.place[1]:
        return ""
    file, line = instruction.place
    return f"{file.removesuffix('.py').removeprefix('triton_')[:8]}:{line}"


def _what_for(instruction: Instruction) -> str:
    if instruction.is_kv:
        return "K/V copy" if instruction.kind == "async copy" else "K/V load"
    return instruction.kind


def _as_json(instruction: Instruction) -> dict[str, Any]:
    file, line = instruction.place or (None, None)
    return {
        "file": file,
        "line": line,
        "kind": instruction.kind,
        "is_kv": instruction.is_kv,
        "text": " ".join(instruction.text.split()),
    }
