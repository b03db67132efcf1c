"""Collectives of an HLO program: who takes part, and the bytes that a device sends if they run as rings."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from launch.planning.hlo_text import Computation, Instruction

Groups = tuple[tuple[int, ...], ...]

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclass(frozen=True)
class Collective:
    kind: str
    """One of ``KINDS``."""
    name: str
    op_name: str
    operand_bytes: float
    """Of one device and execution, all operands of a tuple together; so of the result."""
    result_bytes: float
    groups: Groups
    """Indices in the program's device order; of a permute the pairs from, to. Empty where it is between slices."""
    executions: float
    slices: int = 1
    """Above 1 for the part of a collective between TPU slices, among devices that have the same place in their slice:
    XLA takes the part inside the slices out, as collectives of their own."""

    @property
    def group_size(self) -> int:
        return self.slices if self.slices > 1 else max((len(group) for group in self.groups), default=1)

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends in one execution by the ring algorithm."""
        return self.volume * self.passes * ((1 - 1 / self.group_size) if self.kind in _RINGS else 1)

    @property
    def volume(self) -> float:
        """Bytes of the whole array of a gather, of the operand of others."""
        return self.result_bytes if self.kind == "all-gather" else self.operand_bytes

    @property
    def passes(self) -> int:
        """An all-reduce is a reduce-scatter and an all-gather."""
        return 2 if self.kind == "all-reduce" else 1


_RINGS = frozenset(("all-gather", "reduce-scatter", "all-reduce", "all-to-all"))


def kind_of(instruction: Instruction) -> str | None:
    """``all-gather`` of all-gather and all-gather-start, and so on; None of what starts no collective."""
    if instruction.opcode == "send" and _MEGASCALE.search(instruction.attributes):
        return _megascale_kind(instruction)
    opcode = "all-to-all" if instruction.operation == "ragged-all-to-all" else instruction.operation
    return opcode if opcode in KINDS else None


def collective(computation: Computation, instruction: Instruction, devices: int, executions: float) -> Collective:
    """Reads an instruction that ``kind_of`` has a kind for; ``devices`` take part where it names no groups."""
    kind = kind_of(instruction)
    if kind is None:
        raise ValueError(f"{instruction.opcode}: expected a collective")
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode == "send":
        size = operands[0].array.bytes
        slices = _megascale_slices(instruction)
        # The received array is another instruction's: its size follows.
        factor = {"all-gather": slices, "reduce-scatter": 1 / slices}.get(kind, 1)
        return Collective(kind, instruction.name, instruction.op_name, size, size * factor, (), executions, slices)
    operand_bytes = sum(array.bytes for operand in operands for array in operand.arrays)
    result_bytes = sum(array.bytes for array in computation.results(instruction))
    if kind == "all-reduce" and _scattered(computation, instruction):
        kind, result_bytes = "reduce-scatter", sum(a.bytes for a in computation.root.arrays)
    text = _groups_text(instruction)
    if kind == "collective-permute" and text == "{}":  # without pairs nobody sends: the result is zeros
        return Collective(kind, instruction.name, instruction.op_name, 0.0, result_bytes, (), executions)
    groups = replica_groups(text, devices)
    return Collective(kind, instruction.name, instruction.op_name, operand_bytes, result_bytes, groups, executions)


def _scattered(computation: Computation, instruction: Instruction) -> bool:
    """Whether it is a TPU's fused reduce-scatter, which is written as an all-reduce of which a slice is kept."""
    users = computation.users.get(instruction.name, ())
    return (
        computation.name.startswith("all-reduce-scatter")
        and bool(users)
        and all(user.opcode == "dynamic-slice" for user in users)
    )


def _groups_text(instruction: Instruction) -> str:
    """The value of ``replica_groups`` or ``source_target_pairs``."""
    found = re.search(
        r"(?:replica_groups|source_target_pairs)="
        r"(\{\{[\d,{} ]*\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
        r"|mesh\[[^\]]*\](?:, device_ids=\([^()]*(?:\([\d,]*\))?[^()]*\))? ?\{[^}]*\})",
        instruction.attributes,
    )
    return found.group(1) if found else "{}"


@cache
def replica_groups(text: str, devices: int) -> Groups:
    """Groups of ``{{0,1},{2,3}}``, ``[2,4]<=[4,2]T(1,0)`` or ``mesh['a'=2,'b'=4] {'b'}``; ``{}`` is all devices.

    In the last form a group runs over the named axes, the last fastest; ``'b':(2)4`` is the part of an axis of which
    the product of the parts before is 2, and its own size is 4 (openxla/xla, hlo/ir/mesh_and_axis.cc).
    """
    if text.startswith("{"):
        groups = re.findall(r"\{([\d, ]+)\}", text)
        return tuple(tuple(map(int, g.split(","))) for g in groups) or (tuple(range(devices)),)
    if text.startswith("["):
        ids = _iota(text)
        return tuple(tuple(row) for row in ids.reshape(-1, ids.shape[-1]).tolist())
    parts = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*)\))? ?\{([^}]*)\}", text)
    if not parts:
        raise ValueError(f"replica groups {text[:80]}: not a form of HLO")
    axes, listed, named = parts.groups()
    names = [axis.split("=")[0].strip("' ") for axis in axes.split(",")]
    sizes = [int(axis.split("=")[1]) for axis in axes.split(",")]
    ids = np.arange(math.prod(sizes))
    if listed:
        # [2,4]T(1,0): the numbers as [2,4], turned. [4,2]<=[2,4]T(1,0) says the same.
        source = listed if "<=" in listed else f"[{math.prod(sizes)}]<={listed}"
        ids = _iota(source).ravel() if "[" in listed else np.array([int(i) for i in re.findall(r"\d+", listed)])
    # Axes are cut into parts, so that a named part is an axis of its own.
    wanted: list[tuple[str, int, int]] = []
    for axis in filter(None, (a.strip() for a in named.split(","))):
        name, _, part = axis.partition(":")
        name = name.strip("' ")
        before, size = map(int, re.findall(r"\d+", part)) if part else (1, sizes[names.index(name)])
        wanted.append((name, before, size))
    shape: list[int] = []
    where: dict[tuple[str, int, int], list[int]] = {w: [] for w in wanted}
    for name, whole in zip(names, sizes, strict=True):
        cuts = {1, whole, *(b for n, b, _ in wanted if n == name), *(b * s for n, b, s in wanted if n == name)}
        ordered = sorted(cuts)
        for low, high in pairwise(ordered):
            for n, before, size in wanted:
                if n == name and before <= low and high <= before * size:
                    where[n, before, size].append(len(shape))
            shape.append(high // low)
    last = [i for w in wanted for i in where[w]]
    first = [i for i in range(len(shape)) if i not in last]
    size = math.prod(shape[i] for i in last)
    rows = ids.reshape(shape).transpose(first + last).reshape(-1, size)
    return tuple(tuple(row) for row in rows.tolist())


def _iota(text: str) -> np.ndarray:
    shape, _, rest = text.partition("<=")
    source, _, order = rest.partition("T")
    numbers = [[int(n) for n in re.findall(r"\d+", part)] for part in (shape, source, order)]
    ids = np.arange(math.prod(numbers[1])).reshape(numbers[1])
    return (ids.transpose(numbers[2]) if numbers[2] else ids).reshape(numbers[0])


def _megascale_kind(send: Instruction) -> str:
    found = _MEGASCALE.search(send.attributes)
    kind = found.group(1).lower().replace("_", "-") if found else ""
    return kind if kind in KINDS else "collective-permute"


def _megascale_slices(send: Instruction) -> int:
    """Of ``{1,2}x{0:3}``: slices 1 and 2, each of their devices 0 to 3."""
    found = re.search(r'_xla_megascale_target="\{([^}]*)\}', send.attributes)
    members = found.group(1).split(",") if found else ["", ""]
    ends = [[int(n) for n in re.findall(r"\d+", member)] for member in members]
    return max(2, sum(e[1] - e[0] + 1 if len(e) == 2 else 1 for e in ends))
