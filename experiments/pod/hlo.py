"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections import Counter

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SIZES = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip
_ARRAY = re.compile(r"\b(" + "|".join(_SIZES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^\s*(ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*(.+?)\s([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


Sent = dict[str, tuple[str, int, int]]
"""Of each collective: kind, bytes, how often."""


class Unresolved(ValueError):
    """A loop whose number of trips the text does not tell."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Of its result.
        type: Of its result, as text.
        operation: Its name.
        rest: Operands and attributes, as text.
    """

    name: str
    type: str
    operation: str
    rest: str

    @property
    def bytes(self) -> list[int]:
        """Of each array of the result."""
        return [_bytes(kind, dims) for kind, dims in _ARRAY.findall(self.type)]


def _bytes(kind: str, dims: str) -> int:
    """Of an array, from the texts of its type and of its lengths."""
    return _SIZES[kind] * math.prod(map(int, filter(None, dims.split(","))))


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module by name, and the name of the one that it begins with."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(Instruction(*found.groups()))
    return computations, entry


def trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """How often a loop's body runs: as the compiler notes it, else the constant that its counter is compared with.

    Raises:
        Unresolved: There is neither.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(noted[1])
    condition = dict(_CALLED.findall(loop.rest))["condition"]
    constants, below = [], False
    for instruction in _reached(condition, computations):
        below |= instruction.operation == "compare" and "direction=LT" in instruction.rest
        if instruction.operation == "constant" and instruction.type.startswith("s32[]"):
            constants.append(int(instruction.rest.split(")")[0]))
    if not below or len(constants) != 1:
        raise Unresolved(f"loop {loop.name}: its condition {condition} compares with {constants}")
    return constants[0]


def _reached(name: str, computations: dict[str, list[Instruction]]) -> list[Instruction]:
    """The instructions of a computation and of those that it calls."""
    found = []
    for instruction in computations[name]:
        found.append(instruction)
        for _, called in _CALLED.findall(instruction.rest):
            found += _reached(called, computations)
    return found


def collectives(text: str) -> tuple[Counter[str], Counter[str]]:
    """What one device receives in one run of a program: bytes by kind, and how often.

    Bytes are those of results. Loops count as often as they run; of a conditional the largest branch counts.

    Args:
        text: Of an optimized module, `compiled.as_text()`.

    Raises:
        Unresolved: A loop that holds a collective does not tell how often it runs.
    """
    computations, entry = parse(text)
    every = [instruction for found in computations.values() for instruction in found]
    fusions = {dict(_CALLED.findall(i.rest))["calls"] for i in every if i.operation == "fusion"}
    known: dict[str, Sent] = {}

    def of(name: str) -> Sent:
        if name in known:
            return known[name]
        sent: Sent = {}

        def add(more: Sent, times: int = 1) -> None:
            for channel, (kind, size, count) in more.items():
                before = sent[channel][2] if channel in sent else 0
                sent[channel] = kind, size, before + count * times

        for instruction in computations[name]:
            called = _CALLED.findall(instruction.rest)
            kind = instruction.operation.removesuffix("-start")
            if kind in KINDS:
                arrays = instruction.bytes
                # The start of a pair names operand and result.
                size = max(arrays) if instruction.operation.endswith("-start") else sum(arrays)
                add({_identity(instruction, name in fusions): (kind, size, 1)})
            elif instruction.operation == "fusion":
                inner = of(dict(called)["calls"])
                if "all-reduce-scatter" in instruction.name:
                    inner = {instruction.name: ("reduce-scatter", sum(instruction.bytes), 1)}
                # One that is under way while others compute is named in each of their fusions.
                add({channel: found for channel, found in inner.items() if channel not in sent})
            elif instruction.operation == "while":
                if inner := of(dict(called)["body"]):
                    add(inner, trips(instruction, computations))
            elif branches := _branches(instruction):
                add(max(map(of, branches), key=lambda found: sum(size * n for _, size, n in found.values())))
            else:
                for role, inner in called:
                    if role in ("calls", "to_apply"):
                        add(of(inner))
        known[name] = sent
        return sent

    size, times = Counter(), Counter()
    for kind, each, count in of(entry).values():
        size[kind] += each * count
        times[kind] += count
    return size, times


def _identity(instruction: Instruction, fused: bool) -> str:
    """What tells one collective from another: its name, or its channel if it is in pieces, in several fusions."""
    found = re.search(r"channel_id=(\d+)", instruction.rest)
    return f"channel {found[1]}" if fused and found else instruction.name


def _branches(instruction: Instruction) -> list[str]:
    if instruction.operation != "conditional":
        return []
    if listed := _BRANCHES.search(instruction.rest):
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [name for role, name in _CALLED.findall(instruction.rest) if role.endswith("computation")]


def largest(text: str, count: int = 10) -> list[tuple[int, str]]:
    """The largest arrays of a module, in bytes and by their types: where to look when memory runs out."""
    sized = {(_bytes(kind, dims), f"{kind}[{dims}]") for kind, dims in _ARRAY.findall(text)}
    return sorted(sized, reverse=True)[:count]
