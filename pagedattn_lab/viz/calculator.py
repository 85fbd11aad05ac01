"""A calculator of a server's memory: choose a model, a GPU and a load, and see what fits (chapter 10).

Python computes what a model and a GPU need; what follows from it for a context and a load is whole numbers, and
``calculator.js`` computes and draws it the same, so a page without a kernel answers at every position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.concurrency import CURVE_HEIGHT, LENGTHS, Point, draw_concurrency
from pagedattn_lab.viz.vram import BAR_HEIGHT, Memory, describe_memory, draw_memory, gib, picture

Facts = Mapping[str, Any]
"""What a page needs to know, as JSON values: see :func:`pagedattn_lab.viz.calculator_facts.gather`."""
Group = Sequence[Any]
"""One group of layers: its kind ("full", "window", "chunk" or "state"), its block size, and the window, the chunk or the
number of states."""


@dataclass(frozen=True)
class Answer:
    """What follows from one position of the controls. Memory is in bytes.

    Attributes:
        memory: the GPU's, divided.
        room: for the KV cache, from likely, most and least other memory; negative where there is none.
        num_blocks: of the KV cache, from the same.
        block_size: tokens in a block, which may be more than was asked for.
        blocks_per_request: what vLLM reserves for one request of the whole context at most.
        largest_context: the longest that fits; 0 where none does.
        held: blocks that a request of ``tokens`` holds once it decodes.
        tokens: of a typical request; at most the context.
        users: requests that want to run.
        running: how many of them do.
        empty: slots without a token in the blocks of one of them, and all its slots.
    """

    memory: Memory
    room: tuple[int, int, int]
    num_blocks: tuple[int, int, int]
    block_size: int
    bytes_per_block: int
    blocks_per_request: int
    largest_context: int
    held: int
    tokens: int
    users: int
    running: int
    empty: tuple[int, int]

    @property
    def usable(self) -> int:
        """Blocks that requests can have: all but the null block."""
        return max(0, self.num_blocks[0] - 1)


def most_blocks(group: Group, tokens: int, in_flight: int) -> int:
    """Count the blocks that a request of so many tokens has at most, while so many may be computed at a time.

    Example:
        >>> [most_blocks(["window", 16, 4096], tokens, 8192) for tokens in (8192, 32768)]
        [513, 769]
    """
    kind, block_size, bound = group
    if kind == "window":
        return cdiv(min(bound - 1 + in_flight, tokens), block_size) + 1
    if kind == "chunk":
        return cdiv(min(bound + in_flight, tokens), block_size)
    return bound if kind == "state" else cdiv(tokens, block_size)


def held_blocks(group: Group, tokens: int) -> tuple[int, int]:
    """Count the blocks that a request of so many tokens holds while it decodes, and their slots without a token in use.

    Example:
        >>> held_blocks(["full", 16, 0], 20), held_blocks(["window", 16, 4], 20)
        ((2, 12), (1, 12))
    """
    kind, block_size, bound = group
    if kind == "state":
        return bound, 0
    skipped = 0
    if kind == "window":
        skipped = max(0, tokens - bound)
    elif kind == "chunk":
        skipped = (tokens - 1) // bound * bound
    blocks = cdiv(tokens, block_size) - skipped // block_size
    return blocks, blocks * block_size - (tokens - skipped)


def work_out(facts: Facts, at: Sequence[int]) -> Answer:
    """Compute what follows from a position of the controls.

    Args:
        facts: numbers of models and GPUs.
        at: the index of each control, in the order of :data:`CONTROLS`.
    """
    model_at, gpu_at, context_at, dtype_at, size_at, tokens_at, users_at = at
    model, gpu = facts["models"][model_at], facts["gpus"][gpu_at]
    weights, *others = model["memory"][gpu_at]
    block_size, bytes_per_block, groups = model["layouts"][dtype_at][size_at]
    context, users = facts["contexts"][context_at], facts["users"][users_at]
    tokens = min(facts["tokens"][tokens_at], context)
    least, likely, most = others
    room = tuple(gpu["limit"] - weights - other for other in (likely, most, least))
    num_blocks = tuple(max(0, size) // bytes_per_block for size in room)
    usable, in_flight = max(0, num_blocks[0] - 1), gpu["in_flight"]

    def reserved(length: int) -> int:
        return sum(most_blocks(group, length, in_flight) for group in groups)

    held = [held_blocks(group, tokens) for group in groups]
    per_user = sum(blocks for blocks, _ in held)
    slots = sum(blocks * group[1] for (blocks, _), group in zip(held, groups, strict=True) if group[0] != "state")
    empty = sum(empty for _, empty in held)
    largest = _longest(reserved, usable)
    running = min(users, usable // per_user) if largest >= context else 0
    # A group's block is as large as any other's, so a slot without a token is a share of it.
    unused = [bytes_per_block * empty // group[1] for (_, empty), group in zip(held, groups, strict=True)]
    tail, whole = running * sum(unused), running * per_user * bytes_per_block
    parts: dict[str, Any] = {"used": whole - tail, "tail": tail, "free": room[0] - whole}
    if room[0] <= 0:
        parts = {"overrun": -room[0]}
    elif largest < context:
        missing = (reserved(context) + 1) * bytes_per_block - room[0]
        parts = {"used": room[0], "used_by": "one request", "overrun": missing}
    elif running < users:
        parts["overrun"] = (users * per_user - usable) * bytes_per_block
    memory = Memory(
        gpu["name"], gpu["total"], gpu["limit"], facts["utilization"], weights, (least, likely, most), **parts
    )
    return Answer(
        memory, room, num_blocks, block_size, bytes_per_block, reserved(context), largest, per_user, tokens, users,
        running, (empty, slots),
    )  # fmt: skip


def _longest(reserved: Any, usable: int) -> int:
    """The longest context that fits into so many blocks, to a power of two that no model reaches."""
    low, high = 0, 2**24
    while low < high:
        middle = (low + high + 1) // 2
        if reserved(middle) <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def times(number: int, of: int) -> str:
    """Write a ratio as ``f"{number / of:.2f}"`` does, in whole numbers.

    Example:
        >>> times(1, 8), times(3, 8), times(200, 3)
        ('0.12', '0.38', '66.67')
    """
    hundredths, rest = divmod(number * 100, of)
    if 2 * rest > of or (2 * rest == of and hundredths % 2):
        hundredths += 1
    return f"{hundredths // 100:,}.{hundredths % 100:02}"


def counted(number: int, thing: str) -> str:
    """Write a number and what is counted.

    Example:
        >>> counted(1, "request"), counted(2000, "request")
        ('1 request', '2,000 requests')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def tell(facts: Facts, at: Sequence[int], answer: Answer) -> str:
    """Say in two or three sentences what fits."""
    model, gpu, context = (facts[name][index] for name, index in zip(("models", "gpus", "contexts"), at, strict=False))
    memory, (room, least, most) = answer.memory, answer.room
    intro = f"{model['name']} on {gpu['name']}: "
    if room <= 0:
        taken = memory.weights + memory.other[1]
        return (
            f"{intro}weights and other memory take {gib(taken)} GiB, {gib(memory.overrun)} GiB more than the "
            f"{gib(memory.limit)} GiB that gpu_memory_utilization {memory.utilization} allows. Nothing is left for a "
            "KV cache: vLLM does not start."
        )
    blocks, fewest, many = answer.num_blocks
    about = "" if least == most else f" ({fewest:,} to {many:,}, as other memory is an estimate)"
    first = f"{intro}{gib(room)} GiB for the KV cache, {counted(blocks, 'block')} of {answer.block_size:,} tokens{about}."
    if answer.largest_context < context:
        longest = answer.largest_context
        fits = f"The longest that fits is {longest:,}." if longest else "Not one token fits."
        return (
            f"{first} One request of {context:,} tokens needs {gib((answer.blocks_per_request + 1) * answer.bytes_per_block)} "
            f"GiB, {gib(memory.overrun)} GiB too much: vLLM does not start with this context. {fits}"
        )
    # As vLLM computes it, in floating point: the last token depends on that.
    kv_tokens = int(blocks / answer.blocks_per_request * context)
    logged = (
        f"vLLM logs {kv_tokens:,} tokens and {times(blocks, answer.blocks_per_request)}x "
        f"for {context:,} tokens per request."
    )
    wanted = answer.users * answer.held
    empty, slots = answer.empty
    load = f"{counted(answer.users, 'request')} of {counted(answer.tokens, 'token')} hold {counted(wanted, 'block')}"
    if answer.running < answer.users:
        waiting = answer.users - answer.running
        wait = "waits" if waiting == 1 else "wait"
        return (
            f"{first} {logged} {load}, {wanted - answer.usable:,} too many ({gib(memory.overrun)} GiB): "
            f"{answer.running:,} run and {waiting:,} {wait}."
        )
    return (
        f"{first} {logged} {load} of {answer.usable:,}, {times(100 * empty, max(1, slots))} % of their slots empty; "
        f"there is room for {answer.usable // answer.held:,}."
    )


def draw(facts: Facts, at: Sequence[int]) -> Picture:
    """Draw the bar of memory and the curve of requests at once, for a position of the controls."""
    answer = work_out(facts, at)
    _, _, groups = facts["models"][at[0]]["layouts"][at[3]][at[4]]
    in_flight, context, blocks = facts["gpus"][at[1]]["in_flight"], facts["contexts"][at[2]], answer.num_blocks[0]
    most = [(blocks, sum(most_blocks(group, length, in_flight) for group in groups)) for length in LENGTHS]
    held = [(answer.usable, sum(held_blocks(group, length)[0] for group in groups)) for length in LENGTHS]
    per_request, fitting = answer.blocks_per_request, answer.usable // answer.held
    worst = Point(context, (blocks, per_request), f"{times(blocks, per_request)}x of {context:,}")
    typical = Point(answer.tokens, (answer.usable, answer.held), f"{fitting:,} of {answer.tokens:,} fit")
    wanted = Point(answer.tokens, (answer.users, 1), f"{answer.users:,} wanted")
    curve = "".join(draw_concurrency(most, held, worst, typical, wanted))
    body = f'{"".join(draw_memory(answer.memory))}<g transform="translate(0,{BAR_HEIGHT + 8})">{curve}</g>'
    sentence = tell(facts, at, answer)
    listed = ", ".join(
        f"{length:,}: {times(*ratio)}" for length, ratio in zip(LENGTHS[::2], most[::2], strict=True)
    )
    alt = f"{sentence} {describe_memory(answer.memory)} Requests at once by the tokens of each: {listed}."
    return picture(body, BAR_HEIGHT + 8 + CURVE_HEIGHT, alt, sentence)


def digest(facts: Facts) -> str:
    """Sum up the facts in a few letters."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
