"""What a program of a decode kernel touched and must not have, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagedattn_lab.exercises.problems import Fault
from pagedattn_lab.recorder.sentences import counted

if TYPE_CHECKING:
    from pagedattn_lab.exercises.ch07_problem import Problem


def in_words(problem: Problem, found: Sequence[Fault]) -> str:
    """Say what the first of these faults is, and what follows from it.

    Example:
        >>> from pagedattn_lab.exercises.ch07_problem import Problem
        >>> in_words(Problem((5,), block_size=4, tile=4), [Fault("outside", "page tables", (0, 0, 0), (3,))])
        'Program 0 loads entry 3 of its page table, which has 3 entries: out of bounds.'
    """
    fault = found[0]
    row, head = problem.programs[fault.program]
    who = f"Program {(row, head)}" if problem.heads > 1 else f"Program {row}"
    if fault.kind == "not its own" and fault.tensor != "out":
        return f"{who} stores into the {fault.tensor}, which are there to be read."
    if fault.tensor == "page tables":
        wild = next((each for each in found if each.kind == "outside" and each.tensor in ("keys", "values")), None)
        effect = f" The block found there leads out of bounds: to {_place(problem, wild)}." if wild else ""
        return f"{who} {_entry(problem, fault, row)}{effect}"
    if fault.tensor in ("keys", "values"):
        return f"{who} {_slot(problem, fault, row, head)}"
    return f"{who} {_element(problem, fault, row, head)}{_lanes(problem, fault)}"


def _entry(problem: Problem, fault: Fault, row: int) -> str:
    """On an entry of a page table."""
    columns = problem.tensors["page tables"].shape[1]
    if fault.kind == "outside":
        entry = fault.elements[0] - row * columns
        return f"{fault.verb} entry {entry} of its page table, which has {columns} entries: out of bounds."
    theirs, entry = divmod(fault.elements[0], columns)
    if theirs != row:
        return f"loads entry {entry} of the page table of sequence {theirs}, but computes sequence {row}."
    used = sorted(position // problem.block_size for position in problem.visible(row))
    loads = f"loads entry {entry} of its page table"
    if used and entry < used[0]:
        return f"{loads}, but its window begins in entry {used[0]}: the blocks before it have been freed."
    tokens = counted(problem.lens[row], "token")
    fills = f"fill entries 0 to {used[-1]}" if used and used[-1] else "fill entry 0" if used else "fill no entry"
    holds = int(problem.tensors["page tables"][row, entry])
    return f"{loads}: {tokens} {fills}, and what lies behind is garbage, here {holds}."


def _element(problem: Problem, fault: Fault, row: int, head: int) -> str:
    """On an element of queries, lengths or out."""
    element, size = fault.elements[0], problem.tensors[fault.tensor].numel()
    if fault.kind == "outside":
        return f"{fault.verb} element {element} of {fault.tensor}, which has {size}: out of bounds."
    theirs = divmod(element // problem.width(fault.tensor), 1 if fault.tensor == "lengths" else problem.heads)
    per_head = problem.heads > 1 and fault.tensor != "lengths"
    place = f"sequence {theirs[0]}" + (f", head {theirs[1]}" if per_head else "")
    own = f"sequence {row}" + (f", {_heads(problem.heads_of(head))}" if per_head else "")
    return f"{fault.verb} elements of {fault.tensor} that belong to {place}, but computes {own}."


def _heads(heads: range) -> str:
    """Name neighbouring query heads."""
    joined = "to" if len(heads) > 2 else "and"
    return f"head {heads[0]}" if len(heads) == 1 else f"heads {heads[0]} {joined} {heads[-1]}"


def _place(problem: Problem, fault: Fault) -> str:
    """Where the first element of a fault lies outside of a cache."""
    last = problem.tensors[fault.tensor][..., 0, 0].numel() - 1
    slot = fault.elements[0] // problem.dim // problem.kv_heads
    return f"slot {slot}, but the cache of {fault.tensor} has slots 0 to {last}"


def _no_such_head(problem: Problem, fault: Fault, head: int) -> str:
    """A sentence on a KV head that does not exist, where a query head's number led out of the cache."""
    right = problem.kv_head_of(head)
    rows = {element // problem.dim for element in fault.elements}
    meant = {row - head + right for row in rows}
    if head < problem.kv_heads or not meant <= problem.needed[fault.tensor, fault.program]:
        return ""
    there = "is only KV head 0" if problem.kv_heads == 1 else f"are only KV heads 0 to {problem.kv_heads - 1}"
    return f" It asks for KV head {head}, and there {there}."


def _slot(problem: Problem, fault: Fault, row: int, head: int) -> str:
    """On a slot of the keys or values."""
    lanes = _lanes(problem, fault)
    if fault.kind == "outside":
        reason = lanes or _no_such_head(problem, fault, head)
        return f"{fault.verb} {_place(problem, fault)}: out of bounds.{reason}"
    slot, kv_head = divmod(fault.elements[0] // problem.dim, problem.kv_heads)
    block, offset = divmod(slot, problem.block_size)
    loads = f"loads slot {slot} of the {fault.tensor} (block {block}, offset {offset})"
    wanted = sorted(problem.needed[fault.tensor, fault.program])
    if lanes:
        return f"{loads} in part.{lanes}"
    if fault.kind == "again":
        return f"{loads} more than once: what has been loaded can serve every query head of the group."
    if slot in {each // problem.kv_heads for each in wanted}:
        right = wanted[0] % problem.kv_heads
        return f"loads KV head {kv_head} of slot {slot}, but {problem.reads(head)} KV head {right}."
    if block == 0:
        return f"{loads}: that is the null block, which never holds a token."
    sees = "its window" if problem.window else f"sequence {row}"
    return f"{loads}, where no token of {sees} lies."


def _lanes(problem: Problem, fault: Fault) -> str:
    """A sentence on lanes that run on behind a row, where it is these that did it."""
    rows = problem.needed.get((fault.tensor, fault.program), set())
    behind = {row + 1 for row in rows} - rows
    within = {(element // problem.dim, element % problem.dim) for element in fault.elements}
    spill = problem.padded_dim - problem.dim
    if problem.padded_dim == problem.dim or not within <= {(row, i) for row in behind for i in range(spill)}:
        return ""
    return f" Lanes from {problem.dim} on have no element of their own: they run into what follows the row."
