"""Read what a compiler made of a kernel: which instructions there are, and which of them loop (chapter 08).

Two languages are read: SASS, which NVIDIA's ``nvdisasm -c -g`` prints, and amdgcn, which LLVM writes. Nothing here
compiles, so it runs anywhere. Triton's own TTIR says which lines of a kernel load from which of its arguments.

Instructions are counted as they stand in the program: one in a loop counts once, however often it runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

Place = tuple[str, int]
"""A line of source: the file's name without its folder, and the line's number."""

KINDS = {
    "mma": "tensor cores: one product of tiles",
    "global load": "global memory to registers",
    "async copy": "global to shared memory, in the background",
    "global store": "registers to global memory",
    "shared": "shared memory",
    "fma": "one multiplication and addition a lane",
    "exp2": "a power of two",
    "barrier": "waits for the block's other warps",
    "wait": "waits for loads or copies",
    "spill": "registers that did not suffice, in memory",
}
"""What an instruction is for, and what that means. Every other instruction has the empty kind."""

SASS = {
    "mma": r"\w*MMA",
    "global load": r"LDG",
    "async copy": r"LDGSTS|UBLKCP|UTMALDG",
    "global store": r"STG",
    "shared": r"LDS|LDSM|STS|STSM",
    "fma": r"FFMA2?|HFMA2|DFMA",
    "exp2": r"MUFU\.EX2.*",
    "barrier": r"BAR|UCGABAR_\w+",
    "wait": r"DEPBAR|LDGDEPBAR|SYNCS",
    "spill": r"LDL|STL",
}
"""Kinds by operation, without suffixes unless they are named. Source: NVIDIA, "CUDA Binary Utilities"."""

AMDGCN = {
    "mma": r"v_s?mfmac?_\w+",
    "async copy": r"(global|buffer)_load_lds_\w+",  # the next pattern fits it too
    "global load": r"(global|buffer|flat)_load_\w+",
    "global store": r"(global|buffer|flat)_store_\w+",
    "shared": r"ds_\w+",
    "fma": r"v_(pk_)?(fma|fmac|mad|mac|dot2c?)_\w+",
    "exp2": r"v_exp_\w+",
    "barrier": r"s_barrier",
    "wait": r"s_waitcnt",
    "spill": r"scratch_\w+",
}
"""The same for amdgcn; source: "AMD Instinct MI300 ISA Reference Guide". Its scalar loads, which are for arguments and
whatever all lanes share, are of no kind here."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        text: as the disassembler prints it, without its address.
        kind: one of :data:`KINDS`, or empty.
        width: bytes that each lane loads, copies or stores; 0 where the instruction does not say, or does neither.
        place: the line of source that it was made from, if known.
        target: the label that it jumps to, if it does.
        is_kv: whether it reads keys or values from global memory.
    """

    text: str
    kind: str = ""
    width: int = 0
    place: Place | None = None
    target: str = ""
    is_kv: bool = False


@dataclass(frozen=True)
class Listing:
    """The instructions of a kernel, in order, and where its labels are."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def count(self, kind: str, width: int | None = None) -> int:
        """Count the instructions of one kind, perhaps only those of one width."""
        return sum(each.kind == kind and width in (None, each.width) for each in self.instructions)

    def with_kv(self, places: Collection[Place]) -> Listing:
        """Mark the loads and copies that these lines were made into."""
        loads = ("global load", "async copy")
        marked = [replace(each, is_kv=each.kind in loads and each.place in places) for each in self.instructions]
        return replace(self, instructions=tuple(marked))

    def inner_loop(self) -> Listing | None:
        """Find the loop that reads keys and values: of those with no such loop inside, the one that reads most.

        A loop is what lies between a label and the last jump back to it.
        """
        ends: dict[int, int] = {}
        for index, each in enumerate(self.instructions):
            start = self.labels.get(each.target, index + 1)
            if start <= index:
                ends[start] = index + 1
        loops = {span: _kv_bytes(self.instructions[slice(*span)]) for span in ends.items()}
        loops = {span: num_bytes for span, num_bytes in loops.items() if num_bytes}
        inner = [
            span for span in loops if not any(span != other and _within(other, span) for other in loops)
        ]  # fmt: skip
        if not inner:
            return None
        start, end = max(inner, key=lambda span: loops[span])
        labels = {name: index - start for name, index in self.labels.items() if start <= index < end}
        return Listing(self.instructions[start:end], labels)

    @property
    def kv_loads(self) -> tuple[Instruction, ...]:
        """The instructions that read keys and values."""
        return tuple(each for each in self.instructions if each.is_kv)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that each lane reads, if every one of these instructions runs once."""
        return _kv_bytes(self.instructions)


def _kv_bytes(instructions: Collection[Instruction]) -> int:
    return sum(each.width for each in instructions if each.is_kv)


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def read_sass(text: str) -> Listing:
    """Read what ``nvdisasm -c -g`` prints of one kernel.

    Example:
        >>> listing = read_sass('''
        ... .L_x_1:
        ... //## File "/kernels/attend.py", line 75
        ...         /*0970*/              @!P6 LDG.E.128 R16, desc[UR22][R48.64] ;
        ...         /*0980*/               @P0 BRA `(.L_x_1) ;
        ... ''')
        >>> listing.labels, listing.count("global load", width=16), listing.instructions[0].place
        ({'.L_x_1': 0}, 1, ('attend.py', 75))
    """
    place: Place | None = None
    labels: dict[str, int] = {}
    found: list[Instruction] = []
    for line in text.splitlines():
        if where := re.match(r'\s*//## File "([^"]*)", line (\d+)', line):
            place = PurePosixPath(where[1]).name, int(where[2])
        elif label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(found)
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            found.append(_sass(code[1], place))
    return Listing(tuple(found), labels)


def _sass(text: str, place: Place | None) -> Instruction:
    operation = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
    name, *suffixes = operation.split(".")
    kind = _kind(SASS, operation, name)
    if name == "HFMA2" and re.search(r"-RZ, RZ", text):
        kind = ""  # nothing times nothing: a way to put a constant into a register
    width = 0
    if kind in ("global load", "async copy", "global store", "spill") and not name.startswith("U"):
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        width = next((widths[suffix] for suffix in suffixes if suffix in widths), 4)
    target = re.search(r"^BRA.*`\((\.L_\w+)\)", text[text.index(operation) :])
    return Instruction(text, kind, width, place, target[1] if target else "")


def read_amdgcn(text: str) -> Listing:
    """Read what LLVM writes for an AMD GPU: the first function in it.

    Example:
        >>> listing = read_amdgcn('''
        ... 	.file	1 "/kernels" "attend.py"
        ... attend:
        ... .LBB0_3:
        ... 	.loc	1 75 22    ; attend.py:75:22
        ... 	buffer_load_dwordx4 v[40:43], v11, s[44:47], 0 offen
        ... 	s_cbranch_scc0 .LBB0_3
        ... 	s_endpgm
        ... .Lfunc_end0:
        ... ''')
        >>> listing.labels, listing.count("global load", width=16), listing.instructions[0].place
        ({'.LBB0_3': 0}, 1, ('attend.py', 75))
    """
    files: dict[str, str] = {}
    for number, names in re.findall(r'^\s+\.file\s+(\d+)((?: "[^"]*")+)', text, re.MULTILINE):
        files[number] = PurePosixPath(re.findall(r'"([^"]*)"', names)[-1]).name
    place: Place | None = None
    labels: dict[str, int] = {}
    found: list[Instruction] = []
    for line in text.splitlines():
        if where := re.match(r"\s+\.loc\s+(\d+) (\d+)", line):
            place = (files.get(where[1], ""), int(where[2]))
        elif line.startswith(".Lfunc_end"):
            break
        elif label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(found)
        elif code := re.match(r"\s+([a-z][a-z0-9_]+(?:\s.*)?)$", line.split(";")[0].rstrip()):
            found.append(_amdgcn(code[1], place))
    return Listing(tuple(found), labels)


def _amdgcn(text: str, place: Place | None) -> Instruction:
    operation = text.split()[0]
    kind = _kind(AMDGCN, operation, operation)
    if kind == "global load" and text.split()[-1] == "lds":
        kind = "async copy"
    width = 0
    if kind in ("global load", "async copy", "global store", "spill"):
        widths = {"x4": 16, "x3": 12, "x2": 8, "dword": 4, "short": 2, "d16": 2, "byte": 1}
        width = next((size for name, size in widths.items() if name in operation), 0)
    target = re.match(r"s_c?branch\w*\s+(\.L\w+)", text)
    return Instruction(text, kind, width, place, target[1] if target else "")


def _kind(language: dict[str, str], operation: str, name: str) -> str:
    return next(
        (kind for kind, what in language.items() if re.fullmatch(what, operation) or re.fullmatch(what, name)), ""
    )


# --- which lines of source read keys and values -----------------------------------------------------------------------


def lines_that_load(ttir: str, arguments: Collection[str]) -> set[Place]:
    """Find the lines whose loads go through a pointer that comes from one of these arguments of a kernel.

    Args:
        ttir: the first text that Triton makes of a kernel, in which arguments still have their names.
        arguments: their names.
    """
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    pointers: dict[str, list[str]] = {}
    loads: list[tuple[str, str]] = []
    for line in ttir.splitlines():
        for name, first in re.findall(r"(%[\w#]+) = (%[\w#]+)(?=[,)])", line):  # what a loop carries
            pointers.setdefault(name, []).append(first)
        made = re.match(r"\s*(%\w+)(?::\d+)? = ([\w.]+) (.*)", line)
        if not made:
            continue
        name, operation, rest = made.groups()
        operands = re.findall(r"%[\w#]+", rest.split(" : ")[0])
        if operation in ("tt.load", "tt.descriptor_load", "tt.descriptor_gather"):
            loads.append((operands[0], re.findall(r"loc\((.*?)\)$", line)[0]))
        elif operation == "scf.for":
            carried = re.findall(r"%[\w#]+ = (%[\w#]+)(?=[,)])", rest)
            for index, first in enumerate(carried):
                pointers.setdefault(f"{name}#{index}" if len(carried) > 1 else name, []).append(first)
        elif operation == "arith.select":
            pointers[name] = operands[1:]
        else:
            pointers[name] = operands[:1]
    wanted = {f"%{name}" for name in arguments}
    found = [_place(place, places) for pointer, place in loads if wanted & set(_origins(pointer, pointers))]
    return {place for place in found if place}


def _origins(name: str, pointers: dict[str, list[str]]) -> Iterator[str]:
    """Follow a value back through all that it was made from."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            yield name
            waiting += pointers.get(name, [])


def _place(text: str, places: dict[str, str]) -> Place | None:
    """Resolve a location. Of an inlined function it is where it stands, not where it was called."""
    if where := re.match(r'"([^"]+)":(\d+):', text):
        return PurePosixPath(where[1]).name, int(where[2])
    inner = (_place(places[name], places) for name in re.findall(r"#loc\d*", text))
    return next((place for place in inner if place), None)
