"""What a compiled program does, read from its HLO text: kernels, copies, attention, collectives, memory traffic."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8, "c128": 16}
# Results that cost nothing: names of values, not work.
FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "while", "conditional", "call", "after-all"}
FREE |= {"copy-done", "all-reduce-done", "all-gather-done", "collective-permute-done", "async-done", "slice-done"}
COPIES = {"copy", "copy-start", "transpose"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
LARGE = 1 << 20  # numbers in an argument that is worth calling a weight or a memory

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    line: str

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]+)"', self.line)
        return found.group(1) if found else ""

    @property
    def scope(self) -> str:
        """The named scopes it was traced in, `a/b/c`."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found.group(1) if found else ""

    @property
    def called(self) -> list[str]:
        """Computations it names: a fusion's body, a loop's body, a conditional's branches."""
        lists = re.findall(
            r"(?:calls|body|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)", self.line
        )
        return [name for text in lists for name in re.findall(r"[\w.\-]+", text)]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def steps(self) -> list[tuple[Instruction, Computation, int]]:
        """What runs: instructions of the entry and of what it loops over or branches to, with how often."""
        return list(self._walk(self.entry, 1))

    def _walk(self, name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        inside = self.computations.get(name, {})
        for step in inside.values():
            yield step, inside, times
            if step.op in ("while", "conditional", "call"):
                for called in step.called:
                    yield from self._walk(called, times * self._trips(step))

    def _trips(self, step: Instruction) -> int:
        """How often a loop that counts from 0 runs its body; 1 for anything else, and where it cannot be read."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', step.line)
        condition = re.search(r"condition=%?([\w.\-]+)", step.line)
        if known or not condition:
            return int(known.group(1)) if known else 1
        inside = self.computations.get(condition.group(1), {})
        limits = [re.search(r"constant\((\d+)\)", each.line) for each in inside.values() if each.op == "constant"]
        return int(limits[0].group(1)) if len(limits) == 1 and limits[0] else 1

    @property
    def kernels(self) -> list[tuple[Instruction, Computation, int]]:
        """Steps that are work."""
        return [each for each in self.steps if each[0].op not in FREE]


def parse(text: str) -> Module:
    """The text of a compiled program (`compiled.as_text()`)."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current is not None:
            name, shape, op, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
            current[name] = Instruction(name, shape, op, operands, line)
    return Module(computations, entry)


def dims_of(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Types and sizes of the arrays in a shape."""
    found = _ARRAY.findall(shape)
    return [(kind, tuple(int(size) for size in sizes.split(",") if size)) for kind, sizes in found if kind in BYTES]


def bytes_of(shape: str) -> int:
    """Bytes of the arrays in a shape."""
    return sum(BYTES[kind] * math.prod(sizes) for kind, sizes in dims_of(shape))


def kind_of(step: Instruction) -> str:
    """A kernel's kind: the operation, a custom call's target, a fusion's emitter."""
    if step.op == "custom-call":
        return step.target
    emitter = re.search(r'"kind":"(\w+)"', step.line) or re.search(r"kind=k(\w+)", step.line)
    return f"fusion {emitter.group(1).strip('_')}" if step.op == "fusion" and emitter else step.op


def kinds(module: Module) -> dict[str, int]:
    """Kernels by kind, most frequent first."""
    counts = collections.Counter()
    for step, _, times in module.kernels:
        counts[kind_of(step)] += times
    return dict(counts.most_common())


def scoped(module: Module, name: str) -> int:
    """Kernels traced in scopes `name` and a number."""
    return sum(times for step, _, times in module.kernels if re.search(rf"(?:^|/){name}\d+(?:/|$)", step.scope))


def copies(module: Module) -> int:
    """Copies and transposes of their own."""
    return sum(times for step, _, times in module.kernels if step.op in COPIES)


def _origin(name: str, inside: Computation) -> Instruction | None:
    """The instruction behind names of it."""
    step = inside.get(name)
    while step is not None and step.op in ("bitcast", "get-tuple-element") and step.operands:
        step = inside.get(step.operands[0])
    return step


def relaid(module: Module) -> list[str]:
    """Kernels of the entry that rewrite a large argument: everything that reads one, but is neither a product, a
    convolution, attention, nor a write in place."""
    found = []
    entry = module.computations[module.entry]
    for step in entry.values():
        if step.op not in (*COPIES, "fusion", "concatenate", "convert"):
            continue
        fused = {inner.op for name in step.called for inner in module.computations.get(name, {}).values()}
        if fused & {"dynamic-update-slice", "convolution", "dot", "gather", "reduce"}:
            continue
        sources = [_origin(name, entry) for name in step.operands]
        large = [s for s in sources if s and s.op == "parameter" and _numbers(s.shape) >= LARGE]
        if large and _numbers(step.shape) >= LARGE:
            found.append(step.name)
    return found


def _numbers(shape: str) -> int:
    return sum(math.prod(sizes) for _, sizes in dims_of(shape))


def attention(module: Module) -> dict[int, int]:
    """Fused attention calls by their number of keys."""
    counts: dict[int, int] = collections.Counter()
    for step, inside, times in module.kernels:
        if step.target.startswith("__cudnn$fmha"):
            keys = inside[step.operands[1]].shape
            counts[dims_of(keys)[0][1][1]] += times
    return dict(counts)


def scores(module: Module, heads: int, queries: int, keys: set[int]) -> list[str]:
    """Buffers that hold scores: an array with heads, queries and a number of keys among its sizes."""
    return [
        f"{step.name} {step.shape}"
        for step, _, _ in module.kernels
        for _, sizes in dims_of(step.shape)
        if heads in sizes and queries in sizes and keys & set(sizes)
    ]


def convolutions(module: Module) -> dict[str, int]:
    """Convolutions by the memory layout of their input, outermost first: `b012f` is NDHWC, `bf012` NCDHW."""
    counts: dict[str, int] = collections.Counter()
    for step, inside, times in module.kernels:
        labels = re.search(r"dim_labels=(\w+)_", step.line)
        if labels and (step.op == "convolution" or step.target.startswith("__cudnn$conv")):
            layout = re.search(r"\{([\d,]+)", inside[step.operands[0]].shape)
            order = [int(at) for at in layout.group(1).split(",")][::-1] if layout else range(len(labels.group(1)))
            counts["".join(labels.group(1)[at] for at in order)] += times
    return dict(counts)


def collectives(module: Module) -> dict[str, tuple[int, int]]:
    """Number of the collectives by kind, and bytes of what they deliver to a device."""
    found: dict[str, tuple[int, int]] = {}
    for step, inside, times in module.kernels:
        for kind in COLLECTIVES:
            if step.op in (kind, f"{kind}-start"):
                number, size = found.get(kind, (0, 0))
                # what starts here and ends later carries what it sends beside what it delivers
                delivered = bytes_of(step.shape) // (2 if step.op == "collective-permute-start" else 1)
                if step.op == "all-gather-start":
                    delivered -= sum(bytes_of(inside[name].shape) for name in step.operands)
                found[kind] = number + times, size + times * delivered
    return found


def traffic(module: Module) -> int:
    """Bytes that the kernels read and write: operands and results, of a slice only the part that is cut or written."""
    return sum(times * (_read(step, inside, module) + _written(step, module)) for step, inside, times in module.kernels)


def _read(step: Instruction, inside: Computation, module: Module) -> int:
    shapes = [inside[name].shape for name in step.operands if name in inside]
    if step.op != "fusion":
        return sum(map(bytes_of, shapes))
    body = module.computations.get(step.called[0], {}) if step.called else {}
    parameters = sorted((each for each in body.values() if each.op == "parameter"), key=_number)
    if len(parameters) != len(shapes):
        return sum(map(bytes_of, shapes))
    return sum(min(bytes_of(shape), _touched(each, body)) for shape, each in zip(shapes, parameters, strict=True))


def _number(parameter: Instruction) -> int:
    found = re.search(r"parameter\((\d+)\)", parameter.line)
    return int(found.group(1)) if found else 0


def _touched(value: Instruction, body: Computation) -> int:
    """Bytes of a fusion's parameter that it reads."""
    total = 0
    for user in (each for each in body.values() if value.name in each.operands):
        if user.op in ("slice", "dynamic-slice"):
            total += bytes_of(user.shape)
        elif user.op == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # written in place
        elif user.op == "bitcast":
            total += _touched(user, body)
        else:
            return bytes_of(value.shape)
    return total


def _written(step: Instruction, module: Module) -> int:
    body = module.computations.get(step.called[0], {}) if step.op == "fusion" and step.called else {}
    parts = [body[each.operands[1]].shape for each in body.values() if each.op == "dynamic-update-slice"]
    whole = bytes_of(step.shape)
    return min(whole, sum(map(bytes_of, parts))) if parts else whole
