"""Bytes that an instruction of an HLO program moves to and from HBM, and to and from the host.

An instruction reads each operand once and writes its result; a fusion reads what its insides use of its parameters, so
a slice only itself, and a dynamic-update-slice writes only the update, in place. Arrays on the chip (VMEM, CMEM) move
nothing. Tiles count with their filling, as they lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from launch.planning.collectives import kind_of
from launch.planning.hlo_flops import custom_call_target
from launch.planning.hlo_text import HBM, HOST, Array, Computation, Instruction, Module


@dataclass(frozen=True)
class Traffic:
    """Bytes."""

    hbm: float
    host: float


NOTHING = Traffic(0, 0)

_FREE = frozenset(
    (
        *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "replica-id"),
        *("add-dependency", "domain", "opt-barrier", "optimization-barrier"),
        # What these run is counted by itself.
        *("while", "conditional", "call", "async"),
    )
)
FREE_CUSTOM_CALLS = frozenset(
    (
        *("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"),
        *("PrepareAsyncCallStart", "PrepareAsyncCallDone", "Sharding"),
    )
)
_WHOLE = frozenset(("dot", "convolution", "custom-call", "scatter", "sort"))
_SLICES = frozenset(("slice", "dynamic-slice", "gather"))
_ALIAS = "output_to_operand_aliasing={{}: (0, {})}"
"""Of a fusion whose result lies where its first operand does."""


class Meter:
    """Measures the instructions of one module; what it finds of a fused computation it keeps."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._inside = cache(self._measure_inside)

    def traffic(self, computation: Computation, instruction: Instruction) -> Traffic:
        opcode = instruction.operation
        if opcode in _FREE or (opcode.endswith(("-done", "-update")) and opcode != "recv-done"):
            return NOTHING
        if opcode == "custom-call" and custom_call_target(instruction) in FREE_CUSTOM_CALLS:
            return NOTHING
        results = computation.results(instruction)
        operands = [array for operand in computation.operands(instruction) for array in operand.arrays]
        if opcode == "recv":
            return NOTHING
        if opcode in ("send", "recv-done"):
            moved = operands[0] if opcode == "send" else results[0]
            return _sum((moved.stored_bytes, moved))
        if opcode == "fusion":
            return self._fusion(computation, instruction)
        if opcode in _SLICES:
            read = min(results[0].stored_bytes, operands[0].stored_bytes)
            return _sum((read, operands[0]), (results[0].stored_bytes, results[0]))
        if opcode in ("dynamic-update-slice", "scatter"):
            update = computation.instructions[instruction.operands[1 if opcode[0] == "d" else -1]].array
            return _sum((update.stored_bytes, update), (update.stored_bytes, results[0]))
        if opcode == "custom-call" and "$" in custom_call_target(instruction):
            # cuBLAS and cuDNN return their workspace too.
            results = tuple(a for a in results if not (a.type in ("s8", "u8") and len(a.dims) == 1)) or results[:1]
        return _sum(*((array.stored_bytes, array) for array in (*operands, *results)))

    def _fusion(self, computation: Computation, fusion: Instruction) -> Traffic:
        called = self._module.computations[fusion.computation("calls") or ""]
        read, written = self._inside(called.name)
        moved = []
        seen: set[str] = set()
        for name in fusion.operands:
            operand = computation.instructions[name].arrays
            if operand and name not in seen:
                seen.add(name)
                uses = [read.get(i, 0.0) for i, other in enumerate(fusion.operands) if other == name]
                moved += [(min(1.0, sum(uses)) * array.stored_bytes, array) for array in operand]
        moved += [
            (part * array.stored_bytes, array) for part, array in zip(written, computation.results(fusion), strict=True)
        ]
        return _sum(*moved)

    def _measure_inside(self, name: str) -> tuple[Mapping[int, float], tuple[float, ...]]:
        """Of a fused computation: the part of each parameter that it reads, and of each result that it writes."""
        computation = self._module.computations[name]
        root = computation.root
        outputs = [computation.instructions[o] for o in root.operands] if root.opcode == "tuple" else [root]
        needed: dict[str, float] = {}
        in_place: set[str] = set()
        written: list[float] = []
        for output in outputs:
            update = _in_place(computation, output)
            if update is None:
                written += [1.0] * len(output.arrays)
            else:
                in_place.add(update.name)
                part = computation.instructions[update.operands[1]].array.elements / max(1, update.array.elements)
                written.append(part)
            needed[output.name] = _elements(output)
        for instruction in reversed(list(computation.instructions.values())):
            want = min(needed.get(instruction.name, 0.0), _elements(instruction))
            if want > 0 and instruction.opcode != "tuple":
                for operand, amount in self._needs(computation, instruction, want, instruction.name in in_place):
                    needed[operand.name] = needed.get(operand.name, 0.0) + amount
        read = {
            number: min(1.0, needed.get(parameter.name, 0.0) / max(1, _elements(parameter)))
            for number, parameter in computation.parameters.items()
        }
        return read, tuple(written)

    def _needs(
        self, computation: Computation, of: Instruction, want: float, in_place: bool
    ) -> Iterable[tuple[Instruction, float]]:
        """Elements of its operands that an instruction reads to give so many of its own."""
        operands = [computation.instructions[name] for name in of.operands]
        share = want / max(1, _elements(of))
        for position, operand in enumerate(operands):
            whole = _elements(operand)
            if of.opcode in _SLICES or of.opcode in ("pad", "dynamic-update-slice"):
                amount = min(whole, want) if position == 0 else whole
                if of.opcode == "dynamic-update-slice" and position == 0:
                    amount = 0 if in_place else max(0.0, want - operands[1].array.elements)
            elif of.opcode == "fusion":
                inside, _ = self._inside(of.computation("calls") or "")
                amount = inside.get(position, 0.0) * share * whole
            elif of.opcode in _WHOLE or kind_of(of):
                amount = whole
            elif of.opcode in ("reduce", "concatenate") or whole > _elements(of):
                amount = share * whole
            else:
                amount = min(whole, want)
            yield operand, amount


def _in_place(computation: Computation, output: Instruction) -> Instruction | None:
    """The dynamic-update-slice that an output of a fusion is, if what it updates is a parameter.

    A TPU7x's fusions read the parameter in other tiles, by a fusion inside that says that it shares the memory.
    """
    while output.opcode == "bitcast":
        output = computation.instructions[output.operands[0]]
    if output.opcode != "dynamic-update-slice":
        return None
    updated = computation.instructions[output.operands[0]]
    while updated.opcode == "bitcast" or (updated.opcode == "fusion" and _ALIAS in updated.attributes):
        updated = computation.instructions[updated.operands[0]]
    return output if updated.opcode == "parameter" else None


def _elements(instruction: Instruction) -> float:
    return float(sum(array.elements for array in instruction.arrays))


def _sum(*moved: tuple[float, Array]) -> Traffic:
    return Traffic(
        sum(size for size, array in moved if array.space == HBM),
        sum(size for size, array in moved if array.space == HOST),
    )
