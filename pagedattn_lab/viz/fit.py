"""What fits into a server's memory, in numbers and in words, for one position of a calculator's controls.

Python knows models and GPUs. What follows for a context and a load is sums of whole numbers, and ``calculator.js`` has
the same ones, so a page without a kernel answers at every position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedattn_lab.arithmetic import cdiv, count
from pagedattn_lab.budget.lengths import Group, held_blocks
from pagedattn_lab.viz.vram import Memory, gib

Facts = Mapping[str, Any]
"""What a page needs to know, as JSON values: see :func:`pagedattn_lab.viz.calculator.gather`."""


@dataclass(frozen=True)
class Answer:
    """What follows from one position of the controls. Memory is in bytes.

    Attributes:
        memory: the GPU's, divided.
        room: for the KV cache, likely, at least and at most; negative where there is none.
        num_blocks: of the KV cache, likely, at least and at most.
        block_size: tokens in a block, which may be more than was asked for.
        blocks_per_request: what vLLM reserves for one request of the whole context at most.
        largest_context: the longest that fits; 0 where none does.
        held: blocks that a request of ``tokens`` holds once it decodes.
        tokens: of a typical request; at most the context.
        users: requests that want to run.
        running: how many of them do.
        context: tokens that a request may have.
        is_cut: whether the model takes no more than that, though more was asked for.
        is_full: whether a request ends at the context, though more was asked for.
        fp8_capability: the GPU's compute capability, where the cache is in fp8 and not every backend reads one there.
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
    context: int
    is_cut: bool
    is_full: bool
    fp8_capability: str

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


def layout_of(facts: Facts, at: Sequence[int]) -> tuple[int, int, Sequence[Group]]:
    """Look up the tokens and bytes of a block, and the groups of layers: a GPU's kernels may ask for blocks of more."""
    model_at, gpu_at, _, dtype_at, size_at, *_ = at
    model = facts["models"][model_at]
    block_size, bytes_per_block, groups = model["layouts"][model["layout_of"][gpu_at]][dtype_at][size_at]
    return block_size, bytes_per_block, groups


def work_out(facts: Facts, at: Sequence[int]) -> Answer:
    """Compute what follows from a position of the controls.

    Args:
        facts: numbers of models and GPUs.
        at: the option that each control stands at: model, GPU, context, dtype of the cache, block size, tokens of a
            request, requests.
    """
    model_at, gpu_at, context_at, dtype_at, _, tokens_at, users_at = at
    model, gpu = facts["models"][model_at], facts["gpus"][gpu_at]
    weights, *other, fewest, most = model["memory"][gpu_at]
    block_size, bytes_per_block, groups = layout_of(facts, at)
    wished, users = facts["contexts"][context_at], facts["users"][users_at]
    context = min(wished, model["max_model_len"])
    tokens = min(facts["tokens"][tokens_at], context)
    room = (gpu["limit"] - weights - other[1], fewest, most)
    num_blocks = tuple(max(0, size) // bytes_per_block for size in room)
    usable, in_flight = max(0, num_blocks[0] - 1), gpu["in_flight"]

    def reserved(length: int) -> int:
        return sum(most_blocks(group, length, in_flight) for group in groups)

    held = [held_blocks(group, tokens, gpu["decode_in_flight"]) for group in groups]
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
    title = f"{model['name']} on {gpu['name']}"
    memory = Memory(title, gpu["total"], gpu["limit"], facts["utilization"], weights, tuple(other), **parts)
    return Answer(
        memory, room, num_blocks, block_size, bytes_per_block, reserved(context), largest, per_user, tokens, users,
        running, (empty, slots), context, context < wished, tokens < facts["tokens"][tokens_at],
        gpu["capability_without_fp8"] if facts["dtypes"][dtype_at].startswith("fp8") else "",
    )  # fmt: skip


def _longest(reserved: Callable[[int], int], usable: int) -> int:
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


def tell(answer: Answer) -> str:
    """Say in two or three sentences what fits."""
    memory, room, context = answer.memory, answer.room[0], answer.context
    if room <= 0:
        taken = memory.weights + memory.other[1]
        return (
            f"Weights and other memory take {gib(taken)} GiB, {gib(memory.overrun)} GiB more than the "
            f"{gib(memory.limit)} GiB that gpu_memory_utilization {memory.utilization} allows. Nothing is left for a "
            "KV cache: vLLM does not start."
        )
    blocks, fewest, many = answer.num_blocks
    about = "" if fewest == many else f" ({fewest:,} to {many:,}, as other memory is an estimate)"
    first = f"{gib(room)} GiB for the KV cache: {count(blocks, 'block')} of {answer.block_size:,} tokens{about}."
    if answer.fp8_capability:
        first += f" At compute capability {answer.fp8_capability}, not every backend of vLLM reads an fp8 cache."
    if answer.largest_context < context:
        needed, longest = (answer.blocks_per_request + 1) * answer.bytes_per_block, answer.largest_context
        fits = f"The longest context that fits is {longest:,}." if longest else "Not one token fits."
        return (
            f"{first} One request of {context:,} tokens needs {gib(needed)} GiB, {gib(memory.overrun)} GiB too much: "
            f"vLLM does not start. {fits}"
        )
    # As vLLM computes it, in floating point: the last token depends on that.
    kv_tokens = int(blocks / answer.blocks_per_request * context)
    most = ", the most that this model takes" if answer.is_cut else ""
    logged = f"vLLM logs {kv_tokens:,} tokens, {times(blocks, answer.blocks_per_request)}x at {context:,}{most}."
    wanted, usable, running = answer.users * answer.held, answer.usable, answer.running
    allowed = " (the context allows no more)" if answer.is_full else ""
    load = f"{count(answer.users, 'request')} of {count(answer.tokens, 'token')}{allowed}"
    if running < answer.users:
        waiting, missing = answer.users - running, wanted - usable
        return (
            f"{first} {logged} {load}: {running:,} {'runs' if running == 1 else 'run'} and {waiting:,} "
            f"{'waits' if waiting == 1 else 'wait'}; {count(missing, 'block')} ({gib(memory.overrun)} GiB) "
            f"{'is' if missing == 1 else 'are'} missing."
        )
    empty, slots = answer.empty
    return (
        f"{first} {logged} {load} {'holds' if answer.users == 1 else 'hold'} {wanted:,} of {count(usable, 'block')}, "
        f"{times(100 * empty, max(1, slots))} % of their slots empty; {usable // answer.held:,} would fit."
    )
