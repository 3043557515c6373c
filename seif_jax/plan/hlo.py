"""What an optimized program moves, read from its text: XLA's own analysis runs every loop once."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {  # move nothing by themselves
    "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "while",
    "conditional", "call", "after-all", "partition-id",
}  # fmt: skip
CONTROL = {"while", "conditional", "call"}  # what they call is a program, no part of an instruction
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)$")
ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")  # bits, shape, layout
CALLED = re.compile(r"(?:calls|to_apply|branch_computations|\w+_computation)=\{?(%?[\w.%, -]+)")
LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
NAME = re.compile(r"%([\w.-]+)")
TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
# {{0,1},{2,3}}; [2,8]<=[8,2]T(1,0): iota, reshaped, transposed, reshaped; mesh['a'=8,'b'=2] {'a'}
LISTED_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{([\d,{}]*)\}")
IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
# On TPUs one collective may run step by step inside of several fusions, each of which has a copy.
CHAIN = re.compile(r'chain_id="(\d+)"')
SCATTERED = "all-reduce-scatter"  # computations of a TPU that keep a slice of what they sum
ON_CHIP = "S(1)"  # in the layout of what a TPU holds beside its arithmetic, not in its memory


@dataclass
class HloInstruction:
    line: str
    made: str  # type of the result
    kind: str
    given: list[str]  # types of the operands
    called: list[str]  # computations


@dataclass
class HloProgram:
    computations: dict[str, list[HloInstruction]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)  # that each computation runs
    trips: dict[str, int] = field(default_factory=dict)  # of each loop, by its body
    parts: dict[str, int] = field(default_factory=dict)  # computations inside of an instruction,
    # and how often an instruction that calls it runs


def parse(text: str) -> HloProgram:
    out, entry, types = HloProgram(), "", {}
    lines: list[HloInstruction] = []
    for line in text.splitlines():
        if line.endswith("{") and ") -> " in line:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            lines, types = out.computations.setdefault(name, []), {}
        elif m := INSTRUCTION.match(line):
            name, made, kind, rest = m.groups()
            types[name] = made
            given = [types[x] for x in NAME.findall(_operands(rest)) if x in types]
            called = [x for names in CALLED.findall(rest) for x in NAME.findall(names)]
            lines.append(HloInstruction(line, made, kind, given, called))
    _run(out, entry, 1)
    return out


def _run(out: HloProgram, name: str, n: int) -> None:
    out.times[name] += n
    for each in out.computations.get(name, ()):
        if loop := LOOP.search(each.line):
            out.trips[loop[2]] = _trips(each.line, out.computations.get(loop[1], ()))
            _run(out, loop[2], n * out.trips[loop[2]])
        elif not each.kind.endswith(("-update", "-done")):
            if each.kind not in CONTROL:
                out.parts |= dict.fromkeys(each.called, n)
            for called in each.called:
                _run(out, called, n)


def _trips(line: str, condition: Sequence[HloInstruction]) -> int:
    """XLA writes them down, or they are what the counter is compared with."""
    if known := TRIPS.search(line):
        return int(known[1])
    limits = [LIMIT.search(each.line) for each in condition]
    return max((int(m[1]) for m in limits if m), default=1)


def links(program: HloProgram) -> dict[str, tuple[int, int]]:
    """Collectives by kind: how many, and bytes that leave a device."""
    count: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for kind, times, size, _ in _collectives(program):
        count[kind] += times
        moved[kind] += times * size
    return {kind: (count[kind], moved[kind]) for kind in KINDS if count[kind]}


def between_hosts(program: HloProgram, hosts: Sequence[int]) -> float:
    """Bytes that a device sends to other hosts. hosts: the host of each partition.

    Devices of a host that take part in one collective share its way out: each has a network adapter
    of its own. An all-to-all sends what is meant for each other device straight there.
    """
    return sum(
        times * size * _share(kind, line, hosts)
        for kind, times, size, line in _collectives(program)
    )


def _collectives(program: HloProgram) -> Iterator[tuple[str, int, int, str]]:
    """Kind, how often it runs, bytes that leave a device each time, the instruction's text."""
    chains = set()
    for name, instructions in program.computations.items():
        for each in instructions:
            kind, times = each.kind.removesuffix("-start"), program.times[name]
            if kind == "all-reduce" and name.startswith(SCATTERED):
                kind = "reduce-scatter"
            if kind in KINDS:
                if chain := CHAIN.search(each.line):
                    if chain[1] in chains:
                        continue
                    chains.add(chain[1])
                    times = program.parts.get(name, times)
                given = sum(map(_size, each.given))
                made = _size(each.made) - (given if each.kind.endswith("-start") else 0)
                size = {"all-reduce": 2 * given, "all-gather": made}.get(kind, given)
                yield kind, times, size, each.line


def _share(kind: str, line: str, hosts: Sequence[int]) -> float:
    """Of a collective's bytes, those that a device sends to other hosts."""
    shares = [0.0]
    for group in _groups(line, len(hosts)):
        members = Counter(hosts[device] for device in group)
        if len(members) > 1:
            here = min(members.values())
            shares.append(1 - here / len(group) if kind == "all-to-all" else 1 / here)
    return max(shares)


def _groups(line: str, devices: int) -> list[Any]:
    """Lists of the devices that a collective connects, in any of the ways that XLA writes them."""
    ids = np.arange(devices)
    if m := MESH_GROUPS.search(line):
        axes = re.findall(r"'([^']+)'=(\d+)", m[1])
        names, shape = [name for name, _ in axes], [int(size) for _, size in axes]
        along = [names.index(name) for name in re.findall(r"'([^']+)'", m[2])]
        ids = np.moveaxis(ids.reshape(shape), along, range(-len(along), 0))
        return ids.reshape(-1, math.prod(shape[i] for i in along)).tolist()
    if m := IOTA_GROUPS.search(line):
        shape, source, order = (_ints(part) for part in m.groups())
        return ids.reshape(source).transpose(order or None).reshape(shape).tolist()
    found = LISTED_GROUPS.search(line)
    listed = re.findall(r"\{([\d,]+)\}", found[1]) if found else []
    if not listed:
        return [[*range(devices)]]
    return [_ints(group) for group in listed]


def _ints(text: str | None) -> list[int]:
    return [int(x) for x in text.split(",")] if text else []


def accessed(program: HloProgram) -> float:
    """Bytes of the device's memory that instructions read and write, each operand and result once.

    Of a stack that a loop goes through, a slice a trip; of what is written over in place, and of
    tables that rows are taken from, what is touched.
    """
    total = 0.0
    for name, instructions in program.computations.items():
        if name not in program.parts:
            trips = program.trips.get(name, 0)
            each = (_moved(program, one, trips) for one in instructions if one.kind not in FREE)
            total += program.times[name] * sum(each)
    return total


def _moved(program: HloProgram, one: HloInstruction, trips: int) -> float:
    if one.kind.endswith("-done"):
        return 0.0
    if one.kind.endswith("-start"):  # between the memory and the chip, or the others
        given = sum(map(_size, one.given))
        # Of a slice its operand is among the results.
        return _size(one.made) - given if "slice" in one.kind else given
    inner = {each.kind for name in one.called for each in program.computations.get(name, ())}
    kinds = inner | {one.kind}
    made, given = list(_arrays(one.made, trips)), [y for x in one.given for y in _arrays(x, trips)]
    if "dynamic-update-slice" in kinds:
        for shape, size, sliced in list(made):
            same = next((y for y in given if y[0] == shape), None)
            if same:
                made.remove((shape, size, sliced))
                given.remove(same)
                made += [((), size, True)] if sliced else []
    written = sum(size for _, size, _ in made)
    takes = kinds & {"gather", "dynamic-slice"} and not kinds & {"dot", "convolution"}
    read = (min(size, written) if takes and not sliced else size for _, size, sliced in given)
    return written + sum(read)


def _arrays(text: str, trips: int) -> Iterator[tuple[tuple[int, ...], float, bool]]:
    """Shape, bytes in memory, and whether it is a stack that the loop goes through."""
    for bits, shape, layout in ARRAY.findall(text):
        if shape and ON_CHIP not in layout:
            sizes = tuple(map(int, shape.split(",")))
            sliced = trips > 1 and len(sizes) > 1 and sizes[0] == trips
            size = math.prod(sizes) * int(bits or 8) / 8
            yield sizes, size / trips if sliced else size, sliced


def _size(text: str) -> int:
    """Bytes of all arrays of a type, numbers by themselves left out."""
    return sum(
        math.prod(map(int, shape.split(","))) * int(bits or 8) // 8
        for bits, shape, _ in ARRAY.findall(text)
        if shape
    )


def _operands(rest: str) -> str:
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:i]
    return rest
