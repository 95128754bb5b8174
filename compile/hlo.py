"""Reading HLO text: what a graph holds, and what neuronx-cc would not take or should not be given.

The text is XLA's own (`HloModule::ToString`). Only the entry computation is followed; the small
ones that reductions and scatters apply are looked at where they matter.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_ERRORS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/error-codes/"

FORBIDDEN = {
    "while": "a loop",
    "conditional": "a branch on data",
    "sort": "a sort, which cores do not have",
    "rng": "a random number: draws come in as inputs",
    "rng-bit-generator": "a random number: draws come in as inputs",
    "infeed": "a transfer from the host",
    "outfeed": "a transfer to the host",
    "send": "a transfer to the host",
    "recv": "a transfer from the host",
    "fft": "an FFT",
    "cholesky": "a factorisation",
    "triangular-solve": "a triangular solve (NCC_EVRF001)",
}
"""Operations that no graph here may hold."""

KNOWN_CALLS = frozenset(
    f"AwsNeuron{name}"
    for name in (
        "Erf",
        "Gelu",
        "GeluApprxTanh",
        "GeluBackward",
        "Silu",
        "SiluBackward",
        "RmsNorm",
        "Softmax",
        "SoftmaxBackward",
        "CollectiveMatmul",
        "IntMatmult",
        "ArgMax",
        "ArgMin",
        "TopK",
        "DropoutMaskV1",
        "CustomNativeKernel",
        "CustomOp",
        "DevicePrint",
    )
)
"""Custom calls that the compiler lists as its own (AWS's page of error NCC_EVRF015)."""

NKI_CALL = "AwsNeuronCustomNativeKernel"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_LINE = re.compile(
    r"^\s*(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>\([^)]*\)|\S+) "
    r"(?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_SHAPE = re.compile(r"(\w+)\[([^\]]*)\]")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{\s*$")
_BITS = {"pred": 8, "bf16": 16}


@dataclass(frozen=True)
class Shape:
    """Of one array: XLA's name of the dtype, and its dimensions."""

    dtype: str
    dims: tuple[int, ...]
    dynamic: bool = False

    @property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        found = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) or (int(found[0]) if found else 8)
        return self.elements * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the module.
        opcode: as XLA spells it.
        shapes: of its result, more than one for a tuple.
        operands: names; of a parameter, its number.
        attributes: the rest of the line.
        root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The value of `name=...`, quotes and braces left off."""
        found = re.search(
            rf'\b{name}=("([^"]*)"|\{{(\{{.*?\}})?[^{{}}]*\}}|%?([\w.\-]+))', self.attributes
        )
        if not found:
            return None
        value = found[1].strip('"')
        return value[1:-1] if value.startswith("{") else value.lstrip("%")


@dataclass(frozen=True)
class Module:
    """A graph: its entry computation, and the opcodes of the others."""

    entry: tuple[Instruction, ...]
    applied: Mapping[str, tuple[Instruction, ...]]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it returns, in order."""
        root = next(each for each in self.entry if each.root)
        return root.operands if root.opcode == "tuple" else (root.name,)

    def parameters(self) -> dict[int, Instruction]:
        """Its inputs by number."""
        return {int(x.operands[0]): x for x in self.entry if x.opcode == "parameter"}


def parse(text: str) -> Module:
    """The graph of a text.

    Raises:
        ValueError: it has no entry computation, or one without a result.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            current = computations.setdefault(opened["name"], [])
            entry = opened["name"] if opened["entry"] else entry
        elif line.strip() == "}":
            current = None
        elif current is not None:
            found = _LINE.match(line)
            if found:
                current.append(_instruction(found))
    if entry is None or not any(each.root for each in computations[entry]):
        raise ValueError("this is no HLO text: there is no ENTRY computation with a ROOT")
    rest = {name: tuple(lines) for name, lines in computations.items() if name != entry}
    return Module(tuple(computations[entry]), rest)


def _instruction(found: re.Match[str]) -> Instruction:
    inside, attributes = _split(found["rest"])
    if found["opcode"] == "parameter":
        operands: tuple[str, ...] = (inside.strip(),)
    elif found["opcode"] == "constant":
        operands = ()
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    shapes = tuple(
        Shape(
            dtype,
            tuple(int(part.strip().removeprefix("<=")) for part in dims.split(",") if part.strip()),
            "<=" in dims or "?" in dims,
        )
        for dtype, dims in _SHAPE.findall(found["shape"])
    )
    text = inside if found["opcode"] == "constant" else ""
    return Instruction(
        found["name"], found["opcode"], shapes, operands, text + attributes, bool(found["root"])
    )


def _split(rest: str) -> tuple[str, str]:
    """What stands in an instruction's parentheses, and behind them."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:i], rest[i + 1 :]
    return rest, ""


@dataclass(frozen=True)
class Alias:
    """A state: the input it comes in as and the output it leaves as; None where there is none."""

    name: str
    parameter: int | None
    output: int | None


@dataclass(frozen=True)
class Context:
    """What a decode graph reads of the prompt, to see that no sample gets a copy of its own.

    Attributes:
        states: names of the context's states.
        slots: sizes of the dimension that holds positions: S_ctx, and G*S_ctx.
        samples: r.
    """

    states: tuple[str, ...]
    slots: tuple[int, ...]
    samples: int


@dataclass(frozen=True)
class Report:
    """What a graph holds.

    Attributes:
        instructions: how many.
        opcodes: how often each occurs.
        custom_calls: by target.
        collectives: opcode, shape and groups of each.
        aliases: of the states.
        largest: the most bytes that one instruction gives, and which.
        problems: what should not be there; empty where all is well.
    """

    instructions: int
    opcodes: Mapping[str, int]
    custom_calls: Mapping[str, int]
    collectives: tuple[str, ...]
    aliases: tuple[Alias, ...]
    largest: str
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Of plain types."""
        return {
            "instructions": self.instructions,
            "opcodes": dict(self.opcodes),
            "custom_calls": dict(self.custom_calls),
            "collectives": list(self.collectives),
            "aliases": [vars(each) for each in self.aliases],
            "largest": self.largest,
            "problems": list(self.problems),
        }


def examine(
    module: Module,
    aliases: Sequence[Alias] = (),
    context: Context | None = None,
    expected_calls: frozenset[str] = KNOWN_CALLS,
) -> Report:
    """What `module` holds, and what of it should not be there.

    Args:
        module: the graph.
        aliases: its states.
        context: of a decode graph in the torch form.
        expected_calls: custom calls that may occur.
    """
    calls = Counter(
        each.attribute("custom_call_target") or "?"
        for each in module.entry
        if each.opcode == "custom-call"
    )
    problems = [*_forbidden(module), *_numbers(module), *_states(module, aliases)]
    problems += [
        f"{count} custom calls of {name!r}, which are not expected here"
        for name, count in sorted(calls.items())
        if name not in expected_calls
    ]
    if context is not None:
        problems += _copies(module, aliases, context)
    made = [x for x in module.entry if x.opcode not in ("parameter", "tuple") and x.shapes]
    most = max(made, key=lambda x: sum(s.nbytes for s in x.shapes), default=None)
    return Report(
        instructions=len(module.entry),
        opcodes=dict(Counter(each.opcode for each in module.entry).most_common()),
        custom_calls=dict(calls),
        collectives=tuple(_collectives(module)),
        aliases=tuple(aliases),
        largest="" if most is None else f"{most.opcode} {', '.join(map(str, most.shapes))}",
        problems=tuple(problems),
    )


def _collectives(module: Module) -> Iterator[str]:
    for each in module.entry:
        if each.opcode in COLLECTIVES:
            shapes = ", ".join(map(str, each.shapes))
            yield f"{each.opcode} {shapes} {each.attribute('replica_groups') or ''}".strip()


def _forbidden(module: Module) -> Iterator[str]:
    for each in module.entry:
        if each.opcode in FORBIDDEN:
            yield f"{each.opcode} ({each.name}): {FORBIDDEN[each.opcode]}"
        if any(shape.dynamic for shape in each.shapes):
            yield f"{each.opcode} ({each.name}): a shape that is not static (NCC_EMOD025)"


def _numbers(module: Module) -> Iterator[str]:
    """Numbers that cores do not compute with."""
    by_name = {each.name: each for each in module.entry}
    for each in module.entry:
        kinds = {shape.dtype for shape in each.shapes}
        # A Python number comes in as a scalar and is converted at once.
        if "f64" in kinds and each.shapes[0].dims:
            yield f"{each.opcode} ({each.name}): 64-bit floating point"
        if kinds & {"c64", "c128"}:
            yield f"{each.opcode} ({each.name}): complex numbers (NCC_EVRF004)"
        given = {
            shape.dtype
            for name in each.operands
            if name in by_name
            for shape in by_name[name].shapes
        }
        whole = given & {"s32", "s64", "u32", "u64"}
        if each.opcode == "dot" and whole:
            yield f"dot ({each.name}): integers (NCC_EVRF035)"
        if each.opcode in ("all-reduce", "reduce-scatter") and whole:
            yield f"{each.opcode} ({each.name}): integers (NCC_EVRF061)"
        if each.opcode == "scatter" and {shape.dtype for shape in each.shapes} & whole:
            applied = module.applied.get(each.attribute("to_apply") or "", ())
            if any(x.root and x.opcode != "parameter" for x in applied):
                yield f"scatter ({each.name}): computes with integers (NCC_EVRF060)"


def _states(module: Module, aliases: Sequence[Alias]) -> Iterator[str]:
    parameters, outputs = module.parameters(), module.outputs
    by_name = {each.name: each for each in module.entry}
    for alias in aliases:
        if alias.parameter is None or alias.parameter not in parameters:
            yield f"state {alias.name} is no input of the graph: what it held would be lost"
            continue
        if alias.output is None or alias.output >= len(outputs):
            yield f"state {alias.name} is no output of the graph: every graph must rebind it"
            continue
        before, after = parameters[alias.parameter], by_name[outputs[alias.output]]
        if before.name == after.name:
            yield f"state {alias.name} leaves as it came: it must be rebound"
        elif before.shapes != after.shapes:
            yield (
                f"state {alias.name} comes in as {before.shapes[0]} and leaves as {after.shapes[0]}"
            )


def _copies(module: Module, aliases: Sequence[Alias], context: Context) -> Iterator[str]:
    """Results made of the context's states that are as large as one copy for each sample.

    Such a result has a dimension of positions and the elements of `samples` contexts; attention's
    logits have the positions and far fewer elements, weights of equal sizes do not come from the
    context.
    """
    if context.samples == 1:
        return
    parameters = module.parameters()
    held = [
        parameters[alias.parameter]
        for alias in aliases
        if alias.name in context.states and alias.parameter in parameters
    ]
    if not held:
        yield f"no state of the context ({', '.join(context.states)}) is an input"
        return
    enough = context.samples * min(each.shapes[0].elements for each in held)
    made_of = {each.name for each in held}
    for each in module.entry:
        if each.opcode in ("parameter", "tuple") or not made_of.intersection(each.operands):
            continue
        made_of.add(each.name)
        for shape in each.shapes:
            if shape.elements >= enough and set(shape.dims) & set(context.slots):
                yield (
                    f"{each.opcode} ({each.name}): {shape} holds {context.samples} copies of the "
                    "context"
                )


def as_text(name: str, report: Report) -> str:
    """A few lines for people."""
    calls = ", ".join(f"{count} x {each}" for each, count in report.custom_calls.items())
    kinds = Counter(each.split(" ", 1)[0] for each in report.collectives)
    groups = sorted({each.rsplit(" ", 1)[-1] for each in report.collectives})
    together = ", ".join(f"{count} x {each}" for each, count in kinds.items())
    kept = sum(each.parameter is not None and each.output is not None for each in report.aliases)
    lines = [
        f"{name}: {report.instructions} instructions",
        f"  custom calls: {calls or 'none'}",
        f"  collectives: {together or 'none'}{' over ' + ' '.join(groups) if groups else ''}",
        f"  states: {kept} of {len(report.aliases)} come in and leave",
        f"  largest: {report.largest}",
    ]
    lines += [f"  PROBLEM: {each}" for each in report.problems] or ["  no problem found"]
    return "\n".join(lines)
