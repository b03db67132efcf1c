"""Reads the text of an optimized HLO module (``compiled.as_text()``) into computations, instructions and array shapes.

Grammar: openxla.org/xla/shapes and the printer in xla/hlo/ir. Only what a cost model asks for is interpreted; the rest
of an instruction stays text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

HBM = 0
HOST = 5
"""Memory spaces: none written or ``S(0)`` is HBM, ``S(5)`` the host's memory, all others are on the chip."""


@dataclass(frozen=True)
class Array:
    """One array of an instruction's type, as ``bf16[4,256]{1,0:T(8,128)(2,1)S(1)}``."""

    type: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    """Dimensions from the one that varies fastest in memory; empty if the text has no layout."""
    tile: tuple[int, ...]
    """Of the fastest dimensions, the last the very fastest; empty if not tiled."""
    space: int

    @cached_property
    def elements(self) -> int:
        return math.prod(self.dims)

    @cached_property
    def bytes(self) -> float:
        """Of its values."""
        return self.elements * width(self.type)

    @cached_property
    def stored_bytes(self) -> float:
        """In memory, where the fastest dimensions are filled up to whole tiles."""
        sizes = [self.dims[i] for i in self.order]
        for size, axis in zip(reversed(self.tile), range(len(sizes)), strict=False):
            sizes[axis] = -(-sizes[axis] // size) * size
        return math.prod(sizes) * width(self.type) if self.order else self.bytes

    def __str__(self) -> str:
        return f"{self.type}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    arguments: str
    """The text between the opcode's brackets: of constants their value, of parameters their number."""
    attributes: str
    """The text after the brackets."""

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of the result; those of a tuple, however nested, in order."""
        return _arrays(self.type)

    @property
    def operation(self) -> str:
        """The opcode, of an asynchronous start that of what it starts."""
        return self.opcode.removesuffix("-start")

    @property
    def array(self) -> Array:
        """The result, of instructions that have one array."""
        return self.arrays[0]

    @cached_property
    def op_name(self) -> str:
        """Where in the user's program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @cached_property
    def backend_config(self) -> Mapping[str, Any]:
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        try:
            value, _ = json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))
        except json.JSONDecodeError:  # protocol buffers as text, of other backends
            return {}
        return value if isinstance(value, dict) else {}

    def computation(self, *roles: str) -> str | None:
        """The computation it names as ``calls``, ``body`` or the like; the first of those roles that it has."""
        for role in roles:
            found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
            if found:
                return found.group(1)
        return None

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """Computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return tuple(re.findall(r"%?([\w.\-]+)", listed.group(1)))
        both = (self.computation("true_computation"), self.computation("false_computation"))
        return tuple(name for name in both if name is not None)

    def integers(self, attribute: str) -> tuple[int, ...]:
        """Of an attribute like ``dimensions={0,1}``; none where it is absent."""
        found = re.search(rf"\b{attribute}=\{{([\d, ]*)\}}", self.attributes)
        return tuple(map(int, re.findall(r"\d+", found.group(1)))) if found else ()


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    """By name, each after its operands."""
    root: Instruction

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions it reads, each once."""
        return (self.instructions[name] for name in dict.fromkeys(instruction.operands))

    def results(self, instruction: Instruction) -> tuple[Array, ...]:
        """Arrays of the result; of an asynchronous start those that its end gives, as its own type lists the operands
        too. Without its end in this computation: the second of (operands, results, context)."""
        if not instruction.opcode.endswith("-start"):
            return instruction.arrays
        for user in self.users.get(instruction.name, ()):
            if user.opcode.endswith("-done"):
                return user.arrays
        operands = sum(len(operand.arrays) for operand in map(self.instructions.__getitem__, instruction.operands))
        context = sum(array.type == "u32" and not array.dims for array in instruction.arrays[operands:])
        return instruction.arrays[operands : len(instruction.arrays) - context] or instruction.arrays

    @cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        return {int(i.arguments): i for i in self.instructions.values() if i.opcode == "parameter"}

    @cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                found.setdefault(name, []).append(instruction)
        return {name: tuple(users) for name, users in found.items()}


@dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: Computation
    devices: int
    """That run one copy of it together: replicas times partitions. Of several TPU slices, the devices of one slice."""


def parse(text: str) -> Module:
    """The computations of a module; ``ValueError`` says which line is none of HLO."""
    text = re.sub(r"/\*index=\d+\*/", "", text)
    computations: dict[str, Computation] = {}
    entry, name, entered = "", "", False
    instructions: dict[str, Instruction] = {}
    root = ""
    for line in _lines(text):
        if entered and _END.fullmatch(line):
            computations[name] = Computation(name, instructions, instructions[root or next(reversed(instructions))])
            entered = False
        elif entered and line.strip():
            instruction, is_root = _instruction(line)
            instructions[instruction.name] = instruction
            root = instruction.name if is_root else root
        elif line.endswith("{") and not line.startswith((" ", "HloModule")):
            head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
            if head:
                name, entered, instructions, root = head.group(2), True, {}, ""
                entry = name if head.group(1) else entry
    if entry not in computations:
        raise ValueError(f"text of {len(text)} characters: expected an HLO module with an ENTRY computation")
    head_line = text[: text.find("\n")]
    sizes = [int(n) for n in re.findall(r"\b(?:replica_count|num_partitions)=(\d+)", head_line)]
    return Module(computations, computations[entry], math.prod(sizes))


_END = re.compile(r'\}(, execution_thread="[^"]*")?')
_NAME = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_PLAIN_TYPE = re.compile(r"[a-z]\w*\[[^\]]*\](?:\{[^}]*\})?")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_BRACKET = re.compile(r"[()]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")


def _lines(text: str) -> Iterator[str]:
    """Lines, each with those that go on with it: attributes of Mosaic kernels are written over several."""
    whole = ""
    for line in text.splitlines():
        if _NAME.match(line) or not whole.startswith(" ") or _END.fullmatch(line):
            if whole:
                yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(line: str) -> tuple[Instruction, bool]:
    head = _NAME.match(line)
    if not head:
        raise ValueError(f"not an HLO instruction: {line.strip()[:200]}")
    start = head.end()
    plain = _PLAIN_TYPE.match(line, start)
    end = _closing(line, start) if line[start] == "(" else plain.end() if plain else start
    opcode = _OPCODE.match(line, end)
    if end == start or not opcode:
        raise ValueError(f"not an HLO instruction: {line.strip()[:200]}")
    close = _closing(line, opcode.end() - 1)
    arguments = line[opcode.end() : close - 1]
    operands = () if opcode.group(1) in ("constant", "parameter") else tuple(_OPERAND.findall(arguments))
    instruction = Instruction(head.group(2), opcode.group(1), line[start:end], operands, arguments, line[close:])
    return instruction, bool(head.group(1))


def _closing(line: str, start: int) -> int:
    """The position after the bracket that closes the one at ``start``."""
    depth = 0
    for bracket in _BRACKET.finditer(line, start):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return bracket.end()
    raise ValueError(f"brackets that do not close: {line.strip()[:200]}")


@cache
def _arrays(type_: str) -> tuple[Array, ...]:
    return tuple(_array(*found.groups()) for found in _ARRAY.finditer(type_))


def _array(type_: str, dims: str, layout: str | None) -> Array:
    order, _, rest = (layout or "").partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Array(
        type_,
        tuple(map(int, re.findall(r"\d+", dims))),
        tuple(map(int, re.findall(r"\d+", order))),
        tuple(map(int, tile.group(1).split(","))) if tile else (),
        int(space.group(1)) if space else HBM,
    )


@cache
def width(type_: str) -> float:
    """Bytes of a value: ``bf16`` 2, ``s4`` a half, ``f8e4m3fn`` 1; nothing of tokens and opaque values."""
    if type_ in ("token", "opaque"):
        return 0
    if type_ == "pred":
        return 1
    bits = re.match(r"(?:bf|[a-z])(\d+)", type_)
    if not bits:
        raise ValueError(f"{type_}: not an element type of HLO")
    return int(bits.group(1)) / 8
