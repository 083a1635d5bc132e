"""How many bytes a compiled step moves between a device and its main memory.

Every scheduled instruction reads its operands and writes its result once (what a TPU keeps in VMEM is not counted),
times the number of rounds of the loops around it. An operand that a fusion only slices counts as the slices, and one
that it updates in place as the update: a scanned block takes its own layer out of the stack, not the whole stack. What
a kernel reads twice, it is counted for once.
"""

import functools

from sora_jax.planning.hlo import Computation, Instruction, Module, shape_bytes

FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id", "iota",
)  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")
VIEWS = ("bitcast", "copy", "reshape", "convert", "transpose")


def memory_traffic(module: Module) -> float:
    """Bytes that one execution reads and writes in main memory, on one device. Of a conditional's branches (attention's
    tables of several widths) one runs: the one that moves most is counted."""

    @functools.cache
    def of(name: str) -> float:
        computation, total = module.computations[name], 0.0
        for instruction in computation.instructions:
            called = module.called(instruction)
            if instruction.opcode == "while":
                total += float(module.trip_count(instruction) or 1) * sum(map(of, called))
            elif instruction.opcode == "call":
                total += sum(map(of, called))
            elif instruction.opcode == "conditional":
                total += max(map(of, called), default=0.0)
            else:
                total += _moved(module, computation, instruction)
        return total

    return of(module.entry)


def _moved(module: Module, computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0.0
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _operand_bytes(computation, instruction, 1)
    if instruction.opcode in SLICES:
        return 2 * shape_bytes(instruction.shape, main_memory_only=True)
    if instruction.opcode == "fusion":
        return _moved_by_fusion(computation, instruction, module.computations[module.called(instruction)[0]])
    operands = sum(_operand_bytes(computation, instruction, i) for i in range(len(instruction.operands)))
    result = shape_bytes(instruction.shape, main_memory_only=True)
    if instruction.opcode.endswith("-start") and instruction.shape.startswith("("):
        result = max(0.0, result - operands)  # a transfer under way is a tuple of its source and its destination
    return operands + result


def _moved_by_fusion(computation: Computation, fusion: Instruction, body: Computation) -> float:
    total, updated = 0.0, 0.0
    for parameter in (i for i in body.instructions if i.opcode == "parameter"):
        place = int(parameter.inside)
        whole = _operand_bytes(computation, fusion, place)
        read, in_place = _used(body, parameter)
        if in_place:
            updated += whole
        total += whole if read is None else min(whole, read)
    return total + max(0.0, shape_bytes(fusion.shape, main_memory_only=True) - updated)


def _used(body: Computation, parameter: Instruction) -> tuple[float | None, bool]:
    """(bytes of a parameter that its fusion uses, None for all of them; whether it is updated in place)."""
    used, in_place, names = 0.0, False, {parameter.name}
    for instruction in body.instructions:
        if not names & set(instruction.operands):
            continue
        if instruction.opcode in SLICES:
            used += shape_bytes(instruction.shape)
        elif instruction.opcode == "dynamic-update-slice" and instruction.operands[0] in names:
            update = body.by_name.get(instruction.operands[1])
            used, in_place = used + (shape_bytes(update.shape) if update else 0.0), True
        elif instruction.opcode in VIEWS and len(instruction.operands) == 1:
            names.add(instruction.name)
        else:
            return None, False
    return used, in_place


def _operand_bytes(computation: Computation, instruction: Instruction, place: int) -> float:
    if place >= len(instruction.operands):
        return 0.0
    operand = computation.by_name.get(instruction.operands[place])
    return shape_bytes(operand.shape, main_memory_only=True) if operand else 0.0
