"""Optimized HLO as text, read back: computations, how often each runs, and the bytes of shapes.

XLA offers no other view of what its schedule holds (`cost_analysis` counts a scanned block once, and knows nothing of
collectives). Only what a plan needs is read: names, opcodes, operands, and the attributes as text.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

DTYPE_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
"""Bytes of a value; other names tell their bits (`f32`, `u8`), and all of `f8e4m3fn` and its kind have one byte."""

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{?$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
_FAST_MEMORY = re.compile(r"S\([1-9]\d*\)")


@dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    """what stands between the opcode's brackets: the value, for a constant"""
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of `pattern` in the attributes."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions) if i.is_root)


@dataclass(frozen=True)
class Module:
    """A program: its computations, and the one that it starts with."""

    computations: dict[str, Computation]
    entry: str

    @cached_property
    def times_run(self) -> dict[str, float]:
        """Computation -> how often one execution of the program runs it, those within fusions included.

        A loop whose end depends on data counts as one round (`unknown_loops` says how many there are).
        """
        times: dict[str, float] = defaultdict(float)
        stack = [(self.entry, 1.0)]
        while stack:
            name, count = stack.pop()
            times[name] += count
            for instruction in self.computations[name].instructions:
                rounds = float(self.trip_count(instruction) or 1) if instruction.opcode == "while" else 1.0
                stack += [(called, count * rounds) for called in self.called(instruction)]
        return dict(times)

    @cached_property
    def unknown_loops(self) -> int:
        """Loops that are reached and whose number of rounds depends on data."""
        whiles = (i for name in self.times_run for i in self.computations[name].instructions if i.opcode == "while")
        return sum(self.trip_count(i) is None for i in whiles)

    def called(self, instruction: Instruction) -> list[str]:
        """Computations that an instruction runs. Reducers of single values (of a reduction, a sort) are left out."""
        if instruction.opcode not in ("while", "fusion", "call", "conditional", "custom-call", "async-start"):
            return []
        names = _CALLED.findall(instruction.attributes)
        for branches in _BRANCHES.findall(instruction.attributes):
            names += _NAME.findall(branches)
        return [name for name in names if name in self.computations]

    def trip_count(self, loop: Instruction) -> int | None:
        """Rounds of a `while`: as XLA noted them, or from a condition `i < constant`, as scans have; else None."""
        if noted := loop.attribute(_TRIP_COUNT.pattern):
            return int(noted)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)") or ""]
        test = condition.root
        if test.opcode == "fusion":  # the comparison alone, wrapped
            inner = self.computations[self.called(test)[0]].root
            if inner.opcode != "compare":
                return None
            direction = inner.attribute(r"direction=(\w+)")
        else:
            direction = test.attribute(r"direction=(\w+)")
        limits = [condition.by_name[name] for name in test.operands if name in condition.by_name]
        constants = [int(i.inside) for i in limits if i.opcode == "constant" and i.inside.lstrip("-").isdigit()]
        return constants[0] if direction == "LT" and len(constants) == 1 else None


def parse(text: str) -> Module:
    """The program of `compiled.as_text()`."""
    computations, entry, name, lines = {}, "", "", []
    for line in text.splitlines():
        if line == "}":  # and not "}}, …": a kernel's metadata may run over lines of its own
            computations[name] = Computation(name, tuple(lines))
            name, lines = "", []
        elif not line.startswith(" ") and line.endswith("{") and (opened := _COMPUTATION.match(line)):
            name, lines = opened.group(2), []
            entry = name if opened.group(1) else entry
        elif name and (found := _INSTRUCTION.match(line)):
            lines.append(_instruction(line, found))
    return Module(computations, entry)


def _instruction(line: str, found: re.Match[str]) -> Instruction:
    start = found.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    assert opcode, f"an instruction without an opcode: {line[:200]}"
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    return Instruction(
        found.group(2),
        line[start:end],
        opcode.group(1),
        tuple(_NAME.findall(inside)),
        inside,
        line[close + 1 :],
        bool(found.group(1)),
    )


def _closing(line: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return place
    return len(line)


def shape_bytes(shape: str, main_memory_only: bool = False) -> float:
    """Bytes of a shape as written, tuples summed; with `main_memory_only` without what is kept in fast memory."""
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if not (main_memory_only and _FAST_MEMORY.search(layout)):
            total += _dtype_bytes(dtype) * math.prod(int(n) for n in dims.split(",") if n)
    return total


def _dtype_bytes(dtype: str) -> float:
    if dtype in DTYPE_BYTES:
        return DTYPE_BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits.group(1)) / 8 if bits else 0.0
