"""What one device does in one run of an optimized HLO module: matrix FLOPs, bytes of HBM, collectives.

Bodies of loops count as often as they run, of a conditional its costliest branch, called and asynchronous computations
where they start. Elementwise arithmetic has no FLOPs here: it is bound by its bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from launch.planning.collectives import Collective, collective, kind_of
from launch.planning.hlo_bytes import FREE_CUSTOM_CALLS, Meter
from launch.planning.hlo_flops import GEMM, custom_call_target, matrix_flops
from launch.planning.hlo_loops import Arguments, body_arguments, call_arguments, trip_count
from launch.planning.hlo_text import Computation, Instruction, Module, parse


@dataclass(frozen=True)
class Work:
    """One instruction that the device runs as a whole, a fusion with its insides."""

    name: str
    opcode: str
    op_name: str
    """Where in the user's program it comes from."""
    count: float
    """Executions."""
    flops: dict[str, float]
    """Of one execution by the factors' type (see ``matrix_flops``)."""
    hbm_bytes: float
    """Of one execution, as of the host's."""
    host_bytes: float
    beside: bool = False
    """Whether others run meanwhile: a copy that is started and waited for later, a collective."""


@dataclass(frozen=True)
class Opaque:
    """A kernel whose FLOPs the text does not tell: fused attention of cuDNN, Mosaic kernels of a TPU."""

    name: str
    """Of the ``Work`` that it is, or is a part of."""
    target: str
    op_name: str
    operands: tuple[str, ...]
    """As ``bf16[16,24,512,64]``."""
    results: tuple[str, ...]
    count: float


@dataclass(frozen=True)
class Counts:
    """Of one device and one run of the module."""

    devices: int
    """That ``Collective.groups`` number: of several TPU slices, those of one slice."""
    work: tuple[Work, ...]
    collectives: tuple[Collective, ...]
    opaque: tuple[Opaque, ...]
    uncounted_loops: tuple[str, ...]
    """Loops whose runs the text does not tell: counted once."""

    @property
    def flops_by_type(self) -> dict[str, float]:
        total: defaultdict[str, float] = defaultdict(float)
        for work in self.work:
            for type_, flops in work.flops.items():
                total[type_] += flops * work.count
        return dict(total)

    @property
    def flops(self) -> float:
        return sum(self.flops_by_type.values())

    @property
    def hbm_bytes(self) -> float:
        return sum(work.hbm_bytes * work.count for work in self.work)

    @property
    def host_bytes(self) -> float:
        return sum(work.host_bytes * work.count for work in self.work)

    @property
    def wire_bytes(self) -> dict[str, float]:
        """Bytes that the device sends by the ring algorithm, by kind of collective; a kind it has none of is absent."""
        total: defaultdict[str, float] = defaultdict(float)
        for one in self.collectives:
            total[one.kind] += one.wire_bytes * one.executions
        return dict(total)

    def supply(self, flops: Callable[[Opaque], tuple[str, float]]) -> Counts:
        """The counts with the FLOPs of opaque kernels: ``flops`` gives the factors' type and FLOPs of one execution."""
        supplied: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        # A kernel that is called from several places is one.
        for opaque in {(o.name, o.op_name, o.results): o for o in self.opaque}.values():
            type_, amount = flops(opaque)
            supplied[opaque.name][type_] += amount
        work = tuple(
            replace(w, flops={t: w.flops.get(t, 0.0) + more.get(t, 0.0) for t in {**w.flops, **more}}) if more else w
            for w, more in ((w, supplied.get(w.name)) for w in self.work)
        )
        return replace(self, work=work, opaque=())


def count(text: str) -> Counts:
    """Counts of a module's text; ``ValueError`` names what is no HLO."""
    module = parse(text)
    counter = _Counter(module, Meter(module))
    counter.run(module.entry, 1.0, {})
    return Counts(
        module.devices,
        tuple(counter.work),
        tuple(counter.collectives),
        tuple(counter.opaque),
        tuple(dict.fromkeys(counter.uncounted)),
    )


@dataclass
class _Counter:
    module: Module
    meter: Meter
    work: list[Work] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    opaque: list[Opaque] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)

    def run(self, computation: Computation, times: float, arguments: Arguments, beside: bool = False) -> None:
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                runs = trip_count(self.module, computation, instruction, arguments)
                if runs is None:
                    self.uncounted.append(instruction.name)
                known = body_arguments(self.module, computation, instruction, arguments)
                self.run(self._called(instruction, "body"), times * (1 if runs is None else runs), known, beside)
            elif instruction.opcode == "conditional":
                self._costliest(instruction, times)
            elif instruction.operation in ("call", "async"):
                known = call_arguments(self.module, computation, instruction, arguments)
                apart = beside or instruction.operation == "async"
                self.run(self._called(instruction, "calls", "to_apply"), times, known, apart)
            else:
                self._one(computation, instruction, times, beside)

    def _called(self, instruction: Instruction, *roles: str) -> Computation:
        return self.module.computations[instruction.computation(*roles) or ""]

    def _one(self, computation: Computation, instruction: Instruction, times: float, beside: bool) -> None:
        flops: defaultdict[str, float] = defaultdict(float)
        kernels = len(self.opaque)
        self._inside(computation, instruction, times, flops, instruction.name)
        traffic = self.meter.traffic(computation, instruction)
        if flops or traffic.hbm or traffic.host or len(self.opaque) > kernels:
            name, opcode, told = instruction.name, instruction.opcode, instruction.op_name
            apart = beside or opcode.endswith("-start") or kind_of(instruction) is not None
            self.work.append(Work(name, opcode, told, times, dict(flops), traffic.hbm, traffic.host, apart))

    def _inside(
        self,
        computation: Computation,
        instruction: Instruction,
        times: float,
        flops: defaultdict[str, float],
        owner: str,
    ) -> None:
        """Adds the products, kernels and collectives of an instruction, and of those fused into it."""
        if instruction.operation == "fusion":
            fused = self._called(instruction, "calls")
            for each in fused.instructions.values():
                self._inside(fused, each, times, flops, owner)
        product = matrix_flops(computation, instruction)
        if product:
            flops[product[0]] += product[1]
        if kind_of(instruction):
            self.collectives.append(collective(computation, instruction, self.module.devices, times))
        if self._is_opaque(instruction):
            operands = (a for name in instruction.operands for a in computation.instructions[name].arrays)
            shapes = tuple(map(str, operands)), tuple(map(str, computation.results(instruction)))
            self.opaque.append(Opaque(owner, custom_call_target(instruction), instruction.op_name, *shapes, times))

    @staticmethod
    def _is_opaque(instruction: Instruction) -> bool:
        target = custom_call_target(instruction) if instruction.operation == "custom-call" else ""
        return bool(target) and target not in GEMM and target not in FREE_CUSTOM_CALLS

    def _costliest(self, instruction: Instruction, times: float) -> None:
        """Takes the branch that takes longest on a chip of about 300 FLOPs and a tenth of a sent byte a byte of HBM."""
        branches = []
        for name in instruction.branches:
            branch = _Counter(self.module, self.meter)
            branch.run(self.module.computations[name], times, {})
            branches.append(branch)
        most = max(branches, key=_Counter._weight)
        self.work += most.work
        self.collectives += most.collectives
        self.opaque += most.opaque
        self.uncounted += most.uncounted

    def _weight(self) -> float:
        work = sum(w.count * (w.hbm_bytes + sum(w.flops.values()) / 300) for w in self.work)
        return work + 10 * sum(c.executions * c.wire_bytes for c in self.collectives)
