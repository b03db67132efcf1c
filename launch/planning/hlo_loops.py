"""How often a while loop of an HLO module runs.

GPU and CPU programs say so (``known_trip_count``). A TPU program does not: its counter's start, step and limit are
found by evaluating the few scalar instructions that they depend on, also where XLA moved constants out of the loop and
hands them in through its tuple.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from launch.planning.hlo_text import Computation, Instruction, Module

Tuple = Mapping[int, int]
"""Known integer elements of a tuple by their index."""
Arguments = Mapping[int, "int | Tuple"]
"""Known values of a computation's parameters by their number."""

_CHECKED_ONE_BY_ONE = 64
_MOST = 2**40


def trip_count(module: Module, computation: Computation, loop: Instruction, arguments: Arguments) -> int | None:
    """Runs of the loop's body, or None where the text does not tell."""
    known = loop.backend_config.get("known_trip_count")
    if known:
        return int(known["n"])
    start = _start(module, computation, loop, arguments)
    condition = module.computations[loop.computation("condition") or ""]
    steps = {
        index: after - start[index]
        for index in start
        if (after := _next(module, loop, start, index)) is not None
        # A counter advances by the same from elsewhere: else it is none.
        and _next(module, loop, {**start, index: start[index] + 7}, index) == after + 7
    }

    def goes_on(runs: int) -> bool | None:
        state = {index: start[index] + runs * step for index, step in steps.items()}
        value = _evaluate(module, condition, condition.root, {0: state})
        return None if value is None else bool(value)

    for runs in range(_CHECKED_ONE_BY_ONE):
        again = goes_on(runs)
        if again is None:
            return None
        if not again:
            return runs
    low, high = _CHECKED_ONE_BY_ONE - 1, _CHECKED_ONE_BY_ONE
    while goes_on(high):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if goes_on(middle) else (low, middle)
    return high


def body_arguments(module: Module, computation: Computation, loop: Instruction, arguments: Arguments) -> Arguments:
    """What the loop's body knows of its tuple in every run: the elements that it passes on unchanged."""
    start = _start(module, computation, loop, arguments)
    fixed = {}
    for index, value in start.items():
        moved = {**start, index: value + 7}
        if _next(module, loop, start, index) == value and _next(module, loop, moved, index) == value + 7:
            fixed[index] = value
    return {0: fixed}


def call_arguments(module: Module, computation: Computation, call: Instruction, arguments: Arguments) -> Arguments:
    """What a called computation knows of its parameters."""
    found: dict[int, int | Tuple] = {}
    for number, name in enumerate(call.operands):
        value = _evaluate(module, computation, computation.instructions[name], arguments)
        if value is not None:
            found[number] = value
    return found


def _start(module: Module, computation: Computation, loop: Instruction, arguments: Arguments) -> Tuple:
    value = _evaluate(module, computation, computation.instructions[loop.operands[0]], arguments)
    return {} if value is None or isinstance(value, int) else value


def _next(module: Module, loop: Instruction, state: Tuple, index: int) -> int | None:
    body = module.computations[loop.computation("body") or ""]
    if body.root.opcode != "tuple":
        return None
    value = _evaluate(module, body, body.instructions[body.root.operands[index]], {0: state})
    return value if isinstance(value, int) else None


_PASSED_ON = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "opt-barrier", "optimization-barrier")


def _evaluate(module: Module, computation: Computation, of: Instruction, arguments: Arguments) -> int | Tuple | None:
    """An integer, the known integers of a tuple, or None: not known, or not an integer scalar."""
    operands = [computation.instructions[name] for name in of.operands]
    if of.opcode == "parameter":
        return arguments.get(int(of.arguments))
    if of.opcode == "get-tuple-element":
        index = int((re.search(r"index=(\d+)", of.attributes) or [0, 0])[1])
        if operands[0].opcode == "tuple":
            element = computation.instructions[operands[0].operands[index]]
            return _evaluate(module, computation, element, arguments)
        whole = _evaluate(module, computation, operands[0], arguments)
        return None if whole is None or isinstance(whole, int) else whole.get(index)
    if of.opcode == "tuple":
        values = ((i, _evaluate(module, computation, operand, arguments)) for i, operand in enumerate(operands))
        return {i: value for i, value in values if isinstance(value, int)}
    if of.opcode in _PASSED_ON:
        return _evaluate(module, computation, operands[0], arguments)
    if not of.arrays or of.array.dims or of.array.type[0] not in "sup":
        return None
    if of.opcode == "constant":
        literal = of.arguments.strip()
        return {"true": 1, "false": 0}.get(literal, int(literal) if re.fullmatch(r"-?\d+", literal) else None)
    if of.opcode in ("fusion", "call"):
        called = module.computations[of.computation("calls", "to_apply") or ""]
        return _evaluate(module, called, called.root, call_arguments(module, computation, of, arguments))
    if of.opcode not in ("add", "subtract", "multiply", "compare", "and", "or", "not", "minimum", "maximum"):
        return None
    values_ = [_evaluate(module, computation, operand, arguments) for operand in operands]
    numbers = [value for value in values_ if isinstance(value, int)]
    return _apply(of, numbers) if len(numbers) == len(operands) else None


def _apply(of: Instruction, numbers: list[int]) -> int:
    a, b = numbers[0], numbers[-1]
    if of.opcode == "compare":
        direction = (re.search(r"direction=(\w+)", of.attributes) or ["", "EQ"])[1]
        holds = {"LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": a != b}
        return int(holds[direction])
    results = {
        "add": a + b,
        "subtract": a - b,
        "multiply": a * b,
        "and": a & b,
        "or": a | b,
        "not": 1 - a,
        "minimum": min(a, b),
        "maximum": max(a, b),
    }
    return results[of.opcode]
