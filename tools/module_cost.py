"""Arithmetic of a compiled module, loops counted as often as they run: XLA's own count takes every loop once.

compiled.as_text() -> matrix_flops -> operations of all matrix products
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SCOPES = re.compile(r'op_name="([^"]*)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")

Instruction = tuple[str, str, str, str]
"""Name, type, operation, and the rest of the line."""
Trips = Callable[[str], int]
"""How often a loop runs whose count the module does not tell, by the rest of its line."""


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation of a module; the entry is also under "ENTRY"."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = found[start[1]] = []
            if line.startswith("ENTRY"):
                found["ENTRY"] = current
        elif instruction := _INSTRUCTION.match(line):
            current.append((instruction[1], instruction[2], instruction[3], instruction[4]))
    return found


def matrix_flops(text: str, unknown_trips: int = 1, scopes: Mapping[str, int] | None = None) -> float:
    """Multiplications and additions of matrix products: the dearest branch of a condition.

    `unknown_trips`: how often loops run whose count depends on data; in a step those over blocks of an expert's rows.
    `scopes`: how often instead those in a `jax.named_scope` do.

    Raises:
        ValueError: a product inside a custom call, whose sizes the text does not tell.
    """

    def trips(rest: str) -> int:
        names = _SCOPES.search(rest)
        inside = names[1].split("/") if names else []
        return next((times for scope, times in (scopes or {}).items() if scope in inside), unknown_trips)

    return _flops("ENTRY", computations(text), trips, {})


def _flops(name: str, module: dict[str, list[Instruction]], unknown: Trips, known: dict[str, float]) -> float:
    if name not in known:
        shapes = {one: kind for one, kind, _, _ in module[name]}
        known[name] = sum(_of(instruction, shapes, module, unknown, known) for instruction in module[name])
    return known[name]


def _of(
    instruction: Instruction,
    shapes: dict[str, str],
    module: dict[str, list[Instruction]],
    unknown: Trips,
    known: dict[str, float],
) -> float:
    _, kind, operation, rest = instruction
    if operation == "dot":
        left = sizes(shapes[_OPERAND.findall(rest)[0]])
        contracted = _CONTRACTED.search(rest)
        assert contracted is not None, rest
        depth = math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis)
        return 2.0 * math.prod(sizes(kind)) * depth
    if operation == "custom-call" and re.search(r'custom_call_target="[^"]*(gemm|matmul|dot)', rest):
        raise ValueError(f"a product inside a custom call cannot be counted: {rest[:200]}")
    if branches := _BRANCHES.search(rest):
        return max(_flops(branch.strip().lstrip("%"), module, unknown, known) for branch in branches[1].split(","))
    called = [_flops(other, module, unknown, known) for other in _CALLED.findall(rest)]
    if operation == "conditional":
        return max(called)
    trips = _TRIPS.search(rest)
    times = (int(trips[1]) if trips else unknown(rest)) if operation == "while" else 1
    return times * sum(called)


def sizes(kind: str) -> tuple[int, ...]:
    """The sizes of an array's type, as `f32[2,3]{1,0}`; of a tuple none."""
    shape = _SHAPE.match(kind)
    return tuple(int(size) for size in shape[1].split(",") if size) if shape else ()


def made(text: str) -> Iterator[tuple[str, str]]:
    """Operation and type of everything that the module computes, outside and inside of loops."""
    for instructions in {id(one): one for one in computations(text).values()}.values():
        for _, kind, operation, _ in instructions:
            if operation not in ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional"):
                yield operation, kind
