"""The bytes that an optimized program moves, read from its text.

XLA's own analysis counts the body of a loop once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "send",
)  # fmt: skip
BETWEEN_SLICES = "xla_megascale"  # in the text of a "send" to another TPU slice
FREE = {  # opcodes that move nothing by themselves
    "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "while",
    "conditional", "call", "after-all", "partition-id",
}  # fmt: skip
CONTROL = {"while", "conditional", "call"}  # what they call are programs, not parts of them
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)$")
ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")  # bits, shape, layout
CALLED = re.compile(r"(?:calls|to_apply|branch_computations|\w+_computation)=\{?(%?[\w.%, -]+)")
LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
NAME = re.compile(r"%([\w.-]+)")
TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
ELEMENT = re.compile(r"= [su]32\[\]\S* get-tuple-element\(.*index=(\d+)")
# Three ways of writing groups of devices: {{0,1},{2,3}}; [2,8]<=[8,2]T(1,0), an iota that is
# reshaped, transposed and reshaped; mesh['a'=8,'b'=2] {'a'}.
LISTED_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{([\d,{}]*)\}")
IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
# On TPUs one collective may run in steps inside several fusions, each of which has a copy of it.
CHAIN = re.compile(r'chain_id="(\d+)"')
REDUCE_SCATTER = "all-reduce-scatter"  # TPU computations that keep a slice of an all-reduce
ON_CHIP = "S(1)"  # in the layout of an array in a TPU's on-chip memory


@dataclass
class HloInstruction:
    text: str
    result: str  # its type
    opcode: str
    operands: list[str]  # their types
    called: list[str]  # names of computations


@dataclass
class HloProgram:
    """The computations of a program by name, and how often each of them runs."""

    computations: dict[str, list[HloInstruction]] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)
    trips: dict[str, int] = field(default_factory=dict)  # of a loop, by its body
    fused: dict[str, int] = field(default_factory=dict)  # computations that are a part of an
    # instruction, with how often that instruction runs
    data_dependent: bool = False  # see `parse`


def parse(text: str, data_dependent: bool = False) -> HloProgram:
    """data_dependent: whether the data decide how often loops run. Then a loop counts once, unless
    XLA knows its trip count."""
    program, entry, types = HloProgram(data_dependent=data_dependent), "", {}
    instructions: list[HloInstruction] = []
    for line in text.splitlines():
        if line.endswith("{") and ") -> " in line:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            instructions, types = program.computations.setdefault(name, []), {}
        elif match := INSTRUCTION.match(line):
            name, result, opcode, rest = match.groups()
            types[name] = result
            operands = [types[x] for x in NAME.findall(_operands(rest)) if x in types]
            called = [x for names in CALLED.findall(rest) for x in NAME.findall(names)]
            instructions.append(HloInstruction(line, result, opcode, operands, called))
    _count_runs(program, entry, 1)
    return program


def _count_runs(program: HloProgram, name: str, runs: int) -> None:
    program.runs[name] += runs
    for instruction in program.computations.get(name, ()):
        if loop := LOOP.search(instruction.text):
            condition, body = loop.groups()
            program.trips[body] = _trips(
                instruction,
                program.computations.get(condition, ()),
                program.computations.get(body, ()),
                program.data_dependent,
            )
            _count_runs(program, body, runs * program.trips[body])
        elif not instruction.opcode.endswith(("-update", "-done")):
            if instruction.opcode not in CONTROL:
                program.fused |= dict.fromkeys(instruction.called, runs)
            for called in instruction.called:
                _count_runs(program, called, runs)


def _trips(
    loop: HloInstruction,
    condition: Sequence[HloInstruction],
    body: Sequence[HloInstruction],
    data_dependent: bool,
) -> int:
    """The known trip count if XLA wrote it down, else what the loop's counter is compared with over
    what each trip adds to it: the loops in which TPUs gather or reduce a weight while they multiply
    by it take two steps per trip."""
    if known := TRIPS.search(loop.text):
        return int(known[1])
    if data_dependent:
        return 1
    limits = [CONSTANT.search(instruction.text) for instruction in condition]
    limit = max((int(match[1]) for match in limits if match), default=1)
    counters = [ELEMENT.search(instruction.text) for instruction in condition]
    indices = [int(match[1]) for match in counters if match]
    return -(-limit // (_step(body, indices[0]) if len(indices) == 1 else 1))


def _step(body: Sequence[HloInstruction], index: int) -> int:
    """What a loop's body adds to element `index` of its state; 1 if that is not a constant."""
    texts = {match[1]: x.text for x in body if (match := INSTRUCTION.match(x.text))}
    if not body or body[-1].opcode != "tuple":
        return 1
    names = NAME.findall(_operands(body[-1].text.partition(" tuple(")[2]))
    added = INSTRUCTION.match(texts.get(names[index], "")) if index < len(names) else None
    if not added or added[3] != "add":
        return 1
    terms = [CONSTANT.search(texts.get(name, "")) for name in NAME.findall(_operands(added[4]))]
    return next((int(match[1]) for match in terms if match), 1)


def collectives(program: HloProgram) -> dict[str, tuple[int, int]]:
    """By kind of collective: their number, and the bytes that leave a device."""
    count: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for collective in each_collective(program):
        count[collective.kind] += collective.runs
        moved[collective.kind] += collective.runs * collective.bytes
    return {kind: (count[kind], moved[kind]) for kind in COLLECTIVES if count[kind]}


def network_bytes(program: HloProgram, islands: Sequence[int]) -> float:
    """Bytes that a device sends over the network. islands: of each partition, its GPU host or TPU
    slice.

    The GPUs of a host that take part in a collective share its way out, because each has its own
    network adapter. An all-to-all sends what is meant for another device straight there.
    """
    return sum(
        collective.runs * collective.bytes * _network_share(collective, islands)
        for collective in each_collective(program)
    )


class Collective(NamedTuple):
    kind: str  # one of COLLECTIVES
    runs: int
    bytes: int  # that leave a device each time
    text: str


def each_collective(program: HloProgram) -> Iterator[Collective]:
    chains = set()
    for name, instructions in program.computations.items():
        for instruction in instructions:
            opcode, runs = instruction.opcode, program.runs[name]
            kind = opcode.removesuffix("-start")
            if kind == "all-reduce" and name.startswith(REDUCE_SCATTER):
                kind = "reduce-scatter"
            if kind not in COLLECTIVES:
                continue
            if chain := CHAIN.search(instruction.text):
                if chain[1] in chains:
                    continue
                chains.add(chain[1])
                runs = program.fused.get(name, runs)
            sent = sum(map(_size, instruction.operands))
            # The result of a "-start" has the operands in it.
            received = _size(instruction.result) - (sent if opcode.endswith("-start") else 0)
            size = {"all-reduce": 2 * sent, "all-gather": received}.get(kind, sent)
            yield Collective(kind, runs, size, instruction.text)


def _network_share(collective: Collective, islands: Sequence[int]) -> float:
    """The part of a collective's bytes that a device sends over the network."""
    if BETWEEN_SLICES in collective.text:
        return 1.0
    shares = [0.0]
    for group in _groups(collective.text, len(islands)):
        members = Counter(islands[device] for device in group)
        if len(members) > 1:
            fewest = min(members.values())
            is_direct = collective.kind == "all-to-all"
            shares.append(1 - fewest / len(group) if is_direct else 1 / fewest)
    return max(shares)


def _groups(text: str, devices: int) -> list[list[int]]:
    """The groups of devices that a collective connects."""
    ids = np.arange(devices)
    if match := MESH_GROUPS.search(text):
        axes = re.findall(r"'([^']+)'=(\d+)", match[1])
        names, shape = [name for name, _ in axes], [int(size) for _, size in axes]
        along = [names.index(name) for name in re.findall(r"'([^']+)'", match[2])]
        ids = np.moveaxis(ids.reshape(shape), along, range(-len(along), 0))
        return ids.reshape(-1, math.prod(shape[i] for i in along)).tolist()
    if match := IOTA_GROUPS.search(text):
        shape, source, order = (_ints(part) for part in match.groups())
        return ids.reshape(source).transpose(order or None).reshape(shape).tolist()
    match = LISTED_GROUPS.search(text)
    listed = re.findall(r"\{([\d,]+)\}", match[1]) if match else []
    return [_ints(group) for group in listed] or [[*range(devices)]]


def _ints(text: str | None) -> list[int]:
    return [int(x) for x in text.split(",")] if text else []


def accessed_bytes(program: HloProgram) -> float:
    """Bytes of the device's memory that instructions read and write, each operand and result once.

    Of a stack that a loop iterates over, one slice per trip counts; of arrays that are updated in
    place, and of tables that rows are gathered from, the part that is touched.
    """
    total = 0.0
    for name, instructions in program.computations.items():
        if name not in program.fused:
            trips = program.trips.get(name, 0)
            moved = (_moved(program, x, trips) for x in instructions if x.opcode not in FREE)
            total += program.runs[name] * sum(moved)
    return total


def _moved(program: HloProgram, instruction: HloInstruction, trips: int) -> float:
    """Bytes that an instruction reads and writes. trips: of the loop whose body it is in."""
    opcode = instruction.opcode
    if opcode.endswith("-done"):
        return 0.0
    if opcode.endswith("-start"):  # a copy between memory and chip, or a collective
        operands = sum(map(_size, instruction.operands))
        # The result of a slice has its operand in it.
        return _size(instruction.result) - operands if "slice" in opcode else operands
    opcodes = {opcode} | {
        inner.opcode for name in instruction.called for inner in program.computations.get(name, ())
    }
    results = list(_arrays(instruction.result, trips))
    operands = [x for operand in instruction.operands for x in _arrays(operand, trips)]
    if "dynamic-update-slice" in opcodes:
        for result in list(results):
            same = next((x for x in operands if x.shape == result.shape), None)
            if same:
                results.remove(result)
                operands.remove(same)
                results += [result._replace(shape=(), sliced=True)] * result.sliced
    written = sum(x.bytes for x in results)
    gathers = opcodes & {"gather", "dynamic-slice"} and not opcodes & {"dot", "convolution"}
    read = (min(x.bytes, written) if gathers and not x.sliced else x.bytes for x in operands)
    return written + sum(read)


class ArrayType(NamedTuple):
    shape: tuple[int, ...]
    bytes: float  # of a slice, if it is sliced
    sliced: bool  # a stack that a loop iterates over


def _arrays(type: str, trips: int) -> Iterator[ArrayType]:
    """The arrays of a type that are in the device's memory. Scalars are left out."""
    for bits, dims, layout in ARRAY.findall(type):
        if dims and ON_CHIP not in layout:
            shape = tuple(map(int, dims.split(",")))
            sliced = trips > 1 and len(shape) > 1 and shape[0] == trips
            size = math.prod(shape) * int(bits or 8) / 8
            yield ArrayType(shape, size / trips if sliced else size, sliced)


def _size(type: str) -> int:
    """Bytes of all arrays of a type. Scalars are left out."""
    return sum(
        math.prod(map(int, dims.split(","))) * int(bits or 8) // 8
        for bits, dims, _ in ARRAY.findall(type)
        if dims
    )


def _operands(rest: str) -> str:
    """The part of an instruction's text up to the parenthesis that closes its operands."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:i]
    return rest
